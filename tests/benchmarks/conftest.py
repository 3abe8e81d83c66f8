"""The GPU benchmark's fixture."""

from fake_cuda import fake_cuda  # noqa: F401
