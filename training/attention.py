"""Refinement of a dRAM by attention within each voxel's neighbourhood, so that it follows the edges of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

SUBSPACE = 8  # channels in which voxels are compared
NEIGHBOURHOOD = tuple(offset for offset in product((-1, 0, 1), repeat=3) if sum(map(abs, offset)) <= 2)
"""The 19 offsets (z, y, x) of a voxel's neighbours, itself among them: 3x3x3 without the corners."""


class LocalAttention(nn.Module):
    """Adds to each logit a linear function of the attention-weighted mean of its neighbours' logits.

    y_i + r(sum_j a_ij g(y_j)), where a_ij is the softmax of theta(x_i) . phi(x_j) over the voxel's neighbours j inside
    the grid and the lobe, and x holds image and features, reduced to 8 channels. As r starts at zero, so does the
    change. The logits carry gradient back to the network that made them, the features do not.

    Source: dRAM paper, Eq. 5; theta and phi have no bias.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        """Build the module.

        Args:
            channels: of each source of features, in the order in which `forward` takes them.
        """
        super().__init__()
        self.channels = list(channels)
        self.reduce = nn.Conv3d(sum(channels), SUBSPACE, kernel_size=1)
        self.theta = nn.Conv3d(SUBSPACE, SUBSPACE, kernel_size=1, bias=False)
        self.phi = nn.Conv3d(SUBSPACE, SUBSPACE, kernel_size=1, bias=False)
        self.g = nn.Conv3d(1, SUBSPACE, kernel_size=1)
        self.r = nn.Conv3d(SUBSPACE, 1, kernel_size=1)
        for parameter in self.r.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor], logits: Tensor, mask: Tensor) -> Tensor:
        """Refine logits.

        Args:
            features: the image and feature maps, (B, channels, d, h, w) each; coarser ones are upsampled.
            logits: y, (B, 1, D, H, W).
            mask: the same shape, more than 0 inside the lobe.

        Returns:
            float32, the same shape; outside the lobe the logits as they came.
        """
        y, inside = logits.float(), mask > 0
        x = self._reduced(features, logits.shape[2:])
        affinity = _affinity(self.theta(x).float(), self.phi(x).float(), inside)
        mean = torch.zeros_like(y)
        for a_j, y_j in zip(torch.split(affinity, 1, dim=1), _neighbours(y), strict=True):
            mean = mean + a_j * y_j
        # The weights of a voxel add up to 1, so the linear g of the mean is the mean of g.
        return torch.where(inside, y + self.r(self.g(mean)), y)

    def _reduced(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        """The 1x1x1 convolution of all features side by side, (B, 8, D, H, W), without laying them side by side.

        It is a sum over sources, and it commutes with upsampling: 8 channels are upsampled in place of all.
        """
        x = self.reduce.bias.view(1, -1, 1, 1, 1)  # type: ignore[union-attr]
        for source, weight in zip(features, torch.split(self.reduce.weight, self.channels, dim=1), strict=True):
            part = functional.conv3d(source.detach(), weight)
            if part.shape[2:] != size:
                part = functional.interpolate(part, size=size, mode="trilinear", align_corners=False)
            x = x + part
        return x


def _affinity(theta: Tensor, phi: Tensor, inside: Tensor) -> Tensor:
    """Softmax over the neighbours, (B, 19, D, H, W); 0 for those outside the grid or the lobe.

    Voxels without any neighbour in the lobe, themselves outside of it, get equal weights, which `forward` ignores.
    """
    scores: Tensor = _Similarity.apply(theta, phi)  # type: ignore[no-untyped-call]
    allowed = torch.cat(tuple(_neighbours(inside)), dim=1)
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=1)


class _Similarity(torch.autograd.Function):
    """theta_i . phi_j for each neighbour j, (B, 19, D, H, W), of theta and phi (B, 8, D, H, W).

    Autograd alone would make a map of zeros, thrice, for the gradient of each neighbour's view.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, phi: Tensor) -> Tensor:
        ctx.save_for_backward(theta, phi)
        return torch.cat([(theta * phi_j).sum(dim=1, keepdim=True) for phi_j in _neighbours(phi)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        theta, phi = ctx.saved_tensors
        of_theta, of_phi = torch.zeros_like(theta), functional.pad(torch.zeros_like(phi), (1,) * 6)
        parts = torch.split(gradient, 1, dim=1)
        for part, phi_j, of_phi_j in zip(parts, _neighbours(phi), _views(of_phi), strict=True):
            of_theta.addcmul_(part, phi_j)
            of_phi_j.addcmul_(part, theta)
        return of_theta, of_phi[:, :, 1:-1, 1:-1, 1:-1]


def _neighbours(values: Tensor) -> Iterator[Tensor]:
    """For each offset of `NEIGHBOURHOOD` a view of the values at that neighbour; zero beyond the grid."""
    return _views(functional.pad(values, (1,) * 6))


def _views(padded: Tensor) -> Iterator[Tensor]:
    """The views of a map that reaches one voxel beyond its grid, one for each neighbour."""
    depth, height, width = (n - 2 for n in padded.shape[2:])
    for z, y, x in NEIGHBOURHOOD:
        yield padded[:, :, 1 + z : 1 + z + depth, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
