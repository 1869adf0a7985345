"""The report as a browser shows it: headless Chromium, from Debian's package of that name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import evaluation
from evaluation.compare import compare_methods
from evaluation.report.formats import interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_REQUIRED = os.environ.get("CI_BROWSER") == "1"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not IS_REQUIRED, reason="no chromium here: apt-get install chromium"
)


@pytest.fixture
def page(tmp_path, with_cts, methods) -> Path:
    names = {"good": methods["good"], "<poor> & worse": methods["poor"]}
    compare_methods(reference_directory=with_cts, methods=names, out=tmp_path / "out")
    return tmp_path / "out" / "report.html"


def browse(page: Path, tmp_path: Path, *options: str) -> tuple[str, list[str]]:
    """What the browser writes, and the lines that it has put on its console."""
    if CHROMIUM is None:
        pytest.fail("CI_BROWSER=1 and no chromium: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


class Links(HTMLParser):
    """Everything that a page points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "href", "xlink:href"):
                self.targets.append(value)


def test_the_page_points_to_nothing_outside(page) -> None:
    links = Links(page.read_text())
    assert any(target.startswith("data:image/png") for target in links.targets)
    for target in links.targets:
        assert target.startswith("data:") or target[1:] in links.ids, target


def test_says_what_it_was_made_from(page) -> None:
    text = page.read_text()
    assert "Reference: ground_truth · 2 scans" in text
    assert f"Evaluation {evaluation.__version__}." in text
    assert "slice 1 of 6 · good: IoU 1.000" in text


def test_both_intervals_of_kappa_have_their_names(page) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split())
    metrics = json.loads(page.with_name("metrics.json").read_text())
    kappa = metrics["methods"]["<poor> & worse"]["aggregates"]["kappa"]
    for words in (f"95 % CI, analytic {interval(kappa)}", f"95 % CI over scans {interval(kappa['scan_bootstrap'])}"):
        assert words.replace("\u00a0", " ") in text  # split has taken its no-break spaces too


def test_names_are_text(page) -> None:
    text = page.read_text()
    assert "&lt;poor&gt; &amp; worse" in text
    assert "<poor>" not in text


@needs_chromium
def test_the_browser_has_nothing_to_complain_about(page, tmp_path) -> None:
    content, complaints = browse(page, tmp_path, "--dump-dom")
    assert complaints == []
    assert content.count("<svg") == 3
    assert content.count("<img") == 2


@needs_chromium
def test_a_complaint_would_be_seen(page, tmp_path) -> None:
    page.write_text(page.read_text().replace("</main>", '<img src="other.png"></main>'))
    _, complaints = browse(page, tmp_path, "--dump-dom")
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints[0]


@needs_chromium
def test_the_page_is_drawn(page, tmp_path) -> None:
    browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,1600")
    picture = matplotlib.image.imread(tmp_path / "page.png")
    assert picture.shape[:2] == (1600, 1280)
    header, card, colours = picture[20, 20, :3], picture[:, :, :3], np.unique(picture.reshape(-1, 4), axis=0)
    assert header * 255 == pytest.approx([0x12, 0x39, 0x5B], abs=1)
    assert (np.abs(card * 255 - [0x00, 0x72, 0xB2]).max(axis=-1) < 2).any()  # the first method's colour
    assert len(colours) > 100
