"""Checkpoints: everything a run needs to go on, written whole or not at all.

A checkpoint is a folder `step_<global step>`: torch's distributed checkpoint files (tables, dense weights, optimizer
state and each rank's random generators) and `position.json`, which holds a checksum of every other file. Whatever else
lies next to them is not touched.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from torchrec_xd.atomic_write import disk_is_gone
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint.generators import generator_states, held_states, restore_generators
from torchrec_xd.checkpoint.reading import Reader, causes, load
from torchrec_xd.checkpoint.restoring import restore, state_of
from torchrec_xd.checkpoint.saved import CHECKPOINT, Saved, checksum, read_saved, step_of, write_saved
from torchrec_xd.checkpoint.scores import Scores
from torchrec_xd.distributed.lookups import forget_cached_rows
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.distributed.sharding import local_pieces
from torchrec_xd.errors import OutageError, UserError
from torchrec_xd.private_names import checkpoint_files
from torchrec_xd.settings import Settings

if TYPE_CHECKING:
    from torchrec_xd.distributed.optimizers import Optimizers

logger = logging.getLogger(__name__)

CheckpointChoice = Literal["best", "last"]
"""The checkpoint with the best validation score, or the last one."""


class CheckpointSettings(Settings):
    """When checkpoints are written, and how many stay."""

    every_steps: PositiveInt | None = None
    """Also every so many steps, besides the end of every epoch."""
    keep: PositiveInt = 2
    """How many of the last checkpoints are kept; the best one is kept as well."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, settings: CheckpointSettings, processes: Processes, schema: str) -> None:
        self.directory, self.settings, self.processes, self.schema = directory, settings, processes, schema
        self.certain: tuple[int, bool] = (0, True)
        """Step of the checkpoint that this run resumed from or wrote last, and whether it notes its validation."""

    def save(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        position: LoaderState,
        step: int,
        score: float | None,
        epoch_steps: int | None = None,
        scores: Scores = Scores(),  # noqa: B008 - frozen
        *,
        validated: bool = True,
    ) -> None:
        """Write a checkpoint (a collective): into a temporary folder, renamed when all ranks are done.

        One that ends an epoch is written before validation (`validated=False`); `score` follows.

        Raises:
            UserError: on all ranks, if one could not write, or holds weights that are not finite; the checkpoints that
                are there stay.
            OutageError: on all ranks, if the disk of one did not answer.
        """
        final, partial = (self.directory / f"{kind}_{step:09d}" for kind in ("step", "partial"))
        rank = self.processes.rank
        state = state_of(model, optimizers)
        state |= generator_states(self.processes)  # last: writing cached rows back, which is done by now, may draw
        self._refuse_infinite(state, step)

        def make_room() -> None:
            if self.processes.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

        def finish() -> None:
            if self.processes.is_main_process:
                write_saved(partial, saved)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                self._prune(step)

        self._together(make_room, step)
        self._together(lambda: save_distributed(state, checkpoint_id=partial), step)
        mine = checkpoint_files(partial, rank)
        parts = self.processes.all_gather_object({path.name: checksum(path) for path in mine})
        sums = {name: value for part in parts for name, value in part.items()}
        saved = Saved(step, position, self.processes.size, self.schema, score, sums, epoch_steps, scores, validated)
        self._together(finish, step)
        self.certain = step, validated

    def score(self, step: int, score: float | None, scores: Scores) -> None:
        """Note in the checkpoint of `step` what validation says of it, and of all so far (a collective).

        Raises:
            UserError, OutageError: as `save`.
        """

        def note() -> None:
            if self.processes.is_main_process:
                folder = self.directory / f"step_{step:09d}"
                write_saved(folder, replace(read_saved(folder), score=score, scores=scores, validated=True))
                self._prune(step)

        self._together(note, step)
        self.certain = step, True

    def _together(self, action: Callable[[], object], step: int) -> None:
        """Do it; if it fails on some rank, fail on all."""
        problem, gone = "", False
        try:
            action()
        except CheckpointException as error:
            problem, gone = causes(error), any(disk_is_gone(cause) for cause, _ in error.failures.values())
        except OSError as error:
            problem, gone = str(error).strip() or repr(error), disk_is_gone(error)
        problems = [found for found in self.processes.all_gather_object((problem, gone)) if found[0]]
        if problems:
            failed = f"the checkpoint of step {step} could not be written to {self.directory}:"
            for told, is_outage in problems:
                if is_outage:
                    raise OutageError(
                        f"outage: {failed} {told}\n"
                        "those that are there are untouched: go on with --resume when the disk answers"
                    )
            raise UserError(
                f"{failed} {problems[0][0]}\n"
                "those that are there are untouched: make room, or make the folder writable, and go on with --resume"
            )

    def resume(
        self, model: nn.Module, optimizers: Optimizers, say: Callable[[str], None] = logger.warning
    ) -> Saved | None:
        """Load the last whole checkpoint into model, optimizer and random generators (a collective); None without any.

        Number of processes, plan and kind of device may differ from those that wrote it. Random generators that it does
        not hold, and all of another number of processes, start anew, from seed, step and rank. A damaged checkpoint is
        skipped, with a message to `say`.

        Raises:
            UserError: all are damaged, or the last whole one was written for a incompatible schema, or by another
                kind of optimizer. Nothing has been loaded then.
        """
        if self.processes.is_main_process:
            for killed in self._ours("partial"):  # while it was being written
                shutil.rmtree(killed, ignore_errors=True)
        folder = self.choose("last", say)
        if folder is None:
            return None
        saved = read_saved(folder)
        self._check_schema(folder, saved)
        generators: dict[str, dict[str, torch.Tensor]] = {}
        if saved.world_size == self.processes.size:
            entries = Reader(folder).read_metadata().state_dict_metadata
            generators = held_states(self.processes, entries, saved.step, say)
        restore(model, optimizers, folder, generators)
        restore_generators(self.processes, generators, saved.step)
        self.certain = saved.step, saved.validated
        return saved

    def hand_over(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        folder: Path,
        *,
        without: tuple[str, ...],
        weights_alone: bool = False,
    ) -> Saved:
        """Load a checkpoint into the model of another run, which goes on from it (a collective).

        Its tables may have more rows: these keep their first weights, with an optimizer state of zero. Random
        generators start anew, from seed, step and rank.

        Args:
            model: to be filled.
            optimizers: to be filled.
            folder: a whole checkpoint, as `choose` finds it.
            without: prefixes of weights that stay as they are.
            weights_alone: optimizer states stay as they are.

        Raises:
            UserError: the checkpoint is of another schema than this run's, or was written by another kind of optimizer.
        """
        saved = read_saved(folder)
        self._check_schema(folder, saved)
        restore(model, optimizers, folder, without=without, grown=True, weights_alone=weights_alone)
        restore_generators(self.processes, {}, saved.step)
        return saved

    def load(self, model: nn.Module, folder: Path, *, checked: bool = False) -> None:
        """Load weights alone, whatever the number of processes that wrote them (a collective).

        Args:
            model: to be filled.
            folder: the checkpoint.
            checked: whether its files have been compared with their checksums already, as `choose` does.

        Raises:
            UserError: the checkpoint is damaged, or of an incompatible schema.
        """
        if not checked:
            self.check(folder)
        self._on_all(lambda: self._check_schema(folder, read_saved(folder)))
        self._on_all(lambda: Reader(folder).read_metadata())
        load({"model": model.state_dict()}, folder)
        forget_cached_rows(model)

    def check(self, folder: Path) -> None:
        """Compare a checkpoint's files with their checksums (a collective; each rank reads its share).

        Raises:
            UserError: on all ranks: a file is missing, cut short or changed.
        """

        def compare() -> None:
            files = read_saved(folder).files
            for name in sorted(files)[self.processes.rank :: self.processes.size]:
                if Path(name).name != name or not (folder / name).is_file() or checksum(folder / name) != files[name]:
                    raise UserError(f"{folder} is damaged: {name} is missing, cut short or changed")

        self._on_all(compare)

    def _on_all(self, action: Callable[[], object]) -> None:
        """Do it on all ranks; what goes wrong on one is an error on all."""
        problem = ""
        try:
            action()
        except (UserError, OSError) as error:  # an OSError where files were removed meanwhile
            problem = str(error)
        problems = [found for found in self.processes.all_gather_object(problem) if found]
        if problems:
            raise UserError(problems[0])

    def choose(self, which: CheckpointChoice, say: Callable[[str], None] = logger.warning) -> Path | None:
        """The best or the last checkpoint that is whole (a collective); None where there is none at all.

        The best is the one with the best score, the last one where none has a score. A damaged one is passed over, with
        a message to `say`.

        Raises:
            UserError: all are damaged.
        """
        damaged: set[Path] = set()
        while True:
            listed = self.processes.broadcast_object(self._in_order(which) if self.processes.is_main_process else None)
            folder = next((folder for folder in listed if folder not in damaged), None)
            if folder is None and listed:
                raise UserError(f"none of the {len(listed)} checkpoints in {self.directory} is whole; train anew")
            if folder is None or self._is_whole(folder, say):
                return folder
            if self.processes.any(folder.exists()):
                damaged.add(folder)  # else a run that still trains has replaced it: look again

    def _is_whole(self, folder: Path, say: Callable[[str], None]) -> bool:
        try:
            self.check(folder)
        except UserError as error:
            if self.processes.any(folder.exists()):
                say(f"{error}; trying the next one")
            return False
        return True

    def last(self) -> Path | None:
        """The latest checkpoint."""
        return next(iter(self._in_order("last")), None)

    def best(self) -> Path | None:
        """The checkpoint with the best score; the latest one where none has a score."""
        return next(iter(self._in_order("best")), None)

    def _in_order(self, which: CheckpointChoice) -> list[Path]:
        """All checkpoints, the best or the last one first."""
        folders = self._ours("step")[::-1]
        return folders if which == "last" else sorted(folders, key=_score, reverse=True)

    def _ours(self, kind: Literal["step", "partial"]) -> list[Path]:
        """The folders that `save` made, by step: nothing that merely looks like them."""
        if not self.directory.is_dir():
            return []
        names = [
            path for path in self.directory.iterdir() if CHECKPOINT.fullmatch(path.name) and path.name.startswith(kind)
        ]
        return sorted((path for path in names if path.is_dir() and not path.is_symlink()), key=step_of)

    def _prune(self, step: int) -> None:
        """Remove what is not among the last up to `step`; later ones are damaged, and this run has passed them over."""
        earlier = [folder for folder in self._in_order("last") if step_of(folder) <= step]
        for folder in earlier[self.settings.keep :]:
            if folder != self.best():
                # First out of sight: a kill in between must not leave half a checkpoint that counts as one.
                partial = self.directory / f"partial_{step_of(folder):09d}"
                try:
                    folder.rename(partial)
                    shutil.rmtree(partial)
                except OSError as error:
                    logger.warning("an old checkpoint could not be removed: %s", error)

    def _refuse_infinite(self, state: dict[str, Any], step: int) -> None:
        """The loss of this step was computed before its update: weights can be infinite where it was not."""
        entries = {**state["model"], **{k: part for k, parts in state["optimizer"].items() for part in parts.values()}}
        bad = [name for name, value in entries.items() if not all(map(_finite, local_pieces(value)))]
        found = sorted({name for names in self.processes.all_gather_object(bad) for name in names})
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise UserError(
                f"after step {step} these weights or their optimizer states are NaN or infinite: "
                f"{', '.join(found[:5])}{more}. Nothing was saved, the last checkpoint stays. Lower optimizer.dense.lr "
                "or optimizer.tables.lr, or set optimizer.dense.clip_norm"
            )

    def _check_schema(self, folder: Path, saved: Saved) -> None:
        if saved.schema != self.schema and saved.schema.partition("+")[0] == self.schema.partition("+")[0]:
            raise UserError(
                f"{folder} does not belong to the vocabularies of this run, so that its rows are those of other keys: "
                "put the run's own folder vocabularies/ back, or train anew"
            )
        if saved.schema != self.schema:
            raise UserError(
                f"{folder} was trained with an incompatible schema ({saved.schema}, now {self.schema}): "
                "columns, tables or tasks have changed since; use the run's own config.yaml, or train anew"
            )


def _score(folder: Path) -> tuple[bool, float]:
    """What the best checkpoint is known by; one without a score, or damaged, comes last."""
    try:
        score = read_saved(folder).score
    except UserError:
        score = None
    return score is not None, score or 0.0


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; in one pass, without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))
