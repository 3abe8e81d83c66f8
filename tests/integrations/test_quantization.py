"""int8 by torch's quantisers: `restore` first; a layer that is still swapped is refused or named."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.ao.quantization as quantization
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from replknet_ext import depthwise_conv2d, replace_depthwise, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*(reduce_range|_aminmax|TypedStorage|erase_node|must run observer).*:UserWarning"
    ),
]
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.stem = nn.Conv2d(3, 8, 1)
        self.large = nn.Conv2d(8, 8, 7, padding=3, groups=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.large(self.stem(self.quant(x))))


def network(*, swapped: bool) -> Network:
    """Swapped, or swapped and restored."""
    torch.manual_seed(0)
    model = Network().eval()
    assert len(replace_depthwise(model).swapped) == 1
    if not swapped:
        restore(model)
    return model


def by_eager(model: nn.Module) -> nn.Module:
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    prepared(IMAGES)
    return quantization.convert(prepared)


def by_fx(model: nn.Module) -> nn.Module:
    prepared = prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (IMAGES,))
    prepared(IMAGES)
    return convert_fx(prepared)


def is_int8(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.ao.nn.quantized")


@pytest.mark.parametrize("quantise", [by_eager, by_fx])
def test_a_restored_model_is_quantised(quantise):
    model = network(swapped=False)
    wanted = model(IMAGES)
    result = quantise(model)
    assert is_int8(result.stem)
    assert is_int8(result.large)
    assert 0 < (result(IMAGES) - wanted).abs().max() < 0.1


def test_eager_refuses_a_swapped_layer():
    with pytest.raises(TypeError, match=r"input is quantised \(torch.quint8\).*replknet_ext.restore\(model\) before"):
        by_eager(network(swapped=True))(IMAGES)


def test_quantised_tensors_are_refused():
    x = torch.quantize_per_tensor(torch.randn(1, 4, 8, 8), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="input is quantised"):
        depthwise_conv2d(x, torch.randn(4, 1, 3, 3))


def test_fx_names_what_stays_in_float():
    with pytest.warns(UserWarning, match=r"large stays in float: replknet_ext.restore\(model\) before quantising it"):
        result = by_fx(network(swapped=True))
    assert is_int8(result.stem)
    with warnings.catch_warnings():  # other tracers are no news
        warnings.simplefilter("error")
        torch.fx.symbolic_trace(network(swapped=True))


@pytest.mark.parametrize("swapped", [False, True])
def test_pt2e(swapped):
    """What docs/accelerate-other-models.md says of torchao's quantiser of exported programs."""
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    program = torch.export.export(network(swapped=swapped), (IMAGES,)).module()
    prepared = prepare_pt2e(program, quantizer)
    prepared(IMAGES)
    nodes = [str(node.target) for node in convert_pt2e(prepared).graph.nodes]
    weights = sum("dequantize_per_channel" in name for name in nodes)
    assert weights == (1 if swapped else 2)
    assert ("replknet_ext.dwconv2d.default" in nodes) == swapped
