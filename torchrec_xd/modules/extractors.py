"""Extractors of common knowledge other than PLE (modules/ple.py), and towers on knowledge (MKT, arXiv 2402.19101).

The paper's section 3.2.3 names STAR and MMoE as extractors that could take PLE's place. All are called alike: all rows
`[B, I]` and the slice of each domain to each output domain's `[B_d, W]`.

Shape legend: B rows, B_d rows of domain d, I input width, W knowledge width, H width of a domain's hidden vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from torchrec_xd.modules.gates import ExpertGate
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.modules.star import PartitionedNorm, StarMLP


class StarExtraction(nn.Module):
    """STAR's star (Sheng et al. 2021, sections 3.3 and 3.4): rows normalised by domain, layers shared ⊙ own.

    Its auxiliary network, which gives a logit and no vector, is left out.

    Args:
        in_dim: I.
        widths: of the layers; the last one is W.
        outputs: domains whose output is wanted; of the others nothing is built.
        linear: no ReLU behind the last layer.
        dropout: after each hidden layer.
    """

    def __init__(
        self, in_dim: int, widths: Sequence[int], outputs: Sequence[str], *, linear: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.norm = PartitionedNorm(in_dim, outputs)
        self.mlp = StarMLP(in_dim, widths, outputs, head=linear, dropout=dropout)

    def forward(self, x_BI: Tensor, rows: Mapping[str, slice]) -> dict[str, Tensor]:
        """`[B, I]` to each output domain's `[B_d, W]`."""
        own = by_domain(x_BI, rows)
        return {domain: self.mlp(self.norm(own[domain], domain), domain) for domain in self.outputs}


class MixtureExtraction(nn.Module):
    """MMoE's experts and gates (Ma et al. 2018, eq. 6-8), with domains in the place of tasks.

    Args:
        in_dim: I.
        widths: of an expert's layers; the last one is W.
        outputs: domains whose output is wanted: each has a gate.
        count: experts, which all domains share.
        linear: no ReLU behind the last layer.
        dropout: after each hidden layer.
    """

    def __init__(
        self,
        in_dim: int,
        widths: Sequence[int],
        outputs: Sequence[str],
        *,
        count: int,
        linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.experts = nn.ModuleList(MLP(in_dim, widths, head=linear, dropout=dropout) for _ in range(count))
        self.gates = ModuleMap({domain: ExpertGate(in_dim, count) for domain in outputs})

    def forward(self, x_BI: Tensor, rows: Mapping[str, slice]) -> dict[str, Tensor]:
        """`[B, I]` to each output domain's `[B_d, W]`; every expert sees all rows."""
        own = by_domain(x_BI, rows)
        experts = [by_domain(expert(x_BI), rows) for expert in self.experts]
        return {d: self.gates[d](own[d], [expert[d] for expert in experts]) for d in self.outputs}


class TaskTowers(ModuleMap):
    """A tower for each task that shares nothing with the others.

    Args:
        in_dim: H.
        widths: hidden layers.
        tasks: name of each task to its domain.
    """

    def __init__(self, in_dim: int, widths: Sequence[int], tasks: Mapping[str, str]) -> None:
        super().__init__({name: MLP(in_dim, (*widths, 1), head=True) for name in tasks})
        self.domains = dict(tasks)

    def forward(self, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each domain's `[B_d, H]` to a logit `[B_d, 1]` per task."""
        return {name: cast(Tensor, self[name](hidden[domain])) for name, domain in self.domains.items()}


class StarTowers(nn.Module):
    """Towers whose weights are shared ones times those of the domain (STAR, Sheng et al. 2021, section 3.4).

    Output i of a domain is its i-th task, as in STAR's own last layer. Arguments as those of `TaskTowers`.
    """

    def __init__(self, in_dim: int, widths: Sequence[int], tasks: Mapping[str, str]) -> None:
        super().__init__()
        self.outputs = {domain: [name for name in tasks if tasks[name] == domain] for domain in tasks.values()}
        self.mlp = StarMLP(in_dim, (*widths, max(map(len, self.outputs.values()))), tuple(self.outputs), head=True)

    def forward(self, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each domain's `[B_d, H]` to a logit `[B_d, 1]` per task."""
        logits = {}
        for domain, names in self.outputs.items():
            logit_BO = self.mlp(hidden[domain], domain)
            logits.update({name: logit_BO[:, i : i + 1] for i, name in enumerate(names)})
        return logits
