"""Vectors, weighted bags and columns of events: by hand, sharded as plain, scored as evaluated, from run to run."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import LENGTH, with_kinds, write_kinds
from tests.support.model_cases import CASES, built, case_schemas
from tests.support.ranks import run_ranks
from tests.support.sharded_training import MATRIX, Trained, assert_same_training, train_or_tell, train_plain
from tests.support.small_models import train_run, weights
from tests.support.unsharded import materialise
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, layout, weight_prefixes
from torchrec_xd.modules.attention import SequencePooling, TargetAttention
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import evaluate, predict
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return with_kinds(schema_at(write_kinds(write_feed(folder, rows=200))), specific="post")


@pytest.fixture(scope="module")
def schema(content):
    return Schema.model_validate(content)


@pytest.fixture(scope="module")
def batch(schema):
    return next(iter(Loader(schema, LoaderSettings(batch_size=48), "train").batches()))


def embeddings(schema, **options):
    return materialise(Embeddings(schema, EmbeddingSettings(init_std=1.0), seed=3, **options))


def test_a_vector_is_projected_where_its_group_lies(schema, batch):
    module = embeddings(schema)
    lookups = module(batch)
    text, image = (module.projections.weights[f"v_{column}"] for column in ("text", "image"))
    assert (text.shape, image.shape) == ((4, LENGTH), (4, LENGTH + 1))
    text_BD = batch.vector_BV[:, :LENGTH] @ text.T
    torch.testing.assert_close(lookups.groups["shared"][:, 4:8], text_BD)
    post = lookups.rows["post"]
    image_BV = batch.vector_BV[post, LENGTH:]
    torch.testing.assert_close(lookups.specific["post"][:, -1], image_BV @ image.T)
    null = image_BV[:, -1] == 1
    assert 0 < null.sum() < len(null)
    learned = lookups.specific["post"][null, -1]
    torch.testing.assert_close(learned, image[:, -1].expand_as(learned))  # where null, the learned vector alone
    lookups.groups["shared"].sum().backward()
    torch.testing.assert_close(text.grad, batch.vector_BV[:, :LENGTH].sum(0).expand(4, -1))
    assert image.grad is None


@pytest.mark.parametrize("group", ["user", "context", "scene"])
def test_a_vector_of_any_group_lies_between_its_neighbours(schema, group):
    moved = [f.model_copy(update={"group": group}) if f.column == "text" else f for f in schema.features]
    features = tuple(
        sorted(moved, key=lambda f: ["text", "user"].index(f.column) if f.column in ("text", "user") else 2)
    )
    other = schema.model_copy(update={"features": features})
    batch = next(iter(Loader(other, LoaderSettings(batch_size=48), "train").batches()))
    module = embeddings(other)
    projected = batch.vector_BV[:, :LENGTH] @ module.projections.weights["v_text"].T
    torch.testing.assert_close(module(batch).groups[group][:, :4], projected)


def test_a_reader_of_other_batches_takes_the_vectors_that_it_knows(schema, batch):
    """As a teacher does: it finds its own in a batch of more, and zeros for what the batch lacks."""
    narrow = schema.without(("text",))
    one, other = embeddings(schema), embeddings(narrow, batches=schema)
    other.load_state_dict({k: v for k, v in one.state_dict().items() if "v_text" not in k})
    torch.testing.assert_close(other(batch).specific["post"], one(batch).specific["post"])
    less = next(iter(Loader(narrow, LoaderSettings(batch_size=48), "train").batches()))
    lacking = embeddings(schema, batches=narrow)
    assert not lacking(less).groups["shared"][:, 4:8].any()
    assert list(lacking.projections.columns) == ["image"]


def test_a_padding_row_has_no_vector(schema, batch):
    lookups = embeddings(schema)(batch.padding())
    assert not lookups.groups["shared"].any()


def test_the_names_of_weights_are_those_that_transfer_knows(schema):
    names = set(embeddings(schema).state_dict())
    prefixes = weight_prefixes(schema)
    assert {prefixes[column] for column in ("text", "image")} < names
    assert prefixes["t_brand"] + "weight" in names


def test_weighted_ids_are_multiplied_and_summed_and_their_tables_others_have_weight_one(schema, batch):
    module = embeddings(schema)
    assert module.weighted_bags.is_weighted()
    assert not module.bags.is_weighted()
    table = module.weighted_bags.embedding_bags["t_brand"].weight
    ids = batch.weighted_bags
    assert ids.keys() == ["likes", "tastes", "brand"]
    assert set(ids["brand"].weights().tolist()) == {1.0}
    expected, gradient = {}, torch.zeros_like(table)
    for column in ids.keys():  # noqa: SIM118 - no dict
        jagged, vectors = ids[column], []
        for row in range(len(batch)):
            at = slice(*jagged.offsets()[row : row + 2].tolist())
            vectors.append(jagged.weights()[at] @ table[jagged.values()[at]])
            for id_, weight in zip(jagged.values()[at].tolist(), jagged.weights()[at].tolist(), strict=True):
                gradient[id_] += weight
        expected[column] = torch.stack(vectors)
    lookups = module(batch)
    torch.testing.assert_close(lookups.groups["user"][:, -4:], expected["likes"])
    torch.testing.assert_close(lookups.groups["context"][:, -4:], expected["tastes"])
    torch.testing.assert_close(lookups.groups["shared"][:, 8:12], expected["brand"])
    parts = (lookups.groups["user"][:, -4:], lookups.groups["context"][:, -4:], lookups.groups["shared"][:, 8:12])
    sum(part.sum() for part in parts).backward()
    torch.testing.assert_close(table.grad, gradient)


def test_columns_of_events_are_read_side_by_side_position_by_position(schema, batch):
    module = embeddings(schema)
    assert layout(schema).sequences == {"hist": 4, "past": 8}
    brand, action = (module.sequences.embeddings[name].weight for name in ("t_past_brand", "t_action"))
    lookups = module(batch)
    keys, length, query = lookups.sequences["past"]
    ids = {column: batch.sequences[column].to_dense() for column in ("past_brand", "past_action", "action")}
    assert {len(row) for row in ids["past_brand"]} == {0, 1, 2, 3}
    for row in range(len(batch)):
        brands, actions = ids["past_brand"][row], ids["past_action"][row]
        assert length[row] == len(brands) == len(actions)
        torch.testing.assert_close(keys[row, : len(brands)], torch.cat([brand[brands], action[actions]], dim=1))
        assert not keys[row, len(brands) :].any()
        assert not query[row, :4].any()  # no row has an id of past_brand's table
        torch.testing.assert_close(query[row, 4:], action[ids["action"][row]].sum(0))
    pooling = SequencePooling(layout(schema).sequences)
    pooled = pooling(lookups.sequences)
    assert pooled.shape == (len(batch), 12)
    alone = TargetAttention(8)
    alone.load_state_dict(pooling.poolings["past"].state_dict())
    torch.testing.assert_close(pooled[:, 4:], alone(query, keys, length))
    keys.sum().backward()
    expected = torch.zeros_like(action)
    for row in ids["past_action"]:
        for one in row:
            expected[one] += 1
    torch.testing.assert_close(action.grad, expected)


def test_a_reader_of_batches_without_one_column_of_events_finds_zeros_there(schema):
    narrow = schema.without(("past_brand",))
    less = next(iter(Loader(narrow, LoaderSettings(batch_size=48), "train").batches()))
    keys, length, query = embeddings(schema, batches=narrow)(less).sequences["past"]
    alone = embeddings(narrow)(less).sequences["past"]
    assert not keys[..., :4].any()
    torch.testing.assert_close((keys[..., 4:], query[:, 4:]), (alone.keys_BLD, alone.query_BD))
    assert torch.equal(length, alone.length_B)


KINDS = [*((kinds, 1) for kinds in MATRIX), (MATRIX[0], 2)]
"""Sharding types, and threads that look up."""


def train_kinds(rank: int, content: dict) -> list[Trained | str]:
    found = []
    for kinds, threads in KINDS:
        torch.set_num_threads(threads)
        found.append(train_or_tell(rank, content, kinds, "adagrad"))
    return found


def test_sharded_training_equals_plain_training(content):
    wide = {**content, "dim": 64}
    found = run_ranks(2, train_kinds, wide, timeout=150)
    plain = train_plain(Schema.model_validate(wide), "adagrad", 2)
    assert "embeddings.projections.weights.v_text/exp_avg_sq" in plain.states
    for i in range(len(KINDS)):
        parts = [one[i] for one in found]
        assert all(isinstance(part, Trained) for part in parts), parts[0]
        assert_same_training(parts, plain)


def run_config(content, **more):
    return {
        "schema": content,
        "model": {"name": "single", "widths": [8]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "trainer": {"threads": 1},
        **more,
    }


def test_what_was_scored_is_what_was_evaluated(content, tmp_path):
    train(validate(RunConfig, run_config(content), "test"), tmp_path / "run")
    found = evaluate(tmp_path / "run", "test")["eval"]["click@post"]
    scores = predict(tmp_path / "run", domain="post").to_pydict()["prob_click@post"]
    label = pq.read_table(Path(content["root"]) / "post" / "test.parquet")["click"].to_pylist()
    positive, negative = ([s for s, y in zip(scores, label, strict=True) if y == value] for value in (1, 0))
    pairs = [(s > t) + (s == t) / 2 for s in positive for t in negative]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_the_next_run_takes_over_projections_by_column(content, tmp_path):
    model = {"name": "single", "widths": [6], "aligned_dim": 3}
    common = {"schema": content, "model": model, "evaluate_on": "valid"}
    first = train_run(tmp_path, "items", **common, domains=["items"])
    second = train_run(tmp_path, "post", **common, domains=["post"], init_from=str(first), seed=1)
    here, there = weights(second), weights(first)
    name = "embeddings.projections.weights.v_text"
    torch.testing.assert_close(here[name], there[name])
    assert "embeddings.projections.weights.v_image" in here.keys() - there.keys()


SPECIFIC_ALONE = [name for name, case in CASES.items() if case.model["name"] not in ("exit", "minet")]


@pytest.mark.parametrize("name", SPECIFIC_ALONE)
def test_all_features_may_be_specific(tmp_path, name):
    """Every model but EXIT, which reads none of them, and MiNet, which needs histories."""
    schemas = {
        key: schema.without(tuple(f.column for f in schema.features if f.group != "specific"))
        for key, schema in case_schemas(tmp_path, kinds=False, rows=32).items()
        if key == "others"
    }
    _, _, schema, model = built(CASES[name], schemas)
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=16), "train").batches()))
    output = materialise(model)(batch)
    output.total_loss().backward()
    assert {f"bce/{task.name}" for task in schema.tasks} == set(output.loss) - {"pdl"}
    assert all(torch.isfinite(p.grad).all() for p in model.net.parameters() if p.grad is not None)
