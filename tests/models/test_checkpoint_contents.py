"""What trainers and strangers put into checkpoint files: found where it lies, read past, or refused in one error."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import sys
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoint_common import SMALL, small

from replknet_ext.models import (
    CheckpointError,
    RepLKNet,
    RepLKNetConfig,
    convert_checkpoint,
    load_checkpoint,
    model_from_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from replknet_ext.models.checkpoint import parse_state
from replknet_ext.models.files import _read_torch


def refused(source, match: str) -> None:
    """Every way of reading says the same, and nothing else escapes."""
    for use in (read_checkpoint, model_from_checkpoint, lambda path: load_checkpoint(small(), path)):
        with pytest.raises(CheckpointError, match=match):
            use(source)


# ---------------------------------------------------------------------------------------------------------------------
# Ratios


RATIOS = [
    dict(channels=(8, 16), dw_ratio=1.1),
    dict(channels=(16, 24), dw_ratio=1.1),
    dict(channels=(8, 16), ffn_ratio=2.67),
    dict(channels=(16, 24), ffn_ratio=0.7, dw_ratio=1 / 3),
    dict(channels=(49, 98), dw_ratio=0.0205, ffn_ratio=0.29),
]


@pytest.mark.parametrize("fields", RATIOS)
@pytest.mark.parametrize("level", [None, "merge", "full"])
def test_ratios_that_are_no_quotient_of_channels(tmp_path, fields, level):
    config = RepLKNetConfig(large_kernel_sizes=(5, 5), layers=(1, 1), small_kernel=3, **fields)
    assert config.dw_channels == tuple(int(c * config.dw_ratio) for c in config.channels)  # as the official code
    model = RepLKNet(config, num_classes=2)
    if level:
        model.switch_to_deploy(level)
    load_checkpoint(model, model.state_dict())
    for suffix in (".pth", ".safetensors"):
        path = save_checkpoint(model, tmp_path / f"a{suffix}")
        load_checkpoint(model, path)
        assert model_from_checkpoint(path).config == config  # as stored
        convert_checkpoint(path, tmp_path / f"b{suffix}", form="full")
    bare = model_from_checkpoint(parse_state(model.state_dict()))  # nothing stored: any ratio with these channels
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    other = RepLKNet(config, dw_ratio=2.0, num_classes=2)
    with pytest.raises(CheckpointError, match=r"dw_channels \(.*\) instead of"):
        load_checkpoint(other, model.state_dict())


def test_ratio_that_no_network_has(trained):
    state = dict(trained.state_dict())
    key = "stages.1.blocks.0.pw1.conv.weight"
    state[key] = state[key].repeat(3, 1, 1, 1)
    with pytest.raises(CheckpointError, match=r"depthwise channels \(6, 36\) are no common multiple"):
        load_checkpoint(small(), state)


@pytest.mark.parametrize("ratio", [float("inf"), float("nan"), "1.1", None])
def test_ratio_must_be_a_number(ratio):
    with pytest.raises(ValueError, match="dw_ratio must be a finite number"):
        RepLKNetConfig((5,), (1,), (8,), dw_ratio=ratio)


# ---------------------------------------------------------------------------------------------------------------------
# Where the weights lie


@pytest.mark.parametrize(
    "path",
    ["model_state_dict", "net", "params", "weights", "state_dict_ema", "ema_state_dict", "a.b", "model.net", "mine"],
)
def test_weights_under_any_name(trained, tmp_path, path):
    content = trained.state_dict()
    for name in reversed(path.split(".")):
        content = {name: content, "epoch": 1, "optimizer": {"state": {0: {"step": torch.zeros(1)}}, "lr": 0.1}}
    torch.save(content, tmp_path / "a.pth")
    for key in ("auto", path, path.rpartition(".")[2], path.partition(".")[0]):
        checkpoint = read_checkpoint(tmp_path / "a.pth", key=key)
        assert checkpoint.state.keys() == trained.state_dict().keys()
        assert (checkpoint.meta["key"], checkpoint.meta["epoch"]) == (path, 1)


def test_which_of_several(trained, tmp_path):
    averaged = small()
    torch.save({"first": trained.state_dict(), "second": {"net": averaged.state_dict()}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"has weights under first, second\.net; say which by key")
    state = read_checkpoint(tmp_path / "a.pth", key="second").state
    assert torch.equal(state["head.weight"], averaged.head.weight)
    torch.save({"state_dict_ema": averaged.state_dict(), "net": trained.state_dict()}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").meta["key"] == "net"  # averaged ones are taken on request
    other = {"resnet": {"conv1.weight": torch.zeros(2)}, "vit": {"cls_token": torch.zeros(2)}}
    torch.save(other, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "has weights under resnet, vit")


def test_a_name_with_a_dot(trained):
    assert parse_state({"a.b": trained.state_dict(), "c": small().state_dict()}, key="a.b").meta["key"] == "a.b"
    with pytest.raises(CheckpointError, match=r"no weights under 'net'; it has netto"):
        parse_state({"netto": trained.state_dict()}, key="net")


def test_a_dict_that_holds_itself(trained, tmp_path):
    loop: dict = {}
    loop["model"] = loop
    pair: dict = {"model": {}}
    pair["model"]["state_dict"] = pair
    for content in (loop, pair):
        torch.save(content, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", "has no tensors")
    loop["net"] = trained.state_dict()
    torch.save(loop, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").meta["key"] == "net"


def test_a_folder_as_the_hub_has_it(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(tmp_path)
    save_checkpoint(trained, tmp_path / "pytorch_model.bin")
    assert model_from_checkpoint(tmp_path).config == SMALL
    save_checkpoint(copy.deepcopy(trained).switch_to_deploy(), tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).form == "merged"


def test_sources_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"a\.pth: no regular file")  # and nobody waits for a writer
    refused(tmp_path / ("a" * 5000), "no such file")
    refused("a\0b", "no such file")


# ---------------------------------------------------------------------------------------------------------------------
# Objects beside the weights


def test_numpy_numbers_beside_the_weights(trained, tmp_path):
    beside = {
        "best": np.float64(8),
        "t": np.float32(1),
        "n": np.int64(3),
        "curve": np.arange(3.0),
        "kind": np.dtype("f4"),
    }
    for legacy in (False, True):
        torch.save(
            {"state_dict": trained.state_dict(), **beside},
            tmp_path / "a.pth",
            _use_new_zipfile_serialization=not legacy,
        )
        load_checkpoint(small(), tmp_path / "a.pth")
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")


def test_history_of_mmengine(trained, tmp_path, monkeypatch):
    """A pickle of it asks for `getattr` and for its class, and gets neither."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        ran = False

        def __init__(self):
            self._log_history = np.arange(3.0)

        def mean(self):
            return 0

        def __getstate__(self):
            return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

        def __setstate__(self, state):
            HistoryBuffer.ran = True

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        hub = {"log_scalars": {"loss": HistoryBuffer()}}
        assert b"getattr" in pickle.dumps(hub, 2)
        torch.save({"state_dict": trained.state_dict(), "message_hub": hub}, tmp_path / "a.pth")
        load_checkpoint(small(), tmp_path / "a.pth")
        assert not HistoryBuffer.ran
    load_checkpoint(small(), tmp_path / "a.pth")  # also where mmengine is not installed


def test_getattr_gets_nothing(trained, tmp_path):
    """The name is let through, what it stands for is not."""
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": trained.state_dict(), "b": getattr}, tmp_path / "a.pth")
    found = _read_torch(tmp_path / "a.pth")["b"]
    assert found is not getattr
    assert not isinstance(found(torch, "load"), type(torch.load))
    assert set(torch.serialization.get_safe_globals()) == before  # nothing stays behind


def test_all_refused_classes_are_named(trained, tmp_path):
    class A:
        pass

    class B:
        pass

    for kind in (A, B):
        kind.__qualname__ = kind.__name__
        setattr(sys.modules[__name__], kind.__name__, kind)
    torch.save({"model": trained.state_dict(), "b": B(), "a": A()}, tmp_path / "a.pth")
    names = rf"{__name__}\.A, {__name__}\.B"
    refused(tmp_path / "a.pth", rf"objects of {names}, .*safe_globals\(\[{names}\]\)")
    with torch.serialization.safe_globals([A, B]):
        read_checkpoint(tmp_path / "a.pth")  # what the message says helps


def test_threads_do_not_take_each_others_classes(trained, tmp_path):
    torch.save({"model": trained.state_dict(), "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    start = threading.Barrier(6)

    def read(_):
        start.wait()
        return [read_checkpoint(tmp_path / "a.pth").meta["args"] for _ in range(20)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            for args in pool.map(read, range(6)):
                assert args == [{"lr": 1.0}] * 20
    finally:
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are none of ours, or meant to harm


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_protocols(trained, tmp_path, protocol, legacy):
    path = tmp_path / "a.pth"
    torch.save(trained.state_dict(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    if protocol == 3:
        read_checkpoint(path)
    else:
        refused(path, rf"was written with pickle_protocol={protocol}.*save it again")


def test_mutated_pickles(trained, tmp_path):
    """Every mutation is read or refused; the unpickler meets bytes with whatever they lead to."""
    torch.save({"model": trained.state_dict(), "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in files if name.endswith("data.pkl"))
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for _ in range(60):
        data = bytearray(files[pickled])
        for _ in range(4):
            at, value = (int(torch.randint(high, (), generator=generator)) for high in (len(data), 256))
            data[at] = value
        with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, bytes(data) if name == pickled else content)
        try:
            model_from_checkpoint(tmp_path / "b.pth")
        except CheckpointError:
            refusals += 1
    assert refusals > 10


def test_archives_that_unpack_to_much_more(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, zipfile.ZipFile(tmp_path / "b.pth", "w") as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
        bomb.writestr("a/data/999", bytes(100_000_000), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "b.pth", "would unpack to 100,")


@pytest.mark.parametrize("key", ["head.weight", "stem.0.conv.weight", "stages.0.blocks.0.pw1.conv.weight"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_larger_than_their_file(trained, tmp_path, key, device):
    """Building the model that they describe would ask for 128 GB."""
    state = dict(trained.state_dict())
    shape = (2_000_000_000, *state[key].shape[1:])
    state[key] = torch.zeros(1, device=device).expand(shape)
    torch.save(state, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 200_000
    refused(tmp_path / "a.pth", rf"holds fewer values than the shape of {key} says, \(2000000000")
    with pytest.raises(CheckpointError, match="holds fewer values"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")


ODD = {
    "sparse": lambda t: t.to_sparse(),
    "complex": lambda t: t.to(torch.complex64),
    "int8": lambda t: t.to(torch.int8),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "0-d": lambda t: t.sum(),
    "empty": lambda t: t.new_empty(0),
}
MESSAGES = {
    "sparse": "head.weight is sparse",
    "complex": "head.weight is of torch.complex64",
    "int8": "head.weight is of torch.int8",
    "quantised": "head.weight is of torch.qint8",
    "0-d": "head.weight has 0 dimensions instead of 2",
    "empty": r"has the shape \(0,\).*zero_to_fp32",
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_weights(trained, tmp_path, kind):
    state = dict(trained.state_dict())
    state["head.weight"] = ODD[kind](state["head.weight"])
    torch.save(state, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", MESSAGES[kind])
    with pytest.raises(CheckpointError, match=MESSAGES[kind]):
        load_checkpoint(small(), state, strict=False)


def test_placeholders_of_zero3(trained):
    state = {
        key: value.new_empty(0) if value.is_floating_point() else value for key, value in trained.state_dict().items()
    }
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        load_checkpoint(small(), state)
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        model_from_checkpoint(parse_state(trained.state_dict() | {"stem.0.bn.weight": torch.empty(0)}))


def test_a_state_without_values(trained):
    with torch.device("meta"):
        state = RepLKNet(SMALL, num_classes=10).state_dict()
    model = small()
    before = model.head.weight.clone()
    for target in (model, small().switch_to_deploy()):
        with pytest.raises(CheckpointError, match="has no values"):
            load_checkpoint(target, state)
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("key", [0, None, b"a", ("a", 1), 1.5])
def test_keys_that_are_no_strings(trained, tmp_path, key):
    state = {**trained.state_dict(), key: torch.zeros(1)}
    assert load_checkpoint(small(), state).ignored == (str(key),)
    with pytest.raises(CheckpointError, match="has no tensors"):
        load_checkpoint(small(), {key: torch.zeros(1)})


def test_numbers_of_many_digits(trained, tmp_path):
    state = {**trained.state_dict(), f"stages.{'9' * 5000}.norm.weight": torch.zeros(1)}
    state[f"stages.0.blocks.{'9' * 5000}.pw1.conv.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="2 entries are unexpected"):
        load_checkpoint(small(), state)


def test_no_channels(trained):
    state = dict(trained.state_dict())
    state["stages.0.blocks.0.pw1.conv.weight"] = torch.zeros(8, 0, 1, 1)
    with pytest.raises(CheckpointError):
        load_checkpoint(small(), state)
    state["stages.0.blocks.0.pw1.conv.weight"] = torch.zeros(())
    with pytest.raises(CheckpointError):
        load_checkpoint(small(), state)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"layers": [1' + "0" * 400 + "]}", "[1, 2]", '{"dw_ratio": Infinity}']
)
def test_stored_architectures_that_are_none(trained, tmp_path, text):
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(dict(trained.state_dict()), path, {"config": text})
    try:
        load_checkpoint(RepLKNet(SMALL, stem_strides=(2, 2), num_classes=10), path)
    except CheckpointError as error:
        assert "damaged" in str(error) or "stem_strides" in str(error)


def test_further_entries_are_left_out_on_request(trained, tmp_path):
    extra = {
        "auxiliary_head.conv.weight": torch.zeros(1),
        "total_ops": torch.zeros(1),
        "stem.0.total_ops": torch.zeros(1),
    }
    torch.save({**trained.state_dict(), **extra}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="3 entries are unexpected"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    for form in ("same", "merged", "full"):
        written = convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", form=form, strict=False)
        assert written.meta["ignored"] == list(extra)
        assert not any(key in extra for key in torch.load(tmp_path / "b.pth")["model"])
    state = {k: v for k, v in trained.state_dict().items() if k != "stem.1.conv.weight"} | extra
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 entries are missing"):  # never less than a network
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", strict=False)
