import json

import pytest
import torch

from tests.support.domain_batches import only
from tests.support.feeds import SCHEMA, schema_at, write_feed
from tests.support.small_models import EMBEDDINGS, idle, settings_of, train_run, weights
from tests.support.unsharded import materialise
from torchrec_xd.errors import UserError
from torchrec_xd.models.ctnet import build_ctnet
from torchrec_xd.models.single import build_single
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

SOURCE = {"name": "single", "widths": [12, 8]}
TARGET = {"name": "ctnet", "widths": [10, 6]}
RATES = {"tables": {"lr": 0.1}, "dense": {"lr": 0.01, "weight_decay": 0.1}}


def ctnet(schema, domains=("post",), source=SOURCE, **settings):
    torch.manual_seed(1)
    pretrained = SourceRun(schema.only(("items",)), settings_of(**source), EMBEDDINGS)
    return materialise(
        build_ctnet(schema.only(domains), settings_of(**{**TARGET, **settings}), EMBEDDINGS, 1, pretrained)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctnet")
    content = {"schema": schema_at(write_feed(folder / "feed", rows=96)), "loader": {"batch_size": 64}}
    content["evaluate_on"] = "train"  # the only split that every domain has
    train_run(folder, "source", **content, model=SOURCE, domains=["items"], optimizer=RATES)
    target = {**content, "model": TARGET, "domains": ["post"]}
    train_run(folder, "first", **target, optimizer=RATES, init_from=str(folder / "source"))
    train_run(folder, "second", **target, seed=5, init_from=str(folder / "first"))
    return folder


def manifest(run):
    return json.loads((run / "transfer.json").read_text())


def test_the_source_tower_is_bit_identical_after_training(runs):
    source, trained = weights(runs / "source"), weights(runs / "first")
    said = manifest(runs / "first")
    assert {*said["loaded"]} == {name for name in trained if name.startswith("teacher.")}
    for name in said["loaded"]:
        assert torch.equal(trained[name], source[name.removeprefix("teacher.")]), name
    assert {*said["fresh"]} == {name for name in trained if not name.startswith("teacher.")}
    assert said["pruned"] == [
        "embeddings.numeric.dim_4.lines.n_price",
        "net.heads.m_click@items.bias",
        "net.heads.m_click@items.weight",
    ]


def test_a_later_slice_goes_on_with_every_weight(runs):
    first, second = weights(runs / "first"), weights(runs / "second")
    said = manifest(runs / "second")
    assert said["fresh"] == said["pruned"] == []
    assert second.keys() == first.keys()
    for name in second:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-20)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_source_tower_says_of_target_rows_what_the_source_model_would_without_its_own_features(runs, dropout):
    """In a row of the source whose specific features read as zero, and that is otherwise a row of the target."""
    schema = Schema.model_validate(schema_at(runs / "feed"))
    task, batch = ctnet(schema, source={**SOURCE, "dropout": dropout}), only(schema, 32, "post")
    model = materialise(build_single(schema.only(("items",)), settings_of(**SOURCE), EMBEDDINGS, 0))
    task.teacher.net.load_state_dict(
        {n: v for n, v in model.net.state_dict().items() if n.startswith(("vectors.", "trunk."))}
    )
    lookups, said = task.teacher.embeddings(batch), task.teacher(batch)
    assert lookups.specific["post"].shape[1] == 0
    x = torch.cat([*model.net.vectors(lookups).values(), torch.zeros(len(batch), 2 * 4)], dim=1)
    for i in (0, 1):
        x = torch.relu(model.net.trunk[2 * i](x))
        torch.testing.assert_close(said[f"layer_{i}"], x)


def test_dense_columns_that_the_source_does_not_know_are_left_out(runs):
    schema = Schema.model_validate(schema_at(runs / "feed"))
    task, batch = ctnet(schema), only(schema, 32, "post")
    assert batch.dense_BN.shape[1] == 2  # age, words
    (line,) = task.teacher.embeddings.numeric["dim_4"].lines.values()
    age = batch.dense_BN[:, :1] * line[0] + line[1]
    torch.testing.assert_close(task.teacher.embeddings(batch).groups["user"][:, 4:], age)


def test_the_adapter_adds_what_the_source_says_layer_by_layer(runs):
    schema = Schema.model_validate(schema_at(runs / "feed"))
    task, batch = ctnet(schema), only(schema, 32, "post")
    net, taught, lookups = task.net, task.teacher(batch), task.embeddings(batch)
    start = torch.cat([*net.vectors(lookups).values(), lookups.specific["post"].flatten(1)], dim=1)
    for silent in (False, True):
        hidden = start
        for i in (0, 1):
            adapter, source = net.adapters[i], taught[f"layer_{i}"]
            hidden = torch.relu(net.layers[i][0](hidden))
            if not silent:
                hidden = hidden + adapter.value(source) * torch.sigmoid(adapter.gate(source))
        expected = net.heads["click@post"](hidden).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch).score["click@post"], expected)
        with torch.no_grad():
            for adapter in net.adapters:
                adapter.value.weight.zero_()
                adapter.value.bias.zero_()


def test_the_target_learns_whole_and_the_source_tower_not_at_all(runs):
    schema = Schema.model_validate(schema_at(runs / "feed"))
    task = ctnet(schema, widths=[32, 16])
    task.train()
    task(only(schema, 64, "post")).total_loss().backward()
    assert not task.teacher.training
    assert idle(task) == []
    assert all(p.grad is None for p in task.teacher.parameters())


def test_what_does_not_fit_is_refused():
    schema = Schema.model_validate(SCHEMA)
    with pytest.raises(UserError, match=r"one target.*items, video, post"):
        ctnet(schema, schema.domains)
    with pytest.raises(UserError, match=r"3 layers, the source tower has 2 \(12, 8\)"):
        ctnet(schema, widths=[4, 4, 4])
    other = {**SCHEMA, "features": [{**f, "rows": 24} if f["column"] == "category" else f for f in SCHEMA["features"]]}
    pretrained = SourceRun(schema.only(("items",)), settings_of(**SOURCE), EMBEDDINGS)
    with pytest.raises(UserError, match="'category'"):
        build_ctnet(Schema.model_validate(other).only(("post",)), settings_of(**TARGET), EMBEDDINGS, 0, pretrained)


def test_a_source_tower_that_was_pre_trained_without_specific_features(runs, tmp_path):
    """As the paper does: it has no input that would read as zero on rows of the target."""
    content = {"schema": schema_at(runs / "feed"), "loader": {"batch_size": 64}, "evaluate_on": "train"}
    train_run(tmp_path, "source", **content, model=SOURCE, domains=["items"], without_specific=True, optimizer=RATES)
    train_run(tmp_path, "target", **content, model=TARGET, domains=["post"], init_from=str(tmp_path / "source"))
    source, trained = weights(tmp_path / "source"), weights(tmp_path / "target")
    whole = weights(runs / "source")
    assert whole["net.trunk.0.weight"].shape[1] - source["net.trunk.0.weight"].shape[1] == 2 * 4  # item, price
    assert not any("price" in name for name in source)
    assert torch.equal(trained["teacher.net.trunk.0.weight"], source["net.trunk.0.weight"])
    assert manifest(tmp_path / "target")["pruned"] == [
        "net.heads.m_click@items.bias",
        "net.heads.m_click@items.weight",
    ]
