"""replace_depthwise swaps what it should in any model, says why not for the rest, and can be undone exactly."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.fx
from models_common import relative_error
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from replknet_ext import DepthwiseConv2dLarge, replace_depthwise, restore


def dw(channels: int, kernel, padding="same", **kwargs) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, **kwargs)


class SamePad(nn.Conv2d):
    """Pads by itself, as timm's Conv2dSame does."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Zoo(nn.Module):
    """One of each: containers, a module used twice, and every kind of convolution that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        shared = dw(8, 9)
        self.body = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"a": dw(8, 7, 3, bias=False)})["a"], shared)
        self.branches = nn.ModuleDict(
            {"wide": dw(8, (1, 11)), "tall": dw(8, (11, 1)), "same": SamePad(8, 8, 2, groups=8)}
        )
        self.rest = nn.ModuleList(
            [
                dw(8, 3),
                dw(8, 5, 4, dilation=2),
                nn.Conv2d(8, 8, 5, padding=2, groups=2),
                dw(8, 6, padding_mode="circular"),
                nn.Conv2d(8, 16, 5, padding=2, groups=8),
                dw(16, 5, 2, stride=2),
            ]
        )

    def forward(self, x):
        x = self.body(self.stem(x))
        x = sum(branch(x) for branch in self.branches.values())
        for layer in self.rest:
            x = layer(x)
        return x


SWAPPED = {"body.0", "body.2", "branches.wide", "branches.tall", "rest.3"}
KEPT = {
    "stem": "not depthwise",
    "branches.same": "subclass",
    "rest.0": "min_kernel",
    "rest.1": "dilation",
    "rest.2": "not depthwise",
    "rest.4": "multiplier",
    "rest.5": "stride",
}


def test_swaps_reports_and_restores():
    model = Zoo()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    text = repr(model)
    x = torch.randn(2, 3, 14, 13)
    expected = copy.deepcopy(model).double()(x.double())

    report = replace_depthwise(model)
    assert {entry.name for entry in report.swapped} == SWAPPED
    assert {entry.name for entry in report.kept} == set(KEPT)
    for entry in report.kept:
        assert KEPT[entry.name] in entry.reason
    for entry in report:
        assert entry.shape == tuple(model.get_submodule(entry.name).weight.shape)
    assert report.entries[1].aliases == ("body.3",)
    assert {n for n, m in model.named_modules() if isinstance(m, DepthwiseConv2dLarge)} == SWAPPED
    assert model.body[0] is model.body[3]
    assert relative_error(model(x), expected) < 1e-5

    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert set(restore(model)) == SWAPPED
    assert dict(model.named_modules()) == modules  # modules compare by identity
    assert repr(model) == text
    assert not any(isinstance(m, DepthwiseConv2dLarge) for m in model.modules())
    assert all(model.get_submodule(name).__dict__.keys() == nn.Conv2d(1, 1, 1).__dict__.keys() for name in SWAPPED)
    assert relative_error(model(x), expected) < 1e-5
    assert restore(model) == ()


def test_gradients_match():
    model = Zoo()
    reference = copy.deepcopy(model).double()
    x = torch.randn(2, 3, 14, 13)
    probe = torch.randn_like(model(x))
    replace_depthwise(model)
    (model(x) * probe).sum().backward()
    (reference(x.double()) * probe).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-4, name


def test_report_reads_well():
    report = replace_depthwise(Zoo())
    lines = str(report).splitlines()
    assert lines[0] == "replace_depthwise: 5 swapped, 7 kept"
    assert any("swapped" in line and "body.0 = body.3" in line and "8x1x9x9" in line for line in lines)
    assert any("kept" in line and "rest.5" in line and "stride (2, 2)" in line for line in lines)
    assert "2 more: not depthwise" in lines[-1]
    assert len(report) == 12


def test_min_kernel_filter_and_options():
    model = Zoo()
    seen = []
    report = replace_depthwise(
        model,
        min_kernel=3,
        filter_fn=lambda name, conv: (seen.append(name), not name.startswith("branches"))[1],
        algorithm="direct",
        backend="torch",
    )
    assert {entry.name for entry in report.swapped} == {"body.0", "body.2", "rest.0", "rest.3"}
    assert {entry.name for entry in report.kept if entry.reason == "filter_fn declined it"} == {
        "branches.wide",
        "branches.tall",
    }
    assert sorted(seen) == sorted([*SWAPPED, "rest.0"])  # asked about eligible ones, once each
    assert model.body[0].algorithm == "direct"
    assert model.body[0].backend == "torch"
    assert [entry.name for entry in replace_depthwise(model, min_kernel=12).swapped] == []


def test_a_filter_that_raises_changes_nothing():
    model = Zoo()
    with pytest.raises(KeyError):
        replace_depthwise(model, filter_fn=lambda name, conv: {"body.0": True}[name])
    assert not any(isinstance(m, DepthwiseConv2dLarge) for m in model.modules())


def test_twice_and_undo_one_call():
    model = nn.Sequential(dw(4, 5), dw(4, 9))
    first = replace_depthwise(model, min_kernel=9)
    second = replace_depthwise(model)
    assert [entry.reason for entry in second.kept] == ["already a DepthwiseConv2dLarge"]
    assert second.restore() == ("0",)
    assert type(model[1]) is DepthwiseConv2dLarge
    assert first.restore() == ("1",)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Conv2d]


def test_built_modules_are_not_restored():
    model = nn.Sequential(DepthwiseConv2dLarge(4, 5), dw(4, 5))
    replace_depthwise(model)
    assert restore(model) == ("1",)
    assert type(model[0]) is DepthwiseConv2dLarge


def test_a_lone_convolution():
    conv = dw(4, 7)
    report = replace_depthwise(conv)
    assert type(conv) is DepthwiseConv2dLarge
    assert "(the model)" in str(report)
    assert restore(conv) == ("",)
    assert type(conv) is nn.Conv2d


def test_not_in_place():
    model = Zoo()
    report = replace_depthwise(model, inplace=False)
    assert not any(isinstance(m, DepthwiseConv2dLarge) for m in model.modules())
    assert type(report.model.body[0]) is DepthwiseConv2dLarge
    assert report.model.body[0] is report.model.body[3]
    report.restore()
    assert type(report.model.body[0]) is nn.Conv2d


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_restore_too(clone):
    model = nn.Sequential(dw(4, 5))
    replace_depthwise(model)
    twin = clone(model)
    assert type(twin[0]) is DepthwiseConv2dLarge
    assert restore(twin) == ("0",)
    assert type(twin[0]) is nn.Conv2d
    assert type(model[0]) is DepthwiseConv2dLarge


def test_hooks_optimizer_and_flags_live_on():
    model = nn.Sequential(dw(4, 7)).eval()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model[0].bias], lr=1.0)
    calls = []
    handle = model[0].register_forward_hook(lambda module, args, out: calls.append(type(module)))
    x = torch.randn(1, 4, 8, 8)
    replace_depthwise(model)
    assert not model[0].training
    before = model[0].bias.detach().clone()
    model(x).sum().backward()
    assert model[0].weight.grad is None
    optimizer.step()
    torch.testing.assert_close(model[0].bias.detach(), before - 64)
    restore(model)
    model(x)
    assert calls == [DepthwiseConv2dLarge, nn.Conv2d]
    handle.remove()
    model(x)
    assert len(calls) == 2


def test_reparametrized_convolutions():
    """Hook-based weight norm is swapped and works; parametrizations must come after the swap."""
    model = nn.Sequential(dw(4, 5), parametrizations.weight_norm(dw(4, 5)), dw(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])
    x = torch.randn(1, 4, 8, 8)
    expected = model(x).double()  # weight norm of this kind cannot be copied
    report = replace_depthwise(model)
    assert [entry.name for entry in report.swapped] == ["0", "2"]
    assert "parametrized (weight)" in report.kept[0].reason
    assert relative_error(model(x), expected) < 1e-5
    parametrizations.orthogonal(model[2])
    with pytest.raises(RuntimeError, match=r"'2'.*parametrizations"):
        restore(model)
    assert type(model[0]) is DepthwiseConv2dLarge  # nothing was half-restored
    parametrize.remove_parametrizations(model[2], "weight")
    assert restore(model) == ("0", "2")


def test_traced_and_compiled_models():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), dw(4, 7), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 9)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = compiled(x)
    replace_depthwise(model)
    for variant in (
        compiled,
        torch.fx.symbolic_trace(model),
        torch.compile(model, backend="aot_eager", fullgraph=True),
    ):
        torch.testing.assert_close(variant(x), expected)
    graph = torch.fx.symbolic_trace(nn.Sequential(dw(4, 7)))
    assert len(replace_depthwise(graph).swapped) == 1


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="list"):
        replace_depthwise([dw(4, 5)])
    with pytest.raises(TypeError, match="dict"):
        restore({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(dw(4, 5)))
    with pytest.raises(TypeError, match="TorchScript"):
        replace_depthwise(scripted)
    with pytest.raises(ValueError, match="min_kernel"):
        replace_depthwise(Zoo(), min_kernel=0)
    with pytest.raises(TypeError, match="min_kernel"):
        replace_depthwise(Zoo(), min_kernel=5.0)
    assert not replace_depthwise(nn.Linear(2, 2)).entries


def test_layers_that_are_not_initialised_yet():
    model = nn.Sequential(nn.LazyConv2d(8, 7), nn.Conv2d(8, 8, 7, padding=3, groups=8))
    report = replace_depthwise(model)
    assert [entry.action for entry in report] == ["kept", "swapped"]
    assert "not initialised yet" in report.entries[0].reason
    assert "not initialised yet" in str(report)
    with pytest.raises(ValueError, match="not initialised yet"):
        DepthwiseConv2dLarge.from_conv2d(nn.LazyConv2d(8, 7))
    model(torch.randn(1, 3, 9, 9))
    assert "not depthwise" in replace_depthwise(model).entries[0].reason


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_input_channels():
    assert "not depthwise" in replace_depthwise(nn.Sequential(nn.Conv2d(0, 8, 7))).entries[0].reason


def kernels_that_run(call) -> set[str]:
    """Which convolutions a call dispatches: "aten", "replknet_ext"."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "conv" in func.name():
                seen.add(func.namespace)
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    with Seen():
        call()
    return seen


@pytest.mark.parametrize(
    ("kernel", "inference", "training"),
    [
        ((5, 5), "aten", "replknet_ext"),
        ((1, 11), "aten", "aten"),
        ((11, 1), "aten", "aten"),
        ((7, 7), "aten", "replknet_ext"),
        ((9, 9), "replknet_ext", "replknet_ext"),
        ((1, 13), "replknet_ext", "replknet_ext"),
    ],
)
def test_what_is_faster_by_torch_stays_there(kernel, inference, training):
    """Narrow filters in float32 and channels_last on the CPU; the report says which."""
    model = nn.Sequential(nn.Conv2d(8, 8, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=8))
    images = torch.randn(2, 8, 12, 12)
    expected = model(images)
    report = replace_depthwise(model)
    assert ("torch's for channels_last" in str(report)) == (inference == "aten")
    assert ("in inference" in str(report)) == (inference != training)
    last = images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert kernels_that_run(lambda: model(last)) == {inference}
        assert kernels_that_run(lambda: model(images)) == {"replknet_ext"}
        assert kernels_that_run(lambda: model(images[0])) == {"replknet_ext"}  # without a batch
        some = images.repeat(1, 3, 1, 1).to(memory_format=torch.channels_last)[:, 8:16]
        assert kernels_that_run(lambda: model(some)) == {inference}
        assert kernels_that_run(lambda: model.double()(last.double())) == {"replknet_ext"}
    model.float()
    assert kernels_that_run(lambda: model(last).sum().backward()) == {training}
    assert relative_error(model(last), expected) < 1e-5
    assert model(last).is_contiguous(memory_format=torch.channels_last)
    for given in ({"backend": "cpu"}, {"algorithm": "direct"}):
        restore(model)
        replace_depthwise(model, **given)
        with torch.no_grad():
            assert kernels_that_run(lambda: model(last)) == {"replknet_ext"}


def test_activation_of_a_layer_that_runs_on_torch():
    layer = DepthwiseConv2dLarge(8, (1, 7), activation="gelu")
    last = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    assert kernels_that_run(lambda: layer(last)) == {"aten"}
    assert relative_error(layer(last), copy.deepcopy(layer).double()(last.double())) < 1e-6
