"""`torchrec-xd serve`: one socket, one process or several, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import types
from collections.abc import Callable
from multiprocessing.connection import wait

import uvicorn

from torchrec_xd.errors import UserError
from torchrec_xd.serving.app import create_app
from torchrec_xd.serving.monitoring import SHARED, forget_worker, log_line
from torchrec_xd.serving.server_settings import ServerSettings
from torchrec_xd.serving.versions import Versions

DRAIN_SECONDS = 30
"""That requests have to end after SIGTERM."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: ServerSettings, show: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are answered.

    Args:
        settings: of the server.
        show: told where it listens.
        warn: told what is risky.

    Raises:
        UserError: the artefact or the canary fails its checks, or the address is taken.
    """
    versions = Versions(settings, log_line)
    versions.load()
    with _listening(settings) as listening:
        host, port = listening.getsockname()[:2]
        if settings.host not in LOOPBACK:
            warn(
                f"--host {settings.host}: whoever reaches this machine can send requests; there is no login and no "
                "TLS: put a proxy that has both in front"
            )
        numbers = [each.number for each in versions.served()]
        address, model = f"http://{f'[{host}]' if ':' in host else host}:{port}", versions.served()[0].model
        listening.listen(2048)
        log_line("listening", {"address": address, "model": model, "versions": numbers})
        show(f"{model}, version {' and '.join(map(str, numbers))}, is served on {address}; to try it: open that page")
        if settings.workers == 1:
            _run(settings, listening, versions)
        else:
            del versions  # each worker has its own; pages of tables are shared, as they are mapped from files
            _run_workers(settings, listening)


def _listening(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror or error}); name "
            "another port, 0 for a free one"
        ) from None
    return found


def _run(settings: ServerSettings, listening: socket.socket, versions: Versions | None = None) -> None:
    config = uvicorn.Config(
        create_app(settings, versions),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=2048,
    )
    for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended, which is no failure
        signal.signal(name, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _run_workers(settings: ServerSettings, listening: socket.socket) -> None:
    """Processes on one socket; one that dies is started again."""
    context = multiprocessing.get_context("spawn")
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="torchrec_xd_metrics") as shared:
        os.environ[SHARED] = shared  # read by the workers
        workers: list[multiprocessing.process.BaseProcess] = []

        def stop(number: int, _: types.FrameType | None) -> None:
            ended.set()
            for worker in workers:
                if worker.pid is not None and worker.is_alive():
                    os.kill(worker.pid, signal.SIGTERM)

        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, stop)
        while not ended.is_set() or workers:
            while not ended.is_set() and len(workers) < settings.workers:
                workers.append(context.Process(target=_run, args=(settings, listening)))
                workers[-1].start()
            wait([worker.sentinel for worker in workers], timeout=1)
            for worker in [each for each in workers if not each.is_alive()]:
                workers.remove(worker)
                assert worker.pid is not None
                forget_worker(worker.pid, shared)
                if not ended.is_set():
                    log_line("worker ended", {"pid": worker.pid, "exit_code": worker.exitcode})
                    ended.wait(1)  # one that cannot start is not started without end
