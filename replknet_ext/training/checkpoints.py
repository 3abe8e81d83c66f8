"""Checkpoints of a run: whole or absent, `last`, `best` and numbered ones, and what makes a run continue from them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import locked, replacing
from ..errors import ToolError, UsageError

__all__ = ["Folder", "load_state", "state_of"]

LAST, BEST = "last.pth", "best.pth"


class Folder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def last(self) -> Path:
        return self.path / LAST

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """No second run can be in the block for this folder.

        Raises:
            ToolError: another run is, or the folder cannot be made.
        """
        from filelock import Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = locked(self.path / "run", timeout=0)
            lock.__enter__()
        except Timeout:
            raise ToolError(f"{self.path}: another run is using this folder") from None
        except OSError as error:
            raise ToolError(f"{self.path}: cannot be written to ({error.strerror or error})") from None
        try:
            for left in self.path.glob(f".*-{'[0-9a-f]' * 8}.*"):  # of a run that was killed while it saved
                with suppress(OSError):
                    left.unlink()
            yield
        finally:
            lock.__exit__(None, None, None)

    def save(self, content: dict[str, Any], *, best: bool = False, number: int | None = None, keep: int = 3) -> None:
        """Writes `last`, and gives the same file the name `best` or a number; each appears whole or not at all.

        Args:
            content: what `torch.load(weights_only=True)` can read.
            best: it is the best so far, too.
            number: of an epoch; of the numbered files the newest `keep` stay.

        Raises:
            ToolError: the disk is full, or the file cannot be written; the one before is as it was.
        """
        try:
            with replacing(self.last) as temporary, open(temporary, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            if best:
                self._also(BEST)
            if number is not None:
                self._also(f"epoch-{number:04}.pth")
                for old in self.numbered()[:-keep]:
                    old.unlink()
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            left = "the one before it is whole" if self.last.is_file() else "there is none before it"
            raise ToolError(f"cannot write the checkpoint {self.last}: {why}; {left}") from error

    def _also(self, name: str) -> None:
        """Another name for `last`; it stays when `last` is replaced."""
        with replacing(self.path / name) as temporary:
            temporary.unlink()
            try:
                os.link(self.last, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(self.last, temporary)

    def numbered(self) -> list[Path]:
        """`epoch-0010.pth` and so on, oldest first."""
        found = [path for path in self.path.glob("epoch-*.pth") if re.fullmatch(r"epoch-\d+\.pth", path.name)]
        return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))

    def read(self) -> dict[str, Any]:
        """The content of `last`, on the CPU.

        Raises:
            UsageError: there is nothing to resume, or it is no checkpoint of this trainer.
        """
        if not self.last.is_file():
            raise UsageError(f"nothing to resume: {self.path} has no {LAST}")
        try:
            content = torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler meets damaged bytes with whatever they lead to
            raise UsageError(f"{self.last} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(content, dict) or not {"model", "optimizer", "step", "recipe"} <= content.keys():
            raise UsageError(f"{self.last} is no checkpoint of a training run of replknet_ext")
        return content


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, everywhere: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dicts of a network and its optimizer, whole, under the names of the bare network.

    On the CPU of the first process, and empty on others; with `everywhere` on the device of each.

    The same for plain networks and for those inside DistributedDataParallel or split by `fully_shard`, of which every
    process must call it.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
    weights = get_model_state_dict(model, options=options)
    moments: dict[str, Any] = {}
    if optimizer is not None:
        moments = get_optimizer_state_dict(model, optimizer, options=options)
    return weights, moments


def load_state(
    model: nn.Module, weights: dict[str, Any], optimizer: torch.optim.Optimizer | None = None,
    moments: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Loads what `state_of` returned, on any number of processes.

    Raises:
        UsageError: it does not fit the network.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    try:
        set_model_state_dict(model, weights, options=options)
        if optimizer is not None and moments is not None:
            set_optimizer_state_dict(model, optimizer, moments, options=options)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(f"the checkpoint does not fit the network: {' '.join(str(error).split())}") from None
