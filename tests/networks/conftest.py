"""What other people's packages need to stay offline; set before anything imports them."""

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

if find_spec("ultralytics"):
    home = Path(tempfile.mkdtemp(prefix="ultralytics-"))
    os.environ |= {
        "YOLO_CONFIG_DIR": str(home),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
    }
    # The font that ultralytics would download to label images.
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shutil.copy(fonts / "DejaVuSans.ttf", home / "Arial.ttf")
