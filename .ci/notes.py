"""Prints CHANGELOG.md's section of a release, for its GitHub page; fails where the tag is not that of this version.

python .ci/notes.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, changelog: str, version: str) -> str:
    """The section of a tag.

    Raises:
        ValueError: the tag is not of this version, or the changelog has no dated section of it.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but replknet_ext/_version.py says {version}")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|^\[[^\]]+\]: |\Z)"
    found = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    return found[1].strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    version = re.findall(r'"(.*)"', (ROOT / "replknet_ext/_version.py").read_text(encoding="utf-8"))[-1]
    try:
        print(notes(sys.argv[1], (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version))
    except ValueError as error:
        raise SystemExit(str(error)) from None
