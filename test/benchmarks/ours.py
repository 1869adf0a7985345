"""Our network and our whole job on a scan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithm.engine import Engine, Precision, make_network
from algorithm.images import Volume, read_ct, read_labels, write_labels
from algorithm.inference_network import InferenceNetwork
from algorithm.job import MEMORY_GB, read_case
from algorithm.model import find_model, load_model
from algorithm.network import UNet3D
from algorithm.overview import draw_overview
from algorithm.segmenter import LesionSegmenter
from algorithm.tiling import predict_scan

from .measure import counted, seconds
from .peers import Cost
from .phantom import chest, lungs

CPU = torch.device("cpu")
DEFAULT_WIDTH = 8
CHEST_MM = (400.0, 360.0, 360.0)


def trained(width: int) -> UNet3D:
    """The default model's network, or one of another width with random weights."""
    if width == DEFAULT_WIDTH:
        return load_model(find_model()).network
    return UNet3D(out_channels=3, width=width, padding="valid").eval()


def network_cost(width: int, box_zyx: tuple[int, int, int], precision: Precision, engine: Engine = "torch") -> Cost:
    """The network over a lung box, once, after a warm-up."""
    network = make_network(trained(width), device=CPU, precision=precision, engine=engine)
    run_network(network, (32, 48, 48))
    with counted(network) as counter:
        taken = seconds(lambda: run_network(network, box_zyx))
    return Cost(taken, counter.operations)


def run_network(network: InferenceNetwork, box_zyx: tuple[int, int, int]) -> NDArray[np.float32]:
    """The third logit over lungs of noise."""
    inside = lungs(box_zyx)
    image = np.random.default_rng(0).random(box_zyx, dtype=np.float32) * inside

    def third(logits: Tensor) -> Tensor:
        return logits[2]

    return predict_scan(network, image, inside, third, memory_bytes=MEMORY_GB * 1e9)


def kernels(box_zyx: tuple[int, int, int]) -> dict[str, float]:
    """Share of the default network's time by PyTorch operation, the largest first."""
    network = make_network(trained(DEFAULT_WIDTH), device=CPU, precision="fp32")
    run_network(network, (32, 48, 48))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run_network(network, box_zyx)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: time / total for name, time in sorted(times.items(), key=lambda item: -item[1])[:8]}


def stages(ct: Volume, lobes: Volume) -> dict[str, float]:
    """Seconds of each step of one `segment` call on compressed files, with a loaded model."""
    segmenter = LesionSegmenter.from_directory(find_model(), device="cpu")
    segmenter.warm_up()
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = folder / "ct.mha", folder / "lobes.mha"
        for volume, path in zip((ct, lobes), files, strict=True):
            sitk.WriteImage(volume.to_sitk(), str(path), useCompression=True)
        steps: dict[str, float] = {"read": seconds(lambda: read_case(*files))}
        segmentation = segmenter.segment(read_ct(files[0]), read_labels(files[1]))
        timings = segmentation.report.timings
        steps |= {
            "preprocess": timings.preprocess_s,
            "network": timings.network_s,
            "postprocess": timings.postprocess_s,
            "write": seconds(lambda: write_labels(segmentation.labels, folder / "lesions.mha")),
            "picture": seconds(lambda: draw_overview(ct, segmentation, folder / "overview.png")),
        }
    return steps


def agreement(ct: Volume, lobes: Volume) -> Iterator[tuple[str, float, bool]]:
    """For each fast path its name, the lowest Dice of a class against the reference, and whether scores are equal."""
    model = load_model(find_model())
    reference = LesionSegmenter(model, device=CPU, memory_gb=20.0).segment(ct, lobes)
    paths: list[tuple[str, Precision, Engine, float]] = [
        ("fp32, small tiles", "fp32", "torch", 0.4),
        ("bf16", "bf16", "torch", MEMORY_GB),
        ("OpenVINO fp32", "fp32", "openvino", MEMORY_GB),
        ("OpenVINO bf16", "bf16", "openvino", MEMORY_GB),
    ]
    for name, precision, engine, memory_gb in paths:
        segmenter = LesionSegmenter(model, device=CPU, memory_gb=memory_gb, precision=precision, engine=engine)
        result = segmenter.segment(ct, lobes)
        scores = [[lobe.score for lobe in segmentation.report.lobes] for segmentation in (result, reference)]
        yield name, lowest_dice(result.labels.array, reference.labels.array), scores[0] == scores[1]


def lowest_dice(ours: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Over the classes that the reference has, and lesion as a whole."""
    pairs = [(ours > 0, reference > 0), *((ours == label, reference == label) for label in (1, 2, 3))]
    return min((2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if b.any()), default=1.0)


def lobes_and_lesions(size_zyx: tuple[int, int, int]) -> dict[str, float]:
    """Seconds of finding the lobes of a scan that comes without, and of the lesion network on the same scan."""
    ct, _ = _filled(size_zyx, _chest_spacing(size_zyx))
    segmenter = LesionSegmenter.from_directory(find_model(), device="cpu")
    segmenter.warm_up()
    segmenter.find_lobes(ct)  # the first time is slower
    timings = segmenter.segment(ct).report.timings
    return {"lobes": timings.lobes_s, "lesion network": timings.network_s}


def lobes_memory_case(size_zyx: tuple[int, int, int]) -> None:
    """Finding lobes alone."""
    ct, _ = _filled(size_zyx, _chest_spacing(size_zyx))
    LesionSegmenter.from_directory(find_model(), device="cpu").find_lobes(ct)


def memory_case(size_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float]) -> None:
    """The whole default job on a scan whose lungs fill most of it."""
    ct, lobes = _filled(size_zyx, spacing_zyx_mm)
    LesionSegmenter.from_directory(find_model(), device="cpu").segment(ct, lobes)


def _chest_spacing(size_zyx: tuple[int, int, int]) -> tuple[float, float, float]:
    """Of a scan as large as a chest, however many its voxels."""
    z, y, x = (extent / n for extent, n in zip(CHEST_MM, size_zyx, strict=True))
    return z, y, x


def _filled(size_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float]) -> tuple[Volume, Volume]:
    """A scan whose lungs fill most of it."""
    z, y, x = (int(0.8 * n) for n in size_zyx)
    return chest(size_zyx, spacing_zyx_mm, (z, y, x), seed=0)
