"""MKT's knowledge: HFA and the extractors (arXiv 2402.19101, sections 3.2.2 and 3.2.3), which stage 2 keeps frozen.

Shape legend: B rows of the batch, B_d rows of domain d, W knowledge width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from torchrec_xd.embeddings import Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.models.blocks import NetSettings, RowVectors, SpecificAlignment, Widths
from torchrec_xd.modules.extractors import MixtureExtraction, StarExtraction
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.ple import Experts, ProgressiveLayeredExtraction
from torchrec_xd.schema import Schema

USED_BY = {"num_experts": ("ple",), "num_shared_experts": ("ple", "mmoe"), "levels": ("ple",)}
"""Settings of extractors to the extractors that have a use for them."""
LEFT_BEHIND = ("net.common.ple.last.", "net.common.star.norm.own.", "net.common.star.mlp.", "net.common.mmoe.gates.")
"""Prefixes of weights of the extractors that other domains than the target may own."""


class ExtractorSettings(NetSettings):
    """HFA and the common knowledge extractor."""

    aligned_dim: PositiveInt = 64
    """Width to which HFA brings every domain's specific features."""
    hfa: bool = True
    """False is the ablation "w/o HFA": one linear layer per domain, no crosses, no scores."""
    crosses: Literal["specific", "with_shared"] = "specific"
    """What HFA crosses to score specific features: them alone, as the paper's equations 4 to 6 have it, or them and the
    shared features, as its text says."""
    extractor: Literal["ple", "star", "mmoe"] = "ple"
    """What extracts common knowledge. The paper takes PLE and names STAR and MMoE as others (section 3.2.3). With STAR
    the towers' weights are shared ⊙ own too, which is an extension."""
    extractor_reads: Literal["all", "aligned"] = "all"
    """`aligned` feeds the extractor as equation 9 prints it: shared and aligned specific features. `all` adds user and
    sequence, as its result is called user-entity knowledge."""
    expert_widths: Widths = Field(default=(1024, 512), min_length=1)
    """Layers of an expert (of STAR: its layers) and of an independent extractor; the last one is W."""
    num_experts: PositiveInt = 1
    """Experts of each domain, per level; PLE only."""
    num_shared_experts: PositiveInt = 1
    """Shared experts, per level. MMoE, whose experts are all shared, takes at least 2."""
    levels: PositiveInt = 1
    """Extraction levels of the PLE."""
    knowledge_activation: Literal["relu", "linear"] = "relu"
    """Whether a ReLU ends common and independent knowledge, so that it is never negative; `linear` is an extension."""

    @property
    def linear(self) -> bool:
        """Whether knowledge may be negative."""
        return self.knowledge_activation == "linear"

    @model_validator(mode="after")
    def _every_setting_is_used(self) -> ExtractorSettings:
        for key, extractors in USED_BY.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.extractor not in extractors:
                raise ValueError(
                    f"{key}: {value} is for extractor {' and '.join(extractors)} only; leave it out with "
                    f"extractor: {self.extractor}"
                )
        if self.extractor == "mmoe" and self.num_shared_experts == 1:
            raise ValueError("extractor: mmoe mixes num_shared_experts, and 1 leaves nothing to mix: set 2 or more")
        if self.crosses == "with_shared" and not self.hfa:
            raise ValueError("crosses: with_shared needs hfa: true; without HFA nothing is crossed")
        return self


class CommonKnowledgeExtractor(nn.Module):
    """HFA and CKE: features of each domain to the knowledge that the domains share (sections 3.2.2 and 3.2.3).

    The paper's eq. 9 feeds the extractor with `q = v_shared ‖ aligned` alone, yet calls the result user-entity
    knowledge: here it reads `v_u ‖ v_seq ‖ q`, or with `extractor_reads: aligned` q alone.

    Args:
        schema: domains of all experts.
        outputs: domains whose knowledge is wanted; stage 2 keeps only what serves its target.

    Raises:
        UserError: `crosses: with_shared` where the schema has no shared feature.
    """

    def __init__(self, schema: Schema, settings: ExtractorSettings, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        dims = layout(schema)
        shared = settings.crosses == "with_shared"
        if shared and not dims.groups["shared"]:
            raise UserError("model.crosses: with_shared, but the schema has no feature of group shared: use specific")
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        self.hfa = SpecificAlignment(dims, settings.aligned_dim, outputs, scores=settings.hfa, shared=shared)
        self.names = [n for n in self.vectors.dims if settings.extractor_reads == "all" or n == "shared"]
        self.kind = settings.extractor
        in_dim = sum(self.vectors.dims[name] for name in self.names) + settings.aligned_dim
        self.add_module(self.kind, build_extractor(in_dim, settings, tuple(schema.domains), outputs))

    def forward(self, lookups: Lookups) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Vectors of every row (`user`, `sequence`, `shared`), and the common knowledge `[B_d, W]` by domain."""
        vectors = self.vectors(lookups)
        x = torch.cat([*(vectors[name] for name in self.names), self.hfa(lookups)], dim=1)
        return vectors, self.get_submodule(self.kind)(x, lookups.rows)


def build_extractor(
    in_dim: int, settings: ExtractorSettings, domains: tuple[str, ...], outputs: tuple[str, ...]
) -> nn.Module:
    """The extractor that the settings name, of all `domains`, for those of `outputs`."""
    widths, dropout, linear = settings.expert_widths, settings.dropout, settings.linear
    if settings.extractor == "star":
        return StarExtraction(in_dim, widths, outputs, linear=linear, dropout=dropout)
    if settings.extractor == "mmoe":
        count = settings.num_shared_experts
        return MixtureExtraction(in_dim, widths, outputs, count=count, linear=linear, dropout=dropout)
    experts = Experts(widths, settings.num_experts, settings.num_shared_experts, dropout, linear)
    return ProgressiveLayeredExtraction(in_dim, experts, domains=domains, outputs=outputs, levels=settings.levels)


def independent_extractors(schema: Schema, settings: ExtractorSettings, in_dim: int) -> ModuleMap:
    """`g_ind`: a domain's own features to what it knows alone, one network per domain (section 3.2.3).

    Args:
        schema: whose domains are wanted.
        settings: of stage 1.
        in_dim: width of the vectors of a row, in front of its specific features.
    """
    widths, linear, dropout = settings.expert_widths, settings.linear, settings.dropout
    return ModuleMap(
        {
            domain: MLP(in_dim + count * dim, widths, head=linear, dropout=dropout)
            for domain, (count, dim) in layout(schema).specific.items()
        }
    )
