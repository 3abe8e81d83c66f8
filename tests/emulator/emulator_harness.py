"""Runs the CUDA forward kernels on the emulator: inputs, guard zones, the float64 reference."""

from __future__ import annotations

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
        """Fields of csrc/dwconv.h's Problem."""
        (kh, kw), (ho, wo), pad = self.kernel, self.out, self.padding
        return dict(n=self.n, c=self.c, h=self.h, w=self.w, kh=kh, kw=kw, ho=ho, wo=wo, pad_top=pad[0],
                    pad_left=pad[2], dtype=self.dtype, channels_last=False, flip=self.flip,
                    activation=self.activation)  # fmt: skip

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def from_table(case: table.Case, **changes: Any) -> Case:
    """A row of tests/cases.py as a launch."""
    return Case(case.n, case.c, case.h, case.w, (case.kh, case.kw), case.padding).but(**changes)


def exact_inputs(case: Case, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Small integers whose sums every step represents exactly: |y| <= 256 holds for bf16 by sparse filters."""
    g = torch.Generator().manual_seed(seed)
    kh, kw = case.kernel
    dtype = getattr(torch, case.dtype)
    x = torch.randint(-2, 3, (case.n, case.c, case.h, case.w), generator=g).to(dtype)
    density = min(1.0, 100 / (kh * kw))
    keep = torch.rand(case.c, kh, kw, generator=g) < density
    w = (torch.randint(-1, 2, (case.c, kh, kw), generator=g) * keep).to(dtype)
    return x, w, torch.randint(-9, 10, (case.c,), generator=g).to(dtype) if case.bias else None


def random_inputs(case: Case, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Normal data; filters scaled so that outputs are about 1."""
    g = torch.Generator().manual_seed(seed)
    kh, kw = case.kernel
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.n, case.c, case.h, case.w, generator=g).to(dtype)
    w = (torch.randn(case.c, kh, kw, generator=g) / (kh * kw) ** 0.5).to(dtype)
    return x, w, torch.randn(case.c, generator=g).to(dtype) if case.bias else None


def reference(case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same convolution by the float64 oracle."""
    w = (w.flip(-1, -2) if case.flip else w)[:, None]
    return oracle.fwd(x, w, bias, case.padding, case.activation)


class Guarded:
    """A tensor between zones of NaN, `shift` elements off a 64-byte boundary."""

    def __init__(self, like: torch.Tensor, shift: int, fill: bool = True) -> None:
        n = like.numel()
        self.storage = torch.full((n + 2 * GUARD + 64,), float("nan"), dtype=like.dtype)
        start = GUARD + (-(self.storage.data_ptr() // 2 + GUARD)) % 32 + shift
        self.begin, self.end = start, start + n
        self.tensor = self.storage[start : start + n].view(like.shape)
        if fill:
            self.tensor.copy_(like)

    def intact(self) -> bool:
        before, after = self.storage[: self.begin], self.storage[self.end :]
        return bool(before.isnan().all() and after.isnan().all())


def run(emulator: ModuleType, case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Runs a case into a NaN-poisoned output.

    Raises:
        AssertionError: the emulator's first finding, or a write outside the output.
    """
    ho, wo = case.out
    tensors = {"input": Guarded(x, case.shift), "weight": Guarded(w, 0)}
    if bias is not None:
        tensors["bias"] = Guarded(bias, 0)
    out = Guarded(torch.empty(case.n, case.c, ho, wo, dtype=x.dtype), case.shift, fill=False)
    try:
        for name, t in {**tensors, "output": out}.items():
            emulator.watch(name, t.tensor.data_ptr(), 2 * t.tensor.numel(), 2 * GUARD, name == "output")
        address = {name: t.tensor.data_ptr() for name, t in tensors.items()}
        error = emulator.fwd(case.problem(), address["input"], address["weight"], address.get("bias", 0),
                             out.tensor.data_ptr(), case.variant, case.limits)  # fmt: skip
    finally:
        emulator.unwatch()
    assert not error, f"{case}: {error}"
    assert out.intact(), f"{case}: wrote outside the output"
    return out.tensor


def check_exact(emulator: ModuleType, case: Case, seed: int = 0) -> torch.Tensor:
    """Integer data: bit-equal to float64."""
    inputs = exact_inputs(case, seed)
    got, want = run(emulator, case, *inputs), reference(case, *inputs)
    limit = 256 if case.dtype == "bfloat16" else 2048
    assert want.numel() == 0 or want.abs().max() <= limit, "the case is not exact: make its filter sparser"
    wrong = int((got.double() != want).sum())
    assert torch.equal(got.double(), want), f"{case}: {wrong} of {want.numel()} outputs are wrong"
    return got


def conflicts_by_line(emulator: ModuleType) -> dict[str, tuple[int, int]]:
    """Bank conflicts since the last call: "file:line" -> (warp-wide accesses, extra wavefronts)."""
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
        name = line.rsplit("/", 1)[-1].split(" ")[0]
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
    "rt_5x7_w_g2": Case(17, 1, 19, 56, (13, 31)),
    "rt_5x4_w_g2": Case(17, 1, 19, 28, (13, 29)),
    "rt_3x2_w_p4": Case(17, 2, 14, 14, 27),
    "rt_5x3_w_g2": Case(17, 1, 24, 24, 27),
}
