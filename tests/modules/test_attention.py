import torch

from torchrec_xd.modules.attention import MeanPooling, SequencePooling, TargetAttention


def test_equals_a_loop_over_rows_and_positions():
    torch.manual_seed(0)
    attention = TargetAttention(dim=3)
    query, keys, length = torch.randn(4, 3), torch.randn(4, 5, 3), torch.tensor([5, 2, 1, 0])
    expected = []
    for q, sequence, n in zip(query, keys, length.tolist(), strict=True):
        scores = [attention.score(torch.relu(attention.hidden(torch.cat([q, k, q - k, q * k])))) for k in sequence[:n]]
        weights = torch.softmax(torch.cat(scores), dim=0) if n else torch.empty(0)
        expected.append(sum((w * k for w, k in zip(weights, sequence[:n], strict=True)), torch.zeros(3)))
    torch.testing.assert_close(attention(query, keys, length), torch.stack(expected))


def test_padding_is_never_seen():
    torch.manual_seed(0)
    attention, query, length = TargetAttention(3), torch.randn(2, 3), torch.tensor([2, 0])
    keys = torch.randn(2, 4, 3)
    other = keys.clone()
    other[0, 2:], other[1] = 1e3, -1e3
    assert torch.equal(attention(query, keys, length), attention(query, other, length))


def test_an_empty_history_is_zero_and_its_gradient_finite():
    attention, keys = TargetAttention(3), torch.zeros(2, 4, 3, requires_grad=True)
    pooled = attention(torch.randn(2, 3), keys, torch.tensor([0, 0]))
    assert torch.equal(pooled, torch.zeros(2, 3))
    pooled.sum().backward()
    assert torch.isfinite(keys.grad).all()


def test_no_positions_at_all():
    assert torch.equal(
        TargetAttention(3)(torch.randn(2, 3), torch.empty(2, 0, 3), torch.tensor([0, 0])), torch.zeros(2, 3)
    )


def test_attention_follows_the_candidate():
    attention = TargetAttention(1, hidden=1)
    with torch.no_grad():  # the score is 9 relu(q * k)
        attention.hidden.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        attention.hidden.bias.zero_()
        attention.score.weight.fill_(9.0)
    keys, length = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([2])
    assert attention(torch.tensor([[1.0]]), keys, length).item() > 0.99
    assert attention(torch.tensor([[-1.0]]), keys, length).item() < -0.99


def test_mean_pooling_by_hand():
    keys = torch.tensor([[[2.0], [4.0], [0.0]], [[0.0], [0.0], [0.0]]])  # zero-padded
    torch.testing.assert_close(
        MeanPooling()(torch.randn(2, 1), keys, torch.tensor([2, 0])), torch.tensor([[3.0], [0.0]])
    )


def test_pooling_puts_sequences_side_by_side():
    pooling = SequencePooling({"keys": 2, "items": 1}, "mean")
    said = pooling(
        {
            "keys": (torch.ones(1, 1, 2), torch.tensor([1]), torch.zeros(1, 2)),
            "items": (torch.full((1, 1, 1), 5.0), torch.tensor([1]), torch.zeros(1, 1)),
        }
    )
    assert said.tolist() == [[1.0, 1.0, 5.0]]
    assert SequencePooling({})({}) is None


def test_the_mean_of_a_sequence_that_no_column_gives_is_zero():
    """A teacher may know a sequence that its student's rows lack: no positions at all."""
    found = MeanPooling()(torch.zeros(3, 4), torch.zeros(3, 0, 4), torch.zeros(3, dtype=torch.int32))
    assert torch.equal(found, torch.zeros(3, 4))
