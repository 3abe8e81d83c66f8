"""Recipes: the authors' table, validation, and what a dry run says of each."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("accelerate")

from tools_common import cli
from typer.testing import CliRunner

from replknet_ext.cli.app import app
from replknet_ext.errors import UsageError
from replknet_ext.training import load_recipe, recipe_names, trainer
from replknet_ext.training.plan import make_plan
from replknet_ext.training.reading import changed, dump

#: model, classes, size, epochs, warm-up, global batch, lr, min lr, weight decay, drop path, mixes, layer decay, EMA
PUBLISHED = {
    "replknet_31b_in1k_224": ("replknet_31b", 1000, 224, 300, 10, 2048, 4e-3, 1e-6, 0.05, 0.5, True, None, True),
    "replknet_31b_in1k_384": ("replknet_31b", 1000, 384, 30, 1, 1024, 4e-4, 1e-6, 1e-8, 0.8, False, 0.7, True),
    "replknet_31b_in22k_224": ("replknet_31b", 21841, 224, 90, 5, 4096, 4e-3, 1e-6, 0.05, 0.1, True, None, False),
    "replknet_31l_in22k_224": ("replknet_31l", 21841, 224, 90, 5, 4096, 4e-3, 1e-6, 0.05, 0.1, True, None, False),
    "replknet_31b_in22k_in1k_224": ("replknet_31b", 1000, 224, 30, 1, 512, 4e-4, 1e-6, 1e-8, 0.2, False, 0.7, True),
    "replknet_31b_in22k_in1k_384": ("replknet_31b", 1000, 384, 30, 1, 512, 4e-4, 3e-4, 1e-8, 0.3, False, 0.7, True),
    "replknet_31l_in22k_in1k_384": ("replknet_31l", 1000, 384, 30, 1, 512, 4e-4, 3e-4, 1e-8, 0.3, False, 0.7, True),
    "replknet_xl_in1k_320": ("replknet_xl", 1000, 320, 30, 1, 512, 4e-4, 3e-4, 1e-8, 0.3, False, 0.7, True),
}


def test_the_published_runs_and_the_small_ones_are_there() -> None:
    assert set(recipe_names()) == {*PUBLISHED, "digits", "mnist5k"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_table(name: str) -> None:
    r = load_recipe(name)
    assert (
        r.model.name, r.model.num_classes, r.data.input_size, r.schedule.epochs, r.schedule.warmup_epochs,
        r.optimizer.global_batch, r.optimizer.lr, r.schedule.min_lr, r.optimizer.weight_decay, r.model.drop_path_rate,
        r.augment.mixes, r.optimizer.layer_decay, r.ema.enabled,
    ) == PUBLISHED[name]  # fmt: skip
    # What all of them share.
    assert (r.optimizer.name, r.optimizer.eps, r.optimizer.betas, r.optimizer.clip_grad) == ("adamw", 1e-8, None, None)
    a = r.augment
    assert (a.rand_augment, a.color_jitter, a.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.1)
    assert (a.erasing, a.erasing_mode, a.mix_switch, a.mix_prob) == (0.25, "pixel", 0.5, 1.0)
    assert a.mixes is False or (a.mixup, a.cutmix) == (0.8, 1.0)
    assert (r.schedule.warmup_lr, r.ema.decay, r.engine.amp) == (0.0, 0.9999, "no")
    assert r.evaluate is ("_in22k_224" not in name)
    assert (r.model.fine_tunes is not None) is (r.optimizer.layer_decay is not None)
    half = [0.5] * 3
    assert list(r.data.mean) == (half if "xl" in name else [0.485, 0.456, 0.406])
    assert list(r.data.std) == (half if "xl" in name else [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("augment.lr=1", "did you mean 'optimizer.lr'?"),
        ("schedule.epoch=1", "did you mean 'schedule.epochs'?"),
        ("optimizer.lr=fast", "optimizer.lr must be a valid number, unable to parse string as a number; got 'fast'"),
        ("optimizer.lr=-1", "optimizer.lr must be greater than 0; got -1"),
        ("engine.amp=fp8", "engine.amp must be 'no', 'bf16' or 'fp16'; got 'fp8'"),
        ("data.mean=[0.5]", "data.mean needs one value for each of model.in_chans=3"),
        ("schedule.epochs=5", "warmup_epochs must be less than epochs, 5; got 10"),
        ("optimizer.global_batch=3", "global_batch must be even"),
        ("optimizer.lr", "must be KEY=VALUE"),
        ("model.arch.layers=[1]", "arch belongs to name: replknet"),
        ("qqq.zzz=1", "unknown key 'qqq.zzz'"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(setting: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("replknet_31b_in1k_224", [setting])
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 240


def test_a_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(path)
    for text, says in [
        ("model: {nme: x}", "unknown key 'model.nme'; did you mean 'model.name'?"),
        ("- 1", "not a mapping"),
        ("a: [", "recipe .*mine.yaml: "),
        ("schedule: {epochs: many}", "schedule.epochs must be a valid integer"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=says):
            load_recipe(path)
    with pytest.raises(UsageError, match=r"unknown recipe 'digit'; did you mean 'digits'\?"):
        load_recipe("digit")


def test_settings_and_files_go_back_and_forth(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["optimizer.lr=1e-3", "model.weights=a.pth", "ema.enabled=no"])
    assert (recipe.optimizer.lr, recipe.model.weights, recipe.ema.enabled) == (1e-3, "a.pth", False)
    path = tmp_path / "again.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe
    assert changed(load_recipe("digits"), recipe) == [
        "model.weights: a.pth, not None", "optimizer.lr: 0.001, not 0.004", "ema.enabled: False, not True",
    ]  # fmt: skip


def test_the_learning_rate_is_scaled_only_when_asked() -> None:
    half = "optimizer.global_batch=1024"
    assert load_recipe("replknet_31b_in1k_224", [half]).optimizer.lr == 4e-3
    assert load_recipe("replknet_31b_in1k_224", [half, "optimizer.scale_lr=true"]).optimizer.lr == 2e-3


#: GPUs, images of each at a time: passes
@pytest.mark.parametrize(
    ("processes", "batch", "passes"), [(1, 64, 32), (8, 64, 4), (32, 64, 1), (6, 64, 6), (7, 2, 147)]
)
def test_the_global_batch_is_reached_on_any_number_of_processes(processes: int, batch: int, passes: int) -> None:
    from replknet_ext.training.order import Passes

    made = Passes(2048, processes, batch, 2)
    sizes = made.sizes()
    assert made.count == len(sizes) == passes
    assert sum(map(sum, sizes)) == 2048
    assert all(len(row) == processes and 0 < max(row) <= batch and min(row) % 2 == 0 for row in sizes)


@pytest.mark.parametrize("name", ["replknet_31b_in1k_384", *(
    pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED if name != "replknet_31b_in1k_384"
)])  # fmt: skip
def test_a_dry_run_needs_no_data(name: str) -> None:
    row = PUBLISHED[name]
    plan = cli.json("train", "--recipe", name, "--dry-run", "--set", "data.batch_size=2")
    images = 1281167 if row[1] == 1000 else 14197122
    assert plan["steps_per_epoch"] == images // row[5] and plan["steps"] == images // row[5] * row[3]
    assert len(plan["groups"]) == (28 if row[11] else 2)
    rates = dict(plan["learning_rates"])
    assert rates[0.0] == 0 and rates[float(row[4])] == pytest.approx(row[6])
    assert rates[max(rates)] == pytest.approx(row[7], rel=1e-3)
    memory = plan["memory"]
    weights = sum(group["values"] for group in plan["groups"]) * 4
    assert memory["optimizer"] == 2 * weights and memory["weights"] > weights
    assert memory["total"] == sum(memory[k] for k in ("weights", "gradients", "optimizer", "ema", "activations"))


def test_the_memory_estimate_counts_what_autograd_keeps() -> None:
    """Against the bytes of a real forward pass; recomputation keeps less, bf16 too."""
    import torch
    from training_common import tiny

    from replknet_ext.training.plan import _activations, _kept

    recipe = tiny("model.num_classes=10")
    from replknet_ext.training import build_network

    net = build_network(recipe.model)
    owned = {p.untyped_storage()._cdata for p in net.parameters()}
    with _kept(owned) as kept:
        loss = torch.nn.functional.cross_entropy(net(torch.zeros(32, 1, 8, 8)), torch.zeros(32, dtype=torch.int64))
    loss.backward()
    plan = make_plan(recipe).memory
    real = sum(kept.values()) * plan.images // 32
    assert plan.activations == pytest.approx(real, rel=0.05)
    again = make_plan(tiny("model.num_classes=10", "model.gradient_checkpointing=true")).memory
    assert again.activations < 0.6 * plan.activations
    assert _activations is not None


def test_dry_run_for_people_and_the_list() -> None:
    text = cli("train", "--recipe", "digits", "--dry-run").stdout
    for words in ("global_batch: 32", "steps per epoch", "Learning rate", "no_decay", "activations of 32 images"):
        assert words in text
    names = [row["name"] for row in cli.json("recipes")]
    assert names == recipe_names()
    assert "replknet_31b_in22k_in1k_384" in cli("recipes").stdout


def test_recipes_lose_nothing_off_a_terminal() -> None:
    lines = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": None}).stdout.splitlines()
    for row in cli.json("recipes"):
        assert any(row["name"] in line and row["about"] in line for line in lines)


def test_quiet_reaches_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(trainer, "train", lambda *arguments, quiet, **options: seen.append(quiet))
    for options in ((), ("--quiet",)):
        cli(*options, "train", "data", "--recipe", "digits")
    assert seen == [False, True]
