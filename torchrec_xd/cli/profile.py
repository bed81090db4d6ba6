"""`torchrec-xd profile`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.screen import show


def profile(
    data: Annotated[Path, typer.Argument(help="Schema file, or folder of a prepared data set.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("profile.html"),
    sample: Annotated[
        int, typer.Option(min=1_000, help="Rows of each domain and split for what would take too long in all.")
    ] = 200_000,
    memory: Annotated[float, typer.Option(min=0.1, help="GB for DuckDB's buffers; then it uses the disk.")] = 2.0,
) -> None:
    """Write what a data set is like: labels, features, drift, overlap of domains, leaks, duplicates."""
    from torchrec_xd.prepare.engine_settings import DuckDBSettings, EngineSettings
    from torchrec_xd.prepare.profile.api import profile_data
    from torchrec_xd.writable import check_output_file

    check_output_file(out, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    engine = EngineSettings(duckdb=DuckDBSettings(memory_limit_gb=memory))
    found = profile_data(data, out, show, sample_rows=sample, engine=engine)
    show(f"{out}: findings: {len(found.findings)}")
