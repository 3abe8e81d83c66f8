"""What the tests of measured choices share: problems, invented variants, and calls of the raw ops on record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from replknet_ext.backends import PASSES, Candidate, Problem, configs
from replknet_ext.backends.configs import Entry
from replknet_ext.backends.cpu import CpuBackend
from replknet_ext.checks import Geometry

CPU = torch.device("cpu")


def problem(
    n: int = 2, c: int = 4, size: int = 9, kernel: int = 5, pass_: str = "fwd", device: str = "cpu", **changes: Any
) -> Problem:
    """A square problem with "same" padding."""
    geometry = Geometry((1, 1), (kernel // 2,) * 4, (1, 1))  # type: ignore[arg-type]
    shapes = (n, c, size, size), (c, 1, kernel, kernel)
    return replace(Problem(*shapes, False, geometry, torch.float32, device, pass_=pass_), **changes)


def entry(name: str, us: float = 1.0, backend: str = "cpu", untuned: float | None = 2.0) -> Entry:
    return Entry(((backend, name, us),), untuned)


#: Invented variants of the CPU backend, by pass: what a build with more kernels would list.
INVENTED = {
    pass_: [
        Candidate("cpu", f"{pass_}_{word}", number, "invented", float(number))
        for number, word in enumerate(("slow", "fast", "wrong", "broken"))
    ]
    for pass_ in PASSES
}


class Recorder(TorchDispatchMode):
    """(op, variant) of every raw op, which then runs by the build's own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "replknet_ext":
            self.seen.append((func._opname, args[-1]))
            args = (*args[:-1], -1)
        return func(*args, **(kwargs or {}))


@contextmanager
def invented_variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU backend with `INVENTED`."""

    def candidates(self: Any, problem: Problem, limits: Any = None) -> list[Candidate]:
        return INVENTED[problem.pass_]

    def variant(self: Any, problem: Problem, name: str) -> int | None:
        return next((c.variant for c in INVENTED[problem.pass_] if c.name == name), None)

    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "candidates", candidates)
        patch.setattr(CpuBackend, "variant", variant)
        configs.forget()
        yield
    configs.forget()
