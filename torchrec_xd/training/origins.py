"""Where a run's first weights come from: another run's, by `init_from` or by `continue_from`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_xd.atomic_write import write_json
from torchrec_xd.checkpoint import POSITION, check_fits, checksum, transfer
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.stamps import current_stamps, data_changes, read_stamps
from torchrec_xd.distributed.optimizers import Optimizers
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.embeddings import table_initialisers
from torchrec_xd.errors import UserError
from torchrec_xd.log import RunLog
from torchrec_xd.models import find_model
from torchrec_xd.models.model import Model
from torchrec_xd.models.transfer import EVERYTHING
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema
from torchrec_xd.training.building import continues, trained_by
from torchrec_xd.training.inference import checkpoints_of, choose_checkpoint
from torchrec_xd.training.vocabularies import check_clock

logger = logging.getLogger(__name__)
TEACHER = "teacher."
"""Prefix of the names of frozen weights."""


# ---- init_from -------------------------------------------------------------------------------------------------------


def load_source_weights(
    config: RunConfig, source: Path, model: nn.Module, folder: RunFolder, processes: Processes, log: RunLog
) -> None:
    """Load the declared weights of the source run, and write down what became of all of them: transfer.json."""
    trained, checkpoint = _source_checkpoint(config, source, processes)
    weights = checksum(checkpoint / POSITION)
    if _begun_with(folder.transfer).get("checksum") not in (None, weights):
        raise UserError(
            f"init_from: {source} has been trained again since {folder.path} began; begin another run, or put it back"
        )
    if changed := _changes_since(trained, RunFolder(source)):
        log.say(f"init_from: the data that {source} was trained on have changed since:\n{changed}")
    report = transfer(model, checkpoint, *_declared(config, trained))
    content = {"from": str(checkpoint), "checksum": weights, **asdict(report)}
    processes.on_main(lambda: write_json(folder.transfer, content))
    logger.info("transfer: %d loaded, %d fresh, %d pruned", *(len(part) for part in asdict(report).values()))


def _source_checkpoint(config: RunConfig, source: Path, processes: Processes) -> tuple[RunConfig, Path]:
    """The run that `init_from` names, and its checkpoint."""
    trained = load_run(source)
    return trained, choose_checkpoint(checkpoints_of(trained, RunFolder(source), processes), config.init_checkpoint)


def _declared(config: RunConfig, trained: RunConfig) -> tuple[dict[str, str], tuple[str, ...]]:
    """What is taken from a source run: prefixes here to those there, and what may be left behind."""
    declared = find_model(config.model.name).transfer
    assert declared is not None
    if continues(config, trained):
        return EVERYTHING, ()
    return {**declared.prefixes, **declared.further(trained_by(config), trained_by(trained))}, declared.prunable


def trained_again(source: Path, folder: RunFolder) -> bool:
    """Whether a run was trained again since another one began with its weights.

    Args:
        source: run folder of the first one; where its checkpoints were deleted, nothing says that it was.
        folder: of the one that began with it.

    Raises:
        UserError: its transfer.json is damaged.
    """
    begun, checkpoints = _begun_with(folder.transfer), RunFolder(source).checkpoints
    if "checksum" not in begun or not any(checkpoints.glob("step_*")):
        return False
    position = checkpoints / Path(str(begun.get("from"))).name / POSITION
    return not position.is_file() or checksum(position) != begun["checksum"]


def _begun_with(path: Path) -> dict[str, Any]:
    """What a run wrote down of the checkpoint that it began with; empty where it begins now, or began with none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key in ("from", "checksum")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; begin another run") from None


def _changes_since(config: RunConfig, folder: RunFolder) -> str:
    """What has become of the files that a run was trained on; empty where they are not here any more."""
    try:
        now = current_stamps(config.schema_in_use, ["train"], config.loader.patience)
        return data_changes(read_stamps(folder.data), now)
    except UserError as error:
        logger.info("the data of %s cannot be looked at: %s", folder.path, error)
        return ""


# ---- continue_from ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """The last checkpoint of the run that a new one goes on from."""

    config: RunConfig
    """Of the new run."""
    before: RunConfig
    """Of the run that it goes on from."""
    checkpoint: Path
    processes: Processes

    @property
    def teacher_apart(self) -> bool:
        """Whether a frozen teacher comes from `init_from`, not from the checkpoint."""
        return self.config.init_from is not None and RunFolder(self.config.init_from).exists()

    @property
    def without(self) -> tuple[str, ...]:
        """Prefixes of weights that do not come from the checkpoint."""
        return (TEACHER,) if self.teacher_apart else ()

    def check(self, built: Model, folder: RunFolder) -> None:
        """Check that the checkpoint fits a model, and is the one that a run which has begun began with.

        Raises:
            UserError: it does not, or is another one by now.
        """
        if _begun_with(folder.continued).get("checksum") not in (None, checksum(self.checkpoint / POSITION)):
            raise UserError(
                f"continue_from: {self.config.continue_from} has been trained again since {folder.path} began; begin "
                "another run, or put it back"
            )
        tables = table_initialisers(built)
        check_fits(built.state_dict(), tables, self.checkpoint, self.without)

    def load(self, model: nn.Module, optimizers: Optimizers, folder: RunFolder, log: RunLog) -> int:
        """Fill a model and its optimizers, write continued.json, and return the step (a collective)."""
        config, path = self.config, self.config.continue_from
        assert path is not None
        checkpoints = checkpoints_of(self.before, RunFolder(path), self.processes)
        how: dict[str, Any] = {"without": self.without, "weights_alone": not config.continue_optimizer}
        saved = checkpoints.hand_over(model, optimizers, self.checkpoint, **how)
        if self.teacher_apart and any(name.startswith(TEACHER) for name in model.state_dict()):
            assert config.init_from is not None
            trained, checkpoint = _source_checkpoint(config, config.init_from, self.processes)
            prefixes = {
                ours: theirs for ours, theirs in _declared(config, trained)[0].items() if ours.startswith(TEACHER)
            }
            transfer(model, checkpoint, prefixes, ("",))
        old = {table.name: table.rows for table in self.before.schema_in_use.tables()}
        grown = {t.name: [old[t.name], t.rows] for t in config.schema_in_use.tables() if t.rows != old[t.name]}
        content = {
            "from": str(self.checkpoint),
            "checksum": checksum(self.checkpoint / POSITION),
            "step": saved.step,
            "grown": grown,
        }
        self.processes.on_main(lambda: write_json(folder.continued, content))
        log.say(f"goes on from step {saved.step} of {path}{_rows_of(grown)}")
        return saved.step


def origin_of(config: RunConfig, built: Model, folder: RunFolder, processes: Processes) -> Origin | None:
    """The checkpoint that a run begins with (a collective); None without `continue_from`.

    Raises:
        UserError: there is no such run, or it has no checkpoint, or one that does not fit the model, or another one
            than the run began with.
    """
    if config.continue_from is None:
        return None
    before = load_run(config.continue_from)
    checkpoints = checkpoints_of(before, RunFolder(config.continue_from), processes)
    origin = Origin(config, before, choose_checkpoint(checkpoints, "last"), processes)
    origin.check(built, folder)
    return origin


def check_continuation(config: RunConfig) -> None:
    """Check that a config goes on with the model of the run that it names, if any.

    Raises:
        UserError: there is no such run, or its model, tables or features are others.
    """
    if config.continue_from is None and not config.continue_optimizer:
        raise UserError(
            "continue_optimizer is false, and continue_from names no run whose optimizer states could go on; name one "
            "(--continue-from RUN), or leave continue_optimizer out"
        )
    if config.continue_from is not None:
        before = load_run(config.continue_from)
        _check_settings(config, before)
        check_clock(config, before)
        check_grown(before.schema_in_use, config.schema_in_use, config.continue_from)


def _rows_of(grown: dict[str, list[int]]) -> str:
    rows = ", ".join(f"{name.removeprefix('t_')} {old:,} -> {new:,}" for name, (old, new) in grown.items())
    return f"; rows of tables: {rows}" if rows else ""


def _check_settings(config: RunConfig, before: RunConfig) -> None:
    """The model is the same: its settings, how its tables are stored, and what moves them."""
    path = config.continue_from
    if config.model.name != before.model.name:
        raise UserError(
            f"continue_from: {path} trained '{before.model.name}', this config '{config.model.name}': a run goes "
            "on with the same model; take its config, or begin a run without continue_from"
        )
    tables = config.optimizer.tables.model_copy(update={"name": before.optimizer.tables.name})
    same = {
        "model": before.model,
        "embeddings": before.embeddings,
        "optimizer": config.optimizer.model_copy(update={"tables": tables}),
    }
    if changes := config.changes_from(config.model_copy(update=same)):
        raise UserError(
            f"continue_from: the model is not the one of {path} ({changes}): `model`, `embeddings` and "
            f"`optimizer.tables.name` stay as they are; take them from {path}/config.yaml, or begin a run without "
            "continue_from"
        )
    teacher = find_model(config.model.name).transfer
    if not (teacher is not None and teacher.teaches) and config.init_from not in (None, before.init_from):
        raise UserError(
            f"continue_from: init_from is {config.init_from}, but all weights of '{config.model.name}' come from "
            f"{path}; leave init_from out"
        )


def check_grown(before: Schema, now: Schema, path: Path) -> None:
    """Check that one schema means what another one does, with as many rows of every table or more.

    Raises:
        UserError: a feature is new or gone or means something else, a table has fewer rows, or more of them though its
            ids are hashed; or domains or tasks differ.
    """
    begin, end = "continue_from: ", "; or begin a run without continue_from"
    there, here = ({f.column: f for f in schema.features} for schema in (before, now))
    for column in {**there, **here}:
        if column not in here:
            raise UserError(f"{begin}{path} was trained with feature '{column}', which is gone: bring it back{end}")
        if column not in there:
            raise UserError(f"{begin}feature '{column}' is new to {path}: take it away (`without`){end}")
        old, new = there[column].model_dump(), here[column].model_dump()
        old["dim"], new["dim"] = before.dim_of(there[column]), now.dim_of(here[column])
        old["vocabulary"], new["vocabulary"] = (each["vocabulary"] is not None for each in (old, new))
        for key in old:
            if key != "rows" and old[key] != new[key]:
                raise UserError(
                    f"{begin}'{key}' of feature '{column}' was {old[key]!r}, is {new[key]!r}: put it back{end}"
                )
        rows, more = old["rows"], new["rows"]
        if new["vocabulary"]:
            continue  # which says how many rows there are
        if rows and more < rows:
            raise UserError(
                f"{begin}the table of feature '{column}' has {more} rows, in {path} it had {rows}: tables only grow; "
                f"set rows to {rows} or more{end}"
            )
        if rows and more > rows and new["hash"] in ("mod", "xxhash"):
            raise UserError(
                f"{begin}the table of feature '{column}' had {rows} rows in {path}, now {more}, and "
                f"'hash: {new['hash']}' gives an id another row where their number differs: leave rows at {rows}{end}"
            )
    grown = now.model_copy(
        update={"features": tuple(f.model_copy(update={"rows": there[f.column].rows}) for f in now.features)}
    )
    if grown.fingerprint() != before.fingerprint():
        ours, theirs = now.model_dump(), before.model_dump()
        parts = [key for key in ("name", "user", "weight", "activity", "dim", "tasks") if ours[key] != theirs[key]]
        which = parts[0] if parts else "domains, or the order of features or domains,"
        raise UserError(f"{begin}the schema's {which} are not those of {path}: put them back{end}")
