"""FLOP counts of the raw ops for `torch.utils.flop_counter`: two per multiply-add of the nominal taps, as for conv2d.

That module imports triton, which takes longer than this package. So the formulas are registered when somebody imports
it: now if that has happened, else by a finder that sees the import.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from .. import _ext

COUNTER = "torch.utils.flop_counter"


def _fwd(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    n, c, height, width = map(int, out_shape)
    return 2 * n * c * height * width * weight[2] * weight[3]


def _bwd_input(grad: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    n, c, height, width = grad
    return 2 * n * c * height * width * weight[2] * weight[3]


def _bwd_weight(grad: Sequence[int], x: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    n, c, height, width = grad
    return 2 * n * c * height * width * int(out_shape[2]) * int(out_shape[3])


def _bwd_weight_bias(grad: Sequence[int], x: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _bwd_weight(grad, x, out_shape=out_shape[0])


FORMULAS: dict[str, Callable[..., int]] = {
    "dwconv2d": _fwd,
    "dwconv2d_backward_input": _bwd_input,
    "dwconv2d_backward_weight": _bwd_weight,
    "dwconv2d_backward_weight_bias": _bwd_weight_bias,
}


def _register(counter: ModuleType) -> None:
    ops = getattr(torch.ops, _ext.NAMESPACE)
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(ops, name))(formula)


class _Finder(importlib.abc.MetaPathFinder):
    """Leaves the finding to the others, and registers the formulas when `COUNTER` has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != COUNTER:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Has `FlopCounterMode` count the raw ops, whether it is imported before or after this package. Called once."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _Finder())
