"""The lock of a run folder: one job at a time writes into it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from torchrec_xd.errors import UserError

logger = logging.getLogger(__name__)
LOCK = "run.lock"


@contextmanager
def run_lock(folder: Path, option: str = "--run-dir") -> Iterator[None]:
    """Hold a run folder for as long as the block lasts; make it, and remove it again if it stays empty.

    The lock is a POSIX record lock on the file `run.lock`: the kernel drops it when the process dies, however it dies.
    Shared file systems pass it on to their server (NFS does; Lustre if mounted with `flock`), which drops it when it
    finds the machine gone. Where a file system has no locks, a warning is logged and nothing is held.

    Args:
        folder: of a run, or another one that a command writes into.
        option: names the folder on the command line, for messages.

    Raises:
        UserError: another process holds the folder, or it cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK, option)
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written: {error}; name another folder") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is released: no other process can have taken it yet
        os.close(file)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _locked(path: Path, option: str) -> int:
    """A descriptor of the file, locked; the file says by whom."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(file, 1000)
                os.close(file)
                raise UserError(f"{option} {_in_use(path.parent, holder)}") from None
            logger.warning("%s: this file system has no locks (%s): start no second job on this folder", path, error)
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            break
        os.close(file)  # its holder has ended meanwhile, and removed the file
    os.ftruncate(file, 0)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    os.write(file, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": started}).encode())
    return file


def _in_use(folder: Path, holder: bytes) -> str:
    try:
        known = json.loads(holder)
        who = f"process {known['process']} on {known['host']}, since {known['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder} is in use by {who}; wait for that job, stop it, or name another folder"
