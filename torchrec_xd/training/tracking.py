"""A run is followed for its trackers: they get what metrics.jsonl holds, without the training waiting for them."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from types import TracebackType
from typing import Any

from torchrec_xd.atomic_write import write_json
from torchrec_xd.config import RunConfig, TrackerName
from torchrec_xd.errors import InterruptedRunError
from torchrec_xd.log import VALID, RunLog
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.training.trackers import END_SECONDS, TRACKERS, Line, Status, Tracker, name_of

LOOK_SECONDS = 2.0
"""Between two looks at the run folder."""
RETRY_SECONDS = 20.0
"""Between two tries of a tracker that has failed."""


class Trackers:
    """The trackers of a run, each in a thread of its own. Enter it around everything that the run does.

    The threads read metrics.jsonl. A line is sent when a checkpoint holds its step, or notes its validation, so that no
    resumed run has to take one back: trackers cannot. What a killed process has not sent, the resumed run sends.

    Args:
        config: names the trackers; other ranks than 0 follow for none.
        folder: of the run.
        log: says what goes wrong.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, log: RunLog) -> None:
        names = config.trackers if log.rank == 0 else ()
        self._followers = [Follower(name, folder, config.by_key(), log.say) for name in names]

    def start(self, saved: Callable[[], tuple[int, bool]]) -> None:
        """Begin to look at the folder; metrics.jsonl grows only from now on.

        Args:
            saved: step of the last checkpoint, and whether its validation is noted; is called by the threads.
        """
        for follower in self._followers:
            follower.start(saved)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        until = time.monotonic() + END_SECONDS
        for follower in self._followers:
            follower.end("FINISHED" if error is None else "KILLED" if stopped else "FAILED")
        with _undisturbed():
            for follower in self._followers:
                follower.wait(until)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM waits: torchrun sends it to this process as soon as another one of a failed run has left."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Follower:
    """Follows a run folder for one tracker."""

    def __init__(
        self, name: TrackerName, folder: RunFolder, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._folder = folder
        self._settings = settings
        self._say = say
        self._saved: Callable[[], tuple[int, bool]] = lambda: (0, True)
        self._tracker: Tracker | None = None
        self._opened = False
        self._known = folder.tracker(name)
        self._read = 0
        """Bytes of metrics.jsonl that were read."""
        self._lines: list[Line] = []
        """What was read and is not sent."""
        self._sent = 0
        self._warned = False
        self._status: Status | None = None
        self._ends = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._follow, name=f"tracker {name}", daemon=True)

    def start(self, saved: Callable[[], tuple[int, bool]]) -> None:
        """Begin to follow."""
        self._saved = saved
        self._thread.start()

    def end(self, status: Status) -> None:
        """Send the rest, and tell how the run ended."""
        self._status = status
        self._ends.set()

    def wait(self, until: float) -> None:
        """Wait for the end of the thread, up to a moment of the monotonic clock."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._abandoned = True
            self._say(f"warning: tracker {self._name} did not answer in {END_SECONDS:.0f} s; it lacks some of the run")

    def _follow(self) -> None:
        pause = 0.0
        while True:
            ends = self._ends.wait(pause)
            try:
                self._look()
                if ends:
                    self._finish()
                pause = LOOK_SECONDS
            except Exception as error:  # whatever it is, it does not end the run
                self._warn(error, ends)
                pause = RETRY_SECONDS
            if ends:
                return

    def _warn(self, error: Exception, ends: bool) -> None:
        if self._abandoned or (self._warned and not ends):
            return
        said = re.sub(r"://[^/@\s]*@", "://***@", str(error).strip().partition("\n")[0]) or type(error).__name__
        then = "it lacks some of the run" if ends else "the run goes on, and it is tried again"
        self._say(f"warning: tracker {self._name}: {said}; {then}")
        self._warned = True

    def _look(self) -> None:
        """Send what has become certain."""
        self._tracker = self._tracker or TRACKERS[self._name](self._folder)
        self._read_on()
        if not self._opened:
            self._open(self._tracker)
        certain = (inf, True) if self._status == "FINISHED" else self._saved()
        places = (place for place, line in enumerate(self._lines) if (line.step, line.of_validation) > certain)
        count = next(places, len(self._lines))
        if count:
            self._tracker.send(self._lines[:count], self._sent + count)
            self._sent += count
            del self._lines[:count]

    def _open(self, tracker: Tracker) -> None:
        known = json.loads(self._known.read_text(encoding="utf-8"))["run"] if self._known.is_file() else None
        run, sent = tracker.open(known)
        if sent > len(self._lines):
            self._say(f"tracker {self._name}: run {run} has later steps than the resumed run; another one begins")
            run, sent = tracker.open(None)
        write_json(self._known, {"run": run})
        tracker.describe(self._settings)
        self._sent, self._opened = sent, True
        del self._lines[:sent]

    def _read_on(self) -> None:
        if not self._folder.metric_lines.is_file():
            return
        with self._folder.metric_lines.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        now = int(1000 * time.time())
        for line in map(json.loads, whole.splitlines()):
            step = line.pop("step")
            numbers = {name_of(key): value for key, value in line.items() if isinstance(value, int | float)}
            self._lines.append(Line(step, numbers, now, VALID in line))

    def _finish(self) -> None:
        assert self._tracker is not None
        assert self._status is not None
        metrics = final_metrics(self._folder) if self._status == "FINISHED" else {}
        self._tracker.finish(self._status, metrics, self._saved()[0], self._folder.reports())


def final_metrics(folder: RunFolder) -> dict[str, float]:
    """The metrics of a finished run as `test/click/target/auc`."""
    content = folder.read_metrics()
    split = content["split"]
    return {
        name_of(f"{split}/{task}/{metric}"): value
        for task, metrics in content["eval"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float)
    }
