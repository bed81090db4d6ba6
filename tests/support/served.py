"""A server of its own process on a free port of this machine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

BODY: dict[str, Any] = {"request": {"user": 7, "hist": [1, 2, 3]}, "candidates": {"item": [4, 5], "price": [0.5, None]}}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until something has happened.

    Raises:
        AssertionError: it did not happen in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


class Served:
    """`torchrec-xd serve`; its lines of JSON are kept."""

    def __init__(self, out: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "torchrec_xd.cli",
            "serve",
            str(out),
            "--port",
            "0",
            "--poll",
            "0.05",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if not first:
            _, error = self.process.communicate(timeout=30)
            raise RuntimeError(error)
        self.lines.append(json.loads(first))
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.client = httpx.Client(base_url=self.lines[0]["address"], timeout=30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of an event so far."""
        return [line for line in list(self.lines) if line["event"] == name]

    def stop(self) -> int:
        """End it with SIGTERM; its exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=30)
        return code

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.stop()


def half_request(server, body=None, length=None):
    """A request whose body has not come yet."""
    content = orjson.dumps(body or BODY)
    address = urlsplit(server.lines[0]["address"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.putrequest("POST", "/score")
    connection.putheader("Content-Length", str(length or len(content)))
    connection.endheaders()
    return connection, content
