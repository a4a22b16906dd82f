"""Whether the classes of the data are those of the model."""

import re

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn
from torch.utils.data import Dataset

from acmix.errors import InputError

NAME_CATEGORIES = "give the names of its categories as metainfo.classes of the data set"
# A region proposal network tells objects from background, whatever the classes.
_HEAD = re.compile(r"(^|\.)(?!rpn_)\w*head(\.\d+)?$")


@HOOKS.register_module()
class ClassesHook(Hook):
    """Refuses data whose classes are not those of the model's heads."""

    def before_train(self, runner) -> None:
        """Check the training and validation data."""
        _check_count(runner.model, runner.train_dataloader.dataset, "training")
        if runner.val_loop is not None:
            _check_count(runner.model, runner.val_dataloader.dataset, "validation")

    def before_test(self, runner) -> None:
        """Check the test data."""
        _check_count(runner.model, runner.test_dataloader.dataset, "test")


def _check_count(model: nn.Module, dataset: Dataset, role: str) -> None:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes and not hasattr(dataset, "get_gt_labels"):
        return
    found = len(classes) if classes else int(max(dataset.get_gt_labels())) + 1
    for name, head in getattr(model, "module", model).named_modules():
        expected = getattr(head, "num_classes", None)
        if expected is None or not _HEAD.search(name):
            continue
        if found != expected if classes else found > expected:
            raise InputError(
                f"model.{name}.num_classes={expected}: the {role} data have {found} classes; "
                f"set model.{name}.num_classes={found} with --cfg-options or give other data"
            )
    # COCO's reader passes over objects of all other categories.
    known = getattr(dataset, "cat_ids", classes)
    if classes and len(known) != len(classes):
        raise InputError(
            f"{dataset.ann_file}: names {len(known)} of the {len(classes)} classes of the {role} "
            f"data; {NAME_CATEGORIES}"
        )
