"""Predictions as Parquet, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from torchrec_xd.settings import UserError


class PredictionWriter:
    """Enter it and write batch by batch; the file appears when the block is left without an error.

    Args:
        path: the file to write; replaced if it exists.
        user: name of the user column.
        tasks: their probabilities become float32 columns `prob_<task>`, truncated to [0, 1].
        scores: what becomes float32 columns `score_<name>` as it is.
    """

    def __init__(self, path: Path, user: str, tasks: Sequence[str], scores: Sequence[str] = ()) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        probabilities = [pa.field(f"prob_{task}", pa.float32()) for task in tasks]
        untruncated = [pa.field(f"score_{name}", pa.float32()) for name in scores]
        self._num_tasks = len(probabilities)
        self._schema = pa.schema([pa.field(user, pa.int64()), *probabilities, *untruncated])

    def __enter__(self) -> PredictionWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._partial, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._writer.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def write(self, user_B: Tensor, score_TB: Sequence[Tensor]) -> None:
        """Rows of one batch: users `[B]`, then for each column its predictions `[B]`."""
        values = [score_B.float() for score_B in score_TB]
        values[: self._num_tasks] = [score_B.clamp(0, 1) for score_B in values[: self._num_tasks]]
        columns = [user_B.numpy(), *(score_B.numpy() for score_B in values)]
        self._writer.write_table(pa.table(columns, schema=self._schema))


def read_predictions(path: Path, column: str) -> NDArray[Any]:
    """One column of a file as `PredictionWriter` writes them, [R].

    Raises:
        UserError: there is no such file, it is no Parquet, or it has no such column of numbers.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if (count := names.count(column)) != 1:
                told = f"has no column '{column}'" if not count else f"has column '{column}' {count} times"
                raise UserError(f"{path}: {told}; its columns are: {', '.join(names)}")
            found = file.read([column])[column]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    if not (pa.types.is_integer(found.type) or pa.types.is_floating(found.type)):
        raise UserError(f"{path}: column '{column}' holds {found.type}, not numbers")
    values: NDArray[Any] = found.to_numpy()
    return values
