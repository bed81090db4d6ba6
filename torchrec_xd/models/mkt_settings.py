"""Settings of MKT's two stages (arXiv 2402.19101); what the paper does not print is called an extension."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from torchrec_xd.losses import Penalty
from torchrec_xd.models.blocks import NetSettings, Widths
from torchrec_xd.models.cke import ExtractorSettings


class PretrainSettings(ExtractorSettings):
    """Stage 1. The paper's widths are the defaults (section 4.1.3)."""

    name: Literal["mkt_pretrain"] = "mkt_pretrain"
    tower_widths: Widths = (64,)
    """Hidden layers of the tower that each task has."""
    gamma: NonNegativeFloat = 0.1
    """Weight of the polarized distribution loss; 0 is the ablation "w/o PDL"."""
    pdl: Penalty = "cosine"
    """What the polarized distribution loss averages: the cosine of common and independent knowledge (section 3.2.4), or
    as an extension its square or absolute value, least at right angles. Without `knowledge_activation: linear` cosines
    are never negative, and `absolute` is `cosine`."""
    domain_weight: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Domain to a factor on its loss. Default: 1."""


class FinetuneSettings(NetSettings):
    """Stage 2; the run names its stage-1 run in `init_from`."""

    name: Literal["mkt_finetune"] = "mkt_finetune"
    widths: Widths = (1024,)
    """Layers of the cross network; a last one of MEM's knowledge width W follows."""
    head_widths: Widths = (64,)
    """Hidden layers of the head that each task has."""
    gates: Literal["static", "dynamic"] = "static"
    """Whether a gate looks at MEM's vector alone, or also at the TEM vector that it is added to."""
    gate_bias: float = Field(default=0.0, ge=-20, le=20)
    """Added to the sigmoid's first bias in every gate (extension): 3 begins them open, -3 closed. Beyond 20 a sigmoid
    is 0 or 1 in fp32, and would not learn."""
    knowledge: Literal["common", "common_and_independent"] = "common"
    """What passes the last gate: common knowledge, as in section 3.3, or the whole input of MEM's tower, common and
    independent knowledge of the target (extension)."""
    warm_start: bool = False
    """Whether TEM begins as MEM (extension): tables, dense lines and sequence attention; the cross network as the
    target's independent extractor where `widths` and W are the `expert_widths` of stage 1. The rest starts fresh."""
    heads: Literal["own", "towers"] = "own"
    """What predicts. own: heads on `g_cross + GLU(g_com)`, as in section 3.3. towers (extension): towers of the form of
    stage 1's, on `GLU(g_com) ‖ g_cross` as theirs read `g_com ‖ g_ind`. Gates then begin so that `g_com` passes as it
    is and nothing else does: with `warm_start` TEM begins with MEM's predictions, and goes on from there. The widths
    are those of stage 1, `head_widths` its `tower_widths`."""

    @model_validator(mode="after")
    def _check_heads(self) -> FinetuneSettings:
        if self.heads == "towers" and (self.gate_bias or self.knowledge != "common"):
            raise ValueError(
                "heads: towers sets how gates begin, and reads common and independent knowledge apart: leave gate_bias "
                "and knowledge out, or set heads: own"
            )
        return self
