"""Labels that may be null: the mean over the rows that have one, by hand and in every model."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.batches import SCHEMA, batch_of
from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.placements import SETTINGS
from tests.support.placements import schema_at as placements_at
from tests.support.small_models import EMBEDDINGS, JOINT, joint_model
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.models.exit import build_exit
from torchrec_xd.models.exit_settings import ExitSettings
from torchrec_xd.models.mkt import FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.model import CrossEntropy
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


def nullable(content, *tasks):
    """A schema, some of whose labels may be null."""
    schema = content if isinstance(content, Schema) else Schema.model_validate(content)
    marked = tuple(t.model_copy(update={"nullable": True}) if t.name in tasks else t for t in schema.tasks)
    return schema.model_copy(update={"tasks": marked})


def by_hand(label, logit, weight=None, labelled=None):
    """Loss and gradient of `view@coupon`, of the last four of six rows, in a batch."""
    label = torch.tensor([[0, math.nan, math.nan]] * 2 + [[math.nan, 1, value] for value in label])
    batch = replace(batch_of([0, 2, 6], label, weight), label_BT=label, labelled_T=labelled)
    logit = torch.tensor(logit, requires_grad=True)
    others = {"click@product": torch.zeros(2), "redeem@coupon": torch.zeros(4)}
    loss = CrossEntropy(nullable(SCHEMA, "view@coupon"))(Predictions({**others, "view@coupon": logit}, {}), batch)
    total = sum(loss.parts.values())
    total.backward()
    return loss.parts["bce/view@coupon"].item(), logit.grad.tolist()


def test_loss_and_gradient_by_hand():
    # Two of four rows have the label; logits 0 and ln 3, so probabilities 1/2 and 3/4. The domain has 4 of 6 rows.
    value, gradient = by_hand([1, math.nan, 0, math.nan], [0.0, 9.0, math.log(3), -9.0])
    assert value == pytest.approx((math.log(2) + math.log(4)) / 2 * 4 / 6)
    assert gradient == pytest.approx([-0.5 / 2 * 4 / 6, 0, 0.75 / 2 * 4 / 6, 0])


def test_row_weights_multiply_the_terms_and_do_not_count_rows():
    value, gradient = by_hand(
        [1, math.nan, 0, math.nan], [0.0, 9.0, math.log(3), -9.0], weight=[1, 1, 3.0, 5.0, 1.0, 7.0]
    )
    assert value == pytest.approx((3 * math.log(2) + math.log(4)) / 2 * 4 / 6)
    assert gradient == pytest.approx([-3 * 0.5 / 2 * 4 / 6, 0, 0.75 / 2 * 4 / 6, 0])


def test_rows_are_counted_on_all_ranks():
    """Another rank has 6 labelled rows, this one 2: 4 in the mean; what both give is averaged afterwards."""
    value, _ = by_hand([1, math.nan, 0, math.nan], [0.0] * 4, labelled=torch.tensor([0.0, 0.0, 4.0]))
    assert value == pytest.approx(2 * math.log(2) / 4 * 4 / 6)


@pytest.mark.parametrize("labelled", [None, torch.tensor([2.0, 4.0, 0.5]), torch.tensor([2.0, 4.0, 0.0])])
def test_a_batch_without_any_such_label_gives_zero_with_gradients_of_zero(labelled):
    assert by_hand([math.nan] * 4, [0.0, 9.0, -9.0, 1.0], labelled=labelled) == (0.0, [0.0] * 4)


def test_where_no_label_is_null_the_loss_is_that_of_any_task(tmp_path):
    schema = Schema.model_validate(schema_at(write_feed(tmp_path, rows=64)))
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=64), "train").batches()))
    tasks = [task.name for task in schema.tasks]
    losses = [joint_model(one, "mmoe")(batch).loss for one in (schema, nullable(schema, *tasks))]
    torch.testing.assert_close(*losses)


def stage_two(schema):
    own, target = PretrainSettings.model_validate(PRETRAIN), schema.only(("post",))
    source = SourceRun(schema, own, EMBEDDINGS)
    return materialise(build_finetune(target, FinetuneSettings.model_validate(FINETUNE), EMBEDDINGS, 0, source)), target


def built(schema, name):
    """A model, and the schema of its batches."""
    torch.manual_seed(0)
    if name == "mkt_finetune":
        return stage_two(schema)
    if name == "mkt_pretrain":
        return materialise(build_pretrain(schema, PretrainSettings.model_validate(PRETRAIN), EMBEDDINGS, 0)), schema
    return joint_model(schema, name), schema


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return nullable(schema_at(write_feed(tmp_path_factory.mktemp("feed"), rows=64)), "click@post")


@pytest.mark.parametrize("name", [*JOINT, "mkt_pretrain", "mkt_finetune"])
def test_a_row_without_the_label_moves_nothing_in_any_model(feed, name):
    model, schema = built(feed, name)
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=64), "train").batches()))
    task = [task.name for task in schema.tasks].index("click@post")
    own = batch.rows(list(schema.domains).index("post"))
    known = torch.arange(own.stop - own.start) % 3 == 0
    batch.label_BT[own, task] = torch.where(known, batch.label_BT[own, task], torch.nan)
    output = model(batch)
    part = output.loss["bce/click@post"]
    prob, label = output.score["click@post"][known].double(), batch.label_BT[own, task][known]
    mean = -(label * prob.log() + (1 - label) * (1 - prob).log()).mean()
    torch.testing.assert_close(part, (mean * len(known) / len(batch)).float())
    output.total_loss().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    batch.label_BT[own, task] = torch.nan
    none = model(batch).loss
    assert none["bce/click@post"].item() == 0
    assert none.get("pdl", 0) == output.loss.get("pdl", 0)


def test_exit_refuses_what_its_labels_are_made_of_and_takes_a_sources_own():
    content = placements_at("nowhere")
    settings = {**SETTINGS, "sources": {**SETTINGS["sources"]}}
    settings["sources"]["search"] = {**settings["sources"]["search"], "own": "click@search"}
    build_exit(nullable(content, "click@search"), ExitSettings(**settings), EMBEDDINGS, 0)
    for name in ("click@home", "wanted_map@home", "fit_map@home"):
        with pytest.raises(UserError, match=rf"interest combination label.*'{name}' cannot be nullable"):
            build_exit(nullable(content, name), ExitSettings(**settings), EMBEDDINGS, 0)
