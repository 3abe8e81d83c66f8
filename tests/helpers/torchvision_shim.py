"""Lets a CUDA build of torchvision be imported beside a CPU torch, for tests of timm, which imports it.

conftest.py imports this module; a torchvision that works is left alone.
"""

from __future__ import annotations

from replknet_ext.data.torchvision_names import import_torchvision

import_torchvision()
