"""Bugs planted in the CUDA sources: the values or the race check must notice each one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from mutants import Mutants, code_of

FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/bugs.py"))
FAMILIES = [importlib.import_module(f"tests.cuda.{name}.bugs").MUTANTS for name in FOLDERS]


EVERY_FAMILY = pytest.mark.parametrize("mutants", FAMILIES, ids=lambda mutants: mutants.family)


@EVERY_FAMILY
def test_bugs_match_code_and_not_comments(tmp_path: Path, mutants: Mutants) -> None:
    """Also those that only ``REPLKNET_EXT_MUTANTS=all`` plants, so that none is left behind when its line changes."""
    cuda = mutants.sources(tmp_path, None)
    code = {name: code_of((cuda / name).read_text()) for name, _, _ in mutants.bugs.values()}
    lost = [bug for bug, (name, text, _) in mutants.bugs.items() if text not in code[name]]
    assert not lost
    assert all(text != replacement for _, text, replacement in mutants.bugs.values())


def test_code_without_comments() -> None:
    source = (
        'int a;  // one\n/* two\n   lines */\nconst char* s = "// /* text */";\n\n  // three\nchar c = \'"\';  // "\n'
    )
    assert code_of(source) == 'int a;\nconst char* s = "// /* text */";\nchar c = \'"\';\n'


@EVERY_FAMILY
@pytest.mark.slow
def test_the_unchanged_sources_have_no_finding(tmp_path: Path, mutants: Mutants) -> None:
    assert mutants.notice(tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutants", "bug"),
    [pytest.param(mutants, bug, id=f"{mutants.family}-{bug}") for mutants in FAMILIES for bug in mutants.chosen()],
)
def test_mutants_are_noticed(tmp_path: Path, mutants: Mutants, bug: str) -> None:
    assert mutants.notice(tmp_path, bug), "nothing noticed the bug"
