"""What DuckDB says while it reads files and runs queries, as errors that name input, file, line, column and value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import duckdb

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.spark import first_line

_LINE = re.compile(r"CSV Error on Line: (\d+)")
_FILE = re.compile(r"^\s*file = (.*)$|file \"(.*?)\"", re.MULTILINE)
_VALUE = re.compile(r"converting column \"(.+?)\"\. Could not convert string \"(.*?)\" to '(.+?)'", re.DOTALL)
_SHOWN = 120


@contextmanager
def input_errors(file: RecipeFile, inputs: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Failures of a query over values that nobody has looked at before.

    Args:
        file: the recipe.
        inputs: input to its files.

    Raises:
        UserError: a value does not fit its column, a query cannot be computed, or a file is damaged.
    """
    try:
        yield
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        path = path_in(error)
        name = next((name for name, paths in inputs.items() if path in paths), None)
        if name is not None:
            raise file.fault(("inputs", name), explained(error)) from None
        raise UserError(
            f"{file.origin}: a view or expression cannot be computed for some row: {explained(error)}; "
            "try_cast(x AS …) gives null instead"
        ) from None
    except duckdb.Error as error:
        if type(error) is not duckdb.Error:
            raise
        # what DuckDB's reader of Parquet did not expect, without the name of the file
        raise UserError(
            f"{file.origin}: DuckDB cannot read a file of the inputs ({first_line(error)}): one of "
            f"{', '.join(inputs)} is damaged, or written in a way that DuckDB does not know; read each by itself"
        ) from None


def path_in(error: Exception) -> str | None:
    """The file that an error is about."""
    found = _FILE.search(str(error))
    return next((part.strip() for part in found.groups() if part), None) if found else None


def explained(error: Exception) -> str:
    """An error of DuckDB in one line, with what to write in the recipe."""
    text, path = str(error), path_in(error)
    line = _LINE.search(text)
    at = f"{path}, line {line[1]}" if line else path
    value = _VALUE.search(text)
    if value:
        column, shown, kind = value[1], value[2][:_SHOWN], value[3]
        return (
            f"{at}: column '{column}' holds {shown!r}, which is no {kind}, as the first rows were; correct the file, "
            f"or write what the column is: types: {{{column}: VARCHAR}}"
        )
    if "utf-8" in text and line:
        return f"{at}: is not UTF-8; convert the file, for example: iconv -f latin1 -t utf-8"
    if "sniffing file" in text:
        return (
            f"{at}: its lines have different numbers of columns, or another separator; look at quotes and 'separator'"
        )
    if line:
        lines = [each for each in text.splitlines()[1:] if each and not each.startswith("Original Line")]
        return f"{at}: {(lines or [text])[0][:_SHOWN]}"
    return first_line(error)
