"""Constraints that a plan must keep: pins, bans, co-location."""

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
    """A constraint on the tables that its patterns match. A table must keep all constraints that match it."""

    tables: tuple[str, ...]
    """Table names or shell patterns (`hist_*`)."""
    sharding_types: tuple[str, ...] | None = None
    """Only these are allowed."""
    kernels: tuple[str, ...] | None = None
    """Only these are allowed."""
    forbid: tuple[str, ...] = ()
    """Sharding types or kernels that are not allowed."""
    ranks: tuple[NonNegativeInt, ...] | None = None
    """Pin: the tables are placed on these ranks only, whole (`table_wise`) or by columns (`column_wise`)."""
    together: bool = False
    """Co-location: all matched tables get the same sharding type, kernel and ranks, shard by shard."""

    @model_validator(mode="after")
    def _check(self) -> Constraint:
        _known(self.sharding_types or (), SHARDING_TYPES, "sharding type")
        _known(self.kernels or (), KERNELS, "kernel")
        _known(self.forbid, (*SHARDING_TYPES, *KERNELS), "sharding type or kernel")
        if not (self.sharding_types or self.kernels or self.forbid or self.ranks or self.together):
            raise ValueError("a constraint needs one of: sharding_types, kernels, forbid, ranks, together")
        return self

    def matches(self, table: str) -> bool:
        """Whether one of the patterns matches the name."""
        return any(fnmatch.fnmatchcase(table, pattern) for pattern in self.tables)

    def allows(self, sharding_type: str, kernel: str) -> bool:
        """Whether a matched table may be sharded like this. A pin allows only types whose shards can go to any rank."""
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
    """Check that every pattern matches a table and every pinned rank exists.

    Raises:
        UserError: a constraint would have no effect.
    """
    for constraint in constraints:
        for pattern in constraint.tables:
            if not any(fnmatch.fnmatchcase(table, pattern) for table in tables):
                raise UserError(f"constraint on '{pattern}' matches no table; tables: {', '.join(tables[:20])}")
        for rank in constraint.ranks or ():
            if rank >= world_size:
                names = ", ".join(constraint.tables)
                raise UserError(f"constraint on {names} pins rank {rank}; valid ranks: 0 to {world_size - 1}")


def groups_of(constraints: Sequence[Constraint], tables: Sequence[str]) -> list[list[int]]:
    """Indices of tables that must be co-located; a table without such a constraint is a group of its own."""
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
    """Ranks that all pins of a table allow; None where it has no pin.

    Raises:
        UserError: its pins exclude each other.
    """
    pins = [frozenset(c.ranks) for c in constraints if c.ranks is not None and c.matches(table)]
    if not pins:
        return None
    common = frozenset.intersection(*pins)
    if not common:
        named = " and ".join(str(sorted(pin)) for pin in pins)
        raise UserError(f"table '{table}' is pinned to different ranks: {named}; remove one of the pins")
    return common
