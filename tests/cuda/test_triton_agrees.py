"""Two implementations that share no code give the same bits: the CUDA kernels on the emulator, Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
import triton_interpreter
from emulator_harness import Case, exact_inputs, reference, run

TESTS = Path(__file__).resolve().parent.parent

CASES = [
    Case(3, 2, 11, 13, 9, dtype="float16", bias=True),
    Case(9, 1, 14, 14, (13, 5), dtype="bfloat16", bias=True, activation="relu"),
    Case(2, 1, 12, 9, (6, 8), dtype="bfloat16"),
]

#: Runs every case by Triton on the operands in a file, and puts the results beside them.
SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[2])
import triton_interpreted as t
from replknet_ext.backends.triton import tiles as configs
configs.override = t.affordable
jobs = torch.load(sys.argv[1])
for job in jobs:
    w = job["w"][:, None]
    options = job["padding"], job["activation"], "ieee", "direct", "triton", -1
    job["out"] = t.ops.RAW.fwd(job["x"], w, job["bias"], *options)
torch.save([job["out"] for job in jobs], sys.argv[1])
"""


@triton_interpreter.needed
def test_emulated_cuda_and_interpreted_triton_give_the_same_bits(plain: ModuleType, tmp_path: Path) -> None:
    inputs = [exact_inputs(case) for case in CASES]
    jobs = [
        {**i, "bias": i.get("bias"), "padding": case.padding, "activation": case.activation}
        for case, i in zip(CASES, inputs, strict=True)
    ]
    torch.save(jobs, tmp_path / "jobs.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "jobs.pt"), str(TESTS / "helpers")]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, given, interpreted in zip(CASES, inputs, torch.load(tmp_path / "jobs.pt"), strict=True):
        emulated = run(plain, case, given)["out"]
        assert torch.equal(interpreted, emulated), case
        assert torch.equal(emulated.double(), reference(case, given)["out"]), case
