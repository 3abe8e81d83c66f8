"""RepLKNet against the published facts: parameter counts, checkpoint keys and their order, topology, options."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from models_common import SMALL, randomize, relative_error
from torch import nn

from replknet_ext import HAS_EXT, DepthwiseConv2dLarge
from replknet_ext.models import ARCHS, DropPath, RepLKNet, RepLKNetConfig, create_model, register_model
from replknet_ext.models.registry import _MODELS, builders


def small(**options) -> RepLKNet:
    torch.manual_seed(0)
    options.setdefault("num_classes", 10)
    if options.get("out_indices") is not None:
        options.pop("num_classes")
    return RepLKNet(SMALL, **options)


# ---------------------------------------------------------------------------------------------------------------------
# What a checkpoint looks like, written down from the released files, not from the code.

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn_keys(path):
    return [f"{path}.{name}" for name in BN]


def conv_bn_keys(path):
    return [f"{path}.conv.weight", *bn_keys(f"{path}.bn")]


def checkpoint_keys(layers, *, has_small=True, merged=False, norms=False, classifier=True):
    keys = [key for i in range(4) for key in conv_bn_keys(f"stem.{i}")]
    for stage, pairs in enumerate(layers):
        for pair in range(pairs):
            block = f"stages.{stage}.blocks.{2 * pair}"
            keys += conv_bn_keys(f"{block}.pw1") + conv_bn_keys(f"{block}.pw2")
            if merged:
                keys += [f"{block}.large_kernel.lkb_reparam.weight", f"{block}.large_kernel.lkb_reparam.bias"]
            else:
                keys += conv_bn_keys(f"{block}.large_kernel.lkb_origin")
                keys += conv_bn_keys(f"{block}.large_kernel.small_conv") if has_small else []
            keys += bn_keys(f"{block}.prelkb_bn")
            ffn = f"stages.{stage}.blocks.{2 * pair + 1}"
            keys += bn_keys(f"{ffn}.preffn_bn") + conv_bn_keys(f"{ffn}.pw1") + conv_bn_keys(f"{ffn}.pw2")
        keys += bn_keys(f"stages.{stage}.norm") if norms else []
    for transition in range(len(layers) - 1):
        keys += conv_bn_keys(f"transitions.{transition}.0") + conv_bn_keys(f"transitions.{transition}.1")
    return keys + ([*bn_keys("norm"), "head.weight", "head.bias"] if classifier else [])


PUBLISHED = [  # name, parameters and state dict entries at train time, the same when merged
    ("replknet_31b", 79_864_168, 1171, 79_527_272, 931),
    ("replknet_31l", 172_671_016, 1171, 172_165_672, 931),
    ("replknet_xl", 335_435_752, 1027, 335_399_656, 931),
    ("replknet_13", 74_156_392, 1171, 73_819_496, 931),
]


@pytest.mark.parametrize(("name", "train", "train_entries", "merged", "merged_entries"), PUBLISHED)
def test_published_counts_and_keys(name, train, train_entries, merged, merged_entries):
    def count(model):
        return sum(p.numel() for p in model.parameters())

    has_small = name != "replknet_xl"
    with torch.device("meta"):
        model = create_model(name)
        built_merged = create_model(name, small_kernel_merged=True)
    keys = checkpoint_keys((2, 2, 18, 2), has_small=has_small)
    assert count(model) == train
    assert list(model.state_dict()) == keys
    assert len(keys) == train_entries

    model.reparameterize()
    keys = checkpoint_keys((2, 2, 18, 2), has_small=has_small, merged=True)
    assert len(keys) == merged_entries
    for form in (model, built_merged):
        assert count(form) == merged
        assert list(form.state_dict()) == keys
        assert all(p.is_meta for p in form.parameters())
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in built_merged.state_dict().items()}


def test_published_shapes():
    """Spot checks of shapes that no parameter count can tell apart."""
    with torch.device("meta"):
        base, extra = RepLKNet("31B"), RepLKNet("XL")
    shapes = {key: tuple(value.shape) for key, value in base.state_dict().items()}
    for stage, (channels, kernel) in enumerate(zip((128, 256, 512, 1024), (31, 29, 27, 13), strict=True)):
        block = f"stages.{stage}.blocks.0.large_kernel"
        assert shapes[f"{block}.lkb_origin.conv.weight"] == (channels, 1, kernel, kernel)
        assert shapes[f"{block}.small_conv.conv.weight"] == (channels, 1, 5, 5)
        assert shapes[f"stages.{stage}.blocks.1.pw1.conv.weight"] == (4 * channels, channels, 1, 1)
    assert shapes["transitions.2.0.conv.weight"] == (1024, 512, 1, 1)
    assert shapes["transitions.2.1.conv.weight"] == (1024, 1, 3, 3)
    assert shapes["head.weight"] == (1000, 1024)
    shapes = {key: tuple(value.shape) for key, value in extra.state_dict().items()}
    assert shapes["stages.2.blocks.4.large_kernel.lkb_origin.conv.weight"] == (1536, 1, 27, 27)
    assert shapes["stages.2.blocks.4.pw1.conv.weight"] == (1536, 1024, 1, 1)


@pytest.mark.parametrize("norms", [False, True])
def test_backbone_keys(norms):
    model = small(out_indices=(1,), norm_intermediate_features=norms)
    assert list(model.state_dict()) == checkpoint_keys((1, 2), norms=norms, classifier=False)


# ---------------------------------------------------------------------------------------------------------------------
# Topology: the network once more in plain functions over its state dict.


class Plain:
    """RepLKNet at train-time structure in eval mode, read from the paper: conv2d and arithmetic, no modules."""

    def __init__(self, state, config):
        self.state, self.config = {key: value.double() for key, value in state.items()}, config

    def bn(self, x, path):
        weight, bias, mean, var = (self.state[f"{path}.{name}"].reshape(1, -1, 1, 1) for name in BN[:4])
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv_bn(self, x, path, stride=1):
        weight = self.state[f"{path}.conv.weight"]
        groups = x.shape[1] // weight.shape[1]
        return self.bn(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups), f"{path}.bn")

    def maps(self, x):
        for i, stride in enumerate((self.config.stem_strides[0], 1, 1, self.config.stem_strides[1])):
            x = F.relu(self.conv_bn(x, f"stem.{i}", stride))
        out = []
        for stage, pairs in enumerate(self.config.layers):
            if stage:
                x = F.relu(self.conv_bn(x, f"transitions.{stage - 1}.0"))
                x = F.relu(self.conv_bn(x, f"transitions.{stage - 1}.1", 2))
            for pair in range(pairs):
                path = f"stages.{stage}.blocks.{2 * pair}"
                y = F.relu(self.conv_bn(self.bn(x, f"{path}.prelkb_bn"), f"{path}.pw1"))
                z = self.conv_bn(y, f"{path}.large_kernel.lkb_origin")
                if self.config.small_kernel:
                    z = z + self.conv_bn(y, f"{path}.large_kernel.small_conv")
                x = x + self.conv_bn(F.relu(z), f"{path}.pw2")
                path = f"stages.{stage}.blocks.{2 * pair + 1}"
                y = F.gelu(self.conv_bn(self.bn(x, f"{path}.preffn_bn"), f"{path}.pw1"))
                x = x + self.conv_bn(y, f"{path}.pw2")
            out.append(x)
        return out

    def logits(self, x):
        x = self.bn(self.maps(x)[-1], "norm").mean((2, 3))
        return x @ self.state["head.weight"].T + self.state["head.bias"]


@pytest.mark.parametrize("config", [SMALL, RepLKNetConfig([9], [1], [6], small_kernel=None, stem_strides=[1, 1])])
def test_topology(config):
    model = randomize(RepLKNet(config, num_classes=7)).eval()
    x = torch.randn(2, 3, 21, 18)
    plain = Plain(model.state_dict(), config)
    expected = plain.logits(x.double())
    assert expected.std() > 0.1
    assert relative_error(model(x), expected) < 1e-5
    torch.testing.assert_close(model.double()(x.double()), expected, rtol=1e-11, atol=1e-11)

    backbone = RepLKNet(config, out_indices=range(len(config.layers))).double().eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    maps = backbone(x.double())
    assert isinstance(maps, tuple)
    for ours, theirs in zip(maps, plain.maps(x.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_depthwise_layers_run_on_our_kernels():
    for name, module in small().named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert isinstance(module, DepthwiseConv2dLarge) == (module.stride == (1, 1)), name


def test_published_size_runs():
    model = randomize(RepLKNet("31B")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        merged = model.reparameterize()(x)
    assert expected.shape == (1, 1000)
    assert relative_error(merged, expected) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 15), (1, 40)])
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_any_number_of_stages_and_input_size(stages, size):
    config = RepLKNetConfig([7] * stages, [1] * stages, [4 + s for s in range(stages)], stem_strides=(1, 1))
    maps = RepLKNet(config, out_indices=range(stages)).eval()(torch.randn(2, 3, *size))
    for stage, out in enumerate(maps):
        assert config.reductions[stage] == 2**stage
        assert out.shape == (2, 4 + stage, *(-(-s // 2**stage) for s in size))


def test_out_indices():
    model = randomize(small(out_indices=(0, 1))).eval()
    x = torch.randn(1, 3, 24, 24)
    both = model(x)
    assert [m.shape[1:] for m in both] == [(8, 12, 12), (16, 6, 6)]
    calls = []
    for indices, picked in [((0,), both[:1]), ((1,), both[1:]), ((-1, 0), both)]:
        part = small(out_indices=indices).eval()
        part.load_state_dict(model.state_dict())
        part.stages[1].register_forward_hook(lambda *_, at=indices: calls.append(at))
        for ours, theirs in zip(part(x), picked, strict=True):
            assert torch.equal(ours, theirs)
    assert calls == [(1,), (-1, 0)]  # a stage that nobody asked for does not run
    with pytest.raises(ValueError, match="backbone"):
        model.get_classifier()


def test_norm_intermediate_features():
    model = randomize(small(out_indices=(1,), norm_intermediate_features=True)).eval()
    raw = small(out_indices=(1,)).eval()
    raw.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x)[0], model.stages[1].norm(raw(x)[0]))
    assert not torch.allclose(model(x)[0], raw(x)[0])
    model.train()
    model(x)[0].sum().backward()
    for name, parameter in model.named_parameters():  # DDP waits for gradients of what requires them
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_classifier_surface():
    model = small(num_classes=10).eval()
    x = torch.randn(2, 3, 16, 16)
    assert model(x).shape == (2, 10)
    features = model.forward_features(x)
    assert features.shape == (2, 16, 4, 4)
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    assert model.get_classifier() is model.head
    model.double().reset_classifier(21841)
    assert model.head.weight.dtype == torch.float64
    assert not model.head.training
    assert model(x.double()).shape == (2, 21841)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x.double()).shape == (2, 16)
    assert small(num_classes=0).num_classes == 0
    assert small(num_classes=None).head.out_features == 1000
    assert small(in_chans=1)(torch.randn(2, 1, 16, 16)).shape == (2, 10)


def test_modes_return_the_model():
    model = small()
    assert model.eval() is model
    assert model.train() is model
    assert model.reparameterize() is model


def test_drop_path():
    assert not any(isinstance(m, DropPath) for m in small().modules())
    assert all(isinstance(b.drop_path, nn.Identity) for s in small().stages for b in s.blocks)
    model = small(drop_path_rate=0.4)
    rates = [getattr(b.drop_path, "rate", 0) for s in model.stages for b in s.blocks]
    assert rates == [0, 0, 0.2, 0.2, 0.4, 0.4]  # one rate a pair, rising linearly

    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3, 1)
    torch.manual_seed(0)
    out = drop(x)
    kept = out.amax((1, 2, 3)) > 0
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.75))  # whole images, scaled
    assert out[~kept].abs().sum() == 0
    assert abs(kept.float().mean().item() - 0.75) < 0.03
    assert drop.eval()(x) is x


def test_trains_a_step_and_gradients_flow():
    model = small(drop_path_rate=0.05)
    x, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 5, 9])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradients_match_float64():
    """Train-mode gradients of every parameter against the same network on torch's own convolutions in float64."""
    model = small().double()
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, DepthwiseConv2dLarge):
            module.backend = "torch"
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for net in (model, reference):
        net(x).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("how", ["constructor", "method"])
def test_checkpointing_changes_nothing(how):
    """Same outputs, gradients and running statistics, with drop path, and fewer activations kept."""
    plain = small(drop_path_rate=0.3)
    saving = small(drop_path_rate=0.3, use_checkpoint=how == "constructor")
    if how == "method":
        saving.set_grad_checkpointing()
    x = torch.randn(3, 3, 16, 16)
    outputs, kept = [], []
    for model in (plain, saving):
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(x)
        kept.append(size)
        out.square().sum().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    assert kept[1] < 0.5 * kept[0]
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert saving.stem[1].bn.num_batches_tracked == 1


def test_checkpointing_is_for_training_only(monkeypatch):
    import replknet_ext.models.blocks as blocks

    def never(*args, **kwargs):
        raise AssertionError("checkpoint was called")

    monkeypatch.setattr(blocks, "checkpoint", never)
    model = small(use_checkpoint=True)
    x = torch.randn(2, 3, 16, 16)
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    with pytest.raises(AssertionError, match="checkpoint"):
        model(x)


def test_autocast_and_channels_last():
    model = small().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert model.eval().forward_features(x).is_contiguous(memory_format=torch.channels_last)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for form in (model, model.reparameterize()):
            assert relative_error(form(x), exact) < 0.05


@pytest.mark.parametrize("merged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles_exports_and_traces(merged):
    config = RepLKNetConfig([9], [1], [4], small_kernel=3, stem_strides=[2, 1])
    model = randomize(RepLKNet(config, num_classes=3)).eval()
    if merged:
        model.reparameterize()
    x = torch.randn(2, 3, 12, 12)
    expected = model(x)
    exported = torch.export.export(model, (x,))
    for variant in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        exported.module(),
        torch.fx.symbolic_trace(model),
    ):
        assert relative_error(variant(x), expected) < 1e-5
    nodes = [str(node.target) for node in exported.graph.nodes]
    if HAS_EXT:  # two of them in the stem
        assert sum("replknet_ext.dwconv2d" in node for node in nodes) == (3 if merged else 4)


def test_no_output_and_no_global_state(capsys):
    RepLKNet("31B", small_kernel=None, layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), num_classes=2)
    nn.SyncBatchNorm.convert_sync_batchnorm(small())
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in small().modules())
    assert capsys.readouterr() == ("", "")


def test_copy_and_pickle():
    model = randomize(small()).eval()
    x = torch.randn(1, 3, 16, 16)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.config == SMALL


# ---------------------------------------------------------------------------------------------------------------------
# Configuration and names


def test_ways_to_name_an_architecture():
    fields = dict(large_kernel_sizes=[13, 9], layers=[1, 2], channels=[8, 16], dw_ratio=1.5, stem_strides=[2, 1])
    for model in (RepLKNet(SMALL), RepLKNet(fields), RepLKNet(**fields), RepLKNet(arch=fields)):
        assert model.config == SMALL
    with torch.device("meta"):
        assert RepLKNet("31b").config is not None
        assert RepLKNet("31B").config == ARCHS["31B"]
        assert RepLKNet("31B", small_kernel=None).config.small_kernel is None
    assert ARCHS["31B"].small_kernel == 5
    with pytest.raises(TypeError):
        ARCHS["31B"] = SMALL


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({}, TypeError, "arch"),
        ({"arch": "31C"}, ValueError, "31C"),
        ({"arch": 31}, TypeError, "int"),
        ({"arch": "31B", "num_classes": 10, "out_indices": (0,)}, ValueError, "out_indices"),
        ({"arch": "31B", "norm_intermediate_features": True}, ValueError, "norm_intermediate_features"),
        ({"arch": "31B", "out_indices": (4,)}, ValueError, "out_indices"),
        ({"arch": "31B", "out_indices": ()}, ValueError, "out_indices"),
        ({"arch": "31B", "num_classes": -1}, ValueError, "num_classes"),
        ({"arch": "31B", "drop_path_rate": 1.0}, ValueError, "drop_path_rate"),
        ({"arch": "31B", "use_sync_bn": True}, TypeError, "use_sync_bn"),
        ({"arch": {"kernels": (3,)}}, TypeError, "kernels"),
        ({"layers": (1,), "channels": (8,)}, TypeError, "large_kernel_sizes"),
        ({"arch": "31B", "layers": (1, 1)}, ValueError, "one entry for each stage"),
        ({"arch": "31B", "large_kernel_sizes": (30, 29, 27, 13)}, ValueError, "odd"),
        ({"arch": "31B", "small_kernel": 15}, ValueError, "small_kernel"),
        ({"arch": "31B", "small_kernel": 4}, ValueError, "small_kernel"),
        ({"arch": "31B", "channels": (8, 8, 8, 0)}, ValueError, "channels"),
        ({"arch": "31B", "channels": 8}, ValueError, "channels"),
        ({"arch": "31B", "stem_strides": (2,)}, ValueError, "stem_strides"),
        ({"arch": "31B", "dw_ratio": 0}, ValueError, "dw_ratio"),
    ],
)
def test_bad_configurations_are_named(options, error, named):
    with torch.device("meta"), pytest.raises(error, match=named):
        RepLKNet(**options)


def test_registry(monkeypatch):
    assert list(builders()) == ["replknet_13", "replknet_31b", "replknet_31l", "replknet_xl"]
    with pytest.raises(ValueError, match="replknet_31b"):
        create_model("RepLKNet-31-B")
    with pytest.raises(ValueError, match="known are replknet_13"):
        create_model("vit")
    with pytest.raises(TypeError, match="int"):
        create_model(31)
    with torch.device("meta"), pytest.raises(TypeError, match="colour"):
        create_model("replknet_31b", colour="red")

    monkeypatch.setattr("replknet_ext.models.registry._MODELS", dict(_MODELS))

    @register_model
    def replknet_mine(**kwargs):
        return RepLKNet(SMALL, **kwargs)

    assert create_model("replknet_mine", num_classes=3).head.out_features == 3

    def replknet_31b():
        return None

    with pytest.raises(ValueError, match="already registered"):
        register_model(replknet_31b)
