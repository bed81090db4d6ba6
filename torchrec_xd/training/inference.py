"""What is done with a trained run: its model loaded, evaluated, and asked for predictions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from torch import nn

from torchrec_xd.checkpoint import CheckpointChoice, Checkpoints
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.agreement import agreed, read_kinds
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.predictions import KeptColumns, PredictionColumns, PredictionWriter, check_output, scratch_folder
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.data.vocabularies import digest
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.embeddings import table_collections
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import Report
from torchrec_xd.log import RunLog
from torchrec_xd.models import find_model
from torchrec_xd.models.model import Model
from torchrec_xd.outputs import scores_on_cpu
from torchrec_xd.reports.run_report import save_report
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema, Split
from torchrec_xd.training.building import build, build_sharded, source_run
from torchrec_xd.training.split_evaluation import SplitEvaluation
from torchrec_xd.training.trainer import predict as predict_batches
from torchrec_xd.writable import check_output_file

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torchrec_xd.data.predictions import PredictionTable


def checkpoints_of(config: RunConfig, folder: RunFolder, processes: Processes) -> Checkpoints:
    """The checkpoints of a run: they belong to its schema, and to its vocabularies."""
    schema = config.schema_in_use
    known = "" if schema.vocabularies is None or not schema.living_tables() else f"+{digest(schema.vocabularies)}"
    return Checkpoints(folder.checkpoints, config.checkpoint, processes, schema.fingerprint() + known)


def choose_checkpoint(
    checkpoints: Checkpoints, which: CheckpointChoice, say: Callable[[str], None] = logger.warning
) -> Path:
    """The best or the last checkpoint that is whole (a collective); damaged ones are named to `say`.

    Raises:
        UserError: there is none.
    """
    found = checkpoints.choose(which, say)
    if found is None:
        raise UserError(f"{checkpoints.directory.parent} has no checkpoint yet; train it first")
    return found


def load_sharded(config: RunConfig, folder: RunFolder, which: CheckpointChoice, processes: Processes) -> nn.Module:
    """The model of a run on its ranks, with the weights of a checkpoint (a collective)."""
    checkpoints = checkpoints_of(config, folder, processes)
    checkpoint = choose_checkpoint(checkpoints, which)
    model, _ = build_sharded(config, processes, source_run(config, folder))
    while not _loaded(model, checkpoints, checkpoint, processes):
        checkpoint = choose_checkpoint(checkpoints, which)
    return model


def load_plain(
    config: RunConfig, folder: RunFolder, which: CheckpointChoice, processes: Processes
) -> tuple[Model, str]:
    """The model of a run as plain modules on the CPU, tables whole, and the name of the checkpoint that it holds.

    Raises:
        UserError: no checkpoint, or one that is damaged.
    """
    checkpoints = checkpoints_of(config, folder, processes)
    model = build(config, source_run(config, folder))
    for collection in table_collections(model):
        collection.to_empty(device="cpu")
    while True:
        checkpoint = choose_checkpoint(checkpoints, which)
        if _loaded(model, checkpoints, checkpoint, processes):
            return model.eval(), checkpoint.name


def _loaded(model: nn.Module, checkpoints: Checkpoints, checkpoint: Path, processes: Processes) -> bool:
    """Load a checkpoint; False where a run that is still training has replaced it by a later one meanwhile."""
    try:
        checkpoints.load(model, checkpoint, checked=True)
    except UserError:
        if processes.any(checkpoint.exists()):
            raise
        return False
    return True


@contextmanager
def load_model(directory: str | Path, checkpoint: CheckpointChoice = "best") -> Iterator[tuple[nn.Module, RunConfig]]:
    """A trained model and its config, for as long as the block lasts.

    For example: `with load_model("runs/mkt") as (model, config): ...`.

    The model takes a `Batch` of the run's schema, and returns an `Output`. Its process group (torchrun's, or one of
    this process alone) ends with the block.

    Raises:
        UserError: no run, no checkpoint, or one that is damaged.
    """
    config = load_run(Path(directory))
    with process_group(config.trainer) as processes, RunLog(None, processes.rank):
        model = load_sharded(config, RunFolder(Path(directory)), checkpoint, processes)
        model.eval()
        yield model, config


def evaluate(
    directory: str | Path,
    split: Split = "test",
    checkpoint: CheckpointChoice = "best",
    page: str | Path | None = None,
    schema: str | Path | None = None,
) -> Report:
    """Exact metrics of a finished run on one of its splits: `eval` and `slices`, as in metrics.json.

    Args:
        directory: the run folder.
        split: what is measured.
        checkpoint: best or last.
        page: an HTML report to write; models may add parts of their own to it (EXIT: what passes, by scene).
        schema: file of a schema with other rows, whose columns mean what the run's mean. Default: the run's own rows.

    Raises:
        UserError: no run, no checkpoint; a schema whose columns mean something else; or a page with parts that need all
            rows in one process, under torchrun.
    """
    config = load_run(Path(directory))
    if schema is not None:
        config = _with_rows_of(config, schema)
    if page is not None:
        check_output_file(page, "--report")
    spec = find_model(config.model.name)
    with process_group(config.trainer) as processes:
        diagnostics = [] if page is None else spec.report(config.schema_in_use, config.model)
        if diagnostics and processes.size > 1:
            raise UserError(
                f"the report of '{config.model.name}' is made in one process; run evaluate --report without torchrun"
            )
        evaluation = SplitEvaluation(config, split, processes, diagnostics)
        _refuse_other_ids(directory, evaluation.loader)
        with RunLog(None, processes.rank):
            model = load_sharded(config, RunFolder(Path(directory)), checkpoint, processes)
            report = evaluation.report(model)
            if page is not None and processes.is_main_process:
                folder = RunFolder(Path(directory))
                doubts = folder.read_metrics().get("warnings", ()) if folder.finished() else ()
                title = f"{folder.path.name}: {config.model.name} on {split}"
                save_report(Path(page), title, report, diagnostics, doubts)
            return report


def _with_rows_of(config: RunConfig, schema: str | Path) -> RunConfig:
    """A run's config with the rows of another schema, which has to mean the same."""
    own, other = config.data_schema, load_schema(schema)
    if own.vocabularies is not None:
        rows = {f.table_name: f.rows for f in own.features if f.vocabulary and f.rows}
        other = other.with_vocabularies(own.vocabularies, rows)
    if own.fingerprint() != other.fingerprint():
        ours, theirs = own.model_dump(), other.model_dump()
        differ = [key for key in ours if key not in ("domains", "root") and ours[key] != theirs[key]]
        raise UserError(
            f"{schema}: its columns mean something else than those of the run ({', '.join(differ) or 'domains'} "
            "differ); prepare these rows with the run's encoders: prepare RECIPE --encoders RUN/encoders"
        )
    return config.model_copy(update={"data_schema": other})


UnseenIds = Literal["refuse", "drop"]
"""What is done with ids that lie outside their tables: an error, or they are left out like nulls."""


def score(
    directory: str | Path,
    rows: str | Path | None,
    output: str | Path,
    domain: str,
    checkpoint: CheckpointChoice = "best",
    *,
    parts: bool = False,
    keep: Sequence[str] | Mapping[str, str] = (),
    unseen_ids: UnseenIds = "refuse",
) -> int:
    """Write a run's predictions for the rows of one domain as Parquet; returns their number.

    Args:
        directory: the run folder.
        rows: Parquet file, folder or glob. Default: the domain's test split.
        output: the file to write, whole or not at all; one on an object store too (`s3://BUCKET/FILE`).
        domain: of the rows.
        checkpoint: best or last.
        parts: also write `score_<name>`, untruncated, for each task and each auxiliary score.
        keep: columns of the rows that are written next to the predictions, whatever they hold; a mapping gives them
            new names.
        unseen_ids: `drop` leaves ids out that lie outside their tables (new items), and warns with their number.

    The columns are the schema's user column (int64, or strings as they are), those of `keep`, and `prob_<task>` for
    each task of the domain, truncated to [0, 1]; rows are in the order of the input.

    Raises:
        UserError: an unknown domain, or rows that do not fit the schema; nothing is written.
    """
    check_output(output)

    def written(columns: PredictionColumns, tables: Iterator[PredictionTable]) -> int:
        with PredictionWriter(output, columns) as writer:
            return sum(writer.write(table) for table in tables)

    names = keep if isinstance(keep, Mapping) else {name: name for name in keep}
    given = _ScoredRows(rows, domain, names, unseen_ids)
    return _predicted(directory, given, checkpoint, parts, written)


def score_raw(
    directory: str | Path,
    raw: str,
    output: str | Path,
    domain: str,
    checkpoint: CheckpointChoice = "best",
    *,
    parts: bool = False,
    keep: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    say: Callable[[str], None] = logger.warning,
) -> int:
    """Write a run's predictions for raw rows of one domain, which look as a recipe's inputs; returns their number.

    Values become numbers by what the recipe learnt from the training data; those that it has no row for are row 0,
    and their number is told to `say`. Next to the predictions stand the user, the moment, the raw ids of the row, and
    what the recipe or `keep` names.

    Args:
        directory: the run folder; the run was trained on a data set that `prepare RECIPE` wrote.
        raw: file, folder or glob, in a format that recipes read.
        output: the file to write, whole or not at all; one on an object store too (`s3://BUCKET/FILE`).
        domain: of the rows.
        checkpoint: best or last.
        parts: as of `score`.
        keep: more columns of the raw rows.
        inputs: input of the recipe to the files that are read instead, for lookups and events.
        say: told how many rows have no prediction, and how many values no row of their own.

    Raises:
        UserError: the run has no encoders, or what `encode_raw_rows` and `score` raise.
    """
    check_output(output)
    encoders = RunFolder(Path(directory)).encoders
    if not encoders.is_dir():
        raise UserError(
            f"{directory}: keeps no encoders, as its data were not made by 'prepare RECIPE'; score prepared rows, "
            "without --raw"
        )
    with tempfile.TemporaryDirectory(dir=scratch_folder(output), prefix=".score") as place:
        from torchrec_xd.prepare.raw_rows import encode_raw_rows  # noqa: PLC0415 - imports the engines of recipes

        rows = encode_raw_rows(encoders, raw, domain, Path(place), inputs=inputs or {}, keep=keep)
        count = score(directory, rows.path, output, domain, checkpoint, parts=parts, keep=rows.kept)
    for remark in rows.remarks():
        say(remark)
    return count


def predict(
    directory: str | Path,
    rows: str | Path | None = None,
    *,
    domain: str,
    checkpoint: CheckpointChoice = "best",
    parts: bool = False,
    keep: Sequence[str] = (),
    unseen_ids: UnseenIds = "refuse",
) -> PredictionTable:
    """A run's predictions for the rows of one domain as an Arrow table; arguments, columns and errors as of `score`."""

    def collected(columns: PredictionColumns, tables: Iterator[PredictionTable]) -> PredictionTable:
        return columns.concat(tables)

    given = _ScoredRows(rows, domain, {name: name for name in keep}, unseen_ids)
    return _predicted(directory, given, checkpoint, parts, collected)


@dataclass(frozen=True)
class _ScoredRows:
    """Which rows are scored, and how they are read."""

    paths: str | Path | None
    """Default: the domain's test split."""
    domain: str
    keep: Mapping[str, str]
    """Column of the rows -> its name next to the predictions."""
    unseen_ids: UnseenIds

    def schema(self, trained: Schema) -> Schema:
        """A run's schema with these rows as its only test split."""
        if self.domain not in trained.domains:
            raise UserError(f"--domain {self.domain}: the run's domains are: {', '.join(trained.domains)}")
        own = trained.domains[self.domain].test if self.paths is None else _absolute(str(self.paths))
        domains = {
            name: entry.model_copy(update={"test": own if name == self.domain else None})
            for name, entry in trained.domains.items()
        }
        schema = trained.model_copy(update={"domains": domains})
        return schema.dropping_unseen_ids() if self.unseen_ids == "drop" else schema


T = TypeVar("T")


def _predicted(
    directory: str | Path,
    rows: _ScoredRows,
    checkpoint: CheckpointChoice,
    parts: bool,
    consume: Callable[[PredictionColumns, Iterator[PredictionTable]], T],
) -> T:
    """What `consume` makes of the predictions: the columns, then a table for every batch."""
    config = load_run(Path(directory))
    schema = rows.schema(config.schema_in_use)
    tasks = [task.name for task in schema.tasks if task.domain == rows.domain]
    auxiliary = find_model(config.model.name).auxiliary_scores(config.model)
    scores = [*tasks, *(name for name, task in auxiliary.items() if task in tasks)] if parts else []
    with process_group(config.trainer) as processes:
        if processes.size > 1:
            raise UserError("score runs in one process; split the input to use several")
        loader = Loader(schema, config.loader, "test", ShardSpec(shuffle=False), labels=False)
        _refuse_other_ids(directory, loader)
        strings = loader.users_are_strings
        paths = schema.domains[rows.domain].paths("test")
        user = schema.user if strings else None
        kept = KeptColumns(paths, schema.root, tuple(rows.keep), user, rows.keep)
        columns = PredictionColumns(schema.user, tuple(tasks), tuple(scores), kept.fields, strings)
        with RunLog(None):
            model = load_sharded(config, RunFolder(Path(directory)), checkpoint, processes)
            tables = (
                columns.table(
                    batch.user_B.numpy(), scores_on_cpu(output.score, (*tasks, *scores)).numpy(), kept.take(len(batch))
                )
                for batch, output in predict_batches(model, loader, processes)
            )
            result = consume(columns, tables)
        if dropped := +loader.dropped():
            counts = ", ".join(f"{count:,} of '{column}'" for column, count in dropped.items())
            logger.warning("ids outside their tables were left out: %s", counts)
        return result


def _absolute(rows: str) -> str:
    """Rows start at the current folder, whatever the schema's root; a URI starts nowhere."""
    return rows if "://" in rows else str(Path(rows).absolute())


def _refuse_other_ids(directory: str | Path, loader: Loader) -> None:
    """Hashed ids are of the type that the run was trained on, or they would be looked up in other rows."""
    agreed([*read_kinds(RunFolder(Path(directory)).id_kinds), *loader.id_kinds.values()])
