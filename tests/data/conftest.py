"""Where data sets are written, and a look at what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbered")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that have been read, as they are read."""
    read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, index: int, **options: Any) -> pa.Table:
        read.append(index)
        return read_row_group(self, index, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    return read
