"""Batches of a training: order, and what each process takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from training.batches import Batches
from training.loop import _loader


def pair(item: int, position: int) -> tuple[int, int]:
    return position, item


def test_every_item_comes_once_an_epoch():
    batches = Batches(range(20), pair, size=4, seed=5)
    seen = [item for batch in range(10) for _, item in batches[batch]]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20)) and seen[:20] != seen[20:]
    assert batches[7] == list(enumerate(seen))[28:32]


def test_the_seed_decides_the_order():
    assert Batches(range(20), pair, size=20, seed=0)[0] != Batches(range(20), pair, size=20, seed=1)[0]


@pytest.mark.parametrize("done", [0, 2])
def test_processes_see_together_what_one_with_all_of_the_batch_sees(done):
    def seen(rank: int, world_size: int, size: int) -> list[list[tuple[int, int]]]:
        fabric = SimpleNamespace(global_rank=rank, world_size=world_size, device=torch.device("cpu"))
        return list(_loader(fabric, Batches(range(10), pair, size=size, seed=1), range(done, 5), readers=3))

    one, first, second = seen(0, 1, 4), seen(0, 2, 2), seen(1, 2, 2)
    assert len(one) == 5 - done
    assert one == [a + b for a, b in zip(first, second, strict=True)]
