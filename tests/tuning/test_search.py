"""Tuning: what is measured and chosen, and among which candidates."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from tuning_common import CPU, INVENTED, problem

import replknet_ext as r
from replknet_ext.backends import PASSES, candidates
from replknet_ext.backends.cuda import DEVICES
from replknet_ext.choices import lookup, table
from replknet_ext.operator.problem import Geometry
from replknet_ext.tuning import Row, TuneReport, api, measure, search
from replknet_ext.tuning import problems as collecting
from replknet_ext.tuning.measure import Measured

pytestmark = [
    pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed"),
    pytest.mark.usefixtures("own_choices"),
]


# ---- what is measured and chosen ----


def test_the_fastest_right_one_wins_and_failures_keep_their_reason(invented: list[str]) -> None:
    report = r.tune([((2, 4, 9, 9), 5)], passes=("fwd",), progress=False)
    (row,) = report
    assert row.entry == table.Entry((("cpu", "fwd_fast", 5.0),), 10.0)
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
    table.forget()
    assert lookup.lookup(problem(), "auto", CPU) == lookup.Choice("cpu", "fwd_fast", 1, 5.0, "tuned")


def test_nothing_counts_without_the_untuned_result(invented: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [INVENTED["fwd"][3], INVENTED["fwd"][1]]
    measured = measure.measure(problem(), listed, CPU)
    assert [m.failed for m in measured] == ["RuntimeError: out of resources", "nothing to compare its result with"]
    assert search.entry_of(measured) is None


def test_a_small_or_doubtful_gain_is_no_reason_to_change() -> None:
    first, other = (Measured(candidate) for candidate in INVENTED["fwd"][:2])
    first.samples, other.samples = [100.0], [100.0 * (1 - measure.LEAST_GAIN) + 0.1]
    assert measure.winner([first, other]) is first
    other.samples = [100.0 * (1 - measure.LEAST_GAIN) - 0.1]
    assert measure.winner([first, other]) is other
    first.samples, other.samples = [100.0, 160.0, 900.0], [120.0, 130.0, 150.0]
    assert measure.winner([first, other]) is first, "the smallest samples say something else: other work ran beside"
    other.samples[0] = 99.0
    assert measure.winner([first, other]) is other
    row = Row(problem(), 1, search.entry_of([first, other]), (first, other))
    assert row.disturbed
    assert "1 of 1 measurements scatter: something else seems to have run" in str(TuneReport((row,), {}, None))
    first.samples = [100.0, 101.0, 130.0]
    assert not row.disturbed and not [*TuneReport((row,), {}, None).notes()]
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
    assert search.entry_of(gpu) == table.Entry((("triton", "t", 2.0), ("cuda", "b", 3.0)), 4.0)


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
        choice = lookup.lookup(row.problem, "auto", CPU)
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


def test_calls_of_other_threads_are_neither_noted_nor_broken() -> None:
    """They were, by one list for all threads: a call that found it and then did not was an AttributeError."""
    layer, foreign = r.DepthwiseConv2dLarge(4, 5), torch.rand(1, 4, 7, 7)
    ends: list[object] = []

    def elsewhere() -> None:
        try:
            ends.append(layer(foreign).shape)
        except BaseException as error:
            ends.append(error)

    class Threaded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            result: torch.Tensor = layer(x)
            return result

    found = collecting.of_model(Threaded(), torch.rand(2, 4, 12, 12))
    assert [problem.input_shape for problem in found] == [(2, 4, 12, 12)]
    assert ends == [(1, 4, 7, 7)]


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
            listed = candidates(problem(pass_=pass_, algorithm=algorithm), "cpu")
            assert candidates(problem(pass_=pass_, algorithm=algorithm))[0] == listed[0]
            if algorithm == "direct":
                assert {c.family for c in listed} == {"direct"}
            table = r._ext.build_info()["cpu_variants"]["bwd_weight" if pass_ == "bwd_weight" else "fwd"]
            assert [table[c.variant] for c in listed] == [c.name for c in listed]
    assert candidates(problem(n=0), "cpu") == []


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


def test_a_capture_leaves_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In mode "global" a thread of a data loader that pins memory would break the capture, and die of it."""
    modes: list[str] = []
    graph = SimpleNamespace(
        capture_begin=lambda pool=None, capture_error_mode="global": modes.append(capture_error_mode),
        capture_end=lambda: None,
        replay=lambda: None,
    )
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None, "CUDAGraph": lambda: graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    ran: list[int] = []
    measure.capture(ran.append, 4, 2)
    assert modes == ["thread_local"]
    assert ran == [0, 1, 0, 1, 0, 1]
