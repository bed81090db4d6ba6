import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedTensor

from tests.support.feeds import SCHEMA, schema_at, write_feed
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, layout, table_configs
from torchrec_xd.errors import UserError
from torchrec_xd.modules.rows import by_domain, concat
from torchrec_xd.schema import Schema


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return Schema.model_validate(schema_at(write_feed(tmp_path_factory.mktemp("feed"))))


@pytest.fixture(scope="module")
def batch(schema):
    return next(iter(Loader(schema, LoaderSettings(batch_size=48), "train").batches()))


def embeddings(schema, **options):
    return materialise(Embeddings(schema, EmbeddingSettings(init_std=1.0), seed=3, **options))


def rows_of(kjt, column):
    """The ids of every row, as lists."""
    jagged = kjt[column]
    return [part.tolist() for part in torch.split(jagged.values(), jagged.lengths().tolist())]


def test_groups_are_the_features_side_by_side_in_schema_order(schema, batch):
    module = embeddings(schema)
    lookups = module(batch)
    weights = {name.split(".")[-2]: w for name, w in module.state_dict().items() if name.endswith("weight")}
    user = torch.stack([weights["t_user"][ids[0]] for ids in rows_of(batch.bags, "user")])
    weight, bias = module.numeric["dim_4"].lines["n_age"]
    age = batch.dense_BN[:, :1] * weight + bias
    torch.testing.assert_close(lookups.groups["user"], torch.cat([user, age], dim=1))
    assert lookups.groups["scene"].shape == (len(batch), 0)


@given(st.permutations([f for f in SCHEMA["features"] if f["column"] != "hist"]), st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_features_are_found_whatever_their_order(schema, features, data):
    """In the schema, in the tables, and in what a plan makes of them: every column holds its own feature's vector."""
    history = next(f for f in SCHEMA["features"] if f["column"] == "hist")
    shuffled = Schema.model_validate({**schema.model_dump(by_alias=True), "features": [*features, history]})
    module = embeddings(shuffled)
    batch = next(iter(Loader(shuffled, LoaderSettings(batch_size=16), "train").batches()))
    vectors = module.bags(batch.bags).to_dict()
    module.bags = Reordered(module.bags, data.draw(st.permutations(sorted(vectors))))
    lookups = module(batch)
    for group in ("user", "shared", "context"):
        at = 0
        for feature in [f for f in shuffled.features if f.group == group]:
            width = module.dims[feature.column]
            if feature.column in vectors:
                torch.testing.assert_close(lookups.groups[group][:, at : at + width], vectors[feature.column])
            at += width
        assert at == lookups.groups[group].shape[1]
    for domain, own in lookups.rows.items():
        for i, feature in enumerate(shuffled.features_of(domain, "specific")):
            if feature.column in vectors:
                torch.testing.assert_close(lookups.specific[domain][:, i], vectors[feature.column][own])


class Reordered(torch.nn.Module):
    """Tables whose features come back in another order, as from a sharded collection."""

    def __init__(self, bags, keys):
        super().__init__()
        self.bags, self.keys = bags, keys

    def forward(self, ids):
        found = self.bags(ids).to_dict()
        parts = [found[key] for key in self.keys]
        return KeyedTensor(self.keys, [part.shape[1] for part in parts], torch.cat(parts, dim=1))


def test_rows_by_domain_and_tensors_side_by_side():
    rows = {"a": slice(0, 2), "b": slice(2, 2), "c": slice(2, 3)}
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    cut = by_domain(x, rows)
    assert {name: part.tolist() for name, part in cut.items()} == {"a": [[0, 1], [2, 3]], "b": [], "c": [[4, 5]]}
    (cut["a"].sum() + 3 * cut["c"].sum()).backward()
    assert x.grad.tolist() == [[1, 1], [1, 1], [3, 3]]
    assert by_domain(x, {"a": slice(0, 3)})["a"] is x
    none = torch.zeros(3, 0)
    assert concat([none, x]) is x
    assert concat([x, none, x]).shape == (3, 4)
    assert concat([none, none]).shape == (3, 0)


def test_specific_features_are_the_domains_own_rows(schema, batch):
    module = embeddings(schema)
    lookups = module(batch)
    weights = {name.split(".")[-2]: w for name, w in module.state_dict().items() if name.endswith("weight")}
    video = lookups.rows["video"]
    for row, ids in enumerate(rows_of(batch.bags, "tags")[video]):
        expected = weights["t_tags"][ids].mean(0) if ids else torch.zeros(4)
        torch.testing.assert_close(lookups.specific["video"][row, 0], expected)
    items = lookups.rows["items"]
    expected = weights["t_item"][[ids[0] for ids in rows_of(batch.sequences, "item")[items]]]
    torch.testing.assert_close(lookups.specific["items"][:, 0], expected)
    assert {domain: s.shape[1] for domain, s in lookups.specific.items()} == {"items": 2, "video": 1, "post": 3}


def test_a_sequence_queries_with_the_rows_own_id_of_its_table(schema, batch):
    lookups = embeddings(schema)(batch)
    keys, length, query = lookups.sequences["hist"]
    assert keys.shape == (len(batch), 5, 4)
    assert length.tolist() == [len(ids) for ids in rows_of(batch.sequences, "hist")]
    items, post = lookups.rows["items"], lookups.rows["post"]
    torch.testing.assert_close(query[items], lookups.specific["items"][:, 0])
    assert torch.equal(query[post], torch.zeros_like(query[post]))  # posts have no item


def test_first_weights_depend_on_table_name_and_seed_alone(schema):
    whole, part = embeddings(schema), embeddings(schema, batches=schema.only(("post",)))
    shared = set(part.state_dict()) & set(whole.state_dict())
    assert any("t_item" in name for name in shared)  # read through hist
    for name in shared:
        if "embedding" in name and "numeric" not in name:
            assert torch.equal(whole.state_dict()[name], part.state_dict()[name]), name
    other = materialise(Embeddings(schema, EmbeddingSettings(init_std=1.0), seed=4))
    tables = [name for name in whole.state_dict() if "t_" in name]
    assert not any(torch.equal(whole.state_dict()[name], other.state_dict()[name]) for name in tables)
    assert not torch.equal(whole.state_dict()[tables[0]][:5], whole.state_dict()[tables[1]][:5])


def test_tables_that_the_domains_do_not_read_are_not_built(schema):
    part = Embeddings(schema, EmbeddingSettings(), 0, batches=schema.only(("post",)))
    names = {config.name for config in table_configs(part)}
    assert "t_style" in names
    assert "t_tags" not in names


def test_layout_says_what_a_lookup_has(schema, batch):
    dims, lookups = layout(schema), embeddings(schema)(batch)
    assert {g: lookups.groups[g].shape[1] for g in dims.groups} == dims.groups
    assert {d: tuple(s.shape[1:]) for d, s in lookups.specific.items()} == dims.specific
    assert {c: s.keys_BLD.shape[2] for c, s in lookups.sequences.items()} == dims.sequences


def changed(column, **settings):
    features = [{**f, **settings} if f["column"] == column else f for f in SCHEMA["features"]]
    return Schema.model_validate({**SCHEMA, "features": features})


def test_unequal_widths_of_specific_features_are_refused_by_name():
    with pytest.raises(UserError, match=r"'post'.*style 8.*topic 4"):
        layout(changed("style", dim=8))


def test_other_widths_elsewhere_are_fine(tmp_path):
    schema = changed("hour", dim=8).model_copy(update={"root": str(write_feed(tmp_path))})
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=48), "train").batches()))
    assert embeddings(schema)(batch).groups["context"].shape[1] == 8


def test_a_table_pooled_both_ways_is_refused():
    bag = {"kind": "bag", "group": "shared", "table": "tags", "rows": 10, "column": "more"}
    schema = Schema.model_validate({**SCHEMA, "features": [*SCHEMA["features"], bag]})
    with pytest.raises(UserError, match=r"tags \(mean\), more \(sum\)"):
        Embeddings(schema, EmbeddingSettings(), 0)
