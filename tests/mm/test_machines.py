"""Several machines by make, stood for by addresses of this one, and workers that are killed."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from acmix.mm.launch import LaunchRecord, launcher
from runs import assert_equal, assert_same_end, read
from support import ROOT

CONFIG = "configs/acmix-swin-nano_1xb64_digits-32px.py"
# Two epochs of two iterations, of eight images each if there are two processes.
TINY = [
    "model.backbone.arch.embed_dims=16",
    "model.backbone.arch.depths=[1,1]",
    "model.backbone.arch.num_heads=[2,4]",
    "model.head.in_channels=32",
    "train_cfg.max_epochs=2",
    "train_dataloader.dataset.indices=16",
    "train_dataloader.batch_size=4",
    "val_dataloader.dataset.indices=8",
    "param_scheduler=None",
    "custom_imports.imports=[acmix_swin,mm.test_machines]",
]


@HOOKS.register_module()
class KillOnce(Hook):
    """SIGKILL for the process of the highest rank, once, before the second epoch's iterations."""

    def __init__(self, trace: str) -> None:
        self.trace = Path(trace)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        last = runner.rank == runner.world_size - 1
        if last and runner.iter == 3 and not self.trace.exists():
            self.trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
