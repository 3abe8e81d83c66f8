"""What the tests of models share."""

import pytest
import torch
from checkpoint_common import small

from replknet_ext.models import RepLKNet


@pytest.fixture(scope="module")
def trained() -> RepLKNet:
    """A small network, the same in each file."""
    torch.manual_seed(0)
    return small()
