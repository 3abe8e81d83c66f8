"""Checkpoints of every format in the wild, written here as other programs write them, load and build models."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from checkpoint_common import SMALL, images, in_mmpretrain, merged, prefixed, small
from models_common import relative_error

from replknet_ext.models import (
    ARCHS,
    CheckpointError,
    RepLKNet,
    load_checkpoint,
    model_from_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from replknet_ext.models.checkpoint import parse_state
from replknet_ext.models.keys import canonical, infer_config, to_mmpretrain


@pytest.fixture
def x() -> torch.Tensor:
    return images()


FORMATS = {
    "official": lambda s: s,
    "official trainer": lambda s: {"model": s, "optimizer": {}, "epoch": 3, "scaler": {}, "args": None},
    "official DDP": lambda s: {"model": prefixed(s, "module.")},
    "module key": lambda s: {"module": s},
    "only averaged": lambda s: {"model_ema": {**prefixed(s, "module."), "n_averaged": torch.tensor(7)}},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 3},
    "a part of something": lambda s: {**prefixed(s, "student."), "criterion.weight": torch.zeros(2)},
    "wrapped twice": lambda s: {"model": {"state_dict": prefixed(prefixed(s, "model."), "module.")}},
    "ordered": OrderedDict,
    "mmpretrain": lambda s: {"state_dict": in_mmpretrain(s), "meta": {"epoch": 1}},
    "mmpretrain converter": in_mmpretrain,
    "mmpretrain DDP": lambda s: {"state_dict": prefixed(in_mmpretrain(s), "module.")},
    "a network with a backbone": lambda s: {
        "state_dict": {**prefixed(s, "backbone."), "decode_head.conv_seg.weight": torch.zeros(2)}
    },
}


@pytest.mark.parametrize("form", ["train", "merged"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format(trained, x, tmp_path, name, form):
    model = trained if form == "train" else merged(trained)
    torch.save(FORMATS[name](model.state_dict()), tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert checkpoint.form == form
    assert checkpoint.style == ("mmpretrain" if "mmpretrain" in name or "backbone" in name else "official")
    assert checkpoint.head
    assert checkpoint.state.keys() == model.state_dict().keys()

    fresh = RepLKNet(SMALL, num_classes=10, small_kernel_merged=form == "merged").eval()
    report = load_checkpoint(fresh, tmp_path / "a.pth")
    assert (report.missing, report.unexpected, report.merged) == ((), (), "")
    assert torch.equal(fresh(x), model(x))
    assert report.ignored == tuple(checkpoint.meta["ignored"])
    extra = {
        "only averaged": ("n_averaged",),
        "a network with a backbone": ("decode_head.conv_seg.weight",),
        "a part of something": ("criterion.weight",),
    }
    assert report.ignored == extra.get(name, ())

    again = model_from_checkpoint(tmp_path / "a.pth", stem_strides=(2, 1)).eval()
    assert torch.equal(again(x), model(x))
    # What torch.load returned can be given as it is.
    fresh = RepLKNet(SMALL, num_classes=10, small_kernel_merged=form == "merged").eval()
    load_checkpoint(fresh, FORMATS[name](model.state_dict()))
    assert torch.equal(fresh(x), model(x))


def test_full_size_keys():
    """Counts of entries of the released architectures, there and back, without a byte of weights."""
    for arch, entries in (("31B", 1171), ("31L", 1171), ("XL", 1027)):
        with torch.device("meta"):
            state = RepLKNet(arch).state_dict()
        assert len(state) == entries
        theirs = to_mmpretrain(state)
        assert len(theirs) == entries
        assert "backbone.stages.3.norm.running_mean" in theirs
        assert "head.fc.bias" in theirs
        assert not any(key.startswith(("norm", "backbone.norm", "head.weight")) for key in theirs)
        back, style, ignored = canonical(theirs)
        assert (style, ignored) == ("mmpretrain", [])
        assert {key: value.shape for key, value in back.items()} == {key: v.shape for key, v in state.items()}
        assert infer_config(back, "") == ARCHS[arch]


def test_averaged_weights_by_name(trained, tmp_path):
    averaged = small()
    torch.save({"model": trained.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").meta["keys"] == ["model", "model_ema"]
    assert read_checkpoint(tmp_path / "a.pth").meta["key"] == "model"
    model = RepLKNet(SMALL, num_classes=10)
    load_checkpoint(model, tmp_path / "a.pth", key="model_ema")
    assert torch.equal(model.head.weight, averaged.head.weight)
    with pytest.raises(CheckpointError, match="no weights under 'ema'; it has model, model_ema"):
        read_checkpoint(tmp_path / "a.pth", key="ema")
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="it has none"):
        read_checkpoint(tmp_path / "a.pth", key="model_ema")


def test_stale_train_time_keys_beside_merged_ones(trained, x, tmp_path):
    """mmpretrain's reparameterize_model.py leaves them when its source was a bare state dict."""
    stale = in_mmpretrain(small().state_dict())
    torch.save({**stale, "state_dict": in_mmpretrain(merged(trained).state_dict())}, tmp_path / "a.pth")
    torch.save({**small().state_dict(), **merged(trained).state_dict()}, tmp_path / "b.pth")
    for name in "ab":
        checkpoint = read_checkpoint(tmp_path / f"{name}.pth")
        assert checkpoint.form == "merged"
        model = RepLKNet(SMALL, num_classes=10, small_kernel_merged=True).eval()
        load_checkpoint(model, checkpoint)
        assert torch.equal(model(x), merged(trained)(x))
    assert sum("lkb_origin" in key for key in checkpoint.meta["ignored"]) == 2 * 6


def test_legacy_file(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "a.pth").state.keys() == trained.state_dict().keys()


# ---------------------------------------------------------------------------------------------------------------------
# Forms


@pytest.mark.parametrize(("source", "target"), [("train", "merge"), ("train", "full"), ("merge", "full")])
def test_merging_on_the_way(trained, x, source, target):
    ready = copy.deepcopy(trained)
    if source == "merge":
        ready.switch_to_deploy()
    model = small().switch_to_deploy(target)
    report = load_checkpoint(model, ready.state_dict())
    assert report.merged == {"merge": "merged", "full": "full"}[target]
    expected = ready.switch_to_deploy(target)
    assert torch.equal(model(x), expected(x))
    assert list(model.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize(("source", "target"), [("merge", None), ("full", None), ("full", "merge")])
def test_merging_cannot_be_undone(trained, x, source, target):
    state = copy.deepcopy(trained).switch_to_deploy(source).state_dict()
    model = small()
    if target:
        model.switch_to_deploy(target)
    before = model(x)
    with pytest.raises(CheckpointError, match=rf"switch_to_deploy\('{source}'\)"):
        load_checkpoint(model, state)
    assert torch.equal(model(x), before)
    model.switch_to_deploy(source)  # what the message says helps
    load_checkpoint(model, state)
    assert relative_error(model(x), trained(x)) < 1e-5


def test_model_from_checkpoint(trained, x, tmp_path):
    for level in (None, "merge", "full"):
        model = copy.deepcopy(trained)
        if level:
            model.switch_to_deploy(level)
        for suffix in (".pth", ".safetensors"):
            path = save_checkpoint(model, tmp_path / f"{level}{suffix}")
            again = model_from_checkpoint(path).eval()  # the stem's strides come from the file
            assert again.config == SMALL
            assert again.deploy_level == level
            assert torch.equal(again(x), model(x))
    backbone = model_from_checkpoint(tmp_path / "None.pth", out_indices=(0, 1)).eval()
    assert [m.shape[1] for m in backbone(x)] == [4, 8]
    assert model_from_checkpoint(tmp_path / "None.pth", num_classes=0).eval()(x).shape == (2, 8)
    assert model_from_checkpoint(tmp_path / "merge.pth", num_classes=0).eval()(x).shape == (2, 8)
    with pytest.raises(CheckpointError, match="classes"):
        model_from_checkpoint(tmp_path / "None.pth", num_classes=5)
    gray = save_checkpoint(small(in_chans=1, num_classes=3), tmp_path / "gray.pth")
    assert model_from_checkpoint(gray)(x[:, :1]).shape == (2, 3)
    features = save_checkpoint(small(num_classes=0), tmp_path / "features.pth")
    assert model_from_checkpoint(features).num_classes == 0


# ---------------------------------------------------------------------------------------------------------------------
# Backbones


def test_classifier_into_a_backbone(trained, x):
    for state in (trained.state_dict(), in_mmpretrain(trained.state_dict()), merged(trained).state_dict()):
        model = RepLKNet(SMALL, out_indices=(0, 1), small_kernel_merged="lkb_reparam" in str(list(state))).eval()
        report = load_checkpoint(model, state)
        assert len(report.ignored) == 7  # the last BatchNorm and the classifier
        assert report.unexpected == ()
        assert relative_error(trained.norm(model(x)[1]), trained.forward_features(x)) < 1e-5


def test_norm_of_the_last_map_is_the_classifiers(trained, x):
    """mmpretrain's default backbone returns the normalised last map."""
    model = RepLKNet(SMALL, out_indices=(1,), norm_intermediate_features=True).eval()
    load_checkpoint(model, in_mmpretrain(trained.state_dict()))
    assert torch.equal(model(x)[0], trained.forward_features(x))
    model = RepLKNet(SMALL, out_indices=(0, 1), norm_intermediate_features=True).eval()
    with pytest.raises(CheckpointError, match=r"4 entries are missing: stages.0.norm.*no norms for these maps"):
        load_checkpoint(model, trained.state_dict())
    report = load_checkpoint(model, trained.state_dict(), strict=False)
    assert {key.rpartition(".")[0] for key in report.missing} == {"stages.0.norm"}
    assert torch.equal(model(x)[1], trained.forward_features(x))


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_downstream_backbone(x, prefix):
    """Norms in every stage, as the official XL of segmentation has them: the converter of mmpretrain corrupts these."""
    theirs = small(out_indices=(0, 1), norm_intermediate_features=True)
    state = prefixed(theirs.state_dict(), prefix)
    model = RepLKNet(SMALL, out_indices=(0, 1), norm_intermediate_features=True).eval()
    load_checkpoint(model, {"state_dict": state})
    for a, b in zip(model(x), theirs(x), strict=True):
        assert torch.equal(a, b)
    again = model_from_checkpoint(parse_state(state), stem_strides=(2, 1)).eval()
    assert torch.equal(again(x)[0], theirs(x)[0])
    with pytest.raises(CheckpointError, match=r"10 entries are unexpected.*norm_intermediate_features=True"):
        load_checkpoint(RepLKNet(SMALL, out_indices=(0, 1)), state)
    with pytest.raises(CheckpointError, match=r"norm.weight.*unexpected"):
        load_checkpoint(small(), state)
    with pytest.raises(CheckpointError, match=r"head.weight.*of a backbone"):
        load_checkpoint(small(), small(out_indices=(1,)).state_dict())


def test_mmpretrain_backbone_with_some_norms(x):
    """Its models have a norm only in the stages whose maps they return."""
    theirs = small(out_indices=(0,), norm_intermediate_features=True)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("stages.1.norm")}
    model = RepLKNet(SMALL, out_indices=(0,), norm_intermediate_features=True).eval()
    assert load_checkpoint(model, prefixed(state, "backbone.")).missing == ()
    assert torch.equal(model(x)[0], theirs(x)[0])
    merge = RepLKNet(SMALL, out_indices=(0,), norm_intermediate_features=True, small_kernel_merged=True).eval()
    load_checkpoint(merge, prefixed(state, "backbone."))
    assert relative_error(merge(x)[0], theirs(x)[0]) < 1e-5
