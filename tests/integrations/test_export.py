"""`replknet_ext.integrations.export`: torch.export programs and AOTInductor packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_common import SMALL, randomize
from rich.console import Console

from replknet_ext.errors import ToolError, UsageError
from replknet_ext.integrations import export
from replknet_ext.models import RepLKNet, RepLKNetConfig
from replknet_ext.tools import export as tool

ROOT = Path(__file__).resolve().parents[2]


def small(**kwargs) -> RepLKNet:
    return randomize(RepLKNet(SMALL, **kwargs)).eval()


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    "form", [*(pytest.param(form, marks=pytest.mark.slow) for form in ("train", "merge", "channels_last")), "full"]
)
def test_program_for_any_batch_and_size(form, tmp_path):
    model = small(num_classes=5)
    if form in ("merge", "full"):
        model.switch_to_deploy(level=form)
    if form == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    program = export.export_program(model, 24, dynamic_size=True)
    # SMALL has three large kernels and a stem of depthwise 3x3, one of them with stride 1.
    branches = 2 if form in ("train", "channels_last") else 1
    assert operators(program).count("replknet_ext.dwconv2d.default") >= 3 * branches
    path = export.save_program(program, tmp_path / "made" / "model.pt2")
    assert sorted(path.parent.iterdir()) == [path]
    loaded = export.load_program(path).module()
    for shape in ((1, 3, 24, 24), (3, 3, 17, 30)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)


def test_sizes_that_are_not_dynamic_are_fixed():
    model = small(num_classes=5)
    program = export.export_program(model, (20, 24), batch_size=3, dynamic_batch=False).module()
    assert program(torch.randn(3, 3, 20, 24)).shape == (3, 5)
    with pytest.raises(AssertionError):
        program(torch.randn(2, 3, 20, 24))


def test_default_size_is_the_models_own():
    class Known(torch.nn.Conv2d):
        in_chans = 3
        pretrained_cfg = {"input_size": (3, 32, 40)}  # noqa: RUF012

    assert export.example_input(Known(3, 4, 1).eval()).shape == (1, 3, 32, 40)
    assert export.example_input(torch.nn.Conv2d(3, 4, 1).double().eval()).shape == (1, 3, 224, 224)
    assert export.example_input(torch.nn.Conv2d(3, 4, 1).double().eval(), 8).dtype == torch.float64


@pytest.mark.slow
def test_aot_inductor_package_runs_in_another_process(tmp_path):
    config = RepLKNetConfig(large_kernel_sizes=(7,), layers=(1,), channels=(4,))
    model = randomize(RepLKNet(config, num_classes=5)).eval().switch_to_deploy()
    program = export.export_program(model, 24)
    # Settings that spare the C++ compiler: the test is of the operator, not of speed.
    quickly = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
        "cpp.simdlen": 1,
    }
    path = export.compile_aoti(program, tmp_path / "model.pt2", quickly)
    assert sorted(tmp_path.iterdir()) == [path]
    run = export.load_aoti(path)
    batches = [torch.randn(n, 3, 24, 24) for n in (1, 4)]
    with torch.no_grad():
        for x in batches:
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)
        torch.save({"x": batches[1], "y": model(batches[1])}, tmp_path / "case.pt")
    code = """
import sys, torch
if sys.argv[2] == "imported":
    import replknet_ext
case = torch.load("case.pt")
out = torch._inductor.aoti_load_package(sys.argv[1])(case["x"])
torch.testing.assert_close(out, case["y"], rtol=1e-4, atol=1e-5)
print("equal")
"""
    done = {
        how: subprocess.run(
            [sys.executable, "-c", code, str(path), how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        for how in ("imported", "alone")
    }
    assert done["imported"].stdout == "equal\n", done["imported"].stderr
    # Why the documentation says to import the package first.
    assert done["alone"].returncode != 0


def test_aot_inductor_needs_its_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.pt2"):
        export.compile_aoti(None, tmp_path / "model.so")


# ---- the tool behind `replknet-ext export` ----


@pytest.mark.slow
def test_tool_writes_what_the_suffix_says(tmp_path):
    model = small(num_classes=5).switch_to_deploy("full")
    program = tool.export(model, tmp_path / "model.pt2", input_size=24, batch_size=2, any_size=True)
    assert (program.kind, program.shape, program.nodes) == ("program", (2, 3, None, None), None)
    x = torch.randn(2, 3, 17, 30)
    torch.testing.assert_close(export.load_program(program.path).module()(x), model(x), rtol=1e-5, atol=1e-6)

    report = tool.export(model, tmp_path / "model.onnx", input_size=16, opset=19)
    assert (report.kind, report.shape, report.opset) == ("onnx", (None, 3, 16, 16), 19)
    assert report.size == report.path.stat().st_size
    assert report.error < 1e-5
    assert report.as_dict()["nodes"]["Conv"] == len([m for m in model.modules() if isinstance(m, torch.nn.Conv2d)])
    console = Console(width=200, record=True)
    tool.render("small", report, console)
    tool.render("small", program, console)
    shown = console.export_text()
    assert "input any x 3 x 16 x 16" in shown
    assert "opset 19; " in shown
    assert f"torch.export.load({str(program.path)!r}).module()" in shown


def test_tool_says_what_is_wrong(tmp_path, monkeypatch):
    model = small(num_classes=5)
    for path, kind, message in (
        ("model.pth", None, "suffix must be .onnx, or .pt2"),
        ("model.pt2", "onnx", "suffix must be .onnx, or .pt2"),
        ("model.pt2", "tensorrt", "unknown kind 'tensorrt': onnx, program, aoti"),
    ):
        with pytest.raises(UsageError, match=message):
            tool.export(model, tmp_path / path, kind=kind)
    with pytest.raises(UsageError, match="opset must be at least 18"):
        tool.export(model, tmp_path / "model.onnx", opset=11)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ToolError, match=r"this needs onnxscript: pip install 'replknet_ext\[onnx\]'"):
        tool.export(model, tmp_path / "model.onnx", input_size=16)
    assert list(tmp_path.iterdir()) == []
