"""nvcc's own code of every kernel, run on the CPU by tests/ptx_run: values, races, accesses, divergence, launches.

Slow, since every file is compiled by nvcc: `make test-all` runs a problem or more of each kernel, `make ptx` all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nvcc_objects
import ptx_build
import pytest
from ptx_bugs import BUGS
from ptx_unreached import REASONS, reason_of

FAMILIES = sorted(path.parent.name for path in ptx_build.CUDA.glob("*/plan.cpp"))
# One worker runs them: the others meanwhile run other tests, and what is compiled is compiled once.
pytestmark = pytest.mark.xdist_group("ptx_run")

every_mutant = os.environ.get("REPLKNET_EXT_MUTANTS") == "all"
SAMPLE = list(BUGS)[:: 1 if every_mutant else 5]


def _program(arch: str = nvcc_objects.ARCH) -> Path:
    why = ptx_build.missing()
    if why is not None:
        pytest.skip(why)
    return ptx_build.build(arch)


@pytest.fixture(scope="session")
def program() -> Path:
    return _program()


def run(program: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    """Runs problems; returns the report. Problems that fail are in its "failures"."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [str(program), "--json", str(report), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "a process crashed" not in done.stdout, done.stdout
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert (done.returncode == 1) == bool(found["failures"])
    return found


def check(report: dict[str, Any]) -> None:
    """No failure; says of the first which case it was, for ``ptx_run --case``."""
    failures = report["failures"]
    assert not failures, (
        f"{len(failures)} failed; {failures[0]['variant']}: {failures[0]['case']}\n{failures[0]['error']}"
    )


@pytest.fixture(scope="module")
def quick(program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every variant, dtype, memory format and precision one problem, and more until three reach nothing new."""
    return run(program, tmp_path_factory.mktemp("quick"), "--per", 1, "--jobs", ptx_build.JOBS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_a_family(quick: dict[str, Any], family: str) -> None:
    assert quick["problems"][family] > 20
    check({"failures": [one for one in quick["failures"] if one["family"] == family]})


@pytest.mark.slow
def test_every_entry_runs(quick: dict[str, Any]) -> None:
    assert quick["never_run"] == []
    assert set(quick["problems"]) == set(FAMILIES), "a problem without a family has failed: see failures"


#: Minutes to hours on 2 cores, not yet timed on an idle machine: `make ptx`.
whole = pytest.mark.skipif(os.environ.get("REPLKNET_EXT_PTX") != "all", reason="make ptx runs it")


@pytest.mark.slow
@whole
def test_every_instruction_is_reached_or_has_a_reason(program: Path, tmp_path: Path) -> None:
    """Four problems or more of each kind."""
    report = run(program, tmp_path, "--per", 4, "--jobs", ptx_build.JOBS)
    check(report)
    found = {line["place"]: (reason_of(line["place"]), line) for line in report["unreached"]}
    unexplained = [line for key, line in found.values() if key is None or line["entries"] != REASONS[key][0]]
    assert not unexplained, f"{len(unexplained)} lines are not as ptx_unreached.py says: {unexplained[:3]}"
    assert {key for key, _ in found.values()} == set(REASONS), "these reasons are of lines that are reached"


@pytest.mark.slow
@whole
@pytest.mark.parametrize("seed", [1, 2])
def test_any_problem_on_any_device(program: Path, tmp_path: Path, seed: int) -> None:
    """Random shapes, paddings, limits of five GPUs, alignments and schedules."""
    check(run(program, tmp_path, "--any", 400, "--seed", seed, "--jobs", ptx_build.JOBS))


@pytest.mark.slow
@whole
@pytest.mark.parametrize("which", ["--large", "--layers"])
def test_blocks_of_large_launches(program: Path, tmp_path: Path, which: str) -> None:
    """Some blocks of launches on more than 2^32 elements, and of the papers' layers."""
    check(run(program, tmp_path, which, 2, "--jobs", ptx_build.JOBS))


@pytest.mark.slow
@whole
def test_code_for_the_oldest_architecture(tmp_path: Path) -> None:
    program = _program("80")
    limits = ("--capability", 80, "--shared", 163 << 10)
    check(run(program, tmp_path, "--per", 1, *limits, "--jobs", ptx_build.JOBS))


def test_bugs_are_of_the_sources() -> None:
    """Each names a text that is there once, so that none is left behind when its line changes."""
    lost = [name for name, bug in BUGS.items() if (ptx_build.CUDA / bug.file).read_text().count(bug.text) != 1]
    assert not lost
    assert all((ptx_build.CUDA / bug.source).exists() for bug in BUGS.values())


@pytest.mark.slow
@whole
@pytest.mark.parametrize("name", SAMPLE)
def test_planted_bugs_are_noticed(tmp_path: Path, program: Path, name: str) -> None:
    bug = BUGS[name]
    shutil.copytree(ptx_build.CUDA.parent, tmp_path / "csrc", ignore=shutil.ignore_patterns("cpu", "bindings"))
    cuda = tmp_path / "csrc" / "cuda"
    source = (cuda / bug.file).read_text()
    (cuda / bug.file).write_text(source.replace(bug.text, bug.replacement))
    mutant = ptx_build.build_with_bug(tmp_path, cuda, bug.source)
    arguments = ["--variant", bug.variant, "--per", "4"]
    assert subprocess.run([program, *arguments], capture_output=True).returncode == 0
    # 1: a problem fails; 2: the planner takes none
    assert subprocess.run([mutant, *arguments], capture_output=True).returncode in (1, 2), "nothing noticed the bug"


@pytest.mark.slow
def test_a_case_is_run_again_as_a_failure_prints_it(program: Path, tmp_path: Path) -> None:
    text = "fwd n=2 c=1 h=9 w=9 kh=3 kw=3 ho=9 wo=9 top=1 left=1 dtype=float32 data=exact seed=3 schedule=7"
    report = run(program, tmp_path, "--case", text)
    check(report)
    assert report["executed"] > 0 and sum(report["problems"].values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "fwd dtype=float8"], "dtype must be 'float64', 'float32', 'float16' or 'bfloat16', got 'float8'"),
        (["--case", "fwd sides=3"], "sides=3"),
        (["--variant", "none of that name"], "no variant supports any of these problems"),
        (["--wrong"], "unknown argument --wrong"),
        (["--per"], "--per needs a value"),
    ],
)
def test_bad_arguments_are_named(program: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
