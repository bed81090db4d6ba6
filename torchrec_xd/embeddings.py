"""Schema to embedding collections, and lookups to what models read.

Every feature becomes vectors of its embedding width: ids and bags through one EmbeddingBagCollection, weighted bags and
what shares their tables through another, sequences and the ids that share theirs through one EmbeddingCollection, dense
numbers through a learned line each, vectors of numbers through a learned projection each.

Shape legend: B rows of the batch, B_d rows of domain d, F features, N specific features, D width, L positions,
V numbers of all vectors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from torchrec_xd.batch import Batch
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature, Group
from torchrec_xd.modules.numeric import NumericEmbedding
from torchrec_xd.modules.projection import VectorProjection
from torchrec_xd.modules.rows import concat
from torchrec_xd.schema import Collection, Schema, Table
from torchrec_xd.settings import MAX_FP32, Settings
from torchrec_xd.table_types import PlannedDtype, TableDtype

BLOCK_ROWS = 1 << 20
"""Rows of a table that are drawn at a time."""
TABLE_DTYPES: dict[PlannedDtype, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}
"""Types of table weights, by name. Runs train fp32 and fp16; the planner also plans bf16."""
FLAT_GROUPS: tuple[Group, ...] = ("user", "shared", "context", "scene")
"""Groups that every row carries; `specific` and `sequence` have shapes of their own."""


class EmbeddingSettings(Settings):
    """How the tables are stored and begin."""

    dtype: TableDtype = "fp32"
    """Type of the weights; the optimizer state stays fp32. fp16 keeps 11 bits: where weights are rounded to the nearest
    value, as on CPU, updates below 1/4096 of a weight are lost (`optimizer.tables.stochastic_rounding`)."""
    init_std: float = Field(default=0.01, ge=0, le=MAX_FP32)
    """Standard deviation of a table's first weights."""


ColumnRun = tuple[str, ...]
"""Columns whose vectors lie side by side and are read together."""


class SequenceLookup(NamedTuple):
    """A behaviour sequence as looked up, oldest first; where it has several columns, their vectors side by side."""

    keys_BLD: Tensor
    """Vectors of the sequence, padded with zeros."""
    length_B: Tensor
    """Ids in each sequence."""
    query_BD: Tensor
    """The row's own id in the same table (its candidate item or category); zero where its domain has none."""


class TableVectors(NamedTuple):
    """What the tables yield for a batch, as plain tensors: what a server without tables hands to a net."""

    pooled: dict[ColumnRun, Tensor]
    """Columns to their vectors side by side, `[B, D]`; an id that shares a table with a sequence is alone."""
    padded: dict[str, Tensor]
    """Column of a sequence to `[B, L, D]`, padded with zeros."""
    lengths: dict[str, Tensor]
    """Column of a sequence to the ids in each row, `[B]`."""


@dataclass(frozen=True)
class Lookups:
    """Everything that one batch looked up."""

    groups: dict[Group, Tensor]
    """`user`, `shared`, `context`, `scene` to `[B, F * D]`, features in schema order."""
    specific: dict[str, Tensor]
    """Domain to the specific features of its own rows, `[B_d, N, D]`; N is 0 where it has none."""
    sequences: dict[str, SequenceLookup]
    """Name of `Schema.sequences` to its lookup."""
    rows: dict[str, slice]
    """Domain to its rows of the batch."""


@dataclass(frozen=True)
class Layout:
    """The widths of a Lookups, known from the schema alone: what a model is built from."""

    groups: dict[Group, int]
    """Width of each flat group; 0 where the schema has no such feature."""
    specific: dict[str, tuple[int, int]]
    """Domain to (N, D)."""
    sequences: dict[str, int]
    """Name of `Schema.sequences` to D, of all its columns together."""


def layout(schema: Schema) -> Layout:
    """What `Embeddings(schema)` will look up.

    Raises:
        UserError: specific features of one domain differ in `dim`: HFA weighs them as equals.
    """
    groups = {g: sum(schema.dim_of(f) for f in schema.features if f.group == g) for g in FLAT_GROUPS}
    specific = {}
    for domain in schema.domains:
        features = schema.features_of(domain, "specific")
        dims = {schema.dim_of(f) for f in features}
        if len(dims) > 1:
            widths = ", ".join(f"{f.column} {schema.dim_of(f)}" for f in features)
            raise UserError(f"specific features of '{domain}' need one common dim, but have: {widths}")
        specific[domain] = (len(features), dims.pop() if dims else schema.dim)
    sequences = {name: sum(schema.dim_of(f) for f in columns) for name, columns in schema.sequences().items()}
    return Layout(groups, specific, sequences)


class Embeddings(nn.Module):
    """All tables of a schema, on the meta device until they are sharded, and what embeds dense numbers and vectors.

    Args:
        schema: what the lookups are laid out by.
        seed: a table's first weights depend on it and on the table's name, not on the order of tables or the plan.
        batches: schema of the batches that will be read. Default: the same one. Features that it lacks get no table,
            and read as zero, just as they do on the rows of a mixed batch whose domain lacks them.
    """

    def __init__(self, schema: Schema, settings: EmbeddingSettings, seed: int, batches: Schema | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.read = schema if batches is None else _common(schema, batches)
        self.dims = {f.column: schema.dim_of(f) for f in schema.features}
        self.next_of = _neighbours(schema)
        self.batch_dense = [f.column for f in (batches or schema).features if f.kind == "dense"]
        tables = self.read.sized_tables()
        dtype = TABLE_DTYPES[settings.dtype]
        meta = torch.device("meta")

        def described(table: Table) -> dict[str, Any]:
            return {
                "name": table.name,
                "num_embeddings": table.rows,
                "embedding_dim": table.dim,
                "feature_names": [f.column for f in table.features],
                "data_type": dtype,
                "init_fn": Initialiser(table.name, table.rows, settings.init_std, seed),
            }

        def bags(which: Collection) -> EmbeddingBagCollection | None:
            pooled = [EmbeddingBagConfig(**described(t), pooling=_pooling(t)) for t in tables if t.collection == which]
            weighted = which == "weighted_bags"
            return EmbeddingBagCollection(tables=pooled, is_weighted=weighted, device=meta) if pooled else None

        self.bags = bags("bags")
        # Apart: weights cost a third of a lookup and half of the bytes of an id, which unweighted tables need not pay.
        self.weighted_bags = bags("weighted_bags")
        unpooled = [EmbeddingConfig(**described(t)) for t in tables if t.collection == "sequences"]
        self.sequences = EmbeddingCollection(tables=unpooled, device=meta) if unpooled else None
        dense = [f for f in self.read.features if f.kind == "dense"]
        lines = {schema.dim_of(f): [g.column for g in dense if schema.dim_of(g) == schema.dim_of(f)] for f in dense}
        self.numeric = nn.ModuleDict({f"dim_{dim}": NumericEmbedding(lines[dim], dim) for dim in sorted(lines)})
        self.batch_vectors = {f.column: f.width for f in (batches or schema).features if f.kind == "vector"}
        widths = {f.column: (f.width, schema.dim_of(f)) for f in self.read.features if f.kind == "vector"}
        self.projections = VectorProjection(widths)
        self.queries = {
            f.column: [(other.column,) for other in table.features if other.kind == "id"]
            for table in tables
            for f in table.features
            if f.kind == "sequence"
        }

    def forward(self, batch: Batch) -> Lookups:
        """One lookup per collection for all features, then views by group."""
        rows = {domain: batch.rows(i) for i, domain in enumerate(self.read.domains)}
        return self.arranged(self.looked_up(batch), batch.dense_BN, batch.vector_BV, rows)

    def looked_up(self, batch: Batch) -> TableVectors:
        """One lookup per collection for all features."""
        vectors: dict[ColumnRun, Tensor] = {}
        for bags, given in ((self.bags, batch.bags), (self.weighted_bags, batch.weighted_bags)):
            if bags is None:
                continue
            pooled = bags(given)
            # Features are taken by key: a sharded collection returns them in the order of its plan.
            vectors |= self.runs(pooled.values(), pooled.keys())
        jagged = dict(self.sequences(batch.sequences).items()) if self.sequences is not None else {}
        unpooled = [f for f in self.read.features if f.column in jagged]
        vectors |= {(f.column,): _first(jagged[f.column]) for f in unpooled if f.kind == "id"}
        sequences = {f.column: f.length for f in unpooled if f.length is not None}
        return TableVectors(
            vectors,
            {column: jagged[column].to_padded_dense(length).float() for column, length in sequences.items()},
            {column: jagged[column].lengths() for column in sequences},
        )

    def arranged(self, tables: TableVectors, dense_BN: Tensor, vector_BV: Tensor, rows: dict[str, slice]) -> Lookups:
        """What the tables yield, numbers and vectors of a batch, by group; columns that `tables` lacks read as zero."""
        vectors = self._numeric_vectors(dense_BN) | self._projected(vector_BV) | tables.pooled
        members = {group: [f.column for f in self.schema.features if f.group == group] for group in FLAT_GROUPS}
        groups = {group: self._beside(vectors, own, dense_BN).float() for group, own in members.items()}
        specific = {domain: self._specific(vectors, domain, own, dense_BN) for domain, own in rows.items()}
        sequences = {
            name: self._sequence(columns, tables, dense_BN) for name, columns in self.schema.sequences().items()
        }
        return Lookups(groups, specific, sequences, rows)

    def _numeric_vectors(self, dense_BN: Tensor) -> dict[ColumnRun, Tensor]:
        vectors: dict[ColumnRun, Tensor] = {}
        for module in self.numeric.values():
            columns = cast(NumericEmbedding, module).columns
            if columns != self.batch_dense:
                # Not indexed by a list, which would be copied to the device and waited for.
                dense = dense_BN.unbind(1)
                given = torch.stack([dense[self.batch_dense.index(column)] for column in columns], dim=1)
            else:
                given = dense_BN
            vectors |= self.runs(module(given).flatten(1), columns)
        return vectors

    def _projected(self, vector_BV: Tensor) -> dict[ColumnRun, Tensor]:
        if not self.projections.columns:
            return {}
        given = torch.split_with_sizes(vector_BV, list(self.batch_vectors.values()), dim=1)
        projected: dict[str, Tensor] = self.projections(dict(zip(self.batch_vectors, given, strict=True)))
        return {(column,): vector_BD for column, vector_BD in projected.items()}

    def runs(self, vectors_BV: Tensor, columns: Iterable[str]) -> dict[ColumnRun, Tensor]:
        """Vectors that lie side by side, cut only where what is read together ends: few wide views, hardly a copy."""
        runs = self.read_together(columns)
        widths = [sum(self.dims[column] for column in run) for run in runs]
        return dict(zip(runs, torch.split_with_sizes(vectors_BV, widths, dim=1), strict=True))

    def read_together(self, columns: Iterable[str]) -> list[ColumnRun]:
        """Columns in their order, those that are read together as one."""
        runs: list[ColumnRun] = []
        for column in columns:
            if runs and self.next_of.get(runs[-1][-1]) == column:
                runs[-1] = (*runs[-1], column)
            else:
                runs.append((column,))
        return runs

    def _specific(self, vectors: Mapping[ColumnRun, Tensor], domain: str, own: slice, like_BN: Tensor) -> Tensor:
        members = [f.column for f in self.read.features_of(domain, "specific")]
        dim = self.dims[members[0]] if members else self.schema.dim
        own_BV = self._beside(vectors, members, like_BN)[own].float()
        return own_BV.view(own_BV.shape[0], len(members), dim)

    def _beside(self, vectors: Mapping[ColumnRun, Tensor], columns: list[str], like_BN: Tensor) -> Tensor:
        """`[B, sum of widths]` of columns that runs cover whole; zero where the batch lacks one."""
        runs = {run[0]: run for run in vectors}
        parts: list[Tensor] = []
        while columns:
            run = runs.get(columns[0], (columns[0],))
            given = vectors.get(run)
            parts.append(_zeros(like_BN, self.dims[run[0]]) if given is None else given)
            columns = columns[len(run) :]
        return concat(parts) if parts else _zeros(like_BN, 0)

    def _sequence(self, columns: tuple[Feature, ...], tables: TableVectors, like_BN: Tensor) -> SequenceLookup:
        given = [f.column for f in columns if f.column in tables.padded]
        zero_BD = [_zeros(like_BN, self.schema.dim_of(f)) for f in columns]
        if not given:
            zero = concat(zero_BD)
            return SequenceLookup(zero[:, None, :][:, :0], zero.new_zeros(zero.shape[0], dtype=torch.int32), zero)
        keys, queries = [], []
        for feature, zero in zip(columns, zero_BD, strict=True):
            assert feature.length is not None
            padded = tables.padded.get(feature.column)
            keys.append(zero[:, None, :].expand(-1, feature.length, -1) if padded is None else padded)
            # Several ids may share the table (an item and its substitute): a row queries with their sum.
            own = [tables.pooled[run] for run in self.queries.get(feature.column, ()) if run in tables.pooled]
            queries.append(torch.stack(own).sum(0).float() if own else zero)
        keys_BLD = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
        return SequenceLookup(keys_BLD, tables.lengths[given[0]], concat(queries))


def _neighbours(schema: Schema) -> dict[str, str]:
    """Column to the one behind it in its group, where all that read the one read the other too."""
    groups = [[f for f in schema.features if f.group == group] for group in (*FLAT_GROUPS, "specific")]
    pairs = [pair for features in groups for pair in pairwise(features)]
    return {left.column: right.column for left, right in pairs if left.domains == right.domains}


def _common(schema: Schema, batches: Schema) -> Schema:
    """The features of `schema` that `batches` has too, on its domains."""
    columns = {f.column for f in batches.features}
    features = tuple(f for f in schema.features if f.column in columns)
    return schema.model_copy(update={"domains": batches.domains, "tasks": batches.tasks, "features": features})


def _zeros(like_BN: Tensor, width: int) -> Tensor:
    return like_BN.new_zeros(like_BN.shape[0], width)


def _first(jagged: JaggedTensor) -> Tensor:
    """An id feature from an unpooled lookup: `[B, D]`, zero where the id is missing."""
    padded_B1D: Tensor = jagged.to_padded_dense(1)
    return padded_B1D.squeeze(1)


def _pooling(table: Table) -> PoolingType:
    poolings = {f.pooling for f in table.features if f.kind == "bag"} or {"sum"}
    if len(poolings) > 1:
        columns = ", ".join(f"{f.column} ({f.pooling})" for f in table.features if f.kind == "bag")
        raise UserError(f"table '{table.name}' pools both ways: {columns}; use one pooling, or a table each")
    return PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM


@dataclass(frozen=True)
class Initialiser:
    """First weights of one table, the same wherever its parts lie: drawn in blocks of rows, each with its own seed."""

    name: str
    rows: int
    std: float
    seed: int

    def __call__(self, weight: Tensor) -> Tensor:
        """Fill a whole table `[rows, dim]`; what has no memory, or lies on another rank, stays as it is."""
        if weight.device.type == "meta" or not weight.numel():
            return weight
        return self.fill(weight, 0, 0, weight.shape[1])

    @torch.no_grad()
    def fill(self, part: Tensor, row: int, column: int, dim: int) -> Tensor:
        """Fill a part of a table of width `dim` that begins at (row, column); needs the memory of one block besides."""
        end, width = row + len(part), part.shape[1]
        for start in range(row - row % BLOCK_ROWS, end, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.rows)
            first, last = max(start, row), min(stop, end)
            inside = part[first - row : last - row]
            if (first, last, width) == (start, stop, dim):
                self._draw(inside, start)
            else:
                block = self._draw(part.new_empty(stop - start, dim), start)
                inside.copy_(block[first - start : last - start, column : column + width])
        return part

    def _draw(self, block: Tensor, start: int) -> Tensor:
        # 32 bits, as the CPU's generator drops the upper half of a longer seed.
        text = f"{self.seed}/{self.name}" + (f"/{start}" if start else "")
        generator = torch.Generator(block.device).manual_seed(zlib.crc32(text.encode()))
        return block.normal_(0.0, self.std, generator=generator)


def weight_prefixes(schema: Schema) -> dict[str, str]:
    """Table, dense or vector column to where `Embeddings(schema)` keeps its weights: a table's prefix, else a name."""
    return {
        **{
            t.name: f"{t.collection}.{'embeddings' if t.sequential else 'embedding_bags'}.{t.name}."
            for t in schema.tables()
        },
        **{
            f.column: f"numeric.dim_{schema.dim_of(f)}.lines.n_{f.column}" for f in schema.features if f.kind == "dense"
        },
        **{f.column: f"projections.weights.v_{f.column}" for f in schema.features if f.kind == "vector"},
    }


def table_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters of all embedding collections inside `module`."""
    for collection in table_collections(module):
        yield from collection.parameters()


def table_configs(module: nn.Module) -> Iterable[BaseEmbeddingConfig]:
    """The configurations of all tables inside `module`."""
    for collection in table_collections(module):
        pooled = isinstance(collection, EmbeddingBagCollection)
        yield from collection.embedding_bag_configs() if pooled else collection.embedding_configs()


def table_initialisers(module: nn.Module) -> dict[str, Initialiser]:
    """Name of each table's parameter inside `module` to what gives it its first weights."""
    found: dict[str, Initialiser] = {}
    for path, part in module.named_modules():
        if isinstance(part, EmbeddingBagCollection):
            found |= {f"{path}.embedding_bags.{c.name}.weight": c.init_fn for c in part.embedding_bag_configs()}
        elif isinstance(part, EmbeddingCollection):
            found |= {f"{path}.embeddings.{c.name}.weight": c.init_fn for c in part.embedding_configs()}
    return found


def table_collections(module: nn.Module) -> Iterable[EmbeddingBagCollection | EmbeddingCollection]:
    """All embedding collections inside `module`."""
    return (m for m in module.modules() if isinstance(m, EmbeddingBagCollection | EmbeddingCollection))
