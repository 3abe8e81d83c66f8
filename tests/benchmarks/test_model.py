"""The model benchmark: that it compares the same model, and refuses what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_common import SMALL, randomize
from torch import nn

from benchmarks import cpu_model
from benchmarks.harness import BenchmarkError
from replknet_ext import DepthwiseConv2dLarge
from replknet_ext.models import RepLKNet


@pytest.fixture
def model() -> RepLKNet:
    return randomize(RepLKNet(SMALL, num_classes=7))


def measure(what: str, model: RepLKNet) -> list[dict[str, Any]]:
    return cpu_model.measure(what, model, torch.randn(2, 3, 32, 32), torch.tensor([1, 5]), 1, 0.0)


@pytest.mark.parametrize("what", list(cpu_model.GOALS))
def test_all_contenders_are_timed_after_they_agree(what: str, model: RepLKNet) -> None:
    rows = measure(what, model)
    assert len({(row["provider"], row["layout"]) for row in rows}) == len(rows) == 4
    results = cpu_model.goals(rows)
    assert [result["figure"] for result in results] == ["vs_default", "vs_best"]
    assert results[0]["measured"] >= results[1]["measured"] > 0
    assert all(result["without_depthwise"] > result["measured"] for result in results)
    assert all(0 < row["depthwise_share"] < 1 for row in rows if row["provider"] == "replknet_ext")


def test_the_baseline_has_no_layer_of_ours(model: RepLKNet) -> None:
    merged = model.switch_to_deploy()
    base = cpu_model.plain(merged)
    assert any(isinstance(module, DepthwiseConv2dLarge) for module in merged.modules())
    assert not any(isinstance(module, DepthwiseConv2dLarge) for module in base.modules())
    kernels = [m.kernel_size for m in base.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert kernels.count((13, 13)) == 1
    assert kernels.count((9, 9)) == 2


@pytest.mark.parametrize("what", list(cpu_model.GOALS))
def test_another_model_is_not_timed(what: str, model: RepLKNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: nn.Module) -> nn.Module:
        result = plain(model)
        with torch.no_grad():
            for module in result.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (13, 13):
                    module.weight[:, :, 6] *= 2
        return result

    plain = cpu_model.plain
    monkeypatch.setattr(cpu_model, "plain", damaged)
    with pytest.raises(BenchmarkError, match="wrong result is not timed"):
        measure(what, model)


def test_wrong_gradients_are_not_timed(model: RepLKNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: nn.Module) -> torch.Tensor:
        result = gradients(model)
        ours = any(isinstance(module, DepthwiseConv2dLarge) for module in model.modules())
        return result * 1.01 if ours and result.dtype == torch.float32 else result

    gradients = cpu_model.gradients
    monkeypatch.setattr(cpu_model, "gradients", damaged)
    with pytest.raises(BenchmarkError, match=r"gradients in NCHW are off by 1\.0e-02, those of torch by"):
        measure("training step", model)


def test_a_baseline_on_our_kernels_is_refused(model: RepLKNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_model, "plain", cpu_model.accelerated)
    with pytest.raises(BenchmarkError, match=r"also ran|did not run"):
        measure("deploy", model)


def test_goals_take_the_better_layout_of_each() -> None:
    ms = {("nn.Conv2d", "NCHW"): 100, ("nn.Conv2d", "channels_last"): 40, ("replknet_ext", "NCHW"): 30}
    ms[("replknet_ext", "channels_last")] = 20
    rows = [
        {"what": "deploy", "provider": p, "layout": x, "median_ms": value, "depthwise_share": 0.5}
        for (p, x), value in ms.items()
    ]
    assert [result["measured"] for result in cpu_model.goals(rows)] == [5.0, 2.0]
    assert [result["without_depthwise"] for result in cpu_model.goals(rows)] == [10.0, 4.0]
    assert [result["kept"] for result in cpu_model.goals(rows)] == [True, True]
