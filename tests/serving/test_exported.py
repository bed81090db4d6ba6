"""A run's own export answers requests of raw values as `score --raw` answers the same rows in a file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_requests import EVENTS, raw_columns, rows_of
from tests.support.raw_shop import BERLIN, EVERY_KIND, TYPES, prepare, recipe, write_shop
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.export.api import export
from torchrec_xd.serving.batch_scoring import ScoreOptions, score_raw_by_artifact
from torchrec_xd.serving.examples import example_body
from torchrec_xd.serving.server_settings import ServerSettings
from torchrec_xd.serving.versions import Versions
from torchrec_xd.settings import load_yaml, validate
from torchrec_xd.training.inference import score_raw
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder, raw events, and the version that a server loads."""
    folder = tmp_path_factory.mktemp("shop")
    events = rows_of(400)
    write_shop(folder, events)
    data = prepare(folder, recipe(folder, *EVERY_KIND, events=EVENTS))
    content = {
        "schema": load_yaml(data / "schema.yaml"),
        "model": {"name": "single", "widths": [8]},
        "domains": ["goods"],
        "embeddings": {"init_std": 0.5},
        "loader": {"batch_size": 64},
        "trainer": {"threads": 1},
    }
    for feature in content["schema"]["features"]:
        if isinstance(feature.get("rows"), str):
            feature["rows"] = pq.read_metadata(data / feature["rows"]).num_rows + 1
    train(validate(RunConfig, content, "test"), folder / "run")
    export(folder / "run", folder / "models")
    versions = Versions(ServerSettings(out=folder / "models"), lambda event, content: None)
    versions.load()
    return folder, events, versions.served()[0]


def test_raw_requests_score_as_raw_rows_in_a_file(shop):
    folder, events, version = shop
    new = rows_of(40, seed=5)
    pq.write_table(pa.Table.from_pylist(new, TYPES), folder / "new.parquet")
    score_raw(folder / "run", str(folder / "new.parquet"), folder / "scores.parquet", "goods", parts=True)
    expected = pq.read_table(folder / "scores.parquet")["score_click@goods"].to_numpy()
    columns = raw_columns(events, new)
    sides = {column.name: column.side for column in version.reader.columns}
    found = []
    for row, raw in enumerate(new):  # each a request of its own, as each has its own time
        body = {"request": {"user": raw["user_id"], "time": raw["ts"].replace(tzinfo=BERLIN).isoformat()}}
        body["request"] |= {name: columns[name][row] for name, side in sides.items() if side == "request"}
        del body["request"]["user_id"]  # it is the user
        body["candidates"] = {name: [columns[name][row]] * 2 for name, side in sides.items() if side == "candidate"}
        read, _ = version.reader.read(body, 10)
        both = version.scorer.score(read.candidates, read.request, read.request_of_B)["click@goods"]
        assert both[0] == both[1]
        found.append(both[0])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.std(found) > 0.01


def test_raw_rows_score_by_the_artefact_as_by_the_run(shop):
    folder, _, _ = shop
    new = rows_of(30, seed=6)
    pq.write_table(pa.Table.from_pylist(new, TYPES), folder / "more.parquet")
    paths = {name: folder / f"{name}.parquet" for name in ("by_run", "by_artefact")}
    said = {name: [] for name in paths}
    given = (str(folder / "more.parquet"), *paths.values())
    keep = {"item": "item"}
    count = score_raw(folder / "run", given[0], given[1], "goods", parts=True, keep=["item"], say=said["by_run"].append)
    options = ScoreOptions(parts=True, keep=keep)
    say = said["by_artefact"].append
    assert score_raw_by_artifact(folder / "models", given[0], given[2], options, {}, say=say) == count == len(new)
    run, artefact = (pq.read_table(path) for path in paths.values())
    assert artefact.schema == run.schema
    assert artefact["user"].to_pylist() == run["user"].to_pylist() == [row["user_id"] for row in new], run.column_names
    assert artefact["item"].to_pylist() == [row["item"] for row in new]
    for name in ("prob_click@goods", "score_click@goods"):
        np.testing.assert_allclose(artefact[name].to_numpy(), run[name].to_numpy(), atol=1e-6)
    assert run["prob_click@goods"].to_numpy().std() > 0.01
    assert said["by_artefact"] == said["by_run"]
    assert any(line.startswith("category: ") for line in said["by_run"])


def test_the_example_of_a_version_is_answered_close_to_its_sample(shop):
    _, _, version = shop
    body = example_body(version)
    read, user = version.reader.read(body, 10)
    assert len(read) == 5
    assert str(user).startswith("u")
    _, expected = version.artifact.sample()
    own = version.scorer.score(read.candidates, read.request, read.request_of_B)["click@goods"]
    # the candidate of the first row, with its own user; parts of the calendar are of now
    assert abs(own[0] - expected["click@goods"][0].as_py()) < 0.2


def test_a_time_has_a_zone(shop):
    _, _, version = shop
    body = example_body(version)
    for time, words in (
        ("2024-10-20T12:00:00", "names no zone"),
        ("noon", "write ISO 8601"),
        (True, "write ISO 8601"),
        ("0001-01-01T00:00:00+14:00", "no moment"),
    ):
        body["request"]["time"] = time
        with pytest.raises(UserError, match=words):
            version.reader.read(body, 10)
    body["request"]["time"] = 1729418400
    first, _ = version.reader.read(body, 10)
    body["request"]["time"] = "2024-10-20T12:00:00+02:00"
    second, _ = version.reader.read(body, 10)
    for one, two in zip(first.candidates.ids, second.candidates.ids, strict=True):
        assert one.values.tolist() == two.values.tolist()


def test_rows_of_one_request_have_a_time_each(shop):
    """The same scores as requests of a row each; users and times are as many as other columns of the request."""
    _, events, version = shop
    new, reader = rows_of(12, seed=7), version.reader
    columns = raw_columns(events, new)
    sides = {
        own: {each.name: columns[each.name] for each in reader.columns if each.side == own}
        for own in ("request", "candidate")
    }
    times = [row["ts"].replace(tzinfo=BERLIN).isoformat() for row in new]
    request = {"user": [row["user_id"] for row in new], "time": times, **sides["request"]}
    del request["user_id"]  # it is the user

    def scores(of_request, of_candidates):
        read = reader.read_columns(of_request, of_candidates, 100)
        return version.scorer.score(read.candidates, read.request, read.request_of_B)["click@goods"]

    def one(given, row):
        return {name: values[row : row + 1] for name, values in given.items()}

    found = scores(request, sides["candidate"])
    alone = [scores(one(request, row), one(sides["candidate"], row))[0] for row in range(len(new))]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    same_time = scores({**request, "time": times[:1] * len(new)}, sides["candidate"])
    assert np.abs(found - same_time).max() > 1e-3
    for name in ("time", "user"):
        with pytest.raises(UserError, match=r"request: columns have a value for each row; 'item' has 12, and '\w+' 1"):
            scores({**request, name: request[name][:1]}, sides["candidate"])
    with pytest.raises(UserError, match="request: row 3, column 'time': 'garbage' is no moment"):
        scores({**request, "time": [*times[:3], "garbage", *times[4:]]}, sides["candidate"])


def test_as_many_nulls_as_times_stand_for_missing_columns(shop):
    _, _, version = shop
    candidates = {each.name: [None, None] for each in version.reader.columns if each.side == "candidate"}
    read = version.reader.read_columns({"time": [0, 3600]}, candidates, 100, "null")
    assert (len(read.request), read.request_of_B.tolist()) == (2, [0, 1])


def test_words_of_the_encoders_are_mapped_from_the_artefact(shop):
    artifact = shop[2].artifact
    words = artifact.words()
    assert set(words) == {path.stem for path in artifact.encoders.glob("*.parquet")}
    for name, mapped in words.items():
        table = pq.read_table(artifact.encoders / f"{name}.parquet")
        assert mapped.rows_of(table["value"].combine_chunks()).tolist() == table["row"].to_pylist()
        assert not mapped.hash_V.flags.owndata
