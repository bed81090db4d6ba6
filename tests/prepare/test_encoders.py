"""What was learnt before is used for new rows, as it is."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_shop import EVERY_KIND, TYPES, contents, prepare, recipe, views, write_shop, written
from torchrec_xd.errors import UserError


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = write_shop(tmp_path_factory.mktemp("shop"))
    content = recipe(folder, *EVERY_KIND, events={"shown": {"rows": "views", "user": "user_id", "time": "ts"}})
    return folder, content, prepare(folder, content)


def parts(folder):
    found = contents(folder)
    return {name: content for name, content in found.items() if name.endswith(".parquet")}


def test_the_same_rows_become_the_same(shop):
    folder, content, out = shop
    again = prepare(folder, content, "again", encoders=out)
    assert parts(again) == parts(out)
    assert (again / "encoders" / "encoders.json").read_bytes() == (out / "encoders" / "encoders.json").read_bytes()


def test_new_rows_are_encoded_by_what_was_learnt_and_new_values_are_told(shop, tmp_path):
    folder, content, out = shop
    new = [{**row, "item": "new" if row["n"] % 4 == 0 else row["item"], "price": 1e6} for row in views()]
    pq.write_table(pa.Table.from_pylist(new, TYPES), tmp_path / "new.parquet")
    said = []
    again = prepare(
        folder, content, "new", encoders=out, inputs={"views": str(tmp_path / "new.parquet")}, progress=said.append
    )
    words = {row["value"]: row["row"] for row in pq.read_table(out / "encoders" / "item.parquet").to_pylist()}
    rows = written(again, "goods")
    expected = {row["n"]: words.get(row["item"], 0) for row in new}
    assert {n: row["item"] for n, row in rows.items()} == {n: expected[n] for n in rows}
    # 9 is the greatest value of the recipe's clip; were mean and deviation learnt anew, every price would be 0
    assert all(row["price"] > 0.5 for row in rows.values())
    unseen = sum(row["item"] == 0 for row in rows.values()) / len(rows)
    assert f"goods: {unseen:.1%} of 'item' have no row of their own (new, rare or missing)" in said


def test_encoders_that_were_changed_are_refused(shop, tmp_path):
    folder, content, out = shop
    for name, change in (("item.parquet", b"x"), ("recipe.yaml", b"\n# other")):
        changed = tmp_path / name
        shutil.copytree(out, changed)
        path = changed / "encoders" / name
        path.write_bytes(path.read_bytes() + change)
        with pytest.raises(UserError, match=rf"{name}: is missing or was changed since it was written"):
            prepare(folder, content, "refused", encoders=changed)
    with pytest.raises(UserError, match=r"no readable encoders.json .*; name the folder of a prepared data set"):
        prepare(folder, content, "refused", encoders=tmp_path)
    outside = tmp_path / "outside"
    shutil.copytree(out, outside)
    index = outside / "encoders" / "encoders.json"
    found = json.loads(index.read_text())
    found["tables"]["item"]["file"] = "../schema.yaml"
    index.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"'../schema.yaml' lies outside its folder"):
        prepare(folder, content, "refused", encoders=outside)
    assert not (folder / "refused").exists()


def changed(content, column, **settings):
    features = [{**each, **settings} if each["column"] == column else each for each in content["features"]]
    return {**content, "features": features}


def test_encoders_of_other_features_are_refused(shop):
    """What they learnt would be taken for what the recipe says now."""
    folder, content, out = shop
    new = {"column": "price_again", "value": "price", "kind": "dense", "group": "specific", "standard": True}
    for other, message in (
        (changed(content, "price", log1p=False), r"feature 'price', log1p: is False, and was True in .*recipe.yaml; "),
        (changed(content, "price_quarter", quantiles=5), "feature 'price_quarter', quantiles: is 5, and was 4"),
        (changed(content, "tags", value="words", separator="|"), "feature 'tags', value: is words, and was None"),
        ({**content, "features": [*content["features"], {**new, "domains": ["goods"]}]}, "know no such feature"),
        ({**content, "features": content["features"][:-1]}, r"'features': the encoders .* also know 'share_half'"),
        ({**content, "time_zone": "UTC"}, "'time_zone': the encoders .* learnt with Europe/Berlin"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            prepare(folder, other, "refused", encoders=out)
        assert str(refused.value).endswith("write it as it was, or learn anew, without --encoders")
    assert not (folder / "refused").exists()
    prepare(folder, {**content, "name": "other", "cold_users": 0.1}, "other", encoders=out)
