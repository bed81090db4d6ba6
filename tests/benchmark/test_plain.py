"""The straightforward versions compute what ours do: equal loss and gradients on equal weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.plain import PlainEmbeddings, plain_batch, plain_loss, plain_step
from torchrec_xd.benchmark.workbench import synthetic_run, workbench
from torchrec_xd.training.building import build

SMALL = {
    "mkt_pretrain": {"expert_widths": (16, 8), "tower_widths": (4,), "aligned_dim": 8},
    "exit": {"widths": (16, 8), "scene_widths": (8,)},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_plain_version_has_the_loss_and_the_gradients_of_ours(name: str) -> None:
    with synthetic_run(name, 50, 64, "fp32", "fp32") as written:
        config = written.model_copy(
            update={
                "model": written.model.model_copy(update=SMALL[name]),
                "embeddings": written.embeddings.model_copy(update={"init_std": 0.5}),
            }
        )
        with workbench(config, 1, batches=2) as bench:
            ours = dict(bench.training.model.state_dict())
            schema = config.schema_in_use
            plain, model = PlainEmbeddings(schema), build(config)
            net = model.net
            net.load_state_dict({n.removeprefix("net."): t for n, t in ours.items() if n.startswith("net.")})
            tables = {n.split(".")[-2]: t for n, t in ours.items() if ".t_" in n}
            assert tables.keys() == plain.tables.keys()
            with torch.no_grad():
                for table, weight in tables.items():
                    plain.tables[table].weight.copy_(weight.local_shards()[0].tensor)
            batch = bench.batches[1]
            plain_columns = plain_batch(batch, schema)
            expected = plain_loss(model, plain(plain_columns), plain_columns)
            expected.backward()
            bench.training.optimizers.set_lr(0, 1)
            bench.training.optimizers.zero_grad()
            loss = bench.training.model(batch).total_loss()
            loss.backward()
            torch.testing.assert_close(loss, expected)
            found = {
                n.removeprefix("net."): p.grad for n, p in bench.training.model.named_parameters() if p.grad is not None
            }
            for n, parameter in net.named_parameters():
                torch.testing.assert_close(found[n], parameter.grad, msg=n)
            assert len(found) > 5


def test_masked_rows_are_another_domains(tmp_path) -> None:
    with synthetic_run("mkt_pretrain", 50, 64, "fp32", "fp32") as config, workbench(config, 1, batches=1) as bench:
        columns = plain_batch(bench.batches[0], config.schema_in_use)
        source, target = (columns.masks[domain] for domain in synthetic.DOMAINS)
        assert torch.equal(source + target, torch.ones(64))
        assert (columns.ids["target_3"][source == 1] == 0).all()
        assert (columns.ids["target_3"][target == 1] > 0).any()


def test_the_compiled_version_is_captured_whole_and_trains_alike(monkeypatch) -> None:
    """The backend runs what was captured as it is; the losses are apart by what bf16 rounds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    with synthetic_run("mkt_pretrain", 50, 64, "fp32", "fp32") as written:
        config = written.model_copy(update={"model": written.model.model_copy(update=SMALL["mkt_pretrain"])})
        with workbench(config, 1, batches=2) as bench:
            schema = config.schema_in_use
            losses = []
            for compiled in (True, False):
                torch.manual_seed(0)
                step = plain_step(build(config), schema, compiled=compiled)
                losses.append([step(plain_batch(batch, schema)) for batch in 20 * bench.batches])
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0)
    assert losses[0][-1] < losses[0][1], "it learns"
