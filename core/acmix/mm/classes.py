"""Whether the classes of the data are those of the model, by their number and by their names."""

import re
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from acmix.errors import InputError

NAME_CATEGORIES = "give the names of its categories as metainfo.classes of the data set"
# A region proposal network tells objects from background, whatever the classes.
_HEAD = re.compile(r"(^|\.)(?!rpn_)\w*head(\.\d+)?$")
_SHOWN = 3


@HOOKS.register_module()
class ClassesHook(Hook):
    """Refuses data whose classes are not those of the model's heads, or in another order.

    Folders are numbered by split, so data of other class names would have wrong labels, silently.
    """

    def before_train(self, runner) -> None:
        """Check the training and validation data, and those that a resumed run was trained on."""
        train = runner.train_dataloader.dataset
        if runner.resumed_from is not None:
            _check_names(train, "training", runner.loaded_classes, runner.resumed_from)
        _check_count(runner.model, train, "training")
        if runner.val_loop is not None:
            val = runner.val_dataloader.dataset
            _check_names(val, "validation", _names(train), "the training data")
            _check_count(runner.model, val, "validation")

    def before_test(self, runner) -> None:
        """Check the test data, against the checkpoint too if it knows its classes."""
        dataset = runner.test_dataloader.dataset
        _check_names(dataset, "test", runner.loaded_classes, "the checkpoint")
        _check_count(runner.model, dataset, "test")


def _names(dataset: Any) -> tuple[str, ...] | None:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    return tuple(classes) if classes else None


def _check_names(dataset: Any, role: str, expected: tuple[str, ...] | None, origin: str) -> None:
    found = _names(dataset)
    if found is None or expected is None or found == expected:
        return
    added = [name for name in found if name not in expected]
    absent = [name for name in expected if name not in found]
    parts = [f"{_shown(added)} added"] if added else []
    parts += [f"{_shown(absent)} absent"] if absent else []
    difference = ", ".join(parts) or "another order"
    raise InputError(
        f"the {role} data have other classes than {origin}: {difference}; labels count the names "
        "in their order, so give all data the same class folders or metainfo.classes"
    )


def _shown(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + rest


def _check_count(model: nn.Module, dataset: Any, role: str) -> None:
    classes = _names(dataset)
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
    known = getattr(dataset, "cat_ids", None)
    if classes and known is not None and len(known) != len(classes):
        raise InputError(
            f"{dataset.ann_file}: names {len(known)} of the {len(classes)} classes of the {role} "
            f"data; {NAME_CATEGORIES}"
        )
