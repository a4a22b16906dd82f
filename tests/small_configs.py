"""Configs of detectors and segmentors with a small backbone in the place of theirs."""

from pathlib import Path

from support import ROOT

# A block a stage.
PVT = dict(
    embed_dims=[16, 32, 40, 64],
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 5, 8],
    mlp_ratios=[2, 2, 2, 2],
    sr_ratios=[8, 4, 2, 1],
)


def write_config(path: Path, base: str, model: dict) -> None:
    """A config that changes the model of another; an arch takes the place of the one there."""
    parts = {
        name: {**part, "arch": {**part["arch"], "_delete_": True}} if "arch" in part else part
        for name, part in model.items()
    }
    path.write_text(f"_base_ = [{str(ROOT / base)!r}]\nmodel = {parts!r}\n")
