"""The parts of `make demo`, small enough for the suite, on the real data."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from examples import demo, demo_digits, demo_pretrained, efficientnet_lite


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_efficientnet_knows_the_photos_before_and_after() -> None:
    outcome = demo_pretrained.run()
    assert outcome.as_claimed
    assert (outcome.swapped, outcome.calls) == (12, 12)
    tiger_cat, espresso = 282, 967
    assert outcome.before.argmax(1).tolist() == outcome.after.argmax(1).tolist() == [tiger_cat, espresso]


def test_efficientnet_has_the_published_size() -> None:
    model = efficientnet_lite.load_pretrained()
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert len(depthwise) == 16
    assert not model.training


def test_a_changed_prediction_is_not_as_claimed() -> None:
    logits = torch.eye(2, 1000)
    good = demo_pretrained.Outcome(logits, logits.clone(), 3, 3, True, "")
    assert good.as_claimed
    for bad in ({"after": logits.flip(0)}, {"calls": 2}, {"swapped": 0, "calls": 0}, {"restored": False}):
        assert not demo_pretrained.Outcome(**{**vars(good), **bad}).as_claimed


@pytest.mark.slow  # tests/training has a quick run that learns and merges
def test_digits_learns_and_merges() -> None:
    digits = demo_digits.load_digits()
    assert [len(part[1]) for part in (digits.train, digits.test)] == [1437, 360]
    model = demo_digits.train(digits, epochs=2)
    result = demo_digits.merge(model, digits)
    assert result.accuracy > 0.8  # after two of the demo's eight epochs; chance is 0.1
    assert result.same == 360
    assert result.difference <= demo_digits.LOGIT_LIMIT
    assert result.calls == (10, 6)  # four small kernels are gone, four large ones and two 3x3 remain


def test_a_failed_part_is_an_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.PARTS, "digits", ("made up", lambda console, output: False))
    assert demo.main(["digits", "--output", str(tmp_path)]) == 1
    monkeypatch.setitem(demo.PARTS, "digits", ("made up", lambda console, output: True))
    assert demo.main(["digits", "--output", str(tmp_path)]) == 0
    with pytest.raises(SystemExit):
        demo.main(["no such part"])
