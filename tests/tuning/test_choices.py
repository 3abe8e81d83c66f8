"""How measured choices reach the raw ops: eager, compiled, exported, transformed; and who says so."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from tuning_common import CPU, Recorder, choose, entry, invented_variants, operands, problem

import replknet_ext as r
from replknet_ext.backends import BACKENDS, PASSES, Candidate, Problem, names
from replknet_ext.backends.torch import TorchBackend
from replknet_ext.choices import lookup as choices_lookup
from replknet_ext.choices import query, table
from replknet_ext.operator import ops
from replknet_ext.operator.problem import Geometry, mirrored
from replknet_ext.tuning import measure, search

pytestmark = [
    pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed"),
    pytest.mark.usefixtures("own_choices"),
]

ALL = {pass_: f"{pass_}_fast" for pass_ in PASSES}


def same_padding(x: Tensor, w: Tensor) -> Tensor:
    return r.depthwise_conv2d(x, w, padding="same")


# ---- what is looked up ----


def test_every_pass_takes_its_own_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    untuned = same_padding(x, w)  # before: a new choice must be seen
    with invented_variants(monkeypatch):
        choose({"fwd": "fwd_fast", "bwd_input": "bwd_input_wrong", "bwd_weight": "bwd_weight_broken"})
        with Recorder() as recorder:
            y = same_padding(x, w)
            first = torch.autograd.grad(y.sum(), (x, w), create_graph=True)
        assert recorder.seen == [("fwd", 1), ("bwd_input", 2), ("bwd_weight", 3)]
        with Recorder() as recorder:
            (first[0].sum() + first[1].sum()).backward()
        assert dict(recorder.seen) == {"bwd_input": 2, "bwd_weight": 3}, "derivatives of derivatives, too"
        assert torch.equal(y, untuned), "the recorder runs the build's own choice"
        # Without gradients, by a list as padding, of a module, and with only some passes chosen.
        with Recorder() as recorder, torch.no_grad():
            r.depthwise_conv2d(x, w, padding=(2, 2))
            r.DepthwiseConv2dLarge(4, 5, bias=False)(x)
        assert recorder.seen == [("fwd", 1)] * 2
        table.forget()
        choose({"bwd_weight": "bwd_weight_fast"})
        with Recorder() as recorder:
            same_padding(x, w).sum().backward()
        assert recorder.seen == [("fwd", -1), ("bwd_input", -1), ("bwd_weight", 1)]


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


def test_a_gradient_is_brought_into_the_format_of_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w = operands()
    with invented_variants(monkeypatch):
        choose(ALL)
        y = same_padding(x, w)
        with Recorder() as recorder:
            y.backward(torch.randn_like(y).contiguous(memory_format=torch.channels_last))
        assert dict(recorder.seen) == {"bwd_input": 1, "bwd_weight": 1}


def test_a_name_that_this_build_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    with invented_variants(monkeypatch):
        choose({"fwd": "fwd_of_tomorrow"})
        with Recorder() as recorder:
            same_padding(x, w)
        assert recorder.seen == [("fwd", -1)]


def test_transforms_look_up_the_sizes_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    with invented_variants(monkeypatch):
        choose(ALL)
        with Recorder() as recorder:
            torch.func.grad(lambda x: same_padding(x, w).square().sum())(x.detach())
        assert recorder.seen == [("fwd", 1), ("bwd_input", 1)]
        mapped = torch.randn(3, 2, 4, 9, 9)
        with Recorder() as recorder:
            torch.vmap(lambda x: same_padding(x, w))(mapped)
        assert recorder.seen == [("fwd", -1)], "a batch of 6"
        choose({"fwd": "fwd_wrong"}, n=6)
        with Recorder() as recorder:
            torch.vmap(lambda x: same_padding(x, w))(mapped)
        assert recorder.seen == [("fwd", 2)]
        with Recorder():
            y = same_padding(x, w)
            cotangents = torch.randn(3, *y.shape)
            batched = torch.autograd.grad(y, (x, w), cotangents, is_grads_batched=True, retain_graph=True)
            single = torch.autograd.grad(y, (x, w), cotangents[1])
        assert all(torch.equal(many[1], one) for many, one in zip(batched, single, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels_last": True, "c": 8, "dtype": torch.bfloat16, "precision": "tf32", "algorithm": "direct"},
        {"has_bias": True, "activation": "gelu", "kernel": 3},
        {"geometry": Geometry((1, 1), (1, 4, -1, 3), (1, 1)), "size": 11},
        {"geometry": Geometry((1, 1), (0, 0, 0, 0), (1, 1)), "weight_shape": (4, 1, 2, 6)},
    ],
    ids=str,
)
@pytest.mark.parametrize("pass_", PASSES)
def test_an_op_knows_its_problem(pass_: str, changes: dict[str, Any]) -> None:
    p = problem(pass_=pass_, **changes)
    ask = Candidate("auto", "", query.AUTO, "", None)
    with Recorder() as recorder:
        measure.call_of(p, ask, measure.operands(p, CPU, 1))(0)
    (found,) = recorder.problems
    assert table.key_of(found) == table.key_of(p)
    assert found == replace(p, has_bias=found.has_bias, activation=found.activation)


# ---- what runs ----

#: By FFT, where nobody has measured; the two differ in the last bits.
LARGE: dict[str, Any] = {"n": 2, "c": 3, "size": 24, "kernel": 21}


class Net(nn.Module):
    """One layer of `LARGE` among others."""

    def __init__(self) -> None:
        super().__init__()
        self.large = r.DepthwiseConv2dLarge(3, 21, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x * self.scale)  # type: ignore[no-any-return]


def step(run: Callable[[Tensor], Tensor], net: Net, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [net.large.weight, net.scale])]


def equal(first: list[Tensor], second: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first, second, strict=True)]


@contextmanager
def large_net() -> Iterator[tuple[Net, Tensor, list[Tensor], list[Tensor]]]:
    """The network, its input, and what it gives by FFT and directly."""
    net, x = Net(), torch.randn(2, 3, 24, 24)
    by_fft = step(net, net, x)
    with r.algorithm("direct"):
        direct = step(net, net, x)
    assert equal(by_fft, direct) == [False] * 3, "or the test sees nothing"
    yield net, x, by_fft, direct


def test_the_kernel_runs_and_the_next_choice_too() -> None:
    with large_net() as (net, x, by_fft, direct):
        choose(dict.fromkeys(PASSES, "direct_tile"), **LARGE)
        assert all(equal(step(net, net, x), direct))
        choose(dict.fromkeys(PASSES, "fft"), **LARGE)
        assert all(equal(step(net, net, x), by_fft))
        choose({"bwd_weight": "direct_tile"}, **LARGE)
        assert equal(step(net, net, x), direct)[:2] == [False, False], "its gradient comes from another output"
        with r.algorithm("direct"):
            assert all(equal(step(net, net, x), direct)), "another problem"


def test_compiled_code_takes_choices_of_later_and_is_not_traced_again() -> None:
    with large_net() as (net, x, by_fft, direct):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        assert all(equal(step(compiled, net, x), by_fft))
        choose(dict.fromkeys(PASSES, "direct_tile"), **LARGE)
        assert all(equal(step(compiled, net, x), direct))
        with r.autotune(True):
            assert all(equal(step(compiled, net, x), direct)), "and nothing is measured"
        table.forget()
        assert all(equal(step(compiled, net, x), by_fft))
        assert counters["stats"]["unique_graphs"] == 1


def test_exported_traced_and_scripted_code_takes_choices() -> None:
    with large_net() as (net, x, by_fft, direct), torch.no_grad():
        programs: list[Callable[[Tensor], Tensor]] = [
            torch.export.export(net, (x,)).module(), torch.jit.trace(net, (x,), check_trace=False)
        ]  # fmt: skip
        assert all(torch.equal(program(x), by_fft[0]) for program in programs)
        choose({"fwd": "direct_tile"}, **LARGE)
        assert all(torch.equal(program(x), direct[0]) for program in programs)


LOADER = """
import sys, torch, replknet_ext
x, wanted = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(x), wanted)
"""


def test_a_program_in_a_new_process_reads_the_users_cache(tmp_path: Path) -> None:
    with large_net() as (net, x, _, direct), torch.no_grad():
        table.save(CPU, {table.key_of(problem(**LARGE)): entry("direct_tile")}, replace=True)
        torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
        torch.save((x, direct[0]), tmp_path / "net.pt")
    files = (tmp_path / "net.pt2", tmp_path / "net.pt")
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})"
    subprocess.run([sys.executable, "-c", threads + LOADER, *files], check=True)


def test_one_question_for_a_problem_until_choices_change(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands()
    asked: list[str] = []
    real = query.measured

    def measured(backend: str, problem: Problem, device: torch.device) -> tuple[str, int]:
        asked.append(f"{backend} {problem.pass_}")
        return real(backend, problem, device)

    monkeypatch.setattr(query, "measured", measured)
    for _ in range(3):
        same_padding(x, w).sum().backward()
        r.depthwise_conv2d(x, w, padding=2, backend="cpu")
    assert asked == [*(f"auto {pass_}" for pass_ in PASSES), "cpu fwd"]
    planned = table.BACKENDS["cpu"].candidates(problem())[0].variant
    ops.RAW.fwd(x, w, None, (2,) * 4, "none", "ieee", "auto", "cpu", planned)
    assert len(asked) == 4, "a variant by name needs no answer"
    choose({"fwd": "fft"})
    same_padding(x, w)
    assert asked[4:] == ["auto fwd"]


@pytest.mark.parametrize(
    ("backend", "variant", "message"),
    [
        ("auto", -2, "variant must be the number of a variant of the backend, or -1 .*; got -2"),
        ("cpu", 1 << 32, "variant must be .*; got 4294967296"),
        ("auto", 3, "variant 3 is one of a backend: name it by the argument backend"),
        ("cuda", 3, 'backend="cuda" cannot run this problem: runs CUDA tensors, not cpu'),
        ("nope", -1, f"backend must be one of {', '.join(map(repr, names()))}; got 'nope'"),
    ],
)
def test_other_pairs_are_refused(backend: str, variant: int, message: str) -> None:
    x, w = operands(grad=False)
    with pytest.raises(RuntimeError, match=message):
        ops.RAW.fwd(x, w, None, (2,) * 4, "none", "ieee", "auto", backend, variant)


# ---- a look-up never breaks an op ----


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (choices_lookup, "lookup", OSError("no disk")),
        (choices_lookup, "lookup", RecursionError()),
        (choices_lookup, "lookup", RuntimeError("no home")),
        (choices_lookup, "lookup", UserWarning("as error")),
        (query, "problem_of", ImportError("what torch imports late")),
    ],
)
def test_a_failing_look_up_is_one_warning_and_the_planner_decides(
    module: ModuleType, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = operands()
    expected = torch.autograd.grad(same_padding(x, w).sum(), (x, w))

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(table, "_warned", set())
    table.forget()
    with pytest.warns(UserWarning, match="measured choices are not used") as caught:
        found = torch.autograd.grad(same_padding(x, w).sum(), (x, w))
    assert len(caught) == 1
    assert all(map(torch.equal, found, expected))
    table.forget()
    monkeypatch.setattr(table, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(same_padding(x, w), same_padding(x, w)), "where warnings are errors, too"


def test_ctrl_c_in_a_look_up_is_a_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)

    def lookup(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(choices_lookup, "lookup", lookup)
    table.forget()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of the tests ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            same_padding(x, w)
            time.sleep(1)  # the interrupt comes when Python runs again
    finally:
        signal.signal(signal.SIGINT, before)


# ---- backends that are written in Python ----


class Noting(TorchBackend):
    """torch, as any backend of somebody's own: only raw ops reach it, and it notes what it is called with."""

    name = "noting"
    differentiable = False
    seen: ClassVar[list[tuple[str, int]]] = []

    def candidates(self, problem: Problem, limits: Any = None) -> list[Candidate]:
        return [Candidate(self.name, f"v{number}", number, "noting", 1.0) for number in range(9)]

    def variant(self, problem: Problem, name: str) -> int | None:
        return int(name[1:])

    def fwd(self, *args: Any) -> Tensor:
        self.seen.append(("fwd", args[-1]))
        return super().fwd(*args)

    def bwd_input(self, grad_output: Tensor, weight: Tensor, padding: Any, *rest: Any) -> Tensor:
        self.seen.append(("bwd_input", rest[-1]))
        pads = mirrored(padding, weight.shape[2:])
        return super().fwd(grad_output, weight.flip(2, 3), None, pads, "none", *rest)

    def bwd_weight(self, *args: Any) -> Tensor:
        self.seen.append(("bwd_weight", args[-1]))
        return super().bwd_weight(*args)


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Noting:
    """Registered by one line, as `backends.registry` would have it."""
    backend = Noting()
    monkeypatch.setitem(BACKENDS, backend.name, backend)
    Noting.seen.clear()
    return backend


def test_a_backend_in_one_place_runs_every_pass_by_name(noting: Noting) -> None:
    x, w = operands()
    expected = torch.autograd.grad(torch.nn.functional.conv2d(x, w, None, 1, 2, 1, 4).square().sum(), (x, w))
    y = r.depthwise_conv2d(x, w, padding=2, backend="noting")
    found = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
    assert noting.seen == [(pass_, -1) for pass_ in PASSES]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    noting.seen.clear()
    (found[0].sum() + found[1].sum()).backward()
    assert {pass_ for pass_, _ in noting.seen} == set(PASSES), "derivatives of derivatives, too"
    assert set(r.explain(x, w, padding=2, backend="noting").chosen.values()) == {"noting"}
    x64, w64 = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: r.depthwise_conv2d(x, w, padding=2, backend="noting"), (x64, w64))


def test_a_measured_choice_takes_it_and_the_tuner_lists_it(noting: Noting) -> None:
    x, w = operands()
    for run in (same_padding, torch.compile(same_padding, backend="aot_eager", fullgraph=True)):
        rows = {p: table.Entry((("noting", f"v{i + 5}", 1.0), ("cpu", "fft", 2.0)), 2.0) for i, p in enumerate(PASSES)}
        for found, wanted in (({}, []), (rows, [("fwd", 5), ("bwd_input", 6), ("bwd_weight", 7)])):
            table.forget()
            table.remember(CPU, {table.key_of(problem(pass_=pass_)): row for pass_, row in found.items()})
            noting.seen.clear()
            run(x, w).sum().backward()
            assert noting.seen == wanted
    noting.seen.clear()
    r.depthwise_conv2d(x, w, padding=2, backend="cpu")
    assert noting.seen == [], "the named backend's own"
    assert {"cpu", "noting"} <= {candidate.backend for candidate in search.shortlist(problem())}
    ops.RAW.fwd(x, w, None, (2,) * 4, "none", "ieee", "auto", "noting", 3)
    assert noting.seen == [("fwd", 3)], "a number is a number"


def test_an_error_of_such_a_backend_keeps_its_words(noting: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    def fwd(*args: Any) -> Tensor:
        raise ZeroDivisionError("out of luck")

    monkeypatch.setattr(noting, "fwd", fwd)
    x, w = operands(grad=False)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: out of luck"):
        r.depthwise_conv2d(x, w, padding=2, backend="noting")


def test_the_extension_is_told_backend_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(grad=False)
    ask = torch.ops.replknet_ext._choice
    call = ("fwd", x, w, None, (2, 2, 2, 2), "none", "ieee", "auto")
    monkeypatch.setattr(BACKENDS["triton"], "variant", lambda p, name: int(name), raising=False)
    assert (ask(*call, "auto"), ask(*call, "cpu")) == ("auto -1", "cpu -1")
    row = table.Entry((("triton", "7", 1.0), ("cpu", "fft", 2.0)), 3.0)
    table.remember(CPU, {table.key_of(problem()): row})
    assert ask(*call, "auto") == "triton 7"
    assert ask(*call, "cpu") == f"cpu {BACKENDS['cpu'].variant(problem(), 'fft')}"


# ---- who says so ----


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
