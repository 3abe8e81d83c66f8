"""Finds the fastest kernel of each problem by measuring, and keeps what it finds.

Stands above the backends, whose candidates it asks for and whose choices it writes (`choices.table` reads them), and
below `functional`, which asks for tuning on first use.
"""

from .api import tune
from .report import Row, TuneReport

__all__ = ["Row", "TuneReport", "tune"]
