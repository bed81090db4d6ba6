"""A curriculum: epochs in which domains give other shares of the rows than they hold, sources first for example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from torchrec_xd.data.shards import Shard, ShardSpec, mixed_rows
from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings


class PhaseSettings(Settings):
    """One phase of a curriculum."""

    epochs: PositiveInt = 1
    """How long it lasts."""
    shares: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | Literal["sources"]
    """Relative share of each domain in its epochs, {domain: share}. A domain that is not named, or has 0, is left
    out. sources: all source domains, each by its rows."""

    @field_validator("shares")
    @classmethod
    def _some(cls, shares: dict[str, float] | Literal["sources"]) -> dict[str, float] | Literal["sources"]:
        if shares != "sources" and not any(shares.values()):
            raise ValueError("give some domain a share above 0: an epoch without rows teaches nothing")
        return shares


@dataclass(frozen=True)
class Phase:
    """Epochs whose rows are cut alike, as one rank reads them; steps are counted over all epochs."""

    first_step: int
    epoch_steps: int
    rows: tuple[int, ...]
    """Of one epoch, by domain."""
    first_rows: tuple[int, ...]
    """By domain: where the phase begins in the rank's stream."""
    smallest_batch: int
    """No rank's batch has fewer rows."""

    def row_at(self, step: int, i: int) -> int:
        """Where a step of this phase begins in the stream of domain i; `rows[i]` rows per epoch.

        Rounding is out of phase between domains, so that small ones do not all give their rows in the same steps.
        """
        if not self.epoch_steps:
            return self.first_rows[i]
        out_of_phase = i * self.epoch_steps // len(self.rows)
        return self.first_rows[i] + ((step - self.first_step) * self.rows[i] + out_of_phase) // self.epoch_steps


def phases(
    shards: dict[str, Shard],
    share: ShardSpec,
    batch_size: int,
    *,
    mixing: dict[str, float] | None = None,
    curriculum: Sequence[PhaseSettings] = (),
    sources: Sequence[str] = (),
) -> list[Phase]:
    """All phases, the last one without an end: there, every row comes once per epoch, or `mixing` holds.

    An epoch has as many rows as the files in all of them. Each phase begins a new pass over every domain's rows.

    Raises:
        UserError: as `mixed_rows`.
    """
    totals = {name: shard.total_rows for name, shard in shards.items()}
    steps = -(-sum(totals.values()) // (share.world_size * batch_size))
    last = totals if mixing is None else mixed_rows(totals, mixing, share.world_size)
    rows_of = [
        (each.epochs, mixed_rows(totals, _shares(totals, each, sources), share.world_size, "curriculum"))
        for each in curriculum
    ]
    found: list[Phase] = []
    first_step, first_rows = 0, tuple(0 for _ in shards)
    for epochs, epoch_rows in [*rows_of, (0, last)]:
        rows = tuple(stop - start for start, stop in map(share.of, epoch_rows.values()))
        smallest = sum(total // share.world_size // max(steps, 1) for total in epoch_rows.values())
        found.append(Phase(first_step, steps, rows, first_rows, smallest))
        first_step += epochs * steps
        first_rows = tuple(
            first - -epochs * own // shard.rows * shard.rows if shard.rows else 0
            for first, own, shard in zip(first_rows, rows, shards.values(), strict=True)
        )
    return found


def _shares(totals: dict[str, int], phase: PhaseSettings, sources: Sequence[str]) -> dict[str, float]:
    """The share of every domain."""
    shares = phase.shares
    if shares == "sources":
        if not any(totals[name] for name in sources):
            raise UserError(
                f"curriculum: shares: sources, but no domain of this run is a source with rows ({', '.join(totals)}); "
                "name domains, {DOMAIN: 1}, or leave curriculum out"
            )
        shares = {name: totals[name] for name in sources}
    unknown = next((name for name in shares if name not in totals), None)
    if unknown is not None:
        raise UserError(f"curriculum: unknown domain '{unknown}'; the domains of this run are: {', '.join(totals)}")
    return {name: shares.get(name, 0.0) for name in totals}
