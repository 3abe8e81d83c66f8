"""What only the products of sm_90a need of the compiler, and when the planner may choose them."""

from __future__ import annotations

import cuda_budgets
import nvcc_objects
import pytest
import torch

from replknet_ext import _ext
from replknet_ext.backends import cuda
from replknet_ext.backends.cuda import DEVICES
from replknet_ext.operator.problem import Geometry, Problem

LAYER = [64, 128, 56, 56, 31, 31, 56, 56, 15, 15]


@pytest.mark.slow
@pytest.mark.xdist_group("budgets_toeplitz_wgmma")
@pytest.mark.parametrize("source", ["f16.cu", "bf16.cu"])
def test_ptxas_does_not_wait_between_products(source: str) -> None:
    """C7510 and the like: ptxas says that it runs products one after the other, or waits where the code does not."""
    nvcc = cuda_budgets.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found")
    compiled = nvcc_objects.compiled(cuda_budgets.CUDA / "toeplitz_wgmma" / source, nvcc, nvcc_objects.flags("90a"))
    assert "C75" not in compiled.log.read_text()


def plan(limits: str, variant: int, n: int = 64, dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    return _ext.cuda_plan([n, *LAYER[1:]], dtype, "fwd", "ieee", "auto", DEVICES[limits], variant)


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the planners are part of the extension")
def test_the_planner_names_it_and_chooses_it_only_once_it_is_measured() -> None:
    number = _ext.variant_names("cuda_variants", "fwd").index("wgmma_5x2_n64")
    assert plan("h200", number)["name"] == "wgmma_5x2_n64"
    chosen = plan("h200", -1)
    assert chosen["family"] != "toeplitz_wgmma" and str(chosen["unmeasured"]).startswith("wgmma_")
    assert "unmeasured" not in plan("h200", -1, n=8) and "unmeasured" not in plan("a100", -1)


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the planners are part of the extension")
def test_explain_says_why_it_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_plan", lambda problem, variant=-1: cuda.plan_on(problem, DEVICES["h200"], variant))
    geometry = Geometry((1, 1), (15, 15, 15, 15), (1, 1))
    problem = Problem((64, 128, 56, 56), (128, 1, 31, 31), False, geometry, torch.bfloat16, "cuda")
    text = cuda.CudaBackend().kernel(problem)
    assert text == "ring_5x7_w (family toeplitz_ring); not wgmma_5x2_n64, which no device has measured"


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the planners are part of the extension")
@pytest.mark.parametrize(
    ("limits", "n", "dtype", "why"),
    [
        ("a100", 64, torch.bfloat16, "only GPUs of compute capability 9.0"),
        ("h200", 8, torch.bfloat16, "only batches of 16 images or more"),
        ("h200", 64, torch.float32, "only float16 and bfloat16"),
    ],
)
def test_it_says_why_not(limits: str, n: int, dtype: torch.dtype, why: str) -> None:
    number = _ext.variant_names("cuda_variants", "fwd").index("wgmma_5x2_n64")
    assert plan(limits, number, n, dtype) == {"unsupported": why}
