"""Parameters and multiply-adds of detectors and segmentors are those of the metafiles."""

import pytest
import yaml
from torch import Tensor, nn

from acmix.complexity import count_multiply_adds, count_parameters
from support import ROOT, build_model


class TwoStageForward(nn.Module):
    """One pass of a two-stage detector as it is commonly counted: 1,000 boxes and 100 masks.

    Boxes come with zero features, since those cut from the maps need no multiply-adds.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.maps = nn.Sequential(detector.backbone, detector.neck)
        self.rpn_head = detector.rpn_head
        self.box_heads, self.mask_heads = (
            heads if isinstance(heads, nn.ModuleList) else nn.ModuleList([heads])
            for heads in (detector.roi_head.bbox_head, detector.roi_head.mask_head)
        )

    def forward(self, image: Tensor) -> None:
        self.rpn_head(self.maps(image))
        for head in self.box_heads:
            head(image.new_zeros(1000, 256, 7, 7))
        for head in self.mask_heads:
            head(image.new_zeros(100, 256, 14, 14))


def entries():
    return [
        pytest.param(project, entry, id=entry["Name"])
        for project in ("resnet", "san", "pvt", "swin")
        for entry in yaml.safe_load((ROOT / project / "metafile.yml").read_text())["Downstream"]
    ]


@pytest.mark.parametrize(("project", "entry"), entries())
def test_counts_are_those_of_the_metafile_and_near_the_papers(project, entry):
    # Shapes alone are counted, so no memory and no arithmetic are spent.
    model = build_model(ROOT / project / entry["Config"]).to("meta")
    for parameter in model.parameters():
        parameter.requires_grad_()
    height, width = entry["Metadata"]["Size"]
    network = TwoStageForward(model) if hasattr(model, "roi_head") else model
    parameters, operations = (
        count_parameters(model),
        count_multiply_adds(network, (3, height, width)),
    )
    assert parameters == entry["Metadata"]["Parameters"]
    assert operations == entry["Metadata"]["FLOPs"]
    paper = entry["Paper"]
    assert operations / 1e9 == pytest.approx(float(paper["FLOPs"].removesuffix("G")), rel=0.05)
    if "Parameters" in paper:
        assert parameters / 1e6 == pytest.approx(float(paper["Parameters"][:-1]), rel=0.03)


def test_every_config_of_the_paper_is_in_a_metafile():
    listed = {ROOT / p.values[0] / p.values[1]["Config"] for p in entries()}
    found = [*ROOT.glob("*/configs/detection/*.py"), *ROOT.glob("*/configs/segmentation/*.py")]
    assert listed == {path for path in found if "_own-" not in path.stem}
