"""Compile budgets of the CUDA kernels: registers, spills, the instruction mix of the inner loop."""

from __future__ import annotations

import cuda_budgets
import pytest
from cuda_budgets import ARCHS, BUDGETS, NVCC, Kernel


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = cuda_budgets.find_nvcc()
    if found is None:
        pytest.skip("nvcc was not found")
    return found


@pytest.fixture(scope="module")
def kernels(nvcc: str) -> dict[str, list[Kernel]]:
    """By architecture. Compiling fails on spills."""
    return cuda_budgets.compile_all(nvcc, cuda_budgets.find_nvdisasm())


def test_the_table_names_every_variant() -> None:
    assert list(BUDGETS) == list(cuda_budgets.variant_names().values())
    assert all(len(budget.registers) == len(ARCHS) for budget in BUDGETS.values())


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*ARCHS, "f16"])
def test_every_variant_compiles_without_spills(kernels: dict[str, list[Kernel]], arch: str) -> None:
    assert sorted(kernel.name for kernel in kernels[arch]) == sorted(BUDGETS)
    assert not [kernel.name for kernel in kernels[arch] if kernel.spilled]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_registers(kernels: dict[str, list[Kernel]], nvcc: str, arch: str) -> None:
    if cuda_budgets.nvcc_version(nvcc) != NVCC:
        pytest.skip(f"the table is of nvcc {NVCC}")
    column = ARCHS.index(arch)
    over = {k.name: k.registers for k in kernels[arch] if k.registers > BUDGETS[k.name].registers[column]}
    assert not over, f"more registers than the table allows: {over}"


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*ARCHS, "f16"])
def test_instruction_mix_of_the_inner_loop(kernels: dict[str, list[Kernel]], nvcc: str, arch: str) -> None:
    if cuda_budgets.find_nvdisasm() is None:
        pytest.skip("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    if cuda_budgets.nvcc_version(nvcc) != NVCC:
        pytest.skip(f"the table is of nvcc {NVCC}")
    for kernel in kernels[arch]:
        budget = BUDGETS[kernel.name]
        assert kernel.local == 0, f"{kernel.name}: local memory"
        assert kernel.hmma == budget.hmma, f"{kernel.name}: {kernel.hmma} HMMA"
        assert kernel.ldsm <= budget.ldsm and kernel.lds <= budget.lds, f"{kernel.name}: {kernel}"
        assert kernel.share >= budget.share, f"{kernel.name}: HMMA share {kernel.share}"


def test_wide_planes_meet_the_goal_of_three_quarters() -> None:
    """Narrow planes (24, 14 and 7 wide) have too few products a load."""
    assert {name for name, budget in BUDGETS.items() if budget.share < 0.75} == {"rt_3x2_w", "rt_1x1_w", "rt_5x3_w"}
