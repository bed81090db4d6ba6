"""After `make quickstart`: its MKT model is exported, served, asked for its sample, put under load, and stopped.

python -m tools.serve_quickstart
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table

from torchrec_xd.atomic_write import write_json
from torchrec_xd.benchmark.load import Plan, Server, apply_load, connected, cpu_of_requests, median, post, serving
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError
from torchrec_xd.export.api import export
from torchrec_xd.serving.artifact import VERSIONS, current_version
from torchrec_xd.serving.examples import example_body
from torchrec_xd.serving.versions import ServedVersion

RUN, OUT = Path("runs/quickstart/mkt_finetune"), Path("runs/serve-quickstart")
CANDIDATES, BODIES, SINGLE = 200, 32, 200
"""Of a request; different requests; requests whose CPU time is measured one by one."""
TOLERANCE = 1e-5
"""Largest difference to the scores of the sample."""
screen = Console(highlight=False)


def serve_quickstart(
    run: Annotated[Path, typer.Option(help="The run that is served.")] = RUN,
    out: Annotated[Path, typer.Option(help="Folder of the export and of summary.json.")] = Path(
        "runs/serve-quickstart"
    ),
    seconds: Annotated[float, typer.Option(help="Of the load.")] = 10.0,
    swaps: Annotated[int, typer.Option(min=0, help="Of versions, during the load.")] = 5,
) -> None:
    """Export, serve, compare, load, stop; the table is printed, and `OUT/summary.json` written."""
    plan = Plan(seconds=seconds, swaps=swaps)
    if not (run / "metrics.json").exists():
        raise UserError(f"{run} is no finished run; make one first: make quickstart")
    exports = out / "export"
    shutil.rmtree(exports, ignore_errors=True)
    export(run, exports)
    version = ServedVersion.load(current_version(exports))
    shutil.copytree(version.artifact.folder, exports / VERSIONS / "2")  # swapped with its equal
    bodies = [orjson.dumps(example_body(version, row, CANDIDATES)) for row in range(BODIES)]
    with serving(exports, "--poll", "0.1", "--timeout", "30") as server:
        apart = difference(server, version)
        single = cpu_of_requests(server, bodies, SINGLE)
        load, memory = apply_load(server, exports, bodies, plan), server.memory()
    summary = {
        "requests": load.requests,
        "failed": load.failed.total(),
        "max_abs_difference": apart,
        "cpu_ms_p50": round(median(single), 3),
        "wall_ms_p50": round(load.percentile(0.5), 3),
        "wall_ms_p99": round(load.percentile(0.99), 3),
        "resident_mb": round(memory.resident, 3),
        "tables_mb": round(memory.tables, 3),
        "seconds_until_ready": round(server.seconds_until_ready, 2),
    }
    write_json(out / "summary.json", summary)
    table = Table("what", "measured", title=f"{run}: 1 user x {CANDIDATES} candidates, one core")
    for name, value in summary.items():
        table.add_row(name, f"{value:,}" if name != "max_abs_difference" else f"{value:.2g}")
    screen.print(table)
    screen.print(f"written to {out / 'summary.json'}", markup=False)
    if load.failed or not apart <= TOLERANCE:
        raise UserError(f"{load.failed.total()} requests failed {dict(load.failed)}; scores differ by {apart:.2g}")


def difference(server: Server, version: ServedVersion) -> float:
    """The largest one between the sample's scores and those over HTTP, a request for each row."""
    _, expected = version.artifact.sample()
    worst = 0.0
    with connected(server.address) as connection:
        for row in range(len(expected)):
            found = post(connection, orjson.dumps(example_body(version, row, 1)))["scores"]
            for name in expected.column_names:
                worst = max(worst, abs(float(np.float32(found[name][0])) - expected[name][row].as_py()))
    return worst


if __name__ == "__main__":
    run_command(lambda: typer.run(serve_quickstart))
