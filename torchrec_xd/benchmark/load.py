"""A server in a process of its own, and requests to it: from this machine only, bounded in seconds and rate."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from torchrec_xd.atomic_write import write_json
from torchrec_xd.errors import UserError
from torchrec_xd.serving.artifact import CURRENT, READY, VERSIONS
from torchrec_xd.serving.delta import TABLES

MOST_SECONDS, MOST_RATE, MOST_CLIENTS = 900.0, 2000.0, 64
"""Of a load: seconds, requests per second, and clients."""
_START_SECONDS = 120.0
"""That a server may take until it is ready."""
MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Resident memory of a server, in MiB."""

    resident: float
    tables: float
    """Of it, pages of mapped tables."""

    @property
    def besides(self) -> float:
        """What is not tables."""
        return self.resident - self.tables


@dataclass
class Server:
    """A `torchrec-xd serve` that is ready."""

    process: psutil.Process
    address: str
    log: Path
    seconds_until_ready: float

    def processes(self) -> list[psutil.Process]:
        """It, and its workers."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """That all its processes have worked so far, by the clocks of Linux for the CPU time of a process."""
        return sum(time.clock_gettime(~each.pid << 3 | 2) for each in self.processes())

    def memory(self) -> Memory:
        """As of now."""
        resident, tables = 0, 0
        for each in self.processes():
            resident += each.memory_info().rss
            tables += sum(part.rss for part in each.memory_maps() if part.path.endswith(TABLES))
        return Memory(resident / MIB, tables / MIB)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in found if line["event"] == name]


@contextmanager
def serving(out: Path, *options: str) -> Iterator[Server]:
    """Serve a folder of exports on a free port of 127.0.0.1, until the block ends.

    Raises:
        UserError: it does not start; with its own words.
    """
    command = [sys.executable, "-m", "torchrec_xd.cli", "serve", str(out), "--port", "0", *options]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        log, errors = Path(folder) / "log", Path(folder) / "errors"
        began = time.perf_counter()
        with log.open("wb") as output, errors.open("wb") as trouble:
            child = subprocess.Popen(command, stdout=output, stderr=trouble, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while (ready := _ready(log)) is None:
                if child.poll() is not None or time.perf_counter() - began > _START_SECONDS:
                    raise UserError(f"the server did not start: {errors.read_text(encoding='utf-8').strip()}")
                time.sleep(0.01)
            yield Server(psutil.Process(child.pid), ready, log, time.perf_counter() - began)
        finally:
            child.terminate()
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ready(log: Path) -> str | None:
    """The address, once requests are answered there."""
    first, newline, _ = log.read_text(encoding="utf-8").partition("\n")
    if not newline:
        return None
    address: str = json.loads(first)["address"]
    try:
        with connected(address) as connection:
            connection.request("GET", "/v2/health/ready")
            return address if connection.getresponse().status == 200 else None
    except OSError:
        return None


@contextmanager
def connected(address: str) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept open."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def post(connection: http.client.HTTPConnection, body: bytes) -> Any:
    """The answer of `/score`.

    Raises:
        UserError: it is an error.
    """
    connection.request("POST", "/score", body)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise UserError(f"{answer.status}: {content[:200].decode(errors='replace')}")
    return json.loads(content)


def cpu_of_requests(server: Server, bodies: Sequence[bytes], requests: int, warm_up: int = 20) -> list[float]:
    """CPU milliseconds of the server for each of some requests, one after the other."""
    found = []
    with connected(server.address) as connection:
        for i in range(warm_up + requests):
            before = server.cpu_seconds()
            post(connection, bodies[i % len(bodies)])
            found.append((server.cpu_seconds() - before) * 1000)
    return found[warm_up:]


@dataclass
class Load:
    """What became of the requests of several clients."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    """Of each answer, on the client's clock."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason to how many."""
    versions: Counter[int] = field(default_factory=Counter)
    """Version to how many it answered."""
    memory: list[Memory] = field(default_factory=list)
    """Some twenty times during the load."""

    @property
    def requests(self) -> int:
        """Answered or not."""
        return len(self.milliseconds) + self.failed.total()

    def percentile(self, part: float) -> float:
        """Wall milliseconds below which a part of the answers stays; NaN where there are none."""
        own = sorted(self.milliseconds)
        return own[min(len(own) - 1, int(part * len(own)))] if own else float("nan")


@dataclass(frozen=True)
class Plan:
    """How a server is loaded.

    Raises:
        UserError: more than is allowed.
    """

    seconds: float
    clients: int = 1
    rate: float = MOST_RATE
    """Requests per second at most, of all clients."""
    swaps: int = 0
    """How often `current.json` is set to another version."""

    def __post_init__(self) -> None:
        for name, most in (("seconds", MOST_SECONDS), ("rate", MOST_RATE), ("clients", MOST_CLIENTS)):
            value = getattr(self, name)
            if not 0 < value <= most:
                raise UserError(f"--{name} {value:g}: a load is bounded; write a number above 0, at most {most:g}")


def apply_load(server: Server, out: Path, bodies: Sequence[bytes], plan: Plan) -> Load:
    """Send requests until the time is up: each client the next one when it has the answer, and not above the rate.

    Args:
        server: that is ready.
        out: what it serves; afterwards `current.json` names the version that it named before.
        bodies: of requests, in turns.
        plan: how long and how much.

    Raises:
        UserError: swaps without a second version.
    """
    versions = versions_of(out, plan.swaps)
    load, numbers, lock, begun = Load(), count(), threading.Lock(), time.perf_counter()
    end = begun + plan.seconds

    def client() -> None:
        with connected(server.address) as connection:
            while True:
                number = next(numbers)
                time.sleep(max(0.0, begun + number / plan.rate - time.perf_counter()))
                began = time.perf_counter()
                if began >= end:
                    return
                try:
                    answer = post(connection, bodies[number % len(bodies)])
                except (UserError, OSError, ValueError, http.client.HTTPException) as error:
                    connection.close()  # the next request opens it anew
                    with lock:
                        load.failed[f"{type(error).__name__}: {error}"[:200]] += 1
                else:
                    with lock:
                        load.milliseconds.append((time.perf_counter() - began) * 1000)
                        load.versions[answer["version"]] += 1

    cpu = server.cpu_seconds()
    threads = [threading.Thread(target=client) for _ in range(plan.clients)]
    for thread in threads:
        thread.start()
    _watch(server, out, versions, plan, load, begun)
    for thread in threads:
        thread.join()
    load.seconds, load.cpu_seconds = time.perf_counter() - begun, server.cpu_seconds() - cpu
    return load


def _watch(server: Server, out: Path, versions: Sequence[int], plan: Plan, load: Load, begun: float) -> None:
    """Swap versions and note the memory, evenly over the time."""
    looks = [(begun + plan.seconds * (i + 0.5) / 20, 0) for i in range(20)]
    swaps = [(begun + plan.seconds * (i + 0.5) / plan.swaps, i + 1) for i in range(plan.swaps)]
    try:
        for moment, swap in sorted(looks + swaps):
            time.sleep(max(0.0, moment - time.perf_counter()))
            if swap:
                write_json(out / CURRENT, {"version": versions[swap % len(versions)]})
            else:
                load.memory.append(server.memory())
    finally:
        if plan.swaps:
            write_json(out / CURRENT, {"version": versions[0]})


def versions_of(out: Path, swaps: int) -> list[int]:
    """Versions that are whole, the current one first.

    Raises:
        UserError: there is one, and `swaps` need another.
    """
    current = json.loads((out / CURRENT).read_text(encoding="utf-8"))["version"]
    there = sorted(int(path.parent.name) for path in (out / VERSIONS).glob(f"[0-9]*/{READY}"))
    if swaps and len(there) < 2:
        raise UserError(f"--swaps {swaps}: {out} has one version; export a second one, or leave the option out")
    return [current, *(number for number in there if number != current)]


def median(values: Sequence[float]) -> float:
    """Half lie below; NaN where there are none."""
    return statistics.median(values) if values else float("nan")
