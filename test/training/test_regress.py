from __future__ import annotations

import csv
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from algorithm.lobes import LOBES
from algorithm.severity import SCORE_INTERVALS, score_of_percent
from evaluation.agreement import linear_weighted_kappa
from training.cases import of_split, read_cases
from training.chunks import resize_chunk
from training.config import load_config
from training.crf import dense_crf
from training.dram import Drams
from training.equivariance import random_transform
from training.lobe_batches import LobeBatch
from training.loop import BEST, CHECKPOINT
from training.prepare import prepared
from training.regress import (
    Weights,
    dram_terms,
    load_dram,
    new_network,
    ramped,
    train_dram,
    trained_network,
    weights_at,
    weights_of_scores,
)
from training.run import STAGES
from training.settings import CrfSettings, Ramp, RegressSettings
from training.stages import Run, execute

STAGE = {stage.name: stage for stage in STAGES}
TERMS = ("interval", "equivariance", "entropy", "refinement")


@pytest.fixture(scope="module")
def finished(ready, tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("run")
    for stage in ("prepare", "vessels"):
        (directory / stage).symlink_to(ready.directory / stage)
    run = replace(ready, directory=directory)
    execute(run, STAGE["regress"])
    return run


def test_a_full_disk_is_told_and_with_space_the_stage_goes_on_to_the_same_result(finished, with_caches, small_disk):
    run = replace(finished, directory=with_caches(small_disk / "run"))
    with pytest.raises(InputError, match=r"no space left on the disk, .* run the same command again, finished parts"):
        execute(run, STAGE["regress"])
    assert not (run.directory / "regress" / "done.json").exists() and not list(run.directory.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    execute(run, STAGE["regress"])
    first, second = (one.record("regress")["files_sha256"] for one in (finished, run))
    assert first == second


def test_every_step_is_logged_with_every_term(finished):
    with (finished.folder("regress") / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    for row in rows:
        weights = weights_at(finished.config.regress, int(row["step"]))
        used = [term for term in TERMS if row[term]]
        assert used == [term for term in TERMS if getattr(weights, term)]
        weighted = sum(getattr(weights, term) * float(row[term]) for term in used)
        assert float(row["loss"]) == pytest.approx(weighted, rel=1e-3)
    assert float(rows[-1]["equivariance"]) > 0


def validation_fractions(run: Run, network: torch.nn.Module) -> tuple[list[int], list[float]]:
    """Score of every lobe of the validation cases, and the mean of its refined dRAM, lobe by lobe."""
    scores, fractions = [], []
    for case in of_split(read_cases(run.data), "validation"):
        for lobe in LOBES:
            chunk = prepared(run, case).chunk(lobe.key)
            image, mask = resize_chunk(chunk, run.config.regress.chunk_size, device=torch.device("cpu"))
            with torch.inference_mode():
                dram = network(image, mask).refined.sigmoid()
            scores.append(case.scores[lobe.label])
            fractions.append(dram[mask > 0].mean().item())
    return scores, fractions


def test_validations_are_logged_with_a_picture_each(finished):
    folder = finished.folder("regress")
    with (folder / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 5]
    network = new_network(finished.config.regress).eval()
    network.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True)["network"])  # the last one
    reference, fractions = validation_fractions(finished, network)
    kappa = linear_weighted_kappa(reference, [score_of_percent(100 * fraction) for fraction in fractions]).kappa
    assert float(rows[-1]["kappa"]) == pytest.approx(-1 if kappa is None else kappa, abs=1e-4)
    ends = [SCORE_INTERVALS[score] for score in reference]
    squares = [
        (f - (low + high) / 2) ** 2 - ((high - low) / 2) ** 2 for f, (low, high) in zip(fractions, ends, strict=True)
    ]
    assert float(rows[-1]["interval"]) == pytest.approx(np.maximum(squares, 0).mean(), rel=1e-3)
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["step_000003.png", "step_000006.png"]
    assert list((folder / "tensorboard").iterdir())


def test_the_best_network_is_the_result(finished):
    folder = finished.folder("regress")
    with (folder / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["kappa"]), -float(row["interval"])))
    state = torch.load(folder / BEST, weights_only=True)
    assert state["step"] == int(best["step"]) + 1
    result = trained_network(finished).state_dict()
    assert all(torch.equal(result[name], state["network"][name]) for name in result)


def test_the_seed_decides(finished, tmp_path):
    other = replace(finished, config=finished.config.model_copy(update={"seed": 1}))
    settings = finished.config.regress
    train_dram(other, settings, tmp_path)
    first, second = trained_network(finished).state_dict(), load_dram(settings, tmp_path).state_dict()
    assert not torch.equal(first["unet.last.weight"], second["unet.last.weight"])


def test_no_scored_validation_case_is_refused(ready, tmp_path, monkeypatch):
    cases = [case for case in read_cases(ready.data) if case.split != "validation"]
    monkeypatch.setattr("training.validation.read_cases", lambda data: cases)
    with pytest.raises(InputError, match="no validation case has a score"):
        train_dram(ready, ready.config.regress, tmp_path)


def test_loss_that_is_not_finite_stops_the_training(ready, tmp_path):
    wild = ready.config.regress.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step \d; lower learning_rate"):
        train_dram(ready, wild, tmp_path)


def test_terms_wait_and_then_rise():
    late = Ramp(weight=0.5, start=0.3, full=0.6)
    assert [round(ramped(late, step=s, steps=100), 3) for s in (0, 30, 45, 60, 99)] == [0, 0, 0.25, 0.5, 0.5]
    assert ramped(Ramp(weight=1.0), step=0, steps=100) == 1.0
    assert ramped(Ramp(weight=2.0, start=0.5, full=0.5), step=49, steps=100) == 0
    assert ramped(Ramp(weight=2.0, start=0.5, full=0.5), step=50, steps=100) == 2


def test_the_paper_s_weights_are_2_1_1_1_from_the_first_step_to_the_last():
    paper = load_config("paper").regress
    assert {weights_at(paper, step) for step in (0, paper.steps // 2, paper.steps - 1)} == {Weights(2.0, 1.0, 1.0, 1.0)}
    assert (paper.optimiser, paper.learning_rate, paper.attention, paper.suppress_vessels) == ("adam", 1e-4, True, True)


def test_by_default_entropy_and_refinement_come_after_the_interval_loss_has_settled():
    settings = load_config("default").regress
    assert weights_at(settings, 0) == Weights(interval=2.0, equivariance=1.0, entropy=0.0, refinement=0.0)
    assert weights_at(settings, settings.steps - 1) == Weights(2.0, 1.0, 1.0, 1.0)


def test_rare_scores_are_weighted_or_drawn_more_often_but_never_both(ready, tmp_path, monkeypatch):
    counts = {0: 6, 1: 3, 4: 1}
    by_loss = weights_of_scores(RegressSettings(), counts)
    assert [by_loss[score] for score in (0, 1, 4)] == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    by_drawing = weights_of_scores(RegressSettings(weighting="balanced-sampling"), counts)
    assert by_drawing == dict.fromkeys(range(6), 1.0)

    asked = []

    def stop(lobes, *, balanced, **options):
        asked.append(balanced)
        raise KeyboardInterrupt

    monkeypatch.setattr("training.regress.lobe_batches", stop)
    for weighting in ("reverse-frequency", "balanced-sampling"):
        with pytest.raises(KeyboardInterrupt):
            train_dram(ready, ready.config.regress.model_copy(update={"weighting": weighting}), tmp_path)
    assert asked == [False, True]


class Placed(torch.nn.Module):
    """A network whose logits depend on the place, so that it is not equivariant, and whose refined ones are others."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor, *, refined: bool = True) -> Drams:
        raw = 10 * image - 5 + torch.linspace(-1, 1, image.shape[2])[:, None, None]
        return Drams(raw, 3 - 8 * image if refined else raw)


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def raw_dram(image: np.ndarray) -> np.ndarray:
    """What `Placed` makes of one chunk."""
    return probability(10 * image - 5 + np.linspace(-1, 1, len(image))[:, None, None])


def two_lobes(size: int) -> LobeBatch:
    """Lobes without any symmetry, with odd edges, and images that are not those before contrast was stretched."""
    rng = np.random.default_rng(3)
    mask = np.zeros((2, size, size, size), dtype=np.float32)
    mask[0, 1:12, 2:9, 3 : size - 2] = 1
    mask[0, 1:4, 9:14, 3:8] = 1
    mask[1, 3 : size - 1, 5:10, 1:6] = 1
    image = mask * rng.uniform(0.3, 0.9, mask.shape)
    plain = mask * np.where(np.indices(mask.shape)[3] < 6, 0.8, 0.2)
    vessels = mask * (np.indices(mask.shape)[2] == 7)
    parts = [torch.from_numpy(part[:, None].astype(np.float32)) for part in (image, plain, mask, vessels)]
    return LobeBatch(*parts, scores=[3, 0])


def terms_of(batch: LobeBatch, settings: RegressSettings, *, seed: int = 0) -> dict[str, float]:
    """Values of the terms, with weights that they are checked to come with."""
    weights = Weights(interval=2.0, equivariance=0.1, entropy=0.2, refinement=0.3)
    rng = np.random.default_rng(seed)
    terms = dram_terms(Placed(), batch, {3: 2.0, 0: 5.0}, weights, settings, rng)
    assert {name: weight for name, (weight, _) in terms.items()} == dict(zip(TERMS, (2, 0.1, 0.2, 0.3), strict=True))
    return {name: value.item() for name, (_, value) in terms.items()}


def arrays(batch: LobeBatch) -> list[tuple[np.ndarray, ...]]:
    """Image, mask and vessels of each chunk, (z, y, x)."""
    parts = (batch.image, batch.mask, batch.vessels)
    return list(zip(*(part[:, 0].double().numpy() for part in parts), strict=True))


def test_interval_and_entropy_take_the_raw_dram_over_the_lobe():
    batch = two_lobes(16)
    terms = terms_of(batch, RegressSettings(chunk_size=16, precision="32-true"))
    raw = [raw_dram(image)[mask > 0] for image, mask, _ in arrays(batch)]
    means = [values.mean() for values in raw]
    assert means[0] > 0.55  # the interval of score 3 ends at 0.5, and its middle is 0.375
    losses = [2 * ((means[0] - 0.375) ** 2 - 0.125**2), 5 * means[1] ** 2]
    assert terms["interval"] == pytest.approx(np.mean(losses), rel=1e-5)
    entropies = [-np.mean(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in raw]
    assert terms["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)


def halved(chunk: np.ndarray) -> np.ndarray:
    """Mean of each block of 2 x 2 x 2 voxels: linear interpolation at half the size, edge to edge."""
    return chunk.reshape(-1, 2, len(chunk) // 2, 2, len(chunk) // 2, 2).mean(axis=(1, 3, 5))


@pytest.mark.parametrize("seed", range(4))
def test_equivariance_compares_the_dram_of_the_transformed_with_the_transformed_dram(seed):
    """At half the size: blocks of voxels are averaged, those of the dRAM over their share inside the lobe."""
    settings = RegressSettings(chunk_size=32, precision="32-true", scale_range=(0.5, 0.5))
    transform = random_transform(np.random.default_rng(seed), size=32, scale_range=(0.5, 0.5), free_angle_degrees=0.0)
    batch, expected = two_lobes(32), []
    for image, mask, _ in arrays(batch):
        dram, image, mask = (
            np.rot90(chunk, transform.quarter_turns, transform.plane) for chunk in (raw_dram(image), image, mask)
        )
        inside = mask[1::2, 1::2, 1::2] > 0  # the nearest of a block's voxels, all of them as near, is the last one
        transformed = halved(dram * mask)[inside] / halved(mask)[inside]
        of_transformed = raw_dram(halved(image) * inside)[inside]
        expected.append(np.abs(of_transformed - transformed).mean())
    assert min(expected) > 0.01
    assert terms_of(batch, settings, seed=seed)["equivariance"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_transforms_of_that_test_turn_the_axis_that_the_network_depends_on():
    transforms = [
        random_transform(np.random.default_rng(seed), size=32, scale_range=(0.5, 0.5), free_angle_degrees=0.0)
        for seed in range(4)
    ]
    assert any(transform.quarter_turns and -3 in transform.plane for transform in transforms)


def by_hand(refined: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Bootstrapping with beta 0.8, over the lobe."""
    q = probability(refined)
    blend = 0.8 * target + 0.2 * (q > 0.5)
    return float(-(blend * np.log(q) + (1 - blend) * np.log(1 - q))[mask > 0].mean())


def test_refined_dram_learns_the_raw_one_off_the_vessels():
    """Without an iteration the CRF thresholds; a healthy lobe has an empty target whatever its raw dRAM says."""
    batch = two_lobes(16)
    (image, mask, vessels), (healthy, its_mask, _) = arrays(batch)
    target = (raw_dram(image) * (1 - vessels) > 0.5) & (mask > 0)
    assert target.any() and (raw_dram(image) > 0.5)[(vessels > 0) & (mask > 0)].any()
    expected = [by_hand(3 - 8 * image, target, mask), by_hand(3 - 8 * healthy, np.zeros(mask.shape), its_mask)]
    settings = RegressSettings.model_validate({"chunk_size": 16, "precision": "32-true", "crf": {"iterations": 0}})
    assert terms_of(batch, settings)["refinement"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_diseased_lobe_does_not_learn_from_an_empty_target():
    batch = two_lobes(16)
    batch = replace(batch, vessels=batch.mask)  # which leaves nothing of any map
    _, (healthy, its_mask, _) = arrays(batch)
    expected = by_hand(3 - 8 * healthy, np.zeros(its_mask.shape), its_mask)
    settings = RegressSettings.model_validate({"chunk_size": 16, "precision": "32-true", "crf": {"iterations": 0}})
    assert terms_of(batch, settings)["refinement"] == pytest.approx(expected / 2, rel=1e-5)


def test_the_crf_sees_the_image_before_its_contrast_was_stretched_and_has_its_settings():
    settings = RegressSettings.model_validate(
        {"chunk_size": 16, "precision": "32-true", "crf": {"iterations": 2, "appearance_sigma": 4.0}}
    )
    batch = two_lobes(16)
    (image, mask, vessels), (healthy, its_mask, _) = arrays(batch)
    off_vessels = torch.from_numpy(raw_dram(image) * (1 - vessels))[None, None].float()

    def target(guide: torch.Tensor, crf: CrfSettings) -> np.ndarray:
        return (dense_crf(off_vessels, guide[:1], batch.mask[:1], crf) > 0.5)[0, 0].numpy()

    found = target(batch.plain, settings.crf)
    assert not np.array_equal(found, target(batch.image, settings.crf))
    assert not np.array_equal(found, target(batch.plain, CrfSettings()))
    expected = [by_hand(3 - 8 * image, found, mask), by_hand(3 - 8 * healthy, np.zeros(mask.shape), its_mask)]
    assert terms_of(batch, settings)["refinement"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_terms_of_no_weight_are_left_out():
    settings = RegressSettings(chunk_size=16, precision="32-true", attention=False)
    only = Weights(interval=2.0, equivariance=0.0, entropy=0.0, refinement=0.0)
    terms = dram_terms(Placed(), two_lobes(16), {3: 1.0, 0: 1.0}, only, settings, np.random.default_rng(0))
    assert [name for name, (_, value) in terms.items() if value is not None] == ["interval"]
