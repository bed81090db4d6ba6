"""Wishes that a plan must keep: pins, bans, co-location."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from pydantic import NonNegativeInt, model_validator
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import ShardingType

from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

SHARDING_TYPES = tuple(kind.value for kind in ShardingType)
KERNELS = tuple(kernel.value for kernel in EmbeddingComputeKernel)


class Constraint(Settings):
    """A constraint for the tables that its patterns match. Several constraints for one table all hold."""

    tables: tuple[str, ...]
    """Table names or shell patterns (`hist_*`)."""
    sharding_types: tuple[str, ...] | None = None
    """Allow these only."""
    kernels: tuple[str, ...] | None = None
    """Allow these only."""
    forbid: tuple[str, ...] = ()
    """Sharding types or kernels that must not be used."""
    ranks: tuple[NonNegativeInt, ...] | None = None
    """Whole tables (`table_wise`) or columns go to these ranks only."""
    together: bool = False
    """The matched tables get one sharding type and kernel and the same ranks, shard by shard."""

    @model_validator(mode="after")
    def _check(self) -> Constraint:
        _known(self.sharding_types or (), SHARDING_TYPES, "sharding type")
        _known(self.kernels or (), KERNELS, "kernel")
        _known(self.forbid, (*SHARDING_TYPES, *KERNELS), "sharding type or kernel")
        if not (self.sharding_types or self.kernels or self.forbid or self.ranks or self.together):
            raise ValueError("a constraint needs one of: sharding_types, kernels, forbid, ranks, together")
        return self

    def matches(self, table: str) -> bool:
        """Whether a pattern fits the name."""
        return any(fnmatch.fnmatchcase(table, pattern) for pattern in self.tables)

    def allows(self, sharding_type: str, kernel: str) -> bool:
        """Whether a matched table may be sharded so; a rank pin leaves only types that choose ranks."""
        return (
            (self.sharding_types is None or sharding_type in self.sharding_types)
            and (self.kernels is None or kernel in self.kernels)
            and not {sharding_type, kernel} & set(self.forbid)
            and (self.ranks is None or sharding_type in ("table_wise", "column_wise"))
        )


def _known(values: Iterable[str], valid: Sequence[str], what: str) -> None:
    for value in values:
        if value not in valid:
            raise ValueError(f"unknown {what} '{value}'; valid: {', '.join(valid)}")


def check_constraints(constraints: Sequence[Constraint], tables: Sequence[str], world_size: int) -> None:
    """Every pattern must match a table, every pinned rank must exist.

    Raises:
        UserError: the constraint that would have been silently without effect.
    """
    for constraint in constraints:
        for pattern in constraint.tables:
            if not any(fnmatch.fnmatchcase(table, pattern) for table in tables):
                raise UserError(f"constraint on '{pattern}' matches no table; tables: {', '.join(tables[:20])}")
        for rank in constraint.ranks or ():
            if rank >= world_size:
                raise UserError(f"constraint on {', '.join(constraint.tables)} pins rank {rank} of {world_size}")


def groups_of(constraints: Sequence[Constraint], tables: Sequence[str]) -> list[list[int]]:
    """Indices of tables that must stay together; a table without such a constraint is a group of its own."""
    group_of = list(range(len(tables)))
    for constraint in constraints:
        if constraint.together:
            matched = [i for i, table in enumerate(tables) if constraint.matches(table)]
            merged = {group_of[i] for i in matched}
            group_of = [group_of[matched[0]] if group in merged else group for group in group_of]
    groups: dict[int, list[int]] = {}
    for i, group in enumerate(group_of):
        groups.setdefault(group, []).append(i)
    return list(groups.values())


def allowed_ranks(constraints: Sequence[Constraint], table: str) -> frozenset[int] | None:
    """Ranks that every pin of the table allows, None where it has no pin.

    Raises:
        UserError: two pins that exclude each other.
    """
    pins = [frozenset(c.ranks) for c in constraints if c.ranks is not None and c.matches(table)]
    if not pins:
        return None
    common = frozenset.intersection(*pins)
    if not common:
        raise UserError(f"table '{table}' is pinned to different ranks: {' and '.join(str(sorted(p)) for p in pins)}")
    return common
