from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import torch

from algorithm.lobes import LOBES
from training.cases import read_cases
from training.lobe_batches import LobeItem, ScoredLobe, augmented_batch, lobe_batches, plain_batch, scored_lobes
from training.prepare import prepared

CPU = torch.device("cpu")


def items(count: int) -> list[LobeItem]:
    """Lobes of another shape, the lower half of each a vessel."""
    rng = np.random.default_rng(0)
    found = []
    for position in range(count):
        shape = tuple(int(n) for n in rng.integers(18, 30, 3))
        mask = np.zeros(shape, dtype=np.uint8)
        mask[3:-3, 3:-3, 3:-3] = 1
        vessels = mask.copy()
        vessels[shape[0] // 2 :] = 0
        image = (mask * rng.uniform(0.2, 0.9, shape)).astype(np.float16)
        parts = [torch.from_numpy(array) for array in (image, mask, vessels)]
        found.append(LobeItem(*parts, spacing_mm=1.2, score=position % 6, position=position))
    return found


def test_a_batch_does_not_depend_on_its_neighbours():
    """Two processes with half a batch each must see what one process with the whole of it sees."""
    options = {"size": 24, "jitter_mm": 0.1, "seed": 3, "device": CPU}
    whole = augmented_batch(items(4), **options)
    halves = [augmented_batch(items(4)[part], **options) for part in (slice(0, 2), slice(2, 4))]
    assert torch.equal(whole.image, torch.cat([half.image for half in halves]))
    assert torch.equal(whole.vessels, torch.cat([half.vessels for half in halves]))
    assert whole.scores == [0, 1, 2, 3]


def test_mask_and_vessels_are_mirrored_with_the_image():
    for seed in range(8):
        batch = augmented_batch(items(1), size=24, jitter_mm=0.1, seed=seed, device=CPU)
        assert batch.image.shape == batch.mask.shape == batch.vessels.shape == (1, 1, 24, 24, 24)
        assert ((batch.image > 0) <= (batch.mask > 0)).all()
        assert ((batch.vessels > 0) <= (batch.mask > 0)).all()
        assert 0.4 < (batch.vessels.sum() / batch.mask.sum()).item() < 0.6


def test_augmentation_changes_a_chunk_and_its_absence_does_not():
    plain = plain_batch(items(1), size=24, device=CPU)
    again = plain_batch(items(1), size=24, device=CPU)
    assert torch.equal(plain.image, again.image)
    seen = {augmented_batch(items(1), size=24, jitter_mm=0.1, seed=s, device=CPU).image.sum().item() for s in range(6)}
    assert len(seen) > 3


def test_every_scored_lobe_is_an_instance(ready):
    cases = read_cases(ready.data)
    lobes = scored_lobes(ready, cases)
    assert len(lobes) == sum(len(case.scores) for case in cases) == 25
    assert {lobe.key for lobe in lobes} == {lobe.key for lobe in LOBES}


def test_steps_read_the_chunks(ready):
    lobes = scored_lobes(ready, read_cases(ready.data))
    first = lobe_batches(lobes, size=3, seed=0)[0]
    assert [item.position for item in first] == [0, 1, 2]
    assert all(item.image.shape == item.mask.shape and item.vessels is None for item in first)


def test_no_more_than_a_batch_is_in_memory_however_many_lobes_there_are(ready):
    lobes = scored_lobes(ready, read_cases(ready.data)) * 12
    batches = lobe_batches(lobes, size=4, seed=0)
    one = max(sum(item.image.nbytes + item.mask.nbytes for item in batches[number]) for number in range(8))
    tracemalloc.start()
    try:
        for number in range(len(lobes) // 4):
            batches[number]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lobes) == 300 and 0.5 * one < peak < 3 * one  # of which there are 75


def test_balanced_sampling_draws_scores_equally_often(ready):
    case = prepared(ready, read_cases(ready.data)[0])
    lobes = [ScoredLobe(case, "lul", score) for score in [0] * 16 + [1] * 3 + [5]]
    batches = lobe_batches(lobes, size=1, seed=0, balanced=True)
    drawn = Counter(lobes[batches.index(position)].score for position in range(1500))
    assert set(drawn) == {0, 1, 5}
    assert all(abs(count - 500) < 80 for count in drawn.values())  # 4 standard deviations
