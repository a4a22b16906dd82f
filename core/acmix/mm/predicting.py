"""What a model says of image files: classes, objects or masks, as plain data and as pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import imfrombytes
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS
from torch import nn

from acmix.mm.sources import datasets

# Pictures are drawn at least this large: text on a smaller one can't be read.
_SIDE = 224

# By the config's scope.
_VISUALIZERS = {
    "mmpretrain": "mmpretrain.UniversalVisualizer",
    "mmdet": "mmdet.DetLocalVisualizer",
    "mmseg": "mmseg.SegLocalVisualizer",
}

Record = dict[str, Any]


@dataclass
class Prediction:
    """What was found in an image.

    Attributes:
        path: The file.
        record: Plain data: ``{"classes": [{"class", "score"}, ...]}`` of a classifier, best first;
            ``{"objects": [{"class", "score", "box"}, ...]}`` of a detector, boxes as
            (left, top, right, bottom) in pixels; ``{"areas": {class: share}}`` of a segmentor.
        sample: The library's own form of it.
    """

    path: Path
    record: Record
    sample: Any


class Predictor:
    """A classifier, detector or segmentor and the test pipeline of its config.

    Args:
        cfg: The config, whose scope is the default one.
        model: Its model, with weights.
        classes: Names of the classes; those of the config's data set if ``None``. Classes without
            a name are numbered.
        device: Where to compute.
        topk: Classes or objects of an image that are kept.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        classes: Sequence[str] | None,
        device: torch.device,
        topk: int,
    ) -> None:
        self.model: Any = model.to(device).eval()
        self.topk = topk
        self._classes = classes or _known_classes(cfg)
        self._pipeline = image_pipeline(cfg)
        kind = _VISUALIZERS[cfg.get("default_scope", "mmpretrain")]
        self._visualizer = VISUALIZERS.build(dict(type=kind, name=f"predictions of {id(self)}"))
        rows = np.random.default_rng(0).integers(0, 256, (len(self._classes), 3)).tolist()
        palette = [tuple(row) for row in rows]
        self._visualizer.dataset_meta = {"classes": self._classes, "palette": palette}

    @torch.no_grad()
    def __call__(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """Predictions for images that can be decoded, in one batch."""
        inputs = [self._pipeline({"img_path": str(path), "img_id": 0}) for path in paths]
        samples = self.model.test_step(pseudo_collate(inputs))
        for path, sample in zip(paths, samples, strict=True):
            yield Prediction(path, self._record(sample), sample)

    def draw(self, prediction: Prediction, out: Path) -> None:
        """Write the image with its labels, boxes or masks."""
        image = imfrombytes(prediction.path.read_bytes(), channel_order="rgb")
        sample, options = prediction.sample.cpu(), dict(out_file=str(out))
        if "pred_score" in sample:
            factor = max(1.0, _SIDE / min(image.shape[:2]))
            self._visualizer.visualize_cls(
                image,
                sample,
                classes=self._classes,
                rescale_factor=factor,
                draw_gt=False,
                **options,
            )
        else:
            self._visualizer.add_datasample(out.stem, image, sample, draw_gt=False, **options)

    def _record(self, sample: Any) -> Record:
        if "pred_score" in sample:
            scores, labels = sample.pred_score.topk(min(self.topk, len(sample.pred_score)))
            return {"classes": [self._entry(*pair) for pair in zip(labels, scores, strict=True)]}
        if "pred_instances" in sample:
            found = sample.pred_instances
            best = found.scores.argsort(descending=True)[: self.topk].tolist()
            objects = (
                {**self._entry(found.labels[i], found.scores[i]), "box": found.bboxes[i].tolist()}
                for i in best
            )
            return {"objects": list(objects)}
        labels, counts = np.unique(sample.pred_sem_seg.data.cpu().numpy(), return_counts=True)
        order = counts.argsort()[::-1]
        shares = counts[order] / counts.sum()
        names = (self._name(int(label)) for label in labels[order])
        return {"areas": dict(zip(names, shares.tolist(), strict=True))}

    def _entry(self, label: torch.Tensor, score: torch.Tensor) -> Record:
        return {"class": self._name(int(label)), "score": float(score)}

    def _name(self, label: int) -> str:
        return self._classes[label] if label < len(self._classes) else str(label)


def _known_classes(cfg: Config) -> Sequence[str]:
    """Names that come with the data set, or none."""
    dataset = _test_data(cfg)
    with DATASETS.switch_scope_and_registry(None) as registry:  # that of the default scope
        kind = registry.get(dataset["type"])
    meta = {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    return meta.get("classes") or ()


def image_pipeline(cfg: Config) -> Compose:
    """The test pipeline for image files: from ``img_path`` and ``img_id`` to the model's input."""
    return Compose(_steps(cfg))


def _steps(cfg: Config) -> list[dict]:
    """The test pipeline for image files without annotations."""
    kinds = ("LoadAnnotations", "LoadPanoptic")
    steps = [step for step in _test_data(cfg)["pipeline"] if not _kind(step).startswith(kinds)]
    if any(_kind(step).startswith("LoadImage") for step in steps):
        return steps
    return [dict(type="mmcv.LoadImageFromFile"), *steps]


def _kind(step: dict) -> str:
    return step["type"].split(".")[-1]


def _test_data(cfg: Config) -> dict:
    (_, dataset), *_ = datasets(cfg, ("test_dataloader",))
    return dataset
