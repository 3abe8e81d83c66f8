"""``python -m replknet_ext``."""

from .cli import main

main()
