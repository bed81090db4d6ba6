import math

import pytest
import torch

from tests.support.domain_batches import as_mixed, only
from tests.support.feeds import histories_at, write_feed, write_histories
from tests.support.small_models import EMBEDDINGS, idle, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.models.minet import LONG_TERM, build_minet
from torchrec_xd.modules.minet import InterestAttention, ItemAttention
from torchrec_xd.schema import Schema

SEQUENCES = {"items": ["hist"], "video": ["watched"], "post": ["seen"]}
SMALL = {"aligned_dim": 8, "tower_widths": [4], "widths": [16, 8], "attention_dim": 5}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """The feed with a history of every domain."""
    return Schema.model_validate(histories_at(write_histories(write_feed(tmp_path_factory.mktemp("feed")))))


@pytest.fixture(scope="module")
def batch(schema):
    return next(iter(Loader(schema, LoaderSettings(batch_size=64), "train").batches()))


def minet(schema, sequences=SEQUENCES, **settings):
    torch.manual_seed(0)
    own = settings_of("minet", **{**SMALL, **settings}, sequences=sequences)
    return materialise(build_minet(schema, own, EMBEDDINGS, 0))


@pytest.mark.parametrize("transfer", [True, False])
def test_item_attention_against_a_loop(transfer):
    torch.manual_seed(0)
    layer = ItemAttention(3, 4, 2, 5, transfer=transfer)
    items, length = torch.randn(3, 6, 3), torch.tensor([6, 2, 0])
    q, p, own = torch.randn(3, 4), torch.randn(3, 2), torch.randn(3, 3)
    pooled = layer((items, length, own), q, p)
    weight = torch.cat([layer.of_item.weight, layer.of_row.weight, layer.of_product.weight], dim=1)
    for row in range(3):
        scores = []
        for r in items[row, : length[row]]:
            product = (layer.transfer.weight @ r) * q[row] if transfer else r * own[row]
            hidden = torch.relu(weight @ torch.cat([r, q[row], p[row], product]) + layer.of_row.bias)
            scores.append(math.exp((layer.score.weight @ hidden).item()))
        expected = sum((s / sum(scores) * r for s, r in zip(scores, items[row], strict=False)), torch.zeros(3))
        torch.testing.assert_close(pooled[row], expected)


def test_interest_weights_are_exponentials_and_need_not_sum_to_one():
    torch.manual_seed(0)
    layer = InterestAttention({"a": 2, "b": 3}, 4, 5)
    q, interests = torch.randn(6, 4), {"a": torch.randn(6, 2), "b": torch.randn(6, 3)}
    mixed = layer(interests, q)
    for row in range(6):
        x = torch.cat([q[row], interests["a"][row], interests["b"][row]])
        parts = [q[row]]
        for name in "ab":
            first, _, last = layer.weigh[name]
            weight = math.exp((last.weight @ torch.relu(first.weight @ x) + last.bias).item())
            parts.append(weight * interests[name][row])
        torch.testing.assert_close(mixed[row], torch.cat(parts))


def test_target_rows_read_all_interests_and_source_rows_the_user_alone(schema, batch):
    task = minet(schema)
    net, lookups, output = task.net, task.embeddings(batch), task(batch)
    user = torch.cat([lookups.groups[g] for g in ("user", "context", "scene")], dim=1)
    candidate = torch.cat([lookups.groups["shared"], net.align(lookups)], dim=1)
    for domain, own in lookups.rows.items():
        if domain == "post":
            interests = {LONG_TERM: user[own]}
            for source, (column,) in SEQUENCES.items():
                keys, length, query = (part[own] for part in lookups.sequences[column])
                interests[source] = net.items[column]((keys, length, query), candidate[own], user[own])
            mixed = net.interests(interests, candidate[own])
        else:
            mixed = torch.cat([candidate[own], user[own]], dim=1)
        expected = net.towers.towers[f"click@{domain}"](net.trunks[domain](mixed)).squeeze(1).sigmoid()
        torch.testing.assert_close(output.score[f"click@{domain}"], expected)
    assert net.items["hist"].transfer is not None
    assert net.items["seen"].transfer is None


def test_the_targets_history_is_held_against_the_rows_own_id(schema, batch):
    task = minet(schema)
    lookups = task.embeddings(batch)
    own = lookups.rows["post"]
    torch.testing.assert_close(lookups.sequences["seen"].query_BD[own], lookups.specific["post"][:, 0])


def test_every_parameter_learns_and_a_batch_without_some_domains_does_no_harm(schema, batch):
    task = minet(schema)
    task(batch).total_loss().backward()
    assert idle(task) == []
    task.zero_grad()
    output = task(as_mixed(only(schema, 32, "post"), schema))
    loss = output.total_loss()
    loss.backward()
    assert output.loss["bce/click@items"].item() == 0.0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.net.parameters())


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        (
            {"items": ["hist"], "post": ["seen", "watched"]},
            r"'video' is unknown or missing; domains are: items, video, post",
        ),
        ({**SEQUENCES, "posts": ["seen"]}, r"'posts' is unknown or missing"),
        ({**SEQUENCES, "video": ["seen"]}, r"'seen' is unknown or missing; sequences are: hist, watched, seen"),
        ({**SEQUENCES, "video": ["clips"]}, r"'clips' is unknown or missing"),
        ({**SEQUENCES, "video": [], "items": ["hist", "watched"]}, r"'video' has none"),
        ({**SEQUENCES, "video": ["seen"], "post": ["watched"]}, r"rows of 'post' have no id in its table 'clip'"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(schema, sequences, said):
    with pytest.raises(UserError, match=said):
        minet(schema, sequences)


def test_domains_that_do_not_fit_are_refused(schema):
    for domains in (("post",), ("items", "video")):
        with pytest.raises(UserError, match="one target domain and at least one source"):
            minet(schema.only(domains))
    with pytest.raises(UserError, match="unknown domain 'posts'"):
        minet(schema, domain_weight={"posts": 2.0})
