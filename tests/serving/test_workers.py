"""Several workers on one port: they add up, and one that dies takes nothing with it."""

import re
import signal
import threading

import httpx
import psutil
import pytest

from tests.support.artifacts import write_artifact
from tests.support.served import BODY, Served, half_request, wait_for


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_artifact(folder, 1, 0.25)
    return folder


def test_workers_share_a_port_and_add_up(out):
    with Served(out, "--workers", "2") as own:
        wait_for(lambda: answers(own))
        before = counted(own)
        for _ in range(20):  # each on a new connection, so that both workers have some
            assert httpx.post(f"{own.lines[0]['address']}/score", json=BODY).status_code == 200
        assert counted(own) - before == 20
        assert own.stop() == 0


def answers(served):
    try:
        return served.client.get("/v2/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


def counted(served):
    text = served.client.get("/metrics").text
    return sum(float(n) for n in re.findall(r'requests_total\{route="/score",status="200"\} (\S+)', text))


def test_a_worker_that_is_killed_loses_only_its_own_requests(out):
    """The other goes on, a new one comes, and the gauge forgets what the dead one was doing."""
    with Served(out, "--workers", "2", "--timeout", "60") as own:

        def wait(condition):
            wait_for(condition, 300)  # a worker imports a lot

        def workers():
            children = psutil.Process(own.process.pid).children()
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

        wait(lambda: answers(own))
        address, going, done = own.lines[0]["address"], threading.Event(), []

        def ask():
            while not going.is_set():
                done.append(status_of_a_new_connection(address))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait(lambda: len(done) > 10)
        workers()[0].kill()
        wait(lambda: own.events("worker ended"))
        before = len(done)
        wait(lambda: len(done) > before + 10)
        going.set()
        for thread in threads:
            thread.join()
        assert set(done) <= {200, "lost"}
        assert done.count("lost") <= len(threads)
        assert done.count(200) > 20
        assert own.events("worker ended")[0]["exit_code"] == -signal.SIGKILL
        wait(lambda: len(workers()) == 2)

        connection, _ = half_request(own)
        wait(lambda: "torchrec_xd_requests_in_flight 1.0" in metrics(address))
        for worker in workers():
            worker.kill()
        wait(lambda: len(own.events("worker ended")) == 3)
        connection.close()
        wait(lambda: "torchrec_xd_requests_in_flight" in metrics(address))
        assert "torchrec_xd_requests_in_flight 0.0" in metrics(address)
        assert own.stop() == 0


def status_of_a_new_connection(address):
    """The workers share a socket, so that whoever lives takes a new connection."""
    try:
        return httpx.post(f"{address}/score", json=BODY, timeout=60).status_code
    except httpx.TransportError:
        return "lost"


def metrics(address):
    try:
        return httpx.get(f"{address}/metrics", timeout=60).text
    except httpx.TransportError:  # of a worker that was killed
        return ""
