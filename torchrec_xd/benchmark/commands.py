"""The commands of the benchmark."""

from __future__ import annotations

import typer

from torchrec_xd.benchmark.evaluating import metrics
from torchrec_xd.benchmark.history import history
from torchrec_xd.benchmark.kinds import kinds
from torchrec_xd.benchmark.large import large
from torchrec_xd.benchmark.lookup import lookup
from torchrec_xd.benchmark.peers import peers
from torchrec_xd.benchmark.plain import plain
from torchrec_xd.benchmark.predicted import predicted
from torchrec_xd.benchmark.preparing import prepare
from torchrec_xd.benchmark.reading import reader, train
from torchrec_xd.benchmark.report import report
from torchrec_xd.benchmark.scale import scale
from torchrec_xd.benchmark.serving import serve
from torchrec_xd.benchmark.step import counts, step

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    reader,
    prepare,
    lookup,
    step,
    kinds,
    train,
    scale,
    predicted,
    large,
    plain,
    peers,
    counts,
    metrics,
    history,
    report,
    serve,
):
    app.command()(command)
