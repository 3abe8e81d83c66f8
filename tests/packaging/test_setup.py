"""setup.py: what it refuses says so in one line; the architectures and CUDA toolkits that it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import cuda_budgets
import pytest
import setup_file
import torch
from torch.utils.cpp_extension import include_paths

from replknet_ext.backends.cuda import architecture_for

ROOT = Path(__file__).resolve().parents[2]


def failed_build(tmp_path: Path, **environment: str) -> list[str]:
    """The last lines of an isolated `setup.py build_ext` that must fail; nothing of it may be a traceback."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("REPLKNET_EXT")}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", f"--build-temp={tmp_path}", f"--build-lib={tmp_path}"],
        cwd=ROOT,
        env={**kept, "REPLKNET_EXT_SKIP_CUDA": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MAX_JOBS": "0"}, "MAX_JOBS=0: it must be a whole number"),
        pytest.param({"MAX_JOBS": "many"}, "MAX_JOBS=many: it must be a whole number", marks=pytest.mark.slow),
        ({"CXX": "no-such-compiler"}, "no C++ compiler: 'no-such-compiler' was not found. Install one"),
    ],
)
def test_build_errors_are_one_line(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    assert message in failed_build(tmp_path, **environment)[-1]


def test_build_without_torch_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    (line,) = failed_build(tmp_path, PYTHONPATH=str(tmp_path))
    assert "pip install torch" in line and "REPLKNET_EXT_SKIP_EXT=1" in line


@pytest.fixture(scope="module")
def setup_functions() -> dict[str, Any]:
    return setup_file.functions()


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_options_of_each_platform(
    system: str, setup_functions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    if system == "win32":
        with pytest.raises(SystemExit) as told:
            setup_functions["extension_arguments"]()
        assert re.fullmatch(r".*MSVC.*REPLKNET_EXT_SKIP_EXT=1 to install the package.*", str(told.value))
        return
    setup_functions["check_platform"]()
    compiler, plain = setup_functions["compile_options"](), setup_functions["link_options"](None)
    assert {"-O3", "-fvisibility=hidden", "-ffp-contract=fast"} <= set(compiler)
    cuda = setup_functions["link_options"](tmp_path)
    if system == "linux":
        assert "-Wno-psabi" in compiler
        assert plain == ["-Wl,--exclude-libs,ALL"], "-lrt is for the static CUDA runtime alone"
        assert cuda == [*plain, f"-L{tmp_path}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    else:
        assert "-Wno-psabi" not in compiler
        assert plain == []
        monkeypatch.setenv("REPLKNET_EXT_SKIP_CUDA", "0")
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        assert setup_functions["find_cuda_home"]() is None
        monkeypatch.setenv("REPLKNET_EXT_FORCE_CUDA", "1")
        with pytest.raises(SystemExit, match="macOS has no CUDA"):
            setup_functions["find_cuda_home"]()


def test_windows_installs_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """REPLKNET_EXT_SKIP_EXT=1, which the message names, keeps setup.py from everything that it refuses."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("REPLKNET_EXT_SKIP_EXT", "1")
    monkeypatch.setattr("setuptools.setup", lambda **arguments: seen.append(arguments))
    code = (ROOT / "setup.py").read_text(encoding="utf-8")
    exec(compile(code, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py"), "__name__": "setup"})
    assert seen == [{}]


@pytest.mark.parametrize(
    ("named", "archs"),
    [
        ("Hopper", ["9.0+PTX"]),
        ("ampere;Hopper", ["8.0", "8.6+PTX", "9.0+PTX"]),
        ("8.0 9.0a,12.0+PTX", ["8.0", "9.0a", "12.0+PTX"]),
        ("Ampere+Tegra Ada", ["8.7", "8.9+PTX"]),
        ("native", ["8.6", "9.0+PTX"]),
        ("All", ["8.0", "9.0+PTX"]),
        (None, ["8.0", "9.0+PTX"]),
        ("Volta", "'Volta' is not of the form"),
        ("7.5", "need compute capability 8.0"),
        ("sm_90", "'sm_90' is not of the form"),
    ],
)
def test_arch_list_takes_the_names_of_torch(
    named: str | None,
    archs: list[str] | str,
    setup_functions: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'sm_75\\nsm_80\\nsm_90\\n'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), (8, 6)].__getitem__)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if named is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    if isinstance(archs, str):
        with pytest.raises(SystemExit, match=re.escape(archs)):
            setup_functions["cuda_archs"](nvcc)
    else:
        assert setup_functions["cuda_archs"](nvcc) == archs
        assert all("+PTX" not in option for option in setup_functions["nvcc_options"](archs))


@pytest.mark.parametrize(
    ("archs", "options"),
    [
        (["9.0"], ["compute_90,code=[sm_90]"]),
        (["8.9", "8.0+PTX", "9.0"], ["compute_80,code=[sm_80,compute_80,sm_89]", "compute_90,code=[sm_90]"]),
        (["8.6+PTX", "8.0"], ["compute_80,code=[sm_80,sm_86]", "compute_86,code=[compute_86]"]),
        (["9.0", "9.0a"], ["compute_90,code=[sm_90]", "compute_90a,code=[sm_90a]"]),
        (["10.0+PTX", "12.0"], ["compute_100,code=[sm_100,compute_100,sm_120]"]),
    ],
)
def test_ptx_is_made_once_per_generation(archs: list[str], options: list[str], setup_functions: dict[str, Any]) -> None:
    named = [option for option in setup_functions["nvcc_options"](archs) if "arch=" in option]
    assert named == [f"-gencode=arch={option}" for option in options]


@pytest.mark.parametrize(
    ("archs", "own"),
    [
        (["8.0", "9.0", "12.0+PTX"], ["9.0a"]),
        (["9.0+PTX"], ["9.0a"]),
        (["9.0a"], ["9.0a"]),
        (["8.0+PTX"], ["8.0+PTX"]),  # kernels without code, which the planner then refuses
    ],
)
def test_one_family_alone_is_compiled_for_hoppers_own_instructions(
    archs: list[str], own: list[str], setup_functions: dict[str, Any]
) -> None:
    for source in setup_functions["cuda_sources"]():
        expected = own if source.parent.name == "toeplitz_wgmma" and source.name != "launch.cu" else archs
        assert setup_functions["archs_of"](source, archs) == expected, source


@pytest.mark.slow
@pytest.mark.parametrize("archs", [("80", "86", "89"), ("100", "120")])
def test_nvcc_makes_the_same_ptx_for_a_generation(archs: tuple[str, ...], tmp_path: Path) -> None:
    """So the code of a GPU is what nvcc would make for it alone."""
    nvcc = cuda_budgets.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found")
    texts = set()
    for arch in archs:
        out = tmp_path / f"{arch}.ptx"
        source = ROOT / "csrc/cuda/small_planes/weight_bf16.cu"
        subprocess.run([nvcc, "-O3", "-std=c++17", f"-arch=compute_{arch}", "-ptx", source, "-o", out], check=True)
        texts.add(re.sub(r"^(//|\.target|\.version).*", "", out.read_text(), flags=re.MULTILINE))
    assert len(texts) == 1 and "mma.sync" in texts.pop()


@pytest.mark.parametrize("newest", ["90", "100", "120"])
def test_later_gpus_find_code_in_a_build_of_any_toolkit(
    newest: str, setup_functions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTX of an architecture with a letter, such as 9.0a, would serve that one alone."""
    known = [arch for arch in ("75", "80", "86", "89", "90", "100", "120") if int(arch) <= int(newest)]
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n" + "".join(f"echo sm_{arch}\n" for arch in known))
    nvcc.chmod(0o755)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    archs = ";".join(setup_functions["cuda_archs"](nvcc))
    served = (80, 86, 87, 89, 90, 100, 103, 120, 121, 130)
    assert [c for c in served if architecture_for(c, archs) is None] == []


@pytest.mark.parametrize(
    ("include", "lib"), [("include", "lib64"), ("include", "lib"), ("targets/sbsa-linux/include",) * 2]
)
def test_cuda_toolkits_are_found_where_conda_puts_them(
    include: str, lib: str, setup_functions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = lib.replace("/include", "/lib")
    for name in ("bin/nvcc", f"{include}/cuda_runtime.h", f"{lib}/libcudart_static.a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("REPLKNET_EXT_SKIP_CUDA", raising=False)
    assert setup_functions["find_cuda_home"]() == tmp_path
    found = setup_functions["cuda_folder"](tmp_path, "libcudart_static.a", "lib64", "lib", "targets/*/lib")
    assert found == tmp_path / lib


@pytest.mark.slow
@pytest.mark.parametrize("source", ["cuda_ops.cpp", "schemas.cpp"])
def test_bindings_compile_with_cuda(source: str) -> None:
    """Both files that CUDA kernels are built into otherwise; the kernels themselves: tests/cuda/test_budgets.py."""
    setup = setup_file.functions()
    defines = {
        "TORCH_TARGET_VERSION": setup["TORCH_TARGET_VERSION"],
        "Py_LIMITED_API": setup["LIMITED_API"],
        "REPLKNET_EXT_WITH_CUDA": "1",
        "REPLKNET_EXT_CUDA_ARCHS": '"9.0"',
        "REPLKNET_EXT_CUDA_TOOLKIT": '"13.0"',
    }
    folders = [*include_paths(), sysconfig.get_path("include")]
    command = [
        os.environ.get("CXX", "c++"),
        *setup["compile_options"](),
        *(f"-D{name}={value}" for name, value in defines.items()),
        *(f"-isystem{folder}" for folder in folders),
        "-fsyntax-only",
        "-Werror",
        f"csrc/bindings/{source}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
