"""`torchrec-xd serve`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchrec_xd.cli.screen import warn
from torchrec_xd.errors import UserError

EXTRA = ("fastapi", "uvicorn", "orjson", "prometheus_client", "onnxruntime")
"""What the extra `serve` brings, by the names of the modules."""


def serve(
    out: Annotated[Path, typer.Argument(help="The --out of 'torchrec-xd export': current.json and versions/.")],
    port: Annotated[int, typer.Option(help="Port; 0 for a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one, without login or TLS.")
    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option(help="Processes on the one port; they share the pages of tables.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the net for one request.")] = 1,
    canary: Annotated[int | None, typer.Option(help="A second version to serve.")] = None,
    canary_share: Annotated[
        float | None, typer.Option(help="Share of the users that the canary answers. Default: 0.1.")
    ] = None,
    missing: Annotated[
        Literal["refuse", "null"], typer.Option(help="A column that a request lacks: an error, or null and counted.")
    ] = "refuse",
    user_features: Annotated[
        Path | None, typer.Option(help="Parquet file of users' features, for what a request does not say.")
    ] = None,
    max_candidates: Annotated[int, typer.Option(help="Candidates of a request at most.")] = 2000,
    max_body_mb: Annotated[float, typer.Option(help="MiB of a body at most.")] = 8.0,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 2.0,
    max_concurrent: Annotated[int, typer.Option(help="Requests that a worker has at a time.")] = 64,
    poll: Annotated[float, typer.Option(help="Seconds between looks at current.json.")] = 1.0,
) -> None:
    """Answer requests with the current version of an exported model, without torch."""
    _check_extra()
    from torchrec_xd.serving.server import serve as run
    from torchrec_xd.serving.server_settings import ServerSettings
    from torchrec_xd.settings import validate

    given: dict[str, Any] = {
        "out": out,
        "port": port,
        "host": host,
        "workers": workers,
        "threads": threads,
        "canary": canary,
        "missing": missing,
        "user_features": user_features,
        "max_candidates": max_candidates,
        "max_body_mb": max_body_mb,
        "timeout": timeout,
        "max_concurrent": max_concurrent,
        "poll": poll,
    }
    if canary_share is not None:
        given["canary_share"] = canary_share
    run(validate(ServerSettings, given, "serve"), lambda line: typer.echo(line, err=True), warn)  # the log is on stdout


def _check_extra() -> None:
    """Raises an error that names what is not installed."""
    from importlib.util import find_spec

    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'torchrec-xd[serve]'")
