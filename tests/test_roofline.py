"""The performance model: its counts against brute force, its stored predictions against the code."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from benchmarks import gpu_plan, kernel_table, roofline
from benchmarks.shapes import GOALS_US, GROUPS, K7, K14, K28, K56, LARGE, MAIN, Layer, all_layers, clipped_flop, taps

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the launch planner needs g++")
SIZES = [(size, kernel) for size in (1, 2, 5, 7, 8, 9, 14, 23) for kernel in (1, 3, 7, 13, 31)]


@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_taps_are_those_inside_the_image(size: int, kernel: int) -> None:
    counted = F.conv1d(torch.ones(1, 1, size), torch.ones(1, 1, kernel), padding=kernel // 2).sum()
    assert taps(size, kernel) == int(counted)


@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_meetings_by_brute_force(size: int, kernel: int) -> None:
    for block, input_block, shift in ((2, 2, 0), (2, 2, 1), (8, 8, 0), (8, 4, 0), (16, 8, 0)):
        met = {
            (out // block, (out - kernel // 2 + tap + shift) // input_block)
            for out, tap in itertools.product(range(size), range(kernel))
            if 0 <= out - kernel // 2 + tap < size
        }
        assert roofline.meetings(size, kernel, block, input_block, shift) == len(met)


def test_counts_of_a_layer_by_hand() -> None:
    layer = Layer(n=8, c=3, h=2, w=8, kh=3, kw=3)
    assert clipped_flop(layer) == 2 * 8 * 3 * (2 + 2) * (8 * 3 - 2)
    assert roofline.nominal_flop(layer) == 2 * 8 * 3 * 16 * 9
    assert roofline.least_bytes(layer) == 2 * (2 * 8 * 3 * 16 + 3 * 9)
    assert roofline.least_mmas(layer) == 3  # 2 x 8 outputs by 2 x 8 inputs by 8 images: one a channel
    assert layer.name == "N8 C3 2x8 K3"


def test_useful_share_of_the_mapping() -> None:
    """Known from an exact integer simulation of the register Toeplitz; small planes are padded to 200 and 56 pixels."""
    for layer, share in ((K56, 0.77), (K14, (196 / 200) ** 2), (K7, (49 / 56) ** 2), (LARGE, 0.76)):
        useful = clipped_flop(layer) / (roofline.least_mmas(layer) * roofline.MMA_FLOP)
        assert useful == pytest.approx(share, abs=0.01)


@needs_compiler
def test_the_planner_issues_what_it_must_and_not_much_more() -> None:
    for layer in MAIN:
        mmas, least = gpu_plan.plan(layer, algorithm="direct").mmas, roofline.least_mmas(layer)
        assert least <= mmas <= 1.35 * least, layer.name
    for layer in all_layers():
        assert gpu_plan.plan(layer, algorithm="direct").mmas >= 0.99 * roofline.least_mmas(layer), layer.name


@needs_compiler
def test_the_planner_chooses_its_own_fastest() -> None:
    for layer in all_layers():
        plans = gpu_plan.supported(layer, "fwd", "bfloat16")
        fastest = min(plans.values(), key=lambda plan: plan.cycles)
        chosen = gpu_plan.plan(layer)
        assert chosen.cycles == fastest.cycles, layer.name
        assert chosen.shared_bytes <= gpu_plan.H200.shared_per_block
        for number, plan in plans.items():
            assert (plan.variant, plan.name) == (number, gpu_plan.variants()[number])


@needs_compiler
def test_reasons_of_the_planner() -> None:
    number = gpu_plan.variants().index(gpu_plan.plan(K56).name)
    with pytest.raises(gpu_plan.PlanError, match="width"):
        gpu_plan.plan(K28, variant=number)
    with pytest.raises(gpu_plan.PlanError, match=r"8\.0"):
        gpu_plan.plan(K28, limits=gpu_plan.Limits(75, 40, 64 << 10, 64 << 10), variant=number)
    with pytest.raises(gpu_plan.PlanError, match="float64"):
        gpu_plan.plan(K28, dtype="float64", algorithm="fft")


LARGE_MAPS = [(128, 96, 96), (64, 128, 128), (64, 128, 512), (64, 256, 256)]
#: (layer at batch 1, pass, dtype) beyond the rule below. rt_weight splits a batch by images and groups of rows of one:
#: too few blocks for small filters. 64 channels of one 128 x 128 image are 64 windows of the FFT, for 132 SMs.
EXPENSIVE_ALONE = {
    ("N1 C64 128x128 K13", "bwd_weight", "bfloat16"),
    ("N1 C64 128x512 K13", "bwd_weight", "bfloat16"),
    ("N1 C64 256x256 K13", "bwd_weight", "bfloat16"),
    ("N1 C64 128x128 K31", "fwd", "float32"),
    ("N1 C64 128x128 K31", "bwd_weight", "float32"),
    ("N1 C64 128x128 K51", "fwd", "bfloat16"),
    ("N1 C64 128x128 K51", "fwd", "float32"),
}


@needs_compiler
def test_one_large_map_costs_twice_its_share_of_a_batch_and_a_launch() -> None:
    found = set()
    for (c, h, w), k, pass_ in itertools.product(LARGE_MAPS, (13, 31, 51), ("fwd", "bwd_weight")):
        for dtype in ("bfloat16", "float32"):
            one, many = (Layer(n, c, h, w, k, k) for n in (1, 64))
            us = [roofline.cycles_us(gpu_plan.plan(layer, pass_, dtype).cycles) for layer in (one, many)]
            if us[0] > 2 * us[1] / 64 + 3:
                found.add((one.name, pass_, dtype))
    assert found == EXPENSIVE_ALONE


@needs_compiler
def test_fft_is_the_choice_for_large_filters_on_large_maps_in_16_bit() -> None:
    names = {k: gpu_plan.plan(Layer(64, 128, 96, 96, k, k)).name for k in (7, 13, 31, 51, 63)}
    assert [name.startswith("fft") for name in names.values()] == [False, False, True, True, True], names
    assert all(gpu_plan.plan(layer).name.startswith(("rt_", "small_")) for layer in MAIN)


@needs_compiler
def test_predictions_stay_above_their_bounds() -> None:
    rows = roofline.predictions()["rows"]
    assert {layer.name for group in GROUPS.values() for layer in group} == {layer.name for layer in all_layers()}
    keys = [(row["layer"], row["pass"], row["numbers"], row["format"]) for row in rows]
    assert len(set(keys)) == len(keys) == 3 * len(all_layers()) + 3 * 7 * len(roofline.IN_ALL_FORMS)
    assert {(layer.name, pass_, numbers) for layer, pass_, numbers in GOALS_US} <= {key[:3] for key in keys}
    for row in rows:
        bounds = [row["memory_us"], 0 if row["variant"].startswith("fft") else row["taps_us"]]
        if row["variant"].startswith("rt"):
            bounds.append(row["mma_us"] or 0)
        assert row["predicted_us"] >= max(bounds) * 0.95, row
        assert row["predicted_us"] == min(row["variants_us"].values())


@needs_compiler
def test_stored_predictions_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--check"]) == 0, "run: python -m benchmarks.roofline"
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTION")
    assert max(map(len, printed.splitlines())) <= 120
    assert json.loads(roofline.RESULT.read_text())["kind"].startswith("PREDICTION")


@needs_compiler
def test_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.CEILINGS, "copy_bytes_per_s", 1e12)
    assert roofline.main(["--check"]) == 1


@needs_compiler
def test_the_page_of_kernels_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_table.main(["--check"]) == 0, "run: python -m benchmarks.kernel_table"
    text = kernel_table.PAGE.read_text()
    assert "torch:" not in text, "something goes to torch"
    for name in ("`rt_", "`rtw_", "`fma_", "`fft_", "`stencil_"):
        assert name in text
    monkeypatch.setattr(kernel_table, "HEAD", "")
    assert kernel_table.main(["--check"]) == 1
