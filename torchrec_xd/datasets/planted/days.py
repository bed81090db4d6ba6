"""A world with a clock as Parquet files, a domain and day each, and what can be known of every day."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_xd.atomic_write import write_json
from torchrec_xd.datasets.planted.clock import ClockWorld, Columns, Day, drawn_rows
from torchrec_xd.datasets.planted.clock_settings import ClockSettings
from torchrec_xd.datasets.planted.population import Array
from torchrec_xd.datasets.planted.rows import CLICK, USER
from torchrec_xd.datasets.planted.writing import Written, oracle_metrics, write_row_groups
from torchrec_xd.prepare.manifest import SplitRows

DAYS = "days.json"


@dataclass(frozen=True)
class _DayRows:
    """What was written of a domain and day."""

    path: str
    line: dict[str, Any]
    """Of days.json."""
    told: Mapping[str, Array]
    """Users, labels and true probabilities."""


def day_path(domain: str, split: str, day: int) -> str:
    """The file of a domain and day, below the world's folder."""
    return f"{domain}/{split}/day={day:03d}/part-00000.parquet"


def write_days(world: ClockWorld, settings: ClockSettings, folder: Path, progress: Callable[[str], None]) -> Written:
    """Write `folder/<domain>/<split>/day=NNN/part-00000.parquet` and `days.json`: a list, a line for a domain and day.

    A line has `day`, `domain`, `split`, `rows`, `positives`, `users` and `items` (that live then), and `oracle`: task
    to the metrics of the true probabilities.
    """
    days = range(settings.days)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="world")
    domains: dict[str, dict[str, SplitRows]] = {name: {} for name in settings.names}
    lines: list[dict[str, Any]] = []
    tested: dict[str, list[Mapping[str, Array]]] = {name: [] for name in settings.names}
    try:
        for written in pool.map(lambda number: _write_day(world, settings, number, folder), days):
            for found in written:
                line, of_domain = found.line, domains[found.line["domain"]]
                before = of_domain.get(line["split"], SplitRows(rows=0, positives=0, files={}))
                of_domain[line["split"]] = SplitRows(
                    rows=before.rows + line["rows"],
                    positives=before.positives + line["positives"],
                    files={**before.files, found.path: line["rows"]},
                )
                lines.append(line)
                if line["split"] == "test":
                    tested[line["domain"]].append(found.told)
            progress(f"day {written[0].line['day']}: {sum(found.line['rows'] for found in written):,} rows")
    finally:
        pool.shutdown(cancel_futures=True)
    write_json(folder / DAYS, lines, indent=1)
    joined = {
        name: {column: np.concatenate([day[column] for day in told]) for column in told[0]}
        for name, told in tested.items()
        if told
    }
    oracle = {
        name: metrics for domain, told in joined.items() for name, metrics in _oracle(world, domain, told).items()
    }
    return domains, oracle


def _write_day(world: ClockWorld, settings: ClockSettings, number: int, folder: Path) -> list[_DayRows]:
    day = world.day(number)
    return [_write_domain(world, settings, day, number, domain, folder) for domain in range(settings.domains)]


def _write_domain(
    world: ClockWorld, settings: ClockSettings, day: Day, number: int, domain: int, folder: Path
) -> _DayRows:
    name, rows = settings.names[domain], settings.rows(domain)
    split = "train" if number < settings.days - settings.test_days else "test"
    path = day_path(name, split, number)
    names = dict.fromkeys(
        [USER, *(n for task, prob in world.tasks.items() if task.domain == name for n in (task.label, prob))]
    )
    told: list[Mapping[str, Array]] = []

    def chunks() -> Iterator[Columns]:
        for chunk, start in enumerate(range(0, rows, settings.row_group_rows)):
            count = min(settings.row_group_rows, rows - start)
            columns = drawn_rows(world, day, number, domain, chunk, count)
            told.append({column: np.asarray(columns[column]) for column in names})
            yield columns

    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_row_groups(folder / path, chunks())
    joined = {column: np.concatenate([part[column] for part in told]) for column in names}
    line = {
        "day": number,
        "domain": name,
        "split": split,
        "rows": rows,
        "positives": int(np.count_nonzero(joined[CLICK])),
        "users": len(day.users.users.seen[domain].ids),
        "items": len(day.items(domain).id_N),
        "oracle": _oracle(world, name, joined),
    }
    return _DayRows(path, line, joined if split == "test" else {})


def _oracle(world: ClockWorld, domain: str, told: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    return {
        task.name: oracle_metrics(told[prob], told[task.label], told[USER])
        for task, prob in world.tasks.items()
        if task.domain == domain
    }
