import torch

from torchrec_xd.modules.projection import VectorProjection


def test_a_projection_by_hand():
    projection = VectorProjection({"text": (3, 2)})
    with torch.no_grad():
        projection.weights["v_text"].copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 10.0]]))
    got = projection({"text": torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), "other": torch.ones(2, 9)})
    assert got["text"].tolist() == [[3.0, 19.0], [0.0, 0.0]]  # zeros stay zeros
    got["text"].sum().backward()
    assert projection.weights["v_text"].grad.tolist() == [[1.0, 1.0, 2.0]] * 2


def test_first_weights_keep_the_length_of_a_vector_in_the_mean():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(500, 300))
    projected = VectorProjection({"text": (300, 16)})({"text": x})["text"]
    assert abs(projected.norm(dim=1).pow(2).mean().item() - 1) < 0.1
