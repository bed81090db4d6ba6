"""The folder of a planted world: complete, the same whatever the threads, readable, with the truth in its manifest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.support.worlds import SMALL, feed, numpy_column
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.datasets import PRESETS, Manifest, prepare_world
from torchrec_xd.datasets.planted.feed import FeedWorld
from torchrec_xd.datasets.planted.writing import oracle_metrics
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.models.exit import build_exit
from torchrec_xd.models.exit_settings import ExitSettings, SourceSettings
from torchrec_xd.models.minet import MiNetSettings, build_minet
from torchrec_xd.models.mkt import PretrainSettings, build_pretrain

TRUTH = {"wanted": "prob_wanted", "fit": "prob_transfer", "click": "prob"}


def make(out, preset="helps", **settings):
    lines: list[str] = []
    return prepare_world(preset, out, {**SMALL, **settings}, lines.append), lines


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.kind in ("feed", "homepage")])
def test_every_preset_is_written_and_read(tmp_path, preset):
    out = tmp_path / "world"
    manifest, _lines = make(out, preset)
    assert Manifest.model_validate_json((out / "manifest.json").read_text()) == manifest
    assert manifest.notes == (PRESETS[preset].premise,)
    assert "planted" in manifest.provenance
    settings = manifest.identity.settings
    assert settings == settings | PRESETS[preset].settings | SMALL
    schema = load_schema(out / "schema.yaml")
    assert schema.name == f"world_{preset}"
    assert schema.targets() == ("target",)
    assert manifest.cardinalities == {table.name.removeprefix("t_"): table.rows for table in schema.tables()}
    assert set(manifest.noise_features) <= {feature.column for feature in schema.features}
    for split in ("train", "valid", "test"):
        loader = Loader(schema, LoaderSettings(batch_size=64), split, ShardSpec(), labels=True, extra=("activity",))
        written = [manifest.domains[domain][split].rows for domain in schema.domains]
        assert loader.rows == sum(written)
        assert sum(len(batch) for batch in loader.batches()) == sum(written)
    for domain, splits in manifest.domains.items():
        for split, found in splits.items():
            labels = pq.read_table(out / domain / split)["click"].to_numpy()
            assert (found.rows, found.positives) == (len(labels), labels.sum())
            assert found.files == {f"{domain}/{split}/part-00000.parquet": len(labels)}
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_sizes_are_the_settings(tmp_path):
    manifest, lines = make(tmp_path / "out", domains=3, source_ratio=4.0, row_group_rows=100, row_groups_per_file=2)
    rows = {domain: [split.rows for split in splits.values()] for domain, splits in manifest.domains.items()}
    assert rows == {"target": [250, 120, 900], "source": [500, 120, 120], "source_2": [500, 120, 120]}
    assert list(manifest.domains["target"]["train"].files.values()) == [200, 50]
    parquet = pq.ParquetFile(tmp_path / "out" / "source_2" / "train" / "part-00001.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [100, 100]
    assert len(lines) == 2 + 1 + 5 + 2 * (3 + 1 + 1)


@pytest.mark.parametrize("preset", ["helps", "homepage"])
def test_threads_change_no_byte_and_the_seed_changes_all(tmp_path, preset):
    parts = {"row_group_rows": 60, "row_groups_per_file": 2}
    for workers in (1, 2, 5):
        make(tmp_path / f"by_{workers}", preset, workers=workers, **parts)
    alone = contents(tmp_path / "by_1")
    assert len(alone) > 10
    assert contents(tmp_path / "by_2") == contents(tmp_path / "by_5") == alone
    make(tmp_path / "other", preset, seed=1, **parts)
    other = contents(tmp_path / "other")
    assert other.keys() == alone.keys()
    assert not any(other[path] == content for path, content in alone.items())


def test_chunks_differ_and_a_larger_world_parent_the_smaller_one(tmp_path):
    make(tmp_path / "small", row_group_rows=100, target_rows=200)
    make(tmp_path / "large", row_group_rows=100, target_rows=250)
    small, large = (pq.ParquetFile(tmp_path / x / "target/train/part-00000.parquet") for x in ("small", "large"))
    first, second = small.read_row_group(0), small.read_row_group(1)
    assert large.read_row_group(0) == first
    assert large.read_row_group(1) == second
    assert first != second


@pytest.mark.parametrize("preset", ["many_domains", "homepage"])
def test_the_oracle_is_what_the_true_probabilities_reach_on_the_test_rows(tmp_path, preset):
    manifest, _lines = make(tmp_path / "out", preset, row_group_rows=256, row_groups_per_file=1)
    schema = load_schema(tmp_path / "out" / "schema.yaml")
    assert list(manifest.oracle) == [task.name for task in schema.tasks]
    for task in schema.tasks:
        table = pq.read_table(tmp_path / "out" / task.domain / "test")
        label, user = numpy_column(table, task.label), numpy_column(table, "user_id")
        prob = numpy_column(table, TRUTH[task.label]).astype(np.float64)
        users = [user == u for u in np.unique(user) if 0 < label[user == u].mean() < 1]
        gauc = sum(own.sum() * roc_auc_score(label[own], prob[own]) for own in users) / sum(own.sum() for own in users)
        assert manifest.oracle[task.name] == pytest.approx(
            {"auc": roc_auc_score(label, prob), "gauc": gauc, "logloss": log_loss(label, prob)}, abs=1e-9
        )


def test_an_oracle_of_one_class_has_log_loss_alone():
    found = oracle_metrics(np.array([0.5, 0.25]), np.array([1, 1]), np.array([0, 0]))
    assert found == pytest.approx({"logloss": 1.5 * np.log(2)})


def test_the_same_again_is_reused_wherever_it_is_asked_for_from(tmp_path, monkeypatch):
    first, _lines = make(tmp_path / "world", workers=1)
    before = contents(tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchrec_xd.datasets.planted.worlds.write_world", None)
    again, lines = make(Path("world"), workers=2)
    assert again == first
    assert contents(tmp_path / "world") == before
    assert "reused" in lines[0]
    assert load_schema(Path("world/schema.yaml")).root == "world"


def test_other_settings_make_it_anew_and_a_failure_leaves_it(tmp_path, monkeypatch):
    make(tmp_path / "out")
    make(tmp_path / "out", agreement=0.0)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(FeedWorld, "columns", lambda *_args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="did not make it"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("help", {}, "unknown preset 'help'; there are: helps, useless, hurts, little_overlap, many_domains"),
        ("helps", {"agreement": 1.5}, "preset 'helps': 'agreement': .*less than or equal to 1"),
        ("helps", {"scene_dependence": 0.5}, "unknown key 'scene_dependence'"),
        ("homepage", {"overlap": 0.5}, "unknown key 'overlap'"),
        ("helps", {"domains": 9}, "'domains': .*less than or equal to 8"),
    ],
)
def test_misuse_is_told(tmp_path, preset, settings, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "out", preset, **settings)
    assert not any(tmp_path.iterdir())


def test_the_command(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "torchrec_xd.cli", "prepare", *arguments]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "300"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)

    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    assert run("world", "--preset", "homepage_flat", *settings).returncode == 0
    assert load_schema(tmp_path / "data/world_homepage_flat/schema.yaml").root == "data/world_homepage_flat"
    for arguments in (["world"], ["cj_feed", "--preset", "helps"]):
        wrong = run(*arguments)
        assert wrong.returncode == 2
        assert "prepare world --preset NAME, one of: helps, useless" in wrong.stderr


def test_models_can_be_built_on_the_schemas(tmp_path):
    make(tmp_path / "feed", "many_domains")
    schema, tables = load_schema(tmp_path / "feed" / "schema.yaml"), EmbeddingSettings()
    build_pretrain(schema, PretrainSettings(expert_widths=(8,)), tables, 0)
    build_minet(schema, MiNetSettings(sequences={d: (f"hist_{d}",) for d in schema.domains}, widths=(8,)), tables, 0)
    make(tmp_path / "homepage", "homepage", domains=3)
    schema = load_schema(tmp_path / "homepage" / "schema.yaml")
    sources = {
        f"source{end}": SourceSettings(wanted=f"wanted{end}@target", fit=f"fit{end}@target", own=f"click@source{end}")
        for end in ("", "_2")
    }
    build_exit(schema, ExitSettings(target="click@target", sources=sources, widths=(8,)), tables, 0)


def test_the_last_of_a_billion_rows_needs_none_of_the_others():
    world = feed(users=200, items=50, target_rows=10**9, row_group_rows=1_000)
    assert len(world.columns(0, "train", 999_999, 1_000)["click"]) == 1_000
