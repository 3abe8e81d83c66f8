"""Counts the instructions of the AVX2 kernels under callgrind. Table: ``driver_budgets.py``.

``python tests/cpu_driver/driver_count.py`` writes that table as this machine's compiler has it.
Counts do not depend on the machine's load or speed; of AVX-512 there are none, because valgrind can't run it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import driver_build as build

TABLE = build.HERE / "driver_budgets.py"
#: name, n, c, (h, w), (kh, kw), dtype, layout: one or two channel blocks of what the papers use, and what is awkward.
PROBLEMS: tuple[tuple[str, int, int, tuple[int, int], tuple[int, int], str, str], ...] = (
    ("56-K31", 1, 8, (56, 56), (31, 31), "float32", "nchw"),
    ("28-K29", 1, 8, (28, 28), (29, 29), "float32", "nchw"),
    ("14-K27", 2, 16, (14, 14), (27, 27), "float32", "nchw"),
    ("7-K13", 2, 32, (7, 7), (13, 13), "float32", "nchw"),
    ("14-K27", 2, 16, (14, 14), (27, 27), "float32", "nhwc"),
    ("14-K27", 2, 16, (14, 14), (27, 27), "bfloat16", "nchw"),
    ("56-K7", 1, 8, (56, 56), (7, 7), "float32", "nchw"),
    ("56-K7", 1, 8, (56, 56), (7, 7), "float32", "nhwc"),
    ("28-K5", 1, 8, (28, 28), (5, 5), "float32", "nchw"),
    ("14-K3", 1, 32, (14, 14), (3, 3), "float32", "nchw"),
    ("14-K3", 1, 32, (14, 14), (3, 3), "float32", "nhwc"),
    ("56-K51x5", 1, 8, (56, 56), (51, 5), "float32", "nchw"),
    ("29-K29-C13", 1, 13, (29, 29), (29, 29), "float32", "nchw"),
)
PASSES = ("fwd", "bwd_input", "bwd_weight")


def lines() -> str:
    """The problems as the driver reads them, "same" padding."""
    text = ""
    for name, n, c, (h, w), (kh, kw), dtype, layout in PROBLEMS:
        for pass_ in PASSES:
            pads = f"{kh // 2} {kh // 2} {kw // 2} {kw // 2}"
            text += f"{name} {pass_} {n} {c} {h} {w} {kh} {kw} {pads} {dtype} {layout} none\n"
    return text


def count(driver: Path, text: str) -> dict[str, int]:
    """Instructions of each kernel's call on the problems of `text`, packing included: "problem pass dtype layout
    kernel" -> count."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=measured", "--dump-after=measured"]
        command += [f"--callgrind-out-file={folder}/out", str(driver), "run", "avx2", "all"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"callgrind failed:\n{done.stderr[-2000:]}")
        names = done.stdout.splitlines()
        counts = {}
        for number, name in enumerate(names, 1):
            dump = Path(f"{folder}/out.{number}").read_text()
            match = re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)
            if match is None:
                raise RuntimeError(f"no total in callgrind's dump of {name}")
            counts[name] = int(match[1])
    return counts


def table(counts: dict[str, int]) -> str:
    """The table as Python source."""
    rows = "".join(f'    "{name}": {value},\n' for name, value in counts.items())
    return (
        '"""Instructions of the AVX2 kernels under callgrind. Written by driver_count.py."""\n\n'
        "from __future__ import annotations\n\n"
        f'GCC = "{build.compiler()}"  # major version of the compiler that the counts are of\n\n'
        '#: "problem pass dtype layout kernel" -> instructions of the whole call, packing included.\n'
        f"COUNTS: dict[str, int] = {{\n{rows}}}\n"
    )


if __name__ == "__main__":
    TABLE.write_text(table(count(build.build(build.FAST, ("avx2",)), lines())))
