"""Labels that may be null, on two ranks of which one has few or none: trained and measured as in one process."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import assert_same, batches, gathered, settings, task_of
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings
from torchrec_xd.outputs import score_matrix
from torchrec_xd.schema import Schema


def write_labels(folder):
    """A feed whose target has labels in one row of three, all of them in the second half of its rows."""
    content = schema_at(write_feed(folder))
    for split in ("train", "test"):
        path = folder / "post" / f"{split}.parquet"
        table = pq.read_table(path)
        known = [i > len(table) // 2 and i % 3 == 0 for i in range(len(table))]
        label = [value if k else None for value, k in zip(table["click"].to_pylist(), known, strict=True)]
        table = table.set_column(table.column_names.index("click"), "click", pa.array(label, pa.int8()))
        pq.write_table(table, path, row_group_size=64)
    content["tasks"][2:] = [{"label": "click", "domain": "post", "nullable": True}]
    return content


def trained(rank, content):
    schema, world = Schema.model_validate(content), processes_of(rank)
    model, optimizers = sharded(task_of(schema), settings("sgd"), world)
    labelled = []
    for step, batch in enumerate(batches(schema, rank, world.size)):
        labelled.append(batch.labelled()[2].item())
        optimizers.set_lr(step, 10)
        optimizers.zero_grad()
        model(batch).total_loss().backward()
        optimizers.step()
    return labelled, {key: gathered(value, world) for key, value in model.state_dict().items()}


def train_plain(schema, ranks):
    """The mean over all labelled rows of all ranks' batches, by torch's own means."""
    model = materialise(task_of(schema))
    tables = torch.optim.SGD([p for key, p in model.named_parameters() if "t_" in key], lr=0.1)
    rest = [p for key, p in model.named_parameters() if "t_" not in key]
    both = [tables, torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)]
    for step, parts in enumerate(zip(*(batches(schema, rank, ranks) for rank in range(ranks)), strict=True)):
        loss, rows = 0, sum(len(part) for part in parts)
        logits = [model.net(model.embeddings(part)).logit for part in parts]
        for i, task in enumerate(schema.tasks):
            label = torch.cat([part.label_BT[part.rows(i), i] for part in parts])
            known = ~label.isnan()
            logit = torch.cat([logit[task.name] for logit in logits])
            loss = loss + functional.binary_cross_entropy_with_logits(logit[known], label[known]) * len(label) / rows
        for optimizer, rate in zip(both, (0.1, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = rate * settings("sgd").schedule.factor(step, 10)
            optimizer.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
    return {key: value.detach() for key, value in model.state_dict().items()}


def test_two_ranks_with_unequally_many_labels_take_the_gradient_of_the_mean_over_all(tmp_path):
    content = write_labels(tmp_path)
    expected = train_plain(Schema.model_validate(content), 2)
    (few, one), (many, other) = run_ranks(2, trained, content)
    assert any(a != b for a, b in zip(few, many, strict=True)), (few, many)
    for weights in (one, other):
        assert_same(weights, expected)


def measured(rank, content, ranks):
    schema = Schema.model_validate(content)
    model = materialise(task_of(schema))
    evaluation = Evaluation(schema, MetricSettings())
    loader = Loader(
        schema, LoaderSettings(batch_size=16), "test", ShardSpec(rank, ranks, shuffle=False), extra=evaluation.extra
    )
    for batch in loader.batches():
        if len(batch):
            evaluation.update(batch, score_matrix(schema, batch, model(batch, with_loss=False), {}))
    return evaluation.compute(torch.distributed.group.WORLD if ranks > 1 else None)


def test_metrics_are_of_the_rows_that_have_the_label_on_any_number_of_ranks(tmp_path):
    content = write_labels(tmp_path)
    alone = measured(0, content, 1)
    assert alone["eval"]["click@post"]["rows"] == 33
    assert sum(group["rows"] for group in alone["slices"]["click@post"]["activity"].values()) == 33
    for report in run_ranks(2, measured, content, 2):
        for name, value in alone["eval"]["click@post"].items():
            assert abs(report["eval"]["click@post"][name] - value) < 1e-9, name
