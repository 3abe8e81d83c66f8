"""``replknet-ext models``: the names that `get_model` knows, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ToolError
from ..models import MODELS, list_models
from . import show

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["collect", "render"]

_DATA = {"": None, "in21k": "ImageNet-21k", "meg73m": "MegData-73M"}


def collect(pattern: str = "*", pretrained: bool = False) -> list[dict[str, Any]]:
    """A row for each name.

    Raises:
        ToolError: no name matches.
    """
    names = list_models(pattern, pretrained=True if pretrained else None)
    if not names:
        raise ToolError(f"no model's name matches {pattern!r}")
    return [_row(name) for name in names]


def _row(name: str) -> dict[str, Any]:
    cfg = MODELS.get(name)
    if cfg is None:  # registered by somebody else
        return {"name": name, "weights": None}
    return {
        "name": name,
        "weights": cfg.name if cfg.url else None,
        "arch": cfg.arch,
        "input_size": list(cfg.input_size),
        "pretrain": _DATA[cfg.pretrain] if cfg.url else None,
        "params": cfg.params,
        "flops": cfg.flops,
        "top1": cfg.top1,
        "top5": cfg.top5,
        "url": cfg.url or None,
        "sha256": cfg.sha256 or None,
    }


def render(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the rows: a table, or where that is too wide, three lines for each; made for 60 columns and more."""
    full = [row for row in rows if row["name"] == row.get("weights")]
    other = [row for row in rows if row["name"] != row.get("weights")]
    columns = ("name", "pretrained on", "params", "FLOPs", "input", "top-1", "top-5")
    if full and console.width >= 110:
        table = show.table("Published weights", *columns, numbers="llrrrrr")
        for row in full:
            table.add_row(*_cells(row))
        console.print(table)
    elif full:
        console.print("Published weights", style="bold cyan")
        for row in full:
            name, *cells = _cells(row)
            words = [f"{column} {cell}" for column, cell in zip(columns[1:], cells, strict=True)]
            console.print(f"{name}\n  {', '.join(words[:3])}\n  {', '.join(words[3:])}")
        console.print()
    if other:
        table = show.table("Short names", "name", "weights with pretrained=True")
        for row in other:
            table.add_row(row["name"], row.get("weights") or "none published")
        console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    params, flops = show.number(row["params"], "M", True), show.number(row["flops"], "G", True)
    size, top1, top5 = str(row["input_size"][-1]), f"{row['top1']:.2f}", f"{row['top5']:.2f}"
    return [row["name"], row["pretrain"] or "-", params, flops, size, top1, top5]
