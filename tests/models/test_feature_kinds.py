"""Vectors: looked up by hand, sharded as plain, by every model that trains, from run to run."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import LENGTH, with_kinds, write_kinds
from tests.support.ranks import run_ranks
from tests.support.sharded_training import MATRIX, Trained, assert_same_training, train_or_tell, train_plain
from tests.support.small_models import train_run, weights
from tests.support.unsharded import materialise
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, weight_prefixes
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
    torch.testing.assert_close(lookups.groups["shared"][:, -4:], text_BD)
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
    assert not lacking(less).groups["shared"][:, -4:].any()
    assert list(lacking.projections.columns) == ["image"]


def test_a_padding_row_has_no_vector(schema, batch):
    lookups = embeddings(schema)(batch.padding())
    assert not lookups.groups["shared"].any()


def test_the_names_of_weights_are_those_that_transfer_knows(schema):
    names = set(embeddings(schema).state_dict())
    assert {weight_prefixes(schema)[column] for column in ("text", "image")} < names


def train_kinds(rank: int, content: dict) -> list[Trained | str]:
    return [train_or_tell(rank, content, kinds, "adagrad") for kinds in KINDS]


KINDS = [kinds for kinds in MATRIX if "data_parallel" not in kinds]


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
