"""Writes a model for other runtimes: ONNX, a torch.export program, or an AOTInductor package."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..errors import ToolError, UsageError
from .files import check_destination

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Exported", "export", "render"]

Kind = Literal["onnx", "program", "aoti"]
_SUFFIXES = {"onnx": ".onnx", "program": ".pt2", "aoti": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path, kind: the file and what it is.
        size: in bytes, with the file of weights beside it, if there is one.
        shape: of the input; None is a size that may vary.
        opset, nodes, error: of ONNX: the version, how many nodes of each operator, and the largest difference between
            onnxruntime and torch relative to the largest output (None if not compared).
    """

    path: Path
    kind: Kind
    size: int
    shape: tuple[int | None, ...]
    opset: int | None = None
    nodes: dict[str, int] | None = None
    error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def export(
    model: nn.Module,
    output: str | Path,
    *,
    kind: Kind | None = None,
    input_size: int | None = None,
    batch_size: int | None = None,
    any_size: bool = False,
    opset: int = 18,
) -> Exported:
    """Exports a model in eval mode.

    Args:
        output: the file to write, .onnx or .pt2.
        kind: what to write; None goes by the suffix, and .pt2 is a program.
        input_size: side of the images; None for the model's own.
        batch_size: None: any.
        any_size: H and W may vary.
        opset: version of the ONNX operators.

    Raises:
        UsageError: arguments that do not fit together.
        ToolError: a package is missing, or the exported model does not compute the same.
    """
    from ..integrations import export as torch_export

    path = Path(output)
    kind = check(path, kind)
    arguments: dict[str, Any] = {"dynamic_batch": batch_size is None, "dynamic_size": any_size}
    if batch_size is not None:
        arguments["batch_size"] = batch_size
    try:
        x = torch_export.example_input(model, input_size, batch_size=batch_size or 1)
        fixed = {1: x.shape[1]} | ({} if any_size else {2: x.shape[2], 3: x.shape[3]})
        shape = tuple(fixed.get(axis, batch_size if axis == 0 else None) for axis in range(4))
        if kind == "onnx":
            from ..integrations.onnx import export_onnx

            report = export_onnx(model, path, input_size, opset=opset, **arguments)
            size = sum(file.stat().st_size for file in report.files)
            return Exported(path, kind, size, shape, report.opset, dict(report.nodes), report.error)
        program = torch_export.export_program(model, input_size, **arguments)
        (torch_export.compile_aoti if kind == "aoti" else torch_export.save_program)(program, path)
    except (ImportError, RuntimeError) as error:
        raise ToolError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Exported(path, kind, path.stat().st_size, shape)


def check(path: Path, kind: Kind | None) -> Kind:
    """The kind that will be written to `path`; see `export` for the errors."""
    if kind is None:
        kind = "onnx" if path.suffix == ".onnx" else "program"
    if kind not in _SUFFIXES:
        raise UsageError(f"unknown kind {kind!r}: {', '.join(_SUFFIXES)}")
    if path.suffix != _SUFFIXES[kind]:
        raise UsageError(f"{path}: the suffix must be .onnx, or .pt2 for a program or an AOTInductor package")
    check_destination(path)
    return kind


def render(name: str, result: Exported, console: Console) -> None:
    """Prints what was written, and how to run it."""
    shape = " x ".join("any" if side is None else str(side) for side in result.shape)
    console.print(f"{name} -> {result.path}: {result.size / 1e6:,.1f} MB, input {shape}", highlight=False)
    if result.kind == "onnx":
        nodes = ", ".join(f"{count} {kind}" for kind, count in list((result.nodes or {}).items())[:4])
        checked = "not run: onnxruntime is missing" if result.error is None else f"differs by {result.error:.1e}"
        console.print(f"opset {result.opset}; {nodes}, ...; onnxruntime beside torch: {checked}", highlight=False)
    else:
        how = {"program": "torch.export.load({0!r}).module()", "aoti": "torch._inductor.aoti_load_package({0!r})"}
        console.print(
            f"run it after `import replknet_ext`: {how[result.kind].format(str(result.path))}",
            highlight=False,
        )
