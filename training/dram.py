"""The regression network: a 3D U-Net that makes a dRAM, and the attention that refines it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from algorithm.network import Norm, UNet3D
from training.attention import LocalAttention


class Drams(NamedTuple):
    """Dense regression activation maps as logits, (B, 1, D, H, W) each; their sigmoid is a lesion probability.

    Attributes:
        raw: of the U-Net; the lesion percentage of a lobe and the regularisers are taken from it.
        refined: of the attention, or ``raw`` itself where there is none; refinement losses and results use it.
    """

    raw: Tensor
    refined: Tensor


class DramNetwork(nn.Module):
    """3D U-Net with one logit per voxel, and optionally local attention on its logits.

    The attention sees the image and the features before the first and the second pooling. Its parameters have no
    gradient unless ``refined`` is part of the loss; a data-parallel loss that does not need it yet must still take it
    in, at a weight of 0.

    Source: dRAM paper, III-A1 and III-A4.
    """

    def __init__(self, *, width: int, attention: bool, norm: Norm = "batch") -> None:
        """Build the network.

        Args:
            width: filters of the first convolution; 32 is the paper's.
            attention: refine by local attention.
            norm: ``batch``, or ``instance`` for mini-batches of one or two chunks.
        """
        super().__init__()
        self.unet = UNet3D(out_channels=1, width=width, norm=norm)
        self.attention = LocalAttention((1, 2 * width, 4 * width)) if attention else None

    def set_prior(self, probability: float) -> None:
        """Start from a lesion probability.

        Raises:
            ValueError: not between 0 and 1.
        """
        self.unet.set_prior([probability])

    def forward(self, image: Tensor, mask: Tensor, *, refined: bool = True) -> Drams:
        """Raw and refined dRAM.

        Args:
            image: lobe chunks (B, 1, D, H, W), zero outside the lobe; sizes are multiples of 8.
            mask: the same shape, more than 0 inside the lobe.
            refined: whether the attention is asked for; without it both are the raw one.

        Raises:
            ValueError: a size is not a multiple of 8.
        """
        raw, features = self.unet.forward_with_features(image)
        if self.attention is None or not refined:
            return Drams(raw, raw)
        return Drams(raw, self.attention((image, *features[:2]), raw, mask))
