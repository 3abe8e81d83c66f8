"""Every command as a user types it, on real photos; what they print and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("rich")

from tools_common import PHOTOS, checkpoint, cli, save_photos
from typer.main import get_command

from replknet_ext import __version__
from replknet_ext.cli.app import app
from replknet_ext.models import MODELS, read_checkpoint

COMMANDS = tuple(get_command(app).commands)  # type: ignore[attr-defined]  # it is a group


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "small.pth")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    save_photos(folder)
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures laid out as ImageNet: the cat and the coffee are of their true classes."""
    root = tmp_path_factory.mktemp("imagenet")
    for synset, name in [("n02123045", "chelsea"), ("n07920052", "coffee"), ("n04266014", "rocket")]:
        save_photos(root / "val" / synset, (name,), ".JPEG")
    return root


# ---- help and bad usage ----


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits(command: tuple[str, ...], columns: int) -> None:
    shown = cli(*command, "--help", columns=columns).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "Usage: " in shown
    if not command:
        assert all(name in shown for name in COMMANDS)


def test_the_readme_names_every_command() -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("|")]
    assert [name for name in COMMANDS if not any(f"`{name} " in line or f"`{name}`" in line for line in shown)] == []


def test_version() -> None:
    assert cli("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict"], "Missing argument"),
        (["predict", "x.png"], "no model given: pass --model or --checkpoint"),
        (["predict", "x.png", "--model", "replknet_31c"], "unknown model 'replknet_31c'; did you mean"),
        (["predict", "x.png", "--model", "replknet_13"], "no weights are published for replknet_13"),
        (["predict", "x.png", "-c", "WEIGHTS", "--device", "abacus"], "unknown device 'abacus'"),
        (["predict", "x.png", "-c", "WEIGHTS", "--mean", "half"], "not a list of numbers"),
        (["predict", "x.png", "-c", "WEIGHTS", "--mean", "1,2"], "mean must have 1 or 3 values; got 2"),
        (["predict", "x.png", "-c", "WEIGHTS", "--std", "0"], "std must be positive"),
        (["predict", "x.png", "--topk", "0"], "or equal to 1 | x>=1"),  # newer and older typer
        (["evaluate", ".", "-c", "WEIGHTS", "--amp", "fp8"], "fp8"),
        (["reparam", "WEIGHTS", "WEIGHTS"], "are the same file"),
        (["reparam", "WEIGHTS", "x.pth", "--deploy", "half"], "half"),
        (["summary", "replknet_31c"], "is neither a known model nor a file; did you mean"),
        (["erf", "-c", "WEIGHTS", "-o", "x.docx"], "cannot write x.docx: its suffix must be one of"),
        (["erf", "-c", "WEIGHTS", "--scores", "x.txt"], "its suffix must be one of .npy"),
        (["convert", "WEIGHTS", "x.zip"], "its suffix must be one of .pth"),
        (["predict", "x.png", "-c", "WEIGHTS", "--mean", "nan,0,0"], "mean must be finite"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_usage(arguments: list[str], words: str, weights: Path) -> None:
    result = cli(*(str(weights) if part == "WEIGHTS" else part for part in arguments), code=2)
    told = " ".join(result.stderr.replace("│", " ").split())
    assert any(word in told for word in words.split(" | ")), told
    assert not result.stdout


def test_failures_are_one_line(weights: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(weights.read_bytes()[:20000])
    for arguments, words in [
        (["predict", "missing.png", "-c", weights], "missing.png: no such file or folder"),
        (["predict", tmp_path / "none.png", "-c", tmp_path / "none.pth"], "none.pth: no such file"),
        (["predict", tmp_path / "none.png", "-c", damaged], "damaged"),
        (["predict", tmp_path / "none.png", "-c", weights, "-m", "replknet_31b"], "does not fit"),
        (["reparam", damaged, tmp_path / "out.pth"], "damaged"),
        (["predict", "x.png", "-c", weights, "--classes", "none.txt"], "classes file none.txt: No such file"),
        (["evaluate", "nowhere", "-c", weights], "nowhere: no such folder"),
        (["erf", "-c", weights, "--data", "nowhere"], "nowhere: no such file or folder"),
        (["models", "vgg*"], "no model's name matches 'vgg*'"),
    ]:
        result = cli(*arguments, code=1)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], result.stderr
    assert not (tmp_path / "out.pth").exists()


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext.tools import catalogue

    def broken(*args: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(catalogue, "collect", broken)
    assert cli("models", code=1).stderr.startswith("error: KeyError: 'oops' (--traceback")
    from typer.testing import CliRunner

    assert isinstance(CliRunner().invoke(app, ["--traceback", "models"]).exception, KeyError)


def test_an_error_of_a_process(tmp_path: Path) -> None:
    """Without Python's own words, as an interpreter that has just started ends."""
    done = subprocess.run(
        [sys.executable, "-m", "replknet_ext", "predict", "none.png", "--checkpoint", "none.pth"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: none.pth: no such file\n"


# ---- predict ----


def test_predict_photos(weights: Path, photos: Path) -> None:
    cat = photos / "chelsea.png"
    result = cli("predict", cat, "--checkpoint", weights, "--topk", 3)
    lines = result.stdout.splitlines()
    assert lines[0] == str(cat) and len(lines) == 4
    assert [line.split("%")[0].strip().replace(".", "").isdigit() for line in lines[1:]] == [True] * 3

    report = cli.json("predict", photos, "--checkpoint", weights, "--topk", 3)
    assert [Path(entry["path"]).stem for entry in report["images"]] == sorted(PHOTOS)
    for entry in report["images"]:
        best = entry["top"][0]
        assert (entry["pred_label"], entry["pred_score"]) == (best["label"], best["score"])
        assert len(entry["top"]) == 3 and best["class"] == entry["pred_class"]
    assert f"{report['images'][1]['pred_score']:.2%}" in lines[1]


@pytest.mark.parametrize("level", ["merge", "full"])
def test_predict_merged(weights: Path, photos: Path, level: str) -> None:
    plain = cli.json("predict", photos, "-c", weights)
    merged = cli.json("predict", photos, "-c", weights, "--deploy", level, "--batch-size", 1)
    for before, after in zip(plain["images"], merged["images"], strict=True):
        assert before["pred_label"] == after["pred_label"]
        assert before["pred_score"] == pytest.approx(after["pred_score"], rel=1e-3)


def test_predict_tells_of_bad_files_and_goes_on(weights: Path, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("broken")
    result = cli("predict", broken, photos / "coffee.png", "missing.png", "-c", weights, "-o", tmp_path / "out")
    assert result.stderr.splitlines() == [
        f"error: {broken}: not a picture that Pillow can read",
        "error: missing.png: no such file or folder",
        f"1 annotated image in {tmp_path / 'out'}",
    ]
    assert str(photos / "coffee.png") in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coffee.png"]
    assert Image.open(tmp_path / "out" / "coffee.png").size[0] == 640

    report = cli.json("predict", broken, "-c", weights, code=1)
    assert report["images"] == [{"path": str(broken), "error": "not a picture that Pillow can read"}]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pictures in" in cli("predict", empty, "-c", weights, code=1).stderr


def test_predict_by_name_and_with_other_classes(photos: Path, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "two.safetensors", num_classes=2, spread=0.1)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    report = cli.json("predict", photos, "-c", weights, "--classes", tmp_path / "names.txt", "--input-size", 64)
    assert {entry["pred_class"] for entry in report["images"]} <= {"cat", "dog"}
    assert all(len(entry["top"]) == 2 for entry in report["images"])
    half = cli.json("predict", photos, "-c", weights, "--input-size", 64, "--mean", "0.5", "--std", "0.5,0.5,0.5")
    assert half["images"][0]["top"] != report["images"][0]["top"]
    message = cli("predict", photos, "-c", weights, "--classes", tmp_path / "none", code=1).stderr
    assert "No such file" in message
    (tmp_path / "names.txt").write_text("cat\n")
    wrong = cli("predict", photos, "-c", weights, "--classes", tmp_path / "names.txt", code=2).stderr
    assert "there are 1 class names, but the model has 2 classes" in wrong


# ---- evaluate ----


def test_evaluate_a_folder_laid_out_as_imagenet(weights: Path, imagenet: Path) -> None:
    report = cli.json("evaluate", imagenet, "-c", weights, "--workers", 0)
    assert (report["images"], report["classes"]) == (3, 3)
    labels = {281: "chelsea", 967: "coffee", 812: "rocket"}
    predicted = cli.json("predict", imagenet / "val", "-c", weights, "-k", 5)
    hits = []
    for entry in predicted["images"]:
        (label,) = (label for label, name in labels.items() if name in entry["path"])
        hits.append([best["label"] == label for best in entry["top"]])
    assert report["correct1"] == sum(hit[0] for hit in hits)
    assert report["correct5"] == sum(map(any, hits))

    shown = cli("evaluate", imagenet, "-c", weights, "--workers", 0, "--amp", "bf16", "--deploy", "merge", columns=60)
    assert max(map(len, shown.stdout.splitlines())) <= 60
    assert "top-1" in shown.stdout and "3 classes" in shown.stdout


def test_evaluate_finds_the_true_class(imagenet: Path, tmp_path: Path) -> None:
    """A network whose bias answers 'tabby' whatever it sees is right about the cat alone."""
    weights = checkpoint(tmp_path / "tabby.pth")
    state = dict(torch.load(weights, weights_only=True)["model"])
    state["head.bias"] = torch.zeros(1000)
    state["head.bias"][[281, 967]] = torch.tensor([2e4, 1e4])
    torch.save({"model": state, "meta": torch.load(weights, weights_only=True)["meta"]}, weights)
    report = cli.json("evaluate", imagenet, "-c", weights, "--workers", 0)
    assert (report["correct1"], report["correct5"], report["images"]) == (1, 2, 3)


def test_evaluate_tells_what_it_could_not_read(weights: Path, imagenet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "n02123045"
    save_photos(folder, ("chelsea",))
    (folder / "broken.jpg").write_text("broken")
    result = cli("evaluate", tmp_path, "-c", weights, "--workers", 0)
    assert f"note: cannot be read, does not count: {folder / 'broken.jpg'}" in result.stderr
    assert "1 picture could not be read" in result.stdout


# ---- reparam, convert ----


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
@pytest.mark.parametrize("level", ["merge", "full"])
def test_reparam(weights: Path, photos: Path, tmp_path: Path, level: str, name: str) -> None:
    target = tmp_path / name
    shown = cli("reparam", weights, target, "--deploy", level).stderr
    form = {"merge": "merged", "full": "full"}[level]
    assert shown.startswith(f"{target}: {form} form, official keys, ")
    assert read_checkpoint(target).form == form
    before = cli.json("predict", photos, "-c", weights)["images"]
    after = cli.json("predict", photos, "-c", target)["images"]
    assert [entry["pred_label"] for entry in before] == [entry["pred_label"] for entry in after]


def test_convert_there_and_back(weights: Path, tmp_path: Path) -> None:
    there, back, half = tmp_path / "mm.safetensors", tmp_path / "back.pth", tmp_path / "half.pth"
    assert "mmpretrain keys" in cli("convert", weights, there, "--to", "mmpretrain").stderr
    assert read_checkpoint(there).style == "mmpretrain"
    cli("convert", there, back)
    first, second = read_checkpoint(weights).state, read_checkpoint(back).state
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    cli("convert", weights, half, "--deploy", "merge", "--dtype", "bf16")
    written = read_checkpoint(half)
    assert written.form == "merged" and written.state["head.weight"].dtype == torch.bfloat16
    cli("convert", weights, tmp_path / "body.pth", "--to", "backbone")
    message = cli("predict", "x.png", "-c", tmp_path / "body.pth", code=1).stderr
    assert "has no classifier" in message
    assert "is not a RepLKNet-31B" in cli("convert", weights, back, "--arch", "31B", code=1).stderr
    assert "'model_ema'" in cli("convert", weights, back, "--key", "model_ema", code=1).stderr


@pytest.mark.parametrize("command", ["convert", "reparam"])
def test_other_entries_are_left_out_on_request(command: str, weights: Path, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    content["model"]["auxiliary_head.weight"] = torch.zeros(3)
    torch.save(content, source := tmp_path / "more.pth")
    assert "auxiliary_head.weight" in cli(command, source, tmp_path / "out.pth", code=1).stderr
    assert "left out: auxiliary_head.weight" in cli(command, source, tmp_path / "out.pth", "--no-strict").stderr
    cli(command, weights, tmp_path / "wanted.pth")
    found, wanted = read_checkpoint(tmp_path / "out.pth").state, read_checkpoint(tmp_path / "wanted.pth").state
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in found)


def test_erf_of_a_backbone(weights: Path, photos: Path, tmp_path: Path) -> None:
    """It has the receptive field of its network before the last BatchNorm, and no classifier is needed."""
    from replknet_ext.tools import erf, loading

    cli("convert", weights, tmp_path / "body.pth", "--to", "backbone")
    given = ("--data", photos, "--input-size", 64, "-n", 1, "-o", tmp_path / "erf.png")
    found = cli.json("erf", "-c", tmp_path / "body.pth", *given)
    whole = loading.load(None, str(weights), device="cpu", input_size=64)
    whole.model.norm = torch.nn.Identity()
    assert found["areas"] == erf.of(whole, [str(photos)], 1).as_dict()["areas"]


def test_export_a_program(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.pt2"
    report = cli.json("export", target, "-c", weights, "--deploy", "merge", "--input-size", 64, "--batch-size", 2)
    assert (report["kind"], report["shape"], report["size"]) == ("program", [2, 3, 64, 64], target.stat().st_size)
    assert torch.export.load(target).module()(torch.rand(2, 3, 64, 64)).shape == (2, 1000)
    assert "suffix" in cli("export", tmp_path / "small.xyz", "-c", weights, code=2).stderr


# ---- summary, erf, models ----


def test_summary(weights: Path) -> None:
    report = cli.json("summary", "replknet-31B_3rdparty_in1k")
    assert report["forms"]["train"]["flops"] == 15_636_547_584
    assert report["forms"]["merged"]["macs"] == 15_353_525_248
    wide = cli("summary", weights, "--input-size", 64).stdout
    narrow = cli("summary", weights, "--input-size", 64, columns=60).stdout
    assert "small.pth, 3 x 64 x 64" in wide
    assert max(map(len, narrow.splitlines())) <= 60
    small = cli.json("summary", weights, "--input-size", 64, "--num-classes", 10)
    assert f"{cli.json('summary', weights, '--input-size', 64)['forms']['train']['params']:,}" in wide
    assert small["forms"]["full"]["params"] < small["forms"]["train"]["params"]


def test_erf_of_photos(weights: Path, photos: Path, tmp_path: Path) -> None:
    picture, scores = tmp_path / "erf.png", tmp_path / "erf.npy"
    report = cli.json(
        "erf", "-c", weights, "-d", photos, "--input-size", 96, "-n", 2, "-o", picture, "--scores", scores
    )
    assert (report["images"], report["size"], report["heat_map"]) == (2, [96, 96], str(picture))
    assert [area["share"] for area in report["areas"]] == [0.2, 0.3, 0.5, 0.99]
    ratios = [area["ratio"] for area in report["areas"]]
    assert ratios == sorted(ratios) and 0 < ratios[0] < ratios[3] <= 1
    assert min(Image.open(picture).size) > 700
    assert np.load(scores).shape == (96, 96)

    merged = cli.json(
        "erf", "-c", weights, "-d", photos, "--input-size", 96, "-n", 2, "-o", picture, "--deploy", "merge"
    )
    assert [area["side"] for area in merged["areas"]] == [area["side"] for area in report["areas"]]
    shown = cli("erf", "-c", weights, "--input-size", 64, "-n", 1, "-o", picture, columns=60)
    assert "mean of 1 picture" in shown.stdout and f"heat map in {picture}" in shown.stderr


def test_models() -> None:
    rows = cli.json("models")
    assert {row["name"] for row in rows} >= set(MODELS)
    (xl,) = cli.json("models", "replknet-XL*")
    assert (xl["flops"], xl["top1"], xl["pretrain"]) == (129_570_201_600, 87.57, "MegData-73M")
    for columns in (60, 100, 140):
        shown = cli("models", columns=columns).stdout
        assert max(map(len, shown.splitlines())) <= columns
        assert all(name in shown for name in MODELS)
    assert "replknet_13" not in cli("models", "--pretrained").stdout


def test_json_goes_alone_to_stdout(weights: Path, photos: Path) -> None:
    done = processes.run("predict", photos, "missing.png", "-c", weights, "--json")
    assert len(json.loads(done.stdout)["images"]) == 4
    assert done.stderr == b"error: missing.png: no such file or folder\n"
