"""`benchmark serve`: a server under load is measured, its versions are swapped, and nothing is left running."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.artifacts import write_artifact
from torchrec_xd.benchmark.commands import app
from torchrec_xd.benchmark.load import Load, Plan, apply_load, connected, post, serving, versions_of
from torchrec_xd.benchmark.serving_parts import bodies_of, padded_ids, tables_inside
from torchrec_xd.data.rows import Jagged
from torchrec_xd.errors import UserError
from torchrec_xd.serving.versions import ServedVersion


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_artifact(folder, 1, 0.25)
    write_artifact(folder, 2, 0.5, current=False)
    return folder


def test_a_load_with_swaps_is_measured(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["--candidates", "20", "--seconds", "3", "--clients", "2", "--swaps", "2", "--single", "5"]
    done = CliRunner().invoke(app, ["serve", str(out), *options, "--repeats", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text())
    load = content["load"]
    assert load["failed"] == 0
    assert load["requests"] > 10
    assert load["swaps taken over"] >= 2
    assert 0 < load["wall ms p50"] <= load["wall ms p99"]
    assert load["requests/s a core"] == pytest.approx(1000 / load["CPU ms a request"])
    assert 0 < load["resident MiB without tables"] < load["resident MiB"]
    assert set(content["answered by version"]) == {"1", "2"}
    assert sum(content["answered by version"].values()) == load["requests"]
    parts = {row["what"]: row["CPU ms"] for row in content["rows"] if "CPU ms" in row}
    assert {"decoding, JSON to rows", "lookups", "net", "ONNX Runtime, tables in the graph"} <= parts.keys()
    assert len(parts["net"]["values"]) == 2
    assert json.loads((out / "current.json").read_text()) == {"version": 1}


def test_failed_requests_are_counted_with_their_reason(out: Path) -> None:
    with serving(out) as server:
        process = server.process
        load = apply_load(server, out, [b"{"], Plan(seconds=2, rate=20))
        assert load.requests == load.failed.total()
        assert 1 <= load.requests <= 40
        assert all(reason.startswith("UserError: 422: ") for reason in load.failed)
        with connected(server.address) as connection, pytest.raises(UserError, match=r"422: .*no JSON"):
            post(connection, b"{")
    assert not process.is_running()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 1e9}, "--seconds 1e+09: a load is bounded; write a number above 0, at most 900"),
        ({"seconds": 1, "rate": 1e6}, "--rate 1e+06: a load is bounded"),
        ({"seconds": 1, "clients": 0}, "--clients 0: a load is bounded"),
    ],
)
def test_a_load_is_bounded(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError) as error:
        Plan(**options)
    assert words in str(error.value)


def test_swaps_need_a_second_version(out: Path, tmp_path: Path) -> None:
    assert versions_of(out, 3) == [1, 2]
    shutil.copytree(out / "versions" / "1", tmp_path / "versions" / "1")
    (tmp_path / "current.json").write_text('{"version": 1}')
    assert versions_of(tmp_path, 0) == [1]
    with pytest.raises(UserError, match="has one version; export a second one"):
        versions_of(tmp_path, 1)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the server did not start: .*has no current.json"), serving(tmp_path):
        pass


def test_tables_in_the_graph_score_alike(out: Path) -> None:
    version = ServedVersion.load(out / "versions" / "1")
    body = json.loads(bodies_of(version, 12, 1)[0])
    body["request"]["hist"] = [1, 2]  # shorter than the longest one
    given, _ = version.reader.read(body, 100)
    inside = tables_inside(version, given)
    assert inside is not None
    expected = version.scorer.score(given.candidates, given.request, given.request_of_B)
    for found, name in zip(inside(), version.scorer.outputs, strict=True):
        np.testing.assert_allclose(found, expected[name], atol=1e-6)


def test_ids_are_padded_behind_their_end() -> None:
    ids = Jagged.of_lengths(np.array([5, 6, 7]), np.array([2, 0, 1]))
    assert padded_ids(ids, 9, 3).tolist() == [[5, 6, 9], [9, 9, 9], [7, 9, 9]]
    assert padded_ids(Jagged(np.array([1, 2]), None), 9, 0).tolist() == [1, 2]


def test_percentiles() -> None:
    load = Load(milliseconds=[float(i) for i in range(100)])
    assert (load.percentile(0.5), load.percentile(0.99)) == (50.0, 99.0)
