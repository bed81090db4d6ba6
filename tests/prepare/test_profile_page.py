"""The page of a profile: in a browser, on a phone, by keyboard; from the command line and from `prepare`."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs

from torchrec_xd.cli.app import app
from torchrec_xd.prepare.api import prepare_recipe
from torchrec_xd.prepare.profile.page import save_profile_page
from torchrec_xd.prepare.profile.result import (
    ActivityRate,
    Drift,
    Duplicates,
    FeatureProfile,
    Finding,
    LabelCount,
    Profile,
    Separation,
    TableOverlap,
    UserOverlap,
)

SPLITS = ("train", "valid", "test")


def large() -> Profile:
    """Two domains, 200 features and a year of days."""
    columns, domains = [f"feature_{i}" for i in range(200)], ("a", "b")
    each = [(column, domain) for column in columns for domain in domains]
    numbers = (0.0, 0.1, 1.0, 2.0, 3.0)
    return Profile(
        "shop",
        1000,
        {"a/train": (5000, 1000)},
        labels=[LabelCount(domain, split, "click", 100, 90, 30, 0.25) for domain in domains for split in SPLITS],
        days=[
            LabelCount(domain, "train", "click", 10, 10, day % 5, None, date(2024, 1, 1) + timedelta(days=day))
            for domain in domains
            for day in range(365)
        ],
        features=[
            FeatureProfile(column, "dense", domain, split, 100, 5, 0.5, None, None, 1.5, 0.5, numbers)
            for column, domain in each
            for split in SPLITS
        ],
        drift=[Drift(column, domain, "test", 0.4, 0.01) for column, domain in each],
        users=[UserOverlap("a", "b", "test", 10, 8, 4, 100, 25)],
        tables=[TableOverlap("item", "a", "b", 10, 8, 4, 100, 75, True)],
        separations=[Separation(column, domain, "click", 0.6, 30, 60, 15, 30) for column, domain in each],
        duplicates=[Duplicates("a", split, 100, 3, 0, True) for split in SPLITS],
        activity=[ActivityRate("a", "test", "click", 0, 0, 10, 1), ActivityRate("a", "test", "click", 1, 2, 10, 4)],
        findings=[Finding("error", "a <leak>", "leave it out")],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "profile.html"
    save_profile_page(large(), path)
    return path


def test_the_page_says_all_and_is_small(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    own = text.replace(get_plotlyjs(), "")
    assert len(own) < 2_000_000
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", own)
    assert own.index("<p>Wrong: a &lt;leak&gt;. Remedy: leave it out.</p>") < own.index("<h2>Rows and labels</h2>")
    assert "All else is of a sample: 1,000 of 5,000 rows of a/train" in own
    assert "<td>test</td><td>10</td><td>8</td><td>4</td><td>50.00%</td><td>25.00%</td>" in own
    assert own.count("<details><summary>") == 5, "a table for every figure, the two of a domain's days share one"


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_opens_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    # What the page is like after it was drawn, in an attribute of <body>.
    look = (
        "<script>addEventListener('load', () => setTimeout(() => { const all = [...document.querySelectorAll('.wide')];"
        "document.body.dataset.found = [document.documentElement.scrollWidth <= innerWidth, "
        "all.every(each => each.tabIndex === 0), all.some(each => each.scrollWidth > each.clientWidth)].join() }, 500))"
        "</script>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", look + "</body>"), encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    arguments += [f"--window-size={width},900", "--virtual-time-budget=20000"]
    done = subprocess.run([browser, *arguments, copy.as_uri()], capture_output=True, check=True, text=True, timeout=120)
    assert done.stdout.count('class="plotly-graph-div') == 7
    # Nothing but wide tables scrolls sideways, and these can be reached by keyboard.
    assert re.search(r'data-found="true,true,(true|false)"', done.stdout), re.findall('data-found="[^"]*"', done.stdout)


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split in SPLITS:
        click = rng.integers(0, 2, 400)
        columns = {"user": rng.integers(0, 50, 400), "click": click, "item": click + 2 * rng.integers(0, 5, 400)}
        (tmp_path / "data" / "a").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "data" / "a" / f"{split}.parquet")
    schema = tmp_path / "data" / "schema.yaml"
    schema.write_text(
        f"name: shop\nroot: {tmp_path / 'data'}\nuser: user\ntasks: [{{label: click, domain: a}}]\n"
        "domains: {a: {role: target, train: a/train.parquet, valid: a/valid.parquet, test: a/test.parquet}}\n"
        "features: [{column: item, kind: id, group: shared, rows: 10}]\n",
        encoding="utf-8",
    )
    for data in (schema, schema.parent):
        out = tmp_path / "pages" / f"{data.stem}.html"
        app(["profile", str(data), "--out", str(out)], standalone_mode=False)
        assert "alone separates label &#x27;click&#x27; with an AUC of 1.000" in out.read_text(encoding="utf-8")
        said = capsys.readouterr().out.replace("\n", " ")
        assert "warning: a: feature 'item' alone separates label 'click' with an AUC of 1.000" in said
        assert f"{out}: findings: 1" in said


def test_prepare_writes_the_page_and_says_what_it_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bought = rng.integers(0, 2, 900)
    rows = {"user": [f"u{i}" for i in rng.integers(0, 50, 900)], "time": np.arange(900) * 60, "bought": bought}
    pq.write_table(pa.table({**rows, "paid": bought * 9.5}), tmp_path / "rows.parquet")
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(
        f"name: shop\nroot: {tmp_path}\ninputs: {{rows: rows.parquet}}\n"
        "domains: {a: {role: target, rows: rows, user: user, time: time, time_unit: s, labels: {buy: bought}}}\n"
        "features: [{column: paid, kind: dense, group: context}]\n"
        "split: {valid: '1970-01-01 10:00:00', test: '1970-01-01 12:00:00'}\n",
        encoding="utf-8",
    )
    said: list[str] = []
    made = prepare_recipe(recipe, tmp_path / "data", said.append)
    assert "profile.html" in made.reports
    assert "<title>Profile of shop</title>" in (tmp_path / "data" / "profile.html").read_text(encoding="utf-8")
    assert [line for line in said if line.startswith("warning: ")] == [
        "warning: a: feature 'paid' alone separates label 'buy' with an AUC of 1.000: it likely knows the label; "
        "leave it out, or compute it of what was known strictly before the row's time"
    ]
    again: list[str] = []
    prepare_recipe(recipe, tmp_path / "data", again.append)
    assert again == [f"{tmp_path / 'data'}: prepared before, from the same files with the same recipe; reused"]
