"""HTML pages that need no network: headings, paragraphs, tables and Plotly figures in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from torchrec_xd.atomic_write import write_text
from torchrec_xd.reports.style import STYLE


@dataclass(frozen=True)
class Grid:
    """A table: its header, and rows of texts; the first column is the name of the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Folded:
    """A table that opens on a click or a key: the numbers of a figure."""

    summary: str
    grid: Grid


Part: TypeAlias = str | Grid | Folded | go.Figure
"""Of a page."""


def save_page(path: Path, title: str, parts: Sequence[Part], style: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: the file.
        title: of the page.
        parts: from top to bottom; texts are paragraphs, those that begin with `# ` headings.
        style: CSS on top of that of all pages.
    """
    body = "\n".join(_html(part) for part in parts)
    script = f"<script>{get_plotlyjs()}</script>" if any(isinstance(part, go.Figure) for part in parts) else ""
    content = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}{style}</style>{script}</head><body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    write_text(path, content)


def number_text(value: float | int | None, form: str = ".4f") -> str:
    """A number for a table: floats in `form`, integers with thousands separators, a dash for None."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else f"{value:,}"


def _html(part: Part) -> str:
    if isinstance(part, str):
        tag, text = ("h2", part[2:]) if part.startswith("# ") else ("p", part)
        return f"<{tag}>{html.escape(text)}</{tag}>"
    if isinstance(part, Grid):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in part.rows)
        return f'<div class="wide" tabindex="0"><table><tr>{head}</tr>{rows}</table></div>'
    if isinstance(part, Folded):
        return f"<details><summary>{html.escape(part.summary)}</summary>{_html(part.grid)}</details>"
    figure: Any = plotly.io.to_html(
        part, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return str(figure)
