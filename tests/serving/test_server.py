"""The server as its own process: what it answers, what it refuses, and what it says about itself."""

import json
import re
import shutil
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.artifacts import OUTPUTS, expected, write_artifact
from tests.support.served import BODY, Served, half_request, wait_for
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.serving.artifact import Artifact
from torchrec_xd.serving.scorer import Scorer

BIAS = 0.25


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_artifact(folder, 1, BIAS)
    return folder


@pytest.fixture(scope="module")
def server(out):
    with Served(out) as served:
        yield served


def tensors(**changes):
    given = {
        "user": ("INT64", [1], [7]),
        "hist": ("INT64", [1, 3], [1, 2, 3]),
        "item": ("INT32", [2], [4, 5]),
        "price": ("FP32", [2], [0.5, None]),
        **changes,
    }
    return [{"name": n, "datatype": d, "shape": s, "data": x} for n, (d, s, x) in given.items()]


def test_scores_are_those_of_the_scorer(server, out):
    answer = server.client.post("/score", json=BODY)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["version"]) == ("tiny", 1)
    wanted = expected(7, [1, 2, 3], [4, 5], [0.5, 0.0], BIAS)
    for name in OUTPUTS:
        np.testing.assert_allclose(found["scores"][name], wanted[name], atol=1e-6)
    assert "unseen" not in found


def test_the_sample_scores_as_it_says(server, out):
    artifact = Artifact.open(out / "versions" / "1")
    rows, scores = artifact.sample()
    columns = rows.to_pydict()
    request = {name: columns[name][0] for name in ("user", "hist")}
    body = {"request": request, "candidates": {name: columns[name] for name in ("item", "price")}}
    found = server.client.post("/score", json=body).json()["scores"]
    decoder = Decoder(artifact.schema, "goods", labels=False, extra=())
    own = Scorer(artifact).score(decoder.decode(rows.to_batches()[0], Origin("sample", 0)))
    for name in OUTPUTS:
        assert np.float32(found[name]).tolist() == own[name].tolist()
        np.testing.assert_allclose(found[name], scores[name].to_numpy(), atol=1e-6)


def test_unseen_ids_are_counted_in_the_answer_the_metrics_and_the_log(server):
    body = {"request": {"user": 99, "hist": [1, 50]}, "candidates": {"item": [4, -1], "price": [0, 0]}}
    assert server.client.post("/score", json=body).json()["unseen"] == {"user": 1, "hist": 1, "item": 1}
    text = server.client.get("/metrics").text
    assert 'torchrec_xd_unseen_ids_total{feature="item"} 1.0' in text
    assert 'torchrec_xd_version{model="tiny",place="current"} 1.0' in text
    assert re.search(r'torchrec_xd_requests_total\{route="/score",status="200"\} [1-9]', text)
    assert re.search(r'torchrec_xd_candidates_total\{version="1"\} [1-9]', text)
    assert "torchrec_xd_requests_in_flight 0.0" in text
    assert 'torchrec_xd_request_seconds_bucket{le="0.005",route="/score"}' in text
    wait_for(lambda: any("unseen" in line for line in server.events("request")))
    line = next(line for line in server.events("request") if "unseen" in line)
    assert line.keys() == {"time", "event", "route", "status", "ms", "model", "version", "candidates", "unseen"}
    assert (line["status"], line["version"], line["candidates"]) == (200, 1, 2)


def test_the_open_inference_protocol(server):
    assert server.client.get("/v2").json()["name"] == "torchrec-xd"
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    model = server.client.get("/v2/models/tiny").json()
    assert model["versions"] == ["1"]
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in model["inputs"]}
    assert shapes["hist"] == ("INT64", [-1, -1])
    assert shapes["price"] == ("FP64", [-1])
    assert [each["name"] for each in model["outputs"]] == list(OUTPUTS)
    assert server.client.get("/v2/models/tiny/versions/1/ready").json()["ready"] is True
    plain = server.client.post("/score", json=BODY).json()["scores"]
    for place in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
        answer = server.client.post(place, json={"id": "a7", "inputs": tensors()}).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a7", "tiny", "1")
        assert {each["name"]: each["data"] for each in answer["outputs"]} == plain
        assert answer["outputs"][0]["shape"] == [2]
    ragged = tensors(hist=("INT64", [4], [9, 1, 2, 3]), user=("INT64", [2], [7, 7]))
    ragged.append({"name": "hist.lengths", "datatype": "INT64", "shape": [2], "data": [1, 3]})
    answer = server.client.post("/v2/models/tiny/infer", json={"inputs": ragged, "outputs": [{"name": OUTPUTS[0]}]})
    [only] = answer.json()["outputs"]
    first = expected(7, [9], [4], [0.5], BIAS)[OUTPUTS[0]]
    np.testing.assert_allclose(only["data"], [first[0], plain[OUTPUTS[0]][1]], atol=1e-6)


@pytest.mark.parametrize(
    ("place", "body", "status", "words"),
    [
        ("/score", b"{", 422, "the body is no JSON"),
        ("/score", b'{"request": {"user": NaN}}', 422, "NaN and Infinity are none either"),
        ("/score", {**BODY, "rows": 1}, 422, "the body has the keys request and candidates, and no 'rows'"),
        ("/score", {"request": {"user": 7, "hst": []}, "candidates": BODY["candidates"]}, 422, "did you mean 'hist'?"),
        ("/score", {**BODY, "candidates": {"item": ["4"], "price": [1]}}, 422, "row 0, column 'item': '4' is not an"),
        (
            "/score",
            {**BODY, "candidates": {"item": [4] * 2001, "price": [1] * 2001}},
            422,
            "2,001 are more than the 2,000",
        ),
        ("/v2/models/other/infer", {}, 404, "no model 'other'; the model is 'tiny'"),
        ("/v2/models/tiny/versions/3/infer", {"inputs": tensors()}, 404, "version 3 is not served; there are: 1"),
        ("/v2/models/tiny/versions/x/infer", {}, 404, "versions are numbers, and 'x' is none"),
        ("/v2/models/tiny/infer", {}, 422, "inputs: a list of tensors"),
        (
            "/v2/models/tiny/infer",
            {"inputs": tensors(item=("BYTES", [2], [4, 5]))},
            422,
            "'item' is INT64, not 'BYTES'",
        ),
        ("/v2/models/tiny/infer", {"inputs": tensors(item=("INT", [2], [4, 5]))}, 422, "datatypes are: BOOL, FP16"),
        ("/v2/models/tiny/infer", {"inputs": tensors(item=("INT8", [3], [4, 5]))}, 422, "'item' has 2 values, and its"),
        ("/v2/models/tiny/infer", {"inputs": tensors(hist=("INT8", [2], [4, 5]))}, 422, "add 'hist.lengths'"),
        ("/v2/models/tiny/infer", {"inputs": tensors(), "outputs": [{"name": "x"}]}, 422, "outputs: no 'x'; there are"),
        ("/v2/models/tiny/infer", {"inputs": tensors()[1:]}, 422, "request: missing 'user'"),
        ("/nothing", {}, 404, "Not Found"),
        ("/metrics", {}, 405, "Method Not Allowed"),
    ],
)
def test_what_is_refused_is_said(server, place, body, status, words):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = server.client.post(place, content=content)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert list(answer.json()) == ["error"]


ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_is_an_error_of_the_server(server, data):
    """Bodies that are nearly right, by both protocols."""
    body = json.loads(json.dumps(data.draw(st.sampled_from([BODY, {"id": "x", "inputs": tensors()}]))))
    place = "/v2/models/tiny/infer" if "inputs" in body else "/score"
    at = body
    for _ in range(data.draw(st.integers(1, 3))):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and data.draw(st.booleans()):
            at = at[key]
        elif data.draw(st.booleans()) and isinstance(at, dict):
            at[data.draw(st.text(max_size=5))] = at.pop(key)
        else:
            at[key] = data.draw(ANY)
    answer = server.client.post(place, content=json.dumps(body).encode())
    assert answer.status_code in (200, 422), answer.text
    assert answer.json()


def test_odd_bodies_are_no_error_of_the_server(server):
    deep = b'{"request": {"user": ' + b"[" * 900 + b"]" * 900 + b"}}"
    surrogate = json.dumps({**BODY, "request": {"user": "\ud800", "hist": []}}).encode()
    huge = json.dumps({**BODY, "candidates": {"item": [4], "price": [10**400]}}).encode()
    far = b'{"request": {"user": 7, "hist": []}, "candidates": {"item": [4], "price": [1e999]}}'
    nested = json.dumps({"request": {"user": 7, "hist": json.loads("[" * 300 + "]" * 300)}, "candidates": {}}).encode()
    for body in (b"", b"\xff\xfe", b"[]", b"null", deep, surrogate, huge, far, nested):
        answer = server.client.post("/score", content=body)
        assert answer.status_code == 422, (body[:40], answer.text)
    none = {**BODY, "candidates": {"item": [], "price": []}}
    assert server.client.post("/score", json=none).json()["scores"] == {name: [] for name in OUTPUTS}


def test_limits(out):
    with Served(
        out, "--max-concurrent", "1", "--timeout", "1.5", "--max-body-mb", "0.01", "--max-candidates", "3"
    ) as own:
        four = {**BODY, "candidates": {"item": [1] * 4, "price": [1] * 4}}
        answer = own.client.post("/score", json=four)
        assert (answer.status_code, answer.json()["error"][:35]) == (422, "candidates: 4 are more than the 3 t")
        large = own.client.post("/score", content=b" " * 20_000)
        assert (large.status_code, large.json()["error"][:38]) == (413, "the body is larger than 0.01 MiB; send")
        pieces = own.client.post("/score", content=(b" " * 2_000 for _ in range(10)))
        assert pieces.status_code == 413
        connection, _ = half_request(own)
        wait_for(lambda: "torchrec_xd_requests_in_flight 1.0" in own.client.get("/metrics").text)
        second = own.client.post("/score", json=BODY)
        assert (second.status_code, second.headers["Retry-After"]) == (429, "1")
        slow = connection.getresponse()
        assert (slow.status, slow.headers["Retry-After"]) == (503, "1")
        assert b"took longer than 1.5 seconds" in slow.read()
        assert own.client.post("/score", json=BODY).status_code == 200


def test_sigterm_lets_requests_end(out):
    with Served(out) as own:
        connection, content = half_request(own)
        wait_for(lambda: "torchrec_xd_requests_in_flight 1.0" in own.client.get("/metrics").text)
        own.client.close()
        own.process.terminate()
        address = urlsplit(own.lines[0]["address"])

        def closed():
            with socket.socket() as probe:
                return probe.connect_ex((address.hostname, address.port)) != 0

        wait_for(closed)
        assert own.process.poll() is None
        connection.send(content)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["version"]) == (200, 1)
        assert own.stop() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--canary-share", "0.3"], "canary_share belongs to a canary"),
        (["--canary", "5"], "5 is no artefact"),
        (["--max-candidates", "0"], "'max_candidates': Input should be greater than 0"),
        (["--host", "192.0.2.1"], "cannot listen there"),
    ],
)
def test_a_server_that_cannot_start_says_why(out, options, words):
    with pytest.raises(RuntimeError) as error:
        Served(out, *options)
    assert words in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_sample_that_scores_otherwise_is_refused_at_the_start(tmp_path):
    write_artifact(tmp_path, 1, lie=0.001)
    with pytest.raises(RuntimeError, match=r"scores its sample otherwise .*'click@goods' of row 3 is .*, and was"):
        Served(tmp_path)


def test_no_torch_is_imported(out):
    code = (
        "import sys, uvicorn\n"
        "names = ('torch', 'ibis', 'duckdb', 'sqlglot', 'plotly')\n"
        "uvicorn.Server.run = lambda *a, **k: print([name for name in names if name in sys.modules])\n"
        f"sys.argv = ['torchrec-xd', 'serve', {str(out)!r}, '--port', '0']\n"
        "from torchrec_xd.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_the_extra_lacks_is_named(out):
    code = (
        "import sys, importlib.util\n"
        "importlib.util.find_spec = lambda name: None if name == 'fastapi' else name\n"
        f"sys.argv = ['torchrec-xd', 'serve', {str(out)!r}]\n"
        "from torchrec_xd.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "serve needs fastapi: pip install 'torchrec-xd[serve]'" in done.stderr


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(server, page):
    answer = server.client.get(page)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert re.findall(r'(?:src|href)=["\']https?:', answer.text) == []
    assert "/v2/health/ready" in server.client.get("/docs").text


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_tries_the_model_in_a_browser(server, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    arguments += [f"--window-size={width},900", "--virtual-time-budget=5000", server.lines[0]["address"]]
    done = subprocess.run([browser, *arguments], capture_output=True, check=True, text=True, timeout=120)
    found = re.search(r'<table id="answer">(.*?)</table>', done.stdout, re.DOTALL)
    assert found is not None
    assert re.search(r'role="alert"></p>', done.stdout), "an error is shown"
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", found[1])
    assert cells[:3] == ["candidate", *OUTPUTS]
    wanted = expected(7, [1, 2, 3], [0, 1, 2, 3, 4], [0.0, 0.5, 1.0, 1.5, 2.0], BIAS)
    rows = np.array(cells[3:], dtype=float).reshape(-1, 3)
    np.testing.assert_allclose(rows[:, 1:], np.stack([wanted[name] for name in OUTPUTS], axis=1), atol=2e-6)
    fields = re.findall('<input [^>]*data-name="([^"]*)"', done.stdout)
    assert sorted(fields) == sorted(["user", "hist", *["item", "price"] * 5])


def test_missing_columns_may_be_null_and_are_counted(out):
    with Served(out, "--missing", "null") as own:
        body = {"request": {"user": 7}, "candidates": {"item": [4, 5]}}
        answer = own.client.post("/score", json=body).json()
        assert answer["missing"] == ["hist", "price"]
        null = {"request": {"user": 7, "hist": None}, "candidates": {"item": [4, 5], "price": [None, None]}}
        told = own.client.post("/score", json=null).json()
        assert "missing" not in told
        assert answer["scores"] == told["scores"]
        wanted = expected(7, [], [4, 5], [0.0, 0.0], BIAS)
        for name in OUTPUTS:
            np.testing.assert_allclose(answer["scores"][name], wanted[name], atol=1e-6)
        inputs = [each for each in tensors() if each["name"] in ("user", "item")]
        answer = own.client.post("/v2/models/tiny/infer", json={"inputs": inputs}).json()
        assert answer["parameters"] == {"missing": ["hist", "price"]}
        assert answer["outputs"][0]["data"] == told["scores"][OUTPUTS[0]]
        text = own.client.get("/metrics").text
        assert 'torchrec_xd_missing_columns_total{feature="price"} 2.0' in text
        for wrong, words in (
            ({"request": {"user": 7}, "candidates": {}}, "candidates: missing 'item', 'price'"),
            ({"request": {"user": 7, "hst": []}, "candidates": {"item": [4]}}, "unknown column 'hst'; did you mean"),
        ):
            refused = own.client.post("/score", json=wrong)
            assert refused.status_code == 422
            assert words in refused.json()["error"]
