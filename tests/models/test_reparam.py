"""Merging keeps the function, and leaves one fused depthwise convolution a block."""

from __future__ import annotations

import copy

import pytest
import torch
from models_common import SMALL, randomize, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from replknet_ext import HAS_EXT, DepthwiseConv2dLarge
from replknet_ext.models import ReparamLargeKernelConv, RepLKBlock, RepLKNet, reparameterize
from replknet_ext.models.reparam import fold_conv_bn


def small(**options) -> RepLKNet:
    torch.manual_seed(0)
    return randomize(RepLKNet(SMALL, num_classes=10, **options)).eval()


def merged_convs(model: nn.Module) -> list[DepthwiseConv2dLarge]:
    return [m.lkb_reparam for m in model.modules() if isinstance(m, ReparamLargeKernelConv)]


@pytest.mark.parametrize("small_kernel", [5, 3, 1, None])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merging_keeps_the_function(dtype, bound, small_kernel):
    model = randomize(RepLKNet(SMALL, num_classes=10, small_kernel=small_kernel)).to(dtype).eval()
    x = torch.randn(2, 3, 32, 28, dtype=dtype)
    before = model(x)
    assert before.std() > 0.1  # a signal to lose
    after = model.reparameterize()(x)
    error = (after - before).abs().max()
    assert 0 < error <= bound * (before.abs().max() if dtype == torch.float32 else 1)


@pytest.mark.parametrize("small_kernel", [9, 5, None])
def test_one_layer(small_kernel):
    layer = randomize(ReparamLargeKernelConv(4, 9, small_kernel)).double().eval()
    x = torch.randn(2, 4, 10, 12, dtype=torch.float64)
    before = layer(x)
    assert not layer.merged
    assert layer.reparameterize() is layer
    assert layer.merged
    assert [name for name, _ in layer.named_parameters()] == ["lkb_reparam.weight", "lkb_reparam.bias"]
    assert layer.lkb_reparam.padding == (4, 4)
    assert layer.activation == "none"
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-13)
    assert before.min() < 0  # alone it has no ReLU


def test_fold_conv_bn_covers_every_batchnorm():
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for options in ({}, {"affine": False}, {"eps": 0.1}):
        conv, bn = nn.Conv2d(4, 4, 3, bias="eps" in options).double(), nn.BatchNorm2d(4, **options).double().eval()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        weight, bias = fold_conv_bn(conv, bn)
        torch.testing.assert_close(torch.conv2d(x, weight, bias), bn(conv(x)), rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="GroupNorm"):
        fold_conv_bn(conv, nn.GroupNorm(2, 4))
    with pytest.raises(ValueError, match="running statistics"):
        fold_conv_bn(conv, nn.BatchNorm2d(4, track_running_stats=False))


def test_float32_is_merged_in_float64():
    """The merged parameters are the float64 result rounded once."""
    model = small()
    wide = copy.deepcopy(model).double().reparameterize().state_dict()
    for key, value in model.reparameterize().state_dict().items():
        assert torch.equal(value, wide[key].to(value.dtype)), key


def test_idempotent():
    model = small()
    once = model.reparameterize().state_dict(keep_vars=True)
    for again in (model.reparameterize, model.switch_to_deploy, lambda: reparameterize(model)):
        again()
        twice = model.state_dict(keep_vars=True)
        assert list(twice) == list(once)
        assert all(twice[key] is once[key] for key in once)


def test_every_name_merges():
    x = torch.randn(1, 3, 16, 16)
    expected = small().reparameterize()(x)
    assert torch.equal(small().switch_to_deploy()(x), expected)
    assert torch.equal(reparameterize(small())(x), expected)
    assert torch.equal(reparameterize(nn.Sequential(small()))(x), expected)  # wherever it sits
    by_block = small()
    for module in by_block.modules():  # what converters of other projects do
        if hasattr(module, "switch_to_deploy") and not isinstance(module, RepLKNet):
            module.switch_to_deploy()
    assert torch.equal(by_block(x), expected)
    assert not any(hasattr(module, "fuse") for module in by_block.modules())  # timm's tool would call it


def test_not_in_place():
    model = small()
    keys = list(model.state_dict())
    merged = reparameterize(model, inplace=False)
    assert list(model.state_dict()) == keys
    assert len(merged.state_dict()) < len(keys)


def test_merged_weights_load_into_a_model_built_merged():
    model = small().reparameterize()
    built = RepLKNet(SMALL, num_classes=10, small_kernel_merged=True).eval()
    assert list(built.state_dict()) == list(model.state_dict())
    built.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(built(x), model(x))
    assert repr(built) == repr(model)
    assert all(conv.activation == "relu" for conv in merged_convs(built))
    with pytest.raises(RuntimeError, match="lkb_origin"):
        small().load_state_dict(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_keeps_dtype_layout_flags_and_random_state(dtype):
    model = small().to(dtype=dtype, memory_format=torch.channels_last)
    model.stages[0].blocks[0].requires_grad_(False)
    model.stages[1].blocks[2].large_kernel.train()
    strides = [m.lkb_origin.conv.weight.stride() for m in model.modules() if isinstance(m, ReparamLargeKernelConv)]
    state = torch.random.get_rng_state()
    model.reparameterize()
    assert torch.equal(torch.random.get_rng_state(), state)
    convs = merged_convs(model)
    assert [conv.weight.stride() for conv in convs] == strides
    assert [conv.training for conv in convs] == [False, False, True]
    assert [conv.weight.requires_grad for conv in convs] == [False, True, True]
    assert [conv.bias.requires_grad for conv in convs] == [False, True, True]
    assert {p.dtype for conv in convs for p in conv.parameters()} == {dtype}
    assert all(p.is_leaf for p in model.parameters())


def test_on_meta():
    with torch.device("meta"):
        model = RepLKNet(SMALL)
    model.reparameterize()
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)
    model = small()
    with torch.device("meta"):  # a default device must not leak into a model that is elsewhere
        model.reparameterize()
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_keeps_backend_choice_and_hooks():
    model = small()
    block = model.stages[0].blocks[0]
    block.large_kernel.lkb_origin.conv.backend = "torch"
    calls = []
    block.large_kernel.register_forward_hook(lambda *_: calls.append("large_kernel"))
    handle = block.lk_nonlinear.register_forward_hook(lambda module, args, out: calls.append(out.min().item() >= 0))
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    model.reparameterize()
    assert block.large_kernel.lkb_reparam.backend == "torch"
    assert relative_error(model(x), before) < 1e-5
    assert calls == ["large_kernel", True] * 2
    handle.remove()
    model(x)
    assert calls[4:] == ["large_kernel"]


def test_another_activation_is_not_fused():
    model = small()
    for module in model.modules():
        if isinstance(module, RepLKBlock):
            module.lk_nonlinear = nn.Hardswish()
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    model.reparameterize()
    assert all(conv.activation == "none" for conv in merged_convs(model))
    assert relative_error(model(x), before) < 1e-5


def test_a_plain_convolution_put_in_its_place_still_gets_its_relu():
    """An exporter may swap the merged convolution for an nn.Conv2d: the ReLU must not get lost with it."""
    model = small().reparameterize()
    x = torch.randn(1, 3, 16, 16)
    expected = model(x)
    for module in model.modules():
        if isinstance(module, ReparamLargeKernelConv):
            ours = module.lkb_reparam
            plain = nn.Conv2d(ours.in_channels, ours.out_channels, ours.kernel_size, 1, ours.padding, 1, ours.groups)
            plain.load_state_dict(ours.state_dict())
            module.lkb_reparam = plain
    assert relative_error(model(x), expected) < 1e-5
    model.reparameterize()


def test_merges_sync_batchnorm():
    model = small()
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert relative_error(model.reparameterize()(x), before) < 1e-5


def test_merged_in_inference_mode_can_be_trained():
    model = small()
    with torch.inference_mode():
        model.reparameterize()
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in merged_convs(model))


def test_what_cannot_be_merged():
    with pytest.raises(TypeError, match="str"):
        reparameterize("replknet_31b")
    with pytest.raises(ValueError, match="Linear holds no"):
        reparameterize(nn.Linear(2, 2))
    layer = ReparamLargeKernelConv(4, 9, 5)
    layer.small_conv.bn = nn.Identity()
    with pytest.raises(TypeError, match="Identity"):
        layer.reparameterize()
    assert not layer.merged  # and it is as it was
    for bad in ((8, 5), (9, 4), (9, 11)):
        with pytest.raises(ValueError, match="kernel"):
            ReparamLargeKernelConv(4, *bad)


class Calls(TorchDispatchMode):
    """Records the operators that reach the dispatcher below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func.name(), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not HAS_EXT, reason="without the extension the convolution is not one op")
@pytest.mark.parametrize("grad", [False, True])
def test_a_merged_block_is_one_fused_convolution(grad):
    block = randomize(RepLKBlock(8, 12, 13, 5)).eval()
    x = torch.randn(1, 8, 10, 10)

    def names_and_activations():
        with Calls() as recorded, torch.set_grad_enabled(grad):
            block(x)
        names = [name for name, _ in recorded.calls]
        return names, [args[4] for name, args in recorded.calls if name == "replknet_ext::dwconv2d"]

    names, activations = names_and_activations()
    assert activations == ["none", "none"]
    assert names.count("aten::relu") == 2  # after pw1 and after the large kernel
    assert names.count("aten::native_batch_norm") + names.count("aten::_native_batch_norm_legit_no_training") in (0, 5)

    block.reparameterize()
    names, activations = names_and_activations()
    assert activations == ["relu"]
    assert names.count("aten::relu") == 1  # after pw1
    assert not any("add" in name for name in names[: names.index("replknet_ext::dwconv2d")])
