"""The page of a plan: what it says, how large it gets, that a browser draws it."""

import re
import shutil
import subprocess

import pytest

from tests.support.planner_cases import cpus, gpus, planned
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.planner.plan import Plan, PlannedTable
from torchrec_xd.planner.report.page import TABLES_SHOWN, save_plan_page


@pytest.fixture
def page(tmp_path):
    """Writes a plan's page and returns its path and its text without Plotly's own script."""

    def write(plan):
        path = tmp_path / "plan.html"
        save_plan_page(plan, path)
        text = path.read_text()
        return path, text[text.index("<body>") :]

    return write


def rows_of(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    table = text[text.index(f"<h2>{heading}</h2>") :].split("<table>")[1].split("</table>", maxsplit=1)[0]
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]


def large_plan(tables: int, ranks: int) -> Plan:
    """A plan of that size, without a search."""
    return Plan(
        cluster=gpus(ranks),
        batch_size=512,
        slowest_rank_ms=3.0,
        lower_bound_ms=2.0,
        tables=tuple(
            PlannedTable(
                **{"path": "bags", "name": f"t{i}", "rows": 10**6, "dim": 128, "dtype": "float32"},
                **{"sharding_type": "table_wise", "kernel": "fused", "column_dim": None, "ranks": (i % ranks,)},
                **{"ms": float(i), "hbm": 2**30, "ddr": 0},
            )
            for i in range(tables)
        ),
        rank_compute_ms=tuple(2 - rank / ranks for rank in range(ranks)),
        rank_comms_ms=(1.0,) * ranks,
        rank_hbm=tuple(2**30 * (1 + rank % 60) for rank in range(ranks)),
        rank_ddr=(0,) * ranks,
    )


def test_the_page_shows_the_plan_and_needs_no_network(page):
    listed = TableList(tables=(TableSpec(name="</script><b>", rows=10, dim=4), TableSpec(name="big", rows=1000, dim=8)))
    plan = planned(listed, cpus(2)).plan
    _, text = page(plan)
    assert "src=" not in text
    assert f"Slowest rank {plan.slowest_rank_ms:.3f} ms, lower bound {plan.lower_bound_ms:.3f} ms" in text
    names = {row[0] for row in rows_of(text, "Tables")[1:]}
    assert names == {"bags.&lt;/script&gt;&lt;b&gt;", "bags.big"}
    assert "more tables are not shown" not in text


def test_other_clusters_by_hand(page):
    _, text = page(large_plan(4, 2))
    # Ranks of 2 + 1 and 1.5 + 1 ms; 1 and 2 GiB of HBM, limits of 68 GiB.
    assert rows_of(text, "On another cluster")[1:] == [
        ["lookups half as fast", "5.000", "+66.7%", "0"],
        ["lookups twice as fast", "2.000", "-33.3%", "0"],
        ["network half as fast", "4.000", "+33.3%", "0"],
        ["network twice as fast", "2.500", "-16.7%", "0"],
        ["half the memory", "3.000", "+0.0%", "0"],
    ]
    assert rows_of(text, "Shards per table")[1:] == [["table_wise", "1", "4", "4.000", "0.000", "6.000"]]


def test_half_the_memory_counts_the_ranks_that_no_longer_fit(page):
    _, text = page(large_plan(4, 64))
    # 26 ranks of 35 to 60 GiB; half of 80 GiB less 15 % are 34.
    assert rows_of(text, "On another cluster")[-1] == ["half the memory", "3.000", "+0.0%", "26"]


def test_thousands_of_tables_on_a_thousand_ranks_stay_small(page):
    _, text = page(large_plan(5000, 1024))
    assert len(text) < 300_000
    assert len(rows_of(text, "Tables")) == 1 + TABLES_SHOWN
    assert "4,700 more tables are not shown; they take 11042650.000 of 12497500.000 ms" in text


def test_the_page_opens_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    path, _ = page(large_plan(20, 16))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run([browser, *arguments, path.as_uri()], capture_output=True, check=True, text=True, timeout=120)
    assert done.stdout.count('class="plotly-graph-div') == 2
    # Drawn, not only declared: two bars per rank in one figure, one in the other.
    assert done.stdout.count('<g class="point">') == 3 * 16
