"""Batch norm's statistics are those of images as they are at inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import training.cam
import training.regress
import training.segment
import training.vessels
from training.cases import read_cases
from training.lobe_batches import lobe_batches, plain_batch, scored_lobes
from training.prepare import prepared
from training.settling import BATCHES, settle_statistics


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
    kept["plain"](seen, 1)
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
    starts = {
        training.segment: lambda: training.segment.segment_reference(ready, tmp_path),
        training.vessels: lambda: training.vessels.vessels(ready, tmp_path),
    }
    scans = [prepared(ready, case).array("scan_image") for case in read_cases(ready.data) if case.split == "train"]
    known = np.unique(np.concatenate([scan.ravel() for scan in scans])).astype(np.float32)
    for module, start in starts.items():
        image = plain_image(module, start, monkeypatch).numpy()
        assert image.max() > 0 and np.isin(image, np.append(known, 0)).all()
