"""MiNet: mixed interest network (Ouyang et al. 2020), one target domain and any number of sources.

Shape legend: B_d rows of domain d, Q candidate width, U user width, W width of a trunk.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import EmbeddingSettings, Layout, Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Group
from torchrec_xd.models.blocks import SpecificAlignment, Widths
from torchrec_xd.models.joint import Towers, TowerSettings, joint
from torchrec_xd.models.model import Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.minet import InterestAttention, ItemAttention
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema

USER: tuple[Group, ...] = ("user", "context", "scene")
LONG_TERM = "*long-term"
"""Name of the interest that the user's own features stand for; no domain can have it."""


class MiNetSettings(TowerSettings):
    """MiNet; its weight of the source loss, gamma, is `domain_weight` of the sources."""

    name: Literal["minet"] = "minet"
    sequences: dict[str, tuple[str, ...]]
    """Domain to the sequences that hold what the user did there: columns, or names of `events`; every domain, every
    sequence once."""
    widths: Widths = Field(default=(1024, 512), min_length=1)
    """Layers of every domain's trunk."""
    attention_dim: PositiveInt = 16
    """Hidden width of both levels of attention."""


class MixedInterestNetwork(nn.Module):
    """Target: `MLP(q_t ‖ v_u p_u ‖ v_s a_s ... ‖ v_t a_t)`; source: `MLP(q_s ‖ p_u)` (section 2).

    `q` is the candidate (shared and aligned specific features), `p_u` the long-term interest (the user's features,
    whatever the domain), `a_s` the short-term interest from a source and `a_t` the target's own. Where a domain has
    several sequences, its interest is their pooled vectors side by side.
    """

    def __init__(self, schema: Schema, settings: MiNetSettings) -> None:
        super().__init__()
        dims = layout(schema)
        (self.target,) = schema.targets()
        self.sequences = settings.sequences
        self.align = SpecificAlignment(dims, settings.aligned_dim, schema.domains)
        user_dim = sum(dims.groups[group] for group in USER)
        candidate_dim = dims.groups["shared"] + settings.aligned_dim
        self.items = ModuleMap(
            {
                column: ItemAttention(
                    dims.sequences[column],
                    candidate_dim,
                    user_dim,
                    settings.attention_dim,
                    transfer=domain != self.target,
                )
                for domain, columns in self.sequences.items()
                for column in columns
            }
        )
        interests = {LONG_TERM: user_dim, **interest_dims(dims, settings)}
        self.interests = InterestAttention(interests, candidate_dim, settings.attention_dim)
        in_dims = dict.fromkeys(schema.domains, candidate_dim + user_dim)
        in_dims[self.target] = candidate_dim + sum(interests.values())
        self.trunks = ModuleMap(
            {domain: MLP(in_dim, settings.widths, dropout=settings.dropout) for domain, in_dim in in_dims.items()}
        )
        self.towers = Towers(settings.widths[-1], schema, settings)

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task: the loss is the target's and, as in the paper's joint loss, the sources'."""
        user = torch.cat([lookups.groups[group] for group in USER], dim=1)
        candidate = torch.cat([lookups.groups["shared"], self.align(lookups)], dim=1)
        users, hidden = by_domain(user, lookups.rows), {}
        for domain, candidate_BQ in by_domain(candidate, lookups.rows).items():
            user_BU = users[domain]
            if domain == self.target:
                mixed = self.interests(self.mixed_interests(lookups, candidate_BQ, user_BU), candidate_BQ)
            else:
                mixed = torch.cat([candidate_BQ, user_BU], dim=1)
            hidden[domain] = self.trunks[domain](mixed)
        predictions: Predictions = self.towers(hidden)
        return predictions

    def mixed_interests(self, lookups: Lookups, candidate_BQ: Tensor, user_BU: Tensor) -> dict[str, Tensor]:
        """Interests of the target's rows: the long-term one, and a short-term one per domain."""
        own, interests = lookups.rows[self.target], {LONG_TERM: user_BU}
        for domain, columns in self.sequences.items():
            histories = {column: tuple(part[own] for part in lookups.sequences[column]) for column in columns}
            pooled = [self.items[column](history, candidate_BQ, user_BU) for column, history in histories.items()]
            interests[domain] = torch.cat(pooled, dim=1)
        return interests


def interest_dims(dims: Layout, settings: MiNetSettings) -> dict[str, int]:
    """Domain to the width of its short-term interest."""
    return {domain: sum(dims.sequences[column] for column in columns) for domain, columns in settings.sequences.items()}


def build_minet(schema: Schema, settings: MiNetSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """MiNet of the schema's one target and its sources.

    Raises:
        UserError: no source, no target or several; or `sequences` and the schema do not fit together.
    """
    targets = schema.targets()
    if len(targets) != 1 or len(schema.domains) < 2:
        roles = ", ".join(f"{name} ({domain.role})" for name, domain in schema.domains.items())
        raise UserError(f"model 'minet' needs one target domain and at least one source; the domains are: {roles}")
    _check_sequences(schema, settings, targets[0])
    return joint(MixedInterestNetwork)(schema, settings, embeddings, seed)


def _check_sequences(schema: Schema, settings: MiNetSettings, target: str) -> None:
    there = schema.sequences()
    named = [column for columns in settings.sequences.values() for column in columns]
    for domain in sorted(set(settings.sequences) ^ set(schema.domains)):
        known = f"domains are: {', '.join(schema.domains)}"
        raise UserError(f"model.sequences names every domain and no other; '{domain}' is unknown or missing; {known}")
    for column in sorted({*named, *there}):
        if named.count(column) != 1 or column not in there:
            raise UserError(
                f"model.sequences gives every sequence to one domain; '{column}' is unknown or missing; sequences are: "
                f"{', '.join(there) or 'none'}"
            )
    for domain, columns in settings.sequences.items():
        if not columns:
            raise UserError(f"model.sequences: '{domain}' has none, and so no short-term interest: name at least one")
    readers = {f.table_name for f in schema.features_of(target) if f.kind == "id"}
    for column in settings.sequences[target]:
        own = [f for f in there[column] if f in schema.features_of(target)]
        if not any(f.table_name in readers for f in own):
            tables = "', '".join(f.table_name.removeprefix("t_") for f in there[column])
            raise UserError(
                f"model.sequences: '{column}' is a history of '{target}', but rows of '{target}' have no id in its "
                f"table '{tables}' that it could be held against"
            )


MINET = ModelSpec(MiNetSettings, build_minet, diagnostics=lambda run: overfitting(run.schema))
