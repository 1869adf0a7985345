"""What the parts of a training step cost, as ratios of times in one run: machines differ, ratios less so.

python -m training benchmark --device cpu --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils.benchmark import Timer

from algorithm.errors import InputError
from algorithm.images import Geometry
from algorithm.network import PERIOD, UNet3D
from training.crf import dense_crf
from training.files import read_json, save_array, write_json
from training.lobe_batches import LobeBatch, ScoredLobe, augmented_batch, read_item
from training.loop import make_optimiser
from training.parallel import console
from training.prepare import GEOMETRIES, PreparedCase
from training.regress import Weights, dram_terms, new_network
from training.settings import CrfSettings, RegressSettings
from training.stages import RECORD

ALL_ON = Weights(interval=2.0, equivariance=1.0, entropy=1.0, refinement=1.0)
LOBE_VOXELS = (150, 150, 120)
LONGEST_S = 20.0  # after which a measurement is not repeated again


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        comparison: what takes the first time, and what the second.
        first_s: median time in seconds.
        second_s: likewise.
        remark: what else to know.
    """

    comparison: str
    first_s: float
    second_s: float
    remark: str


def benchmark(*, device: str, width: int, chunk_size: int, batch: int, run_directory: Path | None = None) -> None:
    """Measure on a device and print a table, and for a run another one of what its stages took.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        width: filters of the network's first convolution.
        chunk_size: voxels per side of a lobe chunk, a multiple of 8 from 24 on.
        batch: chunks per step.
        run_directory: of a run, to print the peak memory of its stages.

    Raises:
        InputError: there is no such device, the chunk size is not a multiple of 8 from 24 on, or the run has no
            finished stage.
    """
    if chunk_size < 3 * PERIOD or chunk_size % PERIOD:
        raise InputError(f"chunk size: got {chunk_size} voxels, expected a multiple of {PERIOD} from 24 on; use 80")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto")
    memory = peak_memory(run_directory) if run_directory else None
    used = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    probability, image = (chunks.to(used) for chunks in phantom_chunks(batch, chunk_size, generator))

    rows = [compare_crf_with_network(probability, image, width), *compare_parts_with_step(image, width)]
    if find_spec("pydensecrf"):
        rows.insert(0, compare_crf_engines(probability, image))
    else:
        console.print("pydensecrf2 is not installed, so the engines of the dense CRF are not compared")
    console.print(as_table(rows, title=f"{batch} x {chunk_size}^3, {used.type}, {torch.get_num_threads()} threads"))
    if memory:
        console.print(memory)


def as_table(rows: list[Row], *, title: str) -> Table:
    """The rows and the ratios of their times."""
    table = Table("compared", "seconds", "ratio", "", title=title)
    for row in rows:
        seconds, ratio = f"{row.first_s:.3g} / {row.second_s:.3g}", row.first_s / row.second_s
        table.add_row(row.comparison, seconds, f"{ratio:.2g}", row.remark)
    return table


def compare_crf_engines(probability: Tensor, image: Tensor) -> Row:
    """Time of the dense CRF in torch over that in pydensecrf2, and the overlap of their lesions.

    Args:
        probability: (B, 1, D, H, W), on the device of the torch engine; pydensecrf2 uses one core in any case.
        image: intensities, the same shape.

    Raises:
        InputError: pydensecrf2 is not installed.
    """
    engines = [
        partial(dense_crf, probability, image, torch.ones_like(image), CrfSettings(engine=name))
        for name in ("torch", "pydensecrf2")
    ]
    first, second = (engine() > 0.5 for engine in engines)
    overlap = float((first & second).sum() / (first | second).sum())
    first_s, second_s = (median_seconds(engine) for engine in engines)
    return Row("dense CRF: torch / pydensecrf2", first_s, second_s, f"IoU of the labels {overlap:.4f}")


def compare_crf_with_network(probability: Tensor, image: Tensor, width: int) -> Row:
    """Time of the dense CRF over that of the network forward and backward, in bfloat16, on the same chunks.

    Args:
        probability: (B, 1, D, H, W), on the device.
        image: intensities, the same shape and device.
        width: filters of the network's first convolution.
    """
    network = UNet3D(out_channels=1, width=width).to(image.device)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    chunks = image.contiguous(memory_format=torch.channels_last_3d)

    def step() -> None:
        network.zero_grad()
        with torch.autocast(image.device.type, dtype=torch.bfloat16):
            logits = network(chunks)
        logits.float().sigmoid().mean().backward()

    first_s, second_s = (
        median_seconds(partial(dense_crf, probability, image, torch.ones_like(image), CrfSettings())),
        median_seconds(step),
    )
    return Row("dense CRF / network forward + backward", first_s, second_s, f"width {width}, bfloat16")


def compare_parts_with_step(image: Tensor, width: int) -> list[Row]:
    """Time of reading and augmenting, and of these and the dense CRF, over that of a whole step, all terms on.

    The chunks are read from disk in this process, as on a CPU; for a GPU other processes read ahead.

    Args:
        image: intensities (B, 1, n, n, n), on the device; written out as the chunks to read.
        width: filters of the network's first convolution.
    """
    batch, size, device = len(image), image.shape[-1], image.device
    settings = RegressSettings(width=width, chunk_size=size)
    network = new_network(settings).to(device)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = make_optimiser(network, settings)
    with TemporaryDirectory() as folder:
        lobes = [_write_chunk(Path(folder), index, chunk[0]) for index, chunk in enumerate(image)]

        def read() -> LobeBatch:
            items = [read_item(lobe, position, None) for position, lobe in enumerate(lobes)]
            with_vessels = [replace(item, vessels=torch.zeros_like(item.mask)) for item in items]
            return augmented_batch(with_vessels, size=size, jitter_mm=0.1, seed=0, device=device)

        def rest() -> None:
            chunks = read()
            dense_crf(chunks.image, chunks.image, chunks.mask, settings.crf)

        def step() -> None:
            optimiser.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                terms = dram_terms(network, read(), {3: 1.0}, ALL_ON, settings, np.random.default_rng(0))
            loss = torch.stack([weight * value for weight, value in terms.values() if value is not None]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        read_s, rest_s, step_s = (median_seconds(work) for work in (read, rest, step))
    remark = f"batch {batch}, width {width}: the network's share is {1 - rest_s / step_s:.0%}"
    return [
        Row("reading and augmenting / whole regress step", read_s, step_s, "chunks on disk"),
        Row("reading, augmenting, CRF / whole regress step", rest_s, step_s, remark),
    ]


def peak_memory(run_directory: Path) -> Table:
    """Peak memory of each finished stage of a run, in the order in which they were finished.

    Raises:
        InputError: no stage of the run is finished.
    """
    done = sorted(run_directory.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime_ns)
    if not done:
        raise InputError(f"{run_directory}: no finished stage; expected the directory of a run")
    title = f"peak memory, {run_directory}: the process, and where scans are spread, each of its workers as well"
    table = Table("stage", "process, GB", "largest child, GB", title=title)
    for record in map(read_json, done):
        table.add_row(record["stage"], f"{record['peak_memory_gb']}", f"{record['peak_memory_of_a_worker_gb']}")
    return table


def median_seconds(work: Callable[[], object]) -> float:
    """Median time of a piece of work after warming up; on a GPU until its results are there."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.adaptive_autorange(max_run_time=LONGEST_S).median


def phantom_chunks(batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Textured chunks with bright blobs, and a coarse and noisy probability of the blobs.

    Returns:
        Probability and image, float32 in [0, 1], (B, 1, size, size, size) each.
    """

    def noise(voxels: int) -> Tensor:
        coarse = torch.randn(batch, 1, *3 * (max(2, size // voxels),), generator=generator)
        return functional.interpolate(coarse, size=3 * (size,), mode="trilinear")

    blobs = noise(16) > 0.4
    image = 0.25 + 0.25 * blobs + 0.08 * noise(3) + 0.03 * noise(1)
    smooth = functional.avg_pool3d(blobs.float(), 5, stride=1, padding=2)
    return (8 * smooth - 4 + 2 * noise(5) + noise(2)).sigmoid(), image.clamp(0, 1)


def _write_chunk(folder: Path, index: int, image: Tensor) -> ScoredLobe:
    """A lobe of score 3 whose chunk of some 150 x 150 x 120 voxels, the size of a lower lobe at 1.2 mm, is on disk."""
    case = PreparedCase(f"{index}", folder / f"{index}")
    case.folder.mkdir()
    chunk = functional.interpolate(image[None, None].float(), size=LOBE_VOXELS, mode="trilinear")[0, 0].cpu().numpy()
    mask = np.ones(LOBE_VOXELS, dtype=np.uint8)
    save_array(case.folder / "lll_image.npy", chunk.astype(np.float16))
    save_array(case.folder / "lll_mask.npy", mask)
    grid = Geometry(LOBE_VOXELS, (1.2, 1.2, 1.2), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    write_json(case.folder / GEOMETRIES, {"lll": asdict(grid)})
    return ScoredLobe(case, "lll", 3)
