from __future__ import annotations

from types import SimpleNamespace

import pytest

from evaluation.bootstrap import kappa_interval
from evaluation.summary import _kappa_numbers, _tables


def test_the_two_bootstraps_redraw_lobes_and_scans() -> None:
    """The lobes of a scan are judged alike, so that redrawing scans gives a wider interval than redrawing lobes."""
    by_scan = [[(scan % 6, min(5, scan % 6 + (scan % 4 == 0)))] * 5 for scan in range(24)]
    scans = [SimpleNamespace(score_pairs=lambda border, pairs=pairs: pairs) for pairs in by_scan]
    numbers = _kappa_numbers(scans, 1.0, seed=3)
    by_lobe = kappa_interval(_tables([[pair] for pairs in by_scan for pair in pairs]), seed=3)
    assert numbers["naive_bootstrap"] == {"ci_low": by_lobe.low, "ci_high": by_lobe.high}
    width = {name: numbers[name]["ci_high"] - numbers[name]["ci_low"] for name in ("naive_bootstrap", "scan_bootstrap")}
    assert width["scan_bootstrap"] / width["naive_bootstrap"] == pytest.approx(5**0.5, rel=0.15)
    assert (numbers["n"], numbers["n_scans"]) == (120, 24)
