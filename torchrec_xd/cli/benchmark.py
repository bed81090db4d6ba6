"""`torchrec-xd benchmark`: its commands are in `torchrec_xd.benchmark`, which imports torch for its options."""
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Any

import typer

ANY_ARGUMENTS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


def benchmark(context: typer.Context) -> None:
    """Measure throughput: reader, lookup, step, train, scale, peers; --help lists them."""
    from torchrec_xd.benchmark.commands import app

    app(context.args, prog_name="torchrec-xd benchmark", standalone_mode=False)
