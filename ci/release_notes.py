"""The notes of a release: ``python ci/release_notes.py v0.2.0`` prints its part of CHANGELOG.md."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "resnet", "san", "pvt", "swin")


def notes(tag: str) -> str:
    """What CHANGELOG.md has under the version of a tag.

    Raises:
        SystemExit: It has no such version with a date, or a package has another one.
    """
    version = tag.removeprefix("v")
    for package in PACKAGES:
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        if project["version"] != version:
            sys.exit(f"error: tag {tag}: {package}/pyproject.toml has version {project['version']}")
    parts = re.split(r"^## (.+)\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        if re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading):
            return text.strip()
    sys.exit(f"error: tag {tag}: CHANGELOG.md has no part '## {version} - <date>'")


if __name__ == "__main__":
    print(notes(sys.argv[1]))
