"""Whether triton's interpreter, which runs the Triton kernels on the CPU, works here."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version

from replknet_ext.backends.triton import backend


def why_not() -> str | None:
    """Why the interpreter cannot run the kernels, or None."""
    if backend.WHY_NOT is not None:
        return str(backend.WHY_NOT)
    if Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version("2.4"):
        return f"the interpreter of triton {version('triton')} needs numpy below 2.4: `make compat` has one"
    return None


#: For tests that start it.
needed = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
