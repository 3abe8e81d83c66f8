"""What the tests of the FFT kernels share: launches, their tolerance, a small case for every variant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cases as table
import emulator_harness as harness
import torch
from emulator_harness import Case, Inputs

PASSES = ("fwd", "bwd_weight")


def fft(*sizes: int, k: int | tuple[int, int], **rest: object) -> Case:
    """A case (n, c, h, w) of algorithm "fft", in float32 unless said."""
    return Case(*sizes, k).but(**{"dtype": "float32", "algorithm": "fft", **rest})


def check_close(emulator: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, torch.Tensor]:
    """Random data against the float64 oracle, within the tolerance of tests/helpers/cases.py."""
    inputs = harness.random_inputs(case) if inputs is None else inputs
    got, want = harness.run(emulator, case, inputs), harness.reference(case, inputs)
    if case.n == 0:  # launches nothing, in any family: the op itself makes the gradients zeros
        assert all(bool(t.isnan().all()) for t in got.values())
        return got
    plain = case.but(activation="none")  # |relu(a) - relu(b)| <= |a - b|; gelu's slope is below 1.13
    scale = harness.reference(plain, {name: t.abs() for name, t in inputs.items()})
    for name, exact in want.items():
        if name == "grad_bias":
            got[name], exact, scale[name] = (t[:, None, None] for t in (got[name], exact, scale[name]))
        if case.pass_ == "bwd_weight" and name == "out":
            # the error of a tap is of the size of the whole plane of taps, and of those that are not wanted
            scale[name] = scale[name].clamp_min((inputs["x"].abs().amax() * inputs["grad"].abs().amax()).double())
        table.assert_close_by_fft(got[name], exact, scale[name])
    return got


def variant_cases(emulator: ModuleType, pass_: str) -> dict[str, Case]:
    """Of every FFT variant: planes that fill it, odd sizes, a filter that makes the circle."""
    found = {}
    for number, name in enumerate(emulator.variants(pass_)):
        if name.startswith("fft_"):
            length = int(name.split("_")[1])
            h = 2 * length // 3 - 1
            k = length - h
            found[name] = fft(2, 1, h, h + 1, k=(2 * k - 1, k), variant=number, pass_=pass_)
    return found


def cut_variants(cuda: Path, kept: tuple[str, ...] = ("fft_14", "fft_20")) -> None:
    """Leaves few lengths in a copy of the sources, so that a mutant builds in seconds."""
    path = cuda / "fft/variants.h"
    lines = path.read_text().split("\n")
    rows = [i for i, line in enumerate(lines) if line.startswith('  X("fft_')]
    last = {i for i in rows if i + 1 not in rows}
    path.write_text(
        "\n".join(
            ("" if i in last else "\\") if i in rows and line.split('"')[1] not in kept else line
            for i, line in enumerate(lines)
        )
    )
