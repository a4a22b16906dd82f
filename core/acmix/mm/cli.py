"""The training and testing commands of every project: MMPretrain's flags, plain error messages.

They serve classifiers, MMDetection's detectors and MMSegmentation's segmentors; what differs is
looked up by the config's ``default_scope``.
"""

from collections.abc import Sequence
from pathlib import Path

import mmengine
import torch.distributed as dist
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from acmix.mm.checks import (
    check_checkpoint,
    check_data_folders,
    check_device,
    check_out,
    check_sharding,
    check_start,
    check_sync_bn,
    check_work_dir,
)
from acmix.mm.explain import input_errors_explained
from acmix.mm.image_folder import check_images
from acmix.mm.parsers import test_parser, train_parser
from acmix.mm.runner import ACmixRunner
from acmix.mm.settings import apply_test_flags, apply_train_flags, fill_class_count, load_config

# How the score that chooses the best checkpoint is printed.
_SCORES = {
    "accuracy/top1": "top-1 {:.2f} %",
    "coco/bbox_mAP": "box mAP {:.3f}",
    "mIoU": "mIoU {:.2f} %",
}


@input_errors_explained()
def train(project: Path, argv: Sequence[str] | None = None) -> None:
    """Run ``tools/train.py`` of a project.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.
    """
    args = train_parser().parse_args(argv)
    cfg = load_config(project, args)
    apply_train_flags(cfg, args)
    check_start(cfg)
    check_sharding(cfg)
    check_sync_bn(cfg)
    check_device(cfg)
    loaders = ("train_dataloader", "val_dataloader")
    check_data_folders(cfg, loaders)
    if args.check_images or args.skip_bad_images:
        check_images(cfg, loaders, skip=args.skip_bad_images)
    runner = _build_runner(cfg)
    runner.train()
    _print_result(runner)
    _leave_the_others()


@input_errors_explained()
def test(project: Path, argv: Sequence[str] | None = None) -> None:  # noqa: PT028
    """Run ``tools/test.py`` of a project; arguments as for ``train``."""
    args = test_parser().parse_args(argv)
    check_out(args)
    cfg = load_config(project, args)
    apply_test_flags(cfg, args)
    check_data_folders(cfg, ("test_dataloader",))
    runner = _build_runner(cfg)
    if args.out and args.out_item != "metrics":
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out_item == "metrics":
        mmengine.dump(metrics, args.out)
    _leave_the_others()


def _build_runner(cfg: Config) -> ACmixRunner:
    fill_class_count(cfg)
    check_checkpoint(cfg)
    check_work_dir(cfg)
    return ACmixRunner.from_cfg(cfg)


def _leave_the_others() -> None:
    """End the group of processes: its threads would abort this one now and then at its exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _print_result(runner: ACmixRunner) -> None:
    """The last and the best score and where its weights are, for a person at the terminal."""
    hub, best = runner.message_hub, runner.message_hub.runtime_info.get("best_ckpt")
    for score, text in _SCORES.items():
        if runner.rank == 0 and best and f"val/{score}" in hub.log_scalars:
            last = hub.get_scalar(f"val/{score}").current()
            print(f"{text.format(last)} at the end")
            print(f"best {text.format(hub.get_info('best_score'))}, weights in {best}")
