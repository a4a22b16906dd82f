"""Files of weights as others write them, and the loaders that people read them with.

Every writer leaves a file of a small random network with its logits for an image, which the network
itself computed, not ours. ``docs/weights.md`` has the table of both.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import acmix_pvt  # noqa: F401  they register the backbones
import acmix_resnet  # noqa: F401
import acmix_san  # noqa: F401
import acmix_swin  # noqa: F401
from acmix import load_released
from acmix.convert import main as convert
from runs import QuickRunner
from support import GOLDEN, golden, scrambled

CLASSES = 5
STAGES = dict(embed_dims=16, depths=[2, 2, 2], num_heads=[1, 2, 4])


@dataclass
class Written:
    """A file of weights.

    Attributes:
        model: Config of a model of ours that takes them.
        path: The file.
        image: (1, 3, H, W).
        logits: What the network that wrote the file makes of the image, (1, classes).
    """

    model: dict
    path: Path
    image: Tensor
    logits: Tensor


def classifier(backbone: dict, channels: int, classes: int = CLASSES, pooled: bool = False) -> dict:
    """Config of a classifier of ours; ``pooled`` where the backbone gives a vector already."""
    return dict(
        type="ImageClassifier",
        backbone=backbone,
        neck=None if pooled else dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=classes, in_channels=channels),
    )


def swin(**options) -> dict:
    """A Swin-ACmix of three stages for images of 64 pixels."""
    backbone = dict(type="ACmixSwinTransformer", arch=STAGES, out_indices=(2,), window_size=4)
    return classifier({**backbone, "img_size": 64, **options}, 64)


def written(model: dict, network: nn.Module, content: dict, path: Path) -> Written:
    """Save, and let the network that is saved say what the logits are."""
    torch.save(content, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        return Written(model, path, image, network(image))


def timm_swin() -> nn.Module:
    timm = pytest.importorskip("timm")
    return scrambled(
        timm.models.swin_transformer.SwinTransformer(
            img_size=64,
            embed_dim=16,
            depths=(2, 2, 2),
            num_heads=(1, 2, 4),
            window_size=4,
            num_classes=CLASSES,
        )
    )


def write_released_swin(folder: Path) -> Written:
    io = golden("official_swin_mini_io.pt")
    arch = dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4])
    backbone = dict(type="ACmixSwinTransformer", arch=arch, out_indices=(1,))
    model = classifier(backbone, 48, 10)
    return Written(model, GOLDEN / "official_swin_mini.pth", io["input"][:1], io["logits"][:1])


def write_microsoft_swin(folder: Path) -> Written:
    """timm's network under the names that timm took from Microsoft and later changed."""
    network, weights = timm_swin(), {}
    for name, weight in network.state_dict().items():
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        weights[name.replace("head.fc.", "head.")] = weight
    for stage, side in enumerate((16, 8)):  # buffers that timm no longer saves
        name = f"layers.{stage}.blocks.1.attn_mask"
        weights[name] = torch.zeros((side // 4) ** 2, 16, 16)
    content = {"model": weights, "epoch": 3, "args": argparse.Namespace(output=Path("out"))}
    return written(swin(), network, content, folder / "microsoft.pth")


def write_timm_swin(folder: Path) -> Written:
    network = timm_swin()
    return written(swin(), network, network.state_dict(), folder / "timm_swin.pth")


def write_torchvision_swin(folder: Path) -> Written:
    network = scrambled(
        torchvision.models.swin_transformer.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=16,
            depths=[2, 2, 2],
            num_heads=[1, 2, 4],
            window_size=[4, 4],
            num_classes=CLASSES,
        )
    )
    return written(swin(), network, network.state_dict(), folder / "torchvision_swin.pth")


def mmpretrain_swin() -> nn.Module:
    model = copy.deepcopy(swin())
    model["backbone"]["type"] = "SwinTransformer"
    return scrambled(build(model))


def write_mmpretrain_swin(folder: Path) -> Written:
    network = mmpretrain_swin()
    content = {"meta": {"epoch": 3}, "state_dict": network.state_dict()}
    return written(swin(), network, content, folder / "mmpretrain_swin.pth")


def write_first_mmpretrain_swin(folder: Path) -> Written:
    network = mmpretrain_swin()
    weights = {n.replace("backbone.norm2.", "backbone.norm."): w for n, w in _named(network)}
    weights["backbone.stages.0.blocks.1.attn.attn_mask"] = torch.zeros(16, 16, 16)
    content = {"meta": {"mmcls_version": "0.15.0"}, "state_dict": weights}
    return written(swin(), network, content, folder / "mmcls_swin.pth")


def write_our_swin(folder: Path) -> Written:
    network = scrambled(build(swin()))
    content = {"meta": {"epoch": 3}, "state_dict": network.state_dict()}
    return written(swin(), network, content, folder / "our_swin.pth")


def write_original_pvt(folder: Path) -> Written:
    original = golden("pvt_v1_mini.pt")
    config, path = original["config"], folder / "pvt.pth"
    keys = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
    backbone = dict(type="ACmixPVT", arch={key: config[key] for key in keys}, img_size=64)
    content = {"model": original["state_dict"], "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, path)
    case = original["cases"][0]
    model = classifier(backbone, config["embed_dims"][-1], config["num_classes"], pooled=True)
    return Written(model, path, case["input"][:1], case["logits"][:1])


class Bare(nn.Module):
    """A backbone and a last layer under the names of code without MMEngine."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([backbone, nn.Linear(channels, CLASSES)])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1](self.parts[0](x)[-1].mean((2, 3)))

    def named_weights(self) -> dict[str, Tensor]:
        """As a parallel wrapper names them."""
        backbone, last = self.parts
        named = [*_named(backbone), *((f"fc.{name}", weight) for name, weight in _named(last))]
        return {f"module.{name}": weight for name, weight in named}


def write_original_san(folder: Path) -> Written:
    backbone = dict(type="ACmixSAN", depth=10, widths=(32, 32, 32, 64, 64), kernels=(3, 3, 3, 3, 3))
    network = scrambled(Bare(MODELS.build(dict(backbone, stem_channels=8, mix="attention")), 64))
    content = {"epoch": 100, "state_dict": network.named_weights(), "args": None}
    model = classifier(dict(backbone, stem_channels=8), 64)
    return written(model, network, content, folder / "san.pth")


def resnet() -> dict:
    return dict(type="ACmixResNet", depth=26, stem_channels=8, base_channels=4)


def write_released_resnet(folder: Path) -> Written:
    network = scrambled(Bare(MODELS.build(resnet()), 128))
    content = {"epoch": 90, "state_dict": network.named_weights(), "best_acc1": torch.tensor(76.5)}
    return written(classifier(resnet(), 128), network, content, folder / "resnet.pth.tar")


def write_plain_resnet(folder: Path, network: nn.Module, name: str) -> Written:
    backbone = dict(type="ACmixResNet", depth=26, num_heads=4)
    network = scrambled(network)
    return written(classifier(backbone, 2048), network, network.state_dict(), folder / name)


def write_torchvision_resnet(folder: Path) -> Written:
    bottleneck = torchvision.models.resnet.Bottleneck
    network = torchvision.models.ResNet(bottleneck, [1, 2, 4, 1], CLASSES)
    return write_plain_resnet(folder, network, "torchvision_resnet.pth")


def write_timm_resnet(folder: Path) -> Written:
    timm = pytest.importorskip("timm")
    network = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, [1, 2, 4, 1], num_classes=CLASSES
    )
    return write_plain_resnet(folder, network, "timm_resnet.pth")


def write_detector(folder: Path) -> Written:
    """A detector's file has a backbone that fits, and no head of a classifier."""
    file = write_our_swin(folder)
    weights = torch.load(file.path, weights_only=True)["state_dict"]
    weights = {n: w for n, w in weights.items() if not n.startswith("head.")}
    weights["bbox_head.retina_cls.bias"] = torch.zeros(9)
    torch.save({"state_dict": weights}, folder / "detector.pth")
    return Written(file.model, folder / "detector.pth", file.image, file.logits)


WRITERS: dict[str, Callable[[Path], Written]] = {
    "ACmix's authors: Swin": write_released_swin,
    "ACmix's authors: a ResNet's run": write_released_resnet,
    "this project": write_our_swin,
    "Microsoft: Swin": write_microsoft_swin,
    "timm: Swin": write_timm_swin,
    "torchvision: Swin": write_torchvision_swin,
    "MMPretrain 1.x: Swin": write_mmpretrain_swin,
    "MMClassification 0.x: Swin": write_first_mmpretrain_swin,
    "PVT's authors": write_original_pvt,
    "SAN's authors": write_original_san,
    "torchvision: ResNet": write_torchvision_resnet,
    "timm: ResNet": write_timm_resnet,
    "a detector or segmentor": write_detector,
}
# Their networks have 3×3 convolutions, which no ACmix layer can be.
PLAIN = ("torchvision: ResNet", "timm: ResNet")
DETECTOR = "a detector or segmentor"
# Tested with those of MMDetection and MMSegmentation in `tests/downstream/test_weights.py`.
DOWNSTREAM = "MMDetection's and MMSegmentation's loaders"


def _named(network: nn.Module) -> list[tuple[str, Tensor]]:
    return list(network.state_dict().items())


def build(model: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(Config(copy.deepcopy(model))).eval()


def _config(model: dict) -> Config:
    pipeline = [dict(type="PackInputs")]
    return Config(
        dict(model=model, test_dataloader=dict(dataset=dict(type="ImageNet", pipeline=pipeline)))
    )


@torch.no_grad()
def by_our_tools(file: Written, folder: Path) -> Tensor:
    """As ``tools/test.py`` of a project."""
    runner = QuickRunner(build(file.model), str(folder), log_level="ERROR")
    runner._weights_must_fit = True
    runner.load_checkpoint(str(file.path))
    return runner.model.eval()(file.image)


@torch.no_grad()
def by_stock_runner(file: Written, folder: Path) -> Tensor:
    """As MMPretrain's own ``tools/test.py``."""
    runner = Runner(build(file.model), str(folder), load_from=str(file.path), log_level="ERROR")
    runner.load_or_resume()
    return runner.model.eval()(file.image)


@torch.no_grad()
def by_get_model(file: Written, folder: Path) -> Tensor:
    return get_model(_config(file.model), str(file.path))(file.image)


def by_inferencer(file: Written, folder: Path) -> Tensor:
    """MMPretrain's ``ImageClassificationInferencer``, which gives probabilities."""
    inferencer = ImageClassificationInferencer(
        _config(file.model), str(file.path), classes=[str(i) for i in range(file.logits.shape[1])]
    )
    image = np.ascontiguousarray(file.image[0].permute(1, 2, 0).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = torch.tensor(inferencer(image)[0]["pred_scores"])[None]
    # Logits that have these probabilities, and the mean of the true ones.
    logits = scores.log()
    return logits + (file.logits - logits).mean()


@torch.no_grad()
def by_load_state_dict(file: Written, folder: Path) -> Tensor:
    """torch's ``load_state_dict``, strict."""
    model = build(file.model)
    model.load_state_dict(load_released(file.path))
    return model(file.image)


@torch.no_grad()
def by_init_cfg(file: Written, folder: Path) -> Tensor:
    """``init_cfg`` of the backbone; the head is then loaded on its own."""
    model = copy.deepcopy(file.model)
    model["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint=str(file.path))
    network = build(model)
    network.init_weights()
    weights = network.backbone.convert_state_dict(load_released(file.path)).state_dict
    head = {name: weight for name, weight in weights.items() if name.startswith("head.")}
    network.load_state_dict(head, strict=False)
    return network(file.image)


def by_safetensors(file: Written, folder: Path) -> Tensor:
    """``python -m acmix.convert IN OUT.safetensors``, and MMPretrain's ``get_model``."""
    path = folder / "converted.safetensors"
    convert([str(file.path), str(path)])
    return by_get_model(Written(file.model, path, file.image, file.logits), folder)


LOADERS: dict[str, Callable[[Written, Path], Tensor]] = {
    "`tools/test.py`": by_our_tools,
    "MMPretrain's `tools/test.py`": by_stock_runner,
    "MMPretrain's `get_model`, `init_model`": by_get_model,
    "MMPretrain's `ImageClassificationInferencer`": by_inferencer,
    "torch's `load_state_dict`": by_load_state_dict,
    "`init_cfg`": by_init_cfg,
    "`acmix.convert` to safetensors, `get_model`": by_safetensors,
}
# What a cell says.
EQUAL, REFUSED, STARTS = "equal", "refused", "starts"


def expected(writer: str, loader: str) -> str:
    """What a loader makes of a file."""
    if loader == DOWNSTREAM:
        return EQUAL if writer == DETECTOR else REFUSED
    if writer in (*PLAIN, DETECTOR):
        return STARTS if loader == "`init_cfg`" else REFUSED
    return EQUAL


def table() -> str:
    """Who wrote the file, who loads it, and what comes out, in Markdown."""
    loaders = [*LOADERS, DOWNSTREAM]
    lines = [f"| who wrote the file | {' | '.join(loaders)} |", "|---" * (len(loaders) + 1) + "|"]
    for writer in WRITERS:
        cells = [expected(writer, loader) for loader in loaders]
        lines.append(f"| {writer} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
