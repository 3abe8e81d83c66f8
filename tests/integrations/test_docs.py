"""What docs/integrations.md says first; its code runs in tests/packaging/test_pages.py."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_here_is_imported_unasked() -> None:
    code = (
        "import sys, replknet_ext, replknet_ext.integrations\n"
        "print({'timm', 'torchvision', 'huggingface_hub', 'onnx', 'onnxscript', 'mmengine'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n"
