"""Metrics of several workers: what one that was killed was doing is forgotten, what it counted stays."""

import signal
import subprocess
import sys

CHILD = """
import os, signal
from torchrec_xd.serving.monitoring import Monitoring

found = Monitoring()
found.inflight.inc()
found.serves("tiny", "current", 1)
found.request("/score", 200, 0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
PARENT = """
import sys
from torchrec_xd.serving.monitoring import Monitoring, forget_worker

shared, dead = sys.argv[1:]
print(Monitoring().text().decode())
forget_worker(int(dead), shared)
print("--")
print(Monitoring().text().decode())
"""


def test_a_worker_that_was_killed_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", CHILD]) as child:
        assert child.wait(timeout=300) == -signal.SIGKILL
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(child.pid)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=300)
    before, after = done.stdout.split("--")
    counted = 'torchrec_xd_requests_total{route="/score",status="200"} 1.0'
    assert "torchrec_xd_requests_in_flight 1.0" in before
    assert 'torchrec_xd_version{model="tiny",place="current"} 1.0' in before
    assert counted in before
    assert "torchrec_xd_requests_in_flight 0.0" in after
    assert "torchrec_xd_version{" not in after
    assert counted in after
