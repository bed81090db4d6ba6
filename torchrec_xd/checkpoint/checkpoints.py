"""Checkpoints: everything a run needs to go on, written whole or not at all.

A checkpoint is a folder `step_<global step>`: torch's distributed checkpoint files (tables, dense weights, optimizer
state and each rank's random generator) and `position.json`, which holds a checksum of every other file.
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveInt
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint.reading import causes, load
from torchrec_xd.checkpoint.resharding import convert, moved_states
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.errors import UserError
from torchrec_xd.private_names import checkpoint_files
from torchrec_xd.settings import Settings

if TYPE_CHECKING:
    from torchrec_xd.distributed.optimizers import Optimizers

logger = logging.getLogger(__name__)
POSITION = "position.json"


class CheckpointSettings(Settings):
    """When checkpoints are written, and how many stay."""

    every_steps: PositiveInt | None = None
    """Also every so many steps, besides the end of every epoch."""
    keep: PositiveInt = 2
    """How many of the last checkpoints are kept; the best one is kept as well."""


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint's `position.json`."""

    step: int
    """Optimizer steps since the run began."""
    position: LoaderState
    world_size: int
    schema: str
    """Fingerprint of the schema."""
    score: float | None = None
    """The monitored validation metric, where it was measured; larger is better."""
    files: dict[str, int] = field(default_factory=dict)
    """CRC-32 of every other file."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, settings: CheckpointSettings, processes: Processes, schema: str) -> None:
        self.directory, self.settings, self.processes, self.schema = directory, settings, processes, schema

    def save(
        self, model: nn.Module, optimizers: Optimizers, position: LoaderState, step: int, score: float | None
    ) -> None:
        """Write a checkpoint (a collective): into a temporary folder, renamed when all ranks are done.

        Raises:
            UserError: on all ranks, if one could not write; the checkpoints that are there stay.
        """
        final = self.directory / f"step_{step:09d}"
        partial = self.directory / f"partial_{step:09d}"
        rank = self.processes.rank

        def make_room() -> None:
            if self.processes.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

        def finish() -> None:
            if self.processes.is_main_process:
                (partial / POSITION).write_text(json.dumps(asdict(saved)))
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                self._prune()

        self._together(make_room, step)
        self._together(lambda: save_distributed(_state(model, optimizers, rank), checkpoint_id=partial), step)
        mine = checkpoint_files(partial, rank)
        sums = self.processes.all_gather_object({path.name: checksum(path) for path in mine})
        saved = Saved(
            step, position, self.processes.size, self.schema, score, {k: v for part in sums for k, v in part.items()}
        )
        self._together(finish, step)

    def _together(self, action: Callable[[], object], step: int) -> None:
        """Do it; if it fails on some rank, fail on all."""
        problem = ""
        try:
            action()
        except CheckpointException as error:
            problem = causes(error)
        except OSError as error:
            problem = str(error).strip() or repr(error)
        problems = [found for found in self.processes.all_gather_object(problem) if found]
        if problems:
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {problems[0]}\n"
                "those that are there are untouched: make room, or make the folder writable, and go on with --resume"
            )

    def resume(
        self, model: nn.Module, optimizers: Optimizers, say: Callable[[str], None] = logger.warning
    ) -> Saved | None:
        """Load the last whole checkpoint into model, optimizer and random generator (a collective); None without any.

        Number of processes and plan may differ from those that wrote it. Random generators of another number of
        processes start anew, from seed, step and rank. A damaged checkpoint is skipped, with a message to `say`.

        Raises:
            UserError: all are damaged, or the last whole one was written for a incompatible schema, or by another
                kind of optimizer. Nothing has been loaded then.
        """
        folder = self._last_whole(say)
        if folder is None:
            return None
        saved = read_saved(folder)
        self._check_schema(folder, saved)
        optimizers.init_state()
        state = _state(model, optimizers, self.processes.rank)
        generators = state.pop("rng")
        moved = moved_states(state, folder)
        same = {
            name: {part: value for part, value in parts.items() if (name, part) not in moved}
            for name, parts in state["optimizer"].items()
        }
        same = {name: parts for name, parts in same.items() if parts}
        exact = saved.world_size == self.processes.size
        load({"model": state["model"], "optimizer": same, **({"rng": generators} if exact else {})}, folder)
        for (name, _), source in moved.items():
            if source is not None:
                convert(source, name, folder)
        optimizers.state.load_state_dict({"state": state["optimizer"]})
        if exact:
            torch.set_rng_state(generators[str(self.processes.rank)])
        else:
            torch.manual_seed(zlib.crc32(f"{torch.initial_seed()}/{saved.step}/{self.processes.rank}".encode()))
        return saved

    def load(self, model: nn.Module, folder: Path) -> None:
        """Load weights alone, whatever the number of processes that wrote them (a collective).

        Raises:
            UserError: the checkpoint is damaged, or of an incompatible schema.
        """
        self.check(folder)
        self._check_schema(folder, read_saved(folder))
        load({"model": model.state_dict()}, folder)

    def check(self, folder: Path) -> None:
        """Compare a checkpoint's files with their checksums (a collective; each rank reads its share).

        Raises:
            UserError: on all ranks: a file is missing, cut short or changed.
        """
        problem = ""
        try:
            files = read_saved(folder).files
            for name in sorted(files)[self.processes.rank :: self.processes.size]:
                if not (folder / name).is_file() or checksum(folder / name) != files[name]:
                    problem = f"{folder} is damaged: {name} is missing, cut short or changed"
        except UserError as error:
            problem = str(error)
        problems = [found for found in self.processes.all_gather_object(problem) if found]
        if problems:
            raise UserError(problems[0])

    def _last_whole(self, say: Callable[[str], None]) -> Path | None:
        folders = sorted(self._all(), reverse=True)
        for folder in folders:
            try:
                self.check(folder)
            except UserError as error:
                say(f"{error}; trying the one before")
                continue
            return folder
        if folders:
            raise UserError(f"none of the {len(folders)} checkpoints in {self.directory} is whole; train anew")
        return None

    def last(self) -> Path | None:
        """The latest checkpoint."""
        return max(self._all(), default=None)

    def best(self) -> Path | None:
        """The checkpoint with the best score; the latest one where none has a score."""
        scored = {folder: read_saved(folder).score for folder in self._all() if (folder / POSITION).is_file()}
        scores = {folder: score for folder, score in scored.items() if score is not None}
        return max(scores, key=lambda folder: scores[folder]) if scores else self.last()

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step_*")) if self.directory.is_dir() else []

    def _prune(self) -> None:
        keep = {*self._all()[-self.settings.keep :], self.best()}
        for folder in self._all():
            if folder not in keep:
                shutil.rmtree(folder)

    def _check_schema(self, folder: Path, saved: Saved) -> None:
        if saved.schema != self.schema:
            raise UserError(
                f"{folder} was trained with an incompatible schema ({saved.schema}, now {self.schema}): "
                "columns, tables or tasks have changed since; use the run's own config.yaml, or train anew"
            )


def read_saved(folder: Path) -> Saved:
    """The description of a checkpoint.

    Raises:
        UserError: the folder is no checkpoint of ours.
    """
    try:
        content = json.loads((folder / POSITION).read_text())
        return Saved(**{**content, "position": LoaderState(**content["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is no checkpoint: position.json: {error}") from None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def _state(model: nn.Module, optimizers: Optimizers, rank: int) -> dict[str, Any]:
    # Parameter groups hold settings alone, which the config has; a state of pure tensors needs no pickle.
    return {
        "model": model.state_dict(),
        "optimizer": optimizers.state.state_dict()["state"],
        "rng": {str(rank): torch.get_rng_state()},
    }
