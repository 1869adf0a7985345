"""How a dRAM network is judged while it is trained: agreement of lobe scores, and a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib.image
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from algorithm.errors import InputError
from algorithm.severity import SCORE_INTERVALS, score_of_percent
from evaluation.agreement import linear_weighted_kappa
from training.cases import of_split, read_cases
from training.dram import Drams
from training.files import write_whole
from training.lobe_batches import LobeBatch, ScoredLobe, plain_batch, read_item, scored_lobes
from training.logbook import Logbook
from training.loop import Validation
from training.losses import interval_loss, intervals_of, lobe_mean
from training.refinement import refinement_target
from training.settings import RegressSettings
from training.stages import Run

PICTURED_LOBES = 4


def dram_validation(run: Run, settings: RegressSettings, folder: Path, device: torch.device) -> Validation:
    """Kappa between the scores of the validation lobes and those of their dRAMs.

    The best network has the greatest kappa; of equal ones, the smallest interval loss. Networks from before all loss
    terms have their full weight are not eligible, for what they would gain from these terms is still to come; nor are
    those of the comparison's rows that lack a term, for all rows are to choose among as many.

    Raises:
        InputError: no validation case has a score.
    """
    lobes = scored_lobes(run, of_split(read_cases(run.data), "validation"))
    if not lobes:
        raise InputError(
            f"{run.data}: no validation case has a score, so that the best network cannot be told; mark some scored "
            "cases validation in cases.csv"
        )
    vessels = run if settings.needs_vessels else None
    pictured = sorted(range(len(lobes)), key=lambda i: -lobes[i].score)[:PICTURED_LOBES]
    ramps = (run.config.regress.equivariance, run.config.regress.entropy, run.config.regress.refinement)

    def read(chosen: list[ScoredLobe]) -> LobeBatch:
        items = [read_item(lobe, 0, vessels) for lobe in chosen]
        return plain_batch(items, size=settings.chunk_size, device=device)

    def measure(network: nn.Module, step: int, logbook: Logbook) -> dict[str, float]:
        if logbook.is_writer:
            picture = draw_chunks(network, read([lobes[i] for i in pictured]), settings)
            path = folder / "pictures" / f"step_{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            write_whole(path, lambda file: file.write(picture))
            logbook.picture(step - 1, _pixels(picture))
        batches = [lobes[i : i + settings.batch] for i in range(0, len(lobes), settings.batch)]
        return measure_scores(network, [lobe.score for lobe in lobes], (read(batch) for batch in batches))

    return Validation(
        every=settings.validate_every,
        first=max(round(settings.steps * ramp.full) if ramp.weight else 0 for ramp in ramps),
        measure=measure,
        rank=lambda values: (round(values["kappa"], 6), -values["interval"]),
    )


def measure_scores(network: nn.Module, scores: list[int], batches: Iterable[LobeBatch]) -> dict[str, float]:
    """Kappa of the lobe scores, and the mean interval loss.

    Args:
        network: a `DramNetwork`.
        scores: reference score of each lobe, in the order of the batches.
        batches: the lobes' chunks.

    Returns:
        ``kappa``, -1 where it is undefined, and ``interval``, the unweighted loss.
    """
    drams = ((network(batch.image, batch.mask).refined.float().sigmoid(), batch.mask) for batch in batches)
    fractions = torch.cat([lobe_mean(dram, mask).cpu() for dram, mask in drams])
    predicted = [score_of_percent(100 * float(fraction)) for fraction in fractions.clamp(0, 1)]
    kappa = linear_weighted_kappa(scores, predicted).kappa
    loss = interval_loss(fractions, *intervals_of(scores, SCORE_INTERVALS)).mean()
    return {"kappa": -1.0 if kappa is None else kappa, "interval": float(loss)}


def draw_chunks(network: nn.Module, batch: LobeBatch, settings: RegressSettings) -> bytes:
    """A PNG with a row per lobe: CT, raw dRAM, refined dRAM and refinement target, in the slice with most lesion."""
    drams: Drams = network(batch.image, batch.mask)
    raw, refined = (logits.float().sigmoid() for logits in drams)
    target = refinement_target(raw, batch.image, batch.mask, batch.vessels, batch.scores, settings.crf)
    columns = {"CT": batch.image, "raw dRAM": raw, "refined dRAM": refined, "target": target[:, None]}
    arrays = {name: (values * batch.mask)[:, 0].float().cpu().numpy() for name, values in columns.items()}
    rows = len(batch.scores)
    figure = Figure(figsize=(8, 2 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(arrays), squeeze=False)
    for row, score in enumerate(batch.scores):
        z = int(arrays["refined dRAM"][row].sum(axis=(1, 2)).argmax())
        outline = batch.mask[row, 0, z].cpu().numpy()
        for axis, (name, values) in zip(axes[row], arrays.items(), strict=True):
            axis.imshow(values[row, z], cmap="gray" if name == "CT" else "viridis", vmin=0, vmax=1)
            axis.contour(outline, levels=[0.5], colors="white", linewidths=0.5)
            axis.set(xticks=[], yticks=[], title=name if row == 0 else "")
        axes[row, 0].set_ylabel(f"score {score}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _pixels(png: bytes) -> NDArray[np.uint8]:
    """The pixels (height, width, 3) of a PNG."""
    rgba = matplotlib.image.imread(io.BytesIO(png), format="png")
    return (255 * rgba[..., :3]).astype(np.uint8)
