"""Do the domains pull the shared weights the same way: the cosine between the gradients of their losses.

Shape legend: P parameters, K blocks of them ("all" first), D domains, N batches, W numbers of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import laid_out, text
from torchrec_xd.outputs import Output
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema

ALL = "all"


class GradientCosines(Diagnostic):
    """Per pair of domains and block of dense parameters: cosine of the gradients of the two domains' cross entropies.

    A domain's loss is the sum of the parts `bce/<task>` of its tasks. A pair shares the parameters that both losses
    give a gradient other than zero in a batch. Gradients are asked for with respect to dense parameters alone, so that
    the backward pass never reaches a table, which would move inside it.

    Args:
        parameters: all dense parameters of the model, by name.
        schema: of the model.
    """

    name = "gradients"
    title = "Gradients of the domains on shared weights"
    reading = (
        "Above 0 a step for one domain also lowers the other's loss and sharing helps both, near 0 they do not meet, "
        "below 0 they pull against each other, which is where negative transfer comes from."
    )

    def __init__(self, parameters: Mapping[str, nn.Parameter], schema: Schema) -> None:
        self.domains = tuple(schema.domains)
        self.losses = [[f"bce/{t.name}" for t in schema.tasks if t.domain == domain] for domain in self.domains]
        self.parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.blocks = list(dict.fromkeys([ALL, *map(block_of, self.parameters)]))
        self.block_P = torch.tensor([self.blocks.index(block_of(name)) for name in self.parameters])
        self.size_P = torch.tensor([parameter.numel() for parameter in self.parameters.values()])
        self.cosine_NKDD: list[Tensor] = []
        self.size_KDD = torch.zeros(len(self.blocks), len(self.domains), len(self.domains), dtype=torch.float64)

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch, whose output still has its graph."""
        gram_PDD = self._products(output)
        own_PD = gram_PDD.diagonal(dim1=1, dim2=2)
        reached_PD = own_PD > 0
        shared_PDD = (reached_PD[:, :, None] & reached_PD[:, None, :]).double()
        dot_KDD = self._by_block(gram_PDD * shared_PDD)
        square_KDD = self._by_block(own_PD[:, :, None] * shared_PDD)  # of the first domain, on what it shares
        self.cosine_NKDD.append(dot_KDD / (square_KDD * square_KDD.transpose(1, 2)).sqrt())  # NaN: nothing shared
        self.size_KDD = torch.maximum(self.size_KDD, self._by_block(self.size_P[:, None, None] * shared_PDD))

    def _products(self, output: Output) -> Tensor:
        """Inner products of the domains' gradients, parameter by parameter, `[P, D, D]`."""
        parameters = list(self.parameters.values())
        gradients = [
            torch.autograd.grad(
                torch.stack([output.loss[part] for part in parts if part in output.loss]).sum(),
                parameters,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for parts in self.losses
        ]
        stacked = (torch.stack([g.flatten() for g in of_all]).double() for of_all in zip(*gradients, strict=True))
        return torch.stack([g_DW @ g_DW.T for g_DW in stacked]).cpu()

    def _by_block(self, values_PDD: Tensor) -> Tensor:
        sums_KDD = torch.zeros_like(self.size_KDD).index_add(0, self.block_P, values_PDD)
        sums_KDD[0] = values_PDD.sum(0)
        return sums_KDD

    def values(self) -> dict[str, Any]:
        """`pairs`: block, domains, mean, std, share of negative batches, batches, numbers in the shared parameters."""
        cosine_NKDD = torch.stack(self.cosine_NKDD)
        pairs = []
        for k, block in enumerate(self.blocks):
            for a, b in torch.combinations(torch.arange(len(self.domains))).tolist():
                known = cosine_NKDD[:, k, a, b]
                known = known[~known.isnan()]
                if len(known):
                    pairs.append(
                        {
                            "block": block,
                            "domains": [self.domains[a], self.domains[b]],
                            "mean": float(known.mean()),
                            "std": float(known.std(correction=0)),
                            "negative": float((known < 0).double().mean()),
                            "batches": len(known),
                            "parameters": int(self.size_KDD[k, a, b]),
                        }
                    )
        return {"pairs": pairs}

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A bar per block and pair of domains, and the same as a table."""
        by_pair: dict[str, list[dict[str, Any]]] = {}
        for pair in values["pairs"]:
            by_pair.setdefault(" – ".join(pair["domains"]), []).append(pair)
        bars = [
            go.Bar(
                name=name,
                x=[pair["block"] for pair in pairs],
                y=[pair["mean"] for pair in pairs],
                error_y={"type": "data", "array": [pair["std"] for pair in pairs]},
            )
            for name, pairs in by_pair.items()
        ]
        lines = [
            [
                pair["block"],
                name,
                text(pair["mean"]),
                text(pair["std"]),
                text(pair["negative"], ".0%"),
                f"{pair['batches']:,}",
                f"{pair['parameters']:,}",
            ]
            for name, pairs in by_pair.items()
            for pair in pairs
        ]
        header = ["block", "domains", "mean cosine", "spread", "negative in", "batches", "parameters"]
        return [laid_out(go.Figure(bars), "block", "cosine"), Grid(header, lines)]


def block_of(name: str) -> str:
    """Where a parameter stands, less indices, up to the first name that a user chose.

    `net.ple.last.experts.m_*shared.0.0.weight` is of `ple.last.experts.*shared`, `net.trunk.0.bias` of `trunk`.
    """
    block = []
    for part in name.removeprefix("net.").split(".")[:-1]:
        if not part.isdigit():
            block.append(part.removeprefix("m_"))
        if part.startswith("m_"):
            break
    return ".".join(block)
