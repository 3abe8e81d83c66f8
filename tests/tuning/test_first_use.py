"""Tuning on first use: once, what a call needs, and nowhere else."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tuning_common import CPU, Recorder, operands, problem

import replknet_ext as r
from replknet_ext.backends import PASSES, candidates
from replknet_ext.choices import table
from replknet_ext.tuning import first_use, measure

pytestmark = [
    pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed"),
    pytest.mark.usefixtures("own_choices"),
]


def test_first_use_measures_what_a_call_needs_once(invented: list[str]) -> None:
    x, w = operands()
    with torch.no_grad():
        r.depthwise_conv2d(x, w, padding="same")
    assert not invented, "not asked for"
    with r.autotune(True):
        with torch.no_grad():
            r.depthwise_conv2d(x, w, padding="same")
        assert set(invented) == {"fwd_slow", "fwd_fast"}
        with Recorder() as recorder, torch.no_grad():
            r.depthwise_conv2d(x, w, padding="same")
        assert recorder.seen == [("fwd", 1)]
        r.depthwise_conv2d(x.detach(), w, padding="same")
        assert {name for name in invented if "bwd" in name} == {"bwd_weight_slow", "bwd_weight_fast"}
        count = len(invented)
        for _ in range(3):
            r.depthwise_conv2d(x.detach(), w, padding="same")
        assert len(invented) == count
        r.depthwise_conv2d(x, w, padding="same")
        assert {name for name in invented if "bwd_input" in name} == {"bwd_input_slow", "bwd_input_fast"}
        count = len(invented)
        # Another process, so to speak: what is in the file is not measured again.
        table.forget()
        first_use._done.clear()
        y = r.depthwise_conv2d(x, w, padding="same")
        assert len(invented) == count
    with Recorder() as recorder:
        y = r.depthwise_conv2d(x, w, padding="same")
        y.sum().backward()
    assert dict(recorder.seen) == dict.fromkeys(PASSES, 1), "choices hold where tuning is off again"


def test_the_environment_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext import _env

    for value, wanted in (("1", True), ("yes", True), ("0", False), ("off", False), ("", False)):
        monkeypatch.setenv("REPLKNET_EXT_AUTOTUNE", value)
        assert _env.flag("AUTOTUNE") is wanted
    for bad in (1, "yes", None):
        with pytest.raises(TypeError, match="autotune must be True or False"):
            r.set_autotune(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="autotune must be True or False"):
            r.autotune(bad)  # type: ignore[arg-type]
    assert r.get_autotune() is False
    r.set_autotune(True)
    assert r.get_autotune() is True
    with r.autotune(False):
        assert r.get_autotune() is False
        elsewhere: list[bool] = []
        thread = threading.Thread(target=lambda: elsewhere.append(r.get_autotune()))
        thread.start()
        thread.join()
        assert elsewhere == [True]


def test_nothing_is_measured_where_it_must_not_be(invented: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    r.set_autotune(True)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, w)]
        assert not first_use.allowed(*fake)
        r.depthwise_conv2d(*fake, padding="same")
    torch.func.jvp(lambda x: r.depthwise_conv2d(x, w, padding="same"), (x,), (x,))
    torch.vmap(lambda x: r.depthwise_conv2d(x, w, padding="same"))(x[None])
    with FlopCounterMode(display=False):  # any dispatch mode sees what others do
        r.depthwise_conv2d(x, w, padding="same")
    torch._dynamo.reset()
    torch.compile(lambda x: r.depthwise_conv2d(x, w, padding="same"), backend="eager", fullgraph=True)(x)
    torch.export.export(r.DepthwiseConv2dLarge(4, 5), (x,), strict=False)
    torch.jit.trace(lambda x: r.depthwise_conv2d(x, w, padding="same"), (x,), check_trace=False)
    r.depthwise_conv2d(x[:0], w, padding="same")
    r.depthwise_conv2d(x, w, padding="same", backend="torch")
    r.depthwise_conv2d(x.to("meta"), w.to("meta"), padding="same")
    assert not invented
    assert first_use.allowed(x, w, None)
    r.depthwise_conv2d(x, w, padding="same")
    assert invented, "and where it may be, it is"


def test_nothing_is_measured_while_a_graph_is_captured(invented: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard, on a tensor that says it is on a GPU."""
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x, w = operands(grad=False)
    on_gpu = property(lambda self: True)
    monkeypatch.setattr(first_use, "Tensor", x.__class__)
    assert first_use.allowed(x, w), "the capture is the GPU's affair"

    class OnGpu(Tensor):
        is_cuda = on_gpu  # type: ignore[assignment]

    gpu = x.as_subclass(OnGpu)
    monkeypatch.setattr(first_use, "Tensor", OnGpu)
    assert not first_use.allowed(gpu)
    capturing = False
    assert first_use.allowed(gpu)


def test_a_choice_is_the_same_every_time(invented: list[str]) -> None:
    """For one cache: read twice, measured by nobody."""
    x, w = operands(grad=False)
    r.tune([((2, 4, 9, 9), 5)], progress=False)
    seen = []
    for _ in range(3):
        table.forget()
        with Recorder() as recorder:
            r.depthwise_conv2d(x, w, padding="same")
        seen.append(recorder.seen)
    assert seen == [[("fwd", 1)]] * 3


def test_results_do_not_depend_on_who_chose() -> None:
    """Real variants: each, named, gives the untuned result within rounding."""
    for pass_ in PASSES:
        p = problem(n=3, c=20, size=13, kernel=9, pass_=pass_)
        listed = candidates(p)
        measured = measure.measure(p, listed, CPU, rounds=1)
        assert [m.failed for m in measured] == [None] * len(listed)
