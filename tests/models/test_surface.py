"""What other libraries expect of a model: frozen stages, features, parameter groups, names of mmpretrain and timm."""

from __future__ import annotations

import re

import pytest
import torch
from models_common import SMALL, randomize
from torch import nn

from replknet_ext.models import ARCHS, DropPath, RepLKNet, RepLKNetConfig

THREE = RepLKNetConfig((7, 5, 3), (1, 2, 1), (4, 6, 8), small_kernel=3, stem_strides=(1, 1))


def frozen_parts(model: nn.Module) -> set[str]:
    """`stem`, `stages.0`, ...: the parts none of whose parameters learns; a mixture is an error."""
    parts: dict[str, set[bool]] = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[: 2 if name.startswith(("stages", "transitions")) else 1])
        parts.setdefault(part, set()).add(parameter.requires_grad)
    assert all(len(flags) == 1 for flags in parts.values()), parts
    return {part for part, flags in parts.items() if flags == {False}}


FROZEN = {
    -1: set(),
    0: {"stem"},
    1: {"stem", "stages.0"},
    2: {"stem", "stages.0", "transitions.0", "stages.1"},
    3: {"stem", "stages.0", "transitions.0", "stages.1", "transitions.1", "stages.2"},
}


@pytest.mark.parametrize("stages", FROZEN)
@pytest.mark.parametrize("how", ["constructor", "method"])
def test_frozen_stages(stages, how):
    model = RepLKNet(THREE, num_classes=5, drop_path_rate=0.5, frozen_stages=stages if how == "constructor" else -1)
    if how == "method":
        model.freeze_stages(stages)
    assert model.frozen_stages == stages
    assert frozen_parts(model) == FROZEN[stages]
    for _ in range(2):
        for name, module in model.named_modules():
            if isinstance(module, (nn.BatchNorm2d, DropPath)):
                assert module.training == (not name.startswith(tuple(FROZEN[stages]) or "?")), name
        assert model.eval().training is False
        assert model.train() is model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(4, 3, 12, 12)).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    parts = {".".join(key.split(".")[: 2 if key.startswith(("stages", "transitions")) else 1]) for key in same}
    assert FROZEN[stages] <= parts
    for key in before:
        if key.startswith(tuple(FROZEN[stages]) or "?"):
            assert key in same, key
        elif key.endswith("num_batches_tracked"):
            assert key not in same, key  # what is not frozen does move


def test_thawing_keeps_idle_stages_frozen():
    model = RepLKNet(THREE, out_indices=(1,), norm_intermediate_features=True, frozen_stages=3)
    model.freeze_stages(1)
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("stem", "stages.0", "transitions.1", "stages.2")) for name in learn)
    assert "stages.1.norm.weight" in learn
    assert "transitions.0.0.conv.weight" in learn
    assert model.stages[1].training
    assert not model.stages[0].training
    for bad, error in ((-2, ValueError), (4, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="frozen_stages"):
            model.freeze_stages(bad)


def test_frozen_stages_with_checkpointing_and_merging():
    model = randomize(RepLKNet(THREE, num_classes=5, frozen_stages=2, use_checkpoint=True))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.eval().switch_to_deploy("full")
    assert frozen_parts(model) == FROZEN[2]


def test_norm_eval():
    model = RepLKNet(SMALL, num_classes=5, norm_eval=True)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(2):
        assert model.training
        assert model.stages[0].blocks[0].training
        assert not any(norm.training for norm in norms)
        model.eval().train()
    assert all(norm.weight.requires_grad for norm in norms)
    assert all(m.training for m in RepLKNet(SMALL).modules())


def test_mmpretrains_names():
    """The lines of its page, on a model of ours."""
    model = RepLKNet(SMALL, num_classes=10).eval()
    x = torch.randn(2, 3, 16, 16)
    logits = model(x)
    (pooled,) = model.extract_feat(x)
    assert pooled.shape == (2, 16)
    assert torch.equal(model.head(pooled), logits)
    (features,) = model.extract_feat(x, stage="backbone")
    assert torch.equal(features, model.forward_features(x))
    assert model.backbone is model
    assert not any("backbone" in key for key in model.state_dict())
    model.backbone.switch_to_deploy()
    assert model.deploy_level == "merge"
    torch.testing.assert_close(model.extract_feat(x)[0], pooled)
    backbone = RepLKNet(SMALL, out_indices=(0, 1)).eval()
    assert [tuple(m.shape) for m in backbone.extract_feat(x)] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    with pytest.raises(ValueError, match='stage must be one of "backbone", "neck"'):
        model.extract_feat(x, stage="head")


def test_deploy_level_is_that_of_the_least_merged_part():
    model = RepLKNet(SMALL)
    assert model.deploy_level is None
    model.stages[1].blocks[0].reparameterize("full")
    assert model.deploy_level is None
    for block in (model.stages[0].blocks[0], model.stages[1].blocks[2]):
        block.reparameterize()
    assert model.deploy_level == "merge"
    assert RepLKNet(SMALL, small_kernel_merged=True).deploy_level == "merge"
    assert model.switch_to_deploy("full").deploy_level == "full"


def test_no_weight_decay():
    model = RepLKNet(SMALL)
    names = model.no_weight_decay()
    assert names == {
        name for name, _ in model.named_parameters() if name.endswith(".bias") or "bn" in name or "norm" in name
    }
    assert "head.bias" in names
    assert "head.weight" not in names


def grouped(names, matcher):
    """timm's rule: the first expression that matches gives (its place, its groups, its suffix); groups are sorted."""
    specs = [
        (re.compile(expression), place, suffix)
        for place, spec in enumerate(matcher.values())
        for expression, suffix in (spec if isinstance(spec, list) else [(spec, None)])
    ]
    ranks = {}
    for name in names:
        found = ((place, *match.groups(), *(suffix or ())) for e, place, suffix in specs if (match := e.match(name)))
        ranks[name] = tuple(map(float, next(found, ("inf",))))
    order = {rank: i for i, rank in enumerate(sorted(set(ranks.values())))}
    return {name: order[rank] for name, rank in ranks.items()}


def test_group_matcher():
    """Stem, then stage by stage and block by block, with the transitions in between."""
    with torch.device("meta"):
        model = RepLKNet(ARCHS["31B"])
    names = [name for name, _ in model.named_parameters()]
    groups = grouped(names, model.group_matcher())
    order = ["stem"]
    for stage, pairs in enumerate((2, 2, 18, 2)):
        order += [f"stages.{stage}.blocks.{block}" for block in range(2 * pairs)]
        order += [f"transitions.{stage}"] if stage < 3 else []
    order.append("(norm|head)")
    for name in names:
        (place,) = (i for i, part in enumerate(order) if re.match(rf"{part}\.", name))
        assert groups[name] == place, name
    coarse = grouped(names, model.group_matcher(coarse=True))
    assert coarse["stem.3.bn.bias"] == 0
    assert [coarse[f"stages.{s}.blocks.1.pw1.conv.weight"] for s in range(4)] == [1, 3, 5, 7]
    assert [coarse[f"transitions.{s}.1.conv.weight"] for s in range(3)] == [2, 4, 6]
    assert coarse["norm.weight"] == coarse["head.bias"] == 8
    with torch.device("meta"):
        backbone = RepLKNet(SMALL, out_indices=(0,), norm_intermediate_features=True)
    names = [name for name, _ in backbone.named_parameters()]
    groups = grouped(names, backbone.group_matcher())
    assert groups["stages.0.blocks.1.pw2.bn.bias"] < groups["stages.0.norm.bias"] < groups["transitions.0.0.bn.bias"]


def test_group_matcher_in_timm():
    manipulate = pytest.importorskip("timm.models._manipulate", exc_type=(ImportError, RuntimeError))
    with torch.device("meta"):
        model = RepLKNet(ARCHS["31B"])
    names = [name for name, _ in model.named_parameters()]
    for coarse in (False, True):
        matcher = model.group_matcher(coarse)
        timms = manipulate.group_with_matcher(((n, n) for n in names), matcher, reverse=True)
        assert timms == grouped(names, matcher)


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 1), (2,)])
@pytest.mark.parametrize("frozen", [-1, 0])
def test_every_parameter_that_learns_gets_a_gradient(out_indices, frozen):
    """Else DistributedDataParallel waits for ever, or has to be told of unused parameters."""
    model = RepLKNet(THREE, out_indices=out_indices, norm_intermediate_features=True, frozen_stages=frozen)
    model.freeze_stages(2)
    model.freeze_stages(frozen)  # thaws the parts that learn, and no others
    sum(out.sum() for out in model(torch.randn(2, 3, 32, 32))).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    used = [f"stages.{stage}." for stage in range(out_indices[-1] + 1)]
    assert all(any(name.startswith(stage) for name in learning) for stage in used)
