"""Features of users from a file: found by the user; what a request says wins; a file that does not fit is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.artifacts import OUTPUTS, expected, write_artifact
from tests.support.served import Served
from torchrec_xd.errors import UserError
from torchrec_xd.serving.artifact import Artifact
from torchrec_xd.serving.requests import RequestReader
from torchrec_xd.serving.user_features import ParquetUserFeatures

FEATURES = {"user": [3, None, 7], "hist": [[4], [5], [1, 2, 3]], "other": ["x", "y", "z"]}
CANDIDATES = {"item": [4, 5], "price": [0.5, None]}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return Artifact.open(write_artifact(tmp_path_factory.mktemp("export"), 1))


@pytest.fixture
def reader(artifact, tmp_path):
    pq.write_table(pa.table(FEATURES), tmp_path / "users.parquet")
    return RequestReader.of(artifact, tmp_path / "users.parquet")


def read(reader, request):
    found, _ = reader.read({"request": request, "candidates": CANDIDATES}, 10)
    return {"user": found.request.ids[0].values.tolist(), "hist": found.request.ids[1].values.tolist()}, found.unseen


def test_a_request_that_names_the_user_alone_has_the_features_of_the_file(reader):
    assert read(reader, {"user": 7}) == ({"user": [7], "hist": [1, 2, 3]}, {})
    assert read(reader, {"user": 3}) == ({"user": [3], "hist": [4]}, {})
    assert read(reader, {"user": 7, "hist": [9]}) == ({"user": [7], "hist": [9]}, {})  # the request wins
    assert read(reader, {"user": 7, "hist": None}) == ({"user": [7], "hist": []}, {})
    assert read(reader, {"user": 8}) == ({"user": [8], "hist": []}, {"user features": 1})
    columns = {"user": [7, 8, 3]}, {"item": [1, 2, 3], "price": [0, 0, 0]}
    found = reader.read_columns(*columns, 10)
    assert found.request.ids[1].values.tolist() == [1, 2, 3, 4]
    assert found.request.ids[1].lengths.tolist() == [3, 0, 1]
    assert found.unseen == {"user features": 1}


def test_without_the_file_the_features_are_asked_for(artifact):
    with pytest.raises(UserError, match="request: missing 'hist'"):
        read(RequestReader.of(artifact), {"user": 7})


def test_users_are_found_whatever_their_order_and_type(tmp_path):
    users = np.random.default_rng(0).permutation(5000)
    for column in (users, users.astype(str)):
        pq.write_table(pa.table({"id": column, "age": users * 2}), tmp_path / "users.parquet")
        found = ParquetUserFeatures(tmp_path / "users.parquet", "id", {"age": pa.int64()})
        assert found.lookup(users[:300].tolist()).to_pydict() == {"age": (users[:300] * 2).tolist()}
        assert found.lookup(["4999", 17, None][:1]).to_pydict() == {"age": [9998]}
        assert found.lookup([5000, None]).to_pydict() == {"age": [None, None]}
        for odd in ([[1]], [{"a": 1}], [1.5], [True], [2**70], ["\ud800"]):
            assert found.lookup(odd).to_pydict() == {"age": [None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hist": [[1]]}, r"no column 'user', which names the user; columns are: hist"),
        ({"user": [1], "age": [1]}, r"none of the columns that a request has: user, hist"),
        ({"user": [1, 2, 1], "hist": [[1]] * 3}, r"user 1 is there twice; keep one row"),
        ({"user": [1], "hist": [["x"]]}, r"users.parquet, rows with a value: row 0, column 'hist': \['x'\] is"),
        (
            {"user": list(range(3000)), "hist": [None] * 2999 + [["x"]]},
            r"column 'hist': \['x'\] is not a list of integers",
        ),
        ({"user": pa.array([None], pa.int64()), "hist": [[1]]}, "no row names a user"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_once(artifact, tmp_path, content, message):
    pq.write_table(pa.table(content), tmp_path / "users.parquet")
    with pytest.raises(UserError, match=message):
        RequestReader.of(artifact, tmp_path / "users.parquet")


def test_a_file_that_is_no_parquet_is_refused(artifact, tmp_path):
    (tmp_path / "users.parquet").write_text("user,hist")
    with pytest.raises(UserError, match=r"users.parquet: cannot be read as Parquet"):
        RequestReader.of(artifact, tmp_path / "users.parquet")


def test_a_server_finds_the_features_of_the_user_of_a_request(tmp_path):
    write_artifact(tmp_path, 1, 0.25)
    pq.write_table(pa.table(FEATURES), tmp_path / "users.parquet")
    with Served(tmp_path, "--user-features", str(tmp_path / "users.parquet")) as served:
        known, unknown = (
            served.client.post("/score", json={"request": {"user": user}, "candidates": CANDIDATES}).json()
            for user in (7, 8)
        )
        counted = served.client.get("/metrics").text
    for found, user, hist in ((known, 7, [1, 2, 3]), (unknown, 8, [])):
        scores = expected(user, hist, CANDIDATES["item"], [0.5, 0], 0.25)
        np.testing.assert_allclose(found["scores"][OUTPUTS[0]], scores[OUTPUTS[0]], rtol=0, atol=1e-6)
    assert "unseen" not in known
    assert unknown["unseen"] == {"user features": 1}
    assert 'torchrec_xd_unseen_ids_total{feature="user features"} 1.0' in counted
