"""Batch norm's statistics are those of images as they are at inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import training.cam
import training.regress
import training.segment
import training.vessels
from training.cases import read_cases
from training.lobe_batches import lobe_batches, plain_batch, scored_lobes
from training.loop import train
from training.prepare import prepared
from training.settings import LoopSettings
from training.settling import BATCHES, PlainPasses, Statistics, settle_statistics


def test_statistics_are_the_mean_over_the_batches_and_nothing_else_changes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm3d(2, momentum=0.3), nn.Conv3d(2, 1, 1)).eval()
    weights = {name: value.clone() for name, value in network.named_parameters()}
    batches = [torch.randn(3, 2, 4, 4, 4) * (1 + n) + n for n in range(BATCHES)]
    settle_statistics(network, lambda model, number: model(batches[number]))
    norm = network[0]
    means, variances = (torch.stack([f(b, dim=(0, 2, 3, 4)) for b in batches]).mean(0) for f in (torch.mean, torch.var))
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.3 and not network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())


def test_without_batch_norm_there_is_nothing_to_do():
    def fails(model, number):
        raise AssertionError("a pass that is of no use")

    settle_statistics(nn.InstanceNorm3d(2), fails)


def test_settled_statistics_stay_in_training_and_the_weights_do_not():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout3d(0.5)).eval()
    plain = PlainPasses(lambda model, number: model(torch.randn(2, 1, 4, 4, 4)), 0.25)
    statistics = Statistics(network, plain, 20, Fabric(accelerator="cpu", devices=1))
    statistics.before_step(6)
    assert network.training and network[2].training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(2, 1, 4, 4, 4)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is not None for weight in network.parameters())
    statistics.before_use(6)
    assert torch.equal(network[1].running_mean, before["1.running_mean"])
    statistics.before_step(4)
    network(torch.randn(2, 1, 4, 4, 4))
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])


class Level(nn.Module):
    """Normalises an image and tells its mean: no batch of one image has any by its own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm3d(1), nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scale * self.norm(image).mean()


@pytest.mark.parametrize(("settled", "is_learnt"), [(0.1, True), (1.0, False)])
def test_a_batch_of_one_is_learnt_by_its_level_once_statistics_are_settled(tmp_path, settled, is_learnt):
    torch.manual_seed(0)
    levels = torch.linspace(0, 3, 200)[torch.randperm(200)]
    images = levels.view(-1, 1, 1, 1, 1, 1) + 0.1 * torch.randn(200, 1, 1, 4, 4, 4)
    settings = LoopSettings(steps=200, learning_rate=0.05, precision="32-true")
    losses = []

    def terms(model, image, step):
        loss = (model(image) - levels[step]).square()
        losses.append(float(loss.detach()))
        return {"square": (1.0, loss)}

    fabric = Fabric(accelerator="cpu", devices=1)
    plain = PlainPasses(lambda network, number: network(images[number]), settled)
    train(fabric, Level(), images, terms, settings, tmp_path, plain=plain)
    assert (np.mean(losses[-50:]) < 0.1) == is_learnt


class Seen(nn.Module):
    """Keeps the images that it is given."""

    def forward(self, image: torch.Tensor, *others: torch.Tensor) -> None:
        self.image = image


def plain_image(module, start, monkeypatch) -> torch.Tensor:
    """Image of batch 1 of the plain passes of a stage."""
    kept = {}

    def instead_of_training(*args, plain, **options):
        kept["plain"] = plain
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", instead_of_training)
    with pytest.raises(KeyboardInterrupt):
        start()
    seen = Seen()
    kept["plain"].through(seen, 1)
    return seen.image


@pytest.mark.parametrize("stage", ["regress", "cam"])
def test_lobes_are_as_they_are(ready, tmp_path, monkeypatch, stage):
    module = {"regress": training.regress, "cam": training.cam}[stage]
    image = plain_image(module, lambda: getattr(module, stage)(ready, tmp_path), monkeypatch)
    lobes = scored_lobes(ready, [case for case in read_cases(ready.data) if case.split == "train"])
    items = lobe_batches(lobes, size=4, seed=ready.config.seed)[1]
    assert torch.equal(image, plain_batch(items, size=16, device=torch.device("cpu")).image)


def test_crops_and_patches_hold_the_intensities_of_their_scans(ready, tmp_path, monkeypatch):
    (tmp_path / "references").symlink_to(ready.directory / "vessels" / "references")
    bare = ready.config.vessels.model_copy(update={"spotted_share": 0.0})
    without_lesions = replace(ready, config=ready.config.model_copy(update={"vessels": bare}))
    starts = {
        training.segment: lambda: training.segment.segment_reference(ready, tmp_path),
        training.vessels: lambda: training.vessels.vessels(without_lesions, tmp_path),
    }
    scans = [prepared(ready, case).array("scan_image") for case in read_cases(ready.data) if case.split == "train"]
    known = np.unique(np.concatenate([scan.ravel() for scan in scans])).astype(np.float32)
    for module, start in starts.items():
        image = plain_image(module, start, monkeypatch).numpy()
        assert image.max() > 0 and np.isin(image, np.append(known, 0)).all()
