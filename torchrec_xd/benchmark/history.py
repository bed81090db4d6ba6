"""`history`: a result against an earlier one, and what got slower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_xd.benchmark.measure import Json, Result
from torchrec_xd.errors import UserError


def history(
    new: Annotated[Path, typer.Argument(help="A result's JSON file.")],
    against: Annotated[Path, typer.Option(help="An earlier one, of the same benchmark and settings.")],
    tolerance: Annotated[float, typer.Option(help="Timings may be worse by this share, counts by nothing.")] = 0.1,
    out: Json = None,
) -> None:
    """Compare a result with a stored one; exit code 1 if anything got slower."""
    here, there = read_result(new), read_result(against)
    if here["benchmark"] != there["benchmark"]:
        kinds = f"{here['benchmark']} and {there['benchmark']}"
        raise UserError(f"{new} and {against} are of different benchmarks ({kinds}): compare like with like")
    slower = list(compare(here, there, tolerance))
    result = Result("history", {"new": str(new), "against": str(against)}, slower, {"slower": slower})
    result.report(out)
    if slower:
        raise typer.Exit(1)


def compare(new: dict[str, Any], old: dict[str, Any], tolerance: float) -> Iterator[dict[str, Any]]:
    """What got worse: counts that grew; medians that are worse by more than `tolerance`, spreads apart."""
    for name, count in new.get("counts", {}).items():
        before = old.get("counts", {}).get(name)
        if before is not None and count > before:
            yield {"what": name, "before": str(before), "now": str(count)}
    earlier = {_name(row): row for row in old["rows"]}
    for row in new["rows"]:
        for key, value in row.items():
            before = earlier.get(_name(row), {}).get(key)
            if isinstance(value, dict) and isinstance(before, dict) and key in ("ms", "rows/s"):
                worse = value["median"] / before["median"] if key == "ms" else before["median"] / value["median"]
                apart = value["low"] > before["high"] if key == "ms" else value["high"] < before["low"]
                if worse > 1 + tolerance and apart:
                    yield {
                        "what": f"{_name(row)}, {key}",
                        "before": f"{before['median']:,.4g}",
                        "now": f"{value['median']:,.4g}",
                    }


def _name(row: dict[str, Any]) -> str:
    return row.get("what") or ", ".join(value for value in row.values() if isinstance(value, str))


def read_result(path: Path) -> dict[str, Any]:
    """What a benchmark wrote.

    Raises:
        UserError: the file is not there, or holds something else.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no result of a benchmark: {error}") from None
    if "benchmark" not in content or "rows" not in content:
        raise UserError(f"{path}: no result of a benchmark: it lacks 'benchmark' or 'rows'")
    return content
