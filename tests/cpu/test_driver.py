"""The CPU kernels without torch: under sanitizers, counted by callgrind, and compiled for aarch64."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import driver_budgets
import driver_build
import driver_count
import pytest
from cases import AWKWARD, CASES, LAYERS, PASSES, Case, same

WHY_NOT = driver_build.missing()
WHY_NOT_AARCH64 = driver_build.missing(driver_build.AARCH64) or (
    None if shutil.which("qemu-aarch64") else "qemu-aarch64 is not installed"
)
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.xdist_group("cpu_driver"),
]
#: Margin of a count, for the compiler that the table is of and for others.
MARGIN, OTHER_COMPILER = 1.03, 1.3
#: dtype, layout, activation: each dtype's loads and stores and both formats, without every combination.
FORMS = (
    ("float32", "nchw", "none"),
    ("float32", "nhwc", "relu"),
    ("bfloat16", "nchw", "gelu"),
    ("float16", "nhwc", "none"),
    ("float64", "nchw", "relu"),
    ("float64", "nhwc", "gelu"),
)

#: Maps that the direct kernels take in strips of columns (on vectors of 64 bytes, those of 16 bytes), in bands of rows,
#: by several tiles of an FFT.
WIDE = [
    same("strips", 1, 1, 9, 9001, 3, 3),
    same("strips-of-an-even-filter", 1, 2, 12, 6001, 9, 4),
    same("strips-of-16-bytes", 1, 1, 8, 40000, 3, 3),
    same("one-row", 2, 1, 1, 70000, 1, 7),
    Case("strips-beside-the-map", 1, 1, 9, 50, 3, 3, (1, 1, 9000, 9000)),
    Case("strips-and-a-crop", 1, 1, 9, 20000, 3, 5, (1, 1, 9000, -12000)),
]
#: Paddings at the limits of what is taken, with a result that can be had.
FAR = [
    Case("far-left", 1, 2, 9, 9, 3, 3, (1, 1, 2**40, 3 - 2**40)),
    Case("far-right", 1, 2, 9, 9, 3, 3, (1, 1, -(2**40), 5 + 2**40)),
    Case("far-up", 1, 2, 9, 9, 5, 3, (2**40, 2 - 2**40, 1, 1)),
    Case("far-down", 1, 2, 9, 9, 5, 3, (2 - 2**40, 2**40, 1, 1)),
    Case("32-bits", 1, 2, 9, 9, 5, 5, (2**31, 3 - 2**31, -(2**32), 2**32)),
]


def lines(cases: list[Case]) -> str:
    """All passes and forms of some cases as the driver reads them. torch's side returns early for an empty batch."""
    text = ""
    for case in cases:
        sizes = " ".join(map(str, (case.n, case.c, case.h, case.w, case.kh, case.kw, *case.padding)))
        for pass_ in PASSES if case.n else ():
            for dtype, layout, activation in FORMS:
                text += f"{case.name} {pass_} {sizes} {dtype} {layout} {activation if pass_ == 'fwd' else 'none'}\n"
    return text


def native() -> str:
    """The widest instruction set of this machine that the driver has."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512" if "avx512dq" in flags and "avx512vl" in flags else "avx2" if "avx2" in flags else "base"


def check(driver: Path, text: str, *runner: str) -> subprocess.CompletedProcess[str]:
    # A leak would be the driver's own; and LeakSanitizer needs ptrace, which containers may lack.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [*runner, driver, "check"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)


def sanitized(isas: tuple[str, ...]) -> None:
    """Every kernel on awkward shapes, wide maps, far paddings and the layers' planes; buffers of their exact size."""
    cases = [*AWKWARD, *WIDE, *FAR, *(case.small(channels=2, batch=1) for case in LAYERS)]
    result = check(driver_build.build(driver_build.SANITIZED, isas), lines(cases))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    ran = {tuple(line.split()[1:]) for line in result.stdout.splitlines()}
    assert {(isa, pass_) for isa, pass_, _ in ran} >= {(native(), pass_) for pass_ in PASSES}


@pytest.mark.slow
def test_sanitized_kernels_on_awkward_shapes() -> None:
    """One instruction set: its build takes most of the time, and all are built from one source. See `make sanitize`."""
    sanitized((native(),))


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("REPLKNET_EXT_SANITIZE") != "all", reason="`make sanitize` runs it")
def test_sanitized_kernels_of_every_instruction_set() -> None:
    sanitized(driver_build.ISAS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong", "says"),
    [
        # one row too many, of the last plane of the input
        ("pack.inc", "Run<S> r{tensor, ", "Run<S> r{tensor + (row + rows == height ? 1 : 0), ", "AddressSanitizer"),
    ],
)
@pytest.mark.skipif(os.environ.get("REPLKNET_EXT_SANITIZE") != "all", reason="`make sanitize` runs it")
def test_a_planted_bug_is_seen(tmp_path: Path, file: str, right: str, wrong: str, says: str) -> None:
    source = tmp_path / "csrc"
    shutil.copytree(driver_build.CSRC, source, ignore=shutil.ignore_patterns("cuda"))
    path = source / "cpu" / file
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    result = check(driver_build.build(driver_build.SANITIZED, (native(),), source), lines(AWKWARD))
    assert result.returncode != 0
    assert says in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(native() == "base", reason="this CPU has no AVX2")
def test_avx2_kernels_on_every_plane() -> None:
    """Exact sums and the same bits in 1, 2 and 3 ranges, of each kernel by itself, also where none would choose it."""
    cases = [*(case.small() for case in CASES), *WIDE, *FAR]
    result = check(driver_build.build(driver_build.FAST, ("avx2",)), lines(cases))
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(WHY_NOT_AARCH64 is not None, reason=str(WHY_NOT_AARCH64))
@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_aarch64_kernels_under_qemu(case: Case) -> None:
    """NEON and no other instruction set: the kernels in 16-byte vectors, compiled for aarch64."""
    driver = driver_build.build(driver_build.AARCH64, ("base",))
    assert driver.read_bytes()[18:20] == b"\xb7\0", "the machine of an ELF file: aarch64"
    result = check(driver, lines([case.small(channels=2, batch=1)]), "qemu-aarch64")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    ran = {tuple(line.split()[1:3]) for line in result.stdout.splitlines()}
    assert ran == ({("base", pass_) for pass_ in PASSES} if case.n else set())


# ---- instructions ----


@cache
def counts() -> dict[str, int]:
    return driver_count.count(driver_build.build(driver_build.FAST, ("avx2",)), driver_count.lines())


needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None or native() == "base", reason="needs valgrind and AVX2"
)


@pytest.mark.slow
@needs_valgrind
def test_kernels_stay_within_their_instructions() -> None:
    margin = MARGIN if driver_build.compiler() == driver_budgets.GCC else OTHER_COMPILER
    measured = counts()
    over = {
        name: f"{measured[name]:,} instead of {budget:,}"
        for name, budget in driver_budgets.COUNTS.items()
        if name in measured and measured[name] > budget * margin
    }
    assert not over, "more instructions than budgeted; if that is meant: python tests/cpu_driver/driver_count.py"


@pytest.mark.slow
@needs_valgrind
def test_every_kernel_has_a_budget() -> None:
    assert set(counts()) == set(driver_budgets.COUNTS), "run: python tests/cpu_driver/driver_count.py"


@needs_valgrind
@pytest.mark.slow
def test_counts_are_repeatable_and_grow_with_the_work() -> None:
    form = "8 14 14 {k} {k} {p} {p} {p} {p} float32 nchw none\n"
    text = "".join(f"{n}-{k} fwd {n} " + form.format(k=k, p=k // 2) for n, k in ((1, 5), (1, 5), (2, 5), (1, 7)))
    driver = driver_build.build(driver_build.FAST, ("avx2",))
    first = driver_count.count(driver, text)
    assert first == driver_count.count(driver, text)
    one, two, larger = (first[f"{name} fwd float32 nchw direct_tile"] for name in ("1-5", "2-5", "1-7"))
    assert 1.5 * one < two < 2.1 * one
    assert 1.2 * one < larger < 2 * one
