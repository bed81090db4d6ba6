"""One measurement of another library's MMoE, in an environment of its own; nothing of torchrec-xd is imported here.

    python peer_worker.py torch-rechub|fuxictr FOLDER ROWS_PER_TABLE BATCH THREADS SECONDS PASSES

Trains on `FOLDER/flat.parquet`, whose batches lie in memory ready made (reading costs it nothing), with the library's
own model or layers, optimizer defaults and step. The last line printed is {"rows_per_second", "auc"} as JSON. With
PASSES above 0 it trains that often over all rows and measures the AUC on `flat_test.parquet`; otherwise for SECONDS.
"""
# ruff: noqa: PLC0415 - each library is imported only where it is measured

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

COLUMNS, DIM, EXPERTS, EXPERT_WIDTHS, TOWER_WIDTHS = 30, 8, 3, [1024, 512], [64]
LABELS = ("click", "buy")
WARM_UP = 3

Batch = dict[str, torch.Tensor]


def main() -> None:
    """Measure once."""
    name, folder, rows_per_table, batch_size, threads, limit, passes = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    train = batches(Path(folder) / "flat.parquet", int(batch_size))
    model, step, predict = PEERS[name](int(rows_per_table))
    model.train()
    for batch in train[:WARM_UP]:
        step(batch)
    began, rows = time.perf_counter(), 0
    if int(passes):
        for batch in train * int(passes):
            step(batch)
            rows += len(batch["click"])
    else:
        for batch in itertools.cycle(train):
            step(batch)
            rows += len(batch["click"])
            if time.perf_counter() - began > float(limit):
                break
    speed = rows / (time.perf_counter() - began)
    auc = (
        test_auc(model, predict, batches(Path(folder) / "flat_test.parquet", int(batch_size))) if int(passes) else None
    )
    print(json.dumps({"rows_per_second": speed, "auc": auc}))


def batches(path: Path, batch_size: int) -> list[Batch]:
    """Whole batches of a file, in memory."""
    columns = {name: torch.from_numpy(column.to_numpy()) for name, column in zip(*_columns(path), strict=True)}
    rows = len(columns["click"])
    return [
        {name: column[start : start + batch_size].clone() for name, column in columns.items()}
        for start in range(0, rows - batch_size + 1, batch_size)
    ]


def _columns(path: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


@torch.no_grad()
def test_auc(model: nn.Module, predict: Callable[[Batch], torch.Tensor], test: list[Batch]) -> dict[str, float]:
    """AUC of both tasks."""
    model.eval()
    score = torch.cat([predict(batch) for batch in test])
    return {
        label: float(roc_auc_score(torch.cat([batch[label] for batch in test]), score[:, i]))
        for i, label in enumerate(LABELS)
    }


def torch_rechub(rows_per_table: int) -> tuple[nn.Module, Callable[[Batch], None], Callable[[Batch], torch.Tensor]]:
    """torch-rechub's MMOE, stepped as its MTLTrainer does with its defaults."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.basic.loss_func import RegularizationLoss
    from torch_rechub.models.multi_task import MMOE

    features = [SparseFeature(f"f_{i}", vocab_size=rows_per_table, embed_dim=DIM) for i in range(COLUMNS)]
    towers = [{"dims": TOWER_WIDTHS} for _ in LABELS]
    model = MMOE(features, ["classification"] * len(LABELS), EXPERTS, {"dims": EXPERT_WIDTHS}, towers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    regularisation = RegularizationLoss(embedding_l1=0.0, embedding_l2=0.0, dense_l1=0.0, dense_l2=0.0)
    loss_of = nn.BCELoss()

    def step(batch: Batch) -> None:
        predicted = model(batch)
        losses = [loss_of(predicted[:, i], batch[label].float()) for i, label in enumerate(LABELS)]
        loss = sum(losses) / len(losses) + regularisation(model)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # as its trainer does for the progress bar

    return model, step, model


def fuxictr(rows_per_table: int) -> tuple[nn.Module, Callable[[Batch], None], Callable[[Batch], torch.Tensor]]:
    """MMoE of FuxiCTR's embedding and MLP layers (its wheel has no model zoo), stepped by its own `train_step`."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import MultiTaskModel

    class MMoE(MultiTaskModel):
        def __init__(self, feature_map: Any) -> None:
            super().__init__(
                feature_map,
                task=["binary_classification"] * len(LABELS),
                num_tasks=len(LABELS),
                verbose=0,
                model_root="unused",
                metrics=["AUC"],
            )
            width = COLUMNS * DIM
            self.embedding_layer = FeatureEmbedding(feature_map, DIM)
            self.experts = nn.ModuleList(MLP_Block(width, hidden_units=EXPERT_WIDTHS) for _ in range(EXPERTS))
            self.gates = nn.ModuleList(
                MLP_Block(width, output_dim=EXPERTS, output_activation="softmax") for _ in LABELS
            )
            self.towers = nn.ModuleList(
                MLP_Block(EXPERT_WIDTHS[-1], hidden_units=TOWER_WIDTHS, output_dim=1) for _ in LABELS
            )
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()

        def forward(self, inputs: Batch) -> Batch:
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            hidden = torch.stack([expert(x) for expert in self.experts], dim=1)
            predicted = {}
            for label, gate, tower, activation in zip(
                LABELS, self.gates, self.towers, self.output_activation, strict=True
            ):
                mixed = (gate(x).unsqueeze(2) * hidden).sum(dim=1)
                predicted[f"{label}_pred"] = activation(tower(mixed))
            return predicted

    feature_map = FeatureMap("flat", "unused")
    feature_map.labels = list(LABELS)
    for i in range(COLUMNS):
        feature_map.features[f"f_{i}"] = {"type": "categorical", "source": "", "vocab_size": rows_per_table}
    feature_map.num_fields = COLUMNS
    feature_map.default_emb_dim = DIM
    model = MMoE(feature_map)
    model._max_gradient_norm = 10.0  # its `fit` sets it, and `train_step` reads it

    def step(batch: Batch) -> None:
        model.train_step(batch)

    def predict(batch: Batch) -> torch.Tensor:
        return torch.cat([model(batch)[f"{label}_pred"] for label in LABELS], dim=1)

    return model, step, predict


PEERS = {"torch-rechub": torch_rechub, "fuxictr": fuxictr}

if __name__ == "__main__":
    main()
