"""PLE: progressive layered extraction (Tang et al. 2020), with domains in the place of tasks.

Shape legend: B rows, I input width, W expert width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from torchrec_xd.modules.gates import ExpertGate
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain

SHARED = "*shared"
"""Name of the path that all domains feed; no domain can have it."""


class Experts(NamedTuple):
    """What the experts of a level are like."""

    widths: Sequence[int]
    """Widths of an expert's layers; the last one is W."""
    own: int = 1
    """Experts of each domain."""
    shared: int = 1
    dropout: float = 0.0
    linear: bool = False
    """No ReLU behind the last layer of the last level's experts, so that what is extracted may be negative."""


class ExtractionLevel(nn.Module):
    """One level: experts per path (each domain's own and the shared ones) and a gate per path that leads out of it.

    A domain's gate mixes its own and the shared experts (eq. 2-4; above the first level, eq. 6). The shared gate mixes
    all experts (section 4.2, in words).
    """

    def __init__(self, in_dim: int, experts: Experts, paths: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        widths, own, shared, dropout, linear = experts
        counts = {path: shared if path == SHARED else own for path in paths}
        self.experts = ModuleMap(
            {
                path: nn.ModuleList(MLP(in_dim, widths, head=linear, dropout=dropout) for _ in range(n))
                for path, n in counts.items()
            }
        )
        self.sources = {path: list(paths) if path == SHARED else [path, SHARED] for path in outputs}
        self.gates = ModuleMap(
            {path: ExpertGate(in_dim, sum(counts[s] for s in sources)) for path, sources in self.sources.items()}
        )

    def run(self, path: str, x: Tensor) -> list[Tensor]:
        """Outputs of one path's experts for `x`."""
        return [expert(x) for expert in self.experts[path].children()]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every path's input `[B, I]`, all rows, to the outgoing paths' `[B, W]`."""
        outputs = {path: self.run(path, inputs[path]) for path in self.experts.names}
        return {
            path: self.gates[path](inputs[path], [e for source in sources for e in outputs[source]])
            for path, sources in self.sources.items()
        }


class ProgressiveLayeredExtraction(nn.Module):
    """PLE: what the domains have in common, per domain.

    All levels but the last carry every row along every path; at the last level a row is needed by its own domain only,
    so each domain's experts and gate see that domain's rows alone.

    Args:
        in_dim: I.
        experts: their layers and numbers, the same at every level.
        domains: the paths.
        outputs: domains whose output is wanted; experts that none of them needs are not built.
        levels: extraction levels.
    """

    def __init__(
        self, in_dim: int, experts: Experts, *, domains: Sequence[str], outputs: Sequence[str], levels: int = 1
    ) -> None:
        super().__init__()
        every = [*domains, SHARED]
        dims = [in_dim] + [experts.widths[-1]] * (levels - 1)
        inner = Experts(*experts[:-1])  # with ReLU: what they give is not yet what is extracted
        self.levels = nn.ModuleList(ExtractionLevel(dim, inner, every, every) for dim in dims[:-1])
        self.last = ExtractionLevel(dims[-1], experts, [*outputs, SHARED], outputs)
        self.paths = (*domains, SHARED)
        self.outputs = tuple(outputs)

    def forward(self, x_BI: Tensor, rows: Mapping[str, slice]) -> dict[str, Tensor]:
        """All rows `[B, I]` and the slice of each domain to each output domain's `[B_d, W]`."""
        paths = dict.fromkeys(self.paths, x_BI)
        for level in self.levels:
            paths = level(paths)
        shared = []
        for expert in self.last.run(SHARED, paths[SHARED]):
            shared.append(by_domain(expert, rows))  # noqa: PERF401 - torch.compile takes `rows` in there for constants
        # With one level all paths are the same rows, which are cut once.
        cuts = by_domain(x_BI, rows) if not self.levels else {d: by_domain(paths[d], rows)[d] for d in self.outputs}
        common = {}
        for domain in self.outputs:
            experts = self.last.run(domain, cuts[domain]) + [expert[domain] for expert in shared]
            common[domain] = self.last.gates[domain](cuts[domain], experts)
        return common
