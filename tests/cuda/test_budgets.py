"""Compile budgets of the CUDA kernels: registers, spills, the instruction mix of the inner loop."""

from __future__ import annotations

import functools

import cuda_budgets
import nvcc_objects
import pytest
from cuda_budgets import NVCC, Family, Job, Tables

from replknet_ext import _ext

FAMILIES = cuda_budgets.families()
QUICK = "fma_f64"  # the family that `make test` compiles, in seconds
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def _jobs(family: Family, *, one: bool) -> tuple[Job, ...]:
    """What is compiled: one architecture, without the files that serve it alone, twins of others; or the rest."""
    return tuple(
        (source, arch)
        for source, archs in family.sources.items()
        for arch in archs
        if one == (arch == "90" and len(archs) > 1)
    )


COMPILED = pytest.mark.parametrize(
    ("family", "jobs"),
    [
        pytest.param(
            family,
            _jobs(family, one=one),
            id=f"{family.name}-{'sm_90' if one else 'rest'}",
            # tests that share what was compiled stay in one worker
            marks=[pytest.mark.xdist_group(f"budgets_{family.name}")]
            + ([] if one and family.name == QUICK else [pytest.mark.slow]),
        )
        for family in FAMILIES.values()
        for one in (True, False)
        if _jobs(family, one=one)
    ],
)


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = cuda_budgets.find_nvcc()
    if found is None:
        pytest.skip("nvcc was not found")
    return found


@functools.cache
def _compiled(name: str, jobs: tuple[Job, ...], nvcc: str) -> Tables:
    return cuda_budgets.compile_family(FAMILIES[name], nvcc, cuda_budgets.find_nvdisasm(), jobs)


def _right_nvcc(nvcc: str) -> None:
    if nvcc_objects.nvcc_version(nvcc) != NVCC:
        pytest.skip(f"the table is of nvcc {NVCC}")


@EVERY_FAMILY
def test_the_table_names_every_variant(family: Family) -> None:
    assert list(family.budgets) == family.variants
    assert all(len(budget.registers) == len(family.archs) for budget in family.budgets.values())
    assert {arch for archs in family.sources.values() for arch in archs} == set(family.archs)


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension, which lists the variants, is missing")
def test_every_variant_has_a_budget() -> None:
    assert cuda_budgets.without_budget() == set()


@COMPILED
def test_every_variant_compiles_without_spills(family: Family, jobs: tuple[Job, ...], nvcc: str) -> None:
    """Compiling fails on spills."""
    tables = _compiled(family.name, jobs, nvcc)
    for arch in {arch for source, arch in jobs if len(family.sources[source]) > 1 or len(family.archs) == 1}:
        names = {kernel.name for (_, a), kernels in tables.items() for kernel in kernels if a == arch}
        assert names == set(family.budgets), arch
    assert not [kernel.name for kernels in tables.values() for kernel in kernels if kernel.spilled]


@COMPILED
def test_registers(family: Family, jobs: tuple[Job, ...], nvcc: str) -> None:
    _right_nvcc(nvcc)
    over = {
        (source, arch, k.name): k.registers
        for (source, arch), kernels in _compiled(family.name, jobs, nvcc).items()
        for k in kernels
        if k.registers > family.budgets[k.name].registers[family.archs.index(arch)]
    }
    assert not over, f"more registers than the table allows: {over}"


@COMPILED
def test_instruction_mix_of_the_inner_loop(family: Family, jobs: tuple[Job, ...], nvcc: str) -> None:
    if cuda_budgets.find_nvdisasm() is None:
        pytest.skip("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    _right_nvcc(nvcc)
    for where, kernels in _compiled(family.name, jobs, nvcc).items():
        for kernel in kernels:
            budget = family.budgets[kernel.name]
            assert kernel.local == 0, f"{where} {kernel.name}: local memory"
            assert kernel.work == budget.work, f"{where} {kernel.name}: {kernel.work} {family.work}"
            assert kernel.ldsm <= budget.ldsm and kernel.lds <= budget.lds, f"{where} {kernel}"
            assert kernel.share >= budget.share, f"{where} {kernel.name}: {family.work} share {kernel.share}"


def test_wide_planes_of_toeplitz_fwd_meet_the_goal_of_three_quarters() -> None:
    """Narrow planes (24, 20, 14, 12 and 7 wide) have too few products a load."""
    low = {name for name, budget in FAMILIES["toeplitz_fwd"].budgets.items() if budget.share < 0.75}
    assert low == {"rt_3x2_w", "rt_1x1_w", "rt_5x3_w", "rt_3x3_w", "rt_5x3_sq"}
