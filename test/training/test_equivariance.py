import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from training.equivariance import PLANES, Transform, equivariance_loss, random_transform


def draw(seed: int, *, size: int = 80, scale_range: tuple[float, float] = (0.8, 1.2), angle: float = 0.0) -> Transform:
    rng = np.random.default_rng(seed)
    return random_transform(rng, size=size, scale_range=scale_range, free_angle_degrees=angle)


def coordinates(*size: int) -> torch.Tensor:
    """Chunk of three channels that hold the voxels' own z, y and x, from the centre of the chunk."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].float()


def test_the_identity_returns_the_chunk_itself():
    chunk = torch.rand(2, 1, 16, 24, 16)
    for nearest in (False, True):
        assert torch.equal(Transform(size=(16, 24, 16)).apply(chunk, nearest=nearest), chunk)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_and_back(plane, turns):
    chunk = torch.rand(2, 1, 16, 16, 16)
    for nearest in (False, True):
        there = Transform(size=(16, 16, 16), quarter_turns=turns, plane=plane).apply(chunk, nearest=nearest)
        assert not torch.equal(there, chunk)
        back = Transform(size=(16, 16, 16), quarter_turns=4 - turns, plane=plane).apply(there, nearest=nearest)
        assert torch.equal(back, chunk)


def test_resizing_is_aligned_to_edges():
    """Twice the voxels: each old voxel becomes two in a nearest mask, and values lie a quarter voxel off its centre."""
    chunk = torch.zeros(1, 1, 16, 16, 16)
    chunk[0, 0, 8] = 1.0
    transform = Transform(size=(32, 16, 16))
    assert transform.apply(chunk, nearest=True)[0, 0, :, 0, 0].nonzero().flatten().tolist() == [16, 17]
    column = transform.apply(chunk, nearest=False)[0, 0, :, 0, 0]
    assert column[14:20].tolist() == pytest.approx([0, 0.25, 0.75, 0.75, 0.25, 0])


@pytest.mark.parametrize(
    "rotation, plane",
    [((90, 0, 0), (-2, -1)), ((0, 90, 0), (-1, -3)), ((0, 0, 90), (-3, -2))],
)
def test_free_rotation_by_a_right_angle_is_a_quarter_turn(rotation, plane):
    chunk = torch.rand(2, 1, 16, 16, 16)
    for nearest in (False, True):
        rotated = Transform(size=(16, 16, 16), rotation_degrees=rotation).apply(chunk, nearest=nearest)
        torch.testing.assert_close(rotated, torch.rot90(chunk, 1, plane), rtol=1e-4, atol=1e-4)


def test_free_rotation_turns_the_grid_of_the_result_by_its_angle():
    """Doubled along x, then turned about z by 30 degrees: compared with the rotation of positions by hand."""
    transform = Transform(size=(16, 16, 32), rotation_degrees=(30, 0, 0))
    moved = transform.apply(coordinates(16, 16, 16), nearest=False)
    z, y, x = coordinates(16, 16, 32)[0]
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    expected = torch.stack([z, c * y + s * x, (-s * y + c * x) / 2])
    near = (y.abs() < 4) & (x.abs() < 4)
    torch.testing.assert_close(moved[0][:, near], expected[:, near], rtol=1e-4, atol=1e-4)


def test_ones_become_the_mask_of_valid_voxels():
    """A square turned by 45 degrees covers the octagon |y| + |x| <= 8 sqrt(2) of the square."""
    transform = Transform(size=(16, 16, 16), rotation_degrees=(45, 0, 0))
    ones = torch.ones(1, 1, 16, 16, 16)
    valid = transform.apply(ones, nearest=True)
    _, y, x = coordinates(16, 16, 16)[0]
    assert torch.equal(valid[0, 0] > 0, y.abs() + x.abs() <= 8 * 2**0.5)
    assert 0 < valid.mean() < 1
    torch.testing.assert_close(transform.apply(ones, nearest=False), valid)
    assert transform.apply(torch.full_like(ones, 5.0), nearest=False)[valid == 0].abs().max() == 0


def test_nearest_keeps_a_mask_binary():
    mask = (torch.rand(1, 1, 16, 16, 16) > 0.5).float()
    for seed in range(5):
        moved = draw(seed, size=16, scale_range=(0.8, 1.6), angle=30).apply(mask, nearest=True)
        assert set(moved.unique().tolist()) == {0.0, 1.0}


def test_gradient_passes_through():
    dram = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    for transform in (draw(1, size=16), Transform(size=(24, 16, 16), rotation_degrees=(0, 10, 0))):
        (grad,) = torch.autograd.grad(transform.apply(dram, nearest=False).sum(), dram)
        assert grad.sum() > 0


@pytest.mark.parametrize("size", range(16, 97, 8))
def test_sizes_are_legal_and_the_identity_possible(size):
    drawn = [draw(seed, size=size) for seed in range(100)]
    sizes = {n for transform in drawn for n in transform.size}
    legal = {n for n in range(16, 200, 8) if 4 * size <= 5 * n <= 6 * size}
    assert size in legal
    assert sizes == legal
    assert any(transform.quarter_turns == 0 for transform in drawn)
    assert {transform.rotation_degrees for transform in drawn} == {(0.0, 0.0, 0.0)}


def test_every_rotation_comes_up():
    drawn = [draw(seed) for seed in range(200)]
    assert {(t.quarter_turns, t.plane) for t in drawn} == {(k, plane) for k in range(4) for plane in PLANES}
    assert len({t.size for t in drawn}) > 50


def test_free_angles_stay_within_their_limit():
    angles = [np.linalg.norm(draw(seed, angle=15.0).rotation_degrees) for seed in range(100)]
    assert 13 < max(angles) <= 15


def test_the_generator_decides():
    assert draw(3, angle=15.0) == draw(3, angle=15.0)
    assert draw(3, angle=15.0) != draw(4, angle=15.0)


def test_a_range_without_any_legal_size():
    with pytest.raises(InputError, match=r"scale_range: got 1.05 to 1.2 for chunks of 16 voxels; expected a multiple"):
        draw(0, size=16, scale_range=(1.05, 1.2))


def test_loss_by_hand():
    ours, theirs, mask = torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2)
    mask[0, 0, 0] = 1  # four voxels
    ours[0, 0, 0, 0, 0], theirs[0, 0, 0, 1, 1] = 0.8, 0.4
    ours[0, 0, 1] = 1.0  # outside the lobe
    mask[1, 0, 0, 0, 0] = 1
    theirs[1] = 0.3
    assert equivariance_loss(ours, theirs, mask).tolist() == pytest.approx([(0.8 + 0.4) / 4, 0.3])


def test_loss_of_a_pointwise_network_is_zero_under_quarter_turns():
    image = torch.rand(2, 1, 16, 16, 16)
    mask = (image > 0.2).float()
    for plane in PLANES:
        transform = Transform(size=(16, 16, 16), quarter_turns=1, plane=plane)
        moved = transform.apply(image, nearest=False)
        transformed_mask = transform.apply(mask, nearest=True)
        consistent = equivariance_loss(moved**2, transform.apply(image**2, nearest=False), transformed_mask)
        assert consistent.tolist() == [0, 0]
        assert equivariance_loss(moved**2, image**2, transformed_mask).min() > 0.05


def test_a_lobe_that_vanishes_has_no_loss():
    mask = torch.zeros(2, 1, 32, 16, 16)
    mask[0, 0, 2, 3, 3] = 1  # halving the grid keeps the odd planes
    mask[1] = 1
    transformed_mask = Transform(size=(16, 16, 16)).apply(mask, nearest=True)
    assert transformed_mask.sum(dim=(1, 2, 3, 4)).tolist() == [0, 16**3]
    dram = torch.full((2, 1, 16, 16, 16), 0.25, requires_grad=True)
    loss = equivariance_loss(dram, torch.ones(2, 1, 16, 16, 16), transformed_mask)
    loss.sum().backward()
    assert loss.tolist() == [0, 0.75]
    assert dram.grad[0].abs().max() == 0
    assert (dram.grad[1] < 0).all()
