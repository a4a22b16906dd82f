"""``python -m acmix.mm.cam IMG CONFIG CHECKPOINT``: MMPretrain's ``vis_cam`` on any of our models.

It takes all flags of that tool and adds ``--vit-like`` where the backbone gives tokens.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mmpretrain
from mmengine.config import Config
from mmpretrain.registry import MODELS

from acmix.errors import InputError
from acmix.mm.explain import input_errors_explained

_TOOL = Path(mmpretrain.__file__).parent / ".mim" / "tools" / "visualization" / "vis_cam.py"


@input_errors_explained()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool.

    Args:
        argv: Arguments; those of the process if ``None``.

    Raises:
        InputError: MMPretrain came without its tools, or the tool lacks its own package.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not _TOOL.is_file():
        raise InputError(f"{_TOOL}: not there; install MMPretrain with its tools, by pip")
    config = next((argument for argument in arguments if argument.endswith(".py")), None)
    if config is not None and _gives_tokens(config):
        arguments.append("--vit-like")
    sys.argv = [str(_TOOL), *arguments]
    try:
        runpy.run_path(str(_TOOL), run_name="__main__")
    except ImportError as error:
        raise InputError("vis_cam needs grad-cam: pip install 'grad-cam>=1.3.6,<1.5'") from error


def _gives_tokens(config: str) -> bool:
    kind = MODELS.get(Config.fromfile(config).model.backbone.type)
    return hasattr(kind, "num_extra_tokens")


if __name__ == "__main__":
    main()
