"""`serve`: an artefact under load over HTTP, and what its parts cost in this process."""
# ruff: noqa: PLC0415 - what the extras `serve` and `export` bring is imported once it is known to be there

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_xd.benchmark.load import MOST_RATE, Plan, apply_load, cpu_of_requests, median, serving, versions_of
from torchrec_xd.benchmark.measure import Json, Repeats, Result
from torchrec_xd.errors import UserError

EXTRAS = {"serve": ("fastapi", "uvicorn", "orjson", "prometheus_client", "onnxruntime"), "export": ("onnx",)}
"""Extra to the modules that it brings."""
BODIES = 32
"""Different requests."""


def serve(
    out: Annotated[Path, typer.Argument(help="The --out of 'torchrec-xd export'.")],
    candidates: Annotated[int, typer.Option(min=1, max=2000, help="Of each request.")] = 200,
    clients: Annotated[int, typer.Option(help="Each sends the next request when it has the answer.")] = 1,
    seconds: Annotated[float, typer.Option(help="Of the load.")] = 10.0,
    rate: Annotated[float, typer.Option(help="Requests per second at most.")] = MOST_RATE,
    swaps: Annotated[int, typer.Option(min=0, help="How often current.json is set to another version.")] = 0,
    single: Annotated[int, typer.Option(min=1, help="Requests whose CPU time is measured one by one.")] = 200,
    run: Annotated[Path | None, typer.Option(help="The run that was exported: eager torch is measured too.")] = None,
    repeats: Repeats = 5,
    json: Json = None,
) -> None:
    """One server of one thread on this machine, 1 user x C candidates from the artefact's sample; then its parts."""
    _check_extras()
    plan = Plan(seconds=seconds, clients=clients, rate=rate, swaps=swaps)
    from torchrec_xd.benchmark.serving_parts import bodies_of, parts_of
    from torchrec_xd.serving.artifact import current_version
    from torchrec_xd.serving.versions import ServedVersion

    version = ServedVersion.load(current_version(out))
    versions_of(out, swaps)
    bodies = bodies_of(version, candidates, BODIES)
    options = ("--poll", "0.1", "--timeout", "30", "--max-candidates", str(candidates))  # a busy machine is no failure
    with serving(out, *options) as server:
        alone = cpu_of_requests(server, bodies, single)
        load = apply_load(server, out, bodies, plan)
        taken_over, refused = (len(server.events(f"version {what}")) for what in ("taken over", "refused"))
        ready, memory = server.seconds_until_ready, server.memory()
    cpu_ms = 1000 * load.cpu_seconds / max(1, load.requests)
    result = Result("serve", {"model": version.model, "candidates": candidates, "clients": clients, "seconds": seconds})
    result.rows = [{"what": "whole request, CPU of the server", "CPU ms": median(alone)}]
    result.rows += [
        {"what": name, "CPU ms": spread} for name, spread in parts_of(version, bodies[0], run, repeats).items()
    ]
    found: dict[str, Any] = {
        "requests": load.requests,
        "failed": load.failed.total(),
        "wall ms p50": load.percentile(0.5),
        "wall ms p99": load.percentile(0.99),
        "CPU ms a request": cpu_ms,
        "requests/s": load.requests / load.seconds,
        "requests/s a core": 1000 / cpu_ms,
        "seconds until ready": ready,
        "resident MiB": memory.resident,
        "resident MiB without tables": memory.besides,
        "swaps taken over": taken_over,
        "versions refused": refused,
    }
    result.rows += [{"what": name, "value": value} for name, value in found.items()]
    result.more = {
        "load": found,
        "failures": dict(load.failed),
        "answered by version": {str(number): count for number, count in load.versions.items()},
        "MiB without tables, over the load": [round(each.besides, 2) for each in load.memory],
        "CPU ms one by one": alone,
    }
    result.report(json)


def _check_extras() -> None:
    missing = [extra for extra, modules in EXTRAS.items() if not all(find_spec(name) for name in modules)]
    if missing:
        raise UserError(f"benchmark serve needs the extra: pip install 'torchrec-xd[{','.join(missing)}]'")
