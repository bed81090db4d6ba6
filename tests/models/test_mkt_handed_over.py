"""What MKT's stage 2 is given: knowledge, first openness of its gates, first weights."""

import json

import pytest
import torch
from pydantic import ValidationError

from tests.support.domain_batches import only
from tests.support.feeds import schema_at, write_feed
from tests.support.small_models import EMBEDDINGS, idle, train_run, weights
from tests.support.unsharded import materialise
from torchrec_xd.models.mkt import FinetuneSettings, PretrainSettings, build_finetune
from torchrec_xd.models.transfer import SourceRun

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
