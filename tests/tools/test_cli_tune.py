"""`replknet-ext tune`: predictions for a GPU that is not there, measurements on this CPU, screens, bad usage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from tools_common import cli

from replknet_ext import HAS_EXT
from replknet_ext.choices import table
from replknet_ext.tools import doctor

pytestmark = [
    pytest.mark.skipif(not HAS_EXT, reason="the compiled extension is not installed"),
    pytest.mark.usefixtures("own_choices"),
]

#: The depthwise layers of RepLKNet-31B that our kernels run: large and small branches, and the stem's.
LAYERS = {
    "64x128x112x112 K3": 1, "64x128x56x56 K31": 2, "64x128x56x56 K5": 2, "64x256x28x28 K29": 2, "64x256x28x28 K5": 2,
    "64x512x14x14 K27": 18, "64x512x14x14 K5": 18, "64x1024x7x7 K13": 2, "64x1024x7x7 K5": 2,
}  # fmt: skip


def test_every_layer_is_predicted_without_a_gpu() -> None:
    shown = cli("tune", "--dry-run", "--device-limits", "h200", columns=80).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown, "something was cut off"
    for layer, count in LAYERS.items():
        assert f"{layer} bfloat16, {count} layer{'s' if count > 1 else ''}\n" in re.sub(r" +\n", "\n", shown)
    tables = shown.partition("all 49 layers")[0]
    assert tables.count(" fwd ") == tables.count(" bwd_input ") == tables.count(" bwd_weight ") == len(LAYERS)
    words = " ".join(shown.split())
    total = float(re.search(r"all 49 layers, predicted: fwd ([\d.]+) ms, bwd_input", words)[1])  # type: ignore[index]
    assert 0.5 < total < 3
    assert "Cost-model PREDICTIONS for limits of h200; nothing was measured." in words
    assert not table._files.cache_dir().exists(), "and nothing is written"


def test_predictions_as_json() -> None:
    found = cli.json(
        "tune", "--device-limits", "h200", "--passes", "fwd,bwd_weight", "--backend", "cuda", "--deploy", "merge"
    )
    assert found["predictions for"] == "limits of h200"
    assert {row["problem"].split()[0] for row in found["rows"]} == {"fwd", "bwd_weight"}
    large = next(row for row in found["rows"] if row["problem"].startswith("fwd bfloat16 64x128x56x56 k31x31"))
    assert "bias" in large["problem"], "merged"
    assert not any("k5x5" in row["problem"] for row in found["rows"])
    first = large["candidates"][0]
    assert first["backend"] == "cuda" and first["name"].startswith("ring_5x7_w") and 50 < first["predicted_us"] < 200
    assert {"warps", "shared_bytes", "blocks", "blocks_per_sm", "workspace_bytes"} == set(first["resources"])
    assert all(candidate["backend"] == "cuda" for row in found["rows"] for candidate in row["candidates"])


def test_the_cpu_is_measured_and_the_doctor_tells(tmp_path: Path) -> None:
    arguments = ("tune", "replknet_13", "--batch-size", "1", "--input-size", "32", "--device", "cpu", "--passes", "fwd")
    shown = cli(*arguments, columns=100).stdout
    assert max(len(line) for line in shown.splitlines() if not line.startswith("kept in ")) <= 100
    assert "all layers" in shown and "kept in" in shown and "untuned us" in shown
    config = tmp_path / "config.json"
    again = cli.json(*arguments, "--save-config", str(config))
    assert all(row["measured"] == [] and row["choice"] for row in again["rows"]), "once is enough"
    saved = json.loads(config.read_text())
    assert {key: row["best"] for key, row in saved["choices"].items()} == {
        row["problem"]: row["choice"]["best"] for row in again["rows"]
    }
    assert saved["identity"] == again["device"]
    (mine,) = (row for row in doctor.collect()["choices"]["files"] if row["path"] == again["path"])
    assert mine["entries"] == len(again["rows"]) > 3
    told = " ".join(cli("doctor", columns=200).stdout.split())
    assert f"{mine['entries']} in {mine['path']}" in told and "shipped for no device yet" in told
    assert "autotune False" in told
    predicted = cli.json(*arguments, "--dry-run")
    assert all(row["candidates"][0]["backend"] == "cpu" for row in predicted["rows"])


def test_help_fits_one_screen() -> None:
    shown = cli("tune", "--help", columns=100).stdout
    assert len(shown.splitlines()) <= 60


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["replknet_31c"], "unknown model 'replknet_31c'; did you mean", 2),
        (["--passes", "fwd,up"], 'passes must be one of "fwd", "bwd_input", "bwd_weight"', 2),
        (["--backend", "torch"], 'backend must be one of "auto", "cpu", "cuda", "triton"', 2),
        (["--device", "abacus"], "unknown device 'abacus'", 2),
        (["--device-limits", "h20"], "h20", 2),
        (["--dtype", "fp8"], "fp8", 2),
        (["--batch-size", "0"], "or equal to 1", 2),
        (["--device", "cpu", "--save-config", "/nowhere/x.json"], "cannot write /nowhere/x.json", 2),
        (["--device", "cpu", "--save-config", __file__], "test_cli_tune.py cannot be read", 2),
        (["--dry-run", "--device", "cpu", "--save-config", "x"], "--save-config writes what was measured", 2),
        (["--input-size", "31", "--dry-run", "--device", "cpu", "--backend", "cuda"], "no kernel of backend 'cuda'", 1),
    ],
)
def test_bad_usage(arguments: list[str], words: str, status: int) -> None:
    result = cli("tune", *arguments, code=status)
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not result.stdout
