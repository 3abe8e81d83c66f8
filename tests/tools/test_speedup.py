"""`replknet-ext speedup`: each contender runs what it is called, losses and failures are shown. No time is asserted."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("typer")
pytest.importorskip("rich")

from tools_common import cli

from replknet_ext import DepthwiseConv2dLarge
from replknet_ext.data import torchvision_names
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.tools import show
from replknet_ext.tools import speedup as tool
from replknet_ext.tools.timing import Candidate, Timing

CPU = torch.device("cpu")
ALL = [f"{kind} {layout}" for layout in tool.LAYOUTS for kind in (tool.TORCH, tool.OURS)]


class Net(nn.Module):
    """Two layers alike, one with an activation inside, and two that stay on torch."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 9, padding=4, groups=4)
        self.second = nn.Conv2d(4, 4, 9, padding=4, groups=4)
        self.gelu = DepthwiseConv2dLarge(4, 5, padding=2, activation="gelu")
        self.small = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.down = nn.Conv2d(4, 4, 5, stride=2, groups=4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.down(self.small(self.gelu(self.second(self.first(self.stem(x))))))
        return {"maps": (y.view(len(y), -1) if self.flat else y,), "count": 1}


def measure(model: nn.Module, **options: Any) -> tool.Report:
    given: dict[str, Any] = {"device": CPU, "batch_size": 2, "input_size": 9, "rounds": 3, "seconds": 1e-3}
    return tool.measure(model, "net", **(given | options))


def shown(report: tool.Report) -> str:
    out = io.StringIO()
    tool.render(report, show.console(file=out, width=100))
    return out.getvalue()


class _Ran(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.weights: set[bool] = set()  # of the stem: whether they are channels_last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names["ours" if func.namespace == "replknet_ext" else "torch" if "conv" in str(func) else "other"] += 1
        if len(args) > 1 and isinstance(args[1], Tensor) and args[1].shape == (4, 2, 3, 3):
            self.weights.add(args[1].is_contiguous(memory_format=torch.channels_last))
        return func(*args, **(kwargs or {}))


def test_each_contender_runs_what_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, tuple[set[bool], int, int]]] = []

    def look(candidates: Sequence[Candidate], **options: Any) -> dict[str, Timing]:
        found = {}
        for candidate in candidates:
            with _Ran() as seen:
                outputs = candidate.run()
            laid = outputs[0].is_contiguous(memory_format=torch.channels_last)
            found[candidate.name] = ({laid, *seen.weights}, seen.names["ours"], seen.names["torch"])
        ran.append(found)
        return {}

    monkeypatch.setattr(tool, "interleave", look)
    report = measure(Net())
    assert [(row.what, row.names, row.pass_) for row in report.rows] == [
        (what, names, pass_)
        for what, names in [("model", ()), ("4x9x9, 9x9", ("first", "second")), ("4x9x9, 5x5", ("gelu",))]
        for pass_ in (tool.FORWARD, tool.TRAINING)
    ]
    for row, found in zip(report.rows, ran, strict=True):
        assert list(found) == ALL
        calls = (1 if row.names else 3) if row.pass_ == tool.FORWARD else None
        for name, (layouts, ours, by_torch) in found.items():
            nhwc = name.endswith("channels_last")
            assert layouts == {nhwc}, (row.what, name)
            # A 5x5 in channels_last is left to torch in inference.
            left = calls is not None and nhwc and row.what != "4x9x9, 9x9"
            wanted = calls - 1 if calls and left else calls
            assert (ours > 0) == (name.startswith(tool.OURS) and wanted != 0), (row.what, name)
            assert wanted in (None, ours or wanted), (row.what, name)
            assert (by_torch > 0) == (not ours or not row.names), (row.what, name)
    assert all(row.difference is not None and row.difference < 1e-5 for row in report.rows if row.pass_ == tool.FORWARD)
    assert [(entry.name, entry.shape) for entry in report.kept] == [("small", (4, 1, 3, 3)), ("down", (4, 1, 5, 5))]


def test_a_training_step_has_all_gradients_and_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(Net(), nn.Identity()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    network = tool._on_torch(model)
    x = torch.randn(1, 2, 9, 9, requires_grad=True)
    tool._call(network, x, tool.TRAINING, None)()
    assert x.grad is not None and all(parameter.grad is not None for parameter in network.parameters())
    network.zero_grad(set_to_none=True)
    measure(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_run_is_named_and_the_rest_counts() -> None:
    report = measure(Net(flat=True))
    model = report.rows[0]
    assert list(model.timings) == [name for name in ALL if "NCHW" in name]
    assert set(model.failed) == {name for name in ALL if "channels_last" in name}
    assert model.gain == pytest.approx(model.timings[tool.AS_CALLED].median / model.timings[f"{tool.OURS} NCHW"].median)
    assert "model, forward: nn.Conv2d channels_last did not run: RuntimeError: view size" in " ".join(
        shown(report).split()
    )


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepthwiseConv2dLarge.forward
    monkeypatch.setattr(DepthwiseConv2dLarge, "forward", lambda self, x: right(self, x) * 1.01)
    report = measure(Net())
    layer = report.rows[2]
    assert "another result than nn.Conv2d's" in layer.failed[f"{tool.OURS} channels_last"]


def row(what: str, ours: float, names: tuple[str, ...] = ()) -> tool.Row:
    ms = dict(zip(ALL, (4.0, ours, 2.0, 8.0), strict=True))
    return tool.Row(what, names, tool.FORWARD, {name: Timing(name, 1, [value]) for name, value in ms.items()}, {}, 1e-7)


def test_losses_are_shown() -> None:
    assert (row("model", 1.0).gain, row("model", 1.0).gain_as_called) == (2.0, 4.0)
    where = {"device": "a processor", "threads": "2"}
    rows = (row("model", 2.5), row("4x9x9, 7x7", 5.0, ("a", "b")))
    report = tool.Report("net", (2, 3, 9, 9), None, where, 1e3, rows, ())
    text = " ".join(shown(report).split())
    assert "0.80x of nn.Conv2d in its faster layout, 1.60x of it as called (NCHW)" in text
    assert "4x9x9, 7x7 2 4 2 5 8 0.40x" in text and "below 1.00x is a loss" in text
    assert "a processor (threads 2), input 2x3x9x9" in text and "1 samples or more" in text
    assert "machine was busy" in text and "busy" not in shown(tool.Report("net", (1,), None, where, 0.0, rows, ()))


def test_nothing_to_speed_up() -> None:
    report = measure(nn.Sequential(nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 3, groups=8)), input_size=16)
    assert not report.rows
    text = shown(report)
    assert "no layer for these kernels; nothing was measured" in text
    assert "1 more depthwise layer stays on torch in both: kernel 3x3 is smaller than min_kernel=5" in text


def test_the_input_is_what_the_model_says() -> None:
    model = Net()
    assert tool._input_shape(model, 3, None) == (3, 2, 224, 224)
    model.default_cfg = {"input_size": (3, 10, 20)}  # type: ignore[assignment]
    assert tool._input_shape(model, 3, None) == (3, 2, 10, 20)
    model.pretrained_cfg = SimpleNamespace(input_size=(3, 30, 40))  # type: ignore[assignment]
    assert tool._input_shape(model, 3, None) == (3, 2, 30, 40)
    assert tool._input_shape(model, 3, 7) == (3, 2, 7, 7)


# ---- on the command line ----

MODULE = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 7, padding=3, groups=4))

class Nested:
    made = net()

def wrong():
    return 3

def raising():
    raise ZeroDivisionError("of mine")

def leaving():
    raise SystemExit(3)

def deep():
    return nn.Sequential(nn.Linear(3, 3), nn.Conv2d(4, 4, 7, groups=4))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"nets_{tmp_path.name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return f"nets_{tmp_path.name}"


def test_a_function_of_mine(module: str) -> None:
    options = ("--input-size", 8, "-b", 1, "--seconds", 0.001, "--device", "cpu")
    text = " ".join(cli("speedup", f"{module}:net", *options).stdout.split())
    assert f"{module}:net, training step, milliseconds" in text and "4x8x8, 7x7 1" in text
    found = cli.json("speedup", f"{module}:Nested.made", *options, "--amp", "bf16")
    assert found["input"] == [1, 3, 8, 8] and found["amp"] == "bfloat16" and found["measured_on"]["device"]
    assert [entry["pass"] for entry in found["rows"]] == [tool.FORWARD, tool.TRAINING] * 2
    assert all(list(entry["timings"]) == ALL and entry["gain"] > 0 for entry in found["rows"])


@pytest.mark.parametrize(
    ("what", "options", "code", "words"),
    [
        (":wrong", (), 1, "must be an nn.Module or return one; got int"),
        (":raising", (), 1, "() raised ZeroDivisionError: of mine"),
        (":leaving", (), 1, "() raised SystemExit: 3"),
        (":none", (), 1, "AttributeError"),
        ("x:net", (), 1, "ModuleNotFoundError"),
        (":deep", (), 1, "does not take an input of (1, 4, 8, 8)"),
        (":net", ("--deploy", "merge"), 2, "nothing to merge"),
        (":net", ("--device", "nope"), 2, "unknown device"),
        (":net", ("--min-kernel", "0"), 2, "min-kernel"),
    ],
)
def test_bad_arguments(module: str, what: str, options: Sequence[str], code: int, words: str) -> None:
    shown = cli("speedup", module + what, "--input-size", 8, "-b", 1, *options, code=code).stderr
    assert words in shown and (code == 2 or len(shown.splitlines()) == 1)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ToolError, match=r"^'convnext_atto' is no model of .* timm .*pip install 'replknet_ext\[timm\]'"
    ):
        tool.load("convnext_atto")


def test_timm_beside_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torchvision_names, "import_torchvision", lambda: asked.append(True))
    pytest.importorskip("timm")
    assert isinstance(tool.load("test_convnext"), nn.Module) and asked


def test_names() -> None:
    assert isinstance(tool.load("replknet_13", deploy="merge"), nn.Module)
    pytest.importorskip("timm")
    kinds = Counter(type(module) for module in tool.load("convnext_atto").modules())
    assert kinds[nn.Conv2d] > 10
    with pytest.raises(UsageError, match=r"'convnext_ato' is no model .*; did you mean .*convnext_atto"):
        tool.load("convnext_ato")
    with pytest.raises(ToolError, match="cannot import"):
        tool.load("nowhere.at.all:net")
