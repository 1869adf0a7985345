import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from algorithm.errors import InputError
from algorithm.model import LOBE_WEIGHTS, load_model
from algorithm.segmenter import LesionSegmenter
from training.borders import MARGIN_BORDERS, PROBABILITY_BORDERS
from training.cases import of_split, read_cases, read_scan
from training.files import write_json
from training.run import STAGES, SUBTYPES, in_own_process, run_all
from training.settings import CrfSettings, TrainingConfig
from training.stages import Run, execute

ROOT = Path(__file__).parents[2]
ALL_BUT_EXPORT = [stage.name for stage in STAGES[:-1]]


def test_the_exported_model_segments_a_scan(finished):
    directory = finished.folder("export") / "model"
    scan = read_scan(of_split(read_cases(finished.data), "test")[0])
    result = LesionSegmenter.from_directory(directory, device="cpu").segment(scan.ct, scan.lobes)
    assert result.labels.array.shape == scan.ct.array.shape
    assert result.report.model.weights_sha256 == load_model(directory).description.files["lesion.safetensors"]


def test_the_model_says_lesion_where_validation_scores_agree_best(finished):
    """Chosen when the network is finished, of each of the two networks for itself, and taken over by the export."""
    borders = {stage: finished.record(stage)["results"]["lesion_margin"] for stage in ("segment", "segment-reference")}
    assert set(borders.values()) <= set(MARGIN_BORDERS)
    assert load_model(finished.folder("export") / "model").description.lesion_margin == borders["segment"]
    assert finished.record("pseudo")["results"]["threshold"] in PROBABILITY_BORDERS


def test_the_tarball_lands_directly_in_the_model_directory(finished):
    with tarfile.open(finished.folder("export") / "model.tar.gz") as tar:
        assert sorted(tar.getnames()) == [
            "lesion.safetensors",
            "lobes.safetensors",
            "model.json",
            "subtypes.csv",
        ]


def test_the_model_holds_the_lobe_networks_and_how_it_was_trained(finished):
    model = load_model(finished.folder("export") / "model")
    for stage, network in (("lobes", model.lobe_networks.chest), ("fissures", model.lobe_networks.fissures)):
        trained = torch.load(finished.folder(stage) / "best.pt")["network"]
        assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())
    assert model.description.lobe_network.spacing_mm == 8.0
    about = model.description.training["lobes"]
    assert about["results"]["training_cases"] == 3
    assert about["data_sha256"] == finished.record("lobes")["data_sha256"]
    assert model.description.training["fissures"]["settings"]["steps"] == finished.config.fissures.steps
    assert model.description.training["fissures"]["results"] == finished.record("fissures")["results"]


def _link(finished, directory, stages):
    """Let another run directory have the results of some stages."""
    directory.mkdir(exist_ok=True)
    for stage in stages:
        (directory / stage).symlink_to(finished.directory / stage)


def test_the_lobe_network_is_described_as_it_was_trained_not_as_it_would_be_now(finished, tiny_config, tmp_path):
    _link(finished, tmp_path, ALL_BUT_EXPORT)
    now = changed(tiny_config, "lobes", spacing_mm=5.0, width=2)
    execute(replace(finished, directory=tmp_path, config=now), STAGES[-1])
    description = load_model(tmp_path / "export" / "model").description
    assert description.lobe_network.spacing_mm == 8.0 and description.lobe_network.width == 1


def test_a_better_sentence_on_the_lobes_data_costs_an_export_and_no_training(finished, tiny_config, tmp_path):
    _link(finished, tmp_path, ALL_BUT_EXPORT)
    now = changed(tiny_config, "export", lobe_data="chests of two hospitals")
    execute(replace(finished, directory=tmp_path, config=now), STAGES[-1])
    description = load_model(tmp_path / "export" / "model").description
    assert description.training["lobes"]["data"] == "chests of two hospitals"


def test_the_model_does_not_say_where_the_training_of_its_lobe_network_began(finished, tmp_path):
    _link(finished, tmp_path, [name for name in ALL_BUT_EXPORT if name not in ("lobes", "fissures")])
    shutil.copytree(finished.directory / "lobes", tmp_path / "lobes")
    record = finished.record("lobes")
    record["settings"]["lobes"]["start_from"] = "/a/place/of/this/machine"
    write_json(tmp_path / "lobes" / "done.json", record)
    execute(replace(finished, directory=tmp_path), STAGES[-1])
    description = load_model(tmp_path / "export" / "model").description
    assert description.training["lobes"]["settings"]["steps"] == finished.config.lobes.steps
    assert "/a/place" not in description.model_dump_json()


def _without_lobes(finished, directory, config):
    """The finished run, but for its lobe network and what was exported."""
    _link(finished, directory, [name for name in ALL_BUT_EXPORT if name not in ("lobes", "fissures")])
    return replace(finished, directory=directory, config=config)


def test_without_lobes_the_model_has_no_lobe_network(finished, tmp_path):
    run = _without_lobes(finished, tmp_path, finished.config)
    (tmp_path / "export" / "model").mkdir(parents=True)
    (tmp_path / "export" / "model" / LOBE_WEIGHTS).write_bytes(b"of an earlier export")
    execute(run, STAGES[-1])
    assert not (tmp_path / "export" / "model" / LOBE_WEIGHTS).exists()
    model = load_model(run.folder("export") / "model")
    assert model.lobe_networks is None and "lobes" not in model.description.training


def test_the_lobe_network_of_another_model_is_taken_over(finished, tiny_config, tmp_path):
    other = finished.folder("export") / "model"
    run = _without_lobes(finished, tmp_path, changed(tiny_config, "export", lobes_from=other))
    execute(run, STAGES[-1])
    theirs, ours = load_model(other), load_model(run.folder("export") / "model")
    assert ours.description.lobe_network == theirs.description.lobe_network
    for stage in ("lobes", "fissures"):
        assert ours.description.training[stage] == theirs.description.training[stage]
    assert str(tmp_path.parent) not in ours.description.model_dump_json()
    weights = ours.lobe_networks.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in theirs.lobe_networks.state_dict().items())


def test_without_fissures_the_lobe_network_looks_again_itself(finished, tmp_path):
    _link(finished, tmp_path, [name for name in ALL_BUT_EXPORT if name != "fissures"])
    run = replace(finished, directory=tmp_path)
    execute(run, STAGES[-1])
    model = load_model(run.folder("export") / "model")
    assert model.lobe_networks.fissures is None and model.description.lobe_network.fissure_width is None
    assert "fissures" not in model.description.training


def test_fissures_learnt_of_another_lobe_network_are_not_exported(finished, tmp_path):
    _link(finished, tmp_path, [name for name in ALL_BUT_EXPORT if name != "lobes"])
    shutil.copytree(finished.directory / "lobes", tmp_path / "lobes")
    record = finished.record("lobes")
    write_json(tmp_path / "lobes" / "done.json", record | {"seed": record["seed"] + 1})
    run = replace(finished, directory=tmp_path)
    execute(run, STAGES[-1])
    assert load_model(run.folder("export") / "model").lobe_networks.fissures is None


def test_a_model_without_a_lobe_network_has_none_to_take_over(finished, tiny_config, tmp_path):
    first = _without_lobes(finished, tmp_path / "first", tiny_config)
    execute(first, STAGES[-1])
    config = changed(tiny_config, "export", lobes_from=first.folder("export") / "model")
    with pytest.raises(InputError, match=r"lobes_from: .* has no lobe network"):
        execute(_without_lobes(finished, tmp_path / "second", config), STAGES[-1])
    third = replace(finished, directory=tmp_path / "third", config=config)
    with pytest.raises(InputError, match=r"lobes_from: .* has no lobe network"):
        run_all(third, "smoke", with_comparison=False)
    assert not third.directory.exists()


def test_another_lobe_network_under_the_same_name_is_noticed(finished, tiny_config, tmp_path):
    other = shutil.copytree(finished.folder("export") / "model", tmp_path / "other")
    run = _without_lobes(finished, tmp_path / "run", changed(tiny_config, "export", lobes_from=other))
    execute(run, STAGES[-1])
    (other / LOBE_WEIGHTS).write_bytes(b"changed")
    with pytest.raises(InputError, match=r"export: begun with other settings; .*lobe_weights: then"):
        execute(run, STAGES[-1])


def test_model_json_says_what_it_was_trained_on(finished):
    description = json.loads((finished.folder("export") / "model" / "model.json").read_text())
    assert description["training"]["cases"] == {"train": 3, "validation": 1, "test": 1}
    assert description["training"]["settings"]["regress"]["steps"] == 6
    assert description["training"]["environment"] == finished.record("segment")["environment"]
    earlier = ("prepare", "vessels", "regress", "pseudo", "segment", "subtypes")
    commits = {stage: finished.record(stage)["environment"]["commit"] for stage in earlier}
    assert description["training"]["commits"] == commits
    assert "Not a medical device" in description["intended_use"]
    assert [row["row"] for row in description["results"]["rows"]][-1] == "supervised"


def changed(config, stage, **values):
    return config.model_copy(update={stage: getattr(config, stage).model_copy(update=values)})


def exported_results(run):
    execute(run, STAGES[-1])
    return json.loads((run.folder("export") / "model" / "model.json").read_text())["results"]


def test_model_json_has_the_results_of_this_very_network_as_soon_as_there_are_any(finished, tmp_path):
    _link(finished, tmp_path, ("prepare", "vessels", "regress", "pseudo", "segment-reference", "cam", "subtypes"))
    for stage in ("segment", "ablate", "export"):
        shutil.copytree(finished.directory / stage, tmp_path / stage)
    run = replace(finished, directory=tmp_path)
    expected = exported_results(run)
    assert expected["test_cases"] == 1

    compared = tmp_path / "ablate" / "done.json"
    kept = compared.rename(tmp_path / "kept.json")
    assert exported_results(run) == {}
    kept.rename(compared)
    assert exported_results(run) == expected

    trained = tmp_path / "segment" / "done.json"
    trained.write_text(json.dumps(json.loads(trained.read_text()) | {"results": {"scans": 7, "lesion_margin": 0.0}}))
    shutil.rmtree(tmp_path / "export")
    assert exported_results(run) == {}


def test_the_exported_model_votes_by_the_rules_of_the_run(finished, tmp_path):
    _link(finished, tmp_path, [name for name in ALL_BUT_EXPORT if name != "subtypes"])
    run = replace(finished, directory=tmp_path, config=changed(finished.config, "subtypes", shortlist=7, voters=3))
    for stage in (SUBTYPES, STAGES[-1]):
        execute(run, stage)
    description = load_model(run.folder("export") / "model").description
    assert (description.subtype_vote.shortlist, description.subtype_vote.voters) == (7, 3)
    assert description.results == {}  # which were found by other rules


def test_nothing_is_exported_with_the_settings_of_another_run(finished, tiny_config):
    other = changed(tiny_config, "prepare", scan_spacing_mm=4.0)
    with pytest.raises(InputError, match=r"prepare: begun with other settings; .*scan_spacing_mm: then 5\.0, now 4\.0"):
        execute(replace(finished, config=other), STAGES[-1])


def test_what_all_stages_would_lack_is_told_before_the_first(phantoms, tiny_config, tmp_path, monkeypatch):
    table = pd.read_csv(phantoms / "cases.csv")
    table[["ct", "lobes"]] = str(phantoms) + "/" + table[["ct", "lobes"]]
    table[["lesions", "vessels"]] = None
    table.to_csv(tmp_path / "cases.csv", index=False)
    run = Run(tmp_path, tmp_path / "run", tiny_config, device="cpu")
    with pytest.raises(InputError, match=r"cases\.csv: no validation case with reference lesions of known subtype"):
        run_all(run, "smoke", with_comparison=False)
    with pytest.raises(InputError, match=r"cases\.csv: 3 problems\n  no validation case .*\n.*\n  no test case"):
        run_all(run, "smoke", with_comparison=True)
    refinement = tiny_config.regress.refinement.model_copy(update={"weight": 0.0})
    without = changed(tiny_config, "regress", refinement=refinement)
    with pytest.raises(InputError, match=r"refinement\.weight is 0"):
        run_all(Run(phantoms, tmp_path / "run", without, device="cpu"), "smoke", with_comparison=True)
    for stage in ("lobes", "fissures"):
        lost = changed(tiny_config, stage, start_from=tmp_path / "no-such-model")
        with pytest.raises(InputError, match="no-such-model"):
            run_all(replace(run, data=phantoms, config=lost), "smoke", with_comparison=False, lobe_data=phantoms)
    crf = changed(tiny_config, "regress", crf=CrfSettings(engine="pydensecrf2"))
    monkeypatch.setattr("training.crf.find_spec", lambda name: None)
    with pytest.raises(InputError, match="the engine pydensecrf2 is not installed"):
        run_all(Run(phantoms, tmp_path / "run", crf, device="cpu"), "smoke", with_comparison=False)
    assert not (tmp_path / "run").exists()


def test_lobes_are_learnt_from_the_data_that_is_named_for_them_and_else_not(finished, monkeypatch, tmp_path):
    commands = []

    def record(command):
        commands.append(command[3:])
        return 0

    monkeypatch.setattr("training.run.in_own_process", record)
    lobe_data = shutil.copytree(finished.data, tmp_path / "lobe-data", symlinks=True)
    assert run_all(finished, "smoke", with_comparison=False) == 0
    assert [command[0] for command in commands] == [
        "prepare", "subtypes", "vessels", "regress", "pseudo", "segment", "export",
    ]  # fmt: skip
    commands.clear()
    assert run_all(finished, "smoke", with_comparison=False, lobe_data=lobe_data) == 0
    data = {command[0]: command[command.index("--data") + 1] for command in commands}
    assert list(data)[-3:] == ["lobes", "fissures", "export"]
    assert {data.pop("lobes"), data.pop("fissures")} == {str(lobe_data)}
    assert set(data.values()) == {str(finished.data)}
    commands.clear()
    with pytest.raises(InputError, match="no-such"):
        run_all(finished, "smoke", with_comparison=True, lobe_data=tmp_path / "no-such")
    assert not commands


def test_the_comparison_does_not_depend_on_lobes_and_on_what_is_said_of_the_model(finished, tiny_config, capsys):
    other = changed(changed(tiny_config, "lobes", width=2), "export", name="another")
    execute(replace(finished, config=other), next(stage for stage in STAGES if stage.name == "ablate"))
    assert "ablate: done already" in capsys.readouterr().out


def test_subtypes_of_other_images_are_not_mixed_in(finished, tmp_path):
    """A mask that was put in another's place is noticed as soon as `prepare` looks at it again."""
    for stage in ("prepare", "subtypes"):
        shutil.copytree(finished.directory / stage, tmp_path / stage)
    record = json.loads((tmp_path / "prepare" / "done.json").read_text())
    first = next(iter(record["results"]["images_sha256"]))
    record["results"]["images_sha256"][first] = "another"
    (tmp_path / "prepare" / "done.json").write_text(json.dumps(record))
    subtypes = next(stage for stage in STAGES if stage.name == "subtypes")
    with pytest.raises(InputError, match="subtypes: begun with other earlier_stages_sha256"):
        execute(replace(finished, directory=tmp_path), subtypes)


def test_comparison_has_a_value_per_row_and_scan(finished):
    per_scan = pd.read_csv(finished.folder("ablate") / "per_scan.csv")
    assert len(per_scan) == 10 and per_scan["iou"].between(0, 1).all()
    otsu = per_scan[per_scan["row"].str.startswith("threshold")]
    assert (otsu["iou"] > 0).all()  # bright voxels are partly lesion: the row measures something


def test_a_finished_stage_is_not_done_again(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    for stage in STAGES:
        execute(finished, stage)
    after = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == set()
    assert capsys.readouterr().out.count("done already") == len(STAGES)


def test_other_settings_do_not_mix_with_what_is_there(finished, tiny_config):
    changed = TrainingConfig.model_validate(
        tiny_config.model_dump() | {"regress": tiny_config.regress.model_dump() | {"steps": 7}}
    )
    run = Run(finished.data, finished.directory, changed, device="cpu")
    with pytest.raises(
        InputError, match="regress: begun with other settings; use the same ones, another run directory"
    ):
        execute(run, next(stage for stage in STAGES if stage.name == "regress"))


def test_stages_ask_for_what_they_need(phantoms, tiny_config, tmp_path):
    run = Run(phantoms, tmp_path, tiny_config, device="cpu")
    with pytest.raises(InputError, match="stage prepare is not done; run `python -m training prepare` first"):
        execute(run, next(stage for stage in STAGES if stage.name == "regress"))


def test_reference_components_are_of_every_subtype_in_the_data(finished):
    table = pd.read_csv(finished.folder("subtypes") / "subtypes.csv")
    assert list(table.columns) == ["volume_ml", "mean_hu", "sd_hu", "subtype"]
    assert (table["volume_ml"] >= 0.05).all() and table["subtype"].isin([1, 2, 3]).all()


def test_the_exit_code_of_a_stage_is_that_of_the_run():
    assert [in_own_process([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (0, 2)] == [0, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let children live")
def test_a_stage_does_not_outlive_the_run():
    """The pipe ends when all who can write to it have ended."""
    stage = "import time; print('at work', flush=True); time.sleep(300)"
    script = f"import sys; from training.run import in_own_process; in_own_process([sys.executable, '-c', {stage!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None and run.stdout.readline() == "at work\n"
        os.kill(run.pid, signal.SIGKILL)
        rest, _ = run.communicate(timeout=100)
    assert rest == "" and run.returncode == -signal.SIGKILL
