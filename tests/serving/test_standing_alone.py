"""What serves needs the packages of requirements/serve.lock, and nothing else: no torch, no engine of recipes."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.artifacts import OUTPUTS, expected, write_artifact
from tests.support.locks import locked, requirements
from tests.support.served import BODY

CHILD = """
import json, sys, threading, urllib.request
from importlib.metadata import packages_distributions

out, rows, scores, allowed, body = sys.argv[1:]
allowed = {*json.loads(allowed), "torchrec-xd"}
names = {
    top: {name.lower().replace("_", "-").replace(".", "-") for name in found}
    for top, found in packages_distributions().items()
}
blocked = {top for top, found in names.items() if not found & allowed}
assert {"torch", "torchrec", "duckdb", "ibis", "sqlglot", "scipy", "httpx"} <= blocked

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import uvicorn
from torchrec_xd.cli import main

answers = {}
run = uvicorn.Server.run

def asked(self, sockets):
    address = "http://127.0.0.1:%d" % sockets[0].getsockname()[1]

    def ask():
        try:
            for place, data in (("/score", body.encode()), ("/", None), ("/docs", None), ("/metrics", None)):
                answers[place] = urllib.request.urlopen(address + place, data, timeout=60).read().decode()
        finally:
            self.should_exit = True

    threading.Thread(target=ask).start()
    run(self, sockets=sockets)

uvicorn.Server.run = asked
serve = ["serve", out, "--port", "0", "--timeout", "60"]
for command in (serve, ["score", rows, "--artifact", out, "--out", scores, "--parts"]):
    sys.argv = ["torchrec-xd", *command]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
loaded = {name.partition(".")[0] for name in sys.modules} & set(names)
print(json.dumps({"score": json.loads(answers["/score"]), "loaded": sorted(set().union(*map(names.get, loaded)))}))
"""


def test_serving_and_scoring_need_the_locked_packages_alone(tmp_path):
    out = tmp_path / "out"
    sample = write_artifact(out, 1, bias=0.25) / "sample.parquet"
    allowed = locked(f"{sys.version_info.major}.{sys.version_info.minor}", "serve.lock")
    words = [str(out), str(sample), str(tmp_path / "scores.parquet"), json.dumps(sorted(allowed)), json.dumps(BODY)]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = expected(7, [1, 2, 3], [4, 5], [0.5, 0.0], 0.25)
    for name in OUTPUTS:
        np.testing.assert_allclose(found["score"]["scores"][name], wanted[name], atol=1e-6)
    ours, theirs = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(sample)
    np.testing.assert_allclose(ours[f"score_{OUTPUTS[0]}"], theirs[f"score_{OUTPUTS[0]}"], atol=1e-6)
    asked_for = {canonicalize_name(Requirement(line).name) for line in requirements("serve.in")}
    assert asked_for <= set(found["loaded"]), "named in serve.in, and not needed"
