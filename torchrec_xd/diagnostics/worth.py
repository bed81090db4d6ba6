"""MKT's first stage: what each specific feature is worth to the predictions, against the score that HFA gives it.

Shape legend: B_d rows of domain d, N specific features of a domain.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.knowledge import FeatureScores
from torchrec_xd.diagnostics.mkt_findings import noise_turned_up
from torchrec_xd.embeddings import Lookups
from torchrec_xd.outputs import Output, Predictions, task_rows
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema


class FeatureWorth(Diagnostic):
    """Per domain and specific feature: what the log loss gains when the feature's values change rows (permutation).

    The net runs once more per feature and batch, on what was looked up; a copy of it does, as others watch the net.

    Args:
        net: MEM, from which a batch's lookups and its modules' scores are taken; before others watch it.
        schema: of the model.
    """

    name = "feature_worth"
    title = "What specific features are worth"
    reading = (
        "The log loss, in nats a row, when a feature's values are dealt out anew among the rows of its domain, less "
        "that of the rows as they are: near 0 the model has no use for it, and HFA should not turn it up. Rows "
        "count by their weights."
    )

    def __init__(self, net: nn.Module, schema: Schema) -> None:
        self.schema = schema
        self.domains = {domain: i for i, domain in enumerate(schema.domains)}
        self.net = copy.deepcopy(net).eval()
        self.scores = FeatureScores([(net, schema)], None)
        self.random = torch.Generator().manual_seed(0)
        self.lookups: Lookups | None = None
        self.predictions: Predictions | None = None
        # Of rows' weights w and gains g, a column per feature: sums of w, wg, w^2, w^2 g and w^2 g^2.
        self.sums = {domain: torch.zeros(5, len(c), dtype=torch.float64) for domain, c in self.scores.columns.items()}
        net.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: tuple[Lookups], predictions: Predictions) -> None:
        self.lookups, self.predictions = given[0], predictions

    @torch.no_grad()
    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch; the hooks have seen what was looked up for it."""
        lookups, predictions = self.lookups, self.predictions
        assert lookups is not None
        assert predictions is not None
        orders = {
            domain: torch.randperm(len(lookups.specific[domain]), generator=self.random).to(batch.label_BT.device)
            for domain in self.sums
        }
        before = self._losses(predictions, batch)
        # One run for the n-th feature of all domains: what a domain's features hold is read by its own rows alone.
        for n in range(max((sums.shape[1] for sums in self.sums.values()), default=0)):
            specific = dict(lookups.specific)
            for domain, order in orders.items():
                if n < self.sums[domain].shape[1]:
                    specific[domain] = dealt_anew(specific[domain], n, order)
            after = self._losses(self.net(replace(lookups, specific=specific)), batch)
            for domain, sums in self.sums.items():
                if n < sums.shape[1]:
                    weight_B = batch.weight_B[batch.rows(self.domains[domain])].double()
                    gain_B = weight_B * (after[domain] - before[domain])
                    added = (weight_B, gain_B, weight_B.square(), weight_B * gain_B, gain_B.square())
                    sums[:, n] += torch.stack(added).sum(1).cpu()

    def _losses(self, predictions: Predictions, batch: Batch) -> dict[str, Tensor]:
        """Domain to the log loss of its rows, `[B_d]`, over its tasks; a task without a label adds nothing."""
        rows = task_rows(self.schema, batch)
        losses: dict[str, Tensor] = {}
        for i, task in enumerate(self.schema.tasks):
            label_B = batch.label_BT[rows[task.name], i]
            known_B = ~label_B.isnan()
            logit_B = predictions.logit[task.name].float()
            loss_B = functional.binary_cross_entropy_with_logits(logit_B, label_B.nan_to_num(), reduction="none")
            losses[task.domain] = losses.get(task.domain, 0.0) + (loss_B * known_B).double()
        return losses

    def values(self) -> dict[str, Any]:
        """`domains`: `features` with HFA's mean `score`, and `worth` with its standard `error`, most first."""
        domains = {}
        for domain, scored in self.scores.values()["domains"].items():
            weight_N, gain_N, weight_squared_N, both_N, gain_squared_N = self.sums[domain]
            worth_N = gain_N / weight_N
            spread_N = gain_squared_N - 2 * worth_N * both_N + worth_N.square() * weight_squared_N
            error_N = spread_N.clamp(min=0).sqrt() / weight_N
            score = {feature["feature"]: feature["mean"] for feature in scored["features"]}
            measured = zip(self.scores.columns[domain], worth_N.tolist(), error_N.tolist(), strict=True)
            features = [{"feature": c, "score": score[c], "worth": worth, "error": e} for c, worth, e in measured]
            domains[domain] = {"features": sorted(features, key=lambda feature: -float(feature["worth"]))}
        return {"domains": domains}

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """Domains in which HFA turns up what is worth nothing."""
        return list(noise_turned_up(values))

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A table per domain."""
        found: list[Part] = []
        for domain, content in values["domains"].items():
            lines = [
                [f["feature"], text(f["worth"], ".5f"), text(f["error"], ".5f"), text(f["score"])]
                for f in content["features"]
            ]
            found += [f"Domain {domain}:", Grid(["feature", "worth", "standard error", "HFA's mean score"], lines)]
        return found


def feature_worth(net: nn.Module, schema: Schema) -> list[Diagnostic]:
    """Of a net with HFA: none where nothing gives scores."""
    found = FeatureWorth(net, schema)
    return [found] if found.sums else []


def dealt_anew(specific_BND: Tensor, n: int, order_B: Tensor) -> Tensor:
    """A domain's specific features, the values of the n-th one in another order of rows."""
    changed_BND = specific_BND.clone()
    changed_BND[:, n] = specific_BND[order_B, n]
    return changed_BND
