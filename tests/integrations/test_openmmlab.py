"""`replknet_ext.integrations.openmmlab`: the backbone for mmpretrain, mmsegmentation and mmdetection.

mmengine is not needed here: `engine` stands in for the part of its registry that a backbone meets.
"""

from __future__ import annotations

import sys
import types
from dataclasses import asdict

import pytest
import torch
from models_common import SMALL, randomize
from torch import Tensor, nn

from replknet_ext import DepthwiseConv2dLarge, replace_depthwise
from replknet_ext.integrations import openmmlab
from replknet_ext.integrations.openmmlab import MMRepLKNet, register
from replknet_ext.models import CheckpointError, RepLKNet

# mmpretrain's form of an architecture.
ARCH = {"large_kernel_sizes": [13, 9], "layers": [1, 2], "channels": [8, 16], "small_kernel": 5, "dw_ratio": 1.5}
IMAGES = torch.randn(2, 3, 40, 33, generator=torch.Generator().manual_seed(3))


class Registry:
    """mmengine.Registry, as far as scopes, parents and registering go."""

    def __init__(self, name: str, parent: Registry | None = None, scope: str | None = None) -> None:
        self.name, self.parent, self.scope = name, parent, scope
        self.children: dict[str, Registry] = {}
        self.module_dict: dict[str, type] = {}
        if parent is not None:
            assert scope not in parent.children, f"scope {scope} exists"
            parent.children[scope] = self

    def import_from_location(self) -> None:
        """Registers what the library itself has."""

    def get(self, key: str) -> type:
        scope, dot, name = key.rpartition(".")
        node: Registry | None = self
        if dot and scope != self.scope:
            while node.parent is not None:
                node = node.parent
            node = node.children[scope]
        while node is not None:
            if name in node.module_dict:
                return node.module_dict[name]
            node = node.parent
        raise KeyError(key)

    def build(self, cfg: dict) -> nn.Module:
        cfg = dict(cfg)
        return self.get(cfg.pop("type"))(**cfg)

    def register_module(self, name: str | None = None, force: bool = False, module: type | None = None) -> type:
        if not force and name in self.module_dict:
            raise KeyError(f"{name} is already registered in {self.name}")
        self.module_dict[name or module.__name__] = module
        return module


@pytest.fixture
def engine(monkeypatch) -> types.SimpleNamespace:
    """mmengine with the registries of mmpretrain, which has a RepLKNet of its own, and mmseg."""
    root = Registry("model", scope="mmengine")
    nodes = {"mmengine": root}
    for library in ("mmpretrain", "mmseg"):
        nodes[library] = Registry("model", parent=root, scope=library)

    def own() -> None:
        nodes["mmpretrain"].module_dict.setdefault("RepLKNet", nn.Identity)

    nodes["mmpretrain"].import_from_location = own
    for library, node in nodes.items():
        module = types.ModuleType(f"{library}.registry")
        module.MODELS, module.Registry = node, Registry
        monkeypatch.setitem(sys.modules, library, types.ModuleType(library))
        monkeypatch.setitem(sys.modules, f"{library}.registry", module)
    return types.SimpleNamespace(**nodes)


def official(**kwargs) -> RepLKNet:
    """A network with the stem of the published ones, which is all that OpenMMLab's has."""
    return randomize(RepLKNet({**asdict(SMALL), "stem_strides": (2, 2)}, **kwargs)).eval()


def test_every_library_finds_it_by_its_scope(engine):
    assert register() is MMRepLKNet
    register()  # as often as one likes
    for library in (engine.mmpretrain, engine.mmseg):
        backbone = library.build({"type": "replknet_ext.RepLKNet", "arch": ARCH, "out_indices": (0, 1)})
        assert type(backbone) is MMRepLKNet
    with pytest.raises(KeyError):
        engine.mmseg.get("RepLKNet")


def test_takes_the_place_of_mmpretrains_own(engine):
    with pytest.raises(KeyError, match="already registered"):
        register("mmpretrain", force=False)
    register("mmpretrain")
    engine.mmpretrain.import_from_location()
    assert engine.mmpretrain.get("RepLKNet") is MMRepLKNet
    register(engine.mmseg, name="FastRepLKNet")
    assert engine.mmseg.get("FastRepLKNet") is MMRepLKNet


def test_missing_libraries_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmengine", None)
    with pytest.raises(ImportError, match="this needs mmengine: pip install 'mmengine'"):
        register()
    monkeypatch.setitem(sys.modules, "mmseg", None)
    with pytest.raises(ImportError, match="this needs mmseg: pip install 'mmsegmentation'"):
        register("mmseg")


def counted(model: nn.Module, image: tuple[Tensor]) -> tuple[int, int]:
    """FLOPs and activations as mmengine's own counter, which needs no other part of it, has them."""
    from mmengine.analysis import complexity_analysis as counters

    return tuple(sum(count(model, image)[0].values()) for count in (counters.flop_count, counters.activation_count))


def test_flop_counter_of_mmengine():
    """The real one, where it is installed: as many as of the convolutions that were there before."""
    pytest.importorskip("mmengine.analysis")
    openmmlab._count_in_mmengine()
    model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.Conv2d(8, 8, (1, 5), groups=8, bias=False)).eval()
    image = torch.randn(1, 8, 12, 10)
    before = counted(model, (image,))
    replace_depthwise(model)
    assert counted(model, (image,)) == before


def test_flop_rule(monkeypatch):
    """The rule on the graph of a trace, which is what mmengine hands it."""
    counters = types.ModuleType("complexity_analysis")
    counters._DEFAULT_SUPPORTED_FLOP_OPS, counters._DEFAULT_SUPPORTED_ACT_OPS = {}, {}
    handles = types.ModuleType("jit_handles")
    handles.get_shape = lambda value: value.type().sizes()
    handles.generic_activation_jit = lambda name: name
    analysis = types.ModuleType("mmengine.analysis")
    analysis.complexity_analysis = counters
    for name, module in (("mmengine", types.ModuleType("mmengine")), ("mmengine.analysis", analysis)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mmengine.analysis.jit_handles", handles)
    openmmlab._count_in_mmengine()
    layer = DepthwiseConv2dLarge(8, (1, 5), padding=0)
    graph, _ = torch.jit._get_trace_graph(layer, torch.randn(2, 8, 12, 10))
    (node,) = (n for n in graph.nodes() if n.kind() in counters._DEFAULT_SUPPORTED_FLOP_OPS)
    assert node.kind() in counters._DEFAULT_SUPPORTED_ACT_OPS
    count = counters._DEFAULT_SUPPORTED_FLOP_OPS[node.kind()](list(node.inputs()), list(node.outputs()))
    assert count == {"conv": 2 * 8 * 12 * 6 * 5}


def test_maps_and_keys_are_mmpretrains():
    """A tuple of maps, each behind a BatchNorm of its own; the last one's is the classifier's `norm`."""
    net = official(num_classes=4)
    backbone = MMRepLKNet(ARCH, out_indices=(1,), drop_path_rate=0.0).eval()
    assert [key for key in backbone.state_dict() if key.startswith("stages.0.norm")] == []
    state = {
        k.replace("norm.", "stages.1.norm.") if k.startswith("norm.") else k: v for k, v in net.state_dict().items()
    }
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    maps = backbone(IMAGES)
    assert isinstance(maps, tuple)
    torch.testing.assert_close(maps[0], net.forward_features(IMAGES))


@pytest.mark.parametrize(
    ("norm", "out_indices", "normed"),
    [(None, (0,), [0]), (None, (0, 1), [0, 1]), (True, (0,), [0, 1]), (False, (0, 1), [])],
)
def test_norm_of_the_maps_is_honoured(norm, out_indices, normed):
    backbone = MMRepLKNet(ARCH, out_indices=out_indices, norm_intermediate_features=norm).eval()
    assert [i for i, stage in enumerate(backbone.stages) if isinstance(stage.norm, nn.BatchNorm2d)] == normed
    for index, map_ in zip(out_indices, backbone(IMAGES), strict=True):
        assert map_.shape == (2, [8, 16][index], [10, 5][index], [9, 5][index])
    if norm is None and out_indices == (0,):
        nn.init.zeros_(backbone.stages[0].norm.weight)
        assert backbone(IMAGES)[0].abs().max() == 0


def test_init_cfg_loads_weights_of_any_format(tmp_path):
    net = official(num_classes=4)
    torch.save({"model": net.state_dict()}, tmp_path / "official.pth")
    mm = {f"backbone.{k}" if not k.startswith("head.") else f"head.fc.{k[5:]}": v for k, v in net.state_dict().items()}
    mm = {k.replace("backbone.norm.", "backbone.stages.1.norm."): v for k, v in mm.items()}
    torch.save({"state_dict": mm, "meta": {}}, tmp_path / "mm.pth")
    torch.save({"state_dict": {f"student.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "other.pth")
    expected = net.forward_features(IMAGES)
    configs = [
        {"pretrained": str(tmp_path / "official.pth")},
        {"init_cfg": {"type": "Pretrained", "checkpoint": str(tmp_path / "mm.pth")}},
        {"init_cfg": [{"type": "Pretrained", "checkpoint": str(tmp_path / "mm.pth"), "prefix": "backbone."}]},
        {"init_cfg": {"type": "Pretrained", "checkpoint": str(tmp_path / "other.pth"), "prefix": "student"}},
        {"pretrained": (tmp_path / "official.pth").as_uri()},
    ]
    for config in configs:
        backbone = MMRepLKNet(ARCH, out_indices=(1,), **config)
        assert not backbone.is_init
        backbone.init_weights()
        assert backbone.is_init
        torch.testing.assert_close(backbone.eval()(IMAGES)[0], expected)
    nn.init.zeros_(backbone.stem[0].conv.weight)
    backbone.init_weights()  # only once: a second call would undo what was trained
    assert backbone.stem[0].conv.weight.abs().max() == 0

    dense = MMRepLKNet(ARCH, out_indices=(0, 1), pretrained=str(tmp_path / "official.pth"))
    with pytest.warns(UserWarning, match=r"lacks stages\.0\.norm\.weight, .*: freshly initialised"):
        dense.init_weights()
    torch.testing.assert_close(dense.eval()(IMAGES)[1], expected)


def test_wrong_weights_are_refused(tmp_path):
    path, odd = str(tmp_path / "official.pth"), str(tmp_path / "odd.pth")
    torch.save({0: torch.zeros(1), "a": torch.zeros(1)}, odd)
    state = official(num_classes=4).state_dict()
    torch.save(state, path)
    for config, message in (
        ({"arch": {**ARCH, "layers": [1, 1]}, "pretrained": path}, "layers"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": path, "prefix": "encoder."}}, "nothing under the prefix"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": odd, "prefix": "encoder."}}, "its entries are a$"),
    ):
        backbone = MMRepLKNet(
            **{"arch": ARCH, "out_indices": (1,), "pretrained": None if "init_cfg" in config else path, **config}
        )
        with pytest.raises(CheckpointError, match=message):
            backbone.init_weights()
    del state["stem.1.conv.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"does not fit the backbone: stem\.1\.conv\.weight"):
        MMRepLKNet(ARCH, out_indices=(1,), pretrained=path).init_weights()


def test_other_initialisers_go_to_mmengine(engine, monkeypatch):
    seen = []
    model = types.ModuleType("mmengine.model")
    model.initialize = lambda module, configs: seen.append((module, configs))
    monkeypatch.setitem(sys.modules, "mmengine.model", model)
    backbone = MMRepLKNet(ARCH, out_indices=(1,), init_cfg=[{"type": "Kaiming", "layer": ["Conv2d"]}])
    backbone.init_weights()
    backbone.init_weights()
    assert seen == [(backbone, [{"type": "Kaiming", "layer": ["Conv2d"]}])]


def test_training_arguments():
    backbone = MMRepLKNet(
        ARCH,
        in_channels=4,
        out_indices=(0, 1),
        frozen_stages=1,
        norm_cfg={"type": "SyncBN", "eps": 1e-3, "momentum": 0.05, "requires_grad": True},
        with_cp=True,
        norm_eval=True,
        drop_path_rate=0.2,
    )
    assert backbone.train() is backbone  # mmpretrain's returns None
    assert backbone.eval() is backbone
    backbone.train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {(type(m), m.eps, m.momentum, m.training) for m in norms} == {(nn.SyncBatchNorm, 1e-3, 0.05, False)}
    assert not any(p.requires_grad for p in (*backbone.stem.parameters(), *backbone.stages[0].parameters()))
    assert all(p.requires_grad for p in backbone.stages[1].parameters())
    assert backbone.use_checkpoint
    assert backbone.stem[0].conv.in_channels == 4
    assert backbone.stages[1].blocks[-1].drop_path.rate == 0.2

    frozen = MMRepLKNet(ARCH, out_indices=(1,), norm_cfg={"type": "BN", "requires_grad": False})
    assert not any(p.requires_grad for m in frozen.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())


@pytest.mark.parametrize("keyword", ["deploy", "small_kernel_merged"])
def test_merged_form_by_argument_and_by_method(keyword):
    backbone = randomize(MMRepLKNet(ARCH, out_indices=(1,), drop_path_rate=0.0)).eval()
    before = backbone(IMAGES)
    backbone.switch_to_deploy()
    torch.testing.assert_close(backbone(IMAGES), before, rtol=1e-4, atol=1e-5)
    built = MMRepLKNet(ARCH, out_indices=(1,), **{keyword: True})
    assert list(built.state_dict()) == list(backbone.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (2, 1)}, r"strides must be \(2, 2\), RepLKNet's own; got \(2, 1\)"),
        ({"dilations": (1, 2)}, r"dilations must be \(1, 1\)"),
        ({"conv_cfg": {"type": "DCNv2"}}, "conv_cfg must be of type Conv2d or Conv; got 'DCNv2'"),
        ({"act_cfg": {"type": "GELU"}}, "act_cfg must be of type ReLU; got 'GELU'"),
        ({"norm_cfg": {"type": "GN", "num_groups": 4}}, "norm_cfg must be of type BN or BN2d or SyncBN; got 'GN'"),
        ({"norm_cfg": {"type": "BN", "affine": False}}, "norm_cfg has settings that RepLKNet cannot follow: affine"),
        ({"out_indices": (5,)}, "out_indices must name stages from 0 to 1"),
        ({"frozen_stages": 3}, "frozen_stages must be at most 2"),
        ({"pretrained": "a", "init_cfg": {"type": "Pretrained"}}, "pretrained and init_cfg exclude each other"),
    ],
)
def test_what_the_network_cannot_follow_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MMRepLKNet(**{"arch": ARCH, "out_indices": (1,), **change})


def test_arguments_that_say_the_default_are_accepted():
    MMRepLKNet(
        ARCH,
        out_indices=(1,),
        strides=(2, 2),
        dilations=[1, 1],
        conv_cfg=None,
        act_cfg={"type": "ReLU", "inplace": True},
    )
    assert openmmlab.NAME == "RepLKNet"  # what configs say


@pytest.mark.parametrize("stages", [-1, 0, 1, 2])
def test_frozen_stages_are_those_of_mmpretrain(stages):
    """Its `_freeze_stages` takes the stem and the stages; the transitions between them learn."""
    model = MMRepLKNet(ARCH, out_indices=(0, 1), frozen_stages=stages).train()
    parts = ["stem."] * (stages >= 0) + [f"stages.{stage}." for stage in range(stages)]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(parts))), name
    assert model.transitions.training
    assert all(module.training for module in model.transitions.modules())
