"""What computes the network: a device, a precision, and PyTorch or OpenVINO."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor, nn

from algorithm.errors import InputError
from algorithm.inference_network import Block, InferenceNetwork
from algorithm.network import UNet3D

Precision = Literal["fp32", "bf16"]
Engine = Literal["auto", "torch", "openvino"]


def choose_device(name: str) -> torch.device:
    """The device of a name: ``auto``, ``cpu`` or ``cuda``; auto takes a GPU where there is one.

    On a GPU, float32 is computed as it is from here on, and alike each time, in all threads.

    Raises:
        InputError: there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: got {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
    return torch.device("cuda")


def make_network(
    network: UNet3D, *, device: torch.device, precision: Precision = "fp32", engine: Engine = "torch"
) -> InferenceNetwork:
    """A trained network as it runs on scans.

    Args:
        network: valid padding, batch normalisation; stays as it is.
        device: where to compute.
        precision: ``fp32`` is the reference; ``bf16`` is faster where the device computes it by itself, and moves
            single voxels at the borders of lesions, now and then the subtype of one.
        engine: ``auto`` takes PyTorch: OpenVINO has the same kernels, is no faster here, and converts for seconds.

    Raises:
        InputError: precision or engine are unknown, or cannot be used here.
    """
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision: got {precision!r}, expected fp32 or bf16")
    if engine not in ("auto", "torch", "openvino"):
        raise InputError(f"engine: got {engine!r}, expected auto, torch or openvino")
    is_bf16 = precision == "bf16"
    converted = InferenceNetwork(network)
    if engine == "openvino":
        return _by_openvino(converted, device, "bf16" if is_bf16 else "f32")
    return converted.on(device, torch.bfloat16 if is_bf16 else torch.float32)


class OpenVinoBlock(nn.Module):
    """A block that OpenVINO computes, from and to float32 in main memory."""

    def __init__(self, block: nn.Module, precision: str) -> None:
        """Convert a block for features of any size.

        Args:
            block: in float32 on the CPU.
            precision: ``f32`` or ``bf16``, in which OpenVINO computes.
        """
        import openvino

        super().__init__()
        assert isinstance(block, Block)
        channels = block.first.in_channels
        graph = openvino.convert_model(
            block,
            example_input=torch.zeros(1, channels, 8, 8, 8),
            input=[openvino.PartialShape([1, channels, -1, -1, -1])],
        )
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def forward(self, x: Tensor) -> Tensor:
        """Features (1, C', D', H', W') of features (1, C, D, H, W)."""
        result = self._request.infer([x.contiguous().numpy()], share_inputs=True)[0]
        return torch.from_numpy(result)


def _by_openvino(network: InferenceNetwork, device: torch.device, precision: str) -> InferenceNetwork:
    if importlib.util.find_spec("openvino") is None:
        raise InputError("engine: got openvino, which is not installed; pip install openvino, or use --engine torch")
    if device.type != "cpu":
        raise InputError(f"engine: got openvino on {device}, which computes on the CPU; add --device cpu")
    network.on(device, torch.float32)
    network.down = nn.ModuleList(OpenVinoBlock(block, precision) for block in network.down)
    network.up = nn.ModuleList(OpenVinoBlock(block, precision) for block in network.up)
    network.bottom = OpenVinoBlock(network.bottom, precision)
    return network
