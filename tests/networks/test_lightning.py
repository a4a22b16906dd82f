"""Lightning: a module in ten lines, one step of its trainer on a CPU."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acmix import ACmix2d
from user_networks import build_network, images

lightning = pytest.importorskip(
    "lightning", reason="lightning is not installed (pip install lightning)"
)


class Classifier(lightning.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.network = build_network(name).train()

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "precision"), [("csp", "32-true"), ("resnet18", "bf16-mixed")])
def test_fit(name, precision, tmp_path):
    module = Classifier(name)
    layer = next(m for m in module.modules() if isinstance(m, ACmix2d))
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    data = DataLoader(TensorDataset(torch.cat([images()] * 2), torch.arange(4)), batch_size=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    for parameter_name, parameter in layer.named_parameters():
        if parameter_name != "conv_p.bias":  # Only differences of the position count.
            assert not torch.equal(parameter, before[parameter_name]), parameter_name
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    twin, x = Classifier.load_from_checkpoint(path, name=name), images()
    torch.testing.assert_close(twin.eval().network(x), module.eval().network(x))
