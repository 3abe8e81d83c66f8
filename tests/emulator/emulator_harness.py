"""Runs the CUDA forward kernels on the emulator: inputs, guard zones, the float64 reference."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cases as table
import reference as oracle
import torch

# (compute capability, SMs, shared memory a block may use, shared memory an SM)
H200 = (90, 132, 227 << 10, 228 << 10)
A100 = (80, 108, 163 << 10, 164 << 10)
RTX4090 = (89, 128, 99 << 10, 100 << 10)
RTX5090 = (120, 170, 99 << 10, 100 << 10)
GUARD = 256  # elements of NaN before and after a tensor


@dataclass(frozen=True)
class Case:
    """One launch: sizes, padding (top, bottom, left, right; None: "same"), what is fused, how tensors are aligned."""

    n: int
    c: int
    h: int
    w: int
    k: int | tuple[int, int]
    pad: tuple[int, int, int, int] | None = None
    dtype: str = "float16"
    flip: bool = False
    bias: bool = False
    activation: str = "none"
    shift: int = 0
    variant: int = -1
    limits: tuple[int, int, int, int] = H200
    pass_: str = "fwd"  # or bwd_weight; bwd_input is fwd with flip
    channels_last: bool = False
    precision: str = "ieee"
    algorithm: str = "auto"

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.k, self.k) if isinstance(self.k, int) else self.k

    @property
    def padding(self) -> tuple[int, int, int, int]:
        kh, kw = self.kernel
        return self.pad if self.pad is not None else (kh // 2, (kh - 1) // 2, kw // 2, (kw - 1) // 2)

    @property
    def out(self) -> tuple[int, int]:
        (kh, kw), (top, bottom, left, right) = self.kernel, self.padding
        return self.h + top + bottom - kh + 1, self.w + left + right - kw + 1

    def problem(self) -> dict[str, Any]:
        """Fields of csrc/problem.h's Problem."""
        (kh, kw), (ho, wo), pad = self.kernel, self.out, self.padding
        return dict(n=self.n, c=self.c, h=self.h, w=self.w, kh=kh, kw=kw, ho=ho, wo=wo, pad_top=pad[0],
                    pad_left=pad[2], dtype=self.dtype, channels_last=self.channels_last, flip=self.flip,
                    activation=self.activation, precision=self.precision, algorithm=self.algorithm,
                    **{"pass": self.pass_})  # fmt: skip

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def from_table(case: table.Case, **changes: Any) -> Case:
    """A row of tests/helpers/cases.py as a launch."""
    return Case(case.n, case.c, case.h, case.w, (case.kh, case.kw), case.padding).but(**changes)


Inputs = dict[str, torch.Tensor]  # fields of csrc/cuda/backend.h's Tensors


def exact_inputs(case: Case, seed: int = 0) -> Inputs:
    """Small integers, sparse enough that every sum is exact in the case's dtype: |sum| <= 256 holds in bf16."""
    g = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def integers(*size: int, most: int, terms: int = 1) -> torch.Tensor:
        keep = torch.rand(*size, generator=g) < min(1.0, 100 / max(1, terms))
        return (torch.randint(-most, most + 1, size, generator=g) * keep).to(dtype)

    kh, kw = case.kernel
    inputs = {"x": integers(case.n, case.c, case.h, case.w, most=2)}
    if case.pass_ == "bwd_weight":
        ho, wo = case.out
        inputs["grad"] = integers(case.n, case.c, ho, wo, most=1, terms=case.n * ho * wo)
        return inputs
    inputs["w"] = integers(case.c, kh, kw, most=1, terms=kh * kw)
    if case.bias:
        inputs["bias"] = integers(case.c, most=9)
    return inputs


def random_inputs(case: Case, seed: int = 0) -> Inputs:
    """Normal data; filters, or output gradients in bwd_weight, scaled so that results are about 1."""
    g = torch.Generator().manual_seed(seed)
    kh, kw = case.kernel
    ho, wo = case.out
    dtype = getattr(torch, case.dtype)
    inputs = {"x": torch.randn(case.n, case.c, case.h, case.w, generator=g).to(dtype)}
    if case.pass_ == "bwd_weight":
        inputs["grad"] = (torch.randn(case.n, case.c, ho, wo, generator=g) / max(1, case.n * ho * wo) ** 0.5).to(dtype)
        return inputs
    inputs["w"] = (torch.randn(case.c, kh, kw, generator=g) / (kh * kw) ** 0.5).to(dtype)
    if case.bias:
        inputs["bias"] = torch.randn(case.c, generator=g).to(dtype)
    return inputs


def reference(case: Case, inputs: Inputs) -> dict[str, torch.Tensor]:
    """ "out", and "grad_bias" of bwd_weight with bias, by the float64 oracle."""
    if case.pass_ == "bwd_weight":
        want = {"out": oracle.bwd_weight(inputs["grad"], inputs["x"], case.padding)[:, 0]}
        if case.bias:
            want["grad_bias"] = inputs["grad"].double().sum((0, 2, 3))
        return want
    w = (inputs["w"].flip(-1, -2) if case.flip else inputs["w"])[:, None]
    return {"out": oracle.fwd(inputs["x"], w, inputs.get("bias"), case.padding, case.activation)}


class Guarded:
    """A copy of a tensor between zones of NaN, `shift` elements off a 256-byte boundary, in a memory format."""

    def __init__(self, like: torch.Tensor, shift: int = 0, fill: bool = True, channels_last: bool = False) -> None:
        n, size = like.numel(), like.element_size()
        self.storage = torch.full((n + 2 * GUARD + 256 // size,), float("nan"), dtype=like.dtype)
        start = GUARD + (-(self.storage.data_ptr() // size + GUARD)) % (256 // size) + shift
        self.begin, self.end = start, start + n
        flat = self.storage[start : start + n]
        if channels_last and like.dim() == 4:
            batch, channels, height, width = like.shape
            self.tensor = flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            self.tensor = flat.view(like.shape)
        if fill:
            self.tensor.copy_(like)

    def intact(self) -> bool:
        before, after = self.storage[: self.begin], self.storage[self.end :]
        return bool(before.isnan().all() and after.isnan().all())


def run(emulator: ModuleType, case: Case, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Runs a case into NaN-poisoned outputs and workspace; returns what `reference` returns, in the case's dtype.

    Raises:
        AssertionError: the emulator's first finding, or a write outside the outputs.
    """
    ho, wo = case.out
    dtype = getattr(torch, case.dtype)
    tensors = {
        name: Guarded(t, case.shift if name in ("x", "grad") else 0, channels_last=case.channels_last)
        for name, t in inputs.items()
    }
    weight = case.pass_ == "bwd_weight"
    size = (case.c, *case.kernel) if weight else (case.n, case.c, ho, wo)
    shift = 0 if weight else case.shift
    outputs = {"out": Guarded(torch.empty(size, dtype=dtype), shift, fill=False, channels_last=case.channels_last)}
    if weight and case.bias:
        outputs["grad_bias"] = Guarded(torch.empty(case.c, dtype=dtype), fill=False)
    scratch = {}
    if bytes_ := emulator.plan(case.problem(), case.limits, case.variant)["workspace_bytes"]:
        scratch["workspace"] = Guarded(torch.empty(-(-bytes_ // 4)), fill=False)
    everything = {**tensors, **outputs, **scratch}
    try:
        for name, t in everything.items():
            item = t.tensor.element_size()
            writable = name in outputs or name in scratch
            emulator.watch(name, t.tensor.data_ptr(), item * t.tensor.numel(), item * GUARD, writable)
        address = {name: t.tensor.data_ptr() for name, t in everything.items()}
        error = emulator.launch(case.problem(), address, case.variant, case.limits)
    finally:
        emulator.unwatch()
    assert not error, f"{case}: {error}"
    for name, t in {**outputs, **scratch}.items():
        assert t.intact(), f"{case}: wrote outside {name}"
    return {name: t.tensor for name, t in outputs.items()}


def check_exact(emulator: ModuleType, case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """Integer data: bit-equal to float64."""
    inputs = exact_inputs(case, seed)
    got, want = run(emulator, case, inputs), reference(case, inputs)
    limit = {"bfloat16": 256, "float16": 2048, "float32": 1 << 24, "float64": 1 << 53}[case.dtype]
    for name, exact in want.items():
        assert exact.numel() == 0 or exact.abs().max() <= limit, "the case is not exact: make it sparser"
        wrong = int((got[name].double() != exact).sum())
        assert torch.equal(got[name].double(), exact), f"{case}: {wrong} of {exact.numel()} in {name} are wrong"
    return got


def bwd_input_of(case: table.Case, **changes: Any) -> Case:
    """The launch that is bwd_input of a row of cases.py: fwd of the output's gradient with the flipped filter."""
    _, _, ho, wo = case.output
    top, bottom, left, right = case.padding
    kh, kw = case.kh - 1, case.kw - 1
    pad = (kh - top, kh - bottom, kw - left, kw - right)
    launch = Case(case.n, case.c, ho, wo, (case.kh, case.kw), pad, flip=True).but(**changes)
    assert launch.out == (case.h, case.w)
    return launch


def check_bwd_input(emulator: ModuleType, case: table.Case, launch: Case) -> None:
    """Integer data: what `bwd_input_of` gave is bit-equal to the oracle's bwd_input."""
    inputs = exact_inputs(launch)
    want = oracle.bwd_input(inputs["x"], inputs["w"][:, None], case.padding)
    assert torch.equal(run(emulator, launch, inputs)["out"].double(), want), launch


def check_schedule(emulator: ModuleType, case: Case, *schedules: tuple[str, int]) -> None:
    """Random data: the bits are those of the usual order of threads."""
    inputs = random_inputs(case)
    want = run(emulator, case, inputs)
    for schedule in schedules:
        emulator.set_options(*schedule)
        got = run(emulator, case, inputs)
        assert all(torch.equal(got[key], want[key]) for key in want), f"{case}: {schedule}"


def check_random(emulator: ModuleType, case: Case) -> None:
    """Random data: within the table of tolerances, in 16 bit as if torch gave the exact result, rounded."""
    inputs = random_inputs(case)
    got, want = run(emulator, case, inputs), reference(case, inputs)
    scale = reference(case.but(activation="none"), {key: t.abs() for key, t in inputs.items()})
    for key in want:
        rounded = want[key].to(got[key].dtype) if got[key].element_size() == 2 else None
        table.assert_close(got[key], want[key], scale=scale[key], torch_result=rounded)


def spilled(emulator: ModuleType, case: Case, value: float, at: tuple[int, int, int, int]) -> torch.Tensor:
    """Mask of the outputs that one non-finite input changes."""
    inputs = exact_inputs(case)
    inputs["w"][inputs["w"] == 0] = 1  # no tap hides it
    before = run(emulator, case, inputs)["out"]
    inputs["x"][at] = value
    after = run(emulator, case, inputs)["out"]
    changed = ~((after == before) | (after.isnan() & before.isnan()))
    inside = torch.zeros_like(changed)
    (n, c, iy, ix), (kh, kw), (top, _, left, _), (ho, wo) = at, case.kernel, case.padding, case.out
    rows = slice(max(0, iy + top - kh + 1), min(ho, iy + top + 1))
    columns = slice(max(0, ix + left - kw + 1), min(wo, ix + left + 1))
    inside[n, c, rows, columns] = True
    assert not after[inside].isfinite().any(), "an output that sees the value must not be finite"
    spill = changed & ~inside
    assert after[spill].isnan().all()
    near = torch.zeros_like(changed)
    plan = emulator.plan(case.problem(), case.limits, case.variant)
    down, along = plan["spill_rows"], plan["spill_columns"]
    rows = slice(max(0, rows.start - down), rows.stop + down)
    columns = slice(max(0, columns.start - along), columns.stop + along)
    near[n, c, rows, columns] = True
    assert not (changed & ~near).any(), "NaN spilled further than the plan says"
    return spill


def conflicts_by_line(emulator: ModuleType) -> dict[str, tuple[int, int]]:
    """Bank conflicts since the last call: "file:line" (below csrc/cuda) -> (warp-wide accesses, extra wavefronts)."""
    assert emulator.__file__ is not None
    path = Path(emulator.__file__)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path.name)]
    base = min(int(fields[0].split("-")[0], 16) for fields in maps)
    found: dict[str, tuple[int, int]] = {}
    sites = [site for site in emulator.take_sites() if site[2]]
    if not sites:
        return found
    addresses = [hex(address - base - 1) for address, _, _ in sites]  # the call, not the place it returns to
    command = ["addr2line", "-e", str(path), *addresses]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    for (_, accesses, extra), line in zip(sites, lines, strict=False):
        name = os.path.normpath(line.split(" ")[0]).rpartition("/csrc/cuda/")[2]  # includes have "../" in their paths
        before = found.get(name, (0, 0))
        found[name] = (before[0] + accesses, before[1] + extra)
    return found


#: A small problem for every variant: more than one warp, a ragged last row, more than one group of images.
VARIANT_CASES = {
    "rt_5x7_w": Case(9, 1, 27, 56, (21, 31)),
    "rt_5x4_w": Case(9, 1, 27, 28, 29),
    "rt_3x2_w": Case(17, 2, 14, 14, 27),
    "rt_1x1_w": Case(17, 2, 7, 7, 13),
    "rt_3x7_w": Case(9, 1, 27, 56, (11, 13)),
    "rt_3x4_w": Case(9, 1, 27, 30, (13, 13)),
    "rt_5x3_w": Case(9, 1, 24, 24, 27),
    "rt_5x5_w": Case(9, 1, 19, 40, (17, 29)),
    "rt_5x6_w": Case(9, 1, 19, 48, (17, 29)),
    "rt_5x10_w": Case(9, 1, 19, 80, (13, 27)),
    "rt_5x12_w": Case(9, 1, 19, 96, (13, 31)),
    "rt_9x7_w": Case(9, 1, 19, 56, (5, 51)),
    "rt_7x4_w": Case(9, 1, 19, 28, (5, 49)),
    "rt_3x4_t": Case(9, 1, 19, 67, (9, 13)),
    "rt_5x4_t": Case(9, 1, 27, 67, (21, 31)),
    "rt_3x6_t": Case(9, 1, 19, 97, (9, 13)),
    "rt_5x6_t": Case(9, 1, 19, 97, (17, 31)),
    "rt_5x7_w_p4": Case(9, 1, 35, 56, (21, 31)),
    "rt_3x2_w_p4": Case(17, 2, 14, 14, 27),
    "rt_5x3_w_g2": Case(17, 1, 24, 24, 27),
    "rt_3x3_w": Case(9, 1, 20, 20, 13),
    "rt_3x5_w": Case(9, 1, 19, 40, (11, 13)),
    "rt_3x6_w": Case(9, 1, 19, 48, (11, 13)),
    "rt_7x7_w": Case(9, 1, 19, 56, (11, 41)),
    "rt_9x7_sq": Case(9, 1, 27, 28, 29),
    "rt_7x7_sq": Case(9, 1, 19, 26, (13, 21)),
    "rt_5x7_sq": Case(9, 1, 19, 28, (11, 13)),
    "rt_3x7_sq": Case(9, 1, 30, 28, (29, 5)),
    "rt_9x5_sq": Case(9, 1, 20, 20, 27),
    "rt_5x5_sq": Case(9, 1, 19, 20, (13, 12)),
    "rt_5x3_sq": Case(17, 2, 12, 12, 13),
    "rt_9x9_sq": Case(9, 1, 15, 36, (9, 29)),
    "rt_9x11_sq": Case(9, 1, 15, 44, (9, 29)),
    "rt_9x13_sq": Case(9, 1, 15, 52, (9, 29)),
    "rt_9x15_sq": Case(9, 1, 15, 60, (9, 31)),
    "rt_3x14_sq": Case(9, 1, 30, 56, (27, 5)),
    "rt_3x4_sq": Case(17, 2, 14, 14, (27, 5)),
}


def _staged(suffix: str, names: str, **changes: Any) -> dict[str, Case]:
    batch = {"rt_3x2_w": 17, "rt_1x1_w": 17}
    return {f"{name}_{suffix}": VARIANT_CASES[name].but(n=batch.get(name, 9), **changes) for name in names.split()}


#: Likewise for the staged kernels: channels_last, and float32 in either memory format.
STAGED_CASES = {
    **_staged("cl", "rt_5x7_w rt_5x4_w rt_3x2_w rt_1x1_w rt_3x4_t rt_5x4_t", c=2, channels_last=True),
    **_staged("cl", "rt_5x6_w rt_5x3_w rt_3x7_w rt_3x4_w", c=2, channels_last=True),
    **_staged("tf32", "rt_5x7_w rt_5x4_w rt_3x2_w rt_1x1_w rt_3x4_t rt_5x4_t", dtype="float32", precision="tf32"),
    **_staged("bf16x3", "rt_5x7_w rt_5x4_w rt_3x2_w rt_1x1_w rt_3x4_t rt_5x4_t", dtype="float32", precision="bf16x3"),
}
