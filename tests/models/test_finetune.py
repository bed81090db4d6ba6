"""Vanilla fine-tuning: a single-domain run that begins with one of another domain."""

import json

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import save

from tests.support.feeds import SCHEMA, schema_at, write_feed
from tests.support.small_models import EMBEDDINGS, settings_of, train_run, weights
from torchrec_xd.checkpoint import transfer
from torchrec_xd.errors import UserError
from torchrec_xd.models.single import CONTINUE, build_single
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

SINGLE = {"name": "single", "widths": [6, 5], "aligned_dim": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    content = {"schema": schema_at(write_feed(folder / "feed", rows=96)), "model": SINGLE, "loader": {"batch_size": 64}}
    content["evaluate_on"] = "train"  # the only split that every domain has
    train_run(folder, "source", **content, domains=["items"])
    train_run(folder, "target", **content, domains=["post"], init_from=str(folder / "source"), seed=1)
    train_run(folder, "slice", **content, domains=["items"], init_from=str(folder / "source"), seed=1)
    return folder


def manifest(run):
    return json.loads((run / "transfer.json").read_text())


def test_the_manifest_declares_what_goes_on_what_starts_fresh_and_what_stays_behind(runs):
    said = manifest(runs / "target")
    fresh = [
        "t_style.weight",
        "t_topic.weight",
        "n_words",
        "net.align.m_post.align.weight",
        "net.align.m_post.align.bias",
    ]
    assert sorted(name for f in fresh for name in said["fresh"] if name.endswith(f)) == sorted(said["fresh"])
    assert len(said["fresh"]) == len(fresh)
    pruned = [
        "embeddings.numeric.dim_4.lines.n_price",
        "net.align.m_items.align.bias",
        "net.align.m_items.align.weight",
    ]
    assert said["pruned"] == pruned  # the head goes on, under another name
    assert {"net.trunk.0.weight", "net.heads.m_click@post.weight", "embeddings.numeric.dim_4.lines.n_age"} < {
        *said["loaded"]
    }


def test_what_goes_on_is_the_sources_and_what_is_fresh_is_not(runs):
    source, target = weights(runs / "source"), weights(runs / "target")
    said = manifest(runs / "target")
    assert {*said["loaded"], *said["fresh"]} == set(target)
    assert target["net.trunk.0.weight"].shape[1] == 4 + 4 + 4 + 4 + 4 + 3  # user, age, hour, hist, category, aligned
    for name in said["loaded"]:
        torch.testing.assert_close(
            target[name], source[name.replace("m_click@post", "m_click@items")], rtol=0, atol=1e-20
        )


def test_the_same_domain_goes_on_whole(runs):
    said = manifest(runs / "slice")
    assert said["fresh"] == said["pruned"] == []
    source, later = weights(runs / "source"), weights(runs / "slice")
    assert later.keys() == source.keys()
    for name in source:
        torch.testing.assert_close(later[name], source[name], rtol=0, atol=1e-20)


def begin(schema, model, source, trained=None):
    pretrained = SourceRun(source, settings_of(**(trained or SINGLE)), EMBEDDINGS)
    return build_single(schema, settings_of(**model), EMBEDDINGS, 0, pretrained)


def test_models_that_are_not_alike_are_refused():
    whole = Schema.model_validate(SCHEMA)
    items, post = whole.only(("items",)), whole.only(("post",))
    with pytest.raises(UserError, match=r"model\.widths: \(6, 4\) here, \(6, 5\) in the run"):
        begin(post, {**SINGLE, "widths": [6, 4]}, items)
    plain = {k: v for k, v in SINGLE.items() if k != "aligned_dim"}
    with pytest.raises(UserError, match=r"specific features of 'post' are not those of 'items'.*aligned_dim"):
        begin(post, plain, items, plain)
    begin(items, plain, items, plain)
    with pytest.raises(UserError, match=r"'hour' is in one of the two runs only"):
        begin(post.without(("hour",)), SINGLE, items)
    wider = [{**f, "rows": 24} if f["column"] == "category" else f for f in SCHEMA["features"]]
    with pytest.raises(UserError, match="'category'"):
        begin(Schema.model_validate({**SCHEMA, "features": wider}).only(("post",)), SINGLE, items)
    views = {"column": "seen", "kind": "sequence", "group": "sequence", "table": "category", "rows": 6, "length": 3}
    more = Schema.model_validate({**SCHEMA, "features": [*SCHEMA["features"], {**views, "domains": ["post"]}]})
    with pytest.raises(UserError, match=r"table of feature 'category' in one of the two runs only"):
        begin(more.only(("post",)), SINGLE, items)


def test_a_dense_column_is_a_name_and_no_prefix(tmp_path):
    """`age_log` is the target's own although its name begins with `age`."""
    trained = nn.ParameterDict({"age": torch.ones(2)})
    save({"model": trained.state_dict()}, checkpoint_id=tmp_path)
    begun = nn.ParameterDict({"age": torch.zeros(2), "age_log": torch.zeros(2)})
    said = transfer(begun, tmp_path, {"age": "age"}, ())
    assert (said.loaded, said.fresh, said.pruned) == (("age",), ("age_log",), ())
    assert begun["age"].tolist() == [1, 1]
    extra = {"column": "age_log", "kind": "dense", "group": "specific", "domains": ["post"]}
    whole = Schema.model_validate({**SCHEMA, "features": [*SCHEMA["features"], extra]})
    here, there = (SourceRun(whole.only((d,)), settings_of(**SINGLE), EMBEDDINGS) for d in ("post", "items"))
    prefixes = CONTINUE.further(here, there)
    assert prefixes["embeddings.numeric.dim_4.lines.n_age"] == "embeddings.numeric.dim_4.lines.n_age"
    assert not any("age_log" in name for name in prefixes)
