"""The client of the documentation."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.artifacts import OUTPUTS, write_artifact
from tests.support.served import BODY, Served

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "examples" / "client.py"


def test_the_client_scores_and_says_what_is_refused(tmp_path):
    write_artifact(tmp_path, 1)
    score = runpy.run_path(str(CLIENT))["score"]
    with Served(tmp_path) as server:
        address = server.lines[0]["address"]
        found = score(address, BODY, timeout=30)
        assert found == server.client.post("/score", json=BODY).json()["scores"]
        assert list(found) == list(OUTPUTS)
        with pytest.raises(ValueError, match="request: missing 'hist'"):
            score(address, {**BODY, "request": {"user": 7}}, timeout=30)
        asked = [sys.executable, str(CLIENT), address]
        done = subprocess.run(asked, input=json.dumps(BODY), capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == found


def test_the_page_shows_this_client():
    code = CLIENT.read_text(encoding="utf-8")
    function = code[code.index("def score") : code.index("\n\n\nif __name__")]
    function = function.replace("  # noqa: S310", "")
    assert function in (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
