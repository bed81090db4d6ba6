"""From a run folder to the report, and what is refused."""

import json
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

from torchrec_xd.cli.app import app
from torchrec_xd.config import load_run
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.scores import ScoreMetrics
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.training import diagnosis
from torchrec_xd.training.diagnosis import diagnose


def test_the_first_stage_from_folder_to_files(runs, tmp_path):
    content = diagnose(runs / "mem", tmp_path / "new" / "out", batches=2)
    assert content == json.loads((tmp_path / "new" / "out" / "diagnostics.json").read_text())
    assert list(content["diagnostics"]) == [
        *("scores", "gradients", "feature_worth", "knowledge", "overfitting", "feature_scores", "tables")
    ]
    assert set(content["left_out"]) == {"gates"}
    assert content["batches"] == 2
    assert sum(content["rows"].values()) == 256
    curve = content["diagnostics"]["knowledge"]["over_time"]
    logged = [json.loads(line) for line in (runs / "mem" / "metrics.jsonl").read_text().splitlines()]
    for domain in ("items", "video", "post"):
        steps = [m for m in logged if f"cosine/{domain}" in m]
        assert curve[domain] == [{"step": m["step"], "cosine": m[f"cosine/{domain}"]} for m in steps]
        assert len(steps) > 1
    page = (tmp_path / "new" / "out" / "diagnostics.html").read_text()
    for said in content["diagnostics"].values():
        assert said["reading"].replace("'", "&#x27;") in page
    assert 'src="http' not in page
    assert content == diagnose(runs / "mem", tmp_path, batches=2)  # the same rows again


def test_noise_is_marked_where_the_manifest_names_it(runs, feed, tmp_path):
    manifest = tmp_path / "manifest.json"
    schema = Schema.model_validate({**feed, "root": str(tmp_path)})
    assert diagnosis.noise_features(schema) is None
    manifest.write_text(json.dumps({"noise_features": []}))
    assert diagnosis.noise_features(schema) is None
    manifest.write_text(json.dumps({"noise_features": ["words"]}))
    assert diagnosis.noise_features(schema) == {"words"}


def test_the_command_on_the_second_stage(runs, tmp_path):
    done = CliRunner().invoke(app, ["diagnose", str(runs / "tem"), "--out", str(tmp_path), "--batches", "1"])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "diagnostics.json").read_text())
    assert list(content["diagnostics"]) == ["scores", "feature_scores", "gates", "tables"]  # HFA: the frozen teacher's
    assert list(content["diagnostics"]["feature_scores"]["domains"]) == ["post"]
    assert "left out: gradients: the run reads one domain, 'post'" in done.output


def test_findings_come_first_on_the_screen_on_the_page_and_in_the_file(runs, tmp_path, monkeypatch):
    def diagnosed():
        done = CliRunner().invoke(app, ["diagnose", str(runs / "single"), "--out", str(tmp_path), "--batches", "1"])
        assert done.exit_code == 0, done.output
        return done.output, (tmp_path / "diagnostics.html").read_text()

    planted = Finding("planted", "post: 0.3 < 0.5, as half is wanted", "more of it")
    monkeypatch.setattr(ScoreMetrics, "findings", lambda self, values: [planted] * ("post" in str(values)))
    screen, page = diagnosed()
    assert screen.startswith("planted: post: 0.3 < 0.5, as half is wanted. Try: more of it")
    assert page.index("planted: post: 0.3 &lt; 0.5") < page.index("How to read it")
    content = json.loads((tmp_path / "diagnostics.json").read_text())
    assert content["findings"] == [
        {"name": "planted", "text": "post: 0.3 < 0.5, as half is wanted", "remedy": "more of it"}
    ]
    monkeypatch.setattr(ScoreMetrics, "findings", lambda self, values: [])
    screen, page = diagnosed()
    assert screen.startswith("None of the faults that have a name was found.")
    assert "None of the faults that have a name was found." in page


def test_what_compares_with_training_sees_rows_of_that_split_too(runs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ScoreMetrics, "reads_training", True)
    monkeypatch.setattr(ScoreMetrics, "update_training", lambda self, batch, output: seen.append(len(batch)))
    diagnose(runs / "single", tmp_path, "test", batches=2)
    assert seen == [80, 80]
    diagnose(runs / "single", tmp_path, "train", batches=2)
    assert seen == [80, 80]  # nothing to compare with


def test_a_model_without_anything_to_diagnose_still_says_what_its_tables_touch(runs, tmp_path):
    content = diagnose(runs / "single", tmp_path, "valid")
    assert list(content["diagnostics"]) == ["scores", "tables"]
    assert set(content["left_out"]) == {"gradients", "feature_scores", "gates"}
    assert content["rows"] == {"post": 80}


def test_a_split_of_one_domain_has_no_gradients_to_compare(runs, tmp_path, monkeypatch):
    config = load_run(runs / "mem")
    domains = {
        n: d.model_copy(update={"test": d.test if n == "post" else None})
        for n, d in config.schema_in_use.domains.items()
    }
    data = config.data_schema.model_copy(update={"domains": domains})
    monkeypatch.setattr(diagnosis, "load_run", lambda _: config.model_copy(update={"data_schema": data}))
    content = diagnose(runs / "mem", tmp_path)
    assert content["rows"] == {"items": 0, "video": 0, "post": 160}
    assert content["left_out"]["gradients"] == "the test split has rows of 'post' alone; try another --split"
    assert list(content["diagnostics"]["feature_scores"]["domains"]) == ["post"]


def test_misuse(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is no run folder"):
        diagnose(tmp_path, out)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_bytes((runs / "mem" / "config.yaml").read_bytes())
    with pytest.raises(UserError, match="has no checkpoint yet; train it first"):
        diagnose(tmp_path / "begun", out)
    with pytest.raises(UserError, match="--batches 0: has to be at least 1"):
        diagnose(runs / "mem", out, batches=0)
    with process_group() as processes:
        two = Processes(0, 2, 2, processes.device, processes.group, 1)
    monkeypatch.setattr(diagnosis, "process_group", lambda *_: nullcontext(two))
    with pytest.raises(UserError, match="in one process; run it without torchrun"):
        diagnose(runs / "mem", out)
    assert not out.exists()
