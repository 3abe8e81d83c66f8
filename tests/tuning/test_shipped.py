"""Choices that the package ships: which file a device reads, who goes first, what is left out, how files are made."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_common import CPU, Recorder, choose, entry, invented_variants, operands, problem

import replknet_ext as r
from benchmarks import tuning
from replknet_ext.backends import PASSES
from replknet_ext.backends.cuda import CudaBackend
from replknet_ext.choices import lookup, table
from replknet_ext.tools import doctor
from tests.benchmarks.test_tuning import FILES

pytestmark = [
    pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed"),
    pytest.mark.usefixtures("own_choices"),
]

SHAPES = [((2, 4, 9, 9), 5)]
FAST = {table.key_of(problem(pass_=pass_)): entry(f"{pass_}_fast") for pass_ in PASSES}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a package would ship for this CPU; there is none yet. Variants are invented."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(table, "SHIPPED", folder)
    with invented_variants(monkeypatch):
        yield folder / f"{table.stem_of(table.identity(CPU))}.json"


def ship(path: Path, found: dict[str, table.Entry] = FAST, **changes: str) -> None:
    """Writes the file, with changes in what it was measured on, as another process would."""
    path.write_text(json.dumps(table.document({**table.identity(CPU), **changes}, found)))
    table.forget()


@pytest.mark.parametrize(
    ("device", "stem"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "a100-sxm4-80gb-mig-1g-10gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("AMD Instinct MI300X", "amd-instinct-mi300x"),
    ],
)
def test_names_of_gpus(device: str, stem: str) -> None:
    assert table.stem_of({"device": device, "driver": "1"}) == stem


def test_a_cpu_is_its_name_its_instruction_set_and_its_threads() -> None:
    who = {"device": "Intel(R) Xeon(R) Processor @ 2.0GHz", "isa": "avx512", "threads": "2"}
    assert table.stem_of(who) == "intel-r-xeon-r-processor-2-0ghz_avx512_2t"


def test_users_choices_come_first_then_shipped_ones_then_the_model(shipped: Path) -> None:
    x, w = operands()
    assert lookup.lookup(problem(), "auto", CPU) is None
    ship(shipped, driver="another", torch="another", variants="other")
    choose({"fwd": "fwd_wrong"})
    with Recorder() as recorder:
        r.depthwise_conv2d(x, w, padding="same").sum().backward()
        r.depthwise_conv2d(x[:1], w, padding="same")
    assert recorder.seen == [("fwd", 2), ("bwd_input", 1), ("bwd_weight", 1), ("fwd", -1)]
    about = r.explain(x, w, padding="same")
    assert about.by == {"fwd": "tuned", "bwd_input": "shipped", "bwd_weight": "shipped"}
    assert "bwd_input: cpu, bwd_input_fast, shipped" in str(about)
    told = doctor.collect()["choices"]
    assert told["shipped"] == [shipped.stem]
    row = told["files"][0]
    assert (row["entries"], row["shipped_entries"], row["shipped_as"]) == (1, 3, shipped.stem)


def test_a_gpu_reads_the_file_of_its_model(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there; what is gone from the build is passed over."""
    who = {"device": "NVIDIA H200", "driver": "1", "replknet_ext": r.__version__, "variants": "v"}
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(table, "identity", lambda device: who)
    monkeypatch.setattr(CudaBackend, "variant", lambda self, p, name: {"known": 7, "mine": 3}.get(name))
    p = problem(device="cuda")
    rows = table.Entry((("cuda", "gone", 0.5), ("cuda", "known", 1.0)), 2.0)
    theirs = {**who, "device": "H200", "driver": "2", "variants": "w"}
    table.save_config(shipped.parent / "h200.json", theirs, {table.key_of(p): rows})
    table.forget()
    assert lookup.lookup(p, "auto", gpu) == lookup.Choice("cuda", "known", 7, 1.0, "shipped")
    assert lookup.lookup(p, "triton", gpu) is None
    table.save(gpu, {table.key_of(p): entry("mine", backend="cuda")}, replace=True)
    assert lookup.lookup(p, "auto", gpu) == lookup.Choice("cuda", "mine", 3, 1.0, "tuned")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replknet_ext": "0.0.1"}, "another device or version (replknet_ext 0.0.1, here"),
        ({"device": "Abacus"}, "another device or version (device Abacus, here"),
        ({"threads": "77"}, "another device or version (threads 77, here"),
        ({"isa": "mmx"}, "another device or version (isa mmx, here"),
    ],
)
def test_files_of_others_are_left_out(shipped: Path, changes: dict[str, str], words: str) -> None:
    ship(shipped, **changes)
    with pytest.warns(UserWarning) as caught:
        assert lookup.lookup(problem(), "auto", CPU) is None
        assert lookup.lookup(problem(n=3), "auto", CPU) is None
    (warning,) = caught
    assert words in str(warning.message) and str(shipped) in str(warning.message)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1, "identity": {}, "choices": {}}'])
def test_damaged_files_are_left_out(shipped: Path, text: str) -> None:
    shipped.write_text(text)
    with pytest.warns(UserWarning, match="are not used: the file"):
        assert lookup.lookup(problem(), "auto", CPU) is None


def test_what_was_shipped_is_still_measured_when_asked_for(shipped: Path, invented: list[str]) -> None:
    slow = {table.key_of(problem()): entry("fwd_wrong")}
    ship(shipped, slow)
    (row,) = r.tune(SHAPES, passes="fwd", progress=False)
    assert invented and row.entry is not None and row.entry.best[0][1] == "fwd_fast"
    shutil.rmtree(table.path_of(table.identity(CPU)).parent)
    table.forget()
    assert lookup.lookup(problem(), "auto", CPU) == lookup.Choice("cpu", "fwd_wrong", 2, 1.0, "shipped")
    invented.clear()
    with r.autotune(True), torch.no_grad():
        r.depthwise_conv2d(*operands(), padding="same")
    assert invented


def test_a_report_becomes_a_file_that_can_be_shipped(shipped: Path, invented: list[str], tmp_path: Path) -> None:
    report = r.tune(SHAPES, passes="fwd", progress=False, save=False)
    file = report.save_config(tmp_path / "mine.json")
    r.tune(SHAPES, passes=PASSES, progress=False, save=False).save_config(file)
    table.forget()
    shutil.copy(file, shipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pass_ in PASSES:
            choice = lookup.lookup(problem(pass_=pass_), "auto", CPU)
            assert choice == lookup.Choice("cpu", f"{pass_}_fast", 1, 5.0, "shipped")
    by_name = r.tune(SHAPES, backend="cpu", progress=False, save=False).save_config(tmp_path / "named.json")
    assert all(key.endswith("backend=cpu") for key in json.loads(by_name.read_text())["choices"])


def test_other_files_are_not_overwritten(shipped: Path, tmp_path: Path) -> None:
    who = table.identity(CPU)
    for text in ("a letter", json.dumps(table.document({**who, "device": "Abacus"}, FAST))):
        file = tmp_path / "letter"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"letter .*: name another file, or remove it"):
            table.save_config(file, who, FAST)
        assert file.read_text() == text
    with pytest.raises(ValueError, match="there are no measured choices"):
        table.save_config(tmp_path / "new", who, {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_measurements_of_the_benchmark_become_such_a_file(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "config.json"
    assert tuning.main(["--from", str(path), "--save-config", str(output)]) == 0
    measured = json.loads(path.read_text())
    found, why = table.parse(output, measured["device"], alike=True)
    assert why is None and set(found) == {row["problem"] for row in measured["rows"]}
    for row in measured["rows"]:
        best = found[row["problem"]].best[0]
        times = {c["name"]: c["us"] for c in row["candidates"] if c["failed"] is None}
        assert best[2] == times[best[1]] <= times[row["first"]]
        assert best[1] == row["first"] or best[2] <= times[row["first"]] * 0.98


def mistakes(path: Path) -> list[str]:
    """What is wrong with a file that is to be shipped."""
    who: dict[str, Any] = json.loads(path.read_text())["identity"]
    found, why = table.parse(path, {**who, "replknet_ext": r.__version__}, alike=True)
    wrong = [] if why is None else [why]
    wrong += [] if path.stem == table.stem_of(who) else [f"should be named {table.stem_of(who)}"]
    return wrong + ([] if found else ["holds nothing"])


def test_the_files_of_this_package_can_be_used(shipped: Path) -> None:
    for path in (Path(table.__file__).parent / "shipped").glob("*.json"):
        assert mistakes(path) == []
    ship(shipped)
    assert mistakes(shipped) == []
    ship(shipped, replknet_ext="0.0.1")
    assert len(mistakes(shipped)) == 2
    ship(shipped, isa="mmx")
    assert len(mistakes(shipped)) == 1
