"""What others run on the same scan: one unit of their work is measured, and multiplied by their number of units."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.network import UNet3D

from .measure import counted, seconds

PAPER_TILE, PAPER_STRIDE = 132, 44
NNUNET_PATCH = 128
NNUNET_MIRRORINGS = 8
LUNGMASK_SIZE, LUNGMASK_BATCH = 256, 4


@dataclass(frozen=True)
class Cost:
    """Of the network on a whole scan."""

    seconds: float
    operations: float


def paper_tiling(width: int, box_zyx: tuple[int, int, int], dtype: torch.dtype) -> Cost:
    """The trained network as it is, 132 voxels in and 44 out, with a stride of 44."""
    network = UNet3D(out_channels=3, width=width, padding="valid").eval()
    tiles = math.prod(math.ceil(n / PAPER_STRIDE) for n in box_zyx)
    return _cost(network, torch.rand(1, 1, *(PAPER_TILE,) * 3), tiles, dtype)


def nnunet(box_zyx: tuple[int, int, int], dtype: torch.dtype) -> Cost:
    """nnU-Net's default 3D network with random weights: patches of 128, half overlap, no mirroring."""
    patches = math.prod(math.ceil(max(n - NNUNET_PATCH, 0) / (NNUNET_PATCH // 2)) + 1 for n in box_zyx)
    return _cost(nnunet_network(), torch.rand(1, 1, *(NNUNET_PATCH,) * 3), patches, dtype)


def nnunet_network() -> nn.Module:
    """The network that nnU-Net plans for such a scan."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    network: nn.Module = PlainConvUNet(
        input_channels=1,
        n_stages=6,
        features_per_stage=[32, 64, 128, 256, 320, 320],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2, 2, 2],
        n_conv_per_stage=2,
        num_classes=3,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    return network.eval()


def lungmask(slices: int) -> Cost:
    """lungmask's network R231 with random weights, once over all slices; its lobe model takes two networks."""
    folder = importlib.util.find_spec("lungmask")
    assert folder is not None and folder.origin is not None
    # The package itself imports what only its pre- and postprocessing need.
    spec = importlib.util.spec_from_file_location("lungmask_network", Path(folder.origin).with_name("resunet.py"))
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    batch = torch.rand(LUNGMASK_BATCH, 1, LUNGMASK_SIZE, LUNGMASK_SIZE)
    return _cost(network.eval(), batch, math.ceil(slices / LUNGMASK_BATCH), torch.float32)


def _cost(network: nn.Module, unit: Tensor, units: int, dtype: torch.dtype) -> Cost:
    call = _call(network, unit, dtype)
    with counted(network) as counter:
        call()
    return Cost(units * seconds(call, repeats=2), units * counter.operations)


def _call(network: nn.Module, unit: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """One unit of work as these packages do it: PyTorch's defaults, and autocast where bfloat16 is asked for."""

    def call() -> object:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return network(unit)

    return call
