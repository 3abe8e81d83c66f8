"""The package as strangers get it: source archive, wheel, an installation outside the checkout, the README's code.

One build serves all tests here, from the unpacked source archive: a file missing in the archive breaks the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pins
from packaging.requirements import Requirement
from setuptools.command.editable_wheel import _finder_template
from setuptools.config.pyprojecttoml import read_configuration

import replknet_ext

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

#: What building, testing and running leave in a checkout.
MADE = {"build", "dist", "demo_output", "__pycache__", "_build", ".git", ".venv"}
#: Files and folders of the repository whose names begin with a dot.
HIDDEN = {".ci", ".github", ".pre-commit-config.yaml"}
#: Names of the tracked files that the source archive need not have.
NOT_SHIPPED = {".gitignore"}

pytestmark = pytest.mark.xdist_group("packaging")


def call(*command: str | Path, cwd: Path, **extra: str) -> str:
    """Runs a command as from a shell that knows nothing of this test run; its output, or a failure that shows it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def build(kind: str, source: Path, output: Path, **environment: str) -> Path:
    """What `pip` does with the build backend in `source`, without isolation; the file that it made."""
    code = f"import sys; from setuptools import build_meta as b; print('made', b.build_{kind}(sys.argv[1]))"
    return output / call(sys.executable, "-c", code, output, cwd=source, **environment).rsplit("made ", 1)[1].strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of a copy of the checkout's files, so that building leaves no trace in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in MADE and (path.name in HIDDEN or path.name[0] != ".") and path.suffix != ".egg-info":
            call("cp", "-R", path, copy, cwd=ROOT)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def sources(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(place, filter="data")
        else:
            archive.extractall(place)
    (source,) = place.iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source archive. CUDA kernels have their own tests and are left out for time."""
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"), REPLKNET_EXT_SKIP_CUDA="1")


def environment(place: Path) -> tuple[Path, Path]:
    """Python and the site-packages of a new environment. torch and its friends are lent by this environment's folder.

    A folder named in a .pth file is searched, but its own .pth files are not read: the editable installation of this
    checkout stays out of sight.
    """
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    (site,) = place.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{Path(torch.__file__).resolve().parent.parent}\n")
    return place / "bin" / "python", site


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that has the wheel."""
    python, site = environment(tmp_path_factory.mktemp("fresh"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return python


def repository_files() -> set[str]:
    """Every tracked file; without git (in an unpacked source archive) all files that nothing here has made."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = call("git", "ls-files", "--cached", cwd=ROOT).splitlines()
        return {name for name in listed if (ROOT / name).is_file()}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in found
        if not MADE & set(path.parts)
        and not any(part.endswith((".egg-info", "_cache")) or part == ".hypothesis" for part in path.parts)
        and path.suffix not in (".so", ".o", ".pyc")
        and path.name not in ("PKG-INFO", "setup.cfg")
    }


def test_sdist_holds_every_file_of_the_repository(sdist: Path) -> None:
    """So also every file that a test reads."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {name for name in repository_files() if Path(name).name not in NOT_SHIPPED}
    assert {"setup.py", "docs/usage.md", ".ci/run", "tests/packaging/test_packaging.py", "csrc/problem.h"} <= wanted
    assert sorted(wanted - names) == []
    assert [name for name in names if name.endswith((".so", ".o", ".pyc")) or MADE & set(name.split("/"))] == []


@pytest.mark.slow
def test_sdist_runs_its_own_tests(sources: Path) -> None:
    """All are collected, and those that read the repository's pages and files pass, out of the unpacked archive."""
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0")
    collected = call(*pytest_, "--collect-only", "-W", "ignore::RuntimeWarning", cwd=sources)
    assert int(re.findall(r"(\d+) tests collected", collected)[0]) > 1000
    pages = call(*pytest_, "tests", "-k", "readme_names_only or links_lead_somewhere", cwd=sources)
    assert re.search(r"[1-9][0-9]* passed", pages) and "failed" not in pages, pages


@pytest.mark.slow
def test_wheel_serves_every_python_and_holds_only_the_package(wheel: Path) -> None:
    assert re.fullmatch(r"replknet_ext-[^-]+-cp310-abi3-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    assert "replknet_ext/_C.abi3.so" in names
    assert "replknet_ext/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    tops = {name.split("/", 1)[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "replknet_ext",
    }, "anything else could overwrite files of another package"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.split(r"[ <>=!~;]", line)[0] for line in required] == ["filelock", "torch"]
    assert metadata["Author"] and metadata.get_all("Project-URL")
    classifiers = metadata.get_all("Classifier", [])
    assert {"Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3.10"} <= set(classifiers)


@pytest.mark.slow
def test_wheel_runs_the_readme_outside_the_checkout(fresh_python: Path, tmp_path: Path) -> None:
    assert SNIPPETS
    for number, snippet in enumerate(SNIPPETS):
        (tmp_path / f"snippet_{number}.py").write_text(snippet, encoding="utf-8")
        call(fresh_python, f"snippet_{number}.py", cwd=tmp_path, OMP_NUM_THREADS="1")
    checks = (
        "import sys, replknet_ext, torch, replknet_ext.integrations.depthwise_conv2d_implicit_gemm\n"
        "import depthwise_conv2d_implicit_gemm as d\n"
        "assert replknet_ext.HAS_EXT\n"
        "print(replknet_ext.__file__, d.__file__, torch.ops.replknet_ext._cpu_isa())\n"
    )
    where = call(fresh_python, "-c", checks, cwd=tmp_path).split()
    site = fresh_python.parent.parent
    assert all(Path(path).is_relative_to(site) for path in where[:2]), where
    assert where[2] in ("base", "avx2", "avx512")


@pytest.mark.skipif(not replknet_ext.HAS_EXT, reason="needs the compiled extension")
@pytest.mark.parametrize("installed", ["copied", pytest.param("editable", marks=pytest.mark.slow)])
def test_sources_that_hide_the_built_package_say_so(installed: str, tmp_path: Path) -> None:
    """In a clone, after `pip install .`, Python imports the clone's own folder, which has no extension.

    Nor does it get the extension of another clone, whose editable installation finds modules of the package by name.
    """
    python, site = environment(tmp_path / "environment")
    clone, other = tmp_path / "clone", site if installed == "copied" else tmp_path / "other"
    package, pycache = ROOT / "replknet_ext", "__pycache__"
    shutil.copytree(package, clone / package.name, ignore=shutil.ignore_patterns("*.so", pycache))
    shutil.copytree(package, other / package.name, ignore=shutil.ignore_patterns(pycache))
    if installed == "editable":
        finder = _finder_template("__editable__", {package.name: str(other / package.name)}, {})
        (site / "editable_finder.py").write_text(finder, encoding="utf-8")
        (site / "editable.pth").write_text("import editable_finder; editable_finder.install()\n", encoding="utf-8")
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import replknet_ext, torch
    from replknet_ext.tools import doctor
    print(replknet_ext.explain(torch.rand(1, 4, 9, 9), torch.rand(4, 1, 5, 5)))
    print("doctor:", doctor.collect()["extension"]["why_not"])
assert not replknet_ext.HAS_EXT
(one,) = [str(warning.message) for warning in caught if "replknet_ext" in str(warning.message)]
print("warning:", one)
"""
    told = call(python, "-c", code, cwd=clone)
    assert told.count(f"not installed in {clone / package.name}") >= 3, told
    assert told.count(f"but in {other / package.name}") >= 3, told
    assert "REPLKNET_EXT_SKIP_EXT" not in told
    away = call(python, "-W", "error::RuntimeWarning", "-c", "import replknet_ext as r; print(r.HAS_EXT)", cwd=tmp_path)
    assert away.strip() == "True"


@pytest.mark.slow
def test_works_without_optional_packages(fresh_python: Path, tmp_path: Path) -> None:
    """Nothing but torch is there, and torchvision is there but broken: a CUDA build of it raises RuntimeError."""
    code = """
import sys
ABSENT = "triton timm rich matplotlib skimage sklearn hypothesis pytest mmengine mmpretrain onnx numba".split()

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name.split(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

sys.meta_path.insert(0, Finder())
import torch, replknet_ext
y = replknet_ext.models.RepLKNet(large_kernel_sizes=[7], layers=[1], channels=[8])(torch.rand(2, 3, 16, 16))
y.sum().backward()
print(replknet_ext.explain(torch.rand(1, 4, 9, 9), torch.rand(4, 1, 5, 5)))
"""
    assert "chosen" in call(fresh_python, "-c", code, cwd=tmp_path)


def test_readme_names_only_targets_and_files_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    nightly = re.findall(r"target: \[(.*)\]", (ROOT / ".github/workflows/nightly.yml").read_text(encoding="utf-8"))
    called = set(re.split(r", ", nightly[0]))
    for workflow in ROOT.glob(".github/workflows/*.yml"):
        for line in re.findall(r"run: make ((?:[a-z-]+ )+)", workflow.read_text(encoding="utf-8")):
            called |= set(line.split())
    assert {"test", "lint", "workflows", "test-all", "sdist", "matrix"} <= called
    assert called - targets <= {"docs"}, "docs comes with the documentation site"
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert used - targets == set()
    assert {"demo", "test", "lint", "bench", "wheel"} <= targets
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_version_is_the_same_everywhere() -> None:
    """A tag is published only if `.ci/notes.py` finds its section of the changelog."""
    version = replknet_ext.__version__
    call(sys.executable, ".ci/notes.py", f"v{version}", cwd=ROOT)
    for tag in ("v99.0.0", version):
        done = subprocess.run(
            [sys.executable, ".ci/notes.py", tag], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and done.stderr.startswith(f"the tag is {tag}, but"), done
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert releases[0] == "Unreleased" and version in releases
    assert set(re.findall(r"^\[([^\]]+)\]: https://github.com/", changelog, re.MULTILINE)) == set(releases)
    dated = re.findall(rf"^## \[{re.escape(version)}\] - (\S+)", changelog, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [version]
    assert re.findall(r"^date-released: (.*)$", citation, re.MULTILINE) == dated


def test_pages_stay_short() -> None:
    assert len(README.splitlines()) <= 150
    for page in ROOT.glob("csrc/cuda/**/README.md"):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 60, page


@pytest.mark.parametrize(("torch_version", "pin"), torch_pins.TRITON.items())
def test_extras_take_the_triton_that_each_torch_requires(torch_version: str, pin: str) -> None:
    """A requirement of ours that excludes it would end `pip install` in ResolutionImpossible."""
    brought = re.sub(r"^(==|~=)", "", pin)
    asked = [
        Requirement(line)
        for extra in PROJECT["optional-dependencies"].values()
        for line in [*extra, *PROJECT["dependencies"]]
        if re.match(r"triton\b", line)
    ]
    assert asked
    for requirement in asked:
        assert requirement.specifier.contains(brought), f"torch {torch_version} requires triton{pin}, we {requirement}"
        assert {specifier.operator for specifier in requirement.specifier} == {">="}, "a later torch brings a later one"
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert requirement.name != "torch" or requirement.specifier.contains(torch_version)


def test_an_environment_keeps_its_torch_and_gets_the_triton_of_its_cuda_build() -> None:
    bare, cuda = ["filelock"], ["filelock", 'triton~=3.8.0; platform_system == "Linux"']
    assert torch_pins.constraints("2.14.1+cu130", cuda) == ["torch==2.14.1+cu130"]
    assert torch_pins.constraints("2.13.0+cpu", bare) == ["torch==2.13.0+cpu", "triton==3.7.1"]
    assert torch_pins.constraints("2.99.0+cpu", bare) == ["torch==2.99.0+cpu"]


@pytest.mark.parametrize("extra", ["demo", "test", "lint"])
def test_make_installs_only_what_a_target_needs(extra: str) -> None:
    def names(extra: str) -> set[str]:
        found: set[str] = set()
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == "replknet_ext":
                found |= set().union(*map(names, requirement.extras))
            else:
                found.add(requirement.name)
        return found

    tools = {"mypy", "ruff", "hypothesis", "pytest", "onnx", "timm", "triton"}
    assert (
        names(extra) & tools
        == {
            "demo": {"timm"},  # of training, which part 2 of the demo does
            "test": {"hypothesis", "pytest", "onnx", "timm", "triton"},
            "lint": {"mypy", "ruff", "onnx", "timm"},
        }[extra]
    )
