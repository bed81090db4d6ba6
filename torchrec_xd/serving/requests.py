"""JSON in columns to rows that a model scores: the user's once, the candidates' one each, by the training decoder."""

from __future__ import annotations

import difflib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Integers, Rows
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema
from torchrec_xd.serving.column_values import arrow_values, request_type
from torchrec_xd.serving.encoding import RawEncoder
from torchrec_xd.serving.moments import TIME, read_moments
from torchrec_xd.serving.number_columns import NumberColumns
from torchrec_xd.serving.sides import Side, side
from torchrec_xd.serving.user_features import ParquetUserFeatures, UserFeatures

if TYPE_CHECKING:
    from torchrec_xd.serving.artifact import Artifact

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""Column to its values, one for each row."""
User: TypeAlias = int | str
Missing: TypeAlias = Literal["refuse", "null"]
SIDES: tuple[Side, Side] = ("request", "candidate")
PLACE: dict[Side, str] = {"request": "request", "candidate": "candidates"}
"""Where the columns of a side stand in a body."""
USER_FEATURES = "user features"
"""Under which users without any are counted."""
_NAMES = 30
"""Columns that a message lists."""


@dataclass(frozen=True)
class ScoreRequest:
    """A request as it was read."""

    request: Rows
    """Features of the request side, a row for each user."""
    candidates: Rows
    """Features of the candidate side."""
    request_of_B: Integers | None
    """Row of `request` of each candidate; None where there is one."""
    unseen: Counter[str]
    """Values without a row of their own, by column."""
    missing: tuple[str, ...] = ()
    """Columns that it lacked, read as null."""

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class RequestColumn:
    """What a request has to hold."""

    name: str
    side: Side
    type: pa.DataType
    rule: str
    """What it is, in words."""


class RequestReader:
    """Reads requests for one version of a model.

    Args:
        schema: of the one domain that it scores.
        prepared: types of the columns as training read them.
        encoder: of raw values; None where requests hold what training read.
    """

    def __init__(self, schema: Schema, prepared: Mapping[str, pa.DataType], encoder: RawEncoder | None = None):
        self.user_features: UserFeatures | None = None
        """Where columns come from that a request leaves to its user."""
        (self._domain,) = schema.domains
        self._encoder, self.user = encoder, schema.user
        self._schemas = {own: side_schema(schema, own) for own in SIDES}
        self._decoders = threading.local()
        self._sides: dict[Side, dict[str, pa.DataType]] = {"request": {}, "candidate": {}}
        self._clocks: dict[Side, list[str]] = {"request": [], "candidate": []}
        self.columns: tuple[RequestColumn, ...] = tuple(self._columns(schema, prepared))
        """What a request holds besides the user."""
        self._numbers = {own: NumberColumns(self._schemas[own], prepared) for own in SIDES}
        self._of_user = encoder.of_user() if encoder else ()
        self.timed = any(self._clocks.values())
        """Whether a request may have a `time`."""

    @staticmethod
    def of(artifact: Artifact, user_features: Path | None = None) -> RequestReader:
        """The reader of an artefact: raw values where it has encoders, else columns as training read them.

        Args:
            artifact: of the model.
            user_features: Parquet file with columns of a request's side, a row for each user.

        Raises:
            UserError: its encoders are damaged, or the file does not fit.
        """
        rows, _ = artifact.sample()
        (domain,) = artifact.schema.domains
        wanted = {name: request_type(rows.schema.field(name).type) for name in _read(artifact.schema)}
        folder = artifact.folder / "encoders"
        encoder = None
        if folder.is_dir():
            features = {feature.column for feature in artifact.schema.features}
            own = {name: kind for name, kind in wanted.items() if name in features}
            encoder = RawEncoder(folder, domain, own, artifact.words())
        found = RequestReader(artifact.schema, wanted, encoder)
        if user_features is not None:
            found.user_features = ParquetUserFeatures(user_features, found.user, found._sides["request"])
        return found

    def raw_values(self, name: str, values: pa.Array) -> list[Any]:
        """What a request would hold, to be read as these values or close to them."""
        return values.to_pylist() if self._encoder is None else self._encoder.decode(name, values)

    def read(self, body: Any, most: int, missing: Missing = "refuse") -> tuple[ScoreRequest, User]:
        """A body of `/score`: `{"request": {"user": 7, …}, "candidates": {"item": [1, 2], …}}`.

        Args:
            body: of JSON.
            most: candidates at most.
            missing: `null` reads columns that are not there as null.

        Raises:
            UserError: one line for each column or value that breaks a rule.
        """
        given = _mapping(body, "the body", ("request", "candidates"))
        request = _mapping(given.get("request", {}), "'request'")
        candidates = _mapping(given.get("candidates", {}), "'candidates'")
        for name, values in candidates.items():
            if not isinstance(values, list):
                raise UserError(f"candidates: '{name}' is a list with a value for each candidate, not {_shown(values)}")
        user = request.get(self.user)
        if isinstance(user, bool) or not isinstance(user, int | str):
            what = "is missing" if user is None else f"is {_shown(user)}"
            raise UserError(f"request: '{self.user}' {what}; it names the user, an integer or a text")
        once = {name: [value] for name, value in request.items()}
        return self.read_columns(once, candidates, most, missing), user

    def read_columns(
        self, request: Columns, candidates: Columns, most: int, missing: Missing = "refuse"
    ) -> ScoreRequest:
        """The same of columns: of the request one row, or one for each candidate; its users and times have as many.

        Raises:
            UserError: see `read`.
        """
        request = dict(request)
        unseen: Counter[str] = Counter()
        if self.user_features is not None and (users := request.get(self.user)):
            kept = self.user_features.lookup(users)
            unseen.update(_without_any(kept))
            request = {**kept.to_pydict(), **request}
        besides = {}  # columns of the request that no feature has under that name
        if self.timed and TIME in request:
            besides[TIME] = request.pop(TIME)
        if self.user not in self._sides["request"] and self.user in request:
            besides[self.user] = users = request.pop(self.user)
            request |= {name: users for name in self._of_user if name not in request}
        lost: list[str] = []
        if missing == "null":
            request = self._with_nulls("request", request, besides, lost)
            candidates = self._with_nulls("candidate", candidates, {}, lost)
        faults = [*self._presence("request", request), *self._presence("candidate", candidates)]
        if faults:
            raise UserError("\n".join(faults))
        count = _count(candidates, "candidates") if candidates else 1
        if count > most:
            raise UserError(f"candidates: {count:,} are more than the {most:,} that a request may have; split it")
        once_given = {**request, **besides}
        users_count = _count(once_given, "request") if once_given else 1
        if not candidates:
            count = users_count
        if users_count not in (1, count):
            raise UserError(f"request: {users_count:,} rows for {count:,} candidates; give one, or one for each")
        moments = read_moments(besides.get(TIME, [None] * users_count)) if self.timed else None
        once = self._rows("request", request, users_count, moments, unseen)
        each = self._rows("candidate", candidates, count, moments, unseen)
        return ScoreRequest(once, each, None if users_count == 1 else np.arange(count), unseen, tuple(lost))

    def _columns(self, schema: Schema, prepared: Mapping[str, pa.DataType]) -> list[RequestColumn]:
        found = []
        clocks = self._encoder.calendar if self._encoder else ()
        types = self._encoder.types if self._encoder else prepared
        for feature in schema.features:
            own = side(feature)
            if feature.column in clocks:
                self._clocks[own].append(feature.column)
            for name in filter(None, (feature.column, feature.weights)):
                if name in types and name not in self._sides[own]:
                    self._sides[own][name] = types[name]
                    found.append(RequestColumn(name, own, types[name], _rule(feature, types[name])))
        for own in SIDES:
            self._decoder(own).check(PLACE[own], pa.schema({**self._decoded_types(own, prepared)}))
        return found

    def _decoded_types(self, own: Side, prepared: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
        names = _read(self._schemas[own])
        return {name: prepared[name] for name in names} | {self._schemas[own].user: pa.int64()}

    def _decoder(self, own: Side) -> Decoder:
        """The thread's own, as decoders count what they drop."""
        found: Decoder | None = getattr(self._decoders, own, None)
        if found is None:
            found = Decoder(self._schemas[own], self._domain, labels=False, extra=())
            setattr(self._decoders, own, found)
        return found

    def _with_nulls(self, own: Side, given: Columns, besides: Columns, lost: list[str]) -> Columns:
        """With nulls for columns that are not there. How many candidates there are, some column has to say."""
        if not given and own == "candidate":
            return given
        rows = next((len(values) for values in (*given.values(), *besides.values())), 1)
        absent = [name for name in self._sides[own] if name not in given]
        lost += absent
        return {**given, **dict.fromkeys(absent, [None] * rows)}

    def _presence(self, own: Side, given: Columns) -> list[str]:
        """Columns that are unknown or missing, all of them."""
        known, place = self._sides[own], PLACE[own]
        if given.keys() == known.keys():
            return []
        unknown, missing = [name for name in given if name not in known], [name for name in known if name not in given]
        faults = []
        for name in unknown[:_NAMES]:
            other = next((o for o in SIDES if o != own and name in self._sides[o]), None)
            near = difflib.get_close_matches(name, missing or list(known), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            hint = f"; it belongs to '{PLACE[other]}'" if other else hint
            faults.append(f"{place}: unknown column '{name[:60]}'{hint}")
        if missing:
            faults.append(f"{place}: missing {_names(missing)}; null stands for what is not known")
        elif unknown:
            faults[-1] += f"; columns are: {', '.join(list(known)[:_NAMES]) or 'none'}"
        return faults

    def _rows(self, own: Side, given: Columns, count: int, moments: pa.Array | None, unseen: Counter[str]) -> Rows:
        place, kinds = PLACE[own], self._sides[own]
        if self._encoder is None and self._numbers[own].fits:
            plain = self._numbers[own].read(given, count, unseen)
            if plain is not None:
                _count_new_keys(plain, self._schemas[own], unseen)
                return plain
        arrays = {name: arrow_values(values, kinds[name], place, name) for name, values in given.items()}
        if self._encoder is not None:
            arrays = self._encoder.encode(arrays, unseen)
            for name in self._clocks[own]:
                assert moments is not None
                parts = self._encoder.clock(name, moments)
                arrays[name] = parts if len(parts) == count else pa.repeat(parts[0], count)
        schema, decoder = self._schemas[own], self._decoder(own)
        arrays[schema.user] = arrays.get(schema.user, pa.array(np.zeros(count, dtype=np.int64)))
        decoder.dropped.clear()
        rows = decoder.decode(pa.RecordBatch.from_pydict(arrays), Origin(place, 0))
        unseen.update(+decoder.dropped)
        _count_new_keys(rows, schema, unseen)
        return rows


def side_schema(schema: Schema, own: Side) -> Schema:
    """The features of one side alone. An id that its table lacks is left out, as an unseen one."""
    features = []
    for feature in schema.features:
        if side(feature) == own:
            bounded = feature.has_table and feature.hash == "none" and feature.vocabulary is None
            features.append(feature.model_copy(update={"hash": "drop"}) if bounded else feature)
    names = [name for feature in features for name in (feature.column, feature.weights)]
    user = schema.user if schema.user in names else _free("_user", names)
    return schema.model_copy(update={"features": tuple(features), "weight": None, "user": user})


def _count_new_keys(rows: Rows, schema: Schema, unseen: Counter[str]) -> None:
    """Count the keys that no vocabulary has, by column."""
    with_table = (feature for feature in schema.features if feature.has_table)
    for feature, ids in zip(with_table, rows.ids, strict=True):
        if feature.vocabulary is not None and (new := int(np.count_nonzero(ids.values == 0))):
            unseen[feature.column] += new


def _free(name: str, taken: Sequence[str | None]) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _read(schema: Schema) -> list[str]:
    """Columns of features and of weights of bags."""
    names = [name for feature in schema.features for name in (feature.column, feature.weights) if name]
    return list(dict.fromkeys(names))


def _mapping(value: Any, what: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is an object of columns, not {_shown(value)}")
    unknown = [key for key in value if keys and key not in keys]
    if unknown:
        raise UserError(f"{what} has the keys {' and '.join(keys)}, and no {_shown(unknown[0])}")
    return value


def _count(columns: Columns, place: str) -> int:
    """How many rows columns have."""
    lengths = {name: len(values) for name, values in columns.items()}
    count = next(iter(lengths.values()))
    if any(length != count for length in lengths.values()):
        first = next(iter(lengths))
        other = next(name for name, length in lengths.items() if length != count)
        raise UserError(
            f"{place}: columns have a value for each row; '{first}' has {count:,}, and '{other}' {lengths[other]:,}"
        )
    return count


def _without_any(rows: pa.RecordBatch) -> dict[str, int]:
    """How many users have no feature at all."""
    missing = np.all([column.is_null().to_numpy(zero_copy_only=False) for column in rows.columns], axis=0)
    return {USER_FEATURES: int(missing.sum())} if missing.any() else {}


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMES])
    return shown + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _rule(feature: Feature, kind: pa.DataType) -> str:
    """What a column holds, in words."""
    lists = pa.types.is_list(kind)
    word = "text" if pa.types.is_string(kind.value_type if lists else kind) else "integer"
    if feature.kind == "vector":
        return f"a list of {feature.length} numbers"
    if lists:
        return f"a list of {word}s" if feature.kind != "sequence" else f"a list of {word}s, oldest first"
    return "a number" if pa.types.is_floating(kind) else f"a {word}" if word == "text" else "an integer"
