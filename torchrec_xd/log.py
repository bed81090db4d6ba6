"""The log of a run: a file per rank, metrics as JSON lines and TensorBoard events, and a progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from torchrec_xd.atomic_write import write_text
from torchrec_xd.errors import UserError
from torchrec_xd.json_lines import read_json_lines
from torchrec_xd.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

NOTEBOOK_WIDTH = 100
VALID = "valid"
"""Name of the validation score in metrics.jsonl."""
PLAIN_SECONDS = 10.0
"""Where there is no terminal, progress is a line of text at most this often."""


class RunLog:
    """The log of one rank of a run; enter it around everything the run does.

    While it is entered, all output of libraries (Python's logging and warnings, and all that is written to stderr, by
    C++ too) goes to `directory/log.txt`, on other ranks to `log.rank<k>.txt`, and not to the screen. An exception that
    leaves the block is written there as well, and travels on to a restored screen. Files are appended to: a resumed
    run calls `truncate_after` first.

    Args:
        directory: the run folder, made if missing; None keeps nothing and leaves stderr alone.
        rank: only rank 0 writes to the screen and writes metrics.
    """

    def __init__(self, directory: Path | None, rank: int = 0) -> None:
        self.directory = directory
        self.rank = rank
        self._console = _console(sys.stderr, rank)
        self._metrics = RunFolder(directory).metric_lines if directory and rank == 0 else None
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._opened = ExitStack()

    def __enter__(self) -> RunLog:
        if self.directory is None:
            with ExitStack() as opened:
                opened.enter_context(quiet_torch())
                self._opened = opened.pop_all()
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        path = RunFolder(self.directory).log(self.rank)
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a", buffering=1, encoding="utf-8"))
            screen = opened.enter_context(_stderr_into(file))
            opened.enter_context(_logging_into(file))
            opened.enter_context(quiet_torch())
            self._console = _console(screen, self.rank)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self.directory is not None:
            logger.error("the run ended with %s", kind.__name__ if kind else "", exc_info=error)
        if self._events is not None:
            self._events.close()
            self._events = None
        self._opened.close()
        self._console = _console(sys.stderr, self.rank)

    def say(self, text: str) -> None:
        """A line on the screen of rank 0, above the progress bar, and in the log file of every rank."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        logger.info(text)

    def metrics(self, step: int, values: Mapping[str, float | str | None]) -> None:
        """One line `{"step": step, name: value, …}` of metrics.jsonl, on the disk at once; numbers to TensorBoard too.

        What JSON cannot represent (NaN, infinity) becomes null, and TensorBoard gets no point for it.
        """
        if self._metrics is None:
            return
        assert "step" not in values
        finite = {name: value if _is_sayable(value) else None for name, value in values.items()}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        events = self._tensorboard()
        for name, value in finite.items():
            if isinstance(value, int | float):
                events.add_scalar(name, value, step)
        events.flush()

    def truncate_after(self, step: int, *, validated: bool = True) -> None:
        """Forget the metrics past `step`, and a line that was broken off, before a run is resumed from that step.

        The resumed file then grows into what an uninterrupted run would have written. TensorBoard hides the points past
        `step` as well. To be called before `metrics`.

        Args:
            step: the last one that the resumed run does not repeat.
            validated: whether it does not repeat the validation after it either; else that line is forgotten too.

        Raises:
            UserError: a line of metrics.jsonl was not written by a run.
        """
        if self._metrics is None:
            return
        assert self._events is None, "truncate_after comes before metrics"
        self._purge_step = step + 1
        if not self._metrics.exists():
            return
        lines, _ = read_json_lines(self._metrics)
        for number, line in enumerate(lines, 1):
            if not isinstance(line.get("step"), int):
                raise UserError(f"{self._metrics}:{number}: {line} has no integer 'step'; remove the line")
        kept = [
            line for line in lines if line["step"] < step or (line["step"] == step and (validated or VALID not in line))
        ]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def progress(self, total: int, done: int = 0) -> Progress:
        """A progress display over `total` steps of which `done` are completed; silent on ranks other than 0."""
        return Progress(self._console, total, done)

    def _tensorboard(self) -> SummaryWriter:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - most ranks and commands write none

            assert self.directory is not None
            self._events = SummaryWriter(str(RunFolder(self.directory).tensorboard), purge_step=self._purge_step)
        return self._events


class Progress:
    """Steps done out of `total`: a bar on a terminal, elsewhere a line of text every `PLAIN_SECONDS`. Enter it."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._first = self._done = self._told = done
        self._text = ""
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            refresh_per_second=2,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done)
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._bar.disable and self._done > self._told:
            self._line(time.monotonic())

    def update(self, done: int, text: str = "") -> None:
        """Show that `done` steps are completed; `text` (the loss, the speed) follows the count."""
        self._done, self._text = done, text
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.update(self._task, completed=done, description=text)
        elif now - self._said >= PLAIN_SECONDS:
            self._line(now)

    def _line(self, now: float) -> None:
        self._said, self._told = now, self._done
        left = (now - self._start) / max(self._done - self._first, 1) * (self._total - self._done)
        text = f"{self._done}/{self._total}  {self._text}  {now - self._start:.0f} s gone, {left:.0f} s left"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console(screen: TextIO, rank: int) -> Console:
    """Writes to the screen; only rank 0 does. In a notebook it writes as to a terminal: one line, overwritten."""
    notebook = _is_notebook(screen)
    return Console(
        file=screen,
        quiet=rank != 0,
        force_jupyter=False,
        force_terminal=True if notebook else None,
        width=NOTEBOOK_WIDTH if notebook else None,
    )


def _is_notebook(screen: TextIO) -> bool:
    """Whether a stream is a notebook cell's output: the stream class of Jupyter's kernel."""
    return type(screen).__module__.partition(".")[0] == "ipykernel"


@contextmanager
def _stderr_into(file: TextIO) -> Iterator[TextIO]:
    """Send Python's stderr and file descriptor 2, where C++ writes, into `file`; yields what was the screen."""
    stderr = sys.stderr
    stderr.flush()
    screen = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        with os.fdopen(screen, "w", encoding="utf-8", closefd=False) as stream, redirect_stderr(file):
            yield stderr if _is_notebook(stderr) else stream  # a cell's output is no file descriptor
    finally:
        with suppress(OSError):  # a full disk: the error is on its way to the screen, which has to be restored for it
            sys.stderr.flush()
        os.dup2(screen, 2)
        os.close(screen)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Leave out what torch has to say about the code of torchrec: nothing that a user can act on."""
    logger = logging.getLogger("torch.fx._symbolic_trace")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("is_fx_tracing will return true")

    logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            yield
    finally:
        logger.removeFilter(wanted)


@contextmanager
def _logging_into(file: TextIO) -> Iterator[None]:
    """Send Python's logging, from INFO on, and its warnings into `file` and nowhere else."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)


def _is_sayable(value: float | str | None) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
