"""Tensors of the Open Inference Protocol (version 2, REST) to columns of a request, and scores to tensors.

The protocol knows no lists of different lengths: these are one flat tensor, and `NAME.lengths` next to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.errors import UserError
from torchrec_xd.serving.requests import RequestColumn, RequestReader

LENGTHS = ".lengths"
_INTEGERS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_NUMBERS = {*_INTEGERS, "FP16", "FP32", "FP64", "BOOL"}
_ALL = (*sorted(_NUMBERS), "BYTES")


def datatype_of(kind: pa.DataType) -> str:
    """The protocol's name of a column's values."""
    if pa.types.is_list(kind):
        return datatype_of(kind.value_type)
    return "BYTES" if pa.types.is_string(kind) else "FP64" if pa.types.is_floating(kind) else "INT64"


def metadata(columns: Iterable[RequestColumn], outputs: Sequence[str]) -> dict[str, Any]:
    """Inputs and outputs of a model; a size of -1 is free."""
    inputs = []
    for each in columns:
        lists = pa.types.is_list(each.type)
        shape = [-1, -1] if lists else [-1]
        parameters = {"side": each.side, "holds": each.rule}
        inputs.append({"name": each.name, "datatype": datatype_of(each.type), "shape": shape, "parameters": parameters})
    return {"inputs": inputs, "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in outputs]}


def columns_of(body: Any, reader: RequestReader) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The columns of the request and of the candidates.

    Raises:
        UserError: an input is malformed, or of another type than its column.
    """
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list) or not inputs:
        raise UserError(
            'inputs: a list of tensors, as {"name": "item", "shape": [2], "datatype": "INT64", "data": [1, 2]}'
        )
    tensors = {}
    for each in inputs:
        name, shape, data = _tensor(each)
        if name in tensors:
            raise UserError(f"inputs: '{name}' is there twice")
        tensors[name] = (str(each.get("datatype")), shape, data)
    sides = {column.name: column for column in reader.columns}
    request: dict[str, list[Any]] = {}
    candidates: dict[str, list[Any]] = {}
    for name, (datatype, shape, data) in tensors.items():
        if name.endswith(LENGTHS) and name.removesuffix(LENGTHS) in tensors:
            continue
        column = sides.get(name)
        if column is not None:
            _check_type(name, datatype, column.type)
        lists = column is not None and pa.types.is_list(column.type)
        values = _rows(name, shape, data, tensors.get(f"{name}{LENGTHS}")) if lists else data
        if not lists and len(shape) != 1:
            raise UserError(f"inputs: '{name}' has the shape {shape}; it has one value for each row, [rows]")
        (candidates if column is not None and column.side == "candidate" else request)[name] = values
    return request, candidates


def outputs_of(scores: Mapping[str, NDArray[np.float32]], wanted: Any) -> list[dict[str, Any]]:
    """Scores as tensors; `wanted` is the request's `outputs`, by default all.

    Raises:
        UserError: there is no such output.
    """
    names = list(scores)
    if wanted:
        if not isinstance(wanted, list) or not all(isinstance(each, dict) for each in wanted):
            raise UserError('outputs: a list of names, as [{"name": "click@goods"}]')
        names = [each.get("name") for each in wanted]
        if unknown := [name for name in names if name not in scores]:
            raise UserError(f"outputs: no {unknown[0]!r}; there are: {', '.join(scores)}")
    return [{"name": name, "shape": [len(scores[name])], "datatype": "FP32", "data": scores[name]} for name in names]


def _tensor(given: Any) -> tuple[str, list[int], list[Any]]:
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise UserError("inputs: every tensor is an object with name, shape, datatype and data")
    shape, data = given.get("shape"), given.get("data")
    sizes = isinstance(shape, list) and len(shape) in (1, 2)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise UserError(f"inputs: '{name}' has the shape {str(shape)[:60]}; one is [rows] or [rows, values]")
    if not isinstance(data, list):
        raise UserError(f"inputs: '{name}' has no list 'data'")
    if (
        len(shape) == 2
        and len(data) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] for row in data)
    ):
        data = [value for row in data for value in row]
    count = shape[0] * (shape[1] if len(shape) == 2 else 1)
    if len(data) != count:
        raise UserError(f"inputs: '{name}' has {len(data):,} values, and its shape {shape} has {count:,}")
    return name, shape, data


def _check_type(name: str, datatype: str, kind: pa.DataType) -> None:
    own = datatype_of(kind)
    allowed = {"BYTES": {"BYTES"}, "INT64": _INTEGERS, "FP64": _NUMBERS}[own]
    if datatype not in allowed:
        known = f"; datatypes are: {', '.join(_ALL)}" if datatype not in _ALL else ""
        raise UserError(f"inputs: '{name}' is {own}, not {datatype[:20]!r}{known}")


def _rows(name: str, shape: list[int], data: list[Any], lengths: tuple[str, list[int], list[Any]] | None) -> list[Any]:
    """The lists of a tensor, row by row."""
    if lengths is None:
        if len(shape) != 2:
            raise UserError(f"inputs: '{name}' holds lists: give it the shape [rows, values], or add '{name}{LENGTHS}'")
        return [data[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    counts = lengths[2]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts) or sum(counts) != len(data):
        raise UserError(f"inputs: '{name}{LENGTHS}' has the lengths of the rows of '{name}', {len(data):,} in all")
    ends = np.cumsum(counts).tolist()
    return [data[end - length : end] for end, length in zip(ends, counts, strict=True)]
