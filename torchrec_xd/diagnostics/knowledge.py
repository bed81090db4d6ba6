"""MKT: what its first stage keeps apart, how it weighs features, and what the second stage's gates let through.

The forward pass is watched, not repeated: hooks see what the modules are given in a batch.

Shape legend: B_d rows of domain d, N specific features of a domain, W width of a gate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import Distribution, histogram_figure, laid_out, text
from torchrec_xd.diagnostics.explained import Explained
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.mkt_findings import gating, separation
from torchrec_xd.json_lines import read_json_lines
from torchrec_xd.modules.gates import GatedLinearUnit
from torchrec_xd.modules.hfa import HeterogeneousFeatureAlignment
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.outputs import Output
from torchrec_xd.reports.page import Grid
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema

BINS = 20
LEAST = 1e-12
"""No length counts as less."""


class KnowledgeCosines(Diagnostic):
    """Per domain, the cosine between a row's common and independent knowledge: what PDL minimises.

    Args:
        net: MEM, with `common`, whose second output is the common knowledge by domain, and by domain `independent`.
        curves: by domain `step` and `cosine`, the mean over its rows of a batch, as training logged them.
        asked: whether training's loss asks for separation; if not, it is no fault that there is none.
    """

    name = "knowledge"
    title = "Common against independent knowledge"
    reading = (
        "Near 0 the two extractors know different things, as the polarized distribution loss wants it; near 1 the "
        "independent one repeats what the domains have in common."
    )

    def __init__(self, net: Any, curves: Mapping[str, Sequence[Mapping[str, float]]], *, asked: bool = True) -> None:
        self.curves, self.asked = curves, asked
        self.common: dict[str, Tensor] = {}
        self.spread = {domain: Distribution(-1, 1, 2 * BINS) for domain in net.independent.names}
        self.explained = {domain: Explained() for domain in self.spread}
        net.common.register_forward_hook(self._keep)
        for domain in self.spread:
            net.independent[domain].register_forward_hook(partial(self._compare, domain))

    def _keep(self, module: nn.Module, given: Any, output: tuple[Any, dict[str, Tensor]]) -> None:
        self.common = output[1]

    def _compare(self, domain: str, module: nn.Module, given: Any, independent: Tensor) -> None:
        cosine_B = functional.cosine_similarity(self.common[domain].float(), independent.float(), dim=1)
        self.spread[domain].add(cosine_B)
        self.explained[domain].add(self.common[domain].float(), independent.float())

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """The hooks have seen all."""

    def values(self) -> dict[str, Any]:
        """By domain: `domains`, summaries of the cosine; `explained`; `over_time`, its mean by `step`. And `asked`.

        `explained` is the share of the independent knowledge's variance that a linear map of the common one has.
        """
        return {
            "domains": {name: spread.summary() for name, spread in self.spread.items()},
            "explained": {name: explained.share() for name, explained in self.explained.items()},
            "asked": self.asked,
            "over_time": self.curves,
        }

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """Domains whose common and independent knowledge are the same, where training asked for another thing."""
        return list(separation(values))

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """The distributions, and the curve of training."""
        domains, curves = values["domains"], values["over_time"]
        explained = [[name, text(share)] for name, share in values["explained"].items()]
        found: list[Part] = [
            summary_grid("domain", domains),
            histogram_figure(domains, "cosine"),
            Grid(["domain", "of the independent one's variance, a linear map of the common one has"], explained),
        ]
        if any(curves.values()):
            lines = [
                go.Scatter(name=d, x=[p["step"] for p in curve], y=[p["cosine"] for p in curve], mode="lines")
                for d, curve in curves.items()
            ]
            found += ["Over time, as training logged it:", laid_out(go.Figure(lines), "step", "cosine")]
        return found


class FeatureScores(Diagnostic):
    """Per domain, HFA's score of every specific feature.

    Args:
        nets: nets whose modules with scores are watched, each with the schema of its features.
        noise: columns that are known to carry no information, None where that is not known.
    """

    name = "feature_scores"
    title = "HFA's scores of specific features"
    reading = (
        "A score multiplies its feature before the alignment: above 1 it is turned up, below 1 down; the layer behind "
        "can undo a constant factor, so compare features of one domain, not domains."
    )

    def __init__(self, nets: Sequence[tuple[nn.Module, Schema]], noise: frozenset[str] | None) -> None:
        self.noise = noise
        self.columns: dict[str, list[str]] = {}
        self.sums: dict[str, Tensor] = {}
        for net, schema in nets:
            for domain, module in _scoring(net):
                self.columns[domain] = [f.column for f in schema.features_of(domain, "specific")]
                self.sums[domain] = torch.zeros(3, len(self.columns[domain]), dtype=torch.float64)
                module.register_forward_hook(partial(self._add, domain))

    @torch.no_grad()
    def _add(
        self, domain: str, module: HeterogeneousFeatureAlignment, given: tuple[Tensor, ...], aligned: Tensor
    ) -> None:
        score_BN = module.importances(*given).double().cpu()
        self.sums[domain] += torch.stack([torch.ones_like(score_BN), score_BN, score_BN.square()]).sum(1)

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """The hooks have seen all."""

    def values(self) -> dict[str, Any]:
        """`domains`: `features` with mean and std, highest first; where noise is known, `noise_against_others`."""
        return {"domains": {domain: self._of(domain) for domain in self.columns if self.sums[domain][0].any()}}

    def _of(self, domain: str) -> dict[str, Any]:
        count_N, sum_N, square_N = self.sums[domain]
        mean_N = sum_N / count_N
        std_N = (square_N / count_N - mean_N.square()).clamp(min=0).sqrt()
        features: list[dict[str, Any]] = [
            {"feature": column, "mean": mean, "std": std}
            for column, mean, std in zip(self.columns[domain], mean_N.tolist(), std_N.tolist(), strict=True)
        ]
        features.sort(key=lambda feature: -feature["mean"])
        if self.noise is None:
            return {"features": features, "noise_against_others": None}
        for feature in features:
            feature["noise"] = feature["feature"] in self.noise
        return {"features": features, "noise_against_others": noise_against_others(features)}

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A table per domain, and what became of noise."""
        found: list[Part] = []
        for domain, found_scores in values["domains"].items():
            header = ["feature", "mean score", "spread over rows"]
            lines = [[f["feature"], text(f["mean"]), text(f["std"])] for f in found_scores["features"]]
            if self.noise is not None:
                header.append("planted as")
                for line in lines:
                    line.append("noise" if line[0] in self.noise else "informative")
            found += [f"Domain {domain}:", Grid(header, lines)]
            test = found_scores["noise_against_others"]
            if test is not None:
                found.append(
                    f"{domain}: noise is scored {test['noise_mean']:.3f} on average, informative features "
                    f"{test['informative_mean']:.3f}; Mann-Whitney p = {test['p']:.3g} for noise being lower, over "
                    f"{test['noise']} and {test['informative']} features."
                )
        return found


class GateOpenness(Diagnostic):
    """How far every gated linear unit of the net stands open: MKT's stage 2, CTNet's adapters.

    Args:
        net: whose gates are watched.
        stages: validation scores of a second stage and of the first one (`stage_1`, `stage_2`, `monitor`), where both
            are on record.
    """

    name = "gates"
    title = "Openness of the gates"
    reading = (
        "A gate near 0 keeps the transferred knowledge out and one near 1 lets it through; 0.5 is where gates begin, "
        "so a gate that has stayed there has not made up its mind. What passes has a share of the length of the sum."
    )

    def __init__(self, net: nn.Module, stages: Mapping[str, Any] | None = None) -> None:
        self.stages = stages
        self.spread: dict[str, Distribution] = {}
        self.share: dict[str, Distribution] = {}
        for path, module in net.named_modules():
            if isinstance(module, GatedLinearUnit):
                name = ".".join(part.removeprefix("m_") for part in path.split("."))
                self.spread[name], self.share[name] = Distribution(0, 1, BINS), Distribution(0, 1, BINS)
                module.register_forward_hook(partial(self._add, name))

    @torch.no_grad()
    def _add(self, name: str, module: GatedLinearUnit, given: tuple[Tensor, Tensor], passed: Tensor) -> None:
        self.spread[name].add(module.openness(*given))
        through_B, own_B = (vectors.float().norm(dim=1) for vectors in (passed, given[1]))
        self.share[name].add(through_B / (through_B + own_B).clamp(min=LEAST))

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """The hooks have seen all."""

    def values(self) -> dict[str, Any]:
        """`gates`: the summary of each, over rows and units, with the mean `share` that passed; `stages`."""
        gates = {name: {**s.summary(), "share": self.share[name].summary()["mean"]} for name, s in self.spread.items()}
        return {"gates": gates, "stages": self.stages}

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """A second stage that is worse than the first, and whether its gate is why."""
        return list(gating(values))

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """The distributions."""
        gates, stages = values["gates"], values["stages"]
        shares = [[name, text(gate["share"])] for name, gate in gates.items()]
        found: list[Part] = [
            summary_grid("gate", gates),
            histogram_figure(gates, "openness"),
            Grid(["gate", "mean share of the sum that passed it"], shares),
        ]
        if stages is not None:
            first, second = text(stages["stage_1"]), text(stages["stage_2"])
            found.append(f"{stages['monitor']} on validation: stage 1 {first}, stage 2 {second}.")
        return found


def noise_against_others(features: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Are the features marked as noise scored lower: means of both, and a one-sided Mann-Whitney U test of them.

    None where there is no noise, or nothing else.
    """
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 - takes .7 s to import, and training does not need it

    noise = [feature["mean"] for feature in features if feature["noise"]]
    informative = [feature["mean"] for feature in features if not feature["noise"]]
    if not (noise and informative):
        return None
    return {
        "noise": len(noise),
        "informative": len(informative),
        "noise_mean": sum(noise) / len(noise),
        "informative_mean": sum(informative) / len(informative),
        "p": float(mannwhitneyu(noise, informative, alternative="less").pvalue),
    }


def summary_grid(first: str, summaries: dict[str, dict[str, Any]]) -> Grid:
    """Means and spreads of distributions, by name."""
    lines = [[name, text(s["mean"]), text(s["std"]), f"{s['count']:,}"] for name, s in summaries.items()]
    return Grid([first, "mean", "spread", "numbers"], lines)


def _scoring(net: nn.Module) -> Iterable[tuple[str, HeterogeneousFeatureAlignment]]:
    """Domain and module of every HFA that gives scores."""
    for module in net.modules():
        if isinstance(module, ModuleMap):
            for domain in module.names:
                hfa = module[domain]
                if isinstance(hfa, HeterogeneousFeatureAlignment) and hfa.scores:
                    yield domain, hfa


def logged_cosines(directory: Path, schema: Schema) -> dict[str, list[dict[str, float]]]:
    """Domain to `step` and `cosine` of MKT's stage 1, as metrics.jsonl has them: means over its rows of a batch."""
    path = RunFolder(directory).metric_lines
    lines = read_json_lines(path)[0] if path.is_file() else []
    return {
        domain: [{"step": line["step"], "cosine": line[key]} for line in lines if (key := f"cosine/{domain}") in line]
        for domain in schema.domains
    }
