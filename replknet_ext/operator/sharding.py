"""How DTensor may split the raw ops: by images or by channels, without communication.

Importing ``torch.distributed.tensor`` takes longer than importing this package, so the strategies are registered at the
first call after somebody else has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .ops import RAW

_registered = False


def register() -> bool:
    """Registers the strategies, once, if DTensors can exist in this process; whether they are registered."""
    global _registered
    if not _registered and "torch.distributed.tensor" in sys.modules:
        _register_all()
        _registered = True
    return _registered


# Dynamo runs it while it traces. torch.compiler.assume_constant_result sets this too, but imports Dynamo, which takes
# seconds, for everybody who imports this package.
register._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _register_all() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    images, channels, filters, everything, summed = Shard(0), Shard(1), Shard(0), Replicate(), Partial()
    # For each op what a mesh dimension may do: placements of the outputs, then of the tensor arguments.
    both_gradients: list[tuple[list[Any], list[Any]]] = [
        ([summed, summed], [images, images]),
        ([filters, filters], [channels, channels]),
    ]
    strategies: dict[Any, list[tuple[list[Any], list[Any]]]] = {
        RAW.fwd: [([images], [images, everything, everything]), ([channels], [channels, filters, filters])],
        RAW.bwd_input: [([images], [images, everything]), ([channels], [channels, filters])],
        RAW.bwd_weight: [(outputs[:1], inputs) for outputs, inputs in both_gradients],
        RAW.bwd_weight_bias: both_gradients,
    }
    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    for op, allowed in strategies.items():
        outputs, inputs = (len(placements) for placements in allowed[0])
        allowed.append(([everything] * outputs, [everything] * inputs))
        register_sharding(op)(_strategy(allowed))
        # What DTensor remembers of a call depends on every argument that is no tensor, padding before all.
        known[op] = RuntimeSchemaInfo(static_argnum=inputs, needs_pytree=True)


def _strategy(allowed: list[tuple[list[Any], list[Any]]]) -> Callable[..., Any]:
    def placements(*args: Any) -> list[tuple[list[Any], list[Any]]]:
        """Every argument needs an entry, None where it is no tensor (a missing bias, and all options)."""
        return [
            (
                outputs,
                [p if a is not None else None for p, a in zip(inputs, args, strict=False)]
                + [None] * (len(args) - len(inputs)),
            )
            for outputs, inputs in allowed
        ]

    return placements
