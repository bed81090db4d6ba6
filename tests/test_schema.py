"""Schema files: what is refused and in which words, tables, the view of some domains, the fingerprint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

CONTENT: dict[str, Any] = {
    "name": "shop",
    "user": "user",
    "dim": 4,
    "weight": "rate",
    "domains": {
        "product": {"role": "source", "train": "product/train", "test": "product/test"},
        "coupon": {"role": "target", "train": "coupon/train", "valid": "coupon/valid"},
    },
    "tasks": [
        {"label": "bought", "domain": "product"},
        {"label": "redeemed", "domain": "coupon"},
        {"label": "clicked", "domain": "coupon"},
    ],
    "features": [
        {"column": "age", "kind": "id", "group": "user", "rows": 10},
        {"column": "item", "kind": "id", "group": "shared", "rows": 100, "table": "item", "dim": 8},
        {"column": "tags", "kind": "bag", "group": "shared", "rows": 50, "pooling": "mean", "domains": ["coupon"]},
        {
            "column": "past",
            "kind": "sequence",
            "group": "sequence",
            "rows": 100,
            "dim": 8,
            "table": "item",
            "length": 5,
        },
        {"column": "price", "kind": "dense", "group": "specific", "domains": ["product"]},
        {"column": "days", "kind": "dense", "group": "specific", "domains": ["coupon"], "dim": 2},
    ],
}


FINGERPRINT = "dc9c58809ed67a9e"
"""Of CONTENT, as version 0.1 computed it: checkpoints know it."""


def events(**changes: object) -> dict[str, Any]:
    """Two sequences more, the columns `one` and `two` of the same events; `two` changed."""
    common = {"kind": "sequence", "group": "sequence", "rows": 9, "dim": 8, "length": 5, "events": "seen"}
    further = [{"column": "one", **common}, {"column": "two", **common, **changes}]
    return {"features": [*copy.deepcopy(CONTENT["features"]), *further]}


def schema(**changes: object) -> Schema:
    return validate(Schema, CONTENT | changes, "f")


def feature(column: str, **changes: object) -> dict[str, Any]:
    """The features of CONTENT, one of them changed; a change to None takes the key away."""
    features = copy.deepcopy(CONTENT["features"])
    [found] = [entry for entry in features if entry["column"] == column]
    found |= changes
    for key in [key for key, value in found.items() if value is None]:
        del found[key]
    return {"features": features}


def added(**more: object) -> dict[str, Any]:
    return {"features": [*CONTENT["features"], more]}


def test_a_file_says_what_the_mapping_says(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    assert load_schema(tmp_path / "shop.yaml") == schema()


def test_order_is_the_order_of_the_file() -> None:
    assert list(schema().domains) == ["product", "coupon"]
    assert [task.name for task in schema().tasks] == ["bought@product", "redeemed@coupon", "clicked@coupon"]
    assert [f.column for f in schema().features_of("product")] == ["age", "item", "past", "price"]
    assert [f.column for f in schema().features_of("coupon")] == ["age", "item", "tags", "past", "days"]
    assert [f.column for f in schema().features_of("coupon", "shared")] == ["item", "tags"]
    assert schema().features_of("coupon", "scene") == ()
    assert schema().targets() == ("coupon",)


def test_tables_by_first_use_and_who_reads_them() -> None:
    age, item, tags = schema().tables()
    assert (age.name, age.rows, age.dim, age.sequential) == ("t_age", 10, 4, False)
    assert (item.name, item.rows, item.dim, item.sequential) == ("t_item", 100, 8, True)
    assert [f.column for f in item.features] == ["item", "past"]
    assert (tags.name, tags.dim, tags.features[0].pooling) == ("t_tags", 4, "mean")


def test_widths() -> None:
    assert {f.column: schema().dim_of(f) for f in schema().features} == {
        "age": 4, "item": 8, "tags": 4, "past": 8, "price": 4, "days": 2,
    }  # fmt: skip


def test_paths_by_split() -> None:
    domains = schema().domains
    assert [domains["product"].paths(split) for split in ("train", "valid", "test")] == [
        ("product/train",),
        (),
        ("product/test",),
    ]
    assert domains["coupon"].model_copy(update={"valid": ("a", "b")}).paths("valid") == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": None}, "'user': Input should be a valid string (got None)"),
        (
            {"task": []},
            "unknown key 'task'; did you mean 'tasks'?; valid keys: activity, dim, domains, features, name,",
        ),
        ({"dim": 0}, "'dim': Input should be greater than 0 (got 0)"),
        ({"dim": 6}, "the schema, for feature 'age': dim 6 is no multiple of 4"),
        (feature("age", dim=6), "feature 'age': dim 6 is no multiple of 4, as FBGEMM needs it; 8 is the next one"),
        ({"tasks": []}, "at least one domain, one task and one feature"),
        ({"features": []}, "at least one domain, one task and one feature"),
        (
            {"domains": CONTENT["domains"] | {"coupon": {"role": "goal", "train": "x"}}},
            "'domains.coupon.role': Input should be 'source' or 'target' (got 'goal')",
        ),
        (
            {"domains": CONTENT["domains"] | {"coupon": {"role": "target", "trian": "x", "train": "x"}}},
            "unknown key 'domains.coupon.trian'; did you mean 'train'?; valid keys: role, test, train, valid",
        ),
        ({"domains": CONTENT["domains"] | {"search": {"role": "source", "train": "x"}}}, "domain 'search' has no task"),
        (
            {"domains": CONTENT["domains"] | {"s.x": {"role": "source", "train": "x"}}}
            | {"tasks": [*CONTENT["tasks"], {"label": "seen", "domain": "s.x"}]},
            "'s.x' is empty or has a dot",
        ),
        (
            {"tasks": [*CONTENT["tasks"], {"label": "seen", "domain": "coupons"}]},
            "task 'seen@coupons' names domain 'coupons'; domains are: product, coupon",
        ),
        ({"tasks": [*CONTENT["tasks"], CONTENT["tasks"][0]]}, "task 'bought@product' is written twice"),
        (added(column="clicked", kind="dense", group="user"), "'clicked' is a label of domain 'coupon'"),
        (added(column="age", kind="dense", group="user"), "feature 'age' is written twice"),
        (
            added(column="a.b", kind="dense", group="user"),
            "'a.b' is empty or has a dot; rename it, a column in the files",
        ),
        (
            {"tasks": [*CONTENT["tasks"], {"label": "click.v2", "domain": "coupon"}]},
            "domains, labels, columns and tables name torch modules: 'click.v2' is empty or has a dot; rename it",
        ),
        ({"tasks": [*CONTENT["tasks"], {"label": "", "domain": "coupon"}]}, "'' is empty or has a dot"),
        ({"tasks": [*CONTENT["tasks"], {"label": "a@b", "domain": "coupon"}]}, "'a@b' has an '@', which separates"),
        (feature("item", table="a.b"), "'a.b' is empty or has a dot"),
        (feature("tags", domains=["copon"]), "feature 'tags' names domain 'copon'; domains are: product, coupon"),
        (feature("tags", domains=[]), "feature 'tags' is in no domain"),
        (feature("age", group="usr"), "'features.0.group': Input should be 'user', 'sequence', 'shared', 'specific',"),
        (feature("age", rows=None), "feature 'age' needs 'rows'"),
        (feature("age", rows=0), "'features.0.rows': Input should be greater than 0 (got 0)"),
        (feature("age", rows="many"), "'features.0.rows': Input should be a valid integer"),
        (
            feature("age", row=3),
            "unknown key 'features.0.row'; did you mean 'rows'?; valid keys: clip, column, dim,",
        ),
        (feature("age", pooling="mean"), "feature 'age': 'pooling' belongs to bags only"),
        (feature("age", length=3), "feature 'age': 'length' belongs to every sequence and every vector, and to these"),
        (
            feature("age", kind="vector", rows=None),
            "feature 'age': 'length' belongs to every sequence and every vector",
        ),
        (feature("age", kind="vector", length=3), "feature 'age' is a vector: it has no table, no rows and no hash"),
        (feature("age", weights="w"), "feature 'age': 'weights' belongs to bags only"),
        (feature("tags", weights="w"), "feature 'tags': weighted ids are summed; a mean would divide by their number"),
        (
            feature("tags", pooling="sum", table="item", rows=100, dim=8),
            "bag 'tags' and sequence 'past' share a table, which would be looked up pooled for the one",
        ),
        (feature("age", events="past"), "feature 'age': 'events' belongs to sequences only"),
        (
            added(column="kinds", kind="sequence", group="sequence", rows=9, dim=8, length=5, events="past"),
            "events 'past' are named like the sequence 'past', which is not one of them: rename",
        ),
        (events(length=4), "sequences 'one' and 'two' are columns of the events 'seen': give them the same length and"),
        (events(domains=["coupon"]), "sequences 'one' and 'two' are columns of the events 'seen': give them the same"),
        (events(events="a.b"), "columns and tables name torch modules: 'a.b' is empty or has a dot"),
        (feature("age", indicator=True), "feature 'age': 'indicator' belongs to vectors only"),
        (feature("past", length=None), "feature 'past': 'length' belongs to every sequence"),
        (feature("past", group="user"), "feature 'past': kind 'sequence' and group 'sequence' go together"),
        (feature("age", group="sequence"), "feature 'age': kind 'sequence' and group 'sequence' go together"),
        (feature("price", rows=3), "feature 'price' is dense: it has no table, no rows and no hash"),
        (feature("price", table="item"), "feature 'price' is dense: it has no table, no rows and no hash"),
        (feature("price", hash="mod"), "feature 'price' is dense: it has no table, no rows and no hash"),
        (feature("price", domains=None), "feature 'price' is specific: name its one domain"),
        (feature("price", domains=["product", "coupon"]), "feature 'price' is specific: name its one domain"),
        (
            feature("past", dim=None),
            "table 'item' is shared by 'item' (rows 100, dim 8, hash none) and 'past' (rows 100, dim 4, hash none)",
        ),
        (
            feature("item", rows=99),
            "table 'item' is shared by 'item' (rows 99, dim 8, hash none) and 'past' (rows 100, dim 8, hash none)",
        ),
        (
            feature("past", hash="xxhash"),
            "table 'item' is shared by 'item' (rows 100, dim 8, hash none) and 'past' (rows 100, dim 8, hash xxhash); "
            "features that share a table need equal rows, dim and hash",
        ),
        (
            feature("tags", table="age"),
            "table 'age' is shared by 'age' (rows 10, dim 4, hash none) and 'tags' (rows 50, dim 4, hash none)",
        ),
    ],
)
def test_a_fault_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        schema(**changes)
    assert message in str(error.value)
    assert all(line.startswith("f: ") for line in str(error.value).splitlines())


def test_a_label_of_one_domain_may_be_a_feature_of_another() -> None:
    changed = schema(**added(column="clicked", kind="dense", group="specific", domains=["product"]))
    assert changed.features[-1].column == "clicked"


# only


def test_only_some_domains() -> None:
    coupon = schema().only(("coupon",))
    assert list(coupon.domains) == ["coupon"]
    assert [task.name for task in coupon.tasks] == ["redeemed@coupon", "clicked@coupon"]
    assert coupon.features == schema().features_of("coupon")
    assert [table.name for table in coupon.tables()] == ["t_age", "t_item", "t_tags"]
    assert [table.name for table in schema().only(("product",)).tables()] == ["t_age", "t_item"]


def test_only_keeps_a_feature_for_the_domains_that_are_left() -> None:
    both = schema(**feature("tags", domains=["product", "coupon"]))
    [tags] = both.only(("product",)).features_of("product", "shared")[1:]
    assert (tags.column, tags.domains) == ("tags", ("product",))


@pytest.mark.parametrize(
    ("domains", "message"),
    [(("feed",), "unknown domain 'feed' (schema 'shop' has: product, coupon)"), ((), "no domain is named")],
)
def test_only_of_what_there_is_not(domains: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        schema().only(domains)
    assert message in str(error.value)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4))
def test_only_is_a_valid_schema_in_the_schemas_order(chosen: list[str]) -> None:
    domains = {name: {"role": "source", "train": name} for name in "abc"}
    tasks = [{"label": f"y_{name}", "domain": name} for name in "abc"]
    features = [{"column": "age", "kind": "id", "group": "user", "rows": 3}]
    features += [{"column": f"f_{name}", "kind": "dense", "group": "specific", "domains": [name]} for name in "cab"]
    whole = validate(Schema, {"name": "s", "user": "u", "domains": domains, "tasks": tasks, "features": features}, "f")
    view = whole.only(tuple(chosen))
    assert list(view.domains) == sorted(set(chosen))
    assert [task.domain for task in view.tasks] == sorted(set(chosen))
    assert [f.column for f in view.features[1:]] == [f"f_{name}" for name in "cab" if name in chosen]
    assert Schema.model_validate(whole.model_dump()) == whole
    assert Schema.model_validate(view.model_dump()) == view
    assert view.only(tuple(chosen)) == view
    assert whole.only(("a", "b", "c")) == whole


def test_a_run_may_use_some_tasks_and_leave_features_out() -> None:
    whole = schema()
    names = [task.name for task in whole.tasks]
    assert [task.name for task in whole.only_tasks(tuple(names[::-1])).tasks] == names
    gone = whole.features[0].column
    assert whole.without((gone,)).features == whole.features[1:]
    assert whole.without(()) == whole


def test_unknown_tasks_and_features_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown task 'buy@nowhere' \(schema '\w+' has: "):
        schema().only_tasks(("buy@nowhere",))
    last = schema().tasks[-1]
    with pytest.raises(UserError, match="is left without a task; leave it out too: domains:"):
        schema().only_tasks((last.name,))
    with pytest.raises(UserError, match=r"without: 'nothing' is no feature of schema '\w+'; features are: "):
        schema().without(("nothing",))


# fingerprint


def moved(where: str) -> dict[str, Any]:
    domains = copy.deepcopy(CONTENT["domains"])
    for domain in domains.values():
        domain["train"] = f"{where}/train"
        domain["test"] = None
    return {"domains": domains, "root": where}


def test_the_fingerprint_does_not_know_where_the_files_lie() -> None:
    assert schema().fingerprint() == schema(**moved("elsewhere")).fingerprint()
    assert schema().fingerprint() == schema().fingerprint()
    assert schema().fingerprint() == FINGERPRINT


def test_a_setting_in_use_changes_the_fingerprint_and_one_out_of_use_does_not() -> None:
    vector = {"column": "text", "kind": "vector", "group": "shared", "length": 3}
    plain, told, other = (
        schema(features=[*CONTENT["features"], {**vector, **more}])
        for more in ({}, {"indicator": False}, {"indicator": True})
    )
    assert plain.fingerprint() == told.fingerprint() != other.fingerprint()


def test_keys_that_came_later_leave_the_fingerprint_of_older_checkpoints_as_it_was() -> None:
    assert schema().fingerprint() == "dc9c58809ed67a9e"


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 12},
        {"user": "household"},
        {"weight": None},
        {"activity": "actions"},
        {"tasks": CONTENT["tasks"][::-1]},
        {"tasks": CONTENT["tasks"][:2]},
        {"tasks": [*CONTENT["tasks"][:2], {**CONTENT["tasks"][2], "nullable": True}]},
        {"features": CONTENT["features"][::-1]},
        {"features": CONTENT["features"][1:]},
        {"domains": dict(reversed(CONTENT["domains"].items()))},
        {"domains": CONTENT["domains"] | {"product": {"role": "target", "train": "x"}}},
        feature("age", rows=11),
        feature("age", dim=12),
        feature("age", hash="mod"),
        feature("age", group="shared"),
        feature("age", table="years"),
        feature("tags", pooling="sum"),
        feature("tags", domains=["product"]),
        feature("past", length=6),
        feature("price", std=2.0),
        feature("price", missing=0.0),
        feature("price", log1p=True),
    ],
)
def test_the_fingerprint_changes_with_the_meaning(changes: dict[str, Any]) -> None:
    assert schema(**changes).fingerprint() != schema().fingerprint()
