"""MMEngine's runner with safe, atomic checkpoints that fit the model or are refused."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed
from mmengine.model import (
    BaseTTAModel,
    MMDistributedDataParallel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import nn

from acmix.checkpoint import read_checkpoint, state_dict_of
from acmix.errors import InputError
from acmix.mm.classes import ClassesHook
from acmix.mm.plain import PlainCheckpointHook
from acmix.mm.weights import load_weights


@RUNNERS.register_module()
class ACmixRunner(Runner):
    """Runner that reads weights of any origin, and writes plain data, whole or not at all.

    It also runs the ``pytorch`` launcher on machines without a GPU (gloo), where MMEngine asks
    for CUDA.
    """

    def __init__(self, *args, **kwargs) -> None:
        self._weights_must_fit = False
        super().__init__(*args, **kwargs)
        self.register_hook(PlainCheckpointHook())
        self.register_hook(ClassesHook())

    def test(self) -> dict:
        """Test; the checkpoint must fill the whole model."""
        self._weights_must_fit = True
        return super().test()

    def val(self) -> dict:
        """Validate; the checkpoint must fill the whole model."""
        self._weights_must_fit = True
        return super().val()

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue a run; the checkpoint must be one of ours, with its optimiser."""
        self._weights_must_fit = True
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = False,
        revise_keys: list | None = None,
    ) -> dict:
        """Read a checkpoint, released, plain or our own, and load its weights with a report.

        Raises:
            CheckpointError: The file is no checkpoint, hides code, or fits another model.
        """
        remote = re.match(r"\w+://", filename)
        read = _load_checkpoint if remote else read_checkpoint
        checkpoint = read(filename, map_location=map_location)
        if self._resume and "meta" not in checkpoint:
            raise InputError(
                f"{filename}: has weights but no training state to resume; "
                "start from it with --cfg-options load_from=..."
            )
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        complete = strict or self._weights_must_fit
        load_weights(model, state_dict_of(checkpoint, filename), filename, complete=complete)
        self._has_loaded = True
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Write a checkpoint beside its place and move it there when it is whole.

        Raises:
            InputError: The disk is full; the previous file of this name is untouched.
        """
        if "://" in out_dir:
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        partial = f"{filename}.partial"
        try:
            super().save_checkpoint(out_dir, partial, *args, **kwargs)
            if self.rank == 0:
                os.replace(Path(out_dir, partial), Path(out_dir, filename))
        except OSError as error:
            Path(out_dir, partial).unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{Path(out_dir, filename)}: no space left to save the checkpoint; "
                "free some, or choose another --work-dir, and go on with --resume"
            ) from error

    def setup_env(self, env_cfg: dict) -> None:
        """Set up processes and seeds; without a GPU, processes talk through gloo."""
        on_cpu = not torch.cuda.is_available()
        if on_cpu and self._launcher == "pytorch" and not is_distributed():
            dist.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes, also those without a GPU.

        Batch statistics are then each process's own, as torch synchronises them on GPUs only.
        """
        if torch.cuda.is_available() or not self.distributed or model_wrapper_cfg is not None:
            return super().wrap_model(model_wrapper_cfg, model)
        model = revert_sync_batchnorm(model)
        return MMDistributedDataParallel(model, broadcast_buffers=False)
