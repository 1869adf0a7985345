"""What is learnt from, batch by batch: all of it once an epoch, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

Item = TypeVar("Item")
Read = TypeVar("Read")


class Batches(Dataset[list[Read]], Generic[Item, Read]):
    """Item b: batch b of the endless sequence that goes through all items in a new random order every epoch.

    A batch depends on the seed and its number alone. Process r of n takes batches n * step + r, so that n processes
    see together what one with n times the batch sees.
    """

    def __init__(self, items: Sequence[Item], read: Callable[[Item, int], Read], *, size: int, seed: int) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            items: what to go through.
            read: reads an item; given its position in the sequence as well, which seeds what is random about it. It can
                be pickled, for other processes may read ahead.
            size: items a batch.
            seed: of the order.
        """
        self.items, self.read, self.size, self.seed = items, read, size, seed

    def __getitem__(self, batch: int) -> list[Read]:
        """Read a batch."""
        positions = range(batch * self.size, (batch + 1) * self.size)
        return [self.read(self.items[self.index(position)], position) for position in positions]

    def index(self, position: int) -> int:
        """Which item stands at a position of the sequence."""
        epoch, place = divmod(position, len(self.items))
        return int(np.random.default_rng([self.seed, epoch]).permutation(len(self.items))[place])
