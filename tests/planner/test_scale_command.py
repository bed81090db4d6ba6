"""`plan scale`: what it prints and writes, and what it refuses."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from torchrec_xd.cli.plan import app
from torchrec_xd.error_boundary import run_command

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/mmoe_cj.yaml"
OUTPUTS = ("scale.json", "scale.html")


@pytest.fixture
def run(capsys):
    """Calls the command as the command line does: exit code, output, error."""

    def call(*words):
        with pytest.raises(SystemExit) as left:
            run_command(lambda: app(["scale", *map(str, words)]))
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """What one call printed and wrote."""
    folder = tmp_path_factory.mktemp("scale")
    words = ["scale", str(CONFIG), "--ranks", "1..64", "--price-per-hour", "3.6", "--batch-size", "512"]
    words += ["--json", str(folder / "scale.json"), "--html", str(folder / "scale.html")]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("torchrec_xd.cli.plan_scale.show", printed.append)
        with pytest.raises(SystemExit) as left:
            run_command(lambda: app(words))
    assert left.value.code == 0
    return json.loads((folder / "scale.json").read_text()), folder / "scale.html", printed


def test_the_report_agrees_with_itself(scaled):
    content, _, printed = scaled
    assert content["assumptions"] == printed
    assert "Matrix products in tf32, at 50% of the profile's TFLOP/s; 7.5 µs per launch" in printed[0]
    sizes = content["sizes"]
    assert [size["ranks"] for size in sizes] == [1, 2, 4, 8, 16, 32, 64]
    for size in sizes:
        step = size["step"]
        assert size["rows_per_s"] == pytest.approx(size["ranks"] * 512 / step["step_ms"] * 1000)
        # 3.6 an hour is a thousandth a second.
        assert size["cost_per_million_rows"] == pytest.approx(1e-3 * size["ranks"] / size["rows_per_s"] * 1e6)
        assert size["efficiency"] == pytest.approx(sizes[0]["step"]["step_ms"] / step["step_ms"])
    # Few small tables and small batches: launching operators takes longest until one rank's table is asked by too many.
    assert sizes[0]["step"]["binds"] == "launches"
    assert sizes[-1]["step"]["lookups_ms"] > sizes[0]["step"]["lookups_ms"]


def test_the_page_shows_the_sizes_and_needs_no_network(scaled):
    content, path, _ = scaled
    text = path.read_text()
    text = text[text.index("<body>") :]
    assert "src=" not in text
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in text.split("<table>")[1].split("<tr>")[1:]]
    assert cells[0][:5] == ["ranks", "batch", "rows/s", "efficiency", "step ms"]
    assert [row[2] for row in cells[1:]] == [f"{size['rows_per_s']:,.0f}" for size in content["sizes"]]
    assert [row[-2] for row in cells[1:]] == [size["step"]["binds"] for size in content["sizes"]]


def test_the_page_opens_in_a_browser(scaled, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    command = [browser, *arguments, scaled[1].as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    assert done.stdout.count('class="plotly-graph-div') == 3
    # Six parts of seven sizes as bars.
    assert done.stdout.count('<g class="point">') == 6 * 7


def test_sizes_that_do_not_fit_are_lines(run):
    # Rows are split, but a rank's buffers grow with the ids of all ranks.
    words = ("--hbm", "0.003", "--ddr", "0.003", "--batch-size", "512", "--set", "sharding.types=[row_wise]")
    code, output, _ = run(CONFIG, "--ranks", "1..4", *words)
    assert code == 0
    lines = [line.split() for line in output.splitlines() if re.match(r" *[124] ", line)]
    assert lines[0][2] == lines[1][2] == "100%"
    assert lines[2] == ["4", "does", "not", "fit"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--ranks", "4..2"), "ranks '4..2': give the smallest and the largest number"),
        (("--ranks", "0..8"), "ranks '0..8': give the smallest and the largest number"),
        (("--ranks", "x"), "ranks 'x': give the smallest and the largest number"),
        (("--ranks", "6..12"), "world_size 12 is no multiple of ranks_per_node 8"),
        (("--cluster", "cpu", "--ranks", "1..2"), "no 'fp32_tflops'"),
        (("--cluster", "cpu", "--precision", "tf32"), "only GPUs have TF32"),
        (("--cluster", "abacus"), "unknown cluster 'abacus'"),
        (("--batch-size", "8", "--global-batch", "8"), "give one of the two"),
        (("--ranks", "1..8", "--global-batch", "100"), "8 ranks cannot share it equally; give a multiple of 8"),
        (("--price-per-hour", "0"), "price_per_hour"),
        (("--set", "trainer.precision=fp8"), "trainer.precision"),
        (("--ranks", "1..2", "--hbm", "0.001", "--ddr", "0.001"), "no size of 1..2 fits; the largest: no plan fits"),
    ],
)
def test_mistakes_end_with_2_and_one_message(run, words, text):
    code, output, error = run(CONFIG, *words)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert text in error


def test_a_schema_is_refused(run):
    code, _, error = run(ROOT / "configs/schemas/cj_feed.yaml")
    assert code == 2
    assert "a schema has tables and no model; give the run config" in error


def test_the_config_chooses_precision_and_sharding(run):
    types = "sharding.types=[table_wise,row_wise]"
    words = (CONFIG, "--ranks", "64..64", "--set", "trainer.precision=bf16")
    code, output, _ = run(*words)
    assert code == 0
    assert "Matrix products in bf16" in output
    _, split, _ = run(*words, "--set", types)
    speeds = [int(re.search(r"^ *64 +([\d,]+)", text, re.MULTILINE)[1].replace(",", "")) for text in (output, split)]
    assert speeds[1] > speeds[0]
