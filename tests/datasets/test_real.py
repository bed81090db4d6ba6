"""The real Complete Journey: counts that were known beforehand, the schema's table sizes, memory, and references."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from threadpoolctl import threadpool_limits

from tools.references import reference_rows
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import Manifest
from torchrec_xd.datasets.complete_journey.journey import raw_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PREPARE = """
import json, resource, sys
from pathlib import Path
from torchrec_xd.datasets import PrepareSettings, prepare
prepare("cj_feed", Path(sys.argv[1]), PrepareSettings(negatives=1000), str)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
"""


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    """Folder of the data set with few negatives, and the gigabytes that making it took."""
    folder = tmp_path_factory.mktemp("real") / "cj_feed"
    made = subprocess.run(
        [sys.executable, "-c", PREPARE, folder], check=True, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return folder, json.loads(made.stdout)


def coupons(folder: Path, *splits: str) -> pa.Table:
    return pa.concat_tables([ds.dataset(folder / "coupon" / split).to_table() for split in splits])


def by_type(rows: pa.Table) -> dict[str, tuple[int, int]]:
    """Rows and redemptions of type A, and of B and C together."""
    kind, label = rows["campaign_type"].to_numpy(), rows["redeemed"].to_numpy()
    return {name: (int(here.sum()), int(label[here].sum())) for name, here in (("A", kind == 1), ("B+C", kind > 1))}


def test_exposures_and_redemptions_are_the_known_ones(feed):
    assert by_type(coupons(feed[0], "train", "valid")) == {"A": (513_164, 1_052), "B+C": (26_540, 186)}
    assert by_type(coupons(feed[0], "test")) == {"A": (236_797, 646), "B+C": (23_698, 191)}
    assert by_type(coupons(feed[0], "valid")) == {"A": (222_939, 620), "B+C": (11_190, 70)}


def test_the_manifest_counts_what_was_known(feed):
    manifest = Manifest.model_validate_json((feed[0] / "manifest.json").read_text())
    assert manifest.dropped["purchases of products that are not in the catalogue"] == 4_836
    assert sum(split.positives for split in manifest.domains["product"].values()) == 317_267
    assert "24 of the coupons redeemed in train and valid" in manifest.notes[1]


def test_memory_stays_small(feed):
    assert feed[1] < 3


def test_tables_are_as_large_as_the_vocabularies(feed):
    schema = load_schema(ROOT / "configs" / "schemas" / "cj_feed.yaml")
    cardinalities = json.loads((feed[0] / "manifest.json").read_text())["cardinalities"]
    cardinalities["store"] = cardinalities.pop("store_id")
    rows = {feature.column: feature.rows for feature in schema.features}
    assert {name: rows[name] for name in cardinalities} == {name: count + 1 for name, count in cardinalities.items()}
    for domain in schema.domains:
        for feature in schema.features_of(domain):
            if feature.kind == "dense":
                continue
            column = ds.dataset(feed[0] / domain).to_table(columns=[feature.column])[feature.column].combine_chunks()
            ids = column.flatten() if feature.kind == "sequence" else column
            assert 0 <= pa.compute.min(ids).as_py() <= pa.compute.max(ids).as_py() < feature.rows, feature.column


def test_facts_about_coupons_are_strictly_before_the_campaign(feed):
    """All purchases of covered products before a campaign, summed over exposures, counted by one plain join."""
    raw = raw_folder()
    query = f"""
        SELECT count(*) FROM '{raw}/campaigns.parquet' AS sent
        JOIN '{raw}/campaign_descriptions.parquet' USING (campaign_id)
        JOIN (SELECT DISTINCT campaign_id, coupon_upc, product_id FROM '{raw}/coupons.parquet') USING (campaign_id)
        JOIN '{raw}/transactions.parquet' AS line USING (household_id, product_id)
        WHERE line.transaction_timestamp - INTERVAL 4 HOUR < start_date
          AND product_id IN (SELECT product_id FROM '{raw}/products.parquet')
    """
    expected = duckdb.sql(query).fetchall()[0][0]
    logs = coupons(feed[0], "train", "valid", "test")["item_purchases_log"].to_numpy().astype(np.float64)
    assert expected > 100_000
    assert int(np.rint(np.expm1(logs)).sum()) == expected


def test_no_purchase_lies_before_the_monday_of_its_week():
    """So a look at what was before a week's first day can see none of that week's purchases."""
    query = f"""
        SELECT min(
            date_diff('day', DATE '2017-01-01', CAST(transaction_timestamp - INTERVAL 4 HOUR AS DATE)) - (7 * week - 13)
        ) FROM '{raw_folder()}/transactions.parquet'
    """
    assert duckdb.sql(query).fetchall()[0][0] >= 0


def test_references_are_near_what_was_measured_before(feed):
    """Counting .858 / .884 / .728, boosting on nine facts .914 / .923 / .796, by an earlier and independent program."""
    with threadpool_limits(1):  # more threads than idle cores make boosting ten times slower
        auc = {(row["model"], row["slice"]): row["auc"] for row in reference_rows(feed[0])}
    for name, expected in (("all", 0.858), ("A", 0.884), ("B+C", 0.728)):
        assert auc["counting", name] == pytest.approx(expected, abs=0.001)
    for name, expected in (("all", 0.914), ("A", 0.923), ("B+C", 0.796)):
        assert auc["boosting", name] == pytest.approx(expected, abs=0.015)
