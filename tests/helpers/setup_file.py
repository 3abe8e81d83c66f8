"""What setup.py defines, without a build: the options that the product is compiled with are written there alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


def functions() -> dict[str, Any]:
    """setup.py's functions and tables by name."""
    names: dict[str, Any] = {"__file__": str(SETUP), "__name__": "setup_functions"}
    code = SETUP.read_text(encoding="utf-8").replace("\nsetup(", "\nlambda: setup(")
    exec(compile(code, "setup.py", "exec"), names)
    return names
