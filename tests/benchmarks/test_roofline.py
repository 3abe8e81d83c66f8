"""The performance model: its counts against brute force, its stored predictions against the code."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable

import cuda_budgets
import pytest
import torch
import torch.nn.functional as F

from benchmarks import gpu_cases, gpu_plan, kernel_table, roofline
from benchmarks.shapes import (
    GOALS_US,
    GROUPS,
    K7,
    K14,
    K28,
    K56,
    LARGE,
    MAIN,
    NUMBERS,
    PASSES,
    Layer,
    all_layers,
    clipped_flop,
    taps,
)
from replknet_ext._ext import HAS_EXT
from replknet_ext.backends.base import CYCLES_PER_US

needs_planner = pytest.mark.skipif(not HAS_EXT, reason="the compiled extension, which holds the planner, is missing")
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
    assert roofline.least_mmas(layer) == 3  # 2 x 8 outputs by 2 x 8 inputs by 8 images: one per channel
    assert layer.name == "N8 C3 2x8 K3"


def test_useful_share_of_the_mapping() -> None:
    """Known from an exact integer simulation of the register Toeplitz; small planes are padded to 200 and 56 pixels."""
    for layer, share in ((K56, 0.77), (K14, (196 / 200) ** 2), (K7, (49 / 56) ** 2), (LARGE, 0.76)):
        useful = clipped_flop(layer) / (roofline.least_mmas(layer) * roofline.MMA_FLOP)
        assert useful == pytest.approx(share, abs=0.01)


@needs_planner
def test_the_planner_issues_what_it_must_and_not_much_more() -> None:
    for layer in MAIN:
        mmas, least = gpu_plan.plan(layer, algorithm="direct").mmas, roofline.least_mmas(layer)
        assert least <= mmas <= 1.35 * least, layer.name
    for layer in all_layers():
        assert gpu_plan.plan(layer, algorithm="direct").mmas >= 0.99 * roofline.least_mmas(layer), layer.name


def measured(names: Iterable[str]) -> list[str]:
    """Without the variants that are not chosen, as no device has measured their family."""
    return [name for name in names if not name.startswith("wgmma")]


@needs_planner
def test_the_planner_chooses_its_own_fastest() -> None:
    for layer in all_layers():
        plans = gpu_plan.supported(layer, "fwd", "bfloat16")
        cycles = {plan.name: plan.cycles for plan in plans.values()}
        chosen = gpu_plan.plan(layer)
        assert chosen.cycles == min(cycles[name] for name in measured(cycles)), layer.name
        assert chosen.shared_bytes <= gpu_plan.H200.shared_per_block
        for number, plan in plans.items():
            assert (plan.variant, plan.name) == (number, gpu_plan.variants()[number])


@needs_planner
def test_reasons_of_the_planner() -> None:
    number = gpu_plan.variants().index(gpu_plan.plan(K56).name)
    with pytest.raises(gpu_plan.PlanError, match="width"):
        gpu_plan.plan(K28, variant=number)
    with pytest.raises(gpu_plan.PlanError, match=r"8\.0"):
        gpu_plan.plan(K28, limits=gpu_plan.Limits(75, 40, 64 << 10, 64 << 10), variant=number)
    with pytest.raises(gpu_plan.PlanError, match="float64"):
        gpu_plan.plan(K28, dtype="float64", algorithm="fft")


#: The GPUs whose architectures the budgets are of: data sheets' shared memory.
DEVICES = {
    "80": gpu_plan.Limits(80, 108, 163 << 10, 164 << 10),
    "86": gpu_plan.Limits(86, 84, 99 << 10, 100 << 10),
    "89": gpu_plan.Limits(89, 128, 99 << 10, 100 << 10),
    "90": gpu_plan.H200,
    "100": gpu_plan.Limits(100, 148, 227 << 10, 228 << 10),
    "120": gpu_plan.Limits(120, 170, 99 << 10, 100 << 10),
}


@needs_planner
@pytest.mark.parametrize("arch", DEVICES)
def test_registers_leave_room_for_the_blocks_of_every_plan(arch: str) -> None:
    """Registers as compiled, which are given to warps in units of 256, from 16384 of each of four schedulers."""
    assert tuple(DEVICES) == cuda_budgets.ARCHS
    budgets = {name: budget for family in cuda_budgets.families().values() for name, budget in family.budgets.items()}
    limits, seen = DEVICES[arch], set()
    layers = [*gpu_cases.CASES, Layer(3, 2, 9, 9, 3, 3)] + ([*MAIN, LARGE] if arch == "90" else [])
    forms = [(n.dtype, n.precision, last) for n in NUMBERS.values() for last in (False, True)]
    for layer, pass_, (dtype, precision, last) in itertools.product(layers, ("fwd", "bwd_weight"), forms):
        for plan in gpu_plan.supported(layer, pass_, dtype, limits, channels_last=last, precision=precision).values():
            name = f"{plan.name} {pass_.removeprefix('bwd_')}" if plan.name.startswith("fft_") else plan.name
            own = budgets[name].registers  # of a family of one architecture: one number
            registers = own[cuda_budgets.ARCHS.index(arch) if len(own) > 1 else 0]
            most = 4 * (16384 // (32 * (registers + 7 & ~7))) // plan.warps
            assert 1 <= plan.blocks_per_sm <= most, (layer.name, name, plan)
            seen.add(name)
    assert len(seen) > 0.9 * len(budgets), set(budgets) - seen


LARGE_MAPS = [(128, 96, 96), (64, 128, 128), (64, 128, 512), (64, 256, 256)]
#: (layer, pass, dtype) beyond the rule below; docs/cuda-kernels.md ("Small batches") has the times.
EXPENSIVE_ALONE = {
    # summing 729 taps of 4 channels and copying rows for 16 slots take as long as the launch
    ("N1 C512 14x14 K27", "bwd_weight", "bfloat16"),
    ("N2 C512 14x14 K27", "bwd_weight", "bfloat16"),
    ("N4 C512 14x14 K27", "bwd_weight", "bfloat16"),
    # 64 channels of one image are 64 windows of the longest transform, for 132 SMs; shorter ones need more work
    ("N1 C64 128x128 K31", "fwd", "float32"),
    ("N1 C64 128x128 K31", "bwd_weight", "float32"),
    ("N1 C64 128x128 K51", "fwd", "bfloat16"),
    ("N1 C64 128x128 K51", "fwd", "float32"),
}


def beyond_a_share_of_64(layer: Layer, pass_: str, dtype: str) -> bool:
    us = [
        roofline.cycles_us(gpu_plan.plan(one, pass_, dtype).cycles) for one in (layer, dataclasses.replace(layer, n=64))
    ]
    return us[0] > 2 * us[1] * layer.n / 64 + 3


@needs_planner
def test_small_batches_cost_twice_their_share_of_64_images_and_a_launch() -> None:
    large = [Layer(1, c, h, w, k, k) for (c, h, w), k in itertools.product(LARGE_MAPS, (13, 31, 51))]
    tried = itertools.product(large, ("fwd", "bwd_weight"), ("bfloat16", "float32"))
    small = [dataclasses.replace(layer, n=n) for layer in MAIN for n in (1, 2, 4, 7)]
    both = [*tried, *itertools.product(small, PASSES, ("bfloat16",))]
    found = {(layer.name, pass_, dtype) for layer, pass_, dtype in both if beyond_a_share_of_64(layer, pass_, dtype)}
    assert found == EXPENSIVE_ALONE


@needs_planner
def test_channels_last_runs_in_its_own_format_or_on_copies_whatever_is_faster() -> None:
    copied = {}
    for layer in (*MAIN, LARGE, Layer(8, 64, 160, 160, 31, 31)):
        plans = gpu_plan.supported(layer, "fwd", "bfloat16", channels_last=True).values()
        chosen = gpu_plan.plan(layer, channels_last=True)
        cycles = {plan.name: plan.cycles for plan in plans}
        assert chosen.cycles == min(cycles[name] for name in measured(cycles))
        copied[layer.name] = bool(chosen.copied)
        contiguous = gpu_plan.plan(layer)
        # copies: two launches, and both tensors read and written at 0.85 of the bandwidth
        moved = 2 * 2 * 2 * layer.n * layer.c * layer.h * layer.w
        on_copies = contiguous.cycles + 2 * 3500 + moved / (0.85 * 18 * 132)
        assert chosen.cycles <= on_copies * (1 + 1e-9)
        assert not chosen.copied or chosen.cycles == pytest.approx(on_copies)
    assert set(copied.values()) == {False, True}, copied
    assert not copied[K28.name], "copies are predicted at 69 us, the kernel for channels_last at 59"


@needs_planner
def test_fft_is_the_choice_for_large_filters_on_large_maps_in_16_bit() -> None:
    names = {k: gpu_plan.plan(Layer(64, 128, 96, 96, k, k)).name for k in (7, 13, 31, 51, 63)}
    assert [name.startswith("fft") for name in names.values()] == [False, False, False, True, True], names
    assert all(gpu_plan.plan(layer).name.startswith(("ring_", "rt_", "small_")) for layer in MAIN)


@needs_planner
def test_predictions_stay_above_their_bounds() -> None:
    rows = roofline.predictions()["rows"]
    assert {layer.name for group in GROUPS.values() for layer in group} == {layer.name for layer in all_layers()}
    keys = [(row["layer"], row["pass"], row["numbers"], row["format"]) for row in rows]
    assert len(set(keys)) == len(keys) == 3 * len(all_layers()) + 3 * 7 * len(roofline.IN_ALL_FORMS)
    assert {(layer.name, pass_, numbers) for layer, pass_, numbers in GOALS_US} <= {key[:3] for key in keys}
    for row in rows:
        bounds = [row["memory_us"], 0 if row["variant"].startswith("fft") else row["taps_us"]]
        if row["variant"].startswith(("rt", "ring")):
            bounds.append(row["mma_us"] or 0)
        assert row["predicted_us"] >= max(bounds) * 0.95, row
        assert row["predicted_us"] == min(row["variants_us"][name] for name in measured(row["variants_us"]))


@needs_planner
def test_stored_predictions_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--check"]) == 0, "run: python -m benchmarks.roofline"
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTION")
    assert max(map(len, printed.splitlines())) <= 120
    assert json.loads(roofline.RESULT.read_text())["kind"].startswith("PREDICTION")


@needs_planner
def test_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.CEILINGS, "copy_bytes_per_s", 1e12)
    assert roofline.main(["--check"]) == 1


@needs_planner
def test_the_page_of_kernels_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_table.main(["--check"]) == 0, "run: python -m benchmarks.kernel_table"
    text = kernel_table.PAGE.read_text()
    assert "torch:" not in text, "something goes to torch"
    for name in ("`rt_", "`ring_", "`rtw_", "`fma_", "`fft_", "`stencil_"):
        assert name in text
    monkeypatch.setattr(kernel_table, "HEAD", "")
    assert kernel_table.main(["--check"]) == 1


def test_one_clock_turns_cycles_into_microseconds() -> None:
    """Also without the extension, which reports it."""
    model = (gpu_plan.CSRC / "cuda" / "model.h").read_text()
    fallback = (gpu_plan.ROOT / "replknet_ext" / "backends" / "base.py").read_text()
    clock = float(re.findall(r"kClockMHz = ([\d.]+)", model)[0])
    assert clock == CYCLES_PER_US == float(re.findall(r'"model_clock_mhz", ([\d.]+)', fallback)[0])
