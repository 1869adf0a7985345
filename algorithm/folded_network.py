"""A U-Net that sees and answers on a fine grid and computes on a coarse one: blocks of voxels are its channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, channels_last_3d

from algorithm.network import PERIOD, Norm, UNet3D


class FoldedUNet(UNet3D):
    """`UNet3D` with same padding on blocks of ``fold`` x ``fold`` x ``fold`` voxels; each block's are channels of one.

    It costs what a network at the blocks' spacing costs, and sees what lies within a block: a fissure is thinner than
    the voxels at which a whole chest can be computed. Sizes must be multiples of `period`.

    Source: Shi et al. (2016), Real-time single image and video super-resolution, their sub-pixel convolution.
    """

    def __init__(self, *, classes: int, width: int, fold: int, norm: Norm) -> None:
        """Build the network.

        Args:
            classes: logits per voxel.
            width: filters of the first convolution.
            fold: voxels per axis of a block.
            norm: as in `UNet3D`.
        """
        channels = fold**3
        super().__init__(out_channels=classes * channels, width=width, in_channels=channels, norm=norm)
        self.fold = fold

    @property
    def period(self) -> int:
        """Voxels by whose multiple each axis of an image goes."""
        return PERIOD * self.fold

    def set_prior(self, probability: Sequence[float]) -> None:
        """Start from given class probabilities, one per class.

        Raises:
            ValueError: not one probability in (0, 1) per class.
        """
        if len(probability) * self.fold**3 != self.last.out_channels:
            classes = self.last.out_channels // self.fold**3
            raise ValueError(f"prior {list(probability)}: expected {classes} probabilities between 0 and 1")
        super().set_prior([p for p in probability for _ in range(self.fold**3)])

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes, D, H, W) of an image (B, 1, D, H, W).

        Raises:
            ValueError: a size is no multiple of `period`.
        """
        size = tuple(image.shape[2:])
        if any(n % self.period for n in size):
            raise ValueError(f"size {size}: expected multiples of {self.period}")
        return unfold_blocks(super().forward(fold_blocks(image, self.fold)), self.fold)


def fold_blocks(x: Tensor, n: int) -> Tensor:
    """(B, C, D, H, W) to (B, C * n^3, D / n, H / n, W / n), channels last in memory."""
    batch, channels, depth, height, width = x.shape
    blocks = x.reshape(batch, channels, depth // n, n, height // n, n, width // n, n).permute(0, 1, 3, 5, 7, 2, 4, 6)
    folded = blocks.reshape(batch, channels * n**3, depth // n, height // n, width // n)
    return folded.contiguous(memory_format=channels_last_3d)


def unfold_blocks(x: Tensor, n: int) -> Tensor:
    """(B, C * n^3, D, H, W) to (B, C, D * n, H * n, W * n); the inverse of `fold_blocks`."""
    batch, channels, depth, height, width = x.shape
    blocks = x.reshape(batch, channels // n**3, n, n, n, depth, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(batch, channels // n**3, depth * n, height * n, width * n)
