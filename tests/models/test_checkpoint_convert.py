"""Any format of checkpoint into any other, and files that are complete or not there."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from checkpoint_common import LAST, SMALL, images, in_mmpretrain, merged, small
from models_common import relative_error

from replknet_ext.models import (
    ARCHS,
    CheckpointError,
    RepLKNet,
    convert_checkpoint,
    files,
    model_from_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


@pytest.fixture
def x() -> torch.Tensor:
    return images()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["same", "merged", "full"])
@pytest.mark.parametrize("to", ["official", "mmpretrain", "backbone"])
@pytest.mark.parametrize("source", ["official", "mmpretrain"])
def test_any_to_any(trained, x, tmp_path, source, to, form, suffix):
    theirs = trained.state_dict() if source == "official" else in_mmpretrain(trained.state_dict())
    src, dst = tmp_path / "src.pth", tmp_path / f"dst{suffix}"
    torch.save({"state_dict": theirs, "meta": {"config": json.loads(json.dumps(vars(SMALL)))}}, src)
    if (to, form) == ("mmpretrain", "full"):
        with pytest.raises(CheckpointError, match="mmpretrain has no form"):
            convert_checkpoint(src, dst, to=to, form=form)
        assert not dst.exists()
        return
    written = convert_checkpoint(src, dst, to=to, form=form)
    checkpoint = read_checkpoint(dst)
    assert (written.form, written.style) == (checkpoint.form, checkpoint.style)
    assert written.state.keys() == checkpoint.state.keys()
    assert checkpoint.form == ("train" if form == "same" else form)
    assert checkpoint.style == ("mmpretrain" if to == "mmpretrain" else "official")
    model = model_from_checkpoint(dst).eval()
    if to == "backbone":
        assert not any(key.startswith(("norm.", "head.")) for key in checkpoint.state)
        assert relative_error(trained.norm(model(x)[-1]), trained.forward_features(x)) < 1e-5
    else:
        assert relative_error(model(x), trained(x)) < 1e-5


def test_conversion_equals_what_others_write(trained, tmp_path):
    """There and back gives the file's entries, bit for bit and in order."""
    save_checkpoint(trained, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.safetensors", to="mmpretrain")
    convert_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.pth")
    a, c = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in "ac")
    assert list(a["model"]) == list(c["model"])
    assert all(torch.equal(a["model"][key], c["model"][key]) for key in a["model"])
    assert a["meta"] == c["meta"]
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "d.pth", form="merged")
    d = torch.load(tmp_path / "d.pth", weights_only=True)["model"]
    expected = merged(trained).state_dict()
    assert list(d) == list(expected)
    assert all(torch.equal(d[key], expected[key]) for key in d)


def test_published_architectures_are_bare_state_dicts(tmp_path):
    with torch.device("meta"):
        state = RepLKNet("31B", num_classes=3).state_dict()
    written = {}

    def save(payload, path):
        written.update(payload)
        Path(path).write_bytes(b"x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.torch, "save", save)
        patch.setattr(files, "_own", lambda value: value)
        files.write_entries(state, tmp_path / "a.pth", ARCHS["31B"])
    assert written.keys() == state.keys()


def test_dtype_and_storage(trained, tmp_path):
    save_checkpoint(copy.deepcopy(trained).to(memory_format=torch.channels_last), tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.safetensors", dtype="float16")
    state = read_checkpoint(tmp_path / "b.safetensors").state
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.pth").stat().st_size
    save_checkpoint({key: value[..., :1] for key, value in {"a": torch.zeros(1, 100_000)}.items()}, tmp_path / "v.pt")
    assert (tmp_path / "v.pt").stat().st_size < 10_000  # a view does not drag its storage along
    for dtype in ("int8", "float17", torch.int8):
        with pytest.raises(CheckpointError, match="dtype must be"):
            convert_checkpoint(tmp_path / "a.pth", tmp_path / "c.pth", dtype=dtype)
    for options, match in (
        ({"to": "timm"}, "to must be"),
        ({"form": "train"}, "form must be"),
        ({"arch": "31C"}, "arch must be"),
        ({"arch": "31B"}, r"not a RepLKNet-31B.*another architecture"),
    ):
        with pytest.raises(CheckpointError, match=match):
            convert_checkpoint(tmp_path / "a.pth", tmp_path / "c.pth", **options)
    for suffix in ("", ".onnx", ".npz"):
        with pytest.raises(CheckpointError, match=r"dst must end in \.pth"):
            convert_checkpoint(tmp_path / "a.pth", tmp_path / f"c{suffix}")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "m.pth", form="merged")
    convert_checkpoint(tmp_path / "m.pth", tmp_path / "f.pth", form="full")
    with pytest.raises(CheckpointError, match="already"):
        convert_checkpoint(tmp_path / "f.pth", tmp_path / "c.pth", form="merged")
    assert not (tmp_path / "c.pth").exists()


def test_a_target_is_never_half_written(trained, tmp_path, monkeypatch):
    for suffix in (".pth", ".safetensors"):
        target = tmp_path / f"a{suffix}"
        save_checkpoint(trained, target)
        before = target.read_bytes()

        def fail(payload, path, *args):
            Path(path).write_bytes(b"half")
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", fail)
            patch.setattr("safetensors.torch.save_file", fail)
            for write in (lambda t=target: save_checkpoint(small(), t), lambda t=target: convert_checkpoint(t, t)):
                with pytest.raises(OSError, match="disk full"):
                    write()
        assert target.read_bytes() == before
        convert_checkpoint(target, target, form="merged")  # onto itself
        assert read_checkpoint(target).form == "merged"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]
    assert target.stat().st_mode & 0o077 == 0o044  # as any new file, not private


def test_the_order_of_mmpretrains_keys(trained, tmp_path):
    """A stage's norm stands at the end of its stage, as in mmpretrain's models."""
    save_checkpoint(trained, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", to="mmpretrain")
    keys = list(torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"])
    assert sorted(keys) == sorted(in_mmpretrain(trained.state_dict()))
    assert keys[-2:] == ["head.fc.weight", "head.fc.bias"]
    at = keys.index(f"backbone.stages.{LAST}.norm.weight")
    assert keys[at - 1].startswith(f"backbone.stages.{LAST}.blocks.")
    assert keys[at + 5].startswith("backbone.transitions.0.0.conv")
