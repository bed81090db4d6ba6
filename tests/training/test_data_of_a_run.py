"""What a run checks about its data before it begins, and what later rows are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.small_models import train_run
from torchrec_xd.errors import UserError
from torchrec_xd.training.inference import evaluate, score


@pytest.fixture
def feed(tmp_path: Path) -> dict[str, Any]:
    """A feed of one domain, its hours hashed."""
    content = schema_at(write_feed(tmp_path / "feed", rows=64))
    features = [{**f, "hash": "xxhash"} if f["column"] == "hour" else f for f in content["features"]]
    return {**content, "features": features}


def trained(folder: Path, schema: dict[str, Any], name: str = "run", **more: Any) -> Path:
    settings: dict[str, Any] = {"loader": {"batch_size": 64}, "trainer": {"threads": 1, "log_every": 2}}
    content = {**settings, "schema": schema, "domains": ["post"], "model": {"name": "single", "widths": [4]}}
    run: Path = train_run(folder, name, **{**content, **more})
    return run


def refused(folder: Path, schema: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as error:
        trained(folder, schema, **more)
    assert not (folder / "run").exists()
    return str(error.value)


def with_post(schema: dict[str, Any], **paths: str) -> dict[str, Any]:
    return {**schema, "domains": {**schema["domains"], "post": {**schema["domains"]["post"], **paths}}}


def rewrite(path: Path, column: str, values: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), path)


@pytest.mark.parametrize("path", [".", "**", "post", "*/t*.parquet"])
def test_training_rows_are_no_test_rows(tmp_path: Path, feed: dict[str, Any], path: str) -> None:
    said = refused(tmp_path, with_post(feed, train=path, valid="post/test.parquet", test="post/valid.parquet"))
    assert said.startswith(f"{tmp_path}/feed/post/test.parquet belongs to the train split of domain 'post' and to the ")


def test_an_empty_path(tmp_path: Path, feed: dict[str, Any]) -> None:
    assert "an empty path ('') would read everything below" in refused(tmp_path, with_post(feed, train=""))


@pytest.mark.parametrize(("column", "values"), [("topic", [7]), ("style", [-1]), ("click", [2])])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_values_that_training_would_only_meet_at_its_end(
    tmp_path: Path, feed: dict[str, Any], split: str, column: str, values: list[int]
) -> None:
    path = tmp_path / "feed" / "post" / f"{split}.parquet"
    rewrite(path, column, pa.array([0] * 31 + values))
    assert refused(tmp_path, feed).startswith(f"{path}: row 31, column '{column}': {values[0]}")


@pytest.mark.parametrize("misspelt", [{"activity": "clciks"}, {"slices": {"clciks": [[0, 10]]}}])
def test_a_misspelt_column_to_slice_by(tmp_path: Path, feed: dict[str, Any], misspelt: dict[str, Any]) -> None:
    metrics = {"slices": {"clciks": {"few": [0, 1]}}} if "slices" in misspelt else {}
    said = refused(tmp_path, {**feed, "activity": misspelt.get("activity")}, metrics=metrics)
    assert "no file of the valid split has the column 'clciks', which " in said
    assert "did you mean 'clicks'?" in said


def test_integers_and_strings_of_one_table_in_two_runs(tmp_path: Path, feed: dict[str, Any]) -> None:
    """The second run takes the first one's rows over, which strings would look up in other places."""
    trained(tmp_path, feed, "source")
    for split in ("train", "valid", "test"):
        path = tmp_path / "feed" / "post" / f"{split}.parquet"
        rewrite(path, "hour", pq.read_table(path)["hour"].cast(pa.string()))
    said = refused(tmp_path, feed, init_from=str(tmp_path / "source"))
    assert "table 'hour': ids are integers in" in said
    trained(tmp_path, feed)


def test_integers_and_strings_of_one_table_in_two_splits(tmp_path: Path, feed: dict[str, Any]) -> None:
    rewrite(tmp_path / "feed" / "post" / "test.parquet", "hour", pa.array(["3"] * 32))
    said = refused(tmp_path, feed)
    assert "table 'hour': ids are integers in" in said
    assert "post/train.parquet (column 'hour') and strings in" in said


def test_rows_of_another_id_type_than_the_run_was_trained_on(tmp_path: Path, feed: dict[str, Any]) -> None:
    run, path = trained(tmp_path, feed), tmp_path / "feed" / "post" / "test.parquet"
    assert score(run, path.as_uri(), tmp_path / "scores.parquet", "post") == 32
    whole = pq.read_table(tmp_path / "scores.parquet")
    assert score(run, f"{path.parent.as_uri()}/te*", tmp_path / "again.parquet", "post") == 32
    assert pq.read_table(tmp_path / "again.parquet").equals(whole)
    rewrite(path, "hour", pa.array(["3"] * 32))
    for ask in (lambda: evaluate(run), lambda: score(run, path, tmp_path / "strings.parquet", "post")):
        with pytest.raises(UserError, match=r"ids are integers in .*train\.parquet .* and strings in .*test\.parquet"):
            ask()
    assert not (tmp_path / "strings.parquet").exists()


def test_a_run_with_a_relative_root_tells_another_folder_where_it_belongs(
    tmp_path: Path, feed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, {**feed, "root": "feed"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError) as error:
        evaluate(run)
    assert str(error.value).startswith(f"{tmp_path}/elsewhere/feed/post/test.parquet: no Parquet file is there; ")
    assert f"starts at the schema's root 'feed', and that at the current folder {tmp_path}/elsewhere" in str(
        error.value
    )
    assert score(run, tmp_path / "feed" / "post" / "test.parquet", tmp_path / "scores.parquet", "post") == 32
