"""Bugs planted in copies of the CUDA sources: what a family's tests need to show that values or the race check notice.

A family's are in tests/cuda/<family>/bugs.py, as MUTANTS; tests/cuda/test_bugs.py runs them. Few run by default;
``REPLKNET_EXT_MUTANTS=all`` (``make mutants``) runs every one.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import emulator_build
import emulator_harness as harness
import pytest
from emulator_harness import Case

SAMPLE = 4  # mutants of a family that run by default
SMALLEST = (86, 1, 48 << 10, 49 << 10)  # little shared memory, one SM
SCHEDULES = (("ordered", 0), ("reversed", 0), ("random", 1), ("random", 2))


#: A comment, or a string or character, in which // and /* mean nothing.
_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|//[^\n]*|/\*.*?\*/)""", re.S)


def code_of(source: str) -> str:
    """C++ without comments, blank lines and spaces at the ends of lines: bugs match it, so comments can be reworded."""
    bare = _COMMENT.sub(lambda found: "" if found[0].startswith("/") else found[0], source)
    return re.sub(r"\n\s*\n", "\n", re.sub(r"[ \t]+$", "", bare, flags=re.M))


def _exact(emulator: ModuleType, case: Case) -> None:
    harness.check_exact(emulator, case)


@dataclass(frozen=True)
class Mutants:
    """A family's planted bugs."""

    family: str  # its folder in csrc/cuda and in tests/cuda
    bugs: dict[str, tuple[str, str, str]]  # name: (file, text of its `code_of`, replacement)
    cases: list[Case]
    cut: Callable[[Path], None]  # leaves few variants in a copy of csrc/cuda, so that it builds in seconds
    check: Callable[[ModuleType, Case], None] = _exact  # raises AssertionError
    more: Callable[[ModuleType], list[str]] = lambda emulator: []  # findings beyond the cases
    shared: tuple[str, ...] = ()  # sources of other families that this one is linked with

    def chosen(self) -> list[str]:
        """The bugs that this run plants: all, or some from all over the table."""
        names = list(self.bugs)
        every = 1 if os.environ.get("REPLKNET_EXT_MUTANTS") == "all" else -(-len(names) // SAMPLE)
        return names[::every]

    def sources(self, folder: Path, bug: str | None) -> Path:
        """A copy of csrc with this family alone, few variants and at most one bug; returns its cuda folder."""
        shutil.copytree(emulator_build.CUDA.parent, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
        cuda = folder / "csrc" / "cuda"
        for path in cuda.glob("*/*"):  # of the other families the headers alone
            own = path.parent.name == self.family or str(path.relative_to(cuda)) in self.shared
            if path.suffix in (".cu", ".cpp") and not own:
                path.unlink()
        table = cuda / "family.h"
        text, count = re.subn(r"(#define REPLKNET_EXT_FAMILIES\(X\)).*", rf"\1 X({self.family})", table.read_text())
        assert count == 1
        table.write_text(text)
        self.cut(cuda)
        if bug is not None:
            name, old, new = self.bugs[bug]
            source = code_of((cuda / name).read_text())
            assert old in source, f"{name} has no {old!r} in its code"
            (cuda / name).write_text(source.replace(old, new))
        return cuda

    def findings(self, emulator: ModuleType) -> list[str]:
        """What goes wrong in the cases."""
        found = []
        for case in self.cases:
            for schedule, seed in SCHEDULES:
                emulator.set_options(schedule, seed)
                try:
                    self.check(emulator, case)
                except AssertionError as error:
                    found.append(str(error).split("): ", 1)[-1])
        emulator.set_options()
        try:
            return found + self.more(emulator)
        except AssertionError as error:
            return [*found, str(error).split("): ", 1)[-1]]

    def notice(self, folder: Path, bug: str | None) -> list[str]:
        """Findings with one bug or none, in a process of its own: a mutant may crash, and Python loads a name once."""
        why = emulator_build.missing()
        if why is not None:
            pytest.skip(why)
        emulator_build.build_module("race")  # objects that every build shares
        emulator_build.build_module("race", folder / "build", self.sources(folder, bug))
        tests = Path(__file__).resolve().parents[1]
        paths = os.pathsep.join(map(str, (tests.parent, tests / "helpers")))
        done = subprocess.run(
            [sys.executable, __file__, self.family, str(folder)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert done.returncode <= 0, done.stderr[-2000:]  # the harness itself failed
        return json.loads(done.stdout) if done.returncode == 0 else [f"killed by signal {-done.returncode}"]


def keep_lines(header: str, macro: str, kept: tuple[str, ...]) -> Callable[[Path], None]:
    """A `cut` that leaves only the named lines of a table of variants, ``#define macro(X) X("name", ...) ...``."""

    def cut(cuda: Path) -> None:
        table = cuda / header
        head, rest = table.read_text().split(f"#define {macro}(X)", 1)
        lines, tail = rest.split("\n\n", 1)
        rows = [line.split("/*")[0].rstrip(" \\") for line in lines.split("\n") if 'X("' in line]
        rows = [row for row in rows if row.split('"')[1] in kept]
        assert len(rows) == len(kept)
        table.write_text(f"{head}#define {macro}(X) {' '.join(rows)}\n\n{tail}")

    return cut


def main(family: str, place: Path) -> None:
    """The process of `Mutants.notice`."""
    mutants: Mutants = importlib.import_module(f"tests.cuda.{family}.bugs").MUTANTS
    print(json.dumps(mutants.findings(emulator_build.load("race", place / "build", place / "csrc" / "cuda"))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
