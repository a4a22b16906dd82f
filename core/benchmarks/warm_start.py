"""What copied weights are worth: a trained convolutional network, then ACmix in its place.

Trains a small network on scikit-learn's digits, replaces its 3×3 convolutions but the first by
layers with copied or fresh weights, and prints the top-1 on the held-out fifth: as it is, with the
statistics of its BatchNorms taken anew, and after each of three epochs of training.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from acmix import replace_convolutions

BATCH = 64


def block(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def network() -> nn.Sequential:
    """Five blocks and a classifier of ten classes."""
    blocks = [block(1, 32), block(32, 64, 2), block(64, 64), block(64, 128, 2), block(128, 128)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def digits() -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Training images in batches, and the held-out fifth; (B, 1, 16, 16) from -1 to 1."""
    images, labels = load_digits().images, load_digits().target
    images = F.interpolate(torch.tensor(images).float()[:, None] / 8 - 1, size=16, mode="bicubic")
    data = images, torch.tensor(labels)
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    batches = torch.tensor(train).split(BATCH)
    return [tuple(x[i] for x in data) for i in batches], tuple(x[test] for x in data)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> None:
    """All batches once, in random order."""
    model.train()
    for index in torch.randperm(len(batches)):
        images, labels = batches[index]
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Right answers, in percent."""
    return 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Print a table, one row a network."""
    torch.manual_seed(0)
    batches, test = digits()
    plain = network()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3)
    for _ in range(8):
        train_epoch(plain, optimizer, batches)
    print(f"convolutions: {top1(plain, *test):.1f}")
    for heads in (1, 2, 4):
        for copied in (True, False):
            model = copy.deepcopy(plain)
            report = replace_convolutions(
                model, num_heads=heads, where=lambda name, _: name != "0.0", copy_weights=copied
            )
            tops = [top1(model, *test)]
            update_bn(batches, model)
            tops.append(top1(model, *test))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(3):
                train_epoch(model, optimizer, batches)
                tops.append(top1(model, *test))
            errors = " ".join(f"{row.error:.2f}" for row in report.replaced if copied) or "fresh"
            print(f"num_heads={heads}, {errors}: {' '.join(f'{top:.1f}' for top in tops)}")


if __name__ == "__main__":
    main()
