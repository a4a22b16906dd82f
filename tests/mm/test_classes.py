"""Data whose classes are not the model's, or numbered in another order, are refused."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from acmix import InputError
from acmix.mm.plain import to_plain
from acmix.mm.settings import fill_class_count
from runs import QuickRunner, read, run, tiny_config


def write_images(root, classes, count=4):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(9 * label + index).integers(0, 255, (40, 36, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")


def folder_config(work_dir, root, splits=("train", "val", "test"), **changes) -> Config:
    """The tiny run on folders of images."""
    cfg = tiny_config(work_dir, **{"train_cfg.max_epochs": 1})
    steps = [dict(type="Resize", scale=(32, 32)), dict(type="PackInputs")]
    for loader, split in zip(("train", "val", "test"), splits, strict=True):
        cfg[f"{loader}_dataloader"].dataset = dict(
            type="CustomDataset",
            data_root=str(root),
            data_prefix=split,
            pipeline=[dict(type="LoadImageFromFile"), *steps],
        )
    cfg.model.head.num_classes = 2
    cfg.data_preprocessor.num_classes = 2
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    write_images(root / "train", ["cat", "dog"])
    write_images(root / "val", ["cat", "dog"])
    write_images(root / "other", ["dog", "zebra"])
    write_images(root / "three", ["cat", "dog", "owl"])
    return root


def test_the_same_names_train_and_are_saved(pets, tmp_path):
    run(folder_config(tmp_path / "work", pets, ("train", "val", "val")))
    checkpoint = read(tmp_path / "work" / "epoch_1.pth")
    assert checkpoint["meta"]["dataset_meta"]["classes"] == ("cat", "dog")


def test_validation_data_of_other_names_are_refused(pets, tmp_path):
    with pytest.raises(InputError) as caught:
        run(folder_config(tmp_path / "work", pets, ("train", "other", "val")))
    assert str(caught.value).startswith(
        "the validation data have other classes than the training data: "
        "'zebra' added, 'cat' absent; labels count the names in their order"
    )
    assert not list((tmp_path / "work").glob("*.pth"))


def test_a_checkpoint_is_tested_on_its_own_names_only(pets, tmp_path):
    run(folder_config(tmp_path / "work", pets, ("train", "val", "val")))
    path = str(tmp_path / "work" / "epoch_1.pth")
    same = folder_config(tmp_path / "again", pets, ("train", "val", "val"), load_from=path)
    assert "accuracy/top1" in QuickRunner.from_cfg(same).test()
    cfg = folder_config(tmp_path / "test", pets, ("train", "val", "other"), load_from=path)
    with pytest.raises(InputError, match="the test data have other classes than the checkpoint"):
        QuickRunner.from_cfg(cfg).test()


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_number_of_classes_than_the_head_has_is_refused(split, pets, tmp_path):
    splits = ("three", "three", "val") if split == "train" else ("train", "three", "val")
    with pytest.raises(InputError) as caught:
        run(folder_config(tmp_path / "work", pets, splits))
    expected = {
        "train": "model.head.num_classes=2: the training data have 3 classes; set",
        "val": "the validation data have other classes than the training data: 'owl' added;",
    }
    assert str(caught.value).startswith(expected[split])


def test_an_open_number_of_classes_is_that_of_the_folders(pets, tmp_path):
    cfg = folder_config(tmp_path, pets, **{"model.head.num_classes": None})
    fill_class_count(cfg)
    assert (cfg.model.head.num_classes, cfg.data_preprocessor.num_classes) == (2, 2)


def test_plain_data_keep_their_kind():
    values = {"list": [1, [2.5]], "tuple": (1, (2, [3])), "none": None, "text": "a"}
    plain = to_plain(values)
    assert plain == values
    assert [type(plain[name]) for name in ("list", "tuple")] == [list, tuple]
    assert type(plain["tuple"][1][1]) is list
    assert type(plain["list"][1]) is list
