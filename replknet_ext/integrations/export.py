"""torch.export and AOTInductor of any model that runs on this package's operators.

A program keeps `replknet_ext::dwconv2d` as one node, so whoever loads it must `import replknet_ext` first; the
functions here see to that by being part of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

__all__ = ["compile_aoti", "example_input", "export_program", "load_aoti", "load_program", "save_program"]

InputSize = int | tuple[int, int] | tuple[int, int, int]


def export_program(
    model: nn.Module,
    input_size: InputSize | None = None,
    *,
    batch_size: int = 1,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
) -> ExportedProgram:
    """`torch.export.export` of a model in eval mode that takes images.

    Args:
        model: on the device and in the dtype to export for; its memory format is kept.
        input_size: S, (H, W) or (C, H, W); None for the size that the model's `pretrained_cfg` names, else 224.
        batch_size: N of the program, without `dynamic_batch`.
        dynamic_batch: any N from 1 on.
        dynamic_size: any H and W that the model accepts.

    Raises:
        TypeError: `model` is not an nn.Module, or a size is not an int.
        ValueError: `model` is in training mode, or a size is out of range; says which.
    """
    # torch.export takes a 1 for a constant, so a dynamic batch is shown as 2.
    x = example_input(model, input_size, batch_size=2 if dynamic_batch else batch_size)
    dims: dict[int, Any] = {0: Dim("batch", min=1)} if dynamic_batch else {}
    if dynamic_size:
        dims |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(model, (x,), dynamic_shapes=(dims or None,))


def example_input(model: nn.Module, input_size: InputSize | None = None, *, batch_size: int = 1) -> Tensor:
    """Random images (N, C, H, W) that `model` accepts: its device, dtype and input channels; arguments as above."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    if model.training:
        raise ValueError("model is in training mode; call model.eval() first")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int; got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    channels, height, width = _known_size(model)
    size = (channels or 3, height, width) if input_size is None else _chw(input_size, channels or 3)
    if channels is not None and size[0] != channels:
        raise ValueError(f"input_size names {size[0]} channels, but the model takes {channels}")
    like = next(model.parameters(), torch.empty(0))
    return torch.randn(batch_size, *size, dtype=like.dtype, device=like.device)


def save_program(program: ExportedProgram, path: str | Path) -> Path:
    """Writes `program` to `path` (by convention .pt2), whole or not at all."""
    return _write(Path(path), lambda file: torch.export.save(program, file))


def load_program(path: str | Path) -> ExportedProgram:
    """Reads what `save_program` wrote. `load_program(path).module()` runs it."""
    return torch.export.load(Path(path))


def compile_aoti(program: ExportedProgram, path: str | Path, options: dict[str, Any] | None = None) -> Path:
    """Compiles `program` ahead of time with AOTInductor into the package `path` (.pt2), whole or not at all.

    Needs a C++ compiler for the CPU, and triton for CUDA. It takes from seconds to minutes. `options` are settings of
    `torch._inductor.config`.
    """
    from torch._inductor import aoti_compile_and_package

    if Path(path).suffix != ".pt2":
        raise ValueError(f"path must end in .pt2; got {os.fspath(path)!r}")
    return _write(
        Path(path), lambda file: aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    )


def load_aoti(path: str | Path) -> Callable[..., Any]:
    """Loads what `compile_aoti` made: a function of the model's input.

    `torch._inductor.aoti_load_package` does the same in a program that has imported replknet_ext before.
    """
    from torch._inductor import aoti_load_package

    loaded: Callable[..., Any] = aoti_load_package(str(path))
    return loaded


def _write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Lets `write` make the file beside its place, then moves it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        file = Path(folder) / path.name
        write(file)
        os.replace(file, path)
    return path


def _known_size(model: nn.Module) -> tuple[int | None, int, int]:
    """(C, H, W) as the model itself tells: `in_chans` and `pretrained_cfg`, a dataclass or timm's dict."""
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)
    channels, height, width = size or (None, 224, 224)
    own = getattr(model, "in_chans", None)
    return (own if isinstance(own, int) else channels), height, width


def _chw(size: Any, channels: int) -> tuple[int, int, int]:
    values = (size, size) if isinstance(size, int) else tuple(size)
    if len(values) == 2:
        values = (channels, *values)
    if len(values) != 3 or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError(f"input_size must be S, (H, W) or (C, H, W) in ints; got {size!r}")
    if any(value < 1 for value in values):
        raise ValueError(f"input_size must be positive; got {size!r}")
    return values  # type: ignore[return-value]
