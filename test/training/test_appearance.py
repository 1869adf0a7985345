"""Random appearance: what must hold whatever is drawn."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from algorithm.fissures import lobe_borders
from training.appearance import (
    FISSURE_GAIN_HU,
    WINDOW_HU,
    _consolidate_side,
    _thicken_slices,
    draw_fissures,
    random_field,
)
from training.appearance import randomise as randomise_with

SHAPE = (24, 20, 32)
randomise = partial(randomise_with, spotted_share=0.2, consolidated_share=0.12)


def chest() -> tuple[torch.Tensor, torch.Tensor]:
    """Two dark lungs of two and three lobes in brighter tissue; image and labels of the lobes."""
    lobes = torch.zeros(SHAPE, dtype=torch.int64)
    for label, (z, x) in {1: (12, 18), 2: (2, 18), 3: (16, 2), 5: (12, 2), 4: (2, 2)}.items():
        top = 22 if label in (1, 3) else {2: 12, 5: 16, 4: 12}[label]
        lobes[z:top, 3:17, x : x + 12] = label
    return torch.where(lobes > 0, 0.12, 0.74), lobes


def test_stays_within_the_window_and_its_shape_and_is_repeatable() -> None:
    image, lobes = chest()
    for seed in range(25):
        first, again = (randomise(image, lobes, np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == SHAPE
        assert torch.equal(first, again)
        assert 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(image, chest()[0])  # what was given is left alone


def test_every_draw_differs() -> None:
    image, lobes = chest()
    results = [randomise(image, lobes, np.random.default_rng(seed)) for seed in range(6)]
    assert all(not torch.equal(one, other) for k, one in enumerate(results) for other in results[:k])


def test_lesions_fill_lungs_up_to_tissue_in_some_draws_and_leave_them_alone_in_others() -> None:
    image, lobes = chest()
    lungs = lobes > 0
    dense = [
        float((randomise(image, lobes, np.random.default_rng(seed))[lungs] > 0.5).float().mean()) for seed in range(60)
    ]
    assert min(dense) < 0.01
    assert max(dense) > 0.4


def dense_draws(**shares: float) -> int:
    """How many of 20 draws have dense lung, more than a tenth of it."""
    image, lobes = chest()
    draws = (randomise_with(image, lobes, np.random.default_rng(seed), **shares)[lobes > 0] for seed in range(20))
    return sum(float((lung > 0.5).float().mean()) > 0.1 for lung in draws)


def test_shares_say_how_many_chests_get_lesions() -> None:
    none, some, all_of_them = (dense_draws(spotted_share=0.0, consolidated_share=share) for share in (0.0, 0.3, 1.0))
    assert none < some < all_of_them
    assert none < dense_draws(spotted_share=1.0, consolidated_share=0.0)


def test_one_side_is_consolidated_and_nothing_else_changes() -> None:
    image, lobes = chest()
    left, right = (lobes > 0) & (lobes < 3), lobes > 2
    sides = set()
    for seed in range(20):
        result = _consolidate_side(image, lobes, np.random.default_rng(seed))
        changed = (result - image).abs() > 1e-6
        assert not changed[~(left | right)].any()
        sides.add((bool(changed[left].any()), bool(changed[right].any())))
        assert float(result[changed].median()) > 0.3
    assert {(True, False), (False, True)} <= sides


def test_drawn_fissures_are_faint_to_bright_and_nothing_else_changes() -> None:
    image, lobes = chest()
    at = torch.from_numpy(lobe_borders(lobes.numpy()))
    gains = []
    for seed in range(40):
        gain = (draw_fissures(image, at.float(), np.random.default_rng(seed)) - image) * (WINDOW_HU[1] - WINDOW_HU[0])
        assert float(gain.min()) >= 0 and not gain[~at].any()
        gains.append(float(gain.max()))
    low, high = FISSURE_GAIN_HU
    assert high / 2 < max(gains) <= high * 1.001
    assert min(gains) < 2 * low


def test_without_lungs_nothing_fails() -> None:
    image = torch.full(SHAPE, 0.7)
    for seed in range(25):
        assert torch.isfinite(
            randomise(image, torch.zeros(SHAPE, dtype=torch.int64), np.random.default_rng(seed))
        ).all()


def test_thicker_slices_blur_along_z_alone() -> None:
    image = torch.zeros(SHAPE)
    image[12, 10, 16] = 1
    for seed in range(5):
        touched = _thicken_slices(image, np.random.default_rng(seed)).nonzero()
        assert len(touched) in (3, 5)
        assert (touched[:, 1:] == torch.tensor([10, 16])).all()
    assert torch.allclose(_thicken_slices(torch.ones(SHAPE), np.random.default_rng(0)), torch.ones(SHAPE))


def test_fields_are_smooth() -> None:
    field = random_field((40, 40, 40), np.random.default_rng(1), torch.device("cpu"))
    assert field.shape == (40, 40, 40)
    assert field.diff(dim=0).abs().mean() < 0.5 * field.std()
