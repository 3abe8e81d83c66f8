"""Which images each process reads in each pass, and every seed, as functions of the position in a run.

Nothing random has a state that must be saved: a run continues from the number of its step, with any number of reading
processes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Sampler

from ..errors import UsageError

__all__ = ["Order", "Passes", "seed_all", "seed_of"]


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits from a position."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_all(*numbers: int) -> None:
    """Seeds Python, numpy and torch on all devices from a position."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Passes:
    """How one step's images are divided over processes and accumulated passes.

    Attributes:
        global_batch: images of a step.
        world: processes.
        batch_size: most images of one pass on one process.
        unit: images that stay together, 2 where images are mixed in pairs.
    """

    global_batch: int
    world: int
    batch_size: int
    unit: int = 1

    def __post_init__(self) -> None:
        if self.global_batch // self.unit < self.world:
            raise UsageError(
                f"optimizer.global_batch={self.global_batch} is too small for {self.world} processes"
                + (" with mixup, which mixes pairs" if self.unit == 2 else "")
            )

    @property
    def count(self) -> int:
        """Passes of each process in a step."""
        units, most = self.global_batch // self.unit, self.batch_size // self.unit
        return -(-units // (self.world * most))

    def sizes(self) -> list[list[int]]:
        """Images for [pass][rank]; as equal as they can be."""
        parts = self.count * self.world
        small, more = divmod(self.global_batch // self.unit, parts)
        flat = [(small + (part < more)) * self.unit for part in range(parts)]
        return [flat[i * self.world : (i + 1) * self.world] for i in range(self.count)]


@dataclass
class Order(Sampler[list[tuple[int, int]]]):
    """A batch sampler: the (epoch, image) of each pass of a process, from step `start` of `epoch` on.

    A rest that does not fill a step is left out; another shuffle brings it in the next epoch.
    """

    images: int
    passes: Passes
    rank: int
    seed: int
    epoch: int = 0
    start: int = 0
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.steps = self.images // self.passes.global_batch
        if self.steps == 0:
            raise UsageError(
                f"there are {self.images} training images, less than one step's optimizer.global_batch="
                f"{self.passes.global_batch}: set it lower"
            )

    def __len__(self) -> int:
        return (self.steps - self.start) * self.passes.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, generator = self.epoch, torch.Generator().manual_seed(seed_of(self.seed, 1, self.epoch))
        order = torch.randperm(self.images, generator=generator).tolist()
        for step in range(self.start, self.steps):
            at = step * self.passes.global_batch
            for sizes in self.passes.sizes():
                begin = at + sum(sizes[: self.rank])
                yield [(epoch, index) for index in order[begin : begin + sizes[self.rank]]]
                at += sum(sizes)
