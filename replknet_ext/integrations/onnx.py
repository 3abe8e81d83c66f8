"""ONNX export: plain `Conv` nodes with group = C, no custom operator left.

Needs onnx and onnxscript (`pip install 'replknet_ext[onnx]'`, which also brings onnxruntime to check the result).
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._optional import require
from .export import InputSize, example_input, export_program

__all__ = ["OnnxReport", "export_onnx", "translations"]

#: A serialized protobuf ends at 2 GiB; weights beyond this many bytes go into a second file.
_MAX_SINGLE_FILE = 2**31 - 2**26

#: Largest difference between torch and onnxruntime, relative to the largest output.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2}


@dataclass(frozen=True)
class OnnxReport:
    """What `export_onnx` wrote.

    Attributes:
        path: the file.
        files: all that was written: `path`, and the file of weights beside it if there is one.
        opset: version of the ONNX operators.
        nodes: how many nodes of each operator.
        inputs, outputs: name to shape; a str is a size that may vary.
        error: largest difference between onnxruntime and torch, relative to the largest output; None if not compared.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    nodes: Mapping[str, int]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    error: float | None = field(default=None)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: InputSize | None = None,
    *,
    batch_size: int = 1,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int = 18,
    verify: bool | None = None,
) -> OnnxReport:
    """Writes `model` as ONNX, checks the file with onnx.checker and compares it with torch in onnxruntime.

    Any model in eval mode that takes images (N, C, H, W) will do: a RepLKNet in its train-time form or merged
    (`switch_to_deploy()` first makes the smaller and faster file), or a network after `replace_depthwise`.

    Args:
        model: in eval mode; NCHW or channels_last, which ONNX does not tell apart.
        path: the file to write. Weights beyond 2 GB go to `path` + ".data" beside it.
        input_size: S, (H, W) or (C, H, W); None for the size that the model's `pretrained_cfg` names, else 224.
        batch_size: N, without `dynamic_batch`.
        dynamic_batch, dynamic_size: leave N, or H and W, open.
        opset: version of the ONNX operators, from 18 on; from 22 on for bfloat16.
        verify: run the file in onnxruntime and compare; None does so if onnxruntime is installed and the model is not
            in bfloat16, in which onnxruntime has no convolution on the CPU.

    Returns:
        An `OnnxReport`. The input is named `input`, the output `logits` (`features` of a model without classifier),
        or `stage0`, `stage1`, … of a backbone.

    Raises:
        ImportError: onnx, onnxscript or (with verify=True) onnxruntime is missing; says what to install.
        TypeError, ValueError: an argument that does not fit; says which.
        RuntimeError: onnxruntime's output differs from torch's. The file is not written.
    """
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"opset must be an int; got {opset!r}")
    if opset < 18:
        raise ValueError(f"opset must be at least 18, the oldest that torch's exporter writes; got {opset}")
    x = example_input(model, input_size, batch_size=2 if dynamic_batch else batch_size)
    bfloat16 = x.dtype == torch.bfloat16
    if bfloat16 and opset < 22:
        raise ValueError(
            f"opset must be at least 22 for a bfloat16 model, which older operators do not take; got {opset}"
        )
    if bfloat16 and verify:
        raise ValueError("verify must be None or False for a bfloat16 model: onnxruntime cannot run it on the CPU")
    onnx = require("onnx", "onnxscript", install="replknet_ext[onnx]")
    if verify is None:
        verify = not bfloat16 and importlib.util.find_spec("onnxruntime") is not None
    elif verify:
        require("onnxruntime", install="replknet_ext[onnx]")

    program = export_program(
        model, input_size, batch_size=batch_size, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size
    )
    axes = ({0: "batch"} if dynamic_batch else {}) | ({2: "height", 3: "width"} if dynamic_size else {})
    with torch.no_grad():
        expected = _as_tuple(model(x))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        file = Path(folder) / path.name  # the final name: a file of weights is named inside the model
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["input"],
            output_names=_output_names(model, len(expected)),
            opset_version=opset,
            dynamic_shapes=(axes or None,),  # names for what the program leaves open
            custom_translation_table=translations(),
            verbose=False,
        )
        assert exported is not None
        exported.save(file, external_data=_bytes(model) > _MAX_SINGLE_FILE)
        onnx.checker.check_model(str(file), full_check=True)
        error = _compare(file, x, expected) if verify else None
        made = sorted(Path(folder).iterdir(), key=lambda entry: entry == file)  # the model after its weights
        files = tuple(path.parent / entry.name for entry in made)
        report = _describe(onnx, file, files, error)
        for source, target in zip(made, files, strict=True):
            os.replace(source, target)
    return report


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch's exporter writes this package's operator, for a `torch.onnx.export` call of your own.

    ``torch.onnx.export(model, (x,), "model.onnx", dynamo=True, custom_translation_table=translations())``
    """
    require("onnxscript", install="replknet_ext[onnx]")
    return {torch.ops.replknet_ext.dwconv2d.default: _dwconv2d}


def _dwconv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    activation: str = "none",
    precision: str = "ieee",
    algorithm: str = "auto",
    backend: str = "auto",
    variant: int = -1,
) -> Any:
    """`replknet_ext::dwconv2d` in ONNX operators. What computes it, and how, is the runtime's business."""
    from onnxscript import opset18 as op

    top, bottom, left, right = padding
    if min(padding) < 0:  # a negative padding crops, which Conv cannot
        input = op.Pad(input, [0, 0, min(top, 0), min(left, 0), 0, 0, min(bottom, 0), min(right, 0)])
    pads = [max(side, 0) for side in (top, left, bottom, right)]
    out = op.Conv(input, weight, bias, group=weight.shape[0], kernel_shape=list(weight.shape[2:]), pads=pads)
    if activation == "relu":
        return op.Relu(out)
    if activation == "gelu":  # the operator Gelu exists only from opset 20 on; runtimes fuse this form
        half, one, root = (op.CastLike(op.Constant(value_float=value), out) for value in (0.5, 1.0, 0.5**0.5))
        return op.Mul(op.Mul(out, half), op.Add(op.Erf(op.Mul(out, root)), one))
    return out


def _compare(file: Path, x: Tensor, expected: Sequence[Tensor]) -> float:
    """Runs `file` in onnxruntime on the CPU; the largest error relative to the largest output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input": x.cpu().numpy()})
    worst = 0.0
    for out, wanted in zip(outputs, expected, strict=True):
        wanted = wanted.cpu().double()
        difference = (torch.from_numpy(out).double() - wanted).abs().max()
        worst = max(worst, (difference / wanted.abs().max().clamp_min(1e-30)).item())
    allowed = _TOLERANCE.get(x.dtype, 1e-4)
    if not worst <= allowed:
        raise RuntimeError(
            f"onnxruntime differs from torch by {worst:.2g} of the largest output (allowed {allowed:.0e}); no file was "
            "written. verify=False writes it unchecked."
        )
    return worst


def _describe(onnx: Any, file: Path, files: tuple[Path, ...], error: float | None) -> OnnxReport:
    proto = onnx.load(str(file), load_external_data=False)
    (opset,) = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return OnnxReport(
        path=files[-1],
        files=files,
        opset=opset,
        nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        inputs=_shapes(proto.graph.input),
        outputs=_shapes(proto.graph.output),
        error=error,
    )


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _output_names(model: nn.Module, count: int) -> list[str]:
    stages = getattr(model, "out_indices", None)
    if stages is not None and len(stages) == count:
        return [f"stage{index}" for index in stages]
    if count == 1:
        return ["features" if getattr(model, "num_classes", None) == 0 else "logits"]
    return [f"output{index}" for index in range(count)]


def _as_tuple(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
