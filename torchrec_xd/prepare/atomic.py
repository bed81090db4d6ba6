"""RecBole's atomic files: text with a tab between columns, and a first line of `name:type` for each."""

from __future__ import annotations

from typing import Any

from fsspec.core import open_files  # type: ignore[import-untyped]

from torchrec_xd.errors import UserError

ENDINGS = ("inter", "user", "item", "net", "kg", "link")
SEPARATOR = "\t"
"""Between columns."""
SEQUENCE_SEPARATOR = " "
"""Between the values of a `token_seq` or `float_seq`."""
TYPES = {"token": "VARCHAR", "token_seq": "VARCHAR[]", "float": "DOUBLE", "float_seq": "DOUBLE[]"}
"""Type in the header to DuckDB's type of the column."""


def atomic_columns(path: str, separator: str = SEPARATOR) -> tuple[tuple[str, str], ...]:
    """Names and types (`token`, `token_seq`, `float`, `float_seq`) of the columns of an atomic file, by its first line.

    Raises:
        UserError: the file cannot be read, or its first line is no header of `name:type`.
    """
    try:
        with open_files([path], "rt", encoding="utf-8-sig", compression="infer")[0] as stream:
            line = stream.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    columns = []
    for field in line.split(separator):
        name, colon, kind = field.rpartition(":")
        if not (name and colon and kind in TYPES):
            raise UserError(
                f"{path}: the first line names each column with its type, as user_id:token, separated by "
                f"{separator!r}; {field[:60]!r} is none; types are: {', '.join(TYPES)}"
            )
        columns.append((name, kind))
    names = [name.lower() for name, _ in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: column '{twice}' stands twice in the first line; rename one")
    return tuple(columns)


def atomic_options(path: str, separator: str = SEPARATOR) -> dict[str, Any]:
    """How DuckDB's `read_csv` reads an atomic file: every column as text; `atomic_select` gives them their types."""
    names = [name for name, _ in atomic_columns(path, separator)]
    return {
        "delim": separator,
        "header": False,
        "skip": 1,
        "quote": "",
        "escape": "",
        "columns": dict.fromkeys(names, "VARCHAR"),
    }


def atomic_select(columns: tuple[tuple[str, str], ...]) -> str:
    """The columns of a SELECT, in DuckDB's SQL, that turn the texts of an atomic file into typed values.

    A text of no characters is null; a sequence of none is an empty list.
    """
    parts = []
    for name, kind in columns:
        quoted = '"' + name.replace('"', '""') + '"'
        words = f"string_split(nullif(trim({quoted}), ''), '{SEQUENCE_SEPARATOR}')"
        value = {
            "token": f"nullif({quoted}, '')",
            "float": f"CAST(nullif({quoted}, '') AS DOUBLE)",
            "token_seq": f"coalesce({words}, CAST([] AS VARCHAR[]))",
            "float_seq": f"coalesce(CAST({words} AS DOUBLE[]), CAST([] AS DOUBLE[]))",
        }[kind]
        parts.append(f"{value} AS {quoted}")
    return ", ".join(parts)
