"""Tuning: what is measured and chosen, how choices reach the raw ops, where nothing may be measured."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from tuning_common import CPU, INVENTED, Recorder, entry, invented_variants, problem

import replknet_ext as r
from replknet_ext.backends import PASSES, candidates, configs
from replknet_ext.backends.cuda import DEVICES
from replknet_ext.checks import Geometry
from replknet_ext.tuning import api, measure, search
from replknet_ext.tuning import problems as collecting
from replknet_ext.tuning.measure import Measured

pytestmark = pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed")
OPS = {"fwd": "dwconv2d", "bwd_input": "dwconv2d_backward_input", "bwd_weight": "dwconv2d_backward_weight"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REPLKNET_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(configs, "_warned", set())
    monkeypatch.setattr(search, "_given_up", set())
    configs.forget()
    yield
    r.set_autotune(False)
    configs.forget()


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Invented variants of the CPU backend, and times for them that do not depend on the machine."""
    timed: list[str] = []
    microseconds = {"slow": 10.0, "fast": 5.0, "wrong": 1.0, "broken": 1.0}

    def call_of(p: Any, candidate: Any, given: Any) -> Any:
        word = candidate.name.rpartition("_")[2]

        def run(i: int) -> Tensor:
            if word == "broken":
                raise RuntimeError("out of resources\nand a long story")
            return given[i].x * (1.5 if word == "wrong" else 1.0)

        run.name, run.us = candidate.name, microseconds[word]  # type: ignore[attr-defined]
        return run

    def sampler(run: Any, device: Any, sets: int) -> Any:
        timed.append(run.name)
        return lambda: run.us

    monkeypatch.setattr(measure, "call_of", call_of)
    monkeypatch.setattr(measure, "_sampler", sampler)
    with invented_variants(monkeypatch):
        yield timed


# ---- what is measured and chosen ----


def test_the_fastest_right_one_wins_and_failures_keep_their_reason(invented: list[str]) -> None:
    report = r.tune([((2, 4, 9, 9), 5)], passes=("fwd",), progress=False)
    (row,) = report
    assert row.entry == configs.Entry((("cpu", "fwd_fast", 5.0),), 10.0)
    assert row.gain == 2.0
    reasons = {m.candidate.name: m.failed for m in row.measured}
    assert reasons["fwd_slow"] is None and reasons["fwd_fast"] is None
    assert "another result than fwd_slow's, by 5.0e-01" in str(reasons["fwd_wrong"])
    assert reasons["fwd_broken"] == "RuntimeError: out of resources"
    assert "fwd_fast" in str(report) and "2.00x" in str(report)
    assert report.path is not None and report.path.exists()
    assert report.as_dict()["rows"][0]["choice"]["best"][0]["variant"] == "fwd_fast"
    # Kept: the second time nothing is measured, with force it is.
    before = len(invented)
    again = r.tune([((2, 4, 9, 9), 5)], passes=("fwd",), progress=False)
    assert len(invented) == before and again.rows[0].entry == row.entry
    r.tune([((2, 4, 9, 9), 5)], passes=("fwd",), progress=False, force=True)
    assert len(invented) == before + 2
    # Read from the file by the next process.
    configs.forget()
    assert configs.lookup(problem(), "auto", CPU) == configs.Choice("cpu", "fwd_fast", 1, 5.0, "tuned")


def test_nothing_counts_without_the_untuned_result(invented: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [INVENTED["fwd"][3], INVENTED["fwd"][1]]
    measured = measure.measure(problem(), listed, CPU)
    assert [m.failed for m in measured] == ["RuntimeError: out of resources", "nothing to compare its result with"]
    assert search.entry_of(measured) is None


def test_a_small_gain_is_no_reason_to_change() -> None:
    first, other = (Measured(candidate) for candidate in INVENTED["fwd"][:2])
    first.samples, other.samples = [100.0], [100.0 * (1 - measure.LEAST_GAIN) + 0.1]
    assert measure.winner([first, other]) is first
    other.samples = [100.0 * (1 - measure.LEAST_GAIN) - 0.1]
    assert measure.winner([first, other]) is other
    other.failed = "wrong"
    assert measure.winner([first, other]) is first
    assert measure.winner([]) is None


def test_each_backend_keeps_its_best() -> None:
    gpu = [
        Measured(measure.Candidate("cuda", "a", 0, "f", 1.0), [4.0]),
        Measured(measure.Candidate("cuda", "b", 1, "f", 1.0), [3.0]),
        Measured(measure.Candidate("triton", "t", 9, "f", 1.0), [2.0]),
        Measured(measure.Candidate("triton", "u", 8, "f", 1.0), [5.0]),
    ]
    assert search.entry_of(gpu) == configs.Entry((("triton", "t", 2.0), ("cuda", "b", 3.0)), 4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_real_kernels_are_measured(dtype: torch.dtype, channels_last: bool) -> None:
    report = r.tune(
        [((2, 20, 11, 9), (7, 5)), ((1, 8, 14, 14), 27)], dtype=dtype, channels_last=channels_last, bias=True,
        activation="gelu", progress=False,
    )  # fmt: skip
    assert len(report) == 6
    for row in report:
        assert row.entry is not None, row
        good = [m for m in row.measured if m.failed is None]
        assert len(good) == len(row.measured) >= 1, [m.failed for m in row.measured]
        assert all(math.isfinite(m.us) and m.us > 0 for m in good)
        assert row.entry.best[0][2] <= row.measured[0].us * 1.001
        choice = configs.lookup(row.problem, "auto", CPU)
        assert choice is not None and choice.source == "tuned"
        assert choice.name == candidates(row.problem)[0].name or choice.us < row.measured[0].us


def test_a_model_is_as_it_was_and_each_layer_is_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        r.DepthwiseConv2dLarge(4, 7), nn.BatchNorm2d(4), r.DepthwiseConv2dLarge(4, 7), nn.Dropout(0.5),
        r.DepthwiseConv2dLarge(4, 5, stride=2, padding=2), nn.Conv2d(4, 8, 1), r.DepthwiseConv2dLarge(8, 3, bias=False),
    )  # fmt: skip
    model[3].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = collecting.of_model(model, torch.rand(2, 4, 12, 12))
    assert {(p.input_shape, p.weight_shape, p.has_bias): count for p, count in found.items()} == {
        ((2, 4, 12, 12), (4, 1, 7, 7), True): 2,
        ((2, 8, 6, 6), (8, 1, 3, 3), False): 1,
    }, "what goes to torch is not there"
    assert model.training and not model[3].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    channels_last = collecting.of_model(model, (2, 4, 12, 12), channels_last=True)
    assert all(p.channels_last for p in channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert {p.dtype for p in collecting.of_model(model, {"input": torch.rand(2, 4, 12, 12)})} == {torch.bfloat16}
    report = r.tune(model, (2, 4, 12, 12), passes="fwd", progress=False, save=False)
    assert [row.count for row in report] == [2, 1] and report.path is None


def test_random_numbers_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    r.tune([((1, 2, 5, 5), 3)], progress=False, save=False)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((3,), {}, TypeError, "not iterable"),
        (([],), {}, ValueError, "must not be empty"),
        (([(1, 2, 3)],), {}, ValueError, "pairs ((N, C, H, W), kernel); got (1, 2, 3)"),
        (([((1, 2, 3), 3)],), {}, ValueError, "pairs ((N, C, H, W), kernel)"),
        (([((1, 2, 0, 3), 3)],), {}, ValueError, "must be >= 1"),
        (([((1, 2, 4, 4), 2.5)],), {}, TypeError, "must be an int"),
        (([((1, 2, 4, 4), 9)],), {"padding": 0}, ValueError, "larger than the padded input"),
        (([((1, 2, 4, 4), (3, 1, 3, 3))],), {}, ValueError, "as many filters"),
        (([((1, 2, 4, 4), 3)], torch.rand(1)), {}, TypeError, "input is for a module"),
        ((nn.Conv2d(1, 1, 1),), {}, TypeError, "input must be what the model is called with"),
        ((nn.Conv2d(1, 1, 1), (1, -1)), {}, ValueError, "input must be >= 1"),
        (([((1, 2, 4, 4), 3)],), {"passes": ("bwd",)}, ValueError, "passes must be one of"),
        (([((1, 2, 4, 4), 3)],), {"passes": (3,)}, TypeError, "passes must be a string"),
        (([((1, 2, 4, 4), 3)],), {"backend": "torch"}, ValueError, "backend must be one of"),
        (([((1, 2, 4, 4), 3)],), {"activation": "tanh"}, ValueError, "activation must be one of"),
        (([((1, 2, 4, 4), 3)],), {"algorithm": "winograd"}, ValueError, "algorithm must be one of"),
        (([((1, 2, 4, 4), 3)],), {"precision": "fp8"}, ValueError, "precision must be one of"),
        (([((1, 2, 4, 4), 3)],), {"dtype": torch.int8}, TypeError, "allowed:"),
        (([((1, 2, 4, 4), 3)],), {"device": "meta"}, ValueError, "device must be a CPU or a CUDA device"),
        (([((1, 2, 4, 4), 3)],), {"most": 0}, ValueError, "most must be >= 1"),
        (([((1, 2, 4, 4), 3)],), {"force": 1}, TypeError, "force must be True or False"),
    ],
)
def test_wrong_arguments(arguments: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        r.tune(*arguments, **options, progress=False)
    assert words in str(caught.value)


# ---- how choices reach the raw ops ----


def choose(names: dict[str, str], **changes: Any) -> None:
    """Choices for `problem` as if they had been measured."""
    found = {configs.key_of(problem(pass_=pass_, **changes)): entry(name) for pass_, name in names.items()}
    configs.remember(CPU, found)


def operands(**options: Any) -> tuple[Tensor, Tensor]:
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 5, 5)
    return x.requires_grad_(options.get("grad", True)), w.requires_grad_(options.get("grad", True))


ALL = {pass_: f"{pass_}_fast" for pass_ in PASSES}


def test_every_pass_takes_its_own_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    untuned = r.depthwise_conv2d(x, w, padding="same")  # before: a new choice must be seen
    with invented_variants(monkeypatch):
        choose({"fwd": "fwd_fast", "bwd_input": "bwd_input_wrong", "bwd_weight": "bwd_weight_broken"})
        with Recorder() as recorder:
            y = r.depthwise_conv2d(x, w, padding="same")
            first = torch.autograd.grad(y.sum(), (x, w), create_graph=True)
        assert recorder.seen == [(OPS["fwd"], 1), (OPS["bwd_input"], 2), (OPS["bwd_weight"], 3)]
        with Recorder() as recorder:
            (first[0].sum() + first[1].sum()).backward()
        assert {variant for _, variant in recorder.seen} == {-1}, "derivatives of derivatives are not tuned"
        assert torch.equal(y, untuned), "the recorder runs the build's own choice"
        # Without gradients, by a list as padding, of a module, and with only some passes chosen.
        with Recorder() as recorder, torch.no_grad():
            r.depthwise_conv2d(x, w, padding=(2, 2))
            module = r.DepthwiseConv2dLarge(4, 5, bias=False)
            module(x)
        assert recorder.seen == [(OPS["fwd"], 1)] * 2
        configs.forget()
        choose({"bwd_weight": "bwd_weight_fast"})
        with Recorder() as recorder:
            r.depthwise_conv2d(x, w, padding="same").sum().backward()
        assert recorder.seen[0] == (OPS["fwd"], -1)
        assert dict(recorder.seen[1:]) == {OPS["bwd_input"]: -1, OPS["bwd_weight"]: 1}


def test_other_problems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    with invented_variants(monkeypatch):
        choose(ALL)

        def variants(*args: Any, **kwargs: Any) -> list[int]:
            with Recorder() as recorder:
                r.depthwise_conv2d(*args, **{"padding": "same", **kwargs})
            return [variant for _, variant in recorder.seen]

        assert variants(x, w) == [1]
        assert variants(x[:1], w) == [-1]
        assert variants(x.double(), w.double()) == [-1]
        assert variants(x.to(memory_format=torch.channels_last), w) == [-1]
        assert variants(x, w, torch.zeros(4)) == [-1]
        assert variants(x, w, activation="relu") == [-1]
        assert variants(x, w, algorithm="direct") == [-1]
        assert variants(x, w, padding=1) == [-1]
        assert variants(x, w, backend="cpu") == [1]
        assert variants(x, w, backend="torch") == []
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(before + 1)
            assert variants(x, w) == [-1], "a choice belongs to a number of threads"
        finally:
            torch.set_num_threads(before)
        assert variants(x, w) == [1]


def test_a_gradient_in_another_memory_format_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    with invented_variants(monkeypatch):
        choose(ALL)
        y = r.depthwise_conv2d(x, w, padding="same")
        with Recorder() as recorder:
            y.backward(torch.randn_like(y).contiguous(memory_format=torch.channels_last))
        assert dict(recorder.seen) == {OPS["bwd_input"]: -1, OPS["bwd_weight"]: 1}


def test_a_name_that_this_build_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    with invented_variants(monkeypatch):
        choose({"fwd": "fwd_of_tomorrow"})
        with Recorder() as recorder:
            r.depthwise_conv2d(x, w, padding="same")
        assert recorder.seen == [(OPS["fwd"], -1)]


def test_transforms_and_compiled_code_leave_the_choice_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    with invented_variants(monkeypatch):
        choose(ALL)

        def loss(x: Tensor) -> Tensor:
            return r.depthwise_conv2d(x, w, padding="same").square().sum()

        with Recorder() as recorder:
            torch.func.grad(loss)(x.detach())
            torch.vmap(lambda x: r.depthwise_conv2d(x, w, padding="same"))(torch.randn(3, 2, 4, 9, 9))
        assert len(recorder.seen) == 3 and {variant for _, variant in recorder.seen} == {-1}, "other sizes under vmap"
        with Recorder():
            y = r.depthwise_conv2d(x, w, padding="same")
            cotangents = torch.randn(3, *y.shape)
            batched = torch.autograd.grad(y, (x, w), cotangents, is_grads_batched=True, retain_graph=True)
            single = torch.autograd.grad(y, (x, w), cotangents[1])
        assert all(torch.equal(many[1], one) for many, one in zip(batched, single, strict=True))

        graphs = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        torch._dynamo.reset()
        compiled = torch.compile(lambda x: r.depthwise_conv2d(x, w, padding="same"), backend=backend, fullgraph=True)
        with r.autotune(True):
            torch.testing.assert_close(compiled(x), r.depthwise_conv2d(x, w, padding="same", backend="torch"))
        calls = [node for graph in graphs for node in graph.graph.nodes if "dwconv2d" in str(node.target)]
        assert [node.args[-1] for node in calls] == [-1]
        traced = torch.jit.trace(
            lambda x, w: r.depthwise_conv2d(x, w, padding="same"), (x.detach(), w.detach()), check_trace=False
        )
        (call,) = traced.graph.findAllNodes("replknet_ext::dwconv2d")
        assert list(call.inputs())[-1].toIValue() == -1


def test_backends_mix_by_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward by one backend's op, gradients by the other's."""
    from replknet_ext import autograd, ops

    seen: list[tuple[str, str, int]] = []

    def recorded(family: str) -> Any:
        real = ops.RAW

        def wrap(name: str) -> Any:
            def run(*args: Any) -> Any:
                seen.append((family, name, args[-1]))
                return getattr(real, name)(*args[:-1], -1)

            return run

        return ops.Passes(*(wrap(name) for name in ops.Passes._fields))

    monkeypatch.setattr(autograd, "DIFFERENTIABLE_TRITON", recorded("triton"))
    x, w = operands()
    tuned = ops.Tuned((True, 5), (False, -1), False)
    y = autograd.dwconv2d(x, w, None, (2, 2, 2, 2), "none", "ieee", "auto", -1, tuned=tuned)
    y.sum().backward()
    assert seen == [("triton", "bwd_input", 5)]
    assert x.grad is not None and w.grad is not None
    reference = [t.detach().clone().requires_grad_() for t in (x, w)]
    r.depthwise_conv2d(*reference, padding="same").sum().backward()
    assert torch.equal(x.grad, reference[0].grad) and torch.equal(w.grad, reference[1].grad)  # type: ignore[arg-type]


def test_explain_says_who_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    assert set(r.explain(x, w, padding="same").by.values()) == {"by the model"}
    with invented_variants(monkeypatch):
        choose({"bwd_input": "bwd_input_fast"})
        about = r.explain(x, w, padding="same")
        assert about.by == {"fwd": "by the model", "bwd_input": "tuned", "bwd_weight": "by the model"}
        assert about.kernels["bwd_input"] == "bwd_input_fast"
        assert "bwd_input: cpu, bwd_input_fast, tuned" in str(about)
        assert ", by the model" in str(about)


# ---- on first use ----


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
        assert recorder.seen == [(OPS["fwd"], 1)]
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
        configs.forget()
        search._given_up.clear()
        y = r.depthwise_conv2d(x, w, padding="same")
        assert len(invented) == count
    with Recorder() as recorder:
        y = r.depthwise_conv2d(x, w, padding="same")
        y.sum().backward()
    assert dict(recorder.seen) == dict.fromkeys(OPS.values(), 1), "choices hold where tuning is off again"


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
        assert not search.allowed(*fake)
        r.depthwise_conv2d(*fake, padding="same")
    torch.func.jvp(lambda x: r.depthwise_conv2d(x, w, padding="same"), (x,), (x,))
    torch.vmap(lambda x: r.depthwise_conv2d(x, w, padding="same"))(x[None])
    with Recorder():  # any dispatch mode sees what others do
        r.depthwise_conv2d(x, w, padding="same")
    torch._dynamo.reset()
    torch.compile(lambda x: r.depthwise_conv2d(x, w, padding="same"), backend="eager", fullgraph=True)(x)
    torch.export.export(r.DepthwiseConv2dLarge(4, 5), (x,), strict=False)
    torch.jit.trace(lambda x: r.depthwise_conv2d(x, w, padding="same"), (x,), check_trace=False)
    r.depthwise_conv2d(x[:0], w, padding="same")
    r.depthwise_conv2d(x, w, padding="same", backend="torch")
    r.depthwise_conv2d(x.to("meta"), w.to("meta"), padding="same")
    assert not invented
    assert search.allowed(x, w, None)
    r.depthwise_conv2d(x, w, padding="same")
    assert invented, "and where it may be, it is"


def test_nothing_is_measured_while_a_graph_is_captured(invented: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard, on a tensor that says it is on a GPU."""
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x, w = operands(grad=False)
    on_gpu = property(lambda self: True)
    monkeypatch.setattr(search, "Tensor", x.__class__)
    assert search.allowed(x, w), "the capture is the GPU's affair"

    class OnGpu(Tensor):
        is_cuda = on_gpu  # type: ignore[assignment]

    gpu = x.as_subclass(OnGpu)
    monkeypatch.setattr(search, "Tensor", OnGpu)
    assert not search.allowed(gpu)
    capturing = False
    assert search.allowed(gpu)


def test_a_choice_is_the_same_every_time(invented: list[str]) -> None:
    """For one cache: read twice, measured by nobody."""
    x, w = operands(grad=False)
    r.tune([((2, 4, 9, 9), 5)], progress=False)
    seen = []
    for _ in range(3):
        configs.forget()
        with Recorder() as recorder:
            r.depthwise_conv2d(x, w, padding="same")
        seen.append(recorder.seen)
    assert seen == [[(OPS["fwd"], 1)]] * 3


def test_results_do_not_depend_on_who_chose() -> None:
    """Real variants: each, named, gives the untuned result within rounding."""
    for pass_ in PASSES:
        p = problem(n=3, c=20, size=13, kernel=9, pass_=pass_)
        listed = candidates(p)
        measured = measure.measure(p, listed, CPU, rounds=1)
        assert [m.failed for m in measured] == [None] * len(listed)


# ---- candidates ----


def test_candidates_of_a_gpu_that_is_not_there() -> None:
    for pass_ in PASSES:
        for dtype in (torch.bfloat16, torch.float32):
            p = problem(64, 128, 56, 31, pass_=pass_, device="cuda", dtype=dtype)
            listed = candidates(p, "auto", DEVICES["h200"])
            assert len({(c.backend, c.name) for c in listed}) == len(listed)
            assert {c.backend for c in listed} == {"cuda", "triton"}
            times = [c.predicted_us for c in listed]
            assert times[1:] == sorted(times[1:]) and min(times) > 5
            first = listed[0]
            assert first.backend == "cuda" and first.predicted_us == pytest.approx(min(times), rel=0.25)
            assert first.resources["shared_bytes"] > 0 and first.resources["warps"] > 0
            assert candidates(p, "triton", DEVICES["h200"])[0].variant == 0
            assert candidates(p, "cpu", DEVICES["h200"]) == []
    assert candidates(problem(device="cuda", algorithm="fft", dtype=torch.bfloat16), "triton", DEVICES["h200"]) == []
    strided = problem(device="cuda", geometry=Geometry((2, 2), (2, 2, 2, 2), (1, 1)))
    assert candidates(strided, "auto", DEVICES["h200"]) == []
    assert candidates(problem(device="cuda"), "cuda") == [], "without a GPU and without limits there is nothing"


def test_candidates_of_the_cpu_are_its_variants() -> None:
    for pass_ in PASSES:
        for algorithm in ("auto", "direct"):
            listed = candidates(problem(pass_=pass_, algorithm=algorithm))
            assert listed and {c.backend for c in listed} == {"cpu"}
            if algorithm == "direct":
                assert {c.family for c in listed} == {"direct"}
            table = r._ext.build_info()["cpu_variants"]["bwd_weight" if pass_ == "bwd_weight" else "fwd"]
            assert [table[c.variant] for c in listed] == [c.name for c in listed]
    assert candidates(problem(n=0)) == []


def test_the_shortlist_is_the_best_of_each_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(64, 128, 56, 31, device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(search, "candidates", lambda p, backend: candidates(p, backend, DEVICES["h200"]))
    listed = search.shortlist(p, "auto", 3)
    assert sorted(c.backend for c in listed) == ["cuda"] * 3 + ["triton"] * 3
    assert listed[0] == candidates(p, "auto", DEVICES["h200"])[0]


def test_a_progress_label_for_each_pass(capsys: pytest.CaptureFixture[str]) -> None:
    labels: list[str] = []
    found = collecting.of_shapes(
        [((1, 2, 5, 5), 3)], padding="same", dtype=torch.float32, device=CPU, channels_last=False, bias=False,
        activation="none", algorithm="auto", precision="ieee",
    )  # fmt: skip
    api.run(found, CPU, save=False, progress=True, on_start=labels.append)
    assert labels == [f"{pass_} 1x2x5x5 K3 float32" for pass_ in PASSES]
    assert capsys.readouterr() == ("", ""), "no progress bar where nobody watches"
