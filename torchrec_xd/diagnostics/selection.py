"""EXIT: does the selector let the right interests through, and does the whole prediction gain by them.

Shape legend: R rows of the target domain, W rows with an interest in a source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.selection_findings import all_findings
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.evaluation.significance import holm, paired_bootstrap, users_that_count, verdict
from torchrec_xd.outputs import Output, task_rows
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema

SCENES = 20
"""Values of scenes in which the predictions are compared, the most frequent ones: with more, Holm's correction would
leave no verdict to 1,000 resamples."""


class Selection(Diagnostic):
    """`P_tr` against the label `c` where there is an interest, on training rows too; P against `P_t`, by scene.

    Args:
        schema: of the model.
        target: the target task.
        alone: auxiliary score of the target tower alone, `P_t`.
        sources: by name, the task of the interest in the source and the task of the transfer probability.
        learned: whether a network computes `P_tr`; if not, it is one number by design.
    """

    name = "selection"
    title = "What the selector is worth"
    reading = (
        "P_tr is held against the label of what fits, on rows with an interest in the source: its AUC on training rows "
        "far above that on these rows is what was remembered. Then the AUC of P less that of P_t alone, its interval "
        "by a bootstrap of users, and verdicts by Holm over the scenes that are shown. AUC, means and shares count "
        "rows by their weights."
    )
    reads_training = True

    def __init__(
        self, schema: Schema, target: str, alone: str, sources: Mapping[str, tuple[str, str]], *, learned: bool = True
    ) -> None:
        self.schema, self.target, self.alone = schema, target, alone
        self.sources, self.learned = dict(sources), learned
        self.place = {task.name: i for i, task in enumerate(schema.tasks)}
        self.scenes = tuple(f.column for f in schema.features if (f.group, f.kind, f.hash) == ("scene", "id", "none"))
        self.rows: dict[str, list[Array]] = {}
        self.training: dict[str, list[Array]] = {}

    def integer_columns(self) -> tuple[str, ...]:
        """The scenes, whose values in the rows are read."""
        return self.scenes

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch."""
        own = task_rows(self.schema, batch)[self.target]
        self._keep(self.rows, batch, output)
        further = {
            "whole": output.score[self.target].detach(),
            "alone": output.score[self.alone].detach(),
            "label": batch.label_BT[own, self.place[self.target]],
            "user": batch.user_B[own],
            **{f"scene/{scene}": columns[scene][own] for scene in self.scenes},
        }
        for key, column_B in further.items():
            self.rows.setdefault(key, []).append(column_B.cpu().numpy())

    def update_training(self, batch: Batch, output: Output) -> None:
        """Add a batch of training rows, of which only the selector is looked at."""
        self._keep(self.training, batch, output)

    def _keep(self, rows: dict[str, list[Array]], batch: Batch, output: Output) -> None:
        own = task_rows(self.schema, batch)[self.target]
        found = {"weight": batch.weight_B[own].double()}
        for name, (wanted, fit) in self.sources.items():
            found[f"passed/{name}"] = output.score[fit].detach().double()
            found[f"wanted/{name}"] = batch.label_BT[own, self.place[wanted]]
            found[f"fit/{name}"] = batch.label_BT[own, self.place[fit]]
        for key, column_B in found.items():
            rows.setdefault(key, []).append(column_B.cpu().numpy())

    def values(self) -> dict[str, Any]:
        """`rows`, `extra_share`, by name `sources`; of P against `P_t` `whole` and `scenes`, a line for each value."""
        rows = {key: np.concatenate(parts) for key, parts in self.rows.items()}
        training = {key: np.concatenate(parts) for key, parts in self.training.items()}
        acted = float(rows["weight"] @ rows["label"])
        fitting = sum(float(rows["weight"] @ (rows[f"wanted/{name}"] * rows[f"fit/{name}"])) for name in self.sources)
        return {
            "rows": len(rows["label"]),
            "extra_share": fitting / (acted + fitting) if acted + fitting else None,
            "sources": {name: self._source(name, rows, training) for name in self.sources},
            "whole": gain(rows, np.ones(len(rows["label"]), dtype=bool)),
            "scenes": self._by_scene(rows),
        }

    def _source(self, name: str, rows: Mapping[str, Array], training: Mapping[str, Array]) -> dict[str, Any]:
        wanted_R, passed_R, weight_R = rows[f"wanted/{name}"] == 1, rows[f"passed/{name}"], rows["weight"]
        fit_W, passed_W, weight_W = rows[f"fit/{name}"][wanted_R], passed_R[wanted_R], weight_R[wanted_R]
        return {
            "wanted": int(wanted_R.sum()),
            "wanted_share": float(wanted_R.mean()) if len(wanted_R) else None,
            "fit_share": weighted_mean(fit_W, weight_W),
            "mean": weighted_mean(passed_W, weight_W),
            "std": float(passed_R[weight_R > 0].std()) if weight_R.any() else None,
            "learned": self.learned,
            "here": auc_with_error(passed_W, fit_W, weight_W),
            "training": _training_quality(name, training) if training else None,
            "gain": gain(rows, wanted_R),
        }

    def _by_scene(self, rows: Mapping[str, Array]) -> list[dict[str, Any]]:
        found = []
        for scene in self.scenes:
            value_R = rows[f"scene/{scene}"]
            values, counts = np.unique(value_R[value_R >= 0], return_counts=True)
            found += [(int(count), scene, int(value)) for value, count in zip(values, counts, strict=True)]
        lines = [
            {"scene": scene, "value": value, **gain(rows, rows[f"scene/{scene}"] == value)}
            for _, scene, value in sorted(found, key=lambda each: -each[0])[:SCENES]
        ]
        known = [line for line in lines if line["delta"] is not None]
        for line, p in zip(known, holm([line["p"] for line in known]), strict=True):
            line["p"], line["verdict"] = p, verdict(line["delta"], p, line["users"])
        return lines

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """What is wrong with labels, selector and prediction."""
        return all_findings(values)

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """The selector source by source, then P against `P_t`."""
        sources = [
            [
                name,
                f"{source['wanted']:,}",
                *(text(source[key], ".4f") for key in ("fit_share", "mean", "std")),
                *(text(source[key] and source[key]["auc"], ".4f") for key in ("here", "training")),
            ]
            for name, source in values["sources"].items()
        ]
        lines = [
            [name, f"{line['rows']:,}", *(text(line[key], "+.4f") for key in ("delta", "low", "high")), line["verdict"]]
            for name, line in [
                ("all rows", values["whole"]),
                *((f"rows wanted in {name}", source["gain"]) for name, source in values["sources"].items()),
                *((f"{line['scene']} {line['value']}", line) for line in values["scenes"]),
            ]
        ]
        return [
            Grid(["source", "wanted rows", "share that fits", "mean P_tr", "spread", "AUC", "AUC, training"], sources),
            Grid(["rows of", "rows", "AUC of P less that of P_t", "from", "to", "P is"], lines),
        ]


def _training_quality(name: str, training: Mapping[str, Array]) -> dict[str, Any] | None:
    wanted_R = training[f"wanted/{name}"] == 1
    return auc_with_error(*(training[key][wanted_R] for key in (f"passed/{name}", f"fit/{name}", "weight")))


def weighted_mean(value_R: Array, weight_R: Array) -> float | None:
    """None where nothing has weight."""
    return float(np.average(value_R, weights=weight_R)) if weight_R.any() else None


def auc_with_error(score_R: Array, label_R: Array, weight_R: Array) -> dict[str, Any] | None:
    """`auc` and its standard `error` by Hanley and McNeil (1982), rows taken for independent; None for one class.

    Rows of unlike weights tell less than as many equal ones: a class of weights w counts as (sum w)^2 / sum w^2 rows.
    """
    of_class = [weight_R[(label_R == kind) & (weight_R > 0)].astype(np.float64) for kind in (1, 0)]
    if not all(map(len, of_class)):
        return None
    positives, negatives = (float(weight.sum() ** 2 / (weight @ weight)) for weight in of_class)
    auc = binary_metrics(score_R.astype(np.float64), label_R, np.zeros(len(label_R), dtype=np.int64), weight_R).auc
    of_positives, of_negatives = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    spread = auc * (1 - auc) + (positives - 1) * of_positives + (negatives - 1) * of_negatives
    return {"auc": auc, "error": math.sqrt(max(spread, 0.0) / (positives * negatives))}


def gain(rows: Mapping[str, Array], chosen_R: Array) -> dict[str, Any]:
    """AUC of P less that of `P_t` on the chosen rows: `delta`, `low` to `high`, `p`, `verdict`, `users`, `rows`."""
    keys = ("whole", "alone", "label", "user", "weight")
    whole_R, alone_R, label_R, user_R, weight_R = (rows[key][chosen_R] for key in keys)
    users = users_that_count("auc", label_R, user_R, weight_R)
    found: dict[str, Any] = {"rows": len(label_R), "users": users}
    if not users:
        return {**found, "delta": None, "low": None, "high": None, "p": None, "verdict": "one class"}
    compared = paired_bootstrap(whole_R.astype(np.float64), alone_R.astype(np.float64), label_R, user_R, weight_R)
    low, high = (None if math.isnan(end) else end for end in (compared.low, compared.high))
    said = verdict(compared.delta, compared.p, compared.users)
    return {**found, "delta": compared.delta, "low": low, "high": high, "p": compared.p, "verdict": said}
