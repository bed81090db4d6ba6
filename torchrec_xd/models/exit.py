"""EXIT: explicit interest transfer (arXiv 2407.20121).

One stage. A tower per domain predicts the interest in it; the scene selector network predicts how much of each source
interest is fit for the target, in this scene; the sum is the prediction, trained on the interest combination label.

Shape legend: B rows of the target domain (their number divides no loss: that is the whole batch's), K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Diagnostic
from torchrec_xd.diagnostics.selection import Selection
from torchrec_xd.diagnostics.shared_items import SharedItems
from torchrec_xd.diagnostics.transfer import TransferByScene, TransferProbabilities
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.losses import absolute_error_sum, bce_sum, probability_bce_sum, squared_error_sum
from torchrec_xd.models.blocks import RowVectors, side_by_side
from torchrec_xd.models.exit_settings import ExitSettings, check_tasks
from torchrec_xd.models.model import Model, task_cross_entropy
from torchrec_xd.models.spec import DiagnosedRun, ModelSpec
from torchrec_xd.modules.ipn import InterestPredictionNetwork
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.modules.ssn import ConstantSelector, SceneSelectorNetwork
from torchrec_xd.outputs import Losses, Predictions, task_rows
from torchrec_xd.schema import Schema


class ExplicitInterestTransfer(nn.Module):
    """`P = P_t + sum_k P_s^k P_tr^k`: interest in the target, and what is fit of that in each source.

    P may exceed 1. It is the score of the target task as it is; where a probability is needed (log loss, calibration,
    what `score` writes) it is truncated to [0, 1].
    """

    def __init__(self, schema: Schema, settings: ExitSettings) -> None:
        super().__init__()
        self.settings = settings
        self.domain_of = {task.name: task.domain for task in schema.tasks}
        dims = layout(schema)
        self.vectors = RowVectors(dims, settings.sequence_pooling, scene=settings.scene_to_towers)
        width = self.vectors.out_dim
        domains = (settings.target, *settings.sources)
        self.ipn = InterestPredictionNetwork(width, domains, settings.widths, settings.dropout)
        # Where the vectors of a row have the scene in them, the selector reads it there.
        self.scene_width = 0 if settings.scene_to_towers else dims.groups["scene"]
        self.selector: nn.Module = ConstantSelector(len(settings.sources))
        if settings.ssn:
            in_dim = width + self.scene_width
            self.selector = SceneSelectorNetwork(in_dim, len(settings.sources), settings.scene_widths, settings.dropout)

    def forward(self, lookups: Lookups) -> Predictions:
        """Scores: the target task gets P, and P_t as auxiliary score; `wanted` tasks get P_s, `fit` tasks P_tr."""
        settings, sources = self.settings, self.settings.sources
        of_domain = by_domain(side_by_side(self.vectors(lookups), lookups), lookups.rows)
        rows_BW = of_domain[self.domain_of[settings.target]]
        logit = {settings.target: self.ipn(rows_BW, settings.target)}
        for name, source in sources.items():
            logit[source.wanted] = self.ipn(rows_BW, name)
            if source.own is not None:
                logit[source.own] = self.ipn(of_domain[self.domain_of[source.own]], name)
        scene_BS = lookups.groups["scene"][lookups.rows[self.domain_of[settings.target]]]
        transfer_logit_BK = self.selector(rows_BW, scene_BS[:, : self.scene_width])
        transfer_BK = transfer_logit_BK.sigmoid()
        score = {task: values.sigmoid() for task, values in logit.items()}
        score |= {source.fit: transfer_BK[:, k] for k, source in enumerate(sources.values())}
        score[settings.alone] = score[settings.target]
        passed = [score[source.wanted] * score[source.fit] for source in sources.values()]
        score[settings.target] = torch.stack([score[settings.alone], *passed]).sum(0)
        return Predictions(logit, score, {"transfer_logit": transfer_logit_BK})


@dataclass(frozen=True)
class ExitLoss:
    """`l1 BCE(P_t, y_t) + l2 sum_k BCE(P_s^k, y_s^k) + l3 |P - y_icl|`, sums over their rows, divided by all rows.

    The first term by `target_on`, the last one by `transfer_on` and `transfer_error`: the defaults are the paper's.
    """

    schema: Schema
    settings: ExitSettings

    def __call__(self, predictions: Predictions, batch: Batch) -> Losses:
        """The parts of the loss; monitors are the mean transfer probabilities."""
        settings, rows = self.settings, task_rows(self.schema, batch)
        logit, score = predictions.logit, predictions.score
        tasks = {task.name: (task, i) for i, task in enumerate(self.schema.tasks)}
        label = {name: batch.label_BT[rows[name], i] for name, (_, i) in tasks.items()}
        weight_B = batch.weight_B[rows[settings.target]]
        parts = {
            f"bce/{task}": task_cross_entropy(*tasks[task], values, batch, rows[task])
            * (settings.target_weight if task == settings.target else settings.source_weight)
            for task, values in logit.items()
        }
        if settings.target_on == "whole":
            error = probability_bce_sum(score[settings.target], label[settings.target], weight_B)
            parts[f"bce/{settings.target}"] = settings.target_weight * error
        transfer = self._transfer(predictions, label, weight_B)
        parts["transfer"] = settings.transfer_weight * transfer
        monitors = {f"transfer/{name}": score[s.fit].detach().mean() for name, s in settings.sources.items()}
        return Losses({name: part / max(len(batch), 1) for name, part in parts.items()}, monitors)

    def _transfer(self, predictions: Predictions, label: Mapping[str, Tensor], weight_B: Tensor) -> Tensor:
        settings, score, sources = self.settings, predictions.score, list(self.settings.sources.values())
        prob_B, error = score[settings.target], ERRORS[settings.transfer_error]
        if not settings.icl:
            return probability_bce_sum(prob_B, label[settings.target], weight_B)
        if settings.transfer_on == "whole":
            fitting = [label[source.wanted] * label[source.fit] for source in sources]
            return error(prob_B, torch.stack([label[settings.target], *fitting]).sum(0), weight_B)
        errors = []
        for k, source in enumerate(sources):
            logit_B = predictions.vectors["transfer_logit"][:, k]
            value_B = logit_B if settings.transfer_error == "cross_entropy" else score[source.fit]
            errors.append(error(value_B, label[source.fit], weight_B * label[source.wanted]))
        return torch.stack(errors).sum()


ERRORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "absolute": absolute_error_sum,
    "squared": squared_error_sum,
    "cross_entropy": bce_sum,
}
"""Of a value, or for the cross entropy its logit, a label and a weight."""


def build_exit(schema: Schema, settings: ExitSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """EXIT on one target domain and the labels of any number of sources.

    Raises:
        UserError: tasks that the schema lacks, that lie in the wrong domain, or that nothing uses; features that only
            one domain has; no scenes for the scene selector network, or vectors as scenes without that network.
    """
    check_tasks(schema, settings)
    specific = [feature.column for feature in schema.features if feature.group == "specific"]
    if specific:
        raise UserError(
            f"model 'exit' shares items between domains, and has no use for specific features ({', '.join(specific)}); "
            "give them the group shared or context, or leave them out: without: [COLUMN]"
        )
    scenes = [feature for feature in schema.features if feature.group == "scene"]
    if settings.ssn and not scenes:
        raise UserError("model 'exit' selects by scene: give some feature the group scene, or set model.ssn=false")
    if settings.scene_to_towers and not scenes:
        raise UserError(
            "model.scene_to_towers: no feature has the group scene; give one that group, or set it to false"
        )
    read = settings.ssn or settings.scene_to_towers
    unread = [scene.column for scene in scenes if scene.kind == "vector" and not read]
    if unread:  # its projection would never get a gradient, which ranks would wait for
        raise UserError(
            f"model 'exit' with model.ssn=false reads no scene, and has no use for the vector '{unread[0]}'; leave it "
            f"out: without: [{unread[0]}]"
        )
    tables, net = Embeddings(schema, embeddings, seed), ExplicitInterestTransfer(schema, settings)
    return Model(tables, net, ExitLoss(schema, settings))


def _diagnostics(run: DiagnosedRun) -> list[Diagnostic]:
    settings: ExitSettings = run.settings
    sources = {name: (source.wanted, source.fit) for name, source in settings.sources.items()}
    domain_of = {task.name: task.domain for task in run.schema.tasks}
    own = {name: domain_of[source.own] for name, source in settings.sources.items() if source.own is not None}
    return [
        *([SharedItems(run.schema, domain_of[settings.target], own)] if own else []),
        Selection(run.schema, settings.target, settings.alone, sources, learned=settings.ssn),
        TransferProbabilities(run.schema, settings.target, sources),
        _by_scene(run.schema, settings, truth=True),
    ]


def _by_scene(schema: Schema, settings: ExitSettings, *, truth: bool = False) -> TransferByScene:
    fit = {name: source.fit for name, source in settings.sources.items()}
    return TransferByScene(schema, settings.target, settings.alone, fit, truth=truth)


EXIT = ModelSpec(
    ExitSettings,
    build_exit,
    auxiliary_scores=lambda settings: {settings.alone: settings.target},
    diagnostics=_diagnostics,
    report=lambda schema, settings: [_by_scene(schema, settings)],
)
