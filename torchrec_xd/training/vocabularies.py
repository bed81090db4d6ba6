"""The vocabularies of a run: made when it begins, of its rows and of the run that it goes on from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from torchrec_xd.atomic_write import write_text
from torchrec_xd.config import RunConfig
from torchrec_xd.data.key_rows import hashes_of
from torchrec_xd.data.vocabularies import (
    MANIFEST,
    Vocabularies,
    VocabularyFile,
    read_table,
    read_vocabularies,
    write_table,
)
from torchrec_xd.data.vocabulary_update import empty, new_rows, seen_keys, updated
from torchrec_xd.distributed.fresh_rows import FreshRows, redraw
from torchrec_xd.distributed.optimizers import Optimizers
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.embeddings import weight_prefixes
from torchrec_xd.errors import UserError
from torchrec_xd.models import find_model
from torchrec_xd.run_folder import RunFolder


def with_vocabularies(config: RunConfig, folder: RunFolder, processes: Processes, *, begun: bool) -> RunConfig:
    """The config with its vocabularies: those of a begun run, or new ones, which rank 0 makes (a collective).

    Raises:
        UserError: on all ranks: files or vocabularies are damaged, or a table is at its capacity.
    """
    if not config.schema_in_use.living_tables():
        return config
    if not begun:
        processes.on_main(lambda: _make(config, folder.new_vocabularies))
    place = folder.vocabularies if begun else folder.new_vocabularies
    rows = {name: table.rows for name, table in read_vocabularies(place).tables.items()}
    return config.model_copy(update={"data_schema": config.data_schema.with_vocabularies(place, rows)})


def keep_vocabularies(folder: RunFolder) -> None:
    """Give new vocabularies their place in the run folder."""
    if folder.new_vocabularies.is_dir():
        shutil.rmtree(folder.vocabularies, ignore_errors=True)
        folder.new_vocabularies.rename(folder.vocabularies)


def begin_rows(config: RunConfig, folder: RunFolder, model: nn.Module, optimizers: Optimizers) -> None:
    """Draw the rows of all keys that had no row in the run that this one goes on from, or another one."""
    schema = config.schema_in_use
    prefixes = weight_prefixes(schema)
    for table in schema.living_tables():
        before = config.continue_from and read_table(
            RunFolder(config.continue_from).vocabularies, table, ["key", "row"]
        )
        rows, keys = new_rows(before, read_table(folder.vocabularies, table, ["key", "row"]))
        weight = f"embeddings.{prefixes[table]}weight"
        fresh = FreshRows(table, weight, rows, hashes_of(keys), config.embeddings.init_std, config.seed)
        redraw(model, optimizers, fresh)


# ---- made ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """Vocabularies of another run."""

    folder: Path | None
    tables: dict[str, VocabularyFile]
    now: int = -1

    @staticmethod
    def of(run: Path | None) -> _Known:
        """Those of a run; none without one, or where it has none."""
        if run is None or not (RunFolder(run).vocabularies / MANIFEST).is_file():
            return _Known(None, {})
        folder = RunFolder(run).vocabularies
        found = read_vocabularies(folder)
        return _Known(folder, found.tables, found.now)


def _make(config: RunConfig, place: Path) -> None:
    """Write the vocabularies that a run begins with."""
    shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted while it began
    place.mkdir(parents=True)
    schema, before, taken = config.schema_in_use, _Known.of(config.continue_from), _taken(config)
    now = before.now + 1 if config.day is None else (config.day - type(config.day)(1970, 1, 1)).days
    living = schema.living_tables()
    seen = seen_keys(schema, [table for table in living if table not in taken.tables], config.loader.patience)
    tables = {}
    for table, settings in living.items():
        least = max(feature.rows or 0 for feature in schema.features if feature.table_name == table)
        if table in taken.tables:
            assert taken.folder is not None
            rows = max(least, taken.tables[table].rows)
            tables[table] = write_table(place, table, read_table(taken.folder, table), rows)
            continue
        old = empty(seen[table]["key"].type)
        if table in before.tables:
            assert before.folder is not None
            old, least = read_table(before.folder, table), max(least, before.tables[table].rows)
        content, rows = updated(old, seen[table], least, now, settings, table.removeprefix("t_"))
        tables[table] = write_table(place, table, content, rows)
    found = Vocabularies(now=now, dated=config.day is not None, tables=tables)
    write_text(place / MANIFEST, found.model_dump_json(indent=2) + "\n")


def _taken(config: RunConfig) -> _Known:
    """Vocabularies that are taken over as they are: those of the run that the model, or its teacher, comes from."""
    if config.init_from is None:
        return _Known(None, {})
    transfer = find_model(config.model.name).transfer
    taught = transfer is not None and transfer.teaches
    if config.continue_from is None or (taught and RunFolder(config.init_from).exists()):
        return _Known.of(config.init_from)
    return _Known.of(config.continue_from) if taught else _Known(None, {})


def check_clock(config: RunConfig, before: RunConfig) -> None:
    """Check that the clock goes on where the run that this one goes on from left it.

    Raises:
        UserError: one of them has a day and the other one has none, or it does not come after the other one's.
    """
    path = config.continue_from
    if before.day is not None and config.day is None:
        raise UserError(f"continue_from: {path} is of day {before.day}, and this run has no day: set day")
    if before.day is None and config.day is not None:
        raise UserError(f"continue_from: day is {config.day}, and {path} has no day: leave day out, slices are counted")
    if before.day is not None and config.day is not None and config.day <= before.day:
        raise UserError(
            f"continue_from: day is {config.day}, and {path} is of {before.day}: days go forward; set a later one, or "
            "continue from an earlier run"
        )
