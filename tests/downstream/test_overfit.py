"""Training learns: four images of a red square and a blue disc are fitted."""

import pytest
from mmengine.config import Config

from acmix.mm.runner import ACmixRunner
from acmix.mm.settings import apply_data_root
from shapes import write_ade, write_coco
from support import ROOT

NANO = dict(
    embed_dims=[32, 64, 96, 128],
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 3, 4],
    mlp_ratios=[2, 2, 2, 2],
    sr_ratios=[8, 4, 2, 1],
)


HEADS = {
    "bbox_head": dict(in_channels=64, feat_channels=64, stacked_convs=2),
    "decode_head": dict(in_channels=[64, 64, 64, 64], channels=64),
}
KEPT = ("LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs", "PackSegInputs")


def fitted(name, data, work_dir, *, head, iterations, rate, score):
    """Score of a small PVT config after so many iterations on the four images as they are."""
    cfg = Config.fromfile(ROOT / "pvt" / "configs" / f"{name}.py")
    cfg.work_dir, cfg.launcher, cfg.randomness = str(work_dir), "none", dict(seed=0)
    cfg.data_root = str(data)
    cfg.model.backbone.update(arch=NANO, drop_path_rate=0.0)
    cfg.model.neck.update(in_channels=NANO["embed_dims"], out_channels=64)
    cfg.model[head].update(HEADS[head])
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (96, 128)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type in KEPT]
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (128, 96)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)
    cfg.log_processor.by_epoch = False
    cfg.optim_wrapper.optimizer.lr = rate
    cfg.optim_wrapper.clip_grad = dict(max_norm=10.0)
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=iterations // 10),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=iterations // 10, end=iterations),
    ]
    cfg.default_hooks.checkpoint = None
    apply_data_root(cfg)
    runner = ACmixRunner.from_cfg(cfg)
    runner.train()
    return runner.message_hub.get_scalar(f"val/{score}").current()


@pytest.mark.slow
def test_retinanet_finds_the_shapes(tmp_path):
    from mmdet.datasets import CocoDataset

    data = write_coco(tmp_path / "coco", 4, CocoDataset.METAINFO["classes"])
    config = "detection/retinanet_acmix-pvt-tiny_fpn_1x_coco"
    options = dict(head="bbox_head", iterations=150, rate=5e-4, score="coco/bbox_mAP")
    assert fitted(config, data, tmp_path, **options) >= 0.5


@pytest.mark.slow
@pytest.mark.thorough
def test_semantic_fpn_segments_the_shapes(tmp_path):
    data = write_ade(tmp_path / "ade", 4)
    config = "segmentation/fpn_acmix-pvt-tiny_8xb4-40k_ade20k-512x512"
    options = dict(head="decode_head", iterations=100, rate=1e-3, score="mIoU")
    assert fitted(config, data, tmp_path, **options) >= 80
