import itertools

import pytest
import torch

from tests.support.domain_batches import only
from tests.support.feeds import SCHEMA
from tests.support.small_models import EMBEDDINGS, idle, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.errors import UserError
from torchrec_xd.models.fibinet import build_fibinet
from torchrec_xd.modules.fibinet import BilinearInteraction, SqueezeExcitation
from torchrec_xd.schema import Schema


def net_of(schema, **settings):
    torch.manual_seed(0)
    own = settings_of("fibinet", **{"widths": [8, 5], **settings})
    return materialise(build_fibinet(schema, own, EMBEDDINGS, 0))


def test_the_senet_weighs_every_field_by_what_all_fields_say():
    torch.manual_seed(0)
    senet, emb = SqueezeExcitation(num_fields=6, reduction=3), torch.randn(4, 6, 3)
    with torch.no_grad():
        senet.squeeze.weight.abs_()
        senet.excite.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0], [0.5, 0.0], [0, 0]]))
    for row in range(4):
        z = [sum(emb[row, f].tolist()) / 3 for f in range(6)]
        middle = [max(sum(w * v for w, v in zip(senet.squeeze.weight[r].tolist(), z, strict=True)), 0) for r in (0, 1)]
        a = [middle[0], 2 * middle[1], sum(middle), 0.0, middle[0] / 2, 0.0]
        for f in range(6):
            torch.testing.assert_close(senet(emb)[row, f], a[f] * emb[row, f])
    assert senet.weights(emb.abs())[:, :3].min() > 0


@pytest.mark.parametrize("kernel", ["all", "each", "interaction"])
def test_bilinear_products_against_a_plain_loop(kernel):
    torch.manual_seed(0)
    layer, emb = BilinearInteraction(4, 3, kernel), torch.randn(2, 4, 3)
    products = layer(emb)
    assert len(layer.weight_KDD) == {"all": 1, "each": 3, "interaction": 6}[kernel]
    for row in range(2):
        for p, (i, j) in enumerate(itertools.combinations(range(4), 2)):
            weight = layer.weight_KDD[{"all": 0, "each": i, "interaction": p}[kernel]]
            expected = [sum(emb[row, i, d] * weight[d, e] for d in range(3)) * emb[row, j, e] for e in range(3)]
            torch.testing.assert_close(products[row, p], torch.stack(expected))


def test_every_feature_is_one_field(schema):
    part = schema.only(("post",))
    task, batch = net_of(part), only(schema, 32, "post")
    seen = []
    task.net.senet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    task(batch)
    lookups = task.embeddings(batch)
    assert seen[0].shape == (len(batch), len(part.features), 4)
    groups = [lookups.groups[group] for group in ("user", "context", "shared")]
    vectors = [*(group.view(len(batch), -1, 4) for group in groups), lookups.specific["post"]]
    for vector in torch.cat(vectors, dim=1).unbind(1):
        assert any(torch.equal(vector, field) for field in seen[0].unbind(1))


def test_every_parameter_learns(schema):
    task = net_of(schema.only(("post",)), widths=[64, 16])
    task(only(schema, 64, "post")).total_loss().backward()
    assert idle(task) == []


def test_what_does_not_fit_is_refused(schema):
    with pytest.raises(UserError, match=r"one domain.*items, video, post"):
        net_of(schema)
    wide = [{**f, "dim": 8} if f["column"] == "category" else f for f in SCHEMA["features"]]
    with pytest.raises(UserError, match=r"same dim \(4: .*; 8: category\)"):
        net_of(Schema.model_validate({**SCHEMA, "features": wide}).only(("post",)))
    alone = Schema.model_validate({**SCHEMA, "features": SCHEMA["features"][:1]}).only(("post",))
    with pytest.raises(UserError, match="only one"):
        net_of(alone)
