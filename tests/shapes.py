"""Images of a red square and a blue disc, in the layouts of COCO and ADE20K."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COCO = ("train2017", "val2017")
COLOURS = ((220, 30, 30), (30, 30, 220))


def draw(rng: np.random.Generator, height: int = 96, width: int = 128):
    """Pixels (H, W, 3) and the masks (H, W) of the square and the disc."""
    pixels = rng.integers(90, 120, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    masks = []
    for kind, colour in enumerate(COLOURS):
        # Each has its half of the image, so neither hides the other.
        radius = rng.integers(14, 22)
        dy = y - rng.integers(radius + 2, height - radius - 2)
        dx = x - rng.integers(radius + 2, width // 2 - radius - 2) - kind * (width // 2)
        distance = np.hypot(dy, dx) if kind else np.maximum(abs(dy), abs(dx))
        masks.append(distance <= radius)
        pixels[masks[-1]] = colour
    return pixels, masks


def write_coco(
    root: Path, images: int, classes: tuple[str, ...], names: tuple[str, str] = COCO
) -> Path:
    """The same images to train and to test on; squares are the first class, discs the second.

    ``names`` are the two folders; their annotation files have the same names.
    """
    (root / "annotations").mkdir(parents=True)
    for split in names:
        (root / split).mkdir()
        rng = np.random.default_rng(0)
        content = dict(images=[], annotations=[])
        content["categories"] = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]
        for image in range(images):
            pixels, masks = draw(rng)
            name = f"{image}.jpg"
            Image.fromarray(pixels).save(root / split / name, quality=95)
            height, width = pixels.shape[:2]
            content["images"].append(dict(id=image, file_name=name, height=height, width=width))
            for category, mask in enumerate(masks, start=1):
                number = len(content["annotations"]) + 1
                ids = dict(id=number, image_id=image, category_id=category, iscrowd=0)
                content["annotations"].append(ids | _measures(mask))
        file = f"instances_{split}.json" if names is COCO else f"{split}.json"
        (root / "annotations" / file).write_text(json.dumps(content))
    return root


def write_ade(root: Path, images: int) -> Path:
    """The same images to train and to test on: 1 background, 2 square, 3 disc, 0 not labelled."""
    return _write_labels(root, images, "annotations", ("training", "validation"), 1, 0)


def write_masks(root: Path, images: int) -> Path:
    """The same images to train and to test on: 0 background, 1 square, 2 disc, 255 not labelled."""
    return _write_labels(root, images, "masks", ("train", "val"), 0, 255)


def _write_labels(
    root: Path, images: int, kind: str, splits: tuple[str, str], background: int, unlabelled: int
) -> Path:
    for split in splits:
        rng = np.random.default_rng(0)
        for folder in ("images", kind):
            (root / folder / split).mkdir(parents=True)
        for image in range(images):
            pixels, masks = draw(rng)
            labels = np.full(pixels.shape[:2], background, np.uint8)
            labels[:4] = unlabelled
            for label, mask in enumerate(masks, start=background + 1):
                labels[mask] = label
            Image.fromarray(pixels).save(root / "images" / split / f"{image}.jpg", quality=95)
            Image.fromarray(labels).save(root / kind / split / f"{image}.png")
    return root


def _measures(mask: np.ndarray) -> dict:
    """Box, area and outline of a convex mask: down its left border, up its right one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    left = [(mask[row].argmax(), row) for row in rows]
    right = [(mask.shape[1] - mask[row][::-1].argmax(), row) for row in rows[::-1]]
    size = (len(columns), len(rows))
    return dict(
        bbox=[int(v) for v in (columns[0], rows[0], *size)],
        area=int(mask.sum()),
        segmentation=[[float(v) for point in left + right for v in point]],
    )
