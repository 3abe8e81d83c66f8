"""The notebook: its cells run, and none of them holds an output that is older than its code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples/large_kernels.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_committed_without_outputs() -> None:
    """Times and pictures are those of the reader's machine."""
    assert [cell["cell_type"] for cell in CELLS[:2]] == ["markdown", "markdown"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code")


@pytest.mark.slow
def test_its_cells_run(capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, as one program; what the text says of the results holds."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert "12 swapped" in capsys.readouterr().out
    logits, same, labels, test = (names[name] for name in ("logits", "same", "labels", "test"))
    assert isinstance(logits, torch.Tensor) and isinstance(same, torch.Tensor)
    assert isinstance(labels, torch.Tensor) and isinstance(test, torch.Tensor)
    assert (same.argmax(1) == labels[test]).float().mean() > 0.7, "it has learnt"
    difference, cam = names["difference"], names["cam"]
    assert isinstance(difference, float) and 0 < difference < 1e-4
    assert isinstance(cam, torch.Tensor) and cam.shape == (4, 1, 24, 24) and cam.max() > 0
