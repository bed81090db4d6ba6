"""EXIT's premise on the ids themselves: domains that share no items are named, others are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.batches import SCHEMA, batch_of
from torchrec_xd.diagnostics.shared_items import SharedItems
from torchrec_xd.outputs import Output

ROWS = 400


def fed(source, target, kind="bags"):
    """Findings and values for the items of both domains' rows."""
    diagnostic = SharedItems(SCHEMA, "coupon", {"shop": "product"})
    ids = KeyedJaggedTensor(["item"], torch.tensor([*source, *target]), lengths=torch.ones(2 * ROWS, dtype=torch.int32))
    batch = replace(batch_of((0, ROWS, 2 * ROWS), torch.zeros(2 * ROWS, 3)), **{kind: ids})
    diagnostic.update(batch, Output({}, {}, {}), {})
    values = diagnostic.values()
    assert diagnostic.parts(values)
    return diagnostic.findings(values), values["sources"]["shop"]


@pytest.mark.parametrize(
    ("first", "share", "found"), [(0, 1.0, False), (45, 0.1, False), (46, 0.08, True), (99, 0, True)]
)
def test_items_that_domains_do_not_share(first, share, found):
    findings, measured = fed(np.arange(ROWS) % 50, first + np.arange(ROWS) % 50)
    assert measured == {"rows": ROWS, "source_rows": ROWS, "share": pytest.approx(share), "known": 1.0}
    assert [finding.name for finding in findings] == ["premise_fails"] * found
    if found:
        assert f"'shop': {share:.1%} of 400 rows of the target show an item (feature 'item')" in findings[0].text


def test_an_item_that_shares_its_table_with_a_sequence():
    assert fed(np.arange(ROWS) % 50, 46 + np.arange(ROWS) % 50, "sequences")[1]["share"] == pytest.approx(0.08)


def test_too_few_rows_of_a_source_are_no_proof():
    findings, measured = fed(np.arange(ROWS), 1000 + np.arange(ROWS) % 50)
    assert (measured["share"], measured["known"]) == (0.0, 0.0)  # every item once: more rows would show others
    assert findings == []


def test_without_rows_of_the_source_nothing_is_said():
    diagnostic = SharedItems(SCHEMA, "coupon", {"shop": "product"})
    values = diagnostic.values()
    assert values["sources"]["shop"]["share"] is None
    assert diagnostic.findings(values) == []
