"""`switch_to_deploy("full")`: no BatchNorm is left that can be folded, and the function stays."""

from __future__ import annotations

import copy
import pickle
import runpy

import pytest
import torch
from models_common import SMALL, randomize, relative_error
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from replknet_ext import HAS_EXT
from replknet_ext.models import ConvFFN, RepLKBlock, RepLKNet, RepLKNetConfig, pointwise, reparameterize
from replknet_ext.models.pointwise import PointwiseConv2d


def small(**options) -> RepLKNet:
    torch.manual_seed(0)
    if options.get("out_indices") is None:
        options.setdefault("num_classes", 10)
    return randomize(RepLKNet(SMALL, **options)).eval()


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("small_kernel", [5, None])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_function_stays(dtype, bound, memory_format, small_kernel):
    model = small(small_kernel=small_kernel).to(dtype=dtype, memory_format=memory_format)
    x = torch.randn(2, 3, 32, 28, dtype=dtype).contiguous(memory_format=memory_format)
    before = model(x)
    assert before.std() > 0.1  # a signal to lose
    assert model.deploy_level is None
    assert model.switch_to_deploy("full") is model
    assert model.deploy_level == "full"
    assert norms(model) == []
    after = model(x)
    error = (after - before).abs().max()
    assert 0 < error <= bound * (before.abs().max() if dtype == torch.float32 else 1)


def test_published_architecture():
    model = randomize(RepLKNet("31B")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        model.switch_to_deploy("full")
        assert relative_error(model(x), expected) < 1e-5
    assert norms(model) == []
    assert len(model.state_dict()) == 2 * (4 + 24 * 5 + 6 + 1)  # weight and bias of every convolution and the head


@pytest.mark.parametrize("first", ["merge", "full"])
def test_levels_one_after_the_other(first):
    """Full after merge equals full at once, bit for bit; once full, either level is a no-op."""
    expected = small().switch_to_deploy("full").state_dict()
    model = small().switch_to_deploy(first)
    assert model.deploy_level == first
    model.switch_to_deploy("full")
    once = model.state_dict(keep_vars=True)
    assert list(once) == list(expected)
    assert all(torch.equal(once[key], expected[key]) for key in once)
    for again in (
        lambda: model.switch_to_deploy("full"),
        lambda: model.switch_to_deploy(),
        lambda: model.backbone.switch_to_deploy("full"),
        lambda: reparameterize(nn.Sequential(model), level="full"),
    ):
        again()
        assert model.deploy_level == "full"
        twice = model.state_dict(keep_vars=True)
        assert list(twice) == list(once)
        assert all(twice[key] is once[key] for key in once)


def test_every_way_to_fold():
    x = torch.randn(1, 3, 16, 16)
    expected = small().switch_to_deploy("full")(x)
    assert torch.equal(reparameterize(small(), level="full")(x), expected)
    assert torch.equal(reparameterize(nn.Sequential(small()), level="full")(x), expected)
    model = small()
    assert torch.equal(reparameterize(model, inplace=False, level="full")(x), expected)
    assert model.deploy_level is None
    copied = copy.deepcopy(small().switch_to_deploy("full"))
    assert torch.equal(copied(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(copied))(x), expected)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not HAS_EXT, reason="without the extension the convolution is not one op")
def test_what_a_block_runs():
    """1x1 + bias, ReLU, one large kernel with bias and ReLU, 1x1 + bias, add: and nothing else that computes."""
    block = randomize(RepLKBlock(8, 12, 13, 5)).eval().reparameterize("full")
    x = torch.randn(1, 8, 10, 10)
    with torch.no_grad(), Calls() as calls:
        block(x)
    convolution = {"aten::convolution", "aten::mkldnn_convolution", "aten::_convolution"}
    names = ["conv" if name in convolution else name for name in calls.names]
    assert names == ["conv", "aten::relu", "replknet_ext::dwconv2d", "conv", "aten::add.Tensor"]


@pytest.mark.parametrize("form", [(RepLKBlock, (8, 12, 13, 5)), (ConvFFN, (8, 16))])
def test_one_block(form):
    kind, args = form
    block = randomize(kind(*args)).double().eval()
    x = torch.randn(2, 8, 10, 9, dtype=torch.float64)
    before = block(x)
    assert block.switch_to_deploy("full") is block
    assert norms(block) == []
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-12)
    assert kind(*args).reparameterize("merge") is not None  # and at "merge" what a converter expects


def test_a_norm_before_padding_is_never_folded():
    """The zeros of the padding lie behind the BatchNorm; folding it would shift the rim."""
    block = randomize(RepLKBlock(8, 8, 9, 5)).double().eval()
    block.pw1.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    x = torch.randn(1, 8, 10, 10, dtype=torch.float64)
    before = block(x)
    with pytest.raises(ValueError, match="pads"):
        block.reparameterize("full")
    assert torch.equal(block(x), before)  # and it is as it was
    assert not block.large_kernel.merged


def test_what_cannot_be_folded_leaves_the_model_as_it_was():
    for spoil, error, match in (
        (lambda m: setattr(m.stages[1].blocks[3].pw2, "bn", nn.GroupNorm(1, 16)), TypeError, "GroupNorm"),
        (
            lambda m: setattr(m.transitions[0][1], "bn", nn.BatchNorm2d(16, track_running_stats=False)),
            ValueError,
            "run",
        ),
        (lambda m: nn.utils.parametrizations.weight_norm(m.stem[2].conv), ValueError, "parametrized"),
        (lambda m: setattr(m.stages[1].blocks[2].large_kernel.small_conv, "bn", nn.Identity()), TypeError, "Identity"),
    ):
        model = small()
        spoil(model)
        keys = list(model.state_dict())
        for fold in (model.switch_to_deploy, lambda level, m=model: reparameterize(nn.Sequential(m), level=level)):
            with pytest.raises(error, match=match):
                fold("full")
            assert list(model.state_dict()) == keys
    with pytest.raises(ValueError, match='level must be one of "merge", "full"'):
        small().switch_to_deploy("all")
    with pytest.raises(ValueError, match="level"):
        reparameterize(small(), level="deploy")


def test_every_kind_of_batchnorm():
    """SyncBatchNorm (which the official code silently leaves), without affine parameters, another eps."""
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    model = small().double()
    before = model(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).switch_to_deploy("full")
    assert norms(synced) == []
    assert (synced(x) - before).abs().max() < 1e-12
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    model.stages[1].blocks[1].preffn_bn.weight = None
    model.stages[1].blocks[1].preffn_bn.bias = None
    changed = model(x)
    assert not torch.allclose(changed, before)
    assert (model.switch_to_deploy("full")(x) - changed).abs().max() < 1e-12


def test_features_are_honest():
    """After folding the last BatchNorm into the classifier nobody gets features without it by mistake."""
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    model = small().double()
    logits = model(x)
    model.switch_to_deploy("full")
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits, rtol=0, atol=1e-12)
    for features in (
        lambda: model.extract_feat(x),
        lambda: model.forward_head(model.forward_features(x), pre_logits=True),
        lambda: model.reset_classifier(5),
    ):
        with pytest.raises(RuntimeError, match=r"full.*num_classes=0"):
            features()
    model = small(num_classes=0).double()
    features = model(x)
    model.switch_to_deploy("full")
    assert norms(model) == ["norm"]
    torch.testing.assert_close(model(x), features, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.extract_feat(x)[0], features, rtol=0, atol=1e-12)
    model.reset_classifier(5)


def test_backbone_keeps_the_norms_of_its_maps():
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    for options in ({}, {"norm_intermediate_features": True}):
        model = small(out_indices=(0, 1), **options).double()
        before = model(x)
        model.switch_to_deploy("full")
        assert model.deploy_level == "full"
        assert norms(model) == (["stages.0.norm", "stages.1.norm"] if options else [])
        for ours, theirs in zip(model(x), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_another_head_keeps_the_last_norm():
    model = small().double()
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    before = model(x)
    torch.testing.assert_close(model.switch_to_deploy("full")(x), before, rtol=0, atol=1e-12)
    assert norms(model) == ["norm"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_keeps_dtype_layout_flags_and_random_state(dtype):
    model = small().to(dtype=dtype, memory_format=torch.channels_last)
    model.stem.requires_grad_(False)
    model.stages[0].blocks[1].train()
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "large_kernel" not in name}
    strides = {name: conv.weight.stride() for name, conv in convs.items()}
    state = torch.random.get_rng_state()
    model.switch_to_deploy("full")
    assert torch.equal(torch.random.get_rng_state(), state)
    modules = dict(model.named_modules())
    for name, conv in convs.items():
        assert modules[name] is conv  # the same object, so whoever holds it sees the folded one
        assert conv.weight.stride() == strides[name]
        assert conv.weight.requires_grad == conv.bias.requires_grad == (not name.startswith("stem."))
    for name, module in modules.items():  # what is new, too
        assert module.training == name.startswith("stages.0.blocks.1"), name
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(p.is_leaf for p in model.parameters())


def test_float32_is_folded_in_float64():
    """Every folded parameter is the float64 result rounded once, also where two BatchNorms go into one convolution."""
    wide = copy.deepcopy(small()).double().switch_to_deploy("full").state_dict()
    for key, value in small().switch_to_deploy("full").state_dict().items():
        assert torch.equal(value, wide[key].float()), key


def test_keeps_hooks():
    model = small()
    calls = []
    block = model.stages[0].blocks[0]
    for name in ("pw1", "pw1.conv", "large_kernel", "lk_nonlinear", "pw2", "drop_path"):
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model.head.register_forward_hook(lambda *_: calls.append("head"))
    x = torch.randn(1, 3, 16, 16)
    model(x)
    expected = calls.copy()
    calls.clear()
    model.switch_to_deploy("full")(x)
    assert calls == expected


def test_on_meta_and_in_inference_mode():
    with torch.device("meta"):
        model = RepLKNet(SMALL)
    model.switch_to_deploy("full")
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)
    model = small()
    with torch.inference_mode(), torch.device("meta"):  # a default device must not leak in
        model.switch_to_deploy("full")
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    model.train()(torch.randn(1, 3, 16, 16)).square().sum().backward()  # documented: it can be trained on
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("product", [False, True])
def test_compiles_exports_and_traces(channels_last, product, monkeypatch):
    """Whatever runs eagerly: graphs for other programs hold plain convolutions."""
    if product:
        monkeypatch.setattr(pointwise, "NCHW_GEMM_ON", ("cpu",))
    config = RepLKNetConfig([9], [1], [4], small_kernel=3, stem_strides=[2, 1])
    model = randomize(RepLKNet(config, num_classes=3)).eval().switch_to_deploy("full")
    x = torch.randn(2, 3, 12, 12)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    expected = model(x)
    exported = torch.export.export(model, (x,))
    for variant in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        exported.module(),
        torch.fx.symbolic_trace(model),
        torch.jit.script(model),
    ):
        assert relative_error(variant(x), expected) < 1e-5
    with Calls() as calls:
        model(x)
    assert sum("baddbmm" in name for name in calls.names) == (5 if product and not channels_last else 0)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert not any("linear" in target for target in targets[:-3])  # exporters find plain convolutions
    assert sum(target == "aten.conv2d.default" for target in targets) >= 6


def test_pointwise():
    """Equal to the convolution in every layout, and a matrix product on channels_last."""
    conv = nn.Conv2d(5, 7, 1)
    x = torch.randn(2, 5, 6, 4)
    plain = copy.deepcopy(conv)
    PointwiseConv2d.adopt(conv)
    assert type(conv) is PointwiseConv2d
    assert conv.state_dict().keys() == plain.state_dict().keys()
    for layout, operator in ((torch.contiguous_format, "conv"), (torch.channels_last, "mm")):
        arranged = x.contiguous(memory_format=layout).requires_grad_()
        with Calls() as calls:
            out = conv(arranged)
        assert any(operator in name for name in calls.names), calls.names
        torch.testing.assert_close(out, plain(x))
        assert out.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad(out.square().sum(), arranged)
        (wanted,) = torch.autograd.grad(plain(arranged).square().sum(), arranged)
        torch.testing.assert_close(grad, wanted)
    assert conv(x[0]).shape == (7, 6, 4)  # unbatched
    assert not pointwise.NCHW_GEMM_ON, "off by default"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x.contiguous(memory_format=torch.channels_last)).dtype == torch.bfloat16
    for other in (nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.Linear(2, 2)):
        kind = type(other)
        PointwiseConv2d.adopt(other)
        assert type(other) is kind


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_as_a_product_of_nchw_maps(bias, monkeypatch):
    """What `REPLKNET_EXT_NCHW_GEMM=1` does on a GPU: values, gradients and dtypes are those of the convolution."""
    monkeypatch.setattr(pointwise, "NCHW_GEMM_ON", ("cpu",))
    conv = nn.Conv2d(5, 7, 1, bias=bias).double()
    plain, x = copy.deepcopy(conv), torch.randn(3, 5, 6, 4).double().requires_grad_()
    PointwiseConv2d.adopt(conv)
    results = []
    for layer in (conv, plain):
        with Calls() as calls:
            out = layer(x)
        assert any(("baddbmm" if bias else "bmm") in name for name in calls.names) is (layer is conv), calls.names
        assert out.is_contiguous()
        first = torch.autograd.grad(out.square().sum(), (x, *layer.parameters()), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), (x, *layer.parameters()), materialize_grads=True)
        results.append((out, *first, *second))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    conv.float()
    image = x.detach().float()
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), plain.float()(image))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(image).dtype == torch.bfloat16
        torch.testing.assert_close(conv(image).float(), plain(image).float(), rtol=2e-2, atol=2e-2)
    assert conv(image[:0]).shape == (0, 7, 6, 4) and conv(image[0]).shape == (7, 6, 4)
    for odd in (image.to(memory_format=torch.channels_last), image[:, :, ::2], image.mT):
        torch.testing.assert_close(conv(odd), plain(odd))


def test_the_variable_asks_for_products_on_gpus(monkeypatch):
    for value, devices in (("1", ("cuda",)), ("0", ())):
        monkeypatch.setenv("REPLKNET_EXT_NCHW_GEMM", value)
        assert runpy.run_path(pointwise.__file__, run_name="replknet_ext.models.again")["NCHW_GEMM_ON"] == devices
