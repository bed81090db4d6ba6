"""`prepare RECIPE --check`: the whole recipe on the first rows of every input, and what becomes of their values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchrec_xd.prepare.assembly import Assembler, rows_of
from torchrec_xd.prepare.checks import RowCounts, day
from torchrec_xd.prepare.encoders import Encoders
from torchrec_xd.prepare.engine import connect, engine_errors
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.execution import Preparation, Stages
from torchrec_xd.prepare.features import features_of, is_read, way_of
from torchrec_xd.prepare.input_errors import input_errors
from torchrec_xd.prepare.inputs import open_inputs
from torchrec_xd.prepare.joins import check_joins
from torchrec_xd.prepare.recipe import Recipe, RecipeFeature, Split
from torchrec_xd.prepare.recipe_checks import check_recipe
from torchrec_xd.prepare.recipe_file import load_recipe
from torchrec_xd.prepare.tables import Tables

SAMPLE_ROWS = 10_000
"""Of every input."""
_EXAMPLES, _LOOKED_AT, _WIDTH = 3, 200, 32


def check_on_sample(
    path: Path,
    show: Callable[[str], None],
    *,
    assignments: list[str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> list[str]:
    """Run a recipe on the first `SAMPLE_ROWS` rows of every input, on DuckDB, and write nothing.

    The sample is split by each user's last rows, and values need to occur once: it has neither all moments nor all
    values.

    Args:
        path: of the recipe.
        show: called with each line of the report.
        assignments: `KEY=VALUE` on top of the recipe.
        inputs: input to the files that are read instead of the recipe's.

    Returns:
        What is doubtful in the sample and may be right in all rows.

    Raises:
        UserError: what a run would raise, as far as these rows show it.
    """
    file = load_recipe(path, assignments)
    check_recipe(file)
    warnings: list[str] = []
    file = replace(file, recipe=_for_sample(file.recipe), warnings=warnings)
    with tempfile.TemporaryDirectory() as place, engine_errors():
        tables = Tables(connect(file.recipe.engine, spill=Path(place, "spill")))
        found = open_inputs(tables, file, inputs or {}, sample=SAMPLE_ROWS)
        with input_errors(file, found):
            check_joins(tables, file)
            stages = Stages(Path(place, "stages"), lambda _line: None)
            encoders, counts = Preparation(tables, file, stages, buckets=1).run(Path(place, "out"))
            for name, paths in found.items():
                table = tables.connection.table(name)
                columns = ", ".join(f"{column} {kind}" for column, kind in table.schema().items())
                show(f"input {name} ({len(paths)} {'file' if len(paths) == 1 else 'files'}): {columns}")
            for name in file.recipe.domains:
                for line in _report(tables, file.recipe, name, encoders, counts[name], stages.folder):
                    show(line)
    return warnings


def _for_sample(recipe: Recipe) -> Recipe:
    split = Split(last_share={"valid": 0.2, "test": 0.2}) if recipe.split.valid is not None else recipe.split
    features = tuple(
        each.model_copy(update={"vocabulary": each.vocabulary.model_copy(update={"min_count": 1})})
        if each.vocabulary
        else each
        for each in recipe.features
    )
    engine = recipe.engine if recipe.engine.engine == "duckdb" else EngineSettings()
    return recipe.model_copy(update={"split": split, "features": features, "engine": engine})


def _report(
    tables: Tables, recipe: Recipe, domain: str, encoders: Encoders, counts: Mapping[str, RowCounts], folder: Path
) -> Iterator[str]:
    """Rows and labels of a domain, then a line for each feature: how, and what raw values become."""
    rows = sum(each.rows for each in counts.values())
    first, last = min(each.first for each in counts.values()), max(each.last for each in counts.values())
    times = f", {day(first)} to {day(last)}" if recipe.domains[domain].time else ""
    yield f"domain {domain} ({recipe.domains[domain].role}): {rows:,} rows of the sample{times}"
    for label in recipe.domains[domain].labels:
        known = sum(each.known[label] for each in counts.values())
        positives = sum(each.positives[label] for each in counts.values())
        yield f"  label {label}: {positives:,} of {known:,} positive"
    words = {name: tables.parquet(folder / "encoders" / each.file) for name, each in encoders.tables.items()}
    assemble = Assembler(tables, recipe, encoders, words)
    joined, written = assemble(
        domain, tables.parquet(folder / "rows" / domain), lambda name: tables.parquet(folder / "events" / name), []
    )
    own = features_of(recipe, domain)
    raw = {
        f"raw_{each.column}": joined[f"v_{each.column}" if is_read(each) else f"t_{each.column}"]
        for each in own
        if is_read(each) or each.total is not None
    }
    new = {f"new_{name}": value for name, value in written.items()}
    some = joined.select("_order", "_row", **raw, **new).order_by("_order", "_row").limit(_LOOKED_AT)
    found = some.to_pyarrow().to_pydict()
    for each in own:
        values = found[f"new_{each.column}"]
        pairs = list(zip(found.get(f"raw_{each.column}", [None] * len(values)), values, strict=True))
        yield f"  {each.column}: {each.kind}, {_how(each, encoders)}: {_examples(pairs, f'raw_{each.column}' in found)}"


def _how(feature: RecipeFeature, encoders: Encoders) -> str:
    source = "history" if feature.history else f"total {feature.total.what}" if feature.total else ""
    if feature.kind == "vector":
        how = f"{feature.length} numbers"
    elif feature.kind == "dense":
        how = (
            ", ".join(key for key in ("clip", "log1p", "standard", "indicator") if getattr(feature, key)) or "as it is"
        )
    else:
        how = f"{way_of(feature)} of {rows_of(feature, encoders):,} rows"
    return f"{source}, {how}" if source else how


def _examples(pairs: list[tuple[Any, Any]], has_raw: bool) -> str:
    """A few different values, the empty ones last."""
    shown: dict[str, str] = {}
    for raw, new in sorted(pairs, key=lambda pair: pair[1] in (None, [], 0) or (has_raw and pair[0] is None)):
        shown.setdefault(_short(raw if has_raw else new), f"{_short(raw)} → {_short(new)}" if has_raw else _short(new))
    return "; ".join(list(shown.values())[:_EXAMPLES])


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"
