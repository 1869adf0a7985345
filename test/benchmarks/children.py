"""What runs in a process of its own, so that its peak memory is its own: python -m benchmarks.children WHAT ..."""

from __future__ import annotations

import json
import sys

import torch

from algorithm.engine import Precision, make_network

from . import ours, peers
from .measure import own_peak_gb


def _box(text: str) -> tuple[int, int, int]:
    z, y, x = (int(n) for n in text.split("x"))
    return z, y, x


def _network(width: str, precision: str, box: str) -> None:
    chosen: Precision = "bf16" if precision == "bf16" else "fp32"
    network = make_network(ours.trained(int(width)), device=ours.CPU, precision=chosen)
    ours.run_network(network, _box(box))


def _segment(size: str) -> None:
    ours.memory_case(_box(size), (1.0, 0.7, 0.7))


def _lobes(size: str) -> None:
    ours.lobes_memory_case(_box(size))


def _nnunet() -> None:
    with torch.inference_mode():
        peers.nnunet_network()(torch.rand(1, 1, *(peers.NNUNET_PATCH,) * 3))


if __name__ == "__main__":
    {"network": _network, "segment": _segment, "lobes": _lobes, "nnunet": _nnunet}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"peak_gb": own_peak_gb()}))
