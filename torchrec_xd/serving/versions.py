"""Versions of a model that are served: the current one, a canary, and how a new one takes over.

A request keeps the version that it began with, until it ends; then nothing holds the old one any longer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.errors import UserError
from torchrec_xd.serving.artifact import CURRENT, VERSIONS, Artifact, current_version
from torchrec_xd.serving.requests import RequestReader, User
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.serving.server_settings import ServerSettings

SAMPLE_TOLERANCE = 1e-5
"""Largest difference to the scores of a sample, which may come from another CPU."""
_SHARES = 1_000_000
LONGEST_PAUSE = 60.0
"""Seconds at most between looks at a version that was refused, as every look may read all of its files."""
Say: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Told an event and what belongs to it."""


@dataclass(frozen=True)
class ServedVersion:
    """One version, loaded and checked."""

    artifact: Artifact
    scorer: Scorer
    reader: RequestReader

    @property
    def number(self) -> int:
        """Of the version."""
        return self.artifact.version

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.artifact.manifest.model

    @staticmethod
    def load(folder: Path, threads: int = 1, user_features: Path | None = None) -> ServedVersion:
        """Load a version, and replay its sample.

        Raises:
            UserError: it is damaged, or scores its sample otherwise than where it was exported.
        """
        artifact = Artifact.open(folder)
        found = ServedVersion(artifact, Scorer(artifact, threads), RequestReader.of(artifact, user_features))
        found.replay()
        return found

    def replay(self) -> None:
        """Score the sample.

        Raises:
            UserError: a score differs from the sample's.
        """
        rows, expected = self.artifact.sample()
        schema = self.artifact.schema.model_copy(update={"weight": None})
        (domain,) = schema.domains
        decoder = Decoder(schema, domain, labels=False, extra=())
        place = str(self.artifact.folder / "sample.parquet")
        decoder.check(place, rows.schema)
        batches = pa.Table.from_batches(rows.to_batches()).combine_chunks().to_batches()
        if not batches:
            raise UserError(f"{place}: has no rows, so that nothing can be compared; export again")
        found = self.scorer.score(decoder.decode(batches[0], Origin(place, 0)))
        tolerance = max(SAMPLE_TOLERANCE, self.artifact.manifest.tolerance)
        for name in expected.column_names:
            theirs = expected[name].to_numpy()
            differ = np.abs(found[name].astype(np.float64) - theirs)
            if not (differ <= tolerance).all():
                row = int(np.argmax(np.where(np.isnan(differ), np.inf, differ)))
                raise UserError(
                    f"{self.artifact.folder}: scores its sample otherwise than where it was exported: '{name}' of row "
                    f"{row} is {found[name][row]:.7g}, and was {theirs[row]:.7g} (allowed: {tolerance:g}); export "
                    "it on a machine like this one, or install the ONNX Runtime of that machine"
                )


class Versions:
    """The versions that a process serves.

    Args:
        settings: of the server.
        say: told what happens to versions.
    """

    def __init__(self, settings: ServerSettings, say: Say):
        self._settings, self.say = settings, say
        self._current: ServedVersion | None = None
        self._canary: ServedVersion | None = None
        self._seen: object = None
        """`current.json` at the last look."""
        self._refused: str | None = None
        """Why that look ended without the version; None where it is served."""
        self._pause = self._again = 0.0
        """Seconds until the next look at a refused version, and when it is due."""
        self.reason: str | None = "not loaded yet"
        """Why it is not ready; None where it is."""

    def load(self) -> None:
        """Load the current version and the canary.

        Raises:
            UserError: one of them fails its checks.
        """
        try:
            with self._look():
                current = self._load(current_version(self._settings.out))
                canary = None
                if self._settings.canary is not None:
                    canary = self._load(self._settings.out / VERSIONS / str(self._settings.canary))
                _check_models(current, canary)
        except UserError as error:
            self.reason = str(error)
            raise
        self._current, self._canary, self.reason = current, canary, None

    def follow(self) -> bool:
        """Take over the version that `current.json` names, if that changed; whether it was taken.

        A version that fails its checks is told and refused; the old one stays. It may only lack files that are still
        being copied, so it is looked at again, after pauses that double.
        """
        stamp, told = self._stamp(), self._refused
        changed = stamp != self._seen
        if stamp is None or not (changed or (told is not None and time.monotonic() >= self._again)):
            return False
        old = self._current
        try:
            if old is None:
                self.load()
            else:
                with self._look():
                    folder = current_version(self._settings.out)
                    if folder != old.artifact.folder:
                        new = self._load(folder)
                        _check_models(new, self._canary)
                        self._current = new
        except UserError as error:
            if changed or str(error) != told:
                self.say("version refused", {"reason": str(error), "version": old.number if old else None})
            return False
        taken = self._current
        if taken is None or taken is old:
            return False
        self.say("version taken over", {"version": taken.number, "before": old.number if old else None})
        return True

    def for_user(self, user: User | None) -> ServedVersion:
        """The version that answers a user: always the same one, as long as the versions and the share stay.

        Raises:
            UserError: none is ready.
        """
        current, canary = self._ready(), self._canary
        if canary is None or user is None or canary.number == current.number:
            return current
        return canary if share_of(user) < self._settings.canary_share else current

    def numbered(self, number: int) -> ServedVersion | None:
        """A version that is served; None where it is not."""
        return next((found for found in self.served() if found.number == number), None)

    def served(self) -> tuple[ServedVersion, ...]:
        """The current version, then the canary."""
        return tuple(found for found in (self._current, self._canary) if found is not None)

    def _ready(self) -> ServedVersion:
        if self._current is None:
            raise UserError(f"no version is ready: {self.reason}")
        return self._current

    @contextmanager
    def _look(self) -> Iterator[None]:
        """Keep what was looked at; where that ends in an error, also why, and when to look again."""
        stamp = self._stamp()
        self._pause = self._settings.poll if stamp != self._seen else min(2 * self._pause, LONGEST_PAUSE)
        self._seen, self._refused = stamp, None
        try:
            yield
        except Exception as error:
            self._refused, self._again = str(error), time.monotonic() + self._pause
            raise

    def _load(self, folder: Path) -> ServedVersion:
        return ServedVersion.load(folder, self._settings.threads, self._settings.user_features)

    def _stamp(self) -> object:
        """What changes when `current.json` is written anew; None while it is missing."""
        try:
            found = (self._settings.out / CURRENT).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _check_models(current: ServedVersion, canary: ServedVersion | None) -> None:
    if canary is not None and canary.model != current.model:
        raise UserError(
            f"canary: version {canary.number} is a '{canary.model}', and the current version {current.number} a "
            f"'{current.model}': one server serves one model"
        )


def share_of(user: User) -> float:
    """A user's place in [0, 1): the same in every process; 7 and "7" are one user."""
    found = hashlib.blake2b(str(user).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little") % _SHARES / _SHARES
