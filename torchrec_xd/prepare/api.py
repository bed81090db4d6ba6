"""`prepare RECIPE` as a function."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import pyarrow.parquet as pq

from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path
from torchrec_xd.prepare import encoders as learnt
from torchrec_xd.prepare import manifest, schema_file
from torchrec_xd.prepare.checks import RowCounts
from torchrec_xd.prepare.encoders import Encoders, encoders_folder, load_encoders
from torchrec_xd.prepare.engine import connect, engine_errors
from torchrec_xd.prepare.execution import Preparation, Stages, bucket_count
from torchrec_xd.prepare.features import features_of, way_of
from torchrec_xd.prepare.input_errors import input_errors
from torchrec_xd.prepare.inputs import open_inputs
from torchrec_xd.prepare.joins import check_joins
from torchrec_xd.prepare.manifest import Identity, Manifest, SplitRows
from torchrec_xd.prepare.profile.api import NAME as PROFILE
from torchrec_xd.prepare.profile.api import write_profile
from torchrec_xd.prepare.recipe_checks import check_recipe, check_same_features
from torchrec_xd.prepare.recipe_file import RecipeFile, load_recipe
from torchrec_xd.prepare.tables import Tables

PROVENANCE = "the user's own files, by a recipe: encoders/recipe.yaml"


def prepare_recipe(
    path: Path,
    out: Path,
    progress: Callable[[str], None],
    *,
    assignments: list[str] | None = None,
    encoders: Path | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a data set: `out/DOMAIN/SPLIT/*.parquet`, `schema.yaml`, `encoders/`, `profile.html`, `manifest.json`.

    `out` is complete or untouched, whatever happens meanwhile. Finished stages lie in a hidden folder next to it until
    it is complete; the same call goes on from them.

    Args:
        path: of the recipe.
        out: folder.
        progress: called with a line of text for every step.
        assignments: `KEY=VALUE` on top of the recipe.
        encoders: folder of a data set that was prepared before: what it learnt is used, and nothing is learnt.
        inputs: input to the files that are read instead of the recipe's.

    Raises:
        UserError: something is wrong with the recipe, the inputs or the engine; names the line of the recipe.
    """
    local_path(out, "--out")
    file = load_recipe(path, assignments)
    check_recipe(file)
    given = (load_encoders(encoders), encoders_folder(encoders)) if encoders is not None else None
    if given is not None:
        check_same_features(file, load_recipe(given[1] / learnt.RECIPE))
    stages = Stages(out.parent / f".{out.name}.unfinished", progress)
    with engine_errors():
        tables = Tables(connect(file.recipe.engine, spill=stages.folder / "spill"), in_order=False)
        found = open_inputs(tables, file, inputs or {})
        files = [Path(each) for paths in found.values() for each in paths]
        identity = _identity(file, found, given)
        old = manifest.reusable(out, identity)
        if old is not None:
            progress(f"{out}: prepared before, from the same files with the same recipe; reused")
            return old
        _keep_stages_of(identity, stages.folder)
        run = Preparation(tables, file, stages, bucket_count(sum(each.stat().st_size for each in files)))
        with input_errors(file, found), manifest.replaced(out) as folder:
            check_joins(tables, file)
            used, counts = run.run(folder, given)
            if given is not None:
                _say_unseen(tables, file, folder, progress)
            shutil.copytree(given[1] if given else stages.folder / "encoders", folder / learnt.FOLDER)
            schema_file.write_schema(file.recipe, used, str(out), folder / schema_file.NAME)
            schema = schema_file.resolved(file.recipe, used, str(folder))
            calendar = file.recipe.calendar_features()
            page = folder / PROFILE
            write_profile(schema, page, progress, calendar=calendar, engine=file.recipe.engine, check=False)
            made = _manifest(file, identity, used, counts, folder)
            (folder / manifest.NAME).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    shutil.rmtree(stages.folder)
    return made


def _say_unseen(tables: Tables, file: RecipeFile, folder: Path, progress: Callable[[str], None]) -> None:
    """Which share of the ids has no row of its own in the vocabularies that were given."""
    for name in file.recipe.domains:
        ids = [f.column for f in features_of(file.recipe, name) if f.kind == "id" and way_of(f) == "vocabulary"]
        if ids and (folder / name).is_dir():
            rows = tables.parquet(folder / name)
            shares = rows.agg(**{column: (rows[column] == 0).cast("float64").mean() for column in ids})
            for column, share in tables.arrow(shares).to_pylist()[0].items():
                progress(f"{name}: {share:.1%} of '{column}' have no row of their own (new, rare or missing)")


def _identity(file: RecipeFile, found: Mapping[str, list[str]], given: tuple[Encoders, Path] | None) -> Identity:
    inputs = {}
    for path in (Path(each) for paths in found.values() for each in paths):
        stat = path.stat()
        changed = datetime.fromtimestamp(stat.st_mtime, timezone.utc).isoformat()
        inputs[str(path)] = f"{stat.st_size} bytes, changed {changed}"
    settings = {"recipe": file.recipe.model_dump_json(exclude={"engine"})}
    if given is not None:
        settings["encoders"] = given[0].model_dump_json()
    return Identity(data_set=file.recipe.name, settings=settings, inputs=inputs, code=manifest.code())


def _keep_stages_of(identity: Identity, folder: Path) -> None:
    """Stages of another recipe, other files or another version are removed."""
    mark = folder / "identity.json"
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == identity.model_dump_json()):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(identity.model_dump_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder") from None


def _manifest(
    file: RecipeFile, identity: Identity, used: Encoders, counts: Mapping[str, Mapping[str, RowCounts]], folder: Path
) -> Manifest:
    domains: dict[str, dict[str, SplitRows]] = {}
    for name, splits in counts.items():
        domains[name] = {}
        for split, count in splits.items():
            paths = sorted((folder / name / split).rglob("*.parquet"))
            rows = {path.relative_to(folder).as_posix(): pq.read_metadata(path).num_rows for path in paths}
            assert sum(rows.values()) == count.rows, (name, split, sum(rows.values()), count.rows)
            domains[name][split] = SplitRows(
                rows=count.rows, positives=sum(count.positives.values()), files=rows, labels=count.positives
            )
    learnt_files = (f"{learnt.FOLDER}/{path.name}" for path in (folder / learnt.FOLDER).iterdir())
    reports = [schema_file.NAME, PROFILE, *learnt_files]
    shares = {name: domain.keep_negatives for name, domain in file.recipe.domains.items() if domain.keep_negatives < 1}
    return Manifest(
        identity=identity,
        provenance=PROVENANCE,
        notes=(),
        dropped={},
        sampling={f"rows of {name} without a positive label": share for name, share in shares.items()},
        cardinalities={table: vocabulary.rows - 1 for table, vocabulary in used.tables.items()},
        domains=domains,
        reports=tuple(sorted(reports)),
        versions=manifest.versions(file.recipe.engine.engine),
    )
