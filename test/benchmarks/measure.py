"""How costs are measured: seconds and arithmetic of a call, the peak memory of a process, the processor's peak rate."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.stages import processor

MATRIX = 3072


@dataclass
class Counter:
    """Arithmetic that convolutions have done, in floating-point operations."""

    operations: float = 0.0


@contextmanager
def counted(network: nn.Module) -> Iterator[Counter]:
    """Count what the convolutions of a PyTorch network do."""
    counter = Counter()

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.modules.conv._ConvNd)
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        places = _[0][0, 0].numel() if transposed else output[0, 0].numel()
        counter.operations += 2.0 * output.shape[0] * module.weight.numel() * places

    kinds = nn.modules.conv._ConvNd
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def seconds(call: Callable[[], object], *, repeats: int = 1) -> float:
    """The shortest time of some calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product: what the processor can do at best."""
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    seconds(lambda: a @ b)
    return 2.0 * MATRIX**3 / seconds(lambda: a @ b, repeats=5)


def peak_memory_gb(what: str, *arguments: str) -> float:
    """The peak memory of a process that runs one of the functions in `benchmarks.children`."""
    command = [sys.executable, "-m", "benchmarks.children", what, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["peak_gb"])


def own_peak_gb() -> float:
    """The peak memory of this process until now; what getrusage says begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def hardware() -> str:
    """The machine in a line."""
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} logical cores, {processor()}"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{cores}{gpu}, {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
