"""The tutorial from a run to production: its commands, in their order, with a smaller world and free ports."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import command
from tests.support.served import Served, wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "from_run_to_production.md").read_text(encoding="utf-8")
SMALL = {
    "prepare": [part for key in ("source_ratio=2", "valid_rows=100", "test_rows=400") for part in ("--set", key)],
    "benchmark": ["--seconds", "2", "--single", "5", "--repeats", "1"],
}
"""Added to commands: less of the same."""


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = re.search(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    Path("body.json").write_text(body)
    shutil.copy(ROOT / "examples" / "client.py", "client.py")
    commands_alone = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^    (\S.*)", commands_alone.replace("\\\n", " "), re.MULTILINE)
    served, seen = [], []
    try:
        for line in lines:
            words = shlex.split(line)
            seen.append(words[1] if words[0] == "torchrec-xd" else words[0])
            if words[0] == "pip":
                continue
            if words[:2] == ["torchrec-xd", "serve"]:
                served.append(Served(Path(words[2]), *words[5:]))
            elif words[0] == "torchrec-xd":
                command(*words[1:], *SMALL.get(words[1], []))
            elif words[0] == "curl":
                answer = served[-1].client.post("/score", content=body).json()
                assert answer["version"] == 1
            elif words[0] == "python":
                asked = [sys.executable, "client.py", served[-1].lines[0]["address"]]
                done = subprocess.run(asked, input=body, capture_output=True, text=True, check=True)
                assert json.loads(done.stdout) == answer["scores"]
                assert len(answer["scores"]["click@target"]) == 3
            elif words[0] == "echo":
                wait_for(lambda: served[0].events("version taken over"))
                assert served[0].client.post("/score", content=body).json()["version"] == 2
                subprocess.run(line, shell=True, check=True)
                wait_for(lambda: len(served[0].events("version taken over")) == 2)
                assert served[0].client.post("/score", content=body).json() == answer
        request = json.loads(body)
        versions = []
        for user in range(100):
            request["request"]["user_id"] = user
            versions.append(served[1].client.post("/score", json=request).json()["version"])
        assert set(versions) <= {2, 3} | {1}
        assert 0 < versions.count(2) < 40
    finally:
        for each in served:
            each.__exit__()
    commands = ["prepare", "config", "train", "export", "score", "serve", "curl", "python", "train", "export", "echo"]
    assert seen == ["pip", *commands, "serve", "export", "benchmark"]
    manifest = json.loads(Path("exports/world/versions/3/manifest.json").read_text())
    assert abs(manifest["auc_change"]["click@target"]) <= 0.0005
    assert Path("scores.parquet").exists()
