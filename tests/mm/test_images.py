"""Folders of images as they are found on disks, and files in them that are no images."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmpretrain.registry import DATASETS
from mmpretrain.visualization import UniversalVisualizer
from PIL import Image

from acmix import InputError
from acmix.mm import ImageFolder
from acmix.mm.explain import explain
from acmix.mm.image_folder import check_images, class_folders
from acmix.mm.loaders import SeededDataset
from acmix.mm.pictures import PicturesHook

LOAD = [dict(type="LoadImageFromFile")]


def image(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "train"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        image(label).save(root / name / "0.png")
    return root


def read(folder, **options):
    return ImageFolder(data_root=str(folder), data_prefix="", pipeline=LOAD, **options)


def names(dataset):
    return [Path(dataset.get_data_info(i)["img_path"]).name for i in range(len(dataset))]


@pytest.mark.parametrize("ending", [".webp", ".gif", ".tiff", ".BMP"])
def test_images_of_many_kinds_are_read(ending, folder):
    image(3).save(folder / "dog" / f"1{ending}")
    dataset = read(folder)
    assert names(dataset) == ["0.png", "0.png", f"1{ending}"]
    assert dataset[2]["img"].shape == (8, 10, 3)
    assert dataset[2]["gt_label"] == 1


def test_folders_with_a_dot_are_no_classes(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    image(3).save(folder / ".ipynb_checkpoints" / "0.png")
    (folder / "cat" / ".ipynb_checkpoints").mkdir()
    image(3).save(folder / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    dataset = read(folder)
    assert dataset.metainfo["classes"] == class_folders(folder) == ("cat", "dog")
    assert names(dataset) == ["0.png", "0.png"]


def test_links_in_a_circle_end(folder):
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "dog" / "all").symlink_to(folder)
    assert len(read(folder)) == 3  # a cat is in the folder of dogs, by a link


@pytest.mark.parametrize("files", [[], ["notes.txt"]])
def test_folders_without_images_are_named(files, tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    for name in files:
        (tmp_path / "val" / "cat" / name).touch()
    with pytest.raises(InputError, match=r"val: has no images; those end in .jpg"):
        read(tmp_path / "val")


def test_names_in_the_config_must_be_as_many(folder):
    with pytest.raises(InputError, match="has 2 class folders, but 3 classes are named"):
        read(folder, metainfo=dict(classes=("a", "b", "c")))


def huge_png(side):
    """A picture of one colour, far too large to be decoded, in a few bytes."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100))


BAD = {"empty.png": b"", "text.png": b"not an image", "huge.png": huge_png(40_000)}


@pytest.mark.parametrize("name", BAD)
def test_the_file_that_fails_is_named(name, folder):
    (folder / "dog" / name).write_bytes(BAD[name])
    dataset = SeededDataset(read(folder))
    with pytest.raises((InputError, AssertionError)) as caught:
        dataset[2]
    assert explain(caught.value) == (
        f"image {folder / 'dog' / name} can't be decoded; repair it or remove it from the data"
    )


def config(folder):
    data = dict(type="ImageFolder", data_root=str(folder.parent), data_prefix="train")
    return Config(dict(train_dataloader=dict(dataset=data)))


def test_all_bad_images_are_listed(folder, capsys):
    for name, content in BAD.items():
        (folder / "dog" / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_images(config(folder), ("train_dataloader",), skip=False)
    text = str(caught.value)
    assert text.startswith("3 images can't be decoded; repair or remove them")
    assert f"{folder / 'dog' / 'empty.png'}: is empty" in text
    assert f"{folder / 'dog' / 'huge.png'}: has too many pixels" in text
    assert f"{folder / 'dog' / 'text.png'}: is no image" in text
    assert text.count(".png") == 3


def test_bad_images_are_left_out_when_asked(folder, capsys):
    for name, content in BAD.items():
        (folder / "dog" / name).write_bytes(content)
    cfg = config(folder)
    check_images(cfg, ("train_dataloader",), skip=True)
    assert "going on without 3 images" in capsys.readouterr().out
    data = cfg.train_dataloader.dataset
    assert names(DATASETS.build({**data, "pipeline": LOAD})) == ["0.png", "0.png"]


def test_other_data_sets_have_no_images_to_check():
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type="Digits", split="train"))))
    with pytest.raises(InputError, match="--check-images: opens images of an ImageFolder"):
        check_images(cfg, ("train_dataloader",), skip=False)


def test_pictures_of_equal_names_lie_beside_each_other(folder):
    paths = [folder / name / "nested" / "0.png" for name in ("cat", "dog")]
    for path in paths:
        path.parent.mkdir()
        image(3).save(path)
    UniversalVisualizer.get_instance("pictures")
    hook = PicturesHook(enable=True)
    hook.before_test_epoch(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=read(folder))))
    drawn = [hook._name(str(path)) for path in paths]
    assert drawn == ["cat/nested/0.png", "dog/nested/0.png"]
    assert hook._name("elsewhere/cat/1.png") == "cat/1.png"
