"""The ordered table of backends and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..operator.problem import PASSES, Problem
from .base import Backend, Candidate, ordered
from .cpu import CpuBackend
from .cuda import CudaBackend
from .torch import TorchBackend
from .triton.backend import TritonBackend

#: ``backend="auto"`` takes the first that supports the problem. The compiled ones stand first, as the ops of a device
#: call them without asking here; torch takes what is left, so those after it run by name or where they were measured.
BACKENDS: dict[str, Backend] = {b.name: b for b in (CpuBackend(), CudaBackend(), TritonBackend(), TorchBackend())}


def names() -> tuple[str, ...]:
    """What the argument ``backend`` may be."""
    return "auto", *BACKENDS


def tunable() -> tuple[str, ...]:
    """What the argument ``backend`` of the tuner may be: "auto", or a backend that lists candidates."""
    lists = (name for name, backend in BACKENDS.items() if type(backend).candidates is not Backend.candidates)
    return "auto", *lists


def select(problem: Problem, name: str = "auto") -> Backend:
    """The backend that runs ``problem``.

    Args:
        problem: what to run.
        name: ``"auto"`` or one backend, which then runs the problem or is an error.

    Raises:
        ValueError: the named backend, or with ``"auto"`` every backend, can't run the problem; the message quotes why.
    """
    if name != "auto":
        reason = BACKENDS[name].supports(problem)
        if reason is not None:
            raise ValueError(f'backend="{name}" cannot run this problem: {reason}; backend="auto" chooses one that can')
        return BACKENDS[name]
    for backend in BACKENDS.values():
        if backend.supports(problem) is None:
            return backend
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons(problem).items())
    raise ValueError(
        f'algorithm="{problem.algorithm}" cannot run this problem: {why}; algorithm="auto" finds one that can'
    )


def candidates(problem: Problem, name: str = "auto", limits: Mapping[str, int] | None = None) -> list[Candidate]:
    """What can run one pass of ``problem``, by all backends or the one of that name; see `Backend.candidates`."""
    backends = BACKENDS.values() if name == "auto" else [BACKENDS[name]]
    return ordered([candidate for backend in backends for candidate in backend.candidates(problem, limits)])


def reasons(problem: Problem) -> dict[str, str | None]:
    """For every backend, in order: None if it can run ``problem``, else why not."""
    return {name: backend.supports(problem) for name, backend in BACKENDS.items()}


def by_pass(problem: Problem, name: str = "auto") -> tuple[dict[str, str], dict[str, dict[str, str | None]]]:
    """Which backend runs each pass of a call with ``backend=name``, and the `reasons` of each pass.

    Raises:
        ValueError: as `select`, of the forward pass.
    """
    why = {pass_: reasons(replace(problem, pass_=pass_)) for pass_ in PASSES}
    forward = select(problem, name)
    if name != "auto" or forward.differentiable:  # torch differentiates its own forward pass
        return dict.fromkeys(PASSES, forward.name), why
    return {pass_: next(name for name, reason in why[pass_].items() if reason is None) for pass_ in PASSES}, why
