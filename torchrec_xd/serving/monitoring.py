"""What a server says about itself: Prometheus metrics, and a line of JSON for each request."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds."""
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers of one server add up; the client library reads it when it is imported."""


class Monitoring:
    """Metrics of one process; of all workers, where they share a folder."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.inflight = Gauge(
            "torchrec_xd_requests_in_flight",
            "Requests that are being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._requests = Counter(
            "torchrec_xd_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "torchrec_xd_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ("route",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._candidates = Counter(
            "torchrec_xd_candidates", "Candidates that were scored.", ("version",), registry=registry
        )
        self._unseen = Counter(
            "torchrec_xd_unseen_ids", "Ids without a row of their own.", ("feature",), registry=registry
        )
        self._missing = Counter(
            "torchrec_xd_missing_columns",
            "Requests without a column, read as null.",
            ("feature",),
            registry=registry,
        )
        self._refused = Counter("torchrec_xd_versions_refused", "Versions that failed their checks.", registry=registry)
        self._version = Gauge(
            "torchrec_xd_version",
            "Number of the version that is served.",
            ("model", "place"),
            registry=registry,
            multiprocess_mode="livemin",
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, version: int, candidates: int, unseen: Counts[str], missing: Sequence[str] = ()) -> None:
        """Count candidates; ids without a row and columns that were missing, by feature."""
        self._candidates.labels(str(version)).inc(candidates)
        for feature in missing:
            self._missing.labels(feature).inc()
        for feature, count in unseen.items():
            self._unseen.labels(feature).inc(count)

    def refused(self) -> None:
        """Count a version that was refused."""
        self._refused.inc()

    def serves(self, model: str, place: str, version: int) -> None:
        """Say which version is served as `current` or `canary`."""
        self._version.labels(model, place).set(version)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_worker(process: int, shared: str) -> None:
    """Drop the gauges of a worker that died: it answers nothing any longer. What it counted stays."""
    mark_process_dead(process, shared)  # type: ignore[no-untyped-call]


_lock = threading.Lock()


def log_line(event: str, content: Mapping[str, Any]) -> None:
    """A line of JSON on stdout; requests of several threads do not mix."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = orjson.dumps({"time": now, "event": event, **content}, option=orjson.OPT_APPEND_NEWLINE)
    with _lock:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
