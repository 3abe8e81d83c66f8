"""What commands say, to terminals, pipes and programs; how they end; and what they never overwrite."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

pytest.importorskip("typer")
pytest.importorskip("rich")

from tools_common import checkpoint, cli, gradient_picture, save_photos

from replknet_ext.models import MODELS, PretrainedConfig
from replknet_ext.tools import show

PUBLISHED = [cfg for name, cfg in MODELS.items() if cfg.url and cfg.name == name]
ESCAPE = "\x1b]8;;http://x\x1b\\\x1b[2J"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "small.pth", num_classes=3)


@pytest.fixture(scope="module")
def broken_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = checkpoint(tmp_path_factory.mktemp("weights") / "nan.pth", num_classes=3)
    content = torch.load(path, weights_only=True)
    content["model"]["head.bias"][0] = float("nan")
    torch.save(content, path)
    return path


def figures(cfg: PretrainedConfig) -> list[str]:
    """What `models` says of a published model."""
    assert cfg.params is not None and cfg.flops is not None
    return [f"{cfg.top1:.2f}", f"{cfg.top5:.2f}", f"{cfg.params / 1e6:.2f} M", f"{cfg.flops / 1e9:.2f} G"]


# ---- outputs that are not finite ----


def test_predict_tells_of_outputs_that_are_not_finite(weights: Path, broken_network: Path, tmp_path: Path) -> None:
    photos = save_photos(tmp_path)
    arguments = ("predict", tmp_path, "--input-size", 64, "-c", broken_network)
    shown = cli(*arguments, code=1)
    assert shown.stderr.count("the network's outputs for it are not finite") == len(photos) and not shown.stdout
    report = cli.json(*arguments, code=1)
    assert all("not finite" in image["error"] for image in report["images"])


def test_evaluate_tells_of_outputs_that_are_not_finite(broken_network: Path, tmp_path: Path) -> None:
    for name in "abc":
        save_photos(tmp_path / name, ("chelsea",))
    arguments = ("evaluate", tmp_path, "--input-size", 64, "--workers", 0, "-c", broken_network)
    shown = cli(*arguments, code=1)
    assert "error: the network's outputs for 3 of 3 images are not finite: they count as wrong" in shown.stderr
    report = cli.json(*arguments, code=1)
    assert (report["not_finite"], report["correct1"], report["correct5"], report["images"]) == (3, 0, 0, 3)


def test_the_function_raises_for_outputs_that_are_not_finite() -> None:
    from replknet_ext import inference_model
    from replknet_ext.errors import ToolError

    class Overflow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[float("inf"), 1.0]])

    with pytest.raises(ToolError, match="not finite"):
        inference_model(Overflow(), gradient_picture(8, 8))


# ---- nothing that is read is replaced ----


def test_predict_never_replaces_its_pictures(weights: Path, tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "same")
    before = [path.read_bytes() for path in photos]
    (tmp_path / "linked").symlink_to("same")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / photos[0].name).symlink_to(photos[0])
    for output in ("same", "linked", "other", "same/../same"):
        shown = cli("predict", tmp_path / "same", "-c", weights, "-o", tmp_path / output, code=2)
        assert "would replace" in shown.stderr and not shown.stdout
    assert [path.read_bytes() for path in photos] == before
    shown = cli("erf", "-c", weights, "-d", photos[0], "-n", 1, "--input-size", 32, "-o", photos[0], code=2)
    assert "would replace" in shown.stderr and photos[0].read_bytes() == before[0]


def test_destinations_are_checked_before_the_weights_are_read(tmp_path: Path) -> None:
    """The checkpoint is missing, and the destination is what is told."""
    picture, file = tmp_path / "picture.png", tmp_path / "file"
    gradient_picture(8, 8).save(picture)
    file.touch()
    none = ("-c", tmp_path / "none.pth")
    for arguments, code, words in [
        (("predict", picture, *none, "--json", "-o", file / "out"), 1, "cannot make the folder"),
        (("erf", *none, "-o", tmp_path / "x.docx"), 2, "its suffix must be one of"),
        (("erf", *none, "-o", tmp_path / "no" / "x.png"), 1, "no such folder"),
        (("erf", *none, "-o", tmp_path / "x.png", "--scores", tmp_path / "s.txt"), 2, "s.txt: its suffix"),
        (("erf", *none, "-o", tmp_path / "x.png", "--scores", tmp_path / "no" / "s.npy"), 1, "no such folder"),
        (("export", tmp_path / "no" / "x.onnx", *none), 1, "no such folder"),
        (("export", tmp_path / "x.xyz", *none), 2, "the suffix must be"),
        (("reparam", tmp_path / "none.pth", tmp_path / "no" / "x.pth"), 1, "no such folder"),
        (("convert", tmp_path / "none.pth", tmp_path / "x.zip"), 2, "its suffix must be one of"),
    ]:
        assert words in cli(*arguments, code=code).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "picture.png"], "and no folder was made"


# ---- names are shown, not obeyed ----


def test_plain_text() -> None:
    assert show.plain("a\x1b[2J\tb\x07\udcff\u202ec\u2028") == "a\\x1b[2J\\tb\\x07\\udcff\\u202ec\\u2028"
    assert show.plain("naïve 猫 👨‍👩‍👧 [red]") == "naïve 猫 👨‍👩‍👧 [red]"


def test_markup_and_escapes_in_names_are_inert(weights: Path, tmp_path: Path) -> None:
    odd = tmp_path / f"[red]:smile: $x_{{$ {ESCAPE.replace('/', '|')}.pth"
    odd.write_bytes(weights.read_bytes())
    folder = tmp_path / "q[/bold]"
    (folder / "o[").mkdir(parents=True)
    photos = save_photos(folder, ("coffee",))
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"[/]{ESCAPE}{index}\n" for index in range(3)]))
    (tmp_path / "data").mkdir()
    for name in "abc":
        save_photos(tmp_path / "data" / name, ("chelsea",))
    small = ("-c", odd, "--input-size", 64)
    for arguments in [
        ("predict", folder, tmp_path / f"{ESCAPE}.png", *small, "--classes", names, "-o", folder / "out"),
        ("evaluate", tmp_path / "data", *small, "--workers", 0),
        ("summary", odd, "--input-size", 64),
        ("erf", *small, "-d", photos[0], "-o", folder / "[red]erf.png"),
        ("export", folder / "o[/bold].pt2", *small, "--batch-size", 1),
        ("convert", odd, folder / "[red]x.pth"),
    ]:
        result = cli(*arguments, columns=400)
        shown = result.stdout + result.stderr
        assert "\x1b" not in shown and "[" in shown, arguments
        if arguments[0] not in ("predict", "convert"):
            assert "[red]:smile:" in shown, arguments
        if arguments[0] == "export":
            assert str(folder / "o[/bold].pt2") in result.stdout
    assert Image.open(folder / "out" / "coffee.png").size[0] == 640


@pytest.mark.parametrize("encoding", ["utf-8:strict", pytest.param("ascii:strict", marks=pytest.mark.slow)])
def test_a_name_that_is_no_text_stops_nothing(weights: Path, tmp_path: Path, encoding: str) -> None:
    (good,) = save_photos(tmp_path / "in", ("coffee",))
    odd = tmp_path / "in" / os.fsdecode(b"b\xff.png")
    odd.write_bytes(good.read_bytes())
    (tmp_path / "in" / "é.png").write_bytes(good.read_bytes())
    done = processes.run("predict", tmp_path / "in", "-c", weights, "--input-size", 64, PYTHONIOENCODING=encoding)
    assert done.stdout.count(b"%") == 9 and rb"b\udcff.png" in done.stdout
    found = json.loads(processes.run("predict", odd, "-c", weights, "--input-size", 64, "--json").stdout)
    assert os.fsencode(found["images"][0]["path"]) == os.fsencode(odd)


# ---- off a terminal ----


def test_nothing_is_lost_off_a_terminal() -> None:
    shown = processes.run("models").stdout.decode()
    for cfg in PUBLISHED:
        line = next(line for line in shown.splitlines() if line.split()[:1] == [cfg.name])
        assert all(word in line for word in figures(cfg)), line
    report = json.loads(processes.run("doctor", "--json").stdout)
    shown = processes.run("doctor").stdout.decode()
    for value in (report["extension"]["path"], *(row["path"] for row in report["choices"]["files"])):
        assert value is None or value in shown
    assert all(variable["meaning"] in shown for variable in report["environment"])


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_models_shows_all_figures_at_every_width(columns: int) -> None:
    shown = cli("models", columns=columns).stdout
    assert max(map(len, shown.splitlines())) <= columns
    words = " ".join(shown.split())
    for cfg in PUBLISHED:
        assert all(word in words for word in (cfg.name, *figures(cfg)))


def test_a_reader_that_stops_is_no_error() -> None:
    command = f"{sys.executable} -m replknet_ext models --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[", "")


# ---- while it runs ----


def on_a_terminal(*arguments: object) -> tuple[str, str]:
    """stdout, and what a terminal gets as stderr."""
    ours, theirs = pty.openpty()
    done = processes.run(*arguments, terminal=os.ttyname(theirs))
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    return done.stdout.decode(), shown.decode()


def test_progress_of_predict_as_json(weights: Path, tmp_path: Path) -> None:
    save_photos(tmp_path)
    given = ("predict", tmp_path, "-c", weights, "--input-size", 32, "--json")
    out, shown = on_a_terminal(*given)
    assert len(json.loads(out)["images"]) == 3 and "predicting" in shown and "3/3" in shown
    out, shown = on_a_terminal("--quiet", *given)
    assert len(json.loads(out)["images"]) == 3 and shown == ""


def test_quiet_leaves_notes_out_and_no_errors(weights: Path, tmp_path: Path) -> None:
    assert "x.pth: merged" in cli("reparam", weights, tmp_path / "x.pth").stderr
    assert cli("--quiet", "reparam", weights, tmp_path / "x.pth").stderr == ""
    assert cli("--quiet", "reparam", tmp_path / "none", tmp_path / "x.pth", code=1).stderr.startswith("error: ")


def test_what_is_done_at_ctrl_c(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext.tools import evaluate, predict

    for name in "abc":
        save_photos(tmp_path / "val" / name)
    given = ("-c", weights, "--input-size", 32, "--batch-size", 1)
    monkeypatch.setattr(predict, "predict_files", stopping_after(predict.predict_files, 4))
    found = cli("predict", tmp_path, *given, "--json", code=130)
    content = json.loads(found.stdout)
    assert (len(content["images"]), content["interrupted"]) == (4, True)
    assert found.stderr == "interrupted: 4 of 9 images done\n"
    monkeypatch.setattr(evaluate, "DataLoader", stopping_after(DataLoader, 5))
    found = cli("evaluate", tmp_path, *given, "-j", 0, code=130)
    assert found.stderr == "interrupted: 5 of 9 images done\n" and "top-1" in found.stdout
    content = json.loads(cli("evaluate", tmp_path, *given, "-j", 0, "--json", code=130).stdout)
    assert (content["images"], content["interrupted"]) == (5, True)


def stopping_after(make: Any, count: int) -> Any:
    """What `make` makes, until Ctrl-C comes after `count` of it."""

    def made(*arguments: Any, **options: Any) -> Any:
        yield from islice(make(*arguments, **options), count)
        raise KeyboardInterrupt

    return made


# ---- the other end of errors ----


def test_errors_are_one_line_whatever_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext.tools import catalogue

    for error, code, words in [
        (RuntimeError("first\nsecond"), 1, "error: RuntimeError: first second ("),
        (KeyboardInterrupt(), 130, "interrupted"),
    ]:

        def fail(*arguments: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(catalogue, "collect", fail)
        shown = cli("models", code=code).stderr
        assert shown.startswith(words) and len(shown.splitlines()) == 1


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext.models import CheckpointError
    from replknet_ext.tools import loading

    def get_model(name: str, **kwargs: object) -> None:
        raise CheckpointError("http://host/x.pth: no route")

    monkeypatch.setattr(loading, "get_model", get_model)
    shown = cli("predict", "x.png", "-m", "replknet_31b", code=1).stderr
    assert (
        "no weights for replknet_31b: http://host/x.pth: no route. If you have the file, give --checkpoint FILE"
        in shown
    )


def test_help_texts_are_wrapped_once() -> None:
    """Lines of a paragraph end where the screen does, not where the source's lines do."""
    for command in ("evaluate", "tune", "predict"):
        shown = cli(command, "--help", columns=80).stdout.partition("╭")[0]
        lines = [line.strip() for line in shown.splitlines()]
        for line, following in pairwise(lines):
            if line and following and not line.startswith("Usage"):
                assert len(line) + 1 + len(following.split()[0]) > 76, (command, line)


def test_one_spelling_of_one_idea() -> None:
    for command in ("predict", "evaluate", "export", "erf", "reparam", "convert", "tune"):
        shown = cli(command, "--help", columns=120).stdout
        assert "--deploy" in shown and "merge|full" in shown, command
        assert not any(option in shown for option in ("--full", "--level", "--form ", "--batch ", "--size "))
