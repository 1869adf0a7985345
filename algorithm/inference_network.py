"""The trained network as it runs on a scan: the same function, with less arithmetic.

Outside the lobes the image is zero, and far enough from them every feature of the network is a constant, its
background. `InferenceNetwork` holds each feature relative to that constant: the subtraction goes into the biases, and
each ReLU becomes a lower bound per channel. Zero padding then *is* the endless empty surroundings, so that a scan needs
no context around it, where the trained network takes 52 voxels per side. Batch normalisation goes into the
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from algorithm.network import LEVELS, UNet3D
from algorithm.preprocess import Box

LEAD = 2  # input voxels before the first output voxel, and at least as many after the last
_LAYOUT = torch.channels_last_3d


class Features(NamedTuple):
    """What the encoder gives: the features before each pooling, finest first, and the coarsest ones."""

    skips: list[Tensor]
    bottom: Tensor

    def cropped(self, low_zyx: Sequence[int], high_zyx: Sequence[int]) -> Features:
        """Without the features of some input voxels, multiples of 8, at either end of each axis."""

        def cut(x: Tensor, level: int) -> Tensor:
            start = [low >> level for low in low_zyx]
            spare = [a + (b >> level) for a, b in zip(start, high_zyx, strict=True)]
            return x[_box(start, [n - m for n, m in zip(x.shape[2:], spare, strict=True)])]

        return Features([cut(x, n) for n, x in enumerate(self.skips)], cut(self.bottom, LEVELS))


def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this PyTorch brings oneDNN, and it computes such values on this processor."""
    is_there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return is_there and (dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class Convolution(nn.Conv3d):
    """A convolution that oneDNN computes on the CPU, where PyTorch takes a slow way for small float32 features."""

    def forward(self, x: Tensor) -> Tensor:
        """Features (1, C', D', H', W') of features (1, C, D, H, W)."""
        padding = self.padding
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call] # for OpenVINO
        if not x.is_cpu or is_traced or not has_onednn(x.dtype) or isinstance(padding, str):
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class Block(nn.Module):
    """Two convolutions, each followed by the lower bounds of its channels."""

    def __init__(self, first: nn.Conv3d, second: nn.Conv3d, floors: tuple[Tensor, Tensor]) -> None:
        """Take over convolutions and bounds; a bound has one value per channel."""
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("first_floor", floors[0].view(1, -1, 1, 1, 1))
        self.register_buffer("second_floor", floors[1].view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (1, C', D', H', W') of features (1, C, D, H, W)."""
        x = self.first(x).clamp_(min=self.first_floor)
        result: Tensor = self.second(x).clamp_(min=self.second_floor)
        return result


class InferenceNetwork(nn.Module):
    """`UNet3D` with valid padding on an image that is zero outside what it is given."""

    def __init__(self, network: UNet3D) -> None:
        """Convert a trained network, which stays as it is.

        Args:
            network: batch normalisation, valid padding, in evaluation mode.

        Raises:
            ValueError: the network is of another kind.
        """
        super().__init__()
        if network.padding != "valid" or not isinstance(network.bottom[1], nn.BatchNorm3d):
            raise ValueError("got a network of another kind, expected valid padding and batch normalisation")
        network = deepcopy(network).cpu().double().eval()
        self.width, in_channels = next(network.parameters()).shape[:2]
        scale = _Scale(torch.zeros(in_channels, dtype=torch.float64), torch.ones(in_channels, dtype=torch.float64))
        skipped, down, up = [], [], []
        for level, block in enumerate(network.down):
            converted, scale = _convert(block, scale, padding=(1, 1) if level == 0 else (2, 2))
            down.append(converted)
            skipped.append(scale)
        bottom, scale = _convert(network.bottom, scale, padding=(2, 1))
        for block, skip in zip(network.up, reversed(skipped), strict=True):
            both = _Scale(torch.cat([skip.background, scale.background]), torch.cat([skip.factor, scale.factor]))
            converted, scale = _convert(block, both, padding=(0, 0))
            up.append(converted)
        self.bottom: nn.Module = bottom
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = _on_scale(network.last, scale)
        self.out_channels = network.last.out_channels
        self.to(torch.float32)

    def encode(self, image: Tensor) -> Features:
        """Features of an image (1, 1, D, H, W) whose sizes are multiples of 8, what it shows `LEAD` voxels inside."""
        skips, x = [], image
        for level, block in enumerate(self.down):
            x = block(x)
            skips.append(functional.pad(x, (1,) * 6) if level else x)
            x = functional.max_pool3d(x, 2)
        return Features(skips, self.bottom(x))

    def decode(self, level: int, x: Tensor, skip: Tensor, start_zyx: Sequence[int], size_zyx: Sequence[int]) -> Tensor:
        """A part of the features that the decoder gives on a level.

        Args:
            level: 2 (coarsest), 1 or 0.
            x: the next coarser features, whole.
            skip: the encoder's features of this level, whole.
            start_zyx: where the part begins, even numbers.
            size_zyx: its voxels, even numbers.
        """
        drop = _dropped(level)
        coarse = x[(..., *interpolated(level, start_zyx, size_zyx))]
        skip = skip[_box(start_zyx, [n + 4 for n in size_zyx])]
        both = _empty((1, skip.shape[1] + x.shape[1], *skip.shape[2:]), x)
        both[:, : skip.shape[1]] = skip
        _upsample(_upsample(_upsample(coarse, 4, drop), 3, drop), 2, drop, out=both[:, skip.shape[1] :])
        part: Tensor = self.up[LEVELS - 1 - level](both)
        return part

    def decode_where(
        self, level: int, x: Tensor, skip: Tensor, size_zyx: Sequence[int], boxes: Iterable[Box]
    ) -> Tensor:
        """The features that the decoder gives on a level, in boxes of even starts and sizes; elsewhere undefined."""
        whole = None
        for box in boxes:
            part = self.decode(level, x, skip, [b.start for b in box], [b.stop - b.start for b in box])
            if whole is None:
                whole = _empty((*part.shape[:2], *size_zyx), part)
            whole[(..., *box)] = part
        assert whole is not None
        return whole

    def logits(self, x: Tensor) -> Tensor:
        """Logits (1, classes, D, H, W) in float32 of the decoder's finest features."""
        weight, bias = self.last.weight.flatten(1), self.last.bias  # a matrix product: PyTorch's own 1x1x1 can be slow
        return functional.linear(x.float().permute(0, 2, 3, 4, 1), weight, bias).permute(0, 4, 1, 2, 3)

    def on(self, device: torch.device, dtype: torch.dtype) -> InferenceNetwork:
        """This network on a device, in a precision; the last layer keeps float32."""
        self.device, self.dtype = device, dtype
        for part in (self.down, self.bottom, self.up):
            for module in part.modules():
                if isinstance(module, nn.Conv3d):
                    _round_weights(module, dtype)
            part.to(device=device, dtype=dtype)
        self.to(device=device)
        self.to(memory_format=_LAYOUT)  # type: ignore[call-overload] # the stub knows it for four dimensions only
        return self

    @property
    def value_bytes(self) -> int:
        """Bytes of one value of the features."""
        return self.dtype.itemsize

    def tensor(self, image: NDArray[np.float32]) -> Tensor:
        """An image (D, H, W) as `encode` takes it."""
        return torch.from_numpy(image)[None, None].to(self.device, self.dtype)


def output_size(level: int, input_size: int) -> int:
    """Voxels along an axis of the decoder's features of a level, for an input of that many voxels."""
    return input_size - 4 if level == 0 else (input_size >> level) + (2 if level == 1 else 4)


def interpolated(level: int, start_zyx: Sequence[int], size_zyx: Sequence[int]) -> Box:
    """The coarser features that a part of a level is interpolated from.

    Args:
        level: of the part.
        start_zyx: where the part begins, even numbers.
        size_zyx: its voxels, even numbers.
    """
    drop = _dropped(level)
    z, y, x = (slice(o // 2, o // 2 + (n + 4) // 2 + drop) for o, n in zip(start_zyx, size_zyx, strict=True))
    return z, y, x


def _dropped(level: int) -> int:
    """Voxels per side of a level whose interpolation lacks a neighbour."""
    return 1 if level else 2


def _upsample(x: Tensor, axis: int, drop: int, out: Tensor | None = None) -> Tensor:
    """Twice the voxels along an axis, by linear interpolation aligned to voxel edges, without the outermost 1 or 2.

    The same as `torch.nn.functional.interpolate`, axis by axis: several times faster in bfloat16.
    """
    pairs = x.shape[axis] - 1
    if out is None:
        out = _empty((*x.shape[:axis], 2 * (pairs + 1 - drop), *x.shape[axis + 1 :]), x)
    low, high = x.narrow(axis, 0, pairs), x.narrow(axis, 1, pairs)
    for parity, (first, weight) in enumerate(((0, 0.25), (0, 0.75)) if drop == 1 else ((0, 0.75), (1, 0.25))):
        count = pairs + 1 - drop
        target = out[(slice(None),) * axis + (slice(parity, None, 2),)]
        torch.lerp(low.narrow(axis, first, count), high.narrow(axis, first, count), weight, out=target)
    return out


def _box(start_zyx: Sequence[int], size_zyx: Sequence[int]) -> tuple[slice, ...]:
    z, y, x = (slice(start, start + size) for start, size in zip(start_zyx, size_zyx, strict=True))
    return slice(None), slice(None), z, y, x


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_LAYOUT)


class _Scale(NamedTuple):
    """What the converted network holds in a channel: factor times the trained network's feature, less background."""

    background: Tensor
    factor: Tensor


def _convert(block: nn.Module, scale: _Scale, padding: tuple[int, int]) -> tuple[Block, _Scale]:
    """A block that takes features on a scale, and the scale of what it gives.

    Factors next to 1 make biases and bounds exact in bfloat16, whose rounding would shift every voxel alike.
    """
    assert isinstance(block, nn.Sequential)
    convolutions, floors = [], []
    for (convolution, norm), pad in zip(((block[0], block[1]), (block[3], block[4])), padding, strict=True):
        assert isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
        fused = _on_scale(fuse_conv_bn_eval(convolution, norm), scale)
        assert fused.bias is not None
        with torch.no_grad():
            bias = fused.bias.clone()
            exact = bias.bfloat16().double()
            factor = torch.where(bias * exact > 0, exact / bias, 1.0)
            scale = _Scale(exact.relu(), factor)
            fused.weight *= factor.view(-1, 1, 1, 1, 1)
            fused.bias.copy_(exact - scale.background)
        outputs, inputs = fused.weight.shape[:2]
        converted = Convolution(inputs, outputs, kernel_size=3, padding=pad, dtype=torch.float64)
        converted.load_state_dict(fused.state_dict())
        convolutions.append(converted)
        floors.append(-scale.background)
    return Block(convolutions[0], convolutions[1], (floors[0], floors[1])), scale


def _on_scale(convolution: nn.Conv3d, scale: _Scale) -> nn.Conv3d:
    """A convolution that takes features on a scale and gives what it gave."""
    scaled = deepcopy(convolution)
    assert scaled.bias is not None
    with torch.no_grad():
        scaled.weight /= scale.factor.view(1, -1, 1, 1, 1)
        scaled.bias += scaled.weight.sum(dim=(2, 3, 4)) @ scale.background
    return scaled


def _round_weights(convolution: nn.Conv3d, dtype: torch.dtype) -> None:
    """Round so that the sum of each kernel stays: features are smooth, and see little but the sum of the errors."""
    with torch.no_grad():
        weights = convolution.weight.double().flatten(2)  # (outputs, inputs, 27)
        owed = torch.zeros_like(weights[..., 0])
        for place in range(weights.shape[2]):
            wanted = weights[..., place] + owed
            weights[..., place] = wanted.to(dtype).double()
            owed = wanted - weights[..., place]
        convolution.weight.copy_(weights.view_as(convolution.weight))
