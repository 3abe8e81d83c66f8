"""What commands import, for the server of `processes`."""

import accelerate  # noqa: F401

import replknet_ext.cli.app
import replknet_ext.training.trainer  # noqa: F401
from replknet_ext.training.libraries import timm

timm()
