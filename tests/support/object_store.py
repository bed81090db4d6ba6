"""An object store on loopback, and a proxy before it that can refuse or be silent."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moto.server import ThreadedMotoServer
from pyarrow import fs

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of the environment: moto takes any key."""


class Proxy:
    """Passes connections on to a server; closing and silence come by order, at once or at a request."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._speaks = threading.Event()
        self._speaks.set()
        self._open: set[socket.socket] = set()
        self._at: tuple[int, Callable[[], None]] | None = None
        self._requests = itertools.count(1)
        self.requests = 0
        """How many there were: of a client, what comes in one piece."""
        self.port = 0
        self._listen()

    def refuse(self) -> None:
        """Close all connections, and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else `accept` holds it open
        self._listener.close()
        for each in list(self._open):
            _close(each)

    def answer(self) -> None:
        """Take connections again, and speak."""
        self._speaks.set()
        if self._listener.fileno() == -1:
            self._listen()

    def silence(self) -> None:
        """Take connections, and pass nothing on."""
        self._speaks.clear()

    def disturb(self, disturbance: Callable[[], None], at: int, seconds: float) -> None:
        """Begin a disturbance at the `at`-th request from now on, and end it after some seconds."""

        def begin() -> None:
            disturbance()
            threading.Timer(seconds, self.answer).start()

        self._at = (self.requests + at, begin)

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {client, server}
            for one, other, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(one, other, asks), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if asks:
                    self.requests = next(self._requests)
                    if self._at is not None and self.requests >= self._at[0]:
                        (_, begin), self._at = self._at, None
                        begin()
                self._speaks.wait()
                other.sendall(data)
        for each in (one, other):
            self._open.discard(each)
            _close(each)


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@dataclass(frozen=True)
class Store:
    """A bucket, and the way to it."""

    bucket: str
    proxy: Proxy

    @property
    def query(self) -> str:
        """What follows the question mark of a location."""
        return f"scheme=http&endpoint_override=127.0.0.1:{self.proxy.port}"

    def at(self, path: str = "") -> str:
        """The location of an object or folder."""
        return f"s3://{self.bucket}{path and '/'}{path}?{self.query}"

    def files(self) -> fs.FileSystem:
        """Its file system."""
        return fs.FileSystem.from_uri(self.at())[0]

    def names(self, folder: str = "") -> list[str]:
        """What lies in it, at any depth."""
        selector = fs.FileSelector(f"{self.bucket}/{folder}", recursive=True, allow_not_found=True)
        found = [info.path for info in self.files().get_file_info(selector) if info.type == fs.FileType.File]
        return sorted(path.removeprefix(f"{self.bucket}/") for path in found)

    def put(self, folder: Path, to: str = "") -> None:
        """Copy a local folder into it."""
        fs.copy_files(str(folder), f"{self.bucket}/{to}", fs.LocalFileSystem(), self.files())


@contextmanager
def moto() -> Iterator[int]:
    """The port of a server on loopback that speaks S3."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()
