"""What is said of the data before the first step, in real runs."""

import html
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training.checks import refuse_long_outages
from torchrec_xd.training.inference import evaluate
from torchrec_xd.training.train_run import train


def change(folder: Path, column: str, values, split: str = "train", domain: str = "post") -> None:
    """Other values in a column, row by row or one for all; a new column where there is none."""
    path = folder / "feed" / domain / f"{split}.parquet"
    table = pq.read_table(path)
    if not isinstance(values, pa.Array):
        values = pa.array([values] * len(table) if np.ndim(values) == 0 else list(values)[: len(table)])
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, values)
    else:
        table = table.append_column(column, values)
    pq.write_table(table, path)


def config_of(folder: Path, scale=None, **content) -> RunConfig:
    schema = schema_at(folder / "feed")
    schema["features"] = [{**f, **(scale or {})} if f["column"] == "words" else f for f in schema["features"]]
    schema.update(content.pop("schema", {}))
    return validate(
        RunConfig,
        {
            "schema": schema,
            "model": {"name": "single", "widths": [4]},
            "domains": ["post"],
            "loader": {"batch_size": 32},
            "trainer": {"threads": 1, "epochs": 17},
            **content,
        },
        "test",
    )


@pytest.fixture
def place(tmp_path):
    write_feed(tmp_path / "feed", rows=96)
    return tmp_path


def warned(place, config) -> list[str]:
    """The warnings of a run: before its first step, the same in its metrics."""
    train(config, place / "run")
    said = (place / "run" / "log.txt").read_text().splitlines()
    found = [line.partition("warning: ")[2] for line in said if "warning: " in line]
    assert json.loads((place / "run" / "metrics.json").read_text())["warnings"] == found
    return found


def test_ordinary_data_are_not_doubted(place):
    assert warned(place, config_of(place)) == []


def test_too_few_steps_are_told(place):
    assert warned(place, config_of(place, trainer={"threads": 1, "epochs": 16})) == [
        "training takes 48 steps in all (16 x 3), too few for most nets: lower loader.batch_size (32) or raise "
        "trainer.epochs"
    ]


@pytest.mark.parametrize(
    ("values", "said", "remedy"),
    [
        (np.linspace(1950, 2010, 96), "reaches 2010, ", {"mean": 1980.0, "std": 15}),
        (np.linspace(-400, 400, 96), "reaches 400, ", {"mean": 0.0, "std": 200}),
        (np.geomspace(1, 90_000, 96), "reaches 9e+04, ", {"log1p": True, "mean": 6.1, "std": 2.7}),
    ],
)
def test_a_dense_feature_of_a_large_scale_is_told_with_its_remedy(place, values, said, remedy):
    change(place, "words", values)
    (line,) = warned(place, config_of(place))
    assert line.startswith(f"dense feature 'words' {said}and models need numbers near 1; give it ")
    text = ", ".join(f"{key}: {'true' if value is True else f'{value:.15g}'}" for key, value in remedy.items())
    assert f"give it {text} in the schema (guessed from its range, " in line
    train(config_of(place, remedy), place / "scaled")
    assert "warning" not in (place / "scaled" / "log.txt").read_text()


def test_epoch_seconds_are_refused_and_their_remedy_trains(place):
    change(place, "words", 1_700_000_000 + 86_400 * np.arange(96))
    with pytest.raises(UserError) as error:
        train(config_of(place), place / "run")
    assert str(error.value) == (
        "dense feature 'words' reaches 1.708e+09, and models need numbers near 1; give it mean: 1704100000, std: "
        "2.1e+06 in the schema (guessed from its range, 1700000000 to 1708208000; better: from all training rows), or "
        "make it an id in buckets. Where all numbers lie beyond 100,000, nothing is learnt"
    )
    assert not (place / "run").exists()
    assert warned(place, config_of(place, {"mean": 1_704_100_000, "std": 2.1e6})) == []


def test_an_outlier_is_told_and_not_refused(place):
    change(place, "words", np.where(np.arange(96) == 7, 1e9, 1.0))
    assert [line[:35] for line in warned(place, config_of(place))] == ["dense feature 'words' reaches 1e+09"]


def test_settings_that_do_not_help_are_named(place):
    change(place, "words", np.linspace(0, 9000, 96))
    (line,) = warned(place, config_of(place, {"std": 10}))
    evaluate(place / "run", page=place / "page.html")
    assert f"Warning of the training: {html.escape(line)}." in (place / "page.html").read_text()
    assert "reaches 900, as its settings in the schema leave it, and models need" in line


def test_features_that_teach_nothing(place):
    change(place, "words", 3.5)
    change(place, "style", pa.nulls(96, pa.int64()))
    assert warned(place, config_of(place)) == [
        "feature 'style' is null in all 96 training rows: it teaches nothing",
        "dense feature 'words' is 3.5 in all training rows: it teaches nothing",
    ]


def test_labels_of_one_class_in_every_task_are_refused(place):
    change(place, "click", 0)
    with pytest.raises(
        UserError, match=r"every task are of one class \(click@post: negative\): there is nothing to le"
    ):
        train(config_of(place), place / "run")
    assert not (place / "run").exists()


def test_labels_of_one_class_in_some_tasks_and_splits_are_told(place):
    change(place, "click", True, domain="items")
    change(place, "click", 0, split="valid")
    joint = {"model": {"name": "shared_bottom", "widths": [4], "tower_widths": [4], "aligned_dim": 4}, "domains": None}
    assert warned(place, config_of(place, **joint)) == [
        "task click@items: all training rows are positive: there is nothing to tell apart",
        "task click@post: all rows of the valid split are negative: AUC cannot be measured",
    ]


def test_a_nullable_label_may_be_of_one_class_and_null(place):
    change(place, "buy", [1, None] * 48)
    change(place, "buy", [1, 0] * 48, split="valid")
    change(place, "buy", [1, 0] * 48, split="test")
    buy = {"label": "buy", "domain": "post", "nullable": True}
    tasks = {"tasks": [*schema_at(place)["tasks"], buy]}
    assert warned(place, config_of(place, schema=tasks)) == [
        "task buy@post: all training rows are positive: there is nothing to tell apart"
    ]


def test_extreme_weights_and_slices_that_no_row_is_in(place):
    for split in ("train", "valid", "test"):
        change(place, "weight", np.where(np.arange(96) % 2, 0.5, 40_000), split=split)
    slices = {"hour": {"none": [99], "all": [3, 99], "unknown": [-1]}}
    given = config_of(place, schema={"weight": "weight"}, metrics={"slices": slices})
    assert warned(place, given) == [
        "row weights ('weight') lie between 0.5 and 40000: a few rows decide the metrics (and the loss, unless "
        "trainer.weighted is false); bound them when the files are written",
        "metrics.slices.hour.none: no row has one of its values, [99]: the rows' lie between 0 and 23",
    ]


def test_without_statistics_nothing_is_doubted_before_training(place):
    for path in (place / "feed" / "post").glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, write_statistics=False)
    change(place, "words", np.linspace(1950, 2010, 96))
    path = place / "feed" / "post" / "train.parquet"
    pq.write_table(pq.read_table(path), path, write_statistics=False)
    assert warned(place, config_of(place)) == []


class TestOutagesThatLast:
    """Several processes wait for each other less long than for a store."""

    @pytest.mark.parametrize(
        ("root", "location", "found"),
        [
            ("s3://bucket/feed", "/data/post", "s3://bucket/feed/."),
            ("/data", "s3://bucket/a.parquet", "s3://bucket/a.parquet"),
            ("/", "delta+s3://bucket/t?version=1", "delta+s3://bucket/t?version=1"),
        ],
    )
    def test_are_refused(self, place, root, location, found):
        config = at(place, root, location, retry_s=60, timeout_s=150)
        with pytest.raises(UserError) as error:
            refuse_long_outages(config, 3)
        assert str(error.value) == (
            f"{found} is in a store, which is asked for 60 s (loader.retry_s), and its client takes up to 100 s more; "
            "the other 2 processes wait only 150 s (trainer.timeout_s): raise it to 160, or lower loader.retry_s"
        )
        refuse_long_outages(config, 1)
        refuse_long_outages(at(place, root, location, retry_s=50, timeout_s=150), 3)

    @pytest.mark.parametrize("location", ["post", "file:///data/post", "delta://table?version=1"])
    def test_do_not_matter_to_local_rows(self, place, location):
        refuse_long_outages(at(place, "/data", location, retry_s=60, timeout_s=60), 3)


def at(place, root, location, retry_s, timeout_s) -> RunConfig:
    domains = schema_at(place / "feed")["domains"]
    domains = {**domains, "post": {**domains["post"], "train": location}}
    loader = {"batch_size": 32, "retry_s": retry_s}
    return config_of(
        place,
        schema={"root": root, "domains": domains},
        loader=loader,
        trainer={"timeout_s": timeout_s},
    )
