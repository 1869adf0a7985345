from dataclasses import replace
from pathlib import Path

import pytest

import training.reproduce.benchmark as module
from algorithm.errors import InputError
from training.reproduce import Benchmark, reproduce

BENCHMARK = Benchmark(Path("shapes"), train=3, healthy=1, validation=1, test=1)


@pytest.fixture
def calls(monkeypatch, finished):
    """What the data and the stages were asked for; both are there already."""
    made: list[tuple[str, object]] = []
    monkeypatch.setattr(module, "write_phantoms", lambda **given: made.append(("data", given)))

    def run_all(run, config, **given):
        made.append(("run", (config, given)))
        return 0

    monkeypatch.setattr(module, "run_all", run_all)
    return made


def test_data_then_stages_then_the_document(calls, finished, tmp_path):
    document = tmp_path / "docs" / "results.md"
    run = replace(finished)
    assert reproduce(BENCHMARK, run, "smoke", document) == 0
    (_, data), (_, stages) = calls
    assert (data["cases"], data["seed"], data["out"]) == (5, 1, run.data)
    options = data["options"]
    assert (options.validation, options.test, options.healthy, options.score_noise) == (1, 1, 1, 0.3)
    assert stages == ("smoke", {"with_comparison": True, "lobe_data": None})
    assert "# Results" in document.read_text()
    for name in ("figure.png", "slices.png"):
        copied = document.parent / "results" / name
        assert copied.read_bytes() == (run.folder("ablate") / name).read_bytes()


def test_a_failed_stage_ends_it_without_a_document(calls, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_all", lambda *args, **given: 7)
    assert reproduce(BENCHMARK, finished, "smoke", tmp_path / "results.md") == 7
    assert not list(tmp_path.iterdir())


def test_lobes_and_real_scans_are_measured_with_the_exported_model(calls, finished, tmp_path, monkeypatch):
    asked = []

    def compare(name, file):
        def measured(segmenter, data, out, **given):
            asked.append((name, segmenter.model.description.files["lesion.safetensors"], data))
            out.mkdir(exist_ok=True)
            (out / file).write_text(f"table of {name}\n")

        return measured

    monkeypatch.setattr(module, "compare_lobes", compare("lobes", "summary.md"))
    monkeypatch.setattr(module, "compare_presence", compare("real", "presence.md"))
    monkeypatch.setattr(module, "real_scans", lambda directory: [])
    monkeypatch.setattr(module, "require_settings", lambda config, **given: asked.append(("checked", given)))
    monkeypatch.setattr(module, "cases_to_measure_on", lambda data, split: asked.append((split, data)))
    document = tmp_path / "results.md"
    real, lobes = tmp_path / "real", tmp_path / "lobes"
    run = replace(finished, directory=_linked(finished.directory, tmp_path / "run"))
    assert reproduce(BENCHMARK, run, "smoke", document, real=real, lobe_data=lobes) == 0
    digest = finished.record("export")["results"]["files"]["lesion.safetensors"]
    checked = [("checked", {"with_comparison": True, "lobe_data": lobes}), ("test", lobes)]
    assert asked == [*checked, ("lobes", digest, lobes), ("real", digest, real)]
    assert "table of lobes" in document.read_text() and "table of real" in document.read_text()


def _linked(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    return target


def test_bad_input_is_refused_before_any_work(calls, finished, tmp_path):
    with pytest.raises(InputError, match="got 1 training cases, 1 of them healthy: expected more"):
        reproduce(replace(BENCHMARK, train=1), finished, "smoke", tmp_path / "results.md")
    with pytest.raises(InputError, match=r"no folder with ct\.mha"):
        reproduce(BENCHMARK, finished, "smoke", tmp_path / "results.md", real=tmp_path)
    with pytest.raises(InputError, match="cases.csv"):
        reproduce(BENCHMARK, finished, "smoke", tmp_path / "results.md", lobe_data=tmp_path)
    assert not calls
