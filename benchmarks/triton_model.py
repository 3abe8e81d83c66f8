"""Predicts the time of the Triton kernels on an H200 from the model that chooses their tiles.

    python -m benchmarks.triton_model            # table and benchmarks/results/predictions-triton-h200.json
    python -m benchmarks.triton_model --check    # 1 if that file is not what the code predicts

Nothing here is measured: see `replknet_ext.backends.triton.tiles` for the constants.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.roofline import CEILINGS, microseconds
from benchmarks.shapes import GOALS_US, PASSES, Layer, all_layers, clipped_flop
from replknet_ext.backends.triton import tiles
from replknet_ext.backends.triton.tiles import Sizes, Toeplitz

RESULT = Path(__file__).resolve().parent / "results/predictions-triton-h200.json"
H200_SHARED = (227 << 10) - 4096


def predict(layer: Layer, pass_: str) -> dict[str, Any]:
    """One layer and pass in bfloat16; bwd_input is a forward pass of the same size."""
    sizes = Sizes(layer.n, layer.c, layer.h, layer.w, layer.kh, layer.kw, layer.h, layer.w, *layer.padding)
    row: dict[str, Any] = {"layer": layer.name, "pass": pass_, "dtype": "bfloat16"}
    if pass_ == "bwd_weight":
        weight = tiles.weight(sizes, "bfloat16", "ieee", H200_SHARED)
        cycles, step = (
            tiles.weight_cycles(sizes, weight, 2, "half"),
            tiles.weight_step_cycles(sizes, weight, 2, "half"),
        )
        row |= {"kernel": "toeplitz_weight", "tile": weight._asdict()}
    else:
        tile = tiles.forward(sizes, "bfloat16", "ieee", False, H200_SHARED)
        if isinstance(tile, Toeplitz):
            cycles, step = (
                tiles.forward_cycles(sizes, tile, 2, "half"),
                tiles.forward_step_cycles(sizes, tile, 2, "half"),
            )
            row |= {"kernel": "toeplitz_fwd", "tile": tile._asdict()}
        else:
            cycles, step = tiles.sliding_cycles(sizes, tile, 2), {}
            row |= {"kernel": "sliding_fwd", "tile": tile._asdict()}
    seconds = cycles / CEILINGS["sm_clock_hz"]
    row |= {
        "step_cycles": {name: round(value) for name, value in step.items()},
        "predicted_us": microseconds(seconds),
        "clipped_tflops": float(f"{clipped_flop(layer) / seconds * 1e-12:.3g}"),
    }
    goal = GOALS_US.get((layer, pass_, "bfloat16"))
    if goal is not None:
        row["times_the_cuda_goal"] = round(seconds * 1e6 / goal, 2)
    return row


def predictions() -> dict[str, Any]:
    """What the JSON file holds; the same on every machine."""
    constants = {name: getattr(tiles, name) for name in dir(tiles) if name.isupper() and name != "MAX_WORKSPACE"}
    return {
        "kind": "PREDICTION: from a model, nothing in this file was measured",
        "device": "NVIDIA H200",
        "constants": constants,
        "rows": [predict(layer, pass_) for layer in all_layers() for pass_ in PASSES],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The main layers and all others, as plain text."""
    lines = [
        "PREDICTION for an H200, bf16, Triton kernels; nothing here was measured. bwd_input is predicted as fwd.",
        f"{'layer':<22} {'pass':<10} {'us':>7} {'TFLOP/s':>8} {'of goal':>7}  kernel",
    ]
    for row in rows:
        if row["pass"] != "bwd_input":
            goal = f"{row['times_the_cuda_goal']:.1f}x" if "times_the_cuda_goal" in row else ""
            lines.append(f"{row['layer']:<22} {row['pass']:<10} {row['predicted_us']:>7g} {row['clipped_tflops']:>8g} "
                         f"{goal:>7}  {row['kernel']}")  # fmt: skip
    return "\n".join(lines)


def render(payload: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(payload, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; with --check, 1 if the stored file is out of date."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_model", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the stored file is out of date")
    options = parser.parse_args(arguments)
    payload = predictions()
    print(table(payload["rows"]))
    if options.check:
        return int(not RESULT.exists() or RESULT.read_text() != render(payload))
    RESULT.write_text(render(payload))
    return 0


if __name__ == "__main__":
    sys.exit(main())
