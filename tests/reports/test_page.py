"""Pages: escaped, self-contained, whole."""

import plotly.graph_objects as go

from torchrec_xd.reports.page import Grid, save_page


def test_a_page_escapes_what_it_is_given(tmp_path):
    path = tmp_path / "page.html"
    save_page(path, "a < b", ["# x & y", "1 < 2", Grid(["<i>", "n"], [["</td>", "3"]])])
    text = path.read_text()
    assert "<title>a &lt; b</title>" in text
    assert "<h2>x &amp; y</h2>\n<p>1 &lt; 2</p>" in text
    assert "<th>&lt;i&gt;</th>" in text
    assert "<td>&lt;/td&gt;</td><td>3</td>" in text
    assert "<script" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_figures_bring_their_script_along(tmp_path):
    path = tmp_path / "page.html"
    save_page(path, "t", [go.Figure(go.Bar(x=["a"], y=[1]))])
    text = path.read_text()
    assert text.count("Plotly.newPlot") >= 1
    assert len(text) > 1_000_000
    assert 'src="http' not in text


def test_markdown():
    assert Grid(["a", "b"], [["1|2", "3"]]).markdown() == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"
