"""Predicts the time of the CUDA kernels from counts: taps inside the image, bytes, tensor instructions.

    python -m benchmarks.roofline            # table and benchmarks/results/predictions-h200.json
    python -m benchmarks.roofline --check    # 1 if that file is not what the code predicts

Nothing here is measured. Three bounds and one prediction per layer:

* memory: input, output and filter moved once, at the copy bandwidth;
* taps: multiply-adds of taps inside the image at the rate of a large bf16 matrix product;
* mma: the tensor instructions that no mapping of ours can avoid, at the rate of mma.sync;
* predicted: the launch planners' own model (csrc/cuda/*/plan.cpp), which adds tiles, start-up and the last wave.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import gpu_plan
from benchmarks.gpu_plan import ROOT, Limits
from benchmarks.shapes import (
    GOALS_US,
    LARGE,
    MAIN,
    NUMBERS,
    PASSES,
    SMALL_KERNEL,
    Layer,
    all_layers,
    clipped_flop,
)
from replknet_ext.backends.base import CYCLES_PER_US

RESULT = ROOT / "benchmarks/results/predictions-h200.json"

#: What the predictions stand on. Bandwidth and matrix rate were measured on an H200; mma.sync is reported at 63 to 65 %
#: of wgmma on this chip; the clock is the boost clock of the datasheet.
CEILINGS = {
    "copy_bytes_per_s": 4.3e12,
    "bf16_gemm_flop_per_s": 790e12,
    "mma_sync_flop_per_s": 620e12,
    "ffma_flop_per_s": 67e12,
    "sm_clock_hz": 1e6 * CYCLES_PER_US,
}
MMA_FLOP = 2 * 16 * 8 * 16  # mma.sync.m16n8k16
#: Tensor instructions of m16n8k16's rate that stand for one of them: tf32 has half the depth, bf16x3 three products.
MMAS_FOR_ONE = {"bfloat16": 1, "float16": 1, "tf32": 2, "bf16x3": 3}
#: What is predicted in both memory formats and all numbers; every other layer in bf16 NCHW.
IN_ALL_FORMS = (*MAIN, LARGE, SMALL_KERNEL)


def nominal_flop(layer: Layer) -> int:
    """The same with the taps in the zero padding, as FLOP counters count."""
    return 2 * layer.n * layer.c * layer.h * layer.w * layer.kh * layer.kw


def least_bytes(layer: Layer, element: int = 2) -> int:
    """Each input read once and the output written once; the same for all three passes."""
    return element * layer.c * (2 * layer.n * layer.h * layer.w + layer.kh * layer.kw)


def meetings(size: int, kernel: int, block: int, input_block: int, shift: int = 0) -> int:
    """Pairs of an output block and an input block, along one axis, that share at least one tap inside the image.

    Args:
        size: of the axis.
        kernel: taps, "same" padding.
        block: outputs a block.
        input_block: inputs a block.
        shift: input blocks start at multiples of `input_block` minus this.
    """
    pad, count = kernel // 2, 0
    for start in range(0, size, block):
        first = max(0, start - pad)
        last = min(size - 1, min(start + block, size) - 1 - pad + kernel - 1)
        count += (last + shift) // input_block - (first + shift) // input_block + 1
    return count


def least_mmas(layer: Layer) -> int:
    """Tensor instructions of the better mapping.

    The register Toeplitz: 2 x 8 outputs by 2 x 8 inputs, or 4 x 4 by 4 x 4, by 8 images each, all with a useful tap;
    row groups stand in for images in a small batch, so no part of a group of 8 needs to be idle. The matrix product
    over the pixels of small planes: 16 images by 8 outputs by 16 inputs each, the last step 8.
    """
    tiles = min(
        min(meetings(layer.h, layer.kh, rows, rows, shift) for shift in range(rows))
        * meetings(layer.w, layer.kw, 16 // rows, 16 // rows)
        for rows in (2, 4)
    )
    toeplitz = -(-layer.n * layer.c * tiles // 8)
    eights = -(-layer.h * layer.w // 8)
    return min(toeplitz, -(-layer.n // 16) * layer.c * eights * eights // 2)


def microseconds(seconds: float) -> float:
    """For people and files: three significant digits."""
    return float(f"{seconds * 1e6:.3g}")


def predict(
    layer: Layer,
    pass_: str = "fwd",
    numbers: str = "bfloat16",
    *,
    channels_last: bool = False,
    limits: Limits = gpu_plan.H200,
) -> dict[str, Any]:
    """Bounds and prediction of one layer and pass.

    ``taps_us`` is at the rate of a matrix product, or of FFMA in float32; an FFT needs fewer operations and can be
    below it. ``mma_us`` is the better mapping's, None without tensor cores.
    """
    what = NUMBERS[numbers]
    flop, bytes_ = clipped_flop(layer), least_bytes(layer, what.element)
    rate = CEILINGS["ffma_flop_per_s" if numbers == "float32" else "bf16_gemm_flop_per_s"]
    form: dict[str, Any] = {"channels_last": channels_last, "precision": what.precision}
    plan = gpu_plan.plan(layer, pass_, what.dtype, limits, **form)
    others = gpu_plan.supported(layer, pass_, what.dtype, limits, **form).values()
    mmas = least_mmas(layer) * MMAS_FOR_ONE[numbers] if numbers in MMAS_FOR_ONE else None
    row: dict[str, Any] = {
        "layer": layer.name,
        **asdict(layer),
        "pass": pass_,
        "numbers": numbers,
        "format": "channels_last" if channels_last else "contiguous",
        "clipped_gflop": float(f"{flop * 1e-9:.4g}"),
        "inside_the_image": round(flop / nominal_flop(layer), 3),
        "megabytes": float(f"{bytes_ * 1e-6:.4g}"),
        "memory_us": microseconds(bytes_ / CEILINGS["copy_bytes_per_s"]),
        "taps_us": microseconds(flop / rate),
        "mma_us": microseconds(mmas * MMA_FLOP / CEILINGS["mma_sync_flop_per_s"]) if mmas else None,
        "variant": plan.name,
        "copied": bool(plan.copied),
        "parts": plan.parts,
        "warps": plan.warps,
        "shared_bytes": plan.shared_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "blocks": plan.blocks,
        "blocks_per_sm": plan.blocks_per_sm,
        "mmas": float(f"{plan.mmas:.4g}"),
        "predicted_us": cycles_us(plan.cycles),
        "variants_us": {p.name: cycles_us(p.cycles) for p in others},
    }
    if (layer, pass_, numbers) in GOALS_US:
        row["goal_us"] = GOALS_US[layer, pass_, numbers]
    return row


def cycles_us(cycles: float) -> float:
    """The planner's cycles as microseconds at the stated clock."""
    return microseconds(cycles / CEILINGS["sm_clock_hz"])


def predictions() -> dict[str, Any]:
    """What the JSON file holds; the same on every machine."""
    rows = [predict(layer, pass_) for layer in all_layers() for pass_ in PASSES]
    forms = [(numbers, nhwc) for numbers in NUMBERS if numbers not in ("float16", "float64") for nhwc in (False, True)]
    rows += [
        predict(layer, pass_, numbers, channels_last=nhwc)
        for layer in IN_ALL_FORMS
        for pass_ in PASSES
        for numbers, nhwc in forms[1:]  # the first is bf16 NCHW, which is there already
    ]
    return {
        "kind": "PREDICTION: from a model, nothing in this file was measured",
        "device": "NVIDIA H200",
        "limits": asdict(gpu_plan.H200),
        "ceilings": CEILINGS,
        "rows": rows,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as plain text, under 120 columns; bwd_input is left out, as it is predicted like fwd."""
    lines = [
        "PREDICTION for an H200, microseconds; nothing here was measured. bwd_input is predicted like fwd.",
        f"{'layer':<21} {'pass':<10} {'numbers':<8} {'format':<13} {'memory':>6} {'taps':>6} {'mma':>6} |"
        f" {'predicted':>9} {'goal':>5}  variant",
    ]
    for row in rows:
        if row["pass"] == "bwd_input":
            continue
        goal = f"{row['goal_us']:g}" if "goal_us" in row else ""
        mma = "" if row["mma_us"] is None else f"{row['mma_us']:g}"
        lines.append(
            f"{row['layer']:<21} {row['pass']:<10} {row['numbers']:<8} {row['format']:<13} {row['memory_us']:>6g} "
            f"{row['taps_us']:>6g} {mma:>6} | {row['predicted_us']:>9g} {goal:>5}  {row['variant']}"
        )
    return "\n".join(lines)


def render(payload: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(payload, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; with --check, 1 if the stored file is out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the stored file is out of date")
    options = parser.parse_args(arguments)
    payload = predictions()
    print(table(payload["rows"]))
    if options.check:
        return int(not RESULT.exists() or RESULT.read_text() != render(payload))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(render(payload))
    print(f"wrote {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
