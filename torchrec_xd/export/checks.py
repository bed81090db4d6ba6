"""Whether an artefact scores as its run does, and what narrower tables change.

Shape legend: B rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.checkpoint import CheckpointChoice
from torchrec_xd.config import RunConfig
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.outages import Patience
from torchrec_xd.data.rows import Rows
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.schema import Schema, Split
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.training.inference import predict

SIZES = (1, 2, 200, 997)
"""Batches that are compared."""
SAMPLE_ROWS = 256
"""Rows of the sample that an artefact carries."""
_CHUNK = 8192
"""Rows that are scored at a time."""


@dataclass(frozen=True)
class Checked:
    """Rows of the domain, and what the run says of them."""

    rows: pa.Table
    scores: dict[str, np.ndarray]
    """Output to the run's score, untruncated, `[B]`."""

    @staticmethod
    def of(config: RunConfig, run: Path, domain: str, split: Split, checkpoint: CheckpointChoice) -> Checked:
        """The first rows of a split, again from the start where there are too few."""
        schema = config.schema_in_use.only((domain,))
        decoder = Decoder(schema, domain, labels=False, extra=())
        read = _tables(schema, domain, split, decoder, config.loader.patience)
        taken: list[pa.Table] = []
        while (count := sum(table.num_rows for table in taken)) < SIZES[-1]:
            table = next(read, None)
            if table is None:
                break
            taken.append(table)
        if not count:
            raise UserError(f"the {split} split of domain '{domain}' has no rows that an export could be checked on")
        rows = pa.concat_tables(taken).combine_chunks().take(np.arange(SIZES[-1]) % count)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "rows.parquet"
            pq.write_table(rows, path)
            found = predict(run, path, domain=domain, checkpoint=checkpoint, parts=True)
        names = [name for name in found.column_names if name.startswith("score_")]
        return Checked(rows, {name.removeprefix("score_"): found[name].to_numpy() for name in names})

    def write_sample(self, path: Path, scorer: Scorer, schema: Schema) -> None:
        """Some of the rows, with what the artefact says of them."""
        (domain,) = schema.domains
        decoder = Decoder(schema, domain, labels=False, extra=())
        rows = self.rows.slice(0, SAMPLE_ROWS).select(list(decoder.columns))
        scores = scorer.score(decoded(rows, decoder))
        for name in scorer.outputs:
            rows = rows.append_column(f"score_{name}", pa.array(scores[name], pa.float32()))
        pq.write_table(rows, path)


def decoded(table: pa.Table, decoder: Decoder) -> Rows:
    """A table as rows."""
    (batch,) = table.combine_chunks().to_batches(max_chunksize=None)
    return decoder.decode(batch, Origin("rows", 0))


def difference(scorer: Scorer, checked: Checked, schema: Schema, tolerance: float) -> float:
    """The largest difference between an artefact's scores and the run's, over batches of several sizes.

    Raises:
        UserError: it is larger than `tolerance`; or a user that all candidates share scores otherwise than repeated.
    """
    (domain,) = schema.domains
    rows = decoded(checked.rows, Decoder(schema, domain, labels=False, extra=()))
    worst, where = 0.0, ""
    for size in SIZES:
        score = scorer.score(rows.slice(0, size))
        for name, expected_B in checked.scores.items():
            found = float(np.abs(score[name] - expected_B[:size]).max())
            if not found <= worst:
                worst, where = found, f"{name}, {size} rows"
    if not worst <= tolerance:
        raise UserError(
            f"the exported net differs from the run's scores by {worst:.2g} ({where}), more than {tolerance:g}: "
            "nothing was exported; a net may compute nothing that depends on the number of rows, or on other rows"
        )
    _check_shared_user(scorer, rows, schema)
    return worst


def _check_shared_user(scorer: Scorer, rows: Rows, schema: Schema) -> None:
    size = SIZES[-2]
    types = Decoder(schema, next(iter(schema.domains)), labels=False, extra=()).id_types
    repeated = Rows.gather([rows], np.zeros(size, dtype=np.int64), types)
    candidates = rows.slice(0, size)
    shared = scorer.score(candidates, rows.slice(0, 1))
    apart = scorer.score(candidates, repeated, np.arange(size))
    for name, score_B in shared.items():
        if not np.array_equal(score_B, apart[name]):
            worst = float(np.abs(score_B - apart[name]).max())
            raise UserError(
                f"{name}: a user that {size} candidates share scores otherwise than the same user repeated, by "
                f"{worst:.2g}: nothing was exported"
            )


@dataclass(frozen=True)
class AucChange:
    """What narrower tables change."""

    by_task: dict[str, float]
    """Narrow minus exact."""
    split: Split


def auc_change(exact: Scorer, narrow: Scorer, config: RunConfig, schema: Schema, split: Split) -> AucChange:
    """The change of each task's AUC on all rows of a split.

    Raises:
        UserError: no task has labels of both kinds there.
    """
    (domain,) = schema.domains
    decoder = Decoder(schema, domain, labels=True, extra=())
    parts: list[tuple[Rows, dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for table in _tables(config.schema_in_use, domain, split, decoder, config.loader.patience):
        rows = decoded(table, decoder)
        parts.append((rows, exact.score(rows), narrow.score(rows)))
    label_BT = np.concatenate([rows.label_BT for rows, _, _ in parts])
    weight_B = np.concatenate([rows.weight_B for rows, _, _ in parts])
    user_B = np.concatenate([rows.user_B for rows, _, _ in parts])
    change = {}
    for i, task in enumerate(schema.tasks):
        known = ~np.isnan(label_BT[:, i])
        aucs = []
        for scores in ([own[task.name] for _, own, _ in parts], [own[task.name] for _, _, own in parts]):
            score = np.concatenate(scores)[known].astype(np.float64)
            aucs.append(binary_metrics(score, label_BT[known, i], user_B[known], weight_B[known]).auc)
        if not np.isnan(aucs).any():
            change[task.name] = aucs[1] - aucs[0]
    if not change:
        raise UserError(
            f"the {split} split of domain '{domain}' has no labels of both kinds, so what narrower tables change "
            "cannot be measured; leave --tables out: fp32"
        )
    return AucChange(change, split)


def _tables(schema: Schema, domain: str, split: Split, decoder: Decoder, patience: Patience) -> Iterator[pa.Table]:
    """The rows of a split, some thousand at a time."""
    files = ParquetFiles(schema.domains[domain].paths(split), schema.root, decoder.check, patience=patience)
    read = files.reader(decoder.columns)
    for group in files.row_groups:
        table = read(group)
        yield from (table.slice(start, _CHUNK) for start in range(0, table.num_rows, _CHUNK))
