"""What segmenting a scan costs, beside what others' networks cost on it; writes docs/performance.md.

PYTHONPATH=test python -m benchmarks                 # from the root of the checkout, on an idle machine
PYTHONPATH=test python -m benchmarks --quick         # small boxes, to try the suite
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import torch

from algorithm.images import Volume, read_ct, read_labels

from . import document, measure, ours, peers
from .peers import Cost
from .phantom import chest

COMMAND = "PYTHONPATH=test python -m benchmarks"
BOX = (240, 200, 220)  # the lung box of a large chest at 1.5 mm
WITHOUT_LOBES = (400, 512, 512)
WIDTHS = (8, 32)
REAL_SCANS = Path("../shared/data/ct")
PEERS = ("dynamic_network_architectures", "lungmask", "openvino")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def networks(box: tuple[int, int, int], slices: int, widths: tuple[int, ...]) -> dict[str, Cost]:
    """The cost of each network on the scan, by name."""
    costs: dict[str, Cost] = {}

    def add(name: str, cost: Cost) -> None:
        costs[name] = cost
        print(f"{name}: {cost.seconds:.1f} s, {cost.operations / 1e12:.2f} Top", flush=True)

    for width in widths:
        for precision, dtype in PRECISIONS.items():
            name = f"width {width}, {precision}"
            add(f"{name}, ours", ours.network_cost(width, box, "bf16" if precision == "bf16" else "fp32"))
            add(f"{name}, paper's tiling", peers.paper_tiling(width, box, dtype))
            add(f"{name}, ours by OpenVINO", _by_openvino(width, box, precision, costs[f"{name}, ours"]))
    for precision, dtype in PRECISIONS.items():
        add(f"nnU-Net, {precision}", peers.nnunet(box, dtype))
    add("lungmask, fp32", peers.lungmask(slices))
    return costs


def _by_openvino(width: int, box: tuple[int, int, int], precision: str, whole: Cost) -> Cost:
    """Measured on a third of the scan's slices."""
    part = (box[0] // 3, *box[1:])
    cost = ours.network_cost(width, part, "bf16" if precision == "bf16" else "fp32", "openvino")
    return Cost(3 * cost.seconds, whole.operations)


def growth(box: tuple[int, int, int]) -> dict[tuple[int, int, int], float]:
    """Microseconds per voxel of the default network, for three sizes of the lung box."""
    sizes = [tuple(int(f * n) for n in box) for f in (2 / 3, 1, 4 / 3)]
    boxes = [(z, y, x) for z, y, x in sizes]
    return {b: ours.network_cost(8, b, "fp32").seconds * 1e6 / (b[0] * b[1] * b[2]) for b in boxes}


def memory(
    box: tuple[int, int, int], scan: tuple[int, int, int], lobes: tuple[int, int, int], widths: tuple[int, ...]
) -> dict[str, float]:
    """Peak GB of processes."""
    size, text = "x".join(map(str, scan)), "x".join(map(str, box))
    without = "x".join(map(str, lobes))
    peaks = {
        f"segment, default model, {size}": measure.peak_memory_gb("segment", size),
        f"lobes of a scan without, {without}": measure.peak_memory_gb("lobes", without),
    }
    for width in widths:
        for precision in PRECISIONS:
            name = f"network, width {width}, {precision}, {text}"
            peaks[name] = measure.peak_memory_gb("network", str(width), precision, text)
    peaks["nnU-Net, fp32, one patch of 128"] = measure.peak_memory_gb("nnunet")
    return peaks


def scans(scan: tuple[Volume, Volume]) -> dict[str, tuple[Volume, Volume]]:
    """The phantom, and real scans where they lie beside the checkout."""
    real = sorted(REAL_SCANS.glob("*/lobes.mha"))
    if not real:
        print(f"{REAL_SCANS}: absent, the answers are compared on the phantom only")
    return {"phantom": scan} | {p.parent.name: (read_ct(p.with_name("ct.mha")), read_labels(p)) for p in real}


def main() -> None:
    """Measure everything and write the document."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"), help="the document to write")
    parser.add_argument("--quick", action="store_true", help="small boxes: tries the suite, measures nothing of use")
    options = parser.parse_args()
    if missing := [package for package in PEERS if importlib.util.find_spec(package) is None]:
        parser.error(f"not installed: {', '.join(missing)}; pip install --no-deps -r test/benchmarks/requirements.txt")
    started = time.perf_counter()
    widths = (8,) if options.quick else WIDTHS
    box = (48, 40, 56) if options.quick else BOX
    size = (60, 96, 96) if options.quick else (300, 512, 512)
    lung = (50, 60, 80) if options.quick else (300, 400, 440)
    without = (64, 96, 96) if options.quick else WITHOUT_LOBES
    scan = chest(size, (1.2, 0.75, 0.75), lung, seed=1)
    text = document.render(
        command=COMMAND + (" --quick" if options.quick else ""),
        hardware=measure.hardware(),
        box=box,
        slices=size[0],
        rates={name: measure.peak_rate(dtype) for name, dtype in PRECISIONS.items()},
        costs=networks(box, size[0], widths),
        growth=growth(box),
        stages=ours.stages(*scan),
        kernels=ours.kernels(box),
        lobes=(without, ours.lobes_and_lesions(without)),
        memory=memory(box, (64, 96, 96) if options.quick else (600, 512, 512), without, widths),
        agreement={name: list(ours.agreement(*volumes)) for name, volumes in scans(scan).items()},
        minutes=lambda: (time.perf_counter() - started) / 60,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
