"""The pages of docs/: their code runs, their links lead somewhere, and the site has them all.

A block of Python or bash that is not run has the reason on the line before it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
import yaml
from models_common import randomize

import replknet_ext
from examples import draw_kernels
from replknet_ext import training
from replknet_ext.cli.app import app
from replknet_ext.models import RepLKNet

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S)
#: Fences of any other kind show output.
LANGUAGES = {"python", "bash", "text"}


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str, run: bool = True) -> list[str]:
    """The code of a page in one language: what runs, or what is marked."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["code"] for match in found if match["language"] == language and (match["why"] is None) == run]


def having(language: str, run: bool = True) -> list[Any]:
    """deploy.md compiles what it exports by AOTInductor: where its blocks run they are slow."""
    return [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if run and name_of(page) == "deploy.md" else [])
        for page in PAGES
        if blocks(page, language, run)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_known_language(page: Path) -> None:
    """So none escapes the tests below."""
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text))
    assert {match["language"] for match in BLOCK.finditer(text)} <= LANGUAGES


@pytest.mark.parametrize("page", having("python"))
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one program per page, on untrained networks instead of downloaded ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLKNET_EXT_CACHE", str(tmp_path / "cache"))
    build, get = timm.create_model, replknet_ext.get_model
    if name_of(page) == "integrations.md":  # one block per stage is enough to see that everything works
        monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: build(name, layers=(1, 1, 1, 1), **kwargs))
    monkeypatch.setattr(replknet_ext, "get_model", lambda name, pretrained=False, **kwargs: get(name, **kwargs))
    if name_of(page) == "usage.md":
        from skimage import data
        from skimage.io import imsave

        (tmp_path / "demo").mkdir()
        imsave(tmp_path / "demo" / "bird.JPEG", data.chelsea())
    names: dict[str, object] = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), names)


@pytest.mark.parametrize("page", having("python", run=False))
def test_python_that_is_not_run_compiles(page: Path) -> None:
    for code in blocks(page, "python", run=False):
        compile(code, name_of(page), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", having("bash"))
def test_bash_runs(page: Path, tmp_path: Path) -> None:
    """In a folder with the files that the pages name; `replknet-ext` is this checkout's."""
    model = randomize(RepLKNet(large_kernel_sizes=(13, 9), layers=(1, 1), channels=(8, 16), num_classes=10))
    for name in ("train.pth", "official.pth"):
        torch.save(model.state_dict(), tmp_path / name)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, command in (("replknet-ext", "-m replknet_ext"), ("python", "")):
        (scripts / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        (scripts / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REPLKNET_EXT_CACHE": str(tmp_path / "cache"),
    }
    for code in blocks(page, "bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def commands() -> list[Any]:
    """Every `replknet-ext` line of the pages and of README.md, run or not."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            for line in match["code"].replace("\\\n", " ").splitlines() if match["language"] == "bash" else ():
                words = [
                    word for word in shlex.split(line, comments=True) if not re.fullmatch(r"\$\w+|&", word)
                ]  # empty
                for start in (["replknet-ext"], ["-m", "replknet_ext"]):
                    places = [i for i in range(len(words)) if words[i : i + len(start)] == start]
                    found += [
                        pytest.param(words[place + len(start) :], id=f"{page.name}: {' '.join(words)}")
                        for place in places
                    ]
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words: list[str]) -> None:
    """Names and options exist and take such values; nothing runs."""
    if ">" in words:
        words = words[: words.index(">")]
    group = typer.main.get_command(app)
    context = group.make_context("replknet-ext", list(words), resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
    assert command is not None, words
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("csrc/**/*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist and headings, too."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_the_site_has_every_page_once() -> None:
    def pages(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [page for child in (part.values() if isinstance(part, dict) else part) for page in pages(child)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == [name_of(page) for page in PAGES]


def documented() -> list[str]:
    """The names that the reference asks mkdocstrings for."""
    return [name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)]


def test_the_reference_has_every_public_name() -> None:
    names = {name.rpartition(".")[2] for name in documented()}
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    public = {*replknet_ext.__all__, *replknet_ext.models.__all__, *training.__all__}
    settings = {name for name in public if getattr(replknet_ext.settings, name, None)}
    blocks_ = {name for name in public if hasattr(replknet_ext.models.blocks, name)}
    plain = {name for name in public if f"`replknet_ext.{name}`" in text}
    assert public - names - settings - blocks_ - plain == {"ARCHS", "MODELS"}


@pytest.mark.parametrize("name", documented())
def test_documented_arguments_exist(name: str) -> None:
    """Each name under `Args:` is in the signature; several may share an entry ("stride, dilation: ...")."""
    for owner, thing in callables(name):
        document = inspect.getdoc(thing) or ""
        entries = re.search(r"^Args:\n((?:    .*\n?|\n)+)", document, re.MULTILINE)
        if entries is None:
            continue
        parameters = inspect.signature(thing).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for entry in re.findall(r"^    ([\w*]+(?:, [\w*]+)*):", entries[1], re.MULTILINE):
            for argument in entry.replace("*", "").split(", "):
                assert free or argument in parameters, f"{owner}: {argument}"


def callables(name: str) -> list[tuple[str, Any]]:
    """What `::: name` documents: the object itself, a class's methods, a module's functions and classes."""
    module, rest = name, []
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        found = getattr(found, part)
    own = found.__name__ if inspect.ismodule(found) else None
    members = [
        (f"{name}.{key}", member)
        for key, member in vars(found).items()
        if key[0] != "_" and callable(member) and (own is None or getattr(member, "__module__", None) == own)
    ] if inspect.ismodule(found) or inspect.isclass(found) else []  # fmt: skip
    return [*members, *([] if inspect.ismodule(found) else [(name, found)])]


def test_drawings_are_the_scripts(tmp_path: Path) -> None:
    """`python -m examples.draw_kernels` writes them."""
    draw_kernels.main(tmp_path)
    for drawing in tmp_path.iterdir():
        assert drawing.read_text() == (DOCS / "images" / drawing.name).read_text(), drawing.name
    taps = draw_kernels.row_blocks()
    assert sorted(taps) == [-1, 0, 1]
    assert taps[0].diagonal().tolist() == [3.0] * 8  # the middle tap
