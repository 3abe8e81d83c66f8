"""What a training run imports, for the server of `training_processes`."""

import accelerate  # noqa: F401

import replknet_ext.cli.app
import replknet_ext.training.trainer  # noqa: F401
from replknet_ext.training import libraries

libraries.timm()
