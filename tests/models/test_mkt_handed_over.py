"""What MKT's stage 2 is given: knowledge, first openness of its gates, first weights."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support.domain_batches import only
from tests.support.feeds import schema_at, write_feed
from tests.support.small_models import EMBEDDINGS, idle, train_run, weights
from tests.support.unsharded import materialise
from torchrec_xd.errors import UserError
from torchrec_xd.models.mkt import FinetuneSettings, PretrainSettings, build_finetune
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.training.inference import predict

MEM = {"name": "mkt_pretrain", "expert_widths": [6, 5], "aligned_dim": 3, "tower_widths": [4]}
TEM = {"name": "mkt_finetune", "widths": [6], "head_widths": [4]}


def tem(schema, **settings):
    torch.manual_seed(1)
    source = SourceRun(schema, PretrainSettings.model_validate(MEM), EMBEDDINGS)
    own = FinetuneSettings.model_validate({**TEM, **settings})
    return materialise(build_finetune(schema.only(("post",)), own, EMBEDDINGS, 1, source))


def test_common_and_independent_knowledge_pass_the_last_gate_together(schema):
    task, batch = tem(schema, knowledge="common_and_independent"), only(schema, 32, "post")
    taught, teacher = task.teacher(batch), task.teacher
    lookups = teacher.embeddings(batch)
    vectors, common = teacher.net.common(lookups)
    rows = torch.cat([*vectors.values(), lookups.specific["post"].flatten(1)], dim=1)
    independent = teacher.net.independent["post"](rows)
    torch.testing.assert_close(taught["common"], torch.cat([common["post"], independent], dim=1))
    assert taught["common"].shape == (len(batch), 10)
    gate = task.net.gates["common"]
    assert (gate.value.in_features, gate.value.out_features) == (10, 5)
    assert teacher.net.independent.names == ("post",)
    task(batch).total_loss().backward()
    assert idle(task) == []


def test_gates_begin_as_open_as_they_are_told(schema):
    plain, opened = tem(schema), tem(schema, gate_bias=3.0)
    for name in plain.net.gates.names:
        torch.testing.assert_close(opened.net.gates[name].gate.bias, plain.net.gates[name].gate.bias + 3.0)
    with pytest.raises(ValidationError, match="less than or equal to 20"):
        FinetuneSettings(gate_bias=21)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    content = {"schema": schema_at(write_feed(folder / "feed", rows=96)), "loader": {"batch_size": 64}}
    content["evaluate_on"] = "train"  # the only split that every domain has
    train_run(folder, "mem", model=MEM, **content)
    content |= {"domains": ["post"], "init_from": str(folder / "mem"), "seed": 1}
    for name, settings in {
        "cold": {},
        "warm": {"warm_start": True, "knowledge": "common_and_independent"},
        "wider": {"warm_start": True, "widths": [7], "sequence_pooling": "mean"},
    }.items():
        train_run(folder, name, model={**TEM, **settings}, **content)
    return folder


def begun(run):
    """Names of TEM's own weights that were loaded, and what the run holds."""
    loaded = json.loads((run / "transfer.json").read_text())["loaded"]
    return {name for name in loaded if not name.startswith("teacher.")}, weights(run)


def test_tem_begins_as_mem_where_it_has_the_same_shapes(runs):
    loaded, found = begun(runs / "warm")
    mem = weights(runs / "mem")
    fresh = {n for n in found if not n.startswith("teacher.")} - loaded
    assert {name.split(".")[1] for name in fresh} == {"gates", "heads"}  # all else is MEM's
    for name in loaded:
        source = name.replace("net.cross.", "net.independent.m_post.").replace("net.vectors.", "net.common.vectors.")
        torch.testing.assert_close(found[name], mem[source], rtol=0, atol=1e-20)
    assert sum(name.startswith("embeddings.") for name in loaded) == 8  # tables of 6 columns, lines of 2 numbers
    assert sum(name.startswith("net.cross.") for name in loaded) == 4
    assert any(name.startswith("net.vectors.") for name in loaded)
    teacher = {name for name in found if name.startswith("teacher.")}
    assert any("independent.m_post" in name for name in teacher)
    for name in teacher:  # the teacher has them too
        torch.testing.assert_close(found[name], mem[name.removeprefix("teacher.")], rtol=0, atol=1e-20)


def test_other_shapes_start_fresh_and_so_does_all_of_a_cold_start(runs):
    loaded, _ = begun(runs / "wider")
    assert {name.split(".")[0] for name in loaded} == {"embeddings"}
    assert begun(runs / "cold")[0] == set()


@pytest.mark.parametrize("group", ["user", "context"])
def test_a_feature_of_one_stage_alone_stops_a_warm_start_before_training(schema, group):
    """MEM's first layers have a column for what only the source has; TEM's do not."""
    own = schema.features[0].model_copy(update={"column": "search_terms", "group": group, "domains": ("items",)})
    wider = schema.model_copy(update={"features": (*schema.features, own)})
    with pytest.raises(
        UserError, match=r"model\.warm_start: only stage 1 reads feature 'search_terms', so .*without: \[se"
    ):
        tem(wider, warm_start=True)
    assert tem(wider) is not None
    assert tem(wider, warm_start=True, widths=[7]) is not None  # fresh layers


@pytest.mark.parametrize(("extractor", "activation"), [("ple", "linear"), ("star", "relu"), ("mmoe", "linear")])
@pytest.mark.parametrize("gates", ["static", "dynamic"])
def test_with_towers_tem_begins_with_mems_predictions(tmp_path, extractor, activation, gates):
    rates = {"optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}}}
    content = {"schema": schema_at(write_feed(tmp_path / "feed", rows=96)), "loader": {"batch_size": 64}}
    content["evaluate_on"] = "train"
    mem = {**MEM, "extractor": extractor, "knowledge_activation": activation}
    mem |= {"num_shared_experts": 2} if extractor == "mmoe" else {}
    train_run(tmp_path, "mem", model=mem, **content, **rates)
    content |= {"domains": ["post"], "init_from": str(tmp_path / "mem"), "seed": 1}
    taught = {**TEM, "warm_start": True, "heads": "towers", "gates": gates}
    train_run(tmp_path, "tem", model=taught, **content)
    rows = tmp_path / "feed/post/train.parquet"
    first, second = (predict(tmp_path / run, rows, domain="post") for run in ("mem", "tem"))
    score = first.column(1).to_numpy()
    assert score.std() > 1e-4
    np.testing.assert_allclose(second.column(1).to_numpy(), score, rtol=0, atol=1e-6)
    train_run(tmp_path, "trained", model=taught, **content, **rates)
    assert np.abs(predict(tmp_path / "trained", rows, domain="post").column(1).to_numpy() - score).max() > 1e-4


def test_towers_learn_with_every_part_of_tem(schema):
    task, batch = tem(schema, heads="towers"), only(schema, 32, "post")
    with torch.no_grad():  # the first step moves the gates' values away from 0
        for gate in (gate for name in task.net.gates.names if (gate := task.net.gates[name])):
            gate.value.weight.add_(0.1)
    task(batch).total_loss().backward()
    assert idle(task) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": "towers", "gate_bias": 3.0}, "leave gate_bias and knowledge out"),
        ({"heads": "towers", "knowledge": "common_and_independent"}, "leave gate_bias and knowledge out"),
    ],
)
def test_towers_refuse_settings_that_they_have_no_use_for(settings, said):
    with pytest.raises(ValidationError, match=said):
        FinetuneSettings(**settings)


def test_towers_have_the_widths_of_stage_1(schema):
    with pytest.raises(UserError, match=r"head_widths: \[5\].*stage 1's tower_widths, \[4\]"):
        tem(schema, heads="towers", head_widths=[5])
