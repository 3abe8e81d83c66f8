"""Parameter groups against the authors' rule, and the schedule against its formula."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("pydantic")

from replknet_ext.models import RepLKNet, create_model
from replknet_ext.training import layer_id, load_recipe, num_layers, parameter_groups, recipe_names
from replknet_ext.training.networks import build_network
from replknet_ext.training.recipe import Schedule
from replknet_ext.training.schedule import make_schedule

BLOCKS = (2, 2, 18, 2)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("stem.0.conv.weight", 0),
        ("stem.3.bn.bias", 0),
        ("stages.0.blocks.0.prelkb_bn.weight", 1),
        ("stages.0.blocks.3.pw1.conv.weight", 1),
        ("transitions.0.0.conv.weight", 1),
        ("stages.1.blocks.3.pw2.bn.weight", 2),
        ("transitions.1.1.bn.weight", 2),
        ("stages.2.blocks.0.large_kernel.lkb_origin.conv.weight", 3),
        ("stages.2.blocks.3.pw1.conv.weight", 3),
        ("stages.2.blocks.4.large_kernel.small_conv.conv.weight", 4),
        ("stages.2.blocks.17.pw1.conv.weight", 7),
        ("stages.2.blocks.35.pw2.conv.weight", 11),
        ("transitions.2.0.conv.weight", 11),
        ("stages.3.blocks.0.pw1.conv.weight", 12),
        ("stages.3.blocks.3.pw1.conv.weight", 12),
        ("norm.weight", 13),
        ("head.bias", 13),
    ],
)
def test_layer_ids_of_the_authors(name: str, layer: int) -> None:
    assert layer_id(name, BLOCKS) == layer


def test_twelve_layers_and_other_depths() -> None:
    assert num_layers(BLOCKS) == 12
    assert num_layers((1, 1)) == 2 and num_layers((2, 2, 6, 2)) == 6
    with pytest.raises(ValueError, match=r"no parameter 'backbone\.x'"):
        layer_id("backbone.x", BLOCKS)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("replknet")])
def test_every_recipe_builds_its_groups(name: str) -> None:
    """The rule written a second time, parameter by parameter."""
    recipe = load_recipe(name)
    decay, rate = recipe.optimizer.weight_decay, recipe.optimizer.layer_decay
    with torch.device("meta"):
        net = build_network(recipe.model, weights=False)
    groups = parameter_groups(net, decay, rate)
    where = {n: group for group in groups for n in group["names"]}
    parameters = dict(net.named_parameters())
    assert where.keys() == parameters.keys() and sum(len(g["params"]) for g in groups) == len(parameters)
    for key, parameter in parameters.items():
        group = where[key]
        assert any(parameter is each for each in group["params"])
        assert group["weight_decay"] == (0.0 if parameter.ndim == 1 or key.endswith(".bias") else decay)
        part, *rest = key.split(".")
        if part == "stages":
            stage, block = int(rest[0]), int(rest[2])
            layer = {0: 1, 1: 2, 2: 3 + block // 4, 3: 12}[stage]
        else:
            layer = {"stem": 0, "transitions": {"0": 1, "1": 2, "2": 11}.get(rest[0], -1), "norm": 13, "head": 13}[part]
        assert group["lr_scale"] == pytest.approx(1.0 if rate is None else rate ** (13 - layer))
        if rate is not None:
            assert group["name"].startswith(f"layer_{layer}_")


def test_frozen_parameters_are_in_no_group_and_others_need_a_matcher() -> None:
    net = RepLKNet("31B", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), frozen_stages=1)
    names = [name for group in parameter_groups(net, 0.1, 0.5) for name in group["names"]]
    assert names and not any(name.startswith(("stem", "stages.0")) for name in names)
    with pytest.raises(TypeError, match="group_matcher"):
        parameter_groups(torch.nn.Linear(2, 2), 0.1, 0.5)
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model("convnext_atto")
    scales = [group["lr_scale"] for group in parameter_groups(net, 0.1, 0.5)]
    assert scales == sorted(scales) and scales[-1] == 1.0 and len(set(scales)) > 4


def test_the_schedule_step_by_step() -> None:
    """Warm-up from 0, cosine to min_lr, each group by its scale."""
    one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one], "lr_scale": 1.0}, {"params": [two], "lr_scale": 0.25}], lr=0.8)
    schedule = make_schedule(optimizer, Schedule(epochs=10, warmup_epochs=2, min_lr=0.01), steps_per_epoch=7)
    for step in range(70):
        schedule.step_update(step)
        if step < 14:
            wanted = 0.8 * step / 14
        else:
            wanted = 0.01 + 0.79 * 0.5 * (1 + math.cos(math.pi * (step - 14) / 56))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([wanted, wanted / 4])


def test_create_model_and_recipes_agree_about_names() -> None:
    for name in recipe_names():
        model = load_recipe(name).model
        if model.name != "replknet":
            with torch.device("meta"):
                assert create_model(model.name, num_classes=1)
