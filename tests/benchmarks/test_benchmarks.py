"""The benchmarks must refuse to publish what is wrong: these tests feed them wrong results and wrong operators."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import replknet_ext
from benchmarks import cpu_compare, cpu_ops, cpu_peak, cpu_problem, harness, plot, readme
from benchmarks.cpu_cases import GOALS, GROUPS, PROMISES, TITLES, Group, Target, label
from benchmarks.cpu_problem import OURS, PEAK, TORCH, Job, Problem
from benchmarks.harness import BenchmarkError, Candidate
from benchmarks.shapes import PASSES, Layer, clipped_flop, square

TINY = square(2, 5, 6, 5)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "EVICTED_BYTES", 1 << 20)
        return cpu_ops.measure(Group((TINY,)), rounds=2, budget_seconds=0.1)


def test_interleave_takes_turns_and_counts() -> None:
    order: list[str] = []

    def fast() -> None:
        order.append("fast")

    def slow() -> None:
        order.append("slow")
        time.sleep(0.02)

    candidates = [Candidate("fast", fast), Candidate("slow", slow)]
    timings = harness.interleave(candidates, rounds=6, min_rounds=2, sample_seconds=1e-6, budget_seconds=0.06)
    assert len(timings["fast"].samples) == 6
    assert 2 <= len(timings["slow"].samples) <= 3
    assert timings["slow"].median >= 20
    assert timings["fast"].median < 5
    measured = "".join(name[0] for name in order).lstrip("f").lstrip("s")  # without the warm-up
    assert measured.count("s") == len(timings["slow"].samples)
    assert "sfs" not in measured  # two samples of the slow one have several rounds of the fast one between them


def test_interleave_does_not_repeat_a_slow_warm_up() -> None:
    calls: list[int] = []
    timings = harness.interleave(
        [Candidate("slow", lambda: calls.append(1))], rounds=5, min_rounds=1, budget_seconds=1, warm={"slow": 30.0}
    )
    assert len(calls) == len(timings["slow"].samples) == 1


def test_caches_are_made_cold_before_each_call() -> None:
    order: list[str] = []
    candidates = [Candidate(name, lambda name=name: order.append(name)) for name in ("a", "b")]  # type: ignore[misc]
    timings = harness.interleave(
        candidates, rounds=2, warm={"a": 1.0, "b": 1.0}, sample_seconds=0.01, before=lambda: order.append("cold")
    )
    assert order == ["cold", "a", "cold", "b"] * 2
    assert timings["a"].calls == 1


def test_rows_have_times_with_cold_caches(rows: list[dict[str, Any]]) -> None:
    """Of torch and of what ours chooses; a comparison takes torch's better layout."""
    has = {(row["provider"], row["algorithm"]) for row in rows if "cold_ms" in row}
    assert has == {(TORCH, ""), (OURS, "auto")}
    one = cpu_compare.compare(rows)[0]
    of_torch = [row["cold_ms"] for row in rows if (row["pass"], row["provider"]) == (one.pass_, TORCH)]
    assert one.best_cold == min(of_torch) and one.ours_cold is not None
    assert one.vs_best_cold == pytest.approx(min(of_torch) / one.ours_cold)
    assert "cold: best layout" in readme.cpu_table({"rows": rows, "meta": harness.metadata()})


def test_interleave_refuses_two_of_one_name() -> None:
    with pytest.raises(ValueError, match="different names"):
        harness.interleave([Candidate("a", int), Candidate("a", int)])


def test_percentiles() -> None:
    timing = harness.Timing("t", 1, [4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.percentile(0), timing.median, timing.percentile(100)) == (1.0, 3.0, 5.0)
    assert timing.percentile(10) == pytest.approx(1.4)


def test_trace_sees_which_kernel_ran() -> None:
    x, w = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 5, 5)
    theirs = harness.trace(lambda: F.conv2d(x, w, padding=2, groups=4))
    ours = harness.trace(lambda: replknet_ext.depthwise_conv2d(x, w, padding=2))
    assert ours.ops["replknet_ext::dwconv2d"] == 1
    assert not any("conv" in op for op in ours.ops if op.startswith("aten::"))
    assert theirs.ops["aten::convolution"] == 1
    assert "replknet_ext::dwconv2d" not in theirs.ops
    torch.testing.assert_close(ours.result, theirs.result)


@pytest.mark.parametrize("direction", PASSES)
def test_a_baseline_that_runs_our_kernel_is_refused(direction: str) -> None:
    problem = Problem(TINY)
    tensors = (problem.input, problem.grad, problem.weight)
    disguised = Job("nn.Conv2d NCHW", problem._ours(direction, *tensors), TORCH, "NCHW")
    with torch.no_grad(), pytest.raises(BenchmarkError, match=r"did not run '\^aten"):
        cpu_problem.verify(problem, direction, [disguised])
    disguised = Job("replknet_ext NCHW", problem._torch(direction, *tensors), OURS, "NCHW")
    with torch.no_grad(), pytest.raises(BenchmarkError, match=r"did not run '\^replknet_ext::dwconv2d"):
        cpu_problem.verify(problem, direction, [disguised])


def test_a_fallback_inside_our_call_is_refused() -> None:
    problem = Problem(TINY)
    ours = problem._ours("fwd", problem.input, problem.grad, problem.weight)
    theirs = problem._torch("fwd", problem.input, problem.grad, problem.weight)

    def both() -> torch.Tensor:
        theirs()
        return ours()

    with torch.no_grad(), pytest.raises(BenchmarkError, match="also ran"):
        cpu_problem.verify(problem, "fwd", [Job("replknet_ext NCHW", both, OURS, "NCHW")])


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("damage", [0.01, float("nan")])
def test_a_wrong_result_is_not_timed(direction: str, damage: float) -> None:
    problem = Problem(square(1, 20, 6, 5))
    right, wrong = list(problem.jobs(direction))[:2]
    assert (right.provider, wrong.provider) == (TORCH, OURS)
    run = wrong.run

    def damaged() -> torch.Tensor:
        result: torch.Tensor = run()
        # Channel 10 is not among those compared with float64, so only the comparison with torch sees it.
        result.narrow(0 if direction == "bwd_weight" else 1, 10, 1).view(-1)[0] += damage
        return result

    wrong.run = damaged
    with torch.no_grad(), pytest.raises(BenchmarkError, match="wrong result is not timed"):
        cpu_problem.verify(problem, direction, [right, wrong])


def test_measure_covers_every_pass_provider_and_layout(rows: list[dict[str, Any]]) -> None:
    for pass_ in PASSES:
        labels = [(row["provider"], row["layout"], row["algorithm"]) for row in rows if row["pass"] == pass_]
        assert len(labels) == len(set(labels))
        assert {(TORCH, "NCHW", ""), (TORCH, "channels_last", ""), (PEAK, "", "")} < set(labels)
        assert {(OURS, "NCHW", "auto"), (OURS, "NCHW", "direct")} < set(labels)
    assert all(row["median_ms"] > 0 and row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows)
    assert all(row["error"] < cpu_problem.ERROR_LIMITS["float32"] for row in rows)
    assert all(row["kernel"] for row in rows if row["provider"] == OURS)
    items = cpu_compare.compare(rows)
    assert [(item.layer, item.pass_) for item in items] == [("C5 6x6 K5", name) for name in PASSES]
    for item in items:
        assert item.direct_share is not None
        assert 0 < item.direct_share < 1.2


def test_a_group_in_bfloat16_is_measured_beside_float32() -> None:
    rows = cpu_ops.measure(Group((TINY,), "channels_last", "bfloat16"), with_peak=False, rounds=1, budget_seconds=0.01)
    assert {(row["dtype"], row["layout"]) for row in rows if row["provider"] == OURS} == {
        ("bfloat16", "channels_last"),
        ("float32", "channels_last"),
    }
    for item in cpu_compare.compare(rows):
        assert item.vs_float32 is not None
        assert item.share is None


def test_work_counts_only_taps_inside_the_image() -> None:
    assert clipped_flop(square(1, 1, 6, 1)) == 2 * 36
    for layer in (square(2, 3, 14, 27), Layer(1, 2, 9, 7, 6, 4)):
        x, w = torch.ones(layer.n, layer.c, layer.h, layer.w), torch.ones(layer.c, 1, layer.kh, layer.kw)
        out = F.conv2d(x, w, padding=layer.padding, groups=layer.c)
        assert out.shape[2:] == layer.output
        assert clipped_flop(layer) == 2 * int(out.sum())


def test_the_peak_is_of_fused_multiply_adds() -> None:
    """An FMA loop that did not fuse, or that waited for memory, would not pass the widest of our own kernels."""
    isa = torch.ops.replknet_ext._cpu_isa()
    if isa == "base":
        pytest.skip("no FMA in the base instruction set")
    run, gflop = cpu_peak.job(isa)
    problem = Problem(square(1, 16, 56, 31))
    ours = Candidate("ours", problem._ours("fwd", problem.input, problem.grad, problem.weight, "direct"))
    timings = harness.interleave([Candidate("peak", run), ours], rounds=5)
    fastest = {name: min(timing.samples) for name, timing in timings.items()}
    assert gflop / fastest["peak"] > clipped_flop(problem.layer) / 1e9 / fastest["ours"]


def test_no_compiler_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_peak._library.cache_clear()
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(BenchmarkError, match=r"could not compile cpu_peak\.cpp"):
        cpu_peak.job("base")


def made_up(theirs: float, theirs_channels_last: float, ours: float) -> list[dict[str, Any]]:
    values = {
        (TORCH, "NCHW", ""): theirs,
        (TORCH, "channels_last", ""): theirs_channels_last,
        (OURS, "NCHW", "auto"): ours,
        (OURS, "NCHW", "direct"): 2 * ours,
        (PEAK, "", ""): 1.0,
    }
    return [
        {
            "layer": label(TINY),
            "batch": TINY.n,
            "dtype": "float32",
            "pass": "fwd",
            "provider": provider,
            "layout": layout,
            "algorithm": algorithm,
            "kernel": "k",
            "median_ms": value,
            "gflop": 0.5,
            "gflops": 100.0,
        }
        for (provider, layout, algorithm), value in values.items()
    ]


def test_check_keeps_and_breaks_promises() -> None:
    promise = Target("main", TINY, "fwd", "vs_default", 40.0)
    (kept,) = cpu_compare.check(made_up(400.0, 20.0, 10.0), [promise])
    assert (kept["measured"], kept["kept"]) == (40.0, True)
    (broken,) = cpu_compare.check(made_up(399.0, 20.0, 10.0), [promise])
    assert not broken["kept"]
    with pytest.raises(BenchmarkError, match="bwd_weight was not measured"):
        cpu_compare.check(made_up(1.0, 1.0, 1.0), [Target("main", TINY, "bwd_weight", "vs_best", 1.0)])
    with pytest.raises(BenchmarkError, match="vs_float32"):
        cpu_compare.check(made_up(1.0, 1.0, 1.0), [Target("bf16", TINY, "fwd", "vs_float32", 1.0)])


def test_shares_are_rates_over_the_highest_peak_of_the_run() -> None:
    rows = made_up(1.0, 1.0, 10.0)
    rows.append({**rows[-1], "pass": "bwd_weight", "gflops": 40.0})  # the FMA peak of a disturbed moment
    rows += [{**row, "pass": "bwd_weight"} for row in rows[:-2]]
    item = cpu_compare.compare(rows)[0]
    assert item.share == pytest.approx(0.5 / 0.010 / 100)
    assert item.direct_share == pytest.approx(0.5 / 0.020 / 100)


def test_goals_and_promises_are_of_layers_that_are_measured() -> None:
    assert set(TITLES) == set(GROUPS)
    for target in (*GOALS, *PROMISES):
        assert target.layer in GROUPS[target.group].layers
        assert hasattr(cpu_compare.Comparison, target.figure)
    assert len({label(layer) for layer in GROUPS["off_template"].layers}) == len(GROUPS["off_template"].layers)
    assert cpu_compare.targets_of(GOALS, "main", "avx2")


def test_best_layout_is_torchs_own_best() -> None:
    (item,) = cpu_compare.compare(made_up(30.0, 20.0, 10.0))
    assert (item.best, item.best_layout, item.vs_best, item.vs_default) == (20.0, "channels_last", 2.0, 3.0)
    (item,) = cpu_compare.compare(made_up(15.0, 20.0, 30.0))
    assert (item.best, item.best_layout, item.vs_best) == (15.0, "NCHW", 0.5)
    assert (cpu_compare.times(0.5), cpu_compare.times(2.04), cpu_compare.times(41.6)) == ("0.50x", "2.0x", "42x")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    harness.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        harness.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_command_line_writes_results_that_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(GROUPS, "main", Group((TINY,)))
    monkeypatch.setattr(cpu_compare, "goals", lambda rows, group, isa: [])
    kept = Target("main", TINY, "fwd", "vs_best", 0.0)
    monkeypatch.setattr(cpu_compare, "PROMISES", (kept, replace(kept, isa="avx2"), replace(kept, isa="base")))
    path = tmp_path / "out.json"
    command = ["--rounds", "1", "--threads", str(torch.get_num_threads()), "--output", str(path)]
    assert cpu_ops.main([*command, "--check"]) == 0
    broken = replace(kept, at_least=1e9)
    monkeypatch.setattr(cpu_compare, "PROMISES", (broken, replace(broken, isa="avx2"), replace(broken, isa="base")))
    assert cpu_ops.main(command) == 0
    assert cpu_ops.main([*command, "--check"]) == 1
    assert "NOT kept" in capsys.readouterr().out
    payload = json.loads(path.read_text())
    meta = payload["meta"]
    assert meta["torch"] == torch.__version__
    assert meta["kernel_isa"] in ("base", "avx2", "avx512")
    assert meta["cores"] >= 1
    assert all(meta[key] for key in ("date", "command", "commit", "cpu", "python", "replknet_ext"))


def test_plot_is_a_picture(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "picture.png"
    plot.draw(cpu_ops.report(rows), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") >= 1200


def test_readme_tables_are_those_of_the_results() -> None:
    assert readme.main(["--check"]) == 0, "run: python -m benchmarks.readme"


def test_readme_check_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pages = {"README": tmp_path / "README.md", "PAGE": tmp_path / "benchmarks.md", "MISSED": tmp_path / "results.md"}
    for name, copy in pages.items():
        monkeypatch.setattr(readme, name, copy)
        copy.write_text(f"before\n{readme.BEGIN}\nold figures\n{readme.END}\nafter\n")
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    for copy in pages.values():
        text = copy.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old figures" not in text
        copy.write_text(text.replace("|---", "|--"))
        assert readme.main(["--check"]) == 1, "a stale page goes unnoticed"
        copy.write_text(text)
    with pytest.raises(ValueError, match="marker"):
        readme.render("no markers", "tables")


def test_stored_results_keep_the_promises() -> None:
    """Each stored run that covers a promised layer reached it, and came from a clean, known commit of this project."""
    for path in harness.RESULTS.glob("cpu_ops_*.json"):
        payload = json.loads(path.read_text())
        isa = payload["meta"]["kernel_isa"]
        checks = cpu_compare.promises(payload["rows"], payload["group"], isa)
        assert all(check["kept"] for check in checks), path.name
        assert payload["goals"] == cpu_compare.goals(payload["rows"], payload["group"], isa), path.name
        assert payload["meta"]["commit"] != "unknown", path.name
