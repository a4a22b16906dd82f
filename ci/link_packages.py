"""Put the packages of a tree that can't be written on the path of this Python."""

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "resnet", "san", "pvt", "swin")

link = Path(sysconfig.get_path("purelib"), "acmix.pth")
link.write_text("".join(f"{ROOT / package}\n" for package in PACKAGES))
