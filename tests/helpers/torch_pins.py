"""The triton that each torch on PyPI requires, and the constraints that keep an environment to its torch.

    python tests/helpers/torch_pins.py    # constraints for pip: torch, and triton where torch brings none

CPU builds of torch require no triton. The tests there run on the one that the CUDA build of the same torch requires.
"""

from __future__ import annotations

from importlib import metadata

#: torch -> the triton of its metadata on PyPI.
TRITON = {
    "2.11.0": "==3.6.0",
    "2.12.1": "==3.7.1",
    "2.13.0": "==3.7.1",
    "2.14.1": "~=3.8.0",
    "2.15.0": "~=3.9.0",
}


def constraints(torch: str, requirements: list[str]) -> list[str]:
    """Lines of a constraints file for an installed torch with these requirements."""
    lines = [f"torch=={torch}"]
    brings = any(line.partition(";")[0].strip().startswith("triton") for line in requirements)
    known = TRITON.get(torch.partition("+")[0])
    return lines if brings or known is None else [*lines, f"triton{known}"]


if __name__ == "__main__":
    print("\n".join(constraints(metadata.version("torch"), metadata.requires("torch") or [])))
