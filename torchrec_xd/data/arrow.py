"""Arrow record batches of one domain -> NumPy rows: the only place where ids are bounded or hashed.

No loop runs over rows: list columns become values and lengths by slicing Arrow's buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from torchrec_xd.data.column_types import (
    expectation,
    holds_strings,
    is_integer_or_boolean,
    is_integer_or_string,
    is_list,
    is_number,
    is_numbers,
    is_string,
    presence_fault,
    type_faults,
)
from torchrec_xd.data.events import check_aligned
from torchrec_xd.data.hashing import Hashes, hash_integers
from torchrec_xd.data.key_rows import KeyRows
from torchrec_xd.data.limits import Limits
from torchrec_xd.data.normalisation import filled
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Floats, IdType, Integers, Jagged, Rows, spans
from torchrec_xd.data.strings import string_hashes, user_numbers
from torchrec_xd.data.vectors import vectors
from torchrec_xd.data.vocabularies import vocabularies_of
from torchrec_xd.data.weights import id_type, ids_and_weights
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema

Keys = NDArray[np.int64] | NDArray[np.uint64]
IdKind = Literal["integers", "strings"]

_USER_RULE = "the user column holds integers or strings: cast it, alike in all files"
_SLICE_RULE = (
    "a column that metrics slice by holds integers or booleans: number its values, alike in all files (DuckDB: "
    "dense_rank() over (order by x))"
)
_INT64, _FLOAT32 = np.iinfo(np.int64), np.finfo(np.float32)


class Decoder:
    """The columns of one domain.

    Args:
        schema: what the columns mean.
        domain: its name.
        labels: whether labels are read; if not, they are NaN.
        extra: integer columns for metrics to slice by; -1 where a value or the whole column is absent.
        mapped: whether raw keys are looked up in the schema's vocabularies; if not, their columns are only checked.

    Raises:
        UserError: there are no vocabularies, or not those that belong there.
    """

    def __init__(self, schema: Schema, domain: str, *, labels: bool, extra: Sequence[str], mapped: bool = True):
        self._domain = domain
        self._features = schema.features_of(domain)
        own = {feature.column for feature in self._features}
        # None stands for what only other domains have: it keeps its place in every batch, empty
        of_domain = [(feature.kind, feature if feature.column in own else None) for feature in schema.features]
        self._ids = tuple(feature for kind, feature in of_domain if kind not in ("dense", "vector"))
        self._sequences = {name: f for name, f in schema.sequences().items() if f[0].column in own and len(f) > 1}
        self._dense = tuple(feature for kind, feature in of_domain if kind == "dense")
        self._vectors = tuple(feature for kind, feature in of_domain if kind == "vector")
        self._labels = tuple(task.label if labels and task.domain == domain else None for task in schema.tasks)
        self._nullable = tuple(task.nullable for task in schema.tasks)
        self._vocabularies = vocabularies_of(schema, self._features) if mapped else {}
        self._user, self._weight, self._extra = schema.user, schema.weight, tuple(extra)
        needed = [feature.column for feature in self._features]
        needed += [*(label for label in self._labels if label), self._user, *([self._weight] if self._weight else [])]
        needed += [feature.weights for feature in self._features if feature.weights]
        self._needed = tuple(dict.fromkeys(needed))
        self.columns: tuple[str, ...] = tuple(dict.fromkeys([*self._needed, *self._extra]))
        """What to read; a file may lack the extra ones."""
        self.limits: tuple[Limits, ...] = tuple(self._limits())
        """What the columns keep to; a row group whose statistics say otherwise is better decoded than trusted."""
        self.id_types: tuple[IdType, ...] = tuple(_id_type(feature) for feature in self._ids)
        """For every feature with a table, the narrowest type that holds its ids."""
        self.dropped: Counter[str] = Counter()
        """Ids that were left out so far, by column (`hash: drop`)."""
        self.positives_T = np.zeros(len(self._labels))
        """Of every task, the positive rows that were read so far."""
        self.labelled_T = np.zeros(len(self._labels), dtype=np.int64)
        """Of every task, the rows with its label that were read so far."""

    def reset_counts(self) -> None:
        """Begin to count anew what is read."""
        self.dropped.clear()
        self.positives_T[:] = 0
        self.labelled_T[:] = 0

    def check(self, file: str, found: pa.Schema) -> None:
        """Check the columns of a file.

        Raises:
            UserError: one line per column that is missing, ambiguous or of a type that its meaning does not allow.
        """
        faults = [fault for column in self._needed if (fault := presence_fault(column, found.names))]
        for feature in self._features:
            faults += type_faults(found, feature.column, *expectation(feature))
            if feature.weights != feature.column:
                faults += type_faults(found, feature.weights, is_numbers, "a bag's weights are lists of numbers")
        for label in self._labels:
            faults += type_faults(found, label, is_number, "a label is 0 or 1, in a boolean or number column")
        faults += type_faults(found, self._user, is_integer_or_string, _USER_RULE)
        faults += type_faults(found, self._weight, is_number, "row weights are numbers")
        for column in self._extra:
            faults += type_faults(found, column, is_integer_or_boolean, _SLICE_RULE)
        if faults:
            raise UserError("\n".join(f"{file} (domain '{self._domain}'): {fault}" for fault in faults))

    def id_kinds(self, found: pa.Schema) -> Iterator[tuple[str, str, IdKind]]:
        """What users and hashed features of a checked file hold: table ("" for users), column and kind.

        Columns of type null hold neither kind.
        """
        hashed = [(f.table_name, f.column) for f in self._features if f.hash == "xxhash" or f.vocabulary]
        for table, column in [("", self._user), *hashed]:
            kind = id_type(found.field(column).type)
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not pa.types.is_null(kind):
                yield table, column, "strings" if is_string(kind) else "integers"

    def _limits(self) -> Iterator[Limits]:
        for feature in self._features:
            if feature.weights:
                yield Limits(feature.weights, float(_FLOAT32.min), float(_FLOAT32.max))
            if not feature.has_table:
                bounds = (float(_FLOAT32.min), float(_FLOAT32.max)) if feature.clip is None else ()
                yield Limits(feature.column, *bounds)
            elif feature.hash == "none" and feature.vocabulary is None:
                assert feature.rows is not None
                yield Limits(feature.column, 0, feature.rows - 1)
        for label, nullable in zip(self._labels, self._nullable, strict=True):
            if label:
                yield Limits(label, 0, 1, nulls=nullable)
        yield Limits(self._user, high=int(_INT64.max), nulls=False)
        if self._weight:
            yield Limits(self._weight, float(_FLOAT32.smallest_subnormal), float(_FLOAT32.max), nulls=False)
        yield from (Limits(column, high=int(_INT64.max)) for column in self._extra)

    def decode(self, batch: pa.RecordBatch, origin: Origin) -> Rows:
        """Convert rows of a checked file.

        Raises:
            UserError: a value breaks a rule; names file, row, column, value and the rule.
        """
        count = batch.num_rows
        check_aligned(batch, self._sequences, origin)
        dense_BN = np.zeros((count, len(self._dense)), dtype=np.float32)
        for i, feature in enumerate(self._dense):
            if feature:
                dense_BN[:, i] = _dense(batch.column(feature.column), feature, origin)
        label_BT = np.full((count, len(self._labels)), np.nan, dtype=np.float32)
        for i, label in enumerate(self._labels):
            if label:
                label_BT[:, i] = _label(batch.column(label), label, origin, nullable=self._nullable[i])
                self.positives_T[i] += np.nansum(label_BT[:, i])
                self.labelled_T[i] += np.count_nonzero(~np.isnan(label_BT[:, i]))
        extra_BK = np.full((count, len(self._extra)), -1, dtype=np.int64)
        for i, column in enumerate(self._extra):
            if column in batch.schema.names:
                extra_BK[:, i] = _integers(batch.column(column), column, origin)
        user = batch.column(self._user)
        if user.null_count:
            raise origin.fault(self._user, _first(user.is_null()), None, "is no user; drop the row or fill it in")
        return Rows(
            ids=tuple(
                self._looked_up(batch, feature, origin) if feature else Jagged.empty(count) for feature in self._ids
            ),
            dense_BN=dense_BN,
            vectors=tuple(
                vectors(batch.column(feature.column), feature, origin)
                if feature
                else np.empty((count, 0), dtype=np.float32)
                for feature in self._vectors
            ),
            label_BT=label_BT,
            weight_B=_weight(batch.column(self._weight), self._weight, origin)
            if self._weight
            else np.ones(count, dtype=np.float32),
            user_B=_users(user, self._user, origin),
            extra_BK=extra_BK,
        )

    def _looked_up(self, batch: pa.RecordBatch, feature: Feature, origin: Origin) -> Jagged:
        array, weights = ids_and_weights(batch, feature, origin)
        return _ids(array, weights, feature, origin, self.dropped, self._vocabularies.get(feature.table_name))


# ---- ids -------------------------------------------------------------------------------------------------------------


def _ids(
    array: pa.Array,
    weights: Floats | None,
    feature: Feature,
    origin: Origin,
    dropped: Counter[str],
    vocabulary: KeyRows | None,
) -> Jagged:
    """The ids of one feature: nulls dropped, a sequence cut to its last ids, every id in [0, rows).

    In a column of events, where positions have to stay, nulls become row 0.
    """
    if pa.types.is_null(array.type) and feature.kind != "id":
        return Jagged.empty(len(array))
    lengths, values = None, array
    if is_list(array.type):
        lengths, values = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64), array.flatten()
    if is_string(values.type):
        values = values.cast(pa.large_binary())  # one layout of bytes; Arrow cannot filter its string views
    if feature.hash == "drop":
        nulls = values.null_count
        values = _null_outside(values, feature)
        dropped[feature.column] += values.null_count - nulls
    every, valid = lengths, None
    if values.null_count:
        ends = np.arange(1, len(values) + 1) if lengths is None else np.cumsum(lengths)
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        weights = None if weights is None else weights[valid]
        valid_before = np.concatenate([[0], np.cumsum(valid)])
        lengths = np.diff(valid_before[ends], prepend=0)
        values = values.drop_null()
    keys, lookup = _keys(values, feature) if vocabulary is None else (vocabulary.rows_of(values), None)
    if feature.events and every is not None and valid is not None:
        rows = _bounded(keys, lengths, feature, origin) if lookup is None else lookup[keys]
        keys, lengths, lookup = np.zeros(len(valid), dtype=np.int64), every, None
        keys[valid] = rows.view(np.int64)
        feature = feature.model_copy(update={"hash": "none"})  # these are rows of the table already
    if feature.length is not None:
        assert lengths is not None
        keys, lengths = _last(keys, lengths, feature.length)
    ids: Integers = (_bounded(keys, lengths, feature, origin) if lookup is None else lookup[keys]).view(np.int64)
    return Jagged(ids, None) if lengths is None else Jagged.of_lengths(ids, lengths, weights)


def _null_outside(values: pa.Array, feature: Feature) -> pa.Array:
    """Integer ids, null where they lie outside [0, rows)."""
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    kind = pa.uint64() if values.type == pa.uint64() else pa.int64()
    values = values.cast(kind)
    if not values.null_count:  # Arrow's own comparisons take ten times as long as one of NumPy, for few rows
        unsigned = values.to_numpy().view(np.uint64)
        if not len(unsigned) or int(unsigned.max()) < (feature.rows or 0):
            return values
    inside = pc.less(values, pa.scalar(feature.rows, kind))
    if kind == pa.int64():
        inside = pc.and_(inside, pc.greater_equal(values, 0))
    return pc.if_else(inside, values, pa.scalar(None, kind))


def _id_type(feature: Feature | None) -> IdType:
    return np.int64 if feature is not None and feature.rows is not None and feature.rows > 2**31 else np.int32


def _keys(values: pa.Array, feature: Feature) -> tuple[Keys, Integers | None]:
    """Integers as they are; strings as indices into their distinct values, with the table row of each of those."""
    if holds_strings(values.type):
        indices, hashes = string_hashes(values)
        return indices, _row_of(hashes, feature)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    keys: Keys = values.to_numpy(zero_copy_only=False)
    return keys if values.type == pa.uint64() else keys.astype(np.int64, copy=False), None


def _last(keys: Keys, lengths: Integers, length: int) -> tuple[Keys, Integers]:
    """The last `length` keys of every row."""
    kept = np.minimum(lengths, length)
    if np.array_equal(kept, lengths):
        return keys, lengths
    return keys[spans(np.cumsum(lengths) - kept, kept)], kept


def _bounded(keys: Keys, lengths: Integers | None, feature: Feature, origin: Origin) -> Keys:
    """Integer ids in [0, rows), hashed if the schema asks for it.

    Raises:
        UserError: an id lies outside and the feature's hash is `none`.
    """
    assert feature.rows is not None
    if feature.hash == "xxhash":
        return _row_of(hash_integers(keys), feature)
    unsigned = keys.view(np.uint64)  # a negative id becomes a huge one, so that one comparison sees both ends
    if not len(keys) or int(unsigned.max()) < feature.rows:
        return keys
    if feature.hash == "mod":
        return keys % feature.rows
    worst = int(np.argmax(unsigned >= feature.rows))
    row = worst if lengths is None else int(np.searchsorted(np.cumsum(lengths), worst, side="right"))
    raise origin.fault(
        feature.column,
        row,
        int(keys[worst]),
        f"lies outside [0, {feature.rows}), the rows of its table; raise 'rows' of the feature, or set 'hash: mod' "
        "or 'hash: drop' (to score new ids: --unseen-ids drop)",
    )


def _row_of(hashes: Hashes, feature: Feature) -> Integers:
    assert feature.rows is not None
    rows: Integers = (hashes % np.uint64(feature.rows)).astype(np.int64)
    return rows


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(array: pa.Array, null: float) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = array.cast(pa.float64(), safe=False).fill_null(null).to_numpy(zero_copy_only=False)
    return filled


def _users(array: pa.Array, column: str, origin: Origin) -> Integers:
    """Users without nulls as int64."""
    return user_numbers(array) if holds_strings(array.type) else _integers(array, column, origin)


def _integers(array: pa.Array, column: str, origin: Origin) -> Integers:
    """Integers as int64, -1 for null."""
    try:
        integers: Integers = array.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        row = int(np.argmax(array.fill_null(0).to_numpy(zero_copy_only=False) > _INT64.max))
        raise origin.fault(column, row, array[row].as_py(), "does not fit into a signed 64-bit integer") from None
    return integers


def _dense(array: pa.Array, feature: Feature, origin: Origin) -> Floats:
    null_B = array.is_null().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # a number too large for float32 becomes inf and is refused below
        values = filled(null_B, _numbers(array, null=0.0), feature).astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        rule = "is no finite float32; set 'clip' for the feature, or write null"
        raise origin.fault(feature.column, row, array[row].as_py(), rule)
    return values


def _label(array: pa.Array, column: str, origin: Origin, *, nullable: bool) -> Floats:
    """0 or 1; NaN for null, where a label may be that."""
    values = _numbers(array, null=np.nan)
    valid = (values == 0) | (values == 1)
    if nullable:
        valid |= array.is_null().to_numpy(zero_copy_only=False)
    if not valid.all():
        row = int(np.argmin(valid))
        value, rule = array[row].as_py(), "is no label; labels are 0 or 1: correct or drop the row"
        if value is None:
            rule += ", or set 'nullable: true' for the task: then the row does not count in it"
        raise origin.fault(column, row, value, rule)
    return values.astype(np.float32)


def _weight(array: pa.Array, column: str, origin: Origin) -> Floats:
    with np.errstate(over="ignore", under="ignore"):
        values = _numbers(array, null=np.nan).astype(np.float32)
    valid = np.isfinite(values) & (values > 0)
    if not valid.all():
        row = int(np.argmin(valid))
        raise origin.fault(column, row, array[row].as_py(), "is no row weight; weights are finite and greater than 0")
    return values


def _first(mask: pa.Array) -> int:
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))
