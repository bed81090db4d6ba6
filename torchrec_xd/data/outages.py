"""Stores that do not answer: reading is tried again for a time, and an outage is told as one."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torchrec_xd.errors import OutageError

T = TypeVar("T")
logger = logging.getLogger(__name__)
DEFAULT_SECONDS = 300.0
_FIRST, _LONGEST = 0.5, 15.0
"""Seconds of the first and of the longest wait; each is twice as long as the one before, less up to half by chance."""
_OUTAGE = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|INTERNAL_FAILURE)"
    r"|HTTP status (429|5\d\d)"
    r"|google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"
    r"|Azure Error: \[\w*\] (429|5\d\d|Fail to get a new connection|Error while sending request)"
    r"|after [1-9]\d* retries, max_retries(?![\s\S]*\b4(?!08|29)\d\d [A-Z])"
)
"""What PyArrow's file systems say of a store that refuses, is silent, is overloaded or fails, and last what deltalake
says of a store that it has asked often. There is no code for it: all of their errors are an OSError with a text."""


@dataclass(frozen=True)
class Patience:
    """How long a store that does not answer is asked again."""

    seconds: float = DEFAULT_SECONDS
    setting: str = ""
    """Its name, for messages."""

    def __call__(self, read: Callable[[], T], place: str) -> T:
        """What `read` returns. While the store at `place` does not answer, it is called again.

        Each call tries for some time by itself: PyArrow's S3 client 6 s where it is refused, 100 s where nothing comes.

        Raises:
            OutageError: `seconds` have passed since the first call of `read`.
        """
        began, wait = time.monotonic(), _FIRST
        while True:
            try:
                return read()
            except OSError as error:
                if not is_outage(error):
                    raise
                gone = time.monotonic() - began
                if gone >= self.seconds:
                    raise OutageError(self._message(place, error, gone)) from error
                pause = min(wait * random.uniform(0.5, 1.0), self.seconds - gone)  # noqa: S311 - many ranks, one store
                logger.warning("%s: the store does not answer (%s); asked again in %.1f s", place, error, pause)
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST)

    def _message(self, place: str, error: OSError, gone: float) -> str:
        limit = f" ({self.setting})" if self.setting else ""
        return (
            f"outage: the store of {place} has not answered for {gone:.0f} s{limit}: {error}\n"
            "the files are not at fault; give the same command again when the store answers, train with --resume"
        )


def is_outage(error: OSError) -> bool:
    """Whether a store did not answer, or could not, for now: what it did not find or does not allow is an answer."""
    return isinstance(error, ConnectionError | TimeoutError) or _OUTAGE.search(str(error)) is not None
