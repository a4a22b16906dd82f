"""The embedded data set: 1,797 scanned handwritten digits that come with scikit-learn."""

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class Digits(BaseDataset):
    """Handwritten digits of 8×8 pixels in ten classes, split once and for all.

    A fifth of every class, 360 images, is held out; no image is in both parts.

    Args:
        split: ``"train"`` (1,437 images) or ``"test"`` (360 images).
        **kwargs: Further arguments of MMPretrain's ``BaseDataset``.

    Raises:
        ValueError: The split is neither of the two.
    """

    METAINFO = {"classes": tuple("0123456789")}

    def __init__(self, split: str, **kwargs) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r}: choose from train, test")
        self.split = split
        kwargs.setdefault("test_mode", split == "test")
        super().__init__(ann_file="", **kwargs)

    def load_data_list(self) -> list[dict]:
        """Images as (8, 8, 3) uint8 arrays with their labels."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images, labels = digits.images, digits.target
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
        )
        return [
            {"img": _to_rgb(images[i]), "gt_label": int(labels[i])}
            for i in (train if self.split == "train" else test)
        ]


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Ink of 0..16 as three equal channels of 0..255."""
    return np.repeat((image * 255 / 16).astype(np.uint8)[..., None], 3, axis=-1)
