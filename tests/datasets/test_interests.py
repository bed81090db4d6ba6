"""Interest combination labels on logs made by hand, for every value and fall-back, and against loops."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.journey_tables import table
from tests.support.naive_labels import Event, naive_parts
from torchrec_xd.datasets.interest_labels.labels import RULES, LabelColumns, LabelSettings, fit, interest_labels
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate

COLUMNS = LabelColumns("user", "item", "category", "time", "until", ("group",))
SOUP, SOAP, BREAD = 1, 2, 3


def actions(*rows):
    """Rows (user, item, category, time, group)."""
    names = ("user", "item", "category", "time", "group")
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return table(**{name: pa.array(list(column), pa.int64()) for name, column in zip(names, columns, strict=True)})


def exposures(*rows, until=100):
    """Rows (user, item, category, time, group), in this order by the column `row`."""
    return actions(*rows).mutate(until=until, row=ibis_row(len(rows)))


def ibis_row(count):
    import ibis

    return ibis.row_number()


def labels(rows, target, sources, **changes):
    found = interest_labels(rows, target, sources, COLUMNS, LabelSettings(window=2, support=0, smoothing=0, **changes))
    found = found.mutate(**{f"{rule}_{k}": fit(k, rule) for k in sources for rule in RULES})
    return found.order_by("row").to_pyarrow().to_pylist()


def column(rows, name):
    return [row[name] for row in rows]


def test_an_interest_counts_within_the_window_and_before_the_split_ends():
    source = actions((1, 10, SOUP, 5, 0), (2, 10, SOUP, 5, 0))
    rows = exposures(*[(1, 10, SOUP, time, 0) for time in (2, 3, 5, 7, 8)], (1, 11, SOUP, 5, 0), (3, 10, SOUP, 5, 0))
    assert column(labels(rows, source, {"s": source}), "wanted_s") == [0, 1, 1, 1, 0, 0, 0]
    early = exposures((1, 10, SOUP, 4, 0), until=5)
    assert column(labels(early, source, {"s": source}), "wanted_s") == [0]
    assert column(labels(early.mutate(until=6), source, {"s": source}), "wanted_s") == [1]


def test_individual_consistency_looks_at_the_category_in_the_target():
    target = actions((1, 20, SOUP, 5, 0), (2, 21, SOAP, 5, 0))
    source = actions((1, 10, SOUP, 5, 0))
    rows = exposures(
        (1, 10, SOUP, 4, 0),  # bought another soup in the target a week later
        (1, 10, SOUP, 9, 0),  # too long ago
        (1, 10, SOAP, 5, 0),  # another category
        (2, 10, SOUP, 5, 0),  # somebody else
        (1, 10, None, 5, 0),  # no category
    )
    found = labels(rows, target, {"s": source})
    assert column(found, "individual") == [1, 0, 0, 0, 0]
    assert column(found, "individual_s") == column(found, "individual")


def test_the_group_test_compares_shares_of_the_category():
    """Group 7: soup is 2 of 4 target actions and 3 of 4 source actions; soap 2 of 4 and 1 of 4."""
    target = actions(*[(u, 1, SOUP, 1, 7) for u in (1, 2)], *[(u, 2, SOAP, 1, 7) for u in (1, 2)], (9, 3, BREAD, 1, 8))
    source = actions(*[(u, 1, SOUP, 1, 7) for u in (1, 2, 3)], (4, 2, SOAP, 1, 7), (9, 3, BREAD, 1, 8))
    rows = exposures((1, 1, SOUP, 50, 7), (1, 2, SOAP, 50, 7), (1, 3, BREAD, 50, 7), (1, 1, SOUP, 50, 8))
    assert column(labels(rows, target, {"s": source}), "group_s") == [0, 1, 0, 0]
    assert column(labels(rows, target, {"s": source}, ratio=2 / 3), "group_s") == [1, 1, 0, 0]
    assert column(labels(rows, target, {"s": source}, ratio=2.001), "group_s") == [0, 0, 0, 0]


def test_few_actions_fall_back_to_everybody_and_smoothing_draws_towards_them():
    """Everybody: soup is 9 of 12 target actions, 5 of 10 source actions. Group 7 alone: 0 of 1, and 1 of 1."""
    target = actions(
        *[(u, 1, SOUP, 1, 8) for u in range(9)], (1, 2, SOAP, 1, 8), (2, 2, SOAP, 1, 8), (3, 2, SOAP, 1, 7)
    )
    source = actions(
        *[(u, 1, SOUP, 1, 8) for u in range(4)], *[(u, 2, SOAP, 1, 8) for u in range(5)], (1, 1, SOUP, 1, 7)
    )
    rows = exposures((1, 1, SOUP, 50, 7))

    def group(**changes):
        settings = LabelSettings(window=2, **changes)
        return interest_labels(rows, target, {"s": source}, COLUMNS, settings).group_s.to_pyarrow().to_pylist()

    assert group(support=0, smoothing=0) == [0]
    assert group(support=1, smoothing=0) == [0]
    assert group(support=2, smoothing=0) == [1]
    # Drawn by s actions: (0 + .75 s) / (1 + s) against (1 + .5 s) / (1 + s): equal at s = 4.
    assert group(support=0, smoothing=3.9) == [0]
    assert group(support=0, smoothing=4) == [1]


def test_a_group_or_category_that_nobody_has_seen_fits_nothing_or_falls_back():
    target, source = actions((1, 1, SOUP, 1, 7)), actions((1, 1, SOUP, 1, 7))
    rows = exposures((1, 1, SOUP, 50, 9), (1, 2, SOAP, 50, 7), (1, 2, None, 50, 7))
    settings = LabelSettings(window=2, support=1, smoothing=20)
    found = interest_labels(rows, target, {"s": source}, COLUMNS, settings).order_by("row")
    assert found.group_s.to_pyarrow().to_pylist() == [1, 0, 0]
    alone = LabelSettings(window=2, support=0, smoothing=0)
    found = interest_labels(rows, target, {"s": source}, COLUMNS, alone).order_by("row")
    assert found.group_s.to_pyarrow().to_pylist() == [0, 0, 0]


def test_group_shares_know_only_what_was_before_the_split_ends():
    target, source = actions((1, 1, SOUP, 60, 7)), actions((1, 2, SOAP, 1, 7))
    rows = exposures((1, 1, SOUP, 5, 7), (1, 1, SOUP, 5, 7)).mutate(until=table_until())
    assert column(labels(rows, target, {"s": source}), "group_s") == [0, 1]


def table_until():
    import ibis

    return ibis.cases((ibis._.row == 0, 60), else_=61)


def test_any_all_and_several_sources():
    """The user's own soup is individual evidence; the group fits soup for `a` and not for `b`."""
    target = actions((1, 1, SOUP, 5, 7), (2, 2, SOAP, 5, 7))
    a, b = actions((1, 1, SOUP, 5, 7), (3, 2, SOAP, 5, 7)), actions((3, 1, SOUP, 5, 7))
    rows = exposures((1, 1, SOUP, 5, 7), (2, 1, SOUP, 5, 7), (3, 1, SOUP, 5, 7))
    found = labels(rows, target, {"a": a, "b": b})
    assert column(found, "wanted_a") == [1, 0, 0]
    assert column(found, "wanted_b") == [0, 0, 1]
    assert column(found, "any_a") == [1, 1, 1]
    assert column(found, "all_a") == [1, 0, 0]
    assert column(found, "group_b") == [0, 0, 0]
    assert column(found, "any_b") == [1, 0, 0]
    assert column(found, "all_b") == [0, 0, 0]


def test_a_user_with_source_actions_only():
    source = actions((1, 1, SOUP, 5, 7))
    rows = exposures((1, 1, SOUP, 5, 7))
    [row] = labels(rows, actions((2, 2, SOAP, 5, 7)), {"s": source})
    assert (row["wanted_s"], row["individual"], row["group_s"], row["any_s"]) == (1, 0, 0, 0)


log = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=25
)


def with_category(found):
    return [(user, item, item % 2, time, group) for user, item, time, group in found]


@settings(max_examples=25, deadline=None)
@given(
    log, log, log, st.integers(0, 3), st.sampled_from([0, 3]), st.sampled_from([0.0, 2.0]), st.sampled_from([0.7, 1.0])
)
def test_labels_are_what_loops_find(shown, in_target, in_source, window, support, smoothing, ratio):
    shown, in_target, in_source = with_category(shown), with_category(in_target), with_category(in_source)
    chosen = LabelSettings(window=window, support=support, smoothing=smoothing, ratio=ratio)
    rows = exposures(*shown, until=8)
    found = interest_labels(rows, actions(*in_target), {"s": actions(*in_source)}, COLUMNS, chosen)
    events, known, wanted = ([Event(*a[:4], a[4:]) for a in log] for log in (shown, in_target, in_source))
    for row, event in zip(found.order_by("row").to_pyarrow().to_pylist(), events, strict=True):
        assert (row["wanted_s"], row["individual"], row["group_s"]) == naive_parts(event, 8, known, wanted, chosen)


def test_settings_are_strict():
    with pytest.raises(UserError, match="consistency"):
        validate(LabelSettings, {"consistency": "some"}, "labels.yaml")
    for fault in (
        {"ratio": 0},
        {"ratio": float("inf")},
        {"smoothing": float("inf")},
        {"window": -1},
        {"window": 2**63},
    ):
        with pytest.raises(UserError, match=next(iter(fault))):
            validate(LabelSettings, fault, "labels.yaml")
