"""PLE: progressive layered extraction (Tang et al. 2020), with domains in the place of tasks.

Shape legend: B rows, I input width, W expert width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from torchrec_xd.modules.gates import ExpertGate
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP

SHARED = "*shared"
"""Name of the path that all domains feed; no domain can have it."""


class ExtractionLevel(nn.Module):
    """One level: experts per path (each domain's own and the shared ones) and a gate per path that leads out of it.

    A domain's gate mixes its own and the shared experts (eq. 1-4); the shared gate mixes all experts (eq. 5).
    """

    def __init__(
        self, in_dim: int, widths: Sequence[int], experts: Mapping[str, int], outputs: Sequence[str], dropout: float
    ) -> None:
        super().__init__()
        self.experts = ModuleMap(
            {path: nn.ModuleList(MLP(in_dim, widths, dropout=dropout) for _ in range(n)) for path, n in experts.items()}
        )
        self.sources = {path: list(experts) if path == SHARED else [path, SHARED] for path in outputs}
        self.gates = ModuleMap(
            {path: ExpertGate(in_dim, sum(experts[s] for s in sources)) for path, sources in self.sources.items()}
        )

    def run(self, path: str, x: Tensor) -> list[Tensor]:
        """What the experts of one path say of `x`."""
        return [expert(x) for expert in self.experts[path].children()]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every path's input `[B, I]`, all rows, to the outgoing paths' `[B, W]`."""
        said = {path: self.run(path, inputs[path]) for path in self.experts.names}
        return {
            path: self.gates[path](inputs[path], [e for source in sources for e in said[source]])
            for path, sources in self.sources.items()
        }


class ProgressiveLayeredExtraction(nn.Module):
    """PLE: what the domains have in common, per domain.

    All levels but the last carry every row along every path; at the last level a row is needed by its own domain only,
    so each domain's experts and gate see that domain's rows alone.

    Args:
        in_dim: I.
        widths: widths of an expert's layers; the last one is W.
        domains: the paths.
        outputs: domains whose output is wanted; experts that none of them needs are not built.
        num_experts: experts per domain and level, and shared ones per level.
        levels: extraction levels.
    """

    def __init__(
        self,
        in_dim: int,
        widths: Sequence[int],
        *,
        domains: Sequence[str],
        outputs: Sequence[str],
        num_experts: tuple[int, int],
        levels: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        own, shared = num_experts
        every = {**dict.fromkeys(domains, own), SHARED: shared}
        level_dims = [in_dim] + [widths[-1]] * (levels - 1)
        self.levels = nn.ModuleList(
            ExtractionLevel(level_dims[i], widths, every, [*domains, SHARED], dropout) for i in range(levels - 1)
        )
        last = {path: every[path] for path in (*outputs, SHARED)}
        self.last = ExtractionLevel(level_dims[-1], widths, last, outputs, dropout)
        self.paths = (*domains, SHARED)
        self.outputs = tuple(outputs)
        self.out_dim = widths[-1]

    def forward(self, x_BI: Tensor, rows: Mapping[str, slice]) -> dict[str, Tensor]:
        """All rows `[B, I]` and the slice of each domain to each output domain's `[B_d, W]`."""
        paths = dict.fromkeys(self.paths, x_BI)
        for level in self.levels:
            paths = level(paths)
        shared = self.last.run(SHARED, paths[SHARED])
        common = {}
        for domain in self.outputs:
            own_BI = paths[domain][rows[domain]]
            experts = self.last.run(domain, own_BI) + [expert[rows[domain]] for expert in shared]
            common[domain] = self.last.gates[domain](own_BI, experts)
        return common
