"""Process-wide settings and context managers: scope, nesting, threads, tasks, and what a call takes from them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import replknet_ext as r
from replknet_ext import _env

SETTINGS = [
    pytest.param(r.get_algorithm, r.set_algorithm, r.algorithm, "auto", "direct", id="algorithm"),
    pytest.param(
        r.get_float32_precision, r.set_float32_precision, r.float32_precision, "ieee", "tf32", id="float32-precision"
    ),
]
Get, Set, Context = Callable[[], str], Callable[[str], None], Callable[[str], object]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    r.set_algorithm("auto")
    r.set_float32_precision("ieee")


def in_thread(f: Callable[[], str]) -> str:
    """Result of f in a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f).result()


@pytest.mark.parametrize(("get", "set_", "context", "default", "other"), SETTINGS)
def test_scope(get: Get, set_: Set, context: Context, default: str, other: str) -> None:
    assert get() == default
    with context(other):
        assert get() == other
        assert in_thread(get) == default, "a context holds for its own thread"
        with context(default):
            assert get() == default
        assert get() == other
        set_(other)
        assert in_thread(get) == other, "the process-wide default holds in every thread"
        with context(default):
            assert get() == default
            assert in_thread(get) == other
    assert get() == other
    set_(default)
    with pytest.raises(KeyError), context(other):
        raise KeyError
    assert get() == default, "an exception leaves the context too"


@pytest.mark.parametrize(("get", "set_", "context", "default", "other"), SETTINGS)
def test_bad_names(get: Get, set_: Set, context: Context, default: str, other: str) -> None:
    for change in (set_, context):
        for bad in ("", "AUTO", "nan", "fastest"):
            with pytest.raises(ValueError, match=f'must be one of "{default}".*got {bad!r}'):
                change(bad)
        for wrong in (None, 1, float("nan"), True, ["auto"]):
            with pytest.raises(TypeError, match="must be a string"):
                change(wrong)  # type: ignore[arg-type]
    assert get() == default


def test_an_algorithm_that_nobody_has_is_an_error() -> None:
    with r.algorithm("fft"), pytest.raises(ValueError, match="no FFT to ask for"):
        r.depthwise_conv2d(torch.ones(1, 1, 3, 3).double(), torch.ones(1, 1, 2, 2).double())


@pytest.mark.parametrize(("get", "set_", "context", "default", "other"), SETTINGS)
def test_tasks_have_their_own(get: Get, set_: Set, context: Context, default: str, other: str) -> None:
    async def one(value: str) -> list[str]:
        seen = []
        with context(value):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(get())
        return seen

    async def main() -> list[list[str]]:
        return await asyncio.gather(one(default), one(other), one(other))

    assert asyncio.run(main()) == [[default] * 3, [other] * 3, [other] * 3]
    compiled = torch.compile(lambda x: x + len(get()), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == len(default), "overlapping tasks leave nothing behind"


def test_many_threads() -> None:
    barrier = threading.Barrier(8)

    def work(i: int) -> bool:
        name = "direct" if i % 2 else "auto"
        barrier.wait()
        for _ in range(200):
            with r.algorithm(name):
                if r.get_algorithm() != name:
                    return False
        return r.get_algorithm() == "auto"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


class Spy(TorchDispatchMode):
    """(precision, algorithm) of every raw op that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "replknet_ext" and func._opname.startswith("dwconv2d"):
            self.seen.append(tuple(args[-4:-2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed")
def test_calls_take_the_settings_and_keep_them_for_backward() -> None:
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(2, 1, 3, 3, requires_grad=True)
    with Spy() as spy:
        r.depthwise_conv2d(x, w)
        with r.algorithm("direct"), r.float32_precision("bf16x3"):
            y = r.depthwise_conv2d(x, w)
            r.depthwise_conv2d(x, w, algorithm="auto")
            assert r.explain(x, w).problem.algorithm == "direct"
            assert "no effect on CPU" in str(r.explain(x, w))
        y.sum().backward()
        r.set_algorithm("direct")
        r.depthwise_conv2d(x, w)
    assert spy.seen == [
        ("ieee", "auto"), ("bf16x3", "direct"), ("bf16x3", "auto"), ("bf16x3", "direct"), ("bf16x3", "direct"),
        ("ieee", "direct"),
    ]  # fmt: skip


def test_a_module_uses_the_context_of_its_call() -> None:
    module = r.DepthwiseConv2dLarge(2, 3)
    x = torch.randn(1, 2, 5, 5)
    with r.algorithm("direct"):
        inside = module(x)
    torch.testing.assert_close(inside, module(x))


def test_environment_is_read_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLKNET_EXT_CPU_ISA", "avx2")
    monkeypatch.setenv("REPLKNET_EXT_SKIP_CUDA", "")
    assert _env.get("CPU_ISA") == "avx2"
    assert _env.get("SKIP_CUDA") is None
    assert _env.snapshot()["REPLKNET_EXT_CPU_ISA"] == "avx2"
    assert "REPLKNET_EXT_SKIP_CUDA" not in _env.snapshot()
    with pytest.raises(KeyError, match="REPLKNET_EXT_NONE"):
        _env.get("NONE")


def test_settings_do_not_leak_between_processes() -> None:
    r.set_algorithm("direct")
    code = "import replknet_ext as r; print(r.get_algorithm(), r.get_float32_precision())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.split() == ["auto", "ieee"], result.stderr
