"""Made-up rows that can be learnt, as Parquet: id columns of any number of rows per table, for every model.

Click probabilities depend on four columns whose ids stay below `LEARNT`, so that an AUC well above one half can be
reached in one pass; all other ids are uniform over their tables, so that lookups pay for their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.config import RunConfig
from torchrec_xd.settings import validate

LEARNT = 1000
"""Values of the columns that the labels depend on."""
COLUMNS, DIM, LENGTH = 30, 8, 20
"""Id features that a row has, their width, and the longest behaviour sequence."""
SPECIFIC = 10
ROWS_PER_GROUP = 131_072
DOMAINS = ("source", "target")
SCENES = {"hour": 24, "place": 10}

MODELS: dict[str, dict[str, Any]] = {
    "mmoe": {"model": {"name": "mmoe"}, "tasks": ["click@source", "click@target"]},
    "ple": {"model": {"name": "ple"}, "tasks": ["click@source", "click@target"]},
    "mkt_pretrain": {"model": {"name": "mkt_pretrain"}, "tasks": ["click@source", "click@target"]},
    "mkt_finetune": {"model": {"name": "mkt_finetune"}, "tasks": ["click@target"], "domains": ["target"]},
    "exit": {
        "model": {
            "name": "exit",
            "target": "click@target",
            "sources": {"source": {"wanted": "wanted@target", "fit": "fit@target"}},
        },
        "domains": ["target"],
        "tasks": ["click@target", "wanted@target", "fit@target"],
        "without": [f"target_{i}" for i in range(SPECIFIC)],
    },
    "din": {"model": {"name": "single"}, "tasks": ["click@target"], "domains": ["target"]},
}
"""What is measured, at the widths of the papers."""


def domains_schema(folder: Path, rows_per_table: int) -> dict[str, Any]:
    """Two domains: ten user ids, ten shared ids and ten specific ids each, a behaviour sequence, two scenes."""
    shared = [(f"user_{i}", "user") for i in range(10)] + [(f"item_{i}", "shared") for i in range(10)]
    return {
        "name": "synthetic",
        "root": str(folder),
        "user": "user_0",
        "dim": DIM,
        "domains": {
            name: {"role": name, "train": f"{name}.parquet", "test": f"{name}_test.parquet"} for name in DOMAINS
        },
        "tasks": [
            {"label": "click", "domain": "source"},
            *({"label": label, "domain": "target"} for label in ("click", "wanted", "fit")),
        ],
        "features": [
            *({"column": column, "kind": "id", "group": group, "rows": rows_per_table} for column, group in shared),
            *(
                {
                    "column": f"{domain}_{i}",
                    "kind": "id",
                    "group": "specific",
                    "domains": [domain],
                    "rows": rows_per_table,
                }
                for domain in DOMAINS
                for i in range(SPECIFIC)
            ),
            {
                "column": "history",
                "kind": "sequence",
                "group": "sequence",
                "table": "item_0",
                "rows": rows_per_table,
                "length": LENGTH,
            },
            *({"column": scene, "kind": "id", "group": "scene", "rows": rows} for scene, rows in SCENES.items()),
        ],
    }


def flat_schema(folder: Path, rows_per_table: int) -> dict[str, Any]:
    """One domain, thirty ids, two tasks on every row: what libraries without domains can train too."""
    return {
        "name": "flat",
        "root": str(folder),
        "user": "f_0",
        "dim": DIM,
        "domains": {"flat": {"role": "target", "train": "flat.parquet", "test": "flat_test.parquet"}},
        "tasks": [{"label": label, "domain": "flat"} for label in ("click", "buy")],
        "features": [
            {"column": f"f_{i}", "kind": "id", "group": "shared", "rows": rows_per_table} for i in range(COLUMNS)
        ],
    }


def write_flat(folder: Path, rows: int, rows_per_table: int, seed: int = 0) -> None:
    """The rows of `flat_schema`; the test split has a quarter as many."""
    for name, count, stream in (("flat", rows, 0), ("flat_test", rows // 4, 1)):
        random = np.random.default_rng([seed, stream])
        columns = _ids(random, [f"f_{i}" for i in range(COLUMNS)], count, rows_per_table)
        for label, column in (("click", 0), ("buy", 4)):
            columns[label] = _label(random, [columns[f"f_{column + i}"] for i in range(4)], seed)
        _write(folder / f"{name}.parquet", columns)


def write_domains(folder: Path, rows: int, rows_per_table: int, seed: int = 0) -> None:
    """The rows of `domains_schema`, half of them each domain's; the test splits have a quarter as many."""
    for i, domain in enumerate(DOMAINS):
        for name, count, stream in ((domain, rows // 2, 0), (f"{domain}_test", rows // 8, 1)):
            random = np.random.default_rng([seed, i, stream])
            names = [f"user_{j}" for j in range(10)] + [f"item_{j}" for j in range(10)]
            names += [f"{domain}_{j}" for j in range(SPECIFIC)]
            columns: dict[str, Any] = _ids(random, names, count, rows_per_table)
            facts = [columns[name] for name in ("user_0", "item_0", "item_1", f"{domain}_0")]
            for label in ("click", "wanted", "fit"):
                columns[label] = _label(random, facts, seed)
            lengths = random.integers(0, LENGTH + 1, count)
            ids = random.integers(0, rows_per_table, int(lengths.sum()))
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            columns["history"] = pa.ListArray.from_arrays(offsets, ids)
            columns |= {scene: random.integers(0, values, count) for scene, values in SCENES.items()}
            _write(folder / f"{name}.parquet", columns)


def config(model: str, schema: dict[str, Any], **settings: Any) -> RunConfig:
    """A run of one of `MODELS` on `domains_schema`, or of MMoE on `flat_schema`."""
    content = {"model": {"name": "mmoe"}} if schema["name"] == "flat" else MODELS[model]
    return validate(RunConfig, {"schema": schema, **content, **settings}, "benchmark")


def _ids(random: np.random.Generator, names: list[str], rows: int, rows_per_table: int) -> dict[str, Any]:
    """The first eight columns, and each domain's first specific one, stay below `LEARNT`."""
    few = {*names[:8], "item_0", "item_1", "source_0", "target_0"}
    return {
        name: random.integers(0, min(LEARNT, rows_per_table) if name in few else rows_per_table, rows) for name in names
    }


def _label(random: np.random.Generator, facts: list[Any], seed: int) -> Any:
    """0 or 1; what a value is worth is the same in every file."""
    worth = np.random.default_rng([seed, 99]).normal(0, 0.8, (len(facts), LEARNT))
    logit = -0.5 + sum(worth[i, ids] for i, ids in enumerate(facts))
    return (random.random(len(facts[0])) < 1 / (1 + np.exp(-logit))).astype(np.int8)


def _write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=ROWS_PER_GROUP)
