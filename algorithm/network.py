"""The 3D U-Net of every stage: modules only, sizes come in as arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Padding = Literal["same", "valid"]
Norm = Literal["batch", "instance"]

LEVELS = 3
PERIOD: int = 2**LEVELS  # voxels after which three poolings repeat their phase
CONTEXT = 44  # input voxels per side that valid padding consumes
SMALLEST_VALID_INPUT = 92


class UNet3D(nn.Module):
    """3D U-Net with three poolings: two 3x3x3 convolutions a level, trilinear upsampling, one 1x1x1 convolution last.

    With ``width`` 32 the levels have 32-64, 64-128, 128-256 and 256-512 filters (16.3 million parameters). ``same``
    padding keeps the size, which must be a multiple of 8; ``valid`` padding returns n - 88 voxels for n = 4 (mod 8),
    n >= 92. Upsampling is aligned to voxel edges (``align_corners=False``), so that an output voxel depends on its
    neighbourhood and not on the tile's size.

    Source: Cicek et al. (2016), 3D U-Net, with interpolation in place of up-convolutions, as in the dRAM paper, III-A1.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        width: int = 32,
        in_channels: int = 1,
        padding: Padding = "same",
        norm: Norm = "batch",
    ) -> None:
        """Build the network with Kaiming-initialised convolutions.

        Args:
            out_channels: logits per voxel.
            width: filters of the first convolution; every other layer scales with it.
            in_channels: image channels.
            padding: ``same`` or ``valid``.
            norm: ``batch``, or ``instance`` for mini-batches of one or two chunks. Tiled inference is exact only with
                ``batch``, whose statistics are fixed at inference.
        """
        super().__init__()
        self.padding = padding

        def block(inputs: int, first: int, second: int) -> nn.Sequential:
            return nn.Sequential(
                *_convolution(inputs, first, padding, norm), *_convolution(first, second, padding, norm)
            )

        w = width
        self.down = nn.ModuleList(
            [block(in_channels, w, 2 * w), block(2 * w, 2 * w, 4 * w), block(4 * w, 4 * w, 8 * w)]
        )
        self.bottom = block(8 * w, 8 * w, 16 * w)
        self.up = nn.ModuleList([block(24 * w, 8 * w, 8 * w), block(12 * w, 4 * w, 4 * w), block(6 * w, 2 * w, 2 * w)])
        self.last = nn.Conv3d(2 * w, out_channels, kernel_size=1)
        self.apply(_initialise)

    def set_prior(self, probability: Sequence[float]) -> None:
        """Start from given class probabilities, one per output channel: sigmoid for one channel, softmax for more.

        Raises:
            ValueError: not one probability in (0, 1) per channel.
        """
        channels = self.last.out_channels
        if len(probability) != channels or not all(0 < p < 1 for p in probability):
            raise ValueError(f"prior {list(probability)}: expected {channels} probabilities between 0 and 1")
        bias = [math.log(p / (1 - p)) for p in probability] if channels == 1 else [math.log(p) for p in probability]
        assert self.last.bias is not None
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor(bias))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, out_channels, D', H', W') of an image (B, in_channels, D, H, W)."""
        logits, _ = self.forward_with_features(image)
        return logits

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the features before each pooling (2, 4 and 8 times ``width`` channels).

        Raises:
            ValueError: the size is not one that the padding allows.
        """
        require_legal_size(tuple(image.shape[2:]), self.padding)
        features: list[Tensor] = []
        x = image
        for block in self.down:
            x = block(x)
            features.append(x)
            x = functional.max_pool3d(x, 2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(features), strict=True):
            x = _doubled(x)
            x = block(torch.cat([centre_crop(skip, tuple(x.shape[2:])), x], dim=1))
        return self.last(x), features


def require_legal_size(size: tuple[int, ...], padding: Padding) -> None:
    """Check that three poolings divide a chunk evenly.

    Raises:
        ValueError: some axis is not a multiple of 8 (same), or not 4 (mod 8) and at least 92 (valid).
    """
    if padding == "same":
        legal = all(n > 0 and n % PERIOD == 0 for n in size)
        expected = "multiples of 8"
    else:
        legal = all(n >= SMALLEST_VALID_INPUT and n % PERIOD == 4 for n in size)
        expected = f"4 more than a multiple of 8 and at least {SMALLEST_VALID_INPUT}"
    if not legal:
        raise ValueError(f"input of {size} voxels with {padding} padding: expected sizes that are {expected}")


def centre_crop(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The central voxels of the last three axes."""
    cuts = [n - target for n, target in zip(x.shape[2:], size, strict=True)]
    if not any(cuts):
        return x
    return functional.pad(x, [-part for cut in reversed(cuts) for part in (cut // 2, cut - cut // 2)])


def _doubled(x: Tensor) -> Tensor:
    """Twice as many voxels per side, in the precision of ``x``: autocast would go on in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return functional.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


class _InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation; a batch of one is normalised as a batch, which is the same and copies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


def _convolution(inputs: int, outputs: int, padding: Padding, norm: Norm) -> list[nn.Module]:
    normalise = nn.BatchNorm3d(outputs) if norm == "batch" else _InstanceNorm(outputs, affine=True)
    convolution = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1 if padding == "same" else 0, bias=False)
    return [convolution, normalise, nn.ReLU(inplace=True)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
