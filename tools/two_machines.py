"""Two machines on this one: network namespaces joined by a wire that can be cut, narrowed and made to lose packets.

Needs root, `ip` and `tc` (Debian's iproute2) and `nft` (nftables).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

ADDRESSES = ("10.78.31.1", "10.78.31.2")
PORT = 29500


def missing() -> str:
    """Why there cannot be two machines here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in ("ip", "tc", "nft") if shutil.which(name) is None]
    return f"{', '.join(lacking)} not installed (Debian: iproute2, nftables)" if lacking else ""


@dataclass(frozen=True)
class TwoMachines:
    """The names of the two namespaces; the ends of the wire are called the same."""

    names: tuple[str, str]

    def torchrun(self, machine: int, processes: int, command: Sequence[str]) -> list[str]:
        """What starts the ranks of one machine, of a job that runs on both.

        Args:
            machine: 0, where the job's store is, or 1.
            processes: ranks on each machine.
            command: a module and its arguments.
        """
        name = self.names[machine]
        inside = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}"]
        elastic = [
            sys.executable,
            "-m",
            "torchrec_xd.distributed.elastic",
            "--nnodes=2",
            f"--nproc-per-node={processes}",
        ]
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=job"]
        # Both have the name of this one machine: where the store and who one is has to be said.
        who = [f"--rdzv-conf=is_host={int(machine == 0)}", f"--local-addr={ADDRESSES[machine]}"]
        return [*inside, *elastic, *meet, *who, "-m", *command]

    def cut(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._drop("")

    def lose(self, percent: int) -> None:
        """Lose so many of a hundred packets (below 100), drawn at random, in each direction."""
        self._drop(f"numgen random mod 100 < {percent}")

    def narrow(self, mbit: float) -> None:
        """Let so many Mbit/s pass, in each direction."""
        for name in self.names:
            limit = ["tbf", "rate", f"{round(1000 * mbit)}kbit", "burst", "32kbit", "latency", "400ms"]
            _inside(name, "tc", "qdisc", "replace", "dev", name, "root", *limit)

    def mend(self) -> None:
        """Have everything pass again."""
        for name in self.names:
            _inside(name, "nft", "add table inet wire; delete table inet wire")
            _inside(name, "tc", "qdisc", "replace", "dev", name, "root", "pfifo")

    def _drop(self, which: str) -> None:
        for name in self.names:
            rules = [
                "add table inet wire",
                "add chain inet wire arriving { type filter hook input priority 0; }",
                f"add rule inet wire arriving iifname {name} {which} drop",
            ]
            _inside(name, "nft", "; ".join(rules))

    def end(self) -> None:
        """Kill whatever runs on the two machines."""
        while left := [int(pid) for name in self.names for pid in _run("ip", "netns", "pids", name).split()]:
            for process in (psutil.Process(pid) for pid in left if psutil.pid_exists(pid)):
                process.kill()


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Both, with a wire that is in order; nothing of them is left afterwards."""
    one, other = (f"xd{os.getpid()}{letter}" for letter in "ab")
    made = TwoMachines((one, other))
    try:
        for name in made.names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", one, "netns", one, "type", "veth", "peer", "name", other, "netns", other)
        for name, address in zip(made.names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", name)
            _run("ip", "-n", name, "link", "set", name, "up")
        yield made
    finally:
        present = {line.split()[0] for line in _run("ip", "netns", "list").splitlines()}
        if present.issuperset(made.names):
            made.end()
        for name in present.intersection(made.names):
            _run("ip", "netns", "delete", name)


def _inside(name: str, *command: str) -> None:
    _run("ip", "netns", "exec", name, *command)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
