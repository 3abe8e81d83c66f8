"""What is wrong with a checkpoint is said in one error, and the model stays as it was."""

from __future__ import annotations

import argparse
import copy
import pickle

import pytest
import torch
from checkpoint_common import SMALL, images, in_mmpretrain, merged, prefixed, small
from models_common import relative_error
from torch import nn

from replknet_ext.models import (
    CheckpointError,
    RepLKNet,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


@pytest.fixture
def x() -> torch.Tensor:
    return images()


def test_a_trainers_arguments(trained, tmp_path):
    """argparse.Namespace comes through safe_globals, and only there; what else is inside runs no code."""
    trainer = {"model": trained.state_dict(), "epoch": 299, "args": argparse.Namespace(lr=4e-3, drop_path=0.5)}
    torch.save(trainer, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "a.pth", weights_only=True)
    meta = read_checkpoint(tmp_path / "a.pth").meta
    assert (meta["epoch"], meta["args"]) == (299, {"lr": 4e-3, "drop_path": 0.5})
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # nothing stays behind
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(tmp_path / "a.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()  # nor is the user's own taken away


class Boom:
    """Unpickling one leaves a mark."""

    ran = False

    def __reduce__(self):
        return (_boom, ())


def _boom():
    Boom.ran = True
    return Boom()


def test_no_code_is_run(trained, tmp_path):
    for legacy in (False, True):
        path = tmp_path / "a.pth"
        torch.save({"model": trained.state_dict(), "b": Boom()}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"a.pth .*_boom") as error:
            read_checkpoint(path)
        assert "safe_globals" in str(error.value)
        assert not Boom.ran
    torch.save(trained, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="holds a whole model; only weights are read"):
        read_checkpoint(tmp_path / "whole.pth")


@pytest.fixture
def unharmed(x):
    """A model that must be as it was after the test."""
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    yield model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_missing_and_unexpected_and_shapes(trained, unharmed):
    state = dict(trained.state_dict())
    for i in (0, 1, 2):
        for name in ("weight", "bias"):
            state.pop(f"stem.{i}.bn.{name}")
    state["stem.9.conv.weight"] = torch.zeros(1)
    state["transitions.0.0.conv.weight"] = torch.zeros(3, 4, 1, 1)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(unharmed, state)
    assert str(error.value) == (
        "the state dict does not fit the model: 6 entries are missing: stem.0.bn.weight, stem.0.bn.bias, "
        "stem.1.bn.weight, stem.1.bn.bias, stem.2.bn.weight and 1 more; 1 entries are unexpected: stem.9.conv.weight; "
        "1 entries have another shape: transitions.0.0.conv.weight is (3, 4, 1, 1) and should be (8, 4, 1, 1)"
    )
    with pytest.raises(CheckpointError, match="not a complete RepLKNet: 6 entries are missing"):
        load_checkpoint(small().switch_to_deploy(), state)
    with pytest.raises(CheckpointError, match="another shape"):  # not even then
        load_checkpoint(unharmed, state, strict=False)


def test_not_strict(trained, x):
    state = dict(trained.state_dict())
    state["norm.weight"] = None  # no tensor
    state["extra.weight"] = torch.zeros(1)
    model = small(num_classes=5)
    nn.init.constant_(model.norm.weight, 7.0)
    head, norm = model.head.weight.clone(), model.norm.weight.clone()
    with pytest.raises(CheckpointError, match=r"head.weight is \(10, 8\) and should be \(5, 8\).*reset_classifier"):
        load_checkpoint(model, state)
    report = load_checkpoint(model, state, strict=False)
    assert (report.missing, report.unexpected) == (("norm.weight",), ("extra.weight",))
    assert report.ignored == ("norm.weight", "head.weight", "head.bias")
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.weight, norm)
    assert torch.equal(model.stem[0].conv.weight, trained.stem[0].conv.weight)


def test_old_files_without_counters(trained, x):
    state = {key: value for key, value in trained.state_dict().items() if "num_batches" not in key}
    for form in (RepLKNet(SMALL, num_classes=10), RepLKNet(SMALL, num_classes=10, small_kernel_merged=True)):
        load_checkpoint(form, state)
        assert relative_error(form.eval()(x), trained(x)) < 1e-5


@pytest.mark.parametrize("kind", ["31B", "31L", "XL"])
def test_another_architecture_is_named(unharmed, kind):
    with torch.device("meta"):
        state = RepLKNet(kind).state_dict()
        merged_state = RepLKNet(kind, small_kernel_merged=True).state_dict()
    for each in (state, merged_state, in_mmpretrain(state, last=3)):
        with pytest.raises(CheckpointError, match=rf"RepLKNet-{kind}: build RepLKNet\('{kind}'\)"):
            load_checkpoint(unharmed, each)


def test_custom_architectures_are_compared(trained, unharmed, tmp_path):
    other = RepLKNet(SMALL, large_kernel_sizes=(9, 5), num_classes=10)
    with pytest.raises(CheckpointError, match=r"large_kernel_sizes \(9, 5\) instead of \(7, 5\)"):
        load_checkpoint(unharmed, other.state_dict())
    with pytest.raises(CheckpointError, match="small_kernel None instead of 3"):
        load_checkpoint(unharmed, RepLKNet(SMALL, small_kernel=None, num_classes=10).state_dict())
    path = save_checkpoint(RepLKNet(SMALL, stem_strides=(1, 1), num_classes=10), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"stem_strides=\(1, 1\); the model has \(2, 1\)"):
        load_checkpoint(unharmed, path)


def test_files_that_are_no_checkpoints(trained, unharmed, tmp_path):
    good = {s: save_checkpoint(trained, tmp_path / f"good{s}").read_bytes() for s in (".pth", ".safetensors")}
    torch.save(trained.state_dict(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "legacy.pth").read_bytes()
    cases = [("empty.pth", b""), ("text.pth", b"<html>not found</html>"), ("empty.safetensors", b"")]
    cases += [("words.pth", b"hello, these are words\n")]  # whose second letter is an unknown key of the unpickler
    for part in (0.1, 0.5, 0.99):
        cases += [(f"cut{part}{s}", data[: int(part * len(data))]) for s, data in good.items()]
        cases += [(f"old{part}.pth", legacy[: int(part * len(legacy))])]
    for name, data in cases:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged, truncated or no checkpoint(: .* .*)?$"):
            load_checkpoint(unharmed, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({}, tmp_path / "nothing.pth")
    for name, match in (
        ("list.pth", "holds a list"),
        ("other.pth", "no large_kernel; its entries are fc.weight, fc.bias"),
        ("nothing.pth", "has no tensors"),
        ("absent.pth", "no such file"),
        ("absent.safetensors", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(unharmed, tmp_path / name)


def test_forms_nobody_publishes(trained, unharmed):
    state = dict(merged(trained).state_dict())
    first = {key: value for key, value in state.items() if "stages.0" not in key}
    first |= {key: value for key, value in trained.state_dict().items() if "stages.0" in key}
    with pytest.raises(CheckpointError, match="merged in some blocks only"):
        load_checkpoint(unharmed, first)
    with pytest.raises(CheckpointError, match="deep_fuse_BN"):
        load_checkpoint(unharmed, {**state, "stem.0.conv.bias": torch.zeros(8)})


def test_several_networks(trained, unharmed):
    state = prefixed(trained.state_dict(), "student.") | prefixed(trained.state_dict(), "teacher.")
    with pytest.raises(CheckpointError, match=r"several networks: student\., teacher\."):
        load_checkpoint(unharmed, state)


def test_wrapped_models_and_others(trained, x):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = small()
    load_checkpoint(Wrapper(Wrapper(model)), trained.state_dict())
    assert torch.equal(model(x), trained(x))
    model = small()
    load_checkpoint(torch.compile(model), trained.state_dict())
    assert torch.equal(model(x), trained(x))
    with pytest.raises(TypeError, match="Linear"):
        load_checkpoint(nn.Linear(2, 2), trained.state_dict())


def test_other_dtypes_and_layouts(trained, x):
    model = small().to(dtype=torch.float64, memory_format=torch.channels_last)
    load_checkpoint(model, trained.state_dict())
    assert model.head.weight.dtype == torch.float64
    assert model.stages[0].blocks[0].pw1.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(model(x.double()), trained(x)) < 1e-5
    half = small()
    load_checkpoint(half, copy.deepcopy(trained).half().state_dict())
    assert half.head.weight.dtype == torch.float32


def test_safetensors_is_optional(trained, tmp_path, monkeypatch):
    save_checkpoint(trained, tmp_path / "a.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    for use in (read_checkpoint, lambda path: save_checkpoint(trained, path)):
        with pytest.raises(CheckpointError, match="pip install safetensors"):
            use(tmp_path / "a.safetensors")
    read_checkpoint(save_checkpoint(trained, tmp_path / "a.pth"))
