"""One wheel on each Python and torch, installed as users install it; `make matrix` builds the wheel and calls this.

    python .ci/matrix.py                           # every row: each CUDA torch is gigabytes to download
    python .ci/matrix.py --only 3.11/2.14.1 --only oldest
    python .ci/matrix.py --resolve-only            # no row is installed: pip's question alone, a minute in all

Each row gets a virtual environment that is removed afterwards. uv resolves from PyPI alone: no local folder of wheels,
no configuration. The rows then run README.md's snippet and `TESTS`, which see the installed wheel, not this checkout.
The row "oldest" has the lowest version that every direct dependency allows. Prints a table for CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.11.0", "2.13.0", "2.14.1", "newest")
#: A part of the suite whose quick tests touch every package that we depend on, in a few minutes.
TESTS = (
    "ops/test_values.py",
    "ops/test_modules.py",
    "packaging/test_import_name.py",
    "ops/test_patch.py",
    "models/test_replknet.py",
    "integrations/test_hub.py",
    "integrations/test_onnx.py",
    "integrations/test_timm.py",
    "tools/test_cli_commands.py",
    "tools/test_doctor.py",
    "tools/test_transforms.py",
    "tools/test_predict.py",
    "training/test_recipes.py",
    "training/test_runs.py",
    "triton/test_backend.py",
    "triton/test_values.py",
)


@dataclass(frozen=True)
class Row:
    """A combination to try."""

    python: str
    torch: str
    oldest: bool = False

    @property
    def name(self) -> str:
        """What ``--only`` takes."""
        return "oldest" if self.oldest else f"{self.python}/{self.torch}"


ROWS = (*(Row(python, torch) for torch in TORCHES for python in PYTHONS), Row("3.10", "2.11.0", oldest=True))


def environment() -> dict[str, str]:
    """This one's, without what steers pip, uv and Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "PYTEST", "UV_"))}
    kept |= {key: os.environ[key] for key in ("UV_CACHE_DIR", "UV_LINK_MODE") if key in os.environ}
    return {
        **kept,
        "UV_NO_CONFIG": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
    }


def call(*command: str | Path, cwd: Path = ROOT, log: Path) -> str:
    """Output of a command, which also goes to a file; CalledProcessError if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    done.check_returncode()
    return done.stdout


def resolved(row: Row, place: Path, log: Path) -> dict[str, str]:
    """The versions that uv chooses for the package with its extra test."""
    torch = place / "torch.in"
    torch.write_text("torch" if row.torch == "newest" else f"torch=={row.torch}", encoding="utf-8")
    lowest = ["--resolution", "lowest-direct"] if row.oldest else []
    how = ["--quiet", "--no-header", "--no-annotate", "--python-version", row.python, "--extra", "test", *lowest]
    text = call("uv", "pip", "compile", *how, ROOT / "pyproject.toml", torch, cwd=place, log=log)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def copy_tests(place: Path) -> None:
    """All that the tests read, but not the package, which comes out of the wheel."""
    for name in (
        "tests",
        "benchmarks",
        "examples",
        "docs",
        "README.md",
        "CONTRIBUTING.md",
        "Makefile",
        "pyproject.toml",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
        else:
            shutil.copy(source, place)


def tried(row: Row, wheel: Path, versions: dict[str, str], place: Path, log: Path) -> tuple[str, str]:
    """Installs a row and runs it: whether README's snippet ran, and pytest's last line."""
    call("uv", "venv", "--quiet", "--python", row.python, place / "venv", log=log)
    python = place / "venv/bin/python"
    pinned = place / "requirements.txt"
    pinned.write_text("\n".join(f"{name}=={version}" for name, version in versions.items()), encoding="utf-8")
    call("uv", "pip", "install", "--quiet", "--python", python, "-r", pinned, wheel, log=log)
    checkout = place / "checkout"
    checkout.mkdir()
    copy_tests(checkout)
    code = "import json, replknet_ext as r; print(json.dumps([r.HAS_EXT, r.__file__]))"
    has_extension, file = json.loads(call(python, "-c", code, cwd=checkout, log=log).splitlines()[-1])
    if not has_extension or not Path(file).is_relative_to(place / "venv"):
        raise RuntimeError(f"the wheel is not what is imported: {file}, extension {has_extension}")
    for number, snippet in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    ):
        (checkout / f"snippet_{number}.py").write_text(snippet, encoding="utf-8")
        call(python, "-W", "error::RuntimeWarning", f"snippet_{number}.py", cwd=checkout, log=log)
    call(place / "venv/bin/replknet-ext", "doctor", cwd=checkout, log=log)
    tests = [checkout / "tests" / name for name in TESTS]
    try:
        output = call(python, "-m", "pytest", "-q", "-m", "not slow", *tests, cwd=checkout, log=log)
    except subprocess.CalledProcessError as error:
        output = error.stdout or ""
    last = (output.strip().splitlines() or ["no output"])[-1]
    return "ran", re.sub(r"^=+ | =+$| in [\d.]+s.*", "", last)


def outcome(row: Row, wheel: Path, resolve_only: bool, logs: Path) -> list[str]:
    """The cells of a row of the table."""
    log = logs / f"{row.name.replace('/', '-torch-')}.txt"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="matrix-", dir=logs) as folder:
        place = Path(folder)
        first = [row.python, f"{row.torch}, oldest of all" if row.oldest else row.torch]
        try:
            versions = resolved(row, place, log)
        except subprocess.CalledProcessError:
            return [*first, "does not resolve", "", "", ""]
        found = [f"torch {versions['torch']}, triton {versions['triton']}, numpy {versions['numpy']}"]
        if resolve_only:
            return [*first, *found, "not run", "not run"]
        try:
            return [*first, *found, *tried(row, wheel, versions, place, log)]
        except (subprocess.CalledProcessError, RuntimeError) as error:
            return [*first, *found, "FAILED", str(error).replace(str(place), "")]


def build(logs: Path) -> Path:
    """The one wheel, with CPU kernels."""
    os.environ["REPLKNET_EXT_SKIP_CUDA"] = "1"
    folder = logs / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    line: list[str | Path] = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    call(sys.executable, *line, log=logs / "wheel.txt")
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> int:
    """Command line; 1 if a row that should work did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="ROW", help=f"of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--resolve-only", action="store_true")
    parser.add_argument("--wheel", type=Path, help="default: built here")
    chosen = parser.parse_args()
    rows = [row for row in ROWS if chosen.only is None or row.name in chosen.only]
    if chosen.only and len(rows) != len(set(chosen.only)):
        parser.error(f"--only takes {', '.join(row.name for row in ROWS)}")
    logs = ROOT / "build/matrix"
    logs.mkdir(parents=True, exist_ok=True)
    wheel = chosen.wheel.resolve() if chosen.wheel else build(logs)
    print(f"{datetime.date.today()}, {wheel.name}; logs in {logs}\n", flush=True)
    print("| Python | torch | resolves to | README's snippet | tests |\n|---|---|---|---|---|", flush=True)
    good = True
    for row in rows:
        cells = outcome(row, wheel, chosen.resolve_only, logs)
        print(f"| {' | '.join(cells)} |", flush=True)
        good &= "FAILED" not in cells and " failed" not in cells[-1] and " error" not in cells[-1]
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
