"""What validation said of a second stage and of the first one, as their run folders have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.json_lines import read_json_lines
from torchrec_xd.run_folder import RunFolder


def stage_scores(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """`stage_1`, `stage_2` (validation scores) and `monitor`; None where they are not on record, or not comparable.

    They compare where both runs monitored one metric of the same tasks, on the same validation files; a further slice
    of time, of the same model, is no second stage. Of both it is the best epoch, of the first stage the last one where
    `init_checkpoint` says so.

    Args:
        config: of the run that may be a second stage.
        folder: its run folder.

    Raises:
        UserError: a run folder is damaged.
    """
    if config.init_from is None or not RunFolder(config.init_from).exists():
        return None
    before = load_run(config.init_from)
    if before.model.name == config.model.name or _validated(before) != _validated(config):
        return None
    first, second = _scores(config.init_from), _scores(folder)
    if not first or not second:
        return None
    taken = max(first) if config.init_checkpoint == "best" else first[-1]
    return {"stage_1": taken, "stage_2": max(second), "monitor": config.monitor}


def _validated(config: RunConfig) -> tuple[Any, ...]:
    """What a validation score is of."""
    schema, watched = config.schema_in_use, config.monitored_tasks
    domains = {task.domain for task in schema.tasks if task.name in watched}
    files = {name: schema.domains[name].paths("valid") for name in domains}
    return config.monitor, sorted(watched), schema.root, files, schema.weight


def _scores(folder: Path) -> list[float]:
    path = RunFolder(folder).metric_lines
    lines = read_json_lines(path)[0] if path.is_file() else []
    return [line["valid"] for line in lines if "valid" in line]
