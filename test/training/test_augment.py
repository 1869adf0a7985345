import numpy as np
import torch

from training.augment import flip, stretch_contrast


def test_flip_turns_all_chunks_alike_and_loses_nothing():
    rng = np.random.default_rng(0)
    image = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    seen = set()
    for _ in range(60):
        first, second = flip([image, image * 2], rng)
        assert torch.equal(first * 2, second)
        assert sorted(first.flatten().tolist()) == sorted(image.flatten().tolist())
        seen.add(tuple(first.flatten().tolist()))
    assert len(seen) == 8


def test_contrast_keeps_range_order_and_background():
    rng = np.random.default_rng(0)
    image = torch.linspace(0, 1, 50)
    changed = 0
    for _ in range(40):
        result = stretch_contrast(image, rng)
        assert result[0] == 0 and result.max() <= 1 and (result.diff() >= 0).all()
        changed += not torch.equal(result, image)
    assert 10 < changed < 30


def test_contrast_moves_grey_levels_by_little():
    """By less than ground-glass adds to lung; in HU, of a window of 1500."""
    rng = np.random.default_rng(0)
    for value, least, most in ((0.25, 30, 60), (0.8, 40, 75)):
        image = torch.full((1,), value)
        moved = 1500 * torch.cat([stretch_contrast(image, rng) - image for _ in range(300)])
        assert -most < moved.min() < -least and least < moved.max() < most


def test_same_generator_same_result():
    image = torch.rand(1, 1, 4, 4, 4)
    first, second = (stretch_contrast(flip([image], rng)[0], rng) for rng in map(np.random.default_rng, (3, 3)))
    assert torch.equal(first, second)
