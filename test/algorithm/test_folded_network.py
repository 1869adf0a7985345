"""Blocks of voxels as channels, and the network on them."""

from __future__ import annotations

import pytest
import torch

from algorithm.folded_network import FoldedUNet, fold_blocks, unfold_blocks
from algorithm.network import UNet3D


def test_channels_of_a_block_are_its_voxels() -> None:
    image = torch.arange(4 * 6 * 8.0).view(1, 1, 4, 6, 8)
    folded = fold_blocks(image, 2)
    assert folded.shape == (1, 8, 2, 3, 4)
    assert folded[0, :, 1, 2, 3].tolist() == image[0, 0, 2:4, 4:6, 6:8].flatten().tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unfolding_undoes_folding(n: int) -> None:
    image = torch.rand(2, 3, 6, 12, 18)
    assert torch.equal(unfold_blocks(fold_blocks(image, n), n), image)


def test_blocks_of_one_voxel_change_nothing() -> None:
    torch.manual_seed(0)
    folded = FoldedUNet(classes=6, width=1, fold=1, norm="instance")
    plain = UNet3D(out_channels=6, width=1, norm="instance")
    plain.load_state_dict(folded.state_dict())
    image = torch.rand(1, 1, 16, 16, 24)
    assert torch.allclose(folded(image), plain(image), atol=1e-5)
    assert folded.period == 8


def test_answers_for_every_voxel_from_the_prior_on() -> None:
    torch.manual_seed(0)
    network = FoldedUNet(classes=3, width=1, fold=2, norm="instance")
    network.set_prior((0.5, 0.3, 0.2))
    torch.nn.init.zeros_(network.last.weight)
    probability = network(torch.rand(1, 1, 32, 32, 48)).softmax(dim=1)
    assert probability.shape == (1, 3, 32, 32, 48)
    assert probability.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert network.period == 16


@pytest.mark.parametrize("size", [(24, 32, 32), (25, 32, 32)])
def test_a_size_that_is_no_multiple_of_the_period_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        FoldedUNet(classes=3, width=1, fold=2, norm="instance")(torch.rand(1, 1, *size))


def test_a_prior_has_a_probability_for_each_class() -> None:
    with pytest.raises(ValueError, match="expected 3 probabilities"):
        FoldedUNet(classes=3, width=1, fold=2, norm="instance").set_prior((0.5, 0.5))
