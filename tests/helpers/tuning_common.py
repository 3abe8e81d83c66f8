"""What the tests of measured choices share: problems, invented variants, and what ops ask for on record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from replknet_ext.backends import BACKENDS, PASSES, Candidate, Problem, tunable
from replknet_ext.backends.cpu import CpuBackend
from replknet_ext.choices import query, table
from replknet_ext.choices.table import Entry
from replknet_ext.operator.problem import Geometry
from replknet_ext.tuning import measure

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


class Recorder:
    """(pass, variant) of every op that asks for a measured choice inside the block; the planner's choice runs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.problems: list[Problem] = []

    def __enter__(self) -> Recorder:
        real = query.measured

        def record(backend: str, problem: Problem, device: torch.device) -> tuple[str, int]:
            self.problems.append(problem)
            self.seen.append((problem.pass_, real(backend, problem, device)[1]))
            self.forget()  # or the next call of the problem would not ask
            return backend, query.AUTO

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(query, "measured", record)
        self.forget()
        return self

    def __exit__(self, *exception: object) -> None:
        self.patch.undo()
        self.forget()

    @staticmethod
    def forget() -> None:
        torch.ops.replknet_ext._forget_choices()


def choose(names: dict[str, str], **changes: Any) -> None:
    """Choices for `problem` as if they had been measured."""
    found = {table.key_of(problem(pass_=pass_, **changes)): entry(name) for pass_, name in names.items()}
    table.remember(CPU, found)


def operands(grad: bool = True) -> tuple[Tensor, Tensor]:
    """Input and weight of `problem`."""
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 5, 5)
    return x.requires_grad_(grad), w.requires_grad_(grad)


@contextmanager
def invented_variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU backend with `INVENTED`; no other backend has candidates for the CPU."""

    def candidates(self: Any, problem: Problem, limits: Any = None) -> list[Candidate]:
        return INVENTED[problem.pass_]

    def variant(self: Any, problem: Problem, name: str) -> int | None:
        return next((c.variant for c in INVENTED[problem.pass_] if c.name == name), None)

    with monkeypatch.context() as patch:
        for name in tunable()[1:]:
            if "cpu" in (BACKENDS[name].devices or ("cpu",)):
                patch.setattr(type(BACKENDS[name]), "candidates", lambda self, problem, limits=None: [])
        patch.setattr(CpuBackend, "candidates", candidates)
        patch.setattr(CpuBackend, "variant", variant)
        table.forget()
        yield
    table.forget()


def invented_times(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes `measure` run and time inventions; what it times is noted in the list."""
    timed: list[str] = []
    microseconds = {"slow": 10.0, "fast": 5.0, "wrong": 1.0, "broken": 1.0}

    def call_of(p: Any, candidate: Any, given: Any) -> Any:
        word = candidate.name.rpartition("_")[2]

        def run(i: int) -> Tensor:
            if word == "broken":
                raise RuntimeError("out of resources\nand a long story")
            return given[i].x * (1.5 if word == "wrong" else 1.0)

        run.name, run.us = candidate.name, microseconds[word]  # type: ignore[attr-defined]
        return run

    def sampler(run: Any, device: Any, sets: int) -> Any:
        timed.append(run.name)
        return lambda: run.us

    monkeypatch.setattr(measure, "call_of", call_of)
    monkeypatch.setattr(measure, "_sampler", sampler)
    return timed
