"""Plans and launches of every family: a problem is planned once, and what was planned is what is launched."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import emulator_harness as harness
import pytest
from emulator_harness import H200, Case

#: Of every family a forward and a gradient, where it has them, of a size that no other test plans.
CASES = {
    "toeplitz_fwd": [Case(3, 2, 23, 29, 11), Case(3, 3, 23, 29, 11, channels_last=True)],
    "toeplitz_ring": [Case(3, 2, 23, 27, (11, 25))],
    "toeplitz_weight": [Case(3, 2, 23, 29, 11, pass_="bwd_weight", bias=True)],
    "small_planes": [Case(5, 3, 13, 10, 5), Case(5, 3, 13, 10, 5, pass_="bwd_weight")],
    "stencil": [Case(3, 2, 22, 29, 3), Case(3, 2, 22, 29, 5, pass_="bwd_weight", dtype="float32")],
    "fma": [
        Case(3, 2, 21, 19, 7, dtype="float32"),
        Case(3, 2, 21, 19, 7, pass_="bwd_weight", dtype="float64", bias=True),
    ],
    "fft": [Case(3, 2, 15, 14, 7, dtype="float32"), Case(3, 2, 15, 14, 7, pass_="bwd_weight", bias=True)],
}
PLANNED = [(family, case) for family, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("family", "case"), PLANNED)
def test_the_plan_made_is_the_plan_launched(plain: ModuleType, family: str, case: Case) -> None:
    plain.only(family)
    before = plain.plans_made()
    harness.check_random(plain, case)  # asks for the plan, for the size of the workspace, and launches
    assert plain.plans_made() - before == 1
    plan, ran = plain.plan(case.problem(), case.limits, case.variant), plain.take_counters()
    assert plan["family"] == family
    assert (ran["blocks"], ran["threads"], ran["shared_bytes"]) == (
        plan["blocks"],
        32 * plan["warps"],
        plan["shared_bytes"],
    )


@pytest.mark.parametrize(("family", "case"), PLANNED)
def test_an_empty_batch_has_a_plan_and_launches_nothing(plain: ModuleType, family: str, case: Case) -> None:
    plain.only(family)
    empty = case.but(n=0)
    assert plain.plan(empty.problem(), empty.limits, -1)["family"] == family
    assert plain.launch(empty.problem(), {}, -1, empty.limits) == ""
    assert plain.take_counters()["blocks"] == 0


CHANGES: dict[str, Any] = {
    "n": 4, "c": 5, "h": 32, "w": 33, "kh": 5, "kw": 7, "ho": 24, "wo": 23, "pad_top": 4, "pad_left": 5,
    "dtype": "bfloat16", "channels_last": True, "flip": True, "activation": "relu", "pass": "bwd_weight",
    "precision": "tf32", "algorithm": "direct",
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_a_problem_has_plans_of_its_own(plain: ModuleType, field: str) -> None:
    problem = Case(3, 4, 31, 30, 9, pad=(1, 2, 3, 4)).problem()
    assert set(CHANGES) == set(problem)
    changed = {**problem, field: CHANGES[field]}
    assert changed != problem
    for asked, made in ((problem, None), (changed, 1), (problem, 0), (changed, 0)):
        before = plain.plans_made()
        plain.supports(asked, H200, -1)
        assert made is None or plain.plans_made() - before == made


@pytest.mark.parametrize("place", range(4))
def test_every_limit_of_a_device_and_every_variant_has_plans_of_its_own(plain: ModuleType, place: int) -> None:
    problem = Case(3, 4, 37, 30, 9).problem()
    other = tuple(v - (i == place) for i, v in enumerate(H200))
    for limits, variant in ((H200, -1), (H200, place), (other, -1)):
        plain.supports(problem, limits, variant)
        before = plain.plans_made()
        plain.supports(problem, limits, variant)
        assert plain.plans_made() == before
    assert plain.plan(problem, other, -1)["blocks_per_sm"] >= 1


def test_filters_of_too_many_taps_are_refused(plain: ModuleType) -> None:
    big = 1 << 15
    for pass_ in ("fwd", "bwd_weight"):
        case = Case(1, 1, 8, 8, (big, big), pad=(big, big, big, big), pass_=pass_)
        for number in range(-1, len(plain.variants(pass_))):
            assert "2^28 taps" in plain.supports(case.problem(), H200, number)
