"""Users of strings: trained, measured, scored and compared as the same users of integers are."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.predictions import read_users
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.study.scores import read_scores, task_rows
from torchrec_xd.training.inference import evaluate, predict, score
from torchrec_xd.training.train_run import train


def trained(folder, strings):
    """A run on a feed whose user column is not the feature `user`, and holds integers or strings."""
    write_feed(folder / "feed", rows=96)
    for i, path in enumerate(sorted((folder / "feed").rglob("*.parquet"))):
        table = pq.read_table(path)
        names = table["user"].cast(pa.string())
        kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
        who = pa.array([f"u-{name}" for name in names.to_pylist()]).cast(kinds[i % 3]) if strings else table["user"]
        pq.write_table(table.append_column("who", who), path)
    schema = {**schema_at(folder / "feed"), "user": "who"}
    content = {
        "schema": schema,
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 7},
        "trainer": {"threads": 1},
    }
    return folder / "run", train(validate(RunConfig, content, "test"), folder / "run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return [trained(tmp_path_factory.mktemp(name), strings=name == "strings") for name in ("integers", "strings")]


def test_metrics_are_those_of_integers(runs):
    (integers, one), (strings, other) = runs
    assert one["eval"] == other["eval"]
    assert one["eval"]["click@post"]["gauc_users"] > 5
    assert evaluate(integers) == evaluate(strings)


def test_scores_carry_the_strings_themselves(runs, tmp_path):
    run, _ = runs[1]
    rows = pq.read_table(run.parent / "feed" / "post" / "test.parquet")
    score(run, None, tmp_path / "scores.parquet", domain="post", keep=("hour",), parts=True)
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found.column_names == ["who", "hour", "prob_click@post", "score_click@post"]
    assert found["who"].type == pa.string()
    assert found["who"].to_pylist() == rows["who"].to_pylist()
    assert found["hour"].to_pylist() == rows["hour"].to_pylist()
    with pytest.raises(UserError, match="--keep who: predictions have a column of that name already"):
        predict(run, None, domain="post", keep=("who",))


def test_files_may_differ_in_how_they_lay_strings_out(runs, tmp_path):
    run, _ = runs[1]
    rows = pq.read_table(run.parent / "feed" / "post" / "test.parquet")
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
    for i, kind in enumerate(kinds):
        own = rows.set_column(rows.column_names.index("who"), "who", rows["who"].cast(pa.string()).cast(kind))
        pq.write_table(own, tmp_path / f"{i}.parquet")
    found = predict(run, tmp_path, domain="post")
    assert found["who"].to_pylist() == rows["who"].to_pylist() * 4


def test_a_study_knows_users_of_strings_by_their_scores(runs, tmp_path):
    run, _ = runs[1]
    score(run, None, tmp_path / "scores.parquet", domain="post", parts=True)
    schema = load_run(run).data_schema
    rows = task_rows(schema, "click@post")
    scores = read_scores(tmp_path / "scores.parquet", schema, "click@post", rows.file_user)
    assert len(scores) == 48
    table = pq.read_table(tmp_path / "scores.parquet")
    pq.write_table(table.take(list(range(47, -1, -1))), tmp_path / "turned.parquet")
    with pytest.raises(UserError, match="its users are not those of the test rows"):
        read_scores(tmp_path / "turned.parquet", schema, "click@post", rows.file_user)
    gone = table.set_column(0, "who", pa.array([None, *table["who"].to_pylist()[1:]]))
    pq.write_table(gone, tmp_path / "gone.parquet")
    with pytest.raises(UserError, match="1 users in column 'who' are null"):
        read_users(tmp_path / "gone.parquet", "who")


def test_rows_of_integers_are_refused_by_a_run_on_strings(runs):
    (integers, _), (strings, _) = runs
    with pytest.raises(UserError, match=r"users are strings in .* and integers in .*the same user would count as two"):
        predict(strings, integers.parent / "feed" / "post" / "test.parquet", domain="post")
