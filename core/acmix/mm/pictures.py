"""Pictures of predictions, one for each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import HOOKS
from mmpretrain.engine.hooks import VisualizationHook
from torch.utils.data import DataLoader


@HOOKS.register_module()
class PicturesHook(VisualizationHook):
    """MMPretrain's hook, which names a picture by the image's file alone.

    Images of two classes often have the same file name, so pictures lie in folders as the images
    do.
    """

    def before_test_epoch(self, runner) -> None:
        """Count the images from the beginning."""
        self._begin(runner.test_dataloader)

    def before_val_epoch(self, runner) -> None:
        """Count the images from the beginning."""
        self._begin(runner.val_dataloader)

    def _begin(self, loader: DataLoader) -> None:
        dataset: Any = loader.dataset
        while hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        self._seen, self._root = 0, getattr(dataset, "img_prefix", None)

    def _name(self, path: str) -> str:
        """Path of an image below the data set's folder, or in its own where there is none."""
        if self._root and Path(path).is_relative_to(self._root):
            return Path(path).relative_to(self._root).as_posix()
        return "/".join(Path(path).parts[-2:])

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[Any], step: int = 0
    ) -> None:
        if not self.enable:
            return
        images = data_batch["inputs"]
        if len(images) != len(data_samples):  # variants of the batch; the last is as it was
            images = images[-1]
        for image, sample in zip(images, data_samples, strict=True):
            number, self._seen = self._seen, self._seen + 1
            if number % self.interval:
                continue
            path = sample.get("img_path")
            name = self._name(path) if path else str(number)
            if self.out_dir is not None:
                self.draw_args["out_file"] = str(Path(self.out_dir, f"{name}_{step}.png"))
            pixels = image.permute(1, 2, 0).cpu().numpy().astype("uint8")
            self._visualizer.visualize_cls(
                image=pixels, data_sample=sample, step=step, name=name, **self.draw_args
            )
