"""`replknet_ext.integrations.onnx`: ONNX files of plain nodes that compute what torch computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models_common import SMALL, randomize
from torch import Tensor, nn

from replknet_ext import DepthwiseConv2dLarge, replace_depthwise
from replknet_ext.integrations.onnx import export_onnx, translations
from replknet_ext.models import RepLKNet


def small(**kwargs) -> RepLKNet:
    return randomize(RepLKNet(SMALL, **kwargs)).eval()


def run(path: Path, x: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})


def large_convolutions(path: Path) -> list[onnx.NodeProto]:
    """The depthwise Conv nodes of 9x9 and 13x13, which run on the custom operator in torch."""
    model = onnx.load(path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node for node in convs if shapes[node.input[1]][2] in (9, 13) and shapes[node.input[1]][1] == 1]


@pytest.mark.parametrize(
    ("form", "opset"),
    [*(pytest.param(*form, marks=pytest.mark.slow) for form in (("train", 18), ("merge", 20), ("channels_last", 18))),
     ("full", 18)],
)  # fmt: skip
def test_every_form_runs_in_onnxruntime(form, opset, tmp_path):
    model = small(num_classes=5)
    if form in ("merge", "full"):
        model.switch_to_deploy(level=form)
    if form == "channels_last":
        model = model.to(memory_format=torch.channels_last).switch_to_deploy()
    path = tmp_path / "made" / "model.onnx"
    report = export_onnx(model, path, (20, 24), opset=opset)
    assert (report.path, report.opset) == (path, opset)
    assert report.inputs == {"input": ("batch", 3, 20, 24)}
    assert report.outputs == {"logits": ("batch", 5)}
    assert report.error < 1e-5
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    for batch in (1, 3):
        x = torch.randn(batch, 3, 20, 24)
        np.testing.assert_allclose(run(path, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    nodes = large_convolutions(path)
    assert len(nodes) == 3  # one for each RepLKBlock: the BatchNorms behind it are folded by torch's exporter or ours
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        k = attributes["kernel_shape"][0]
        assert attributes["pads"] == [k // 2] * 4
        assert attributes["group"] == {13: 12, 9: 24}[k]
    assert sorted(path.parent.iterdir()) == [path]  # nothing left over


@pytest.mark.slow
def test_any_size_and_a_backbone(tmp_path):
    model = small(out_indices=(0, 1), norm_intermediate_features=True).switch_to_deploy()
    report = export_onnx(model, tmp_path / "model.onnx", 24, dynamic_size=True)
    assert report.inputs == {"input": ("batch", 3, "height", "width")}
    assert list(report.outputs) == ["stage0", "stage1"]
    for shape in ((1, 3, 24, 24), (2, 3, 17, 30)):
        x = torch.randn(shape)
        for out, expected in zip(run(report.path, x), model(x), strict=True):
            np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fixed_batch_half_precision_and_other_channels(tmp_path):
    model = small(num_classes=0, in_chans=4).switch_to_deploy().half()
    report = export_onnx(model, tmp_path / "model.onnx", 16, batch_size=3, dynamic_batch=False)
    assert report.inputs == {"input": (3, 4, 16, 16)}
    assert list(report.outputs) == ["features"]
    assert report.error < 1e-2


class _Calls(nn.Module):
    """The raw operator with what modules never ask for: paddings that crop, both activations, no bias."""

    def __init__(self, padding: list[int], activation: str, bias: bool) -> None:
        super().__init__()
        self.conv = DepthwiseConv2dLarge(4, (5, 4), bias=bias)
        self.padding, self.activation = padding, activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.replknet_ext.dwconv2d(
            x, self.conv.weight, self.conv.bias, self.padding, self.activation, "ieee", "auto", "auto", -1
        )


@pytest.mark.parametrize(
    ("padding", "activation", "bias"),
    [([2, 2, 1, 2], "gelu", True), ([0, 3, 4, 1], "relu", False), ([-2, 1, 3, -1], "none", True)],
)
def test_operator_with_every_argument(padding, activation, bias, tmp_path):
    model = _Calls(padding, activation, bias).eval()
    report = export_onnx(model, tmp_path / "model.onnx", (4, 12, 15))
    x = torch.randn(5, 4, 12, 15)
    np.testing.assert_allclose(run(report.path, x)[0], model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weights_beyond_a_protobuf_go_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[export_onnx.__module__], "_MAX_SINGLE_FILE", 1000)
    model = small(num_classes=5).switch_to_deploy("full")
    report = export_onnx(model, tmp_path / "model.onnx", 16)
    assert report.files == (tmp_path / "model.onnx.data", tmp_path / "model.onnx")
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    x = torch.randn(1, 3, 16, 16)
    np.testing.assert_allclose(run(report.path, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_translations_serve_an_export_of_ones_own(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 13, padding=6, groups=8)).eval()
    assert len(replace_depthwise(model).swapped) == 1
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(torch.onnx.errors.OnnxExporterError):  # nobody else knows the operator
        torch.onnx.export(model, (x,), tmp_path / "no.onnx", dynamo=True, verbose=False)
    path = tmp_path / "yes.onnx"
    torch.onnx.export(
        model, (x,), path, dynamo=True, verbose=False, input_names=["input"], custom_translation_table=translations()
    )
    np.testing.assert_allclose(run(path, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    """The comparison with onnxruntime is what stands between a bad translation and its user."""
    module = sys.modules[export_onnx.__module__]
    good = module._dwconv2d
    monkeypatch.setattr(module, "_dwconv2d", lambda x, w, b, padding, *rest: good(x, w, b, padding, "relu"))
    target = tmp_path / "model.onnx"
    target.write_bytes(b"before")
    model = DepthwiseConv2dLarge(4, 7).eval()
    with pytest.raises(RuntimeError, match="onnxruntime differs from torch by"):
        export_onnx(model, target, (4, 9, 9))
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]
    assert export_onnx(model, target, (4, 9, 9), verify=False).error is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"opset": 17}, ValueError, "opset must be at least 18"),
        ({"opset": 18.0}, TypeError, "opset must be an int"),
        ({"input_size": (3, 24)[:1]}, TypeError, r"input_size must be S, \(H, W\) or \(C, H, W\)"),
        ({"input_size": 0}, ValueError, "input_size must be positive"),
        ({"input_size": (1, 24, 24)}, ValueError, "names 1 channels, but the model takes 3"),
        ({"batch_size": 0, "dynamic_batch": False}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_arguments_are_checked(change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(small(num_classes=2), tmp_path / "model.onnx", **change)
    assert list(tmp_path.iterdir()) == []


def test_training_mode_and_strangers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\)"):
        export_onnx(small(num_classes=2).train(), tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=r"model must be an nn\.Module; got str"):
        export_onnx("replknet_31b", tmp_path / "model.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_say_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"this needs {missing}: pip install 'replknet_ext\[onnx\]'"):
        export_onnx(small(num_classes=2), tmp_path / "model.onnx", verify=True)


def test_bfloat16(tmp_path):
    model = nn.Sequential(DepthwiseConv2dLarge(4, 7)).bfloat16().eval()
    path = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match="opset must be at least 22 for a bfloat16 model"):
        export_onnx(model, path, (4, 8, 8))
    with pytest.raises(ValueError, match="verify must be None or False for a bfloat16 model"):
        export_onnx(model, path, (4, 8, 8), opset=22, verify=True)
    assert not path.exists()
    report = export_onnx(model, path, (4, 8, 8), opset=22)
    assert (report.opset, report.error, report.nodes["Conv"]) == (22, None, 1)
    (weight,) = (tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)
    assert weight.data_type == onnx.TensorProto.BFLOAT16
