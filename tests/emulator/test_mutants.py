"""Bugs planted in the CUDA sources: the values or the race check must notice each one."""

from __future__ import annotations

from pathlib import Path

import bugs_fft
import bugs_fma
import bugs_rt_fwd
import bugs_rt_weight
import bugs_small
import bugs_stencil
import pytest
from mutants import Mutants

FAMILIES = [module.MUTANTS for module in (bugs_rt_fwd, bugs_rt_weight, bugs_small, bugs_stencil, bugs_fma, bugs_fft)]


@pytest.mark.parametrize("mutants", FAMILIES, ids=lambda mutants: mutants.family)
def test_the_unchanged_sources_have_no_finding(tmp_path: Path, mutants: Mutants) -> None:
    assert mutants.notice(tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutants", "bug"),
    [pytest.param(mutants, bug, id=f"{mutants.family}-{bug}") for mutants in FAMILIES for bug in mutants.chosen()],
)
def test_mutants_are_noticed(tmp_path: Path, mutants: Mutants, bug: str) -> None:
    assert mutants.notice(tmp_path, bug), "nothing noticed the bug"
