import torch

from torchrec_xd.modules.numeric import NumericEmbedding


def test_a_line_per_feature_by_hand():
    numeric = NumericEmbedding(["price", "items"], dim=2)
    with torch.no_grad():
        numeric.lines["n_price"].copy_(torch.tensor([[1.0, 2.0], [0.0, 10.0]]))
        numeric.lines["n_items"].copy_(torch.tensor([[-1.0, 0.0], [5.0, 5.0]]))
    got = numeric(torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(got, torch.tensor([[[3.0, 16.0], [3.0, 5.0]]]))


def test_weights_are_kept_by_column_so_that_fewer_columns_can_take_them_over():
    both, one = NumericEmbedding(["price", "style"], 4), NumericEmbedding(["style"], 4)
    one.load_state_dict({k: v for k, v in both.state_dict().items() if "style" in k})
    torch.testing.assert_close(one(torch.tensor([[2.0]])), both(torch.tensor([[0.0, 2.0]]))[:, 1:])
