"""Raw values of a request become what `prepare` makes of the same rows, without an engine."""

import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_requests import EVENTS, raw_columns, rows_of
from tests.support.raw_shop import BERLIN, EVERY_KIND, TYPES, prepare, recipe, write_shop
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.raw_rows import encode_raw_rows
from torchrec_xd.serving.encoding import RawEncoder
from torchrec_xd.serving.moments import MOMENT


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Encoders, rows that are new to them, and what `encode_raw_rows` makes of these."""
    folder = tmp_path_factory.mktemp("shop")
    events = rows_of(400)
    write_shop(folder, events)
    out = prepare(folder, recipe(folder, *EVERY_KIND, events=EVENTS))
    new = rows_of(150, seed=5)
    pq.write_table(pa.Table.from_pylist(new, TYPES), folder / "new.parquet")
    encoded = encode_raw_rows(out, str(folder / "new.parquet"), "goods", folder, inputs={})
    return out, events, new, encoded


def encoder_of(out, path):
    kinds = pq.read_schema(path)
    wanted = [f.column for f in load_schema(out / "schema.yaml").features_of("goods")]
    return RawEncoder(out, "goods", {name: kinds.field(name).type for name in wanted})


def test_every_kind_is_encoded_as_prepare_does(shop):
    out, events, new, encoded = shop
    encoder = encoder_of(out, encoded.path)
    columns, unseen = raw_columns(events, new), Counter()
    assert set(columns) == set(encoder.types)
    given = {name: pa.array(columns[name], kind) for name, kind in encoder.types.items()}
    found = encoder.encode(given, unseen)
    expected = pq.read_table(encoded.path)
    moments = pa.array([row["ts"].replace(tzinfo=BERLIN) for row in new], MOMENT)
    for name in encoder.calendar:
        assert encoder.clock(name, moments).to_pylist() == expected[name].to_pylist(), name
    for feature in load_schema(out / "schema.yaml").features_of("goods"):
        name = feature.column
        if name in encoder.calendar:
            continue
        own, theirs = found[name].to_pylist(), expected[name].to_pylist()
        if feature.kind == "dense":
            np.testing.assert_allclose(own, np.array(theirs, dtype=float), rtol=1e-6, atol=1e-6, err_msg=name)
            continue
        theirs = [each or [] for each in theirs] if feature.kind in ("bag", "sequence") else theirs
        if name == "tags_order":  # the decoder cuts it
            theirs = [each[-5:] for each in theirs]
            own = [each[-5:] for each in own]
        assert own == theirs, name
    assert any(len(ids) == 4 for ids in found["clicked_items"].to_pylist())
    # a value is counted, null is not: `encode_raw_rows` counts both
    assert unseen["category"] == encoded.unseen["category"] - columns["category"].count(None)
    assert unseen["item"] == encoded.unseen["item"] > 20


def test_examples_are_encoded_to_what_they_are_examples_of(shop):
    out, _, _, encoded = shop
    encoder = encoder_of(out, encoded.path)
    table = pq.read_table(encoded.path).slice(3, 5)
    columns = {name: table[name].combine_chunks() for name in encoder.types}
    given = {name: pa.array(encoder.decode(name, columns[name]), kind) for name, kind in encoder.types.items()}
    found = encoder.encode(given, Counter())
    for name in (
        "category",
        "item",
        "category_edges",
        "price_quarter",
        "seen_step",
        "hashed",
        "taste",
        "clicked_items",
    ):
        assert found[name].to_pylist() == columns[name].to_pylist(), name
    np.testing.assert_allclose(found["price"].to_numpy(), columns["price"].to_numpy(), rtol=1e-4)


def test_a_moment_of_another_zone_is_shown_in_the_recipes(shop):
    out, _, _, encoded = shop
    encoder = encoder_of(out, encoded.path)
    # Sunday, 27 October 2024, 23:30 in UTC is Monday, 00:30 in Berlin, where winter time began that day
    moments = pa.array([datetime(2024, 10, 27, 23, 30, tzinfo=timezone.utc)], MOMENT)
    found = {name: encoder.clock(name, moments).to_pylist() for name in encoder.calendar}
    assert found == {"hour": [1], "weekday": [1], "day": [28], "month": [10], "hour_of_week": [1]}


def test_columns_that_the_recipe_does_not_make_are_refused(shop):
    out, _, _, _ = shop
    with pytest.raises(UserError, match="the recipe does not make the columns colour"):
        RawEncoder(out, "goods", {"item": pa.int64(), "colour": pa.int64()})
    with pytest.raises(UserError, match=r"the recipe has no domain 'shoes'; there are: goods, videos"):
        RawEncoder(out, "shoes", {"item": pa.int64()})


def test_no_engine_is_imported():
    code = (
        "import sys, torchrec_xd.serving.encoding; "
        "print([name for name in ('torch', 'ibis', 'duckdb', 'sqlglot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
