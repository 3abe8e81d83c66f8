"""The Python of docs/integrations.md and docs/accelerate-other-models.md runs, as one program a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["integrations.md", "accelerate-other-models.md"])
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    text = (DOCS / page).read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 3
    monkeypatch.chdir(tmp_path)
    if page == "integrations.md":  # one block a stage is enough to see that everything works
        build = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: build(name, layers=(1, 1, 1, 1), **kwargs))
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", ["integrations.md", "accelerate-other-models.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert [link for link in links if link.startswith("#") and link[1:] not in anchors] == []
    assert [link for link in links if not link.startswith("#") and not (DOCS / link).exists()] == []


def test_nothing_here_is_imported_unasked():
    """What docs/integrations.md says first."""
    code = (
        "import sys, replknet_ext, replknet_ext.integrations\n"
        "print({'timm', 'torchvision', 'huggingface_hub', 'onnx', 'onnxscript', 'mmengine'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n"
