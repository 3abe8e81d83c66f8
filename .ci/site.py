"""Hook of mkdocs.yml: what pages link to outside docs/ is shown from the repository, or, pictures, copied to the site.

Pages have links that work in a checkout, such as ../csrc/cuda/README.md; the site holds docs/ alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
#: Measurements drawn as pictures, and where the site has them.
PICTURES, SITE_PICTURES = "benchmarks/results", "images/results"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pictures of benchmarks/results to the site."""
    for path in sorted((ROOT / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"{SITE_PICTURES}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites each link that leaves docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        if target.startswith("docs/"):
            return match[0]
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {match[1]} does not exist")
        if posixpath.dirname(target) == PICTURES and target.endswith(".png"):
            return f"]({posixpath.relpath(SITE_PICTURES, folder or '.')}/{posixpath.basename(target)}"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{target}"

    return LINK.sub(rewrite, markdown)
