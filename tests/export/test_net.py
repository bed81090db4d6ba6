"""Every model without its tables: the scores of the whole model, whatever the number of rows."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.exported import decoded, scorer_of
from tests.support.model_cases import CASES, built, case_schemas
from tests.support.small_models import EMBEDDINGS, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.rows import Rows
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError
from torchrec_xd.export.net import as_onnx, table_weights
from torchrec_xd.models import find_model
from torchrec_xd.models.single import build_single
from torchrec_xd.modules.gates import GatedLinearUnit

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = 1000
SIZES = (1, 2, 200, 997)


@pytest.fixture(scope="module")
def schemas(tmp_path_factory):
    return case_schemas(tmp_path_factory.mktemp("data"), kinds=True, rows=ROWS)


def whole_batch(schema):
    """All training rows, domain by domain in the order of the files."""
    settings = LoaderSettings(batch_size=10 * ROWS)
    (batch,) = Loader(schema, settings, "train", ShardSpec(shuffle=False)).batches()
    return batch


@contextmanager
def watched_gates(net, opened):
    """Collects how far the gates of a net stand open, by the names that their outputs have."""

    def watch(path, gate):
        name = f"gate/{path.split('.')[-1].removeprefix('m_')}"
        return gate.register_forward_hook(lambda m, given, _: opened.update({name: m.openness(*given).mean(1)}))

    handles = [watch(path, m) for path, m in net.named_modules() if isinstance(m, GatedLinearUnit)]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_the_net_alone_scores_as_the_whole_model(name, schemas, tmp_path):
    spec, settings, schema, model = built(CASES[name], schemas)
    materialise(model).eval()
    (domain,) = schema.targets()
    tasks = [task.name for task in schema.tasks if task.domain == domain]
    auxiliary = [score for score, task in spec.auxiliary_scores(settings).items() if task in tasks]
    scorer, own = scorer_of(model, schema, domain, (*tasks, *auxiliary), tmp_path / "out")
    rows = decoded(own, Path(schema.root) / domain / "train.parquet")
    opened = {}
    with torch.no_grad(), watched_gates(model.net, opened):
        expected = model(whole_batch(schema), with_loss=False).score | opened
    assert scorer.outputs == (*tasks, *auxiliary, *opened)
    assert (settings.name in ("mkt_finetune", "ctnet")) == bool(opened)
    for size in SIZES:
        found = scorer.score(rows.slice(0, size))
        for output in scorer.outputs:
            assert found[output].dtype == np.float32
            np.testing.assert_allclose(found[output], expected[output][:size].numpy(), rtol=0, atol=1e-6)
    assert np.ptp(found[tasks[0]]) > 1e-3
    shared = scorer.score(rows.slice(0, 200), rows.slice(7, 8))
    order = np.full(200, 7)
    repeated = Rows.gather([rows], order, [np.int64] * len(rows.ids))
    apart = scorer.score(rows.slice(0, 200), repeated, np.arange(200))
    for output in scorer.outputs:
        np.testing.assert_array_equal(shared[output], apart[output])
    assert not np.array_equal(shared[tasks[0]], found[tasks[0]][:200])


def test_a_model_of_ones_own_exports(schemas, tmp_path, monkeypatch):
    """The example of docs/add_a_model.md, on three domains."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    find_model.cache_clear()
    spec, schema = find_model("wide_and_deep:MODEL"), schemas["others"]
    model = materialise(spec.build(schema, spec.settings(widths=(8,)), EMBEDDINGS, 0)).eval()
    scorer, own = scorer_of(model, schema, "post", ("click@post",), tmp_path / "out")
    with torch.no_grad():
        expected = model(whole_batch(schema), with_loss=False).score["click@post"]
    found = scorer.score(decoded(own, Path(schema.root) / "post" / "train.parquet"))["click@post"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)
    # It reads no specific features.
    assert not {"style", "words", "topic"} & {feature.column for feature in own.features}


def test_of_mkt_only_what_feeds_the_target_is_read(schemas, tmp_path):
    _, _, schema, model = built(CASES["mkt_finetune"], schemas)
    materialise(model)
    inputs = as_onnx(model, "post", ("click@post",)).inputs
    tables = {table for given in inputs for table in given.tables}
    assert {name.removeprefix("teacher/") for name in tables} == {table.name for table in schema.tables()}
    assert tables <= set(table_weights(model))
    of_sources = {"teacher/t_tags"}  # a table that rows of other domains read
    assert not of_sources & tables


def test_features_that_no_output_reads_are_no_inputs(schemas):
    """Without SSN, EXIT reads no scene; its tables stay behind."""
    _, _, _, model = built(CASES["exit, transfer"], schemas)
    inputs = as_onnx(materialise(model), "home", ("click@home",)).inputs
    columns = {column for given in inputs for column in given.columns}
    assert "slot" not in columns
    assert "item" in columns


def test_the_graph_tells_nothing_of_the_machine_that_made_it(schemas):
    _, _, _, model = built(CASES["single"], schemas)
    net = as_onnx(materialise(model), "post", ("click@post",)).onnx
    assert b"torchrec_xd/" not in net
    assert str(Path(__file__).parents[2]).encode() not in net


def test_a_net_that_looks_at_values_is_refused(schemas):
    schema = schemas["others"].only(("post",))
    model = materialise(build_single(schema, settings_of("single", widths=[4]), EMBEDDINGS, 0))

    class Looks(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.inner = net

        def forward(self, lookups):
            found = self.inner(lookups)
            return found if found.score["click@post"].sum() > 0 else None

    model.net = Looks(model.net)
    with pytest.raises(UserError, match=r"the net of Looks cannot be exported to ONNX: .*no value of a tensor decides"):
        as_onnx(model, "post", ("click@post",))
