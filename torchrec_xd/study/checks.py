"""What a run would refuse at its start, found before the first run of a study is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchrec_xd.config import RunConfig
from torchrec_xd.data.agreement import agreed, refuse_shared_files
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import Evaluation
from torchrec_xd.models import find_model
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Split
from torchrec_xd.study.cells import Cell
from torchrec_xd.study.scores import open_test_rows
from torchrec_xd.training.building import build, continues
from torchrec_xd.training.checks import check_data
from torchrec_xd.training.split_evaluation import has_rows
from torchrec_xd.training.trackers import refuse_unusable


def check_cells(every: Sequence[Cell], left: Iterable[Cell]) -> list[str]:
    """Check the data and the models of runs that are still to be trained, those of one seed for all.

    Args:
        every: all runs of the study.
        left: those to be trained.

    Returns:
        A warning for every split without rows.

    Raises:
        UserError: one line per fault of each run.
    """
    by_name = {cell.name: cell for cell in every}
    one_seed = {(cell.data, cell.model): cell for cell in reversed(list(left))}
    faults: list[str] = []
    warnings: list[str] = []
    for cell in reversed(one_seed.values()):
        parents: list[Cell] = []
        while (before := (parents[-1] if parents else cell).before) is not None:
            parents.append(by_name[before])
        name = f"{cell.data}/{cell.model}"
        try:
            warnings += check_run(name, cell.config, [parent.config for parent in parents], cell.task)
        except UserError as error:
            faults += [line for line in str(error).splitlines() if line not in faults]
    if faults:
        raise UserError("\n".join(faults))
    return warnings


def check_run(name: str, config: RunConfig, parents: Sequence[RunConfig], task: str | None = None) -> list[str]:
    """Check what a run reads and what it starts from.

    Args:
        name: `DATA/MODEL`, for messages.
        config: the run's.
        parents: configs of the runs that it goes back to, the nearest first.
        task: whose test rows are scored in the end.

    Returns:
        A warning for every split without rows.

    Raises:
        UserError: a file is missing or has other columns, its values let nothing be learnt, or the model fits neither
            schema nor parent.
    """
    config, *parents = (
        each.model_copy(update={"data_schema": each.data_schema.hashing_keys()}) for each in (config, *parents)
    )
    schema = config.schema_in_use
    auxiliary = find_model(config.model.name).auxiliary_scores(config.model)
    extra = Evaluation(schema, config.metrics, auxiliary).extra
    splits = dict.fromkeys(("train", *(("valid",) if has_rows(schema, "valid") else ()), config.evaluate_on))
    try:
        refuse_unusable(config.trackers)
        refuse_shared_files(schema)
        loaders = {
            split: _open(config, split, () if split == "train" != config.evaluate_on else extra) for split in splits
        }
        agreed(kind for loader in loaders.values() for kind in loader.id_kinds.values())
        check_data(config, loaders)  # its warnings are in the log of the run
        if task is not None:
            open_test_rows(config.data_schema, task, extra)
            scored = schema.only((task.partition("@")[2],))
            Loader(scored, config.loader, "test", ShardSpec(shuffle=False), labels=False)
        build(config, parent_run(config, parents))
    except UserError as error:
        raise UserError("\n".join(f"{name}: {line}" for line in str(error).splitlines())) from None
    return [f"{name}: the {split} split has no rows" for split, loader in loaders.items() if not loader.rows]


def _open(config: RunConfig, split: Split, extra: tuple[str, ...]) -> Loader:
    """The reader of a split, whose files are checked."""
    schema = config.schema_in_use
    if split == config.evaluate_on and not has_rows(schema, split):
        others = " or ".join(f"evaluate_on={other}" for other in ("valid", "train") if other != split)
        raise UserError(
            f"no domain that it reads ({', '.join(schema.domains)}) has a '{split}' split, on which it is measured "
            f"after training; name its files in the schema (domains: NAME: {split}: PATH), or set {others}"
        )
    return Loader(schema, config.loader, split, ShardSpec(shuffle=False), extra=extra)


def parent_run(config: RunConfig, parents: Sequence[RunConfig]) -> SourceRun | None:
    """What the parent will have trained, as `source_run` reads it from a run folder."""
    transfer = find_model(config.model.name).transfer
    if transfer is None or not parents:
        return None
    source = next((parent for parent in parents if not continues(config, parent)), parents[-1])
    if source.model.name != transfer.source:
        raise UserError(
            f"its parent is a '{source.model.name}'; '{config.model.name}' starts from a run of '{transfer.source}'"
        )
    return SourceRun(source.schema_in_use, source.model, source.embeddings)
