"""`torchrec-xd prepare`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.cli.screen import name_and_path, show
from torchrec_xd.errors import UserError


def prepare(
    name: Annotated[
        str, typer.Argument(help="A recipe (YAML file), or a data set: cj_feed, cj_departments, cj_placement, world.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder. Default: data/NAME, or data/world_PRESET.")] = None,
    preset: Annotated[str | None, typer.Option(help="World: which one; a wrong name lists them.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with prepare settings.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE on top of the settings.")] = None,
    engine: Annotated[Literal["duckdb", "spark"] | None, typer.Option(help="What runs the queries.")] = None,
    encoders: Annotated[
        Path | None, typer.Option(help="Recipe: folder prepared before, whose vocabularies and numbers are used.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Recipe: run it on 10,000 rows of each input, say what is wrong, write nothing."),
    ] = False,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Recipe: NAME=PATH, files to read for an input instead.")
    ] = None,
) -> None:
    """Write a data set as Parquet, once: from your own logs by a recipe, or one of those that come with the package."""
    if name.endswith((".yaml", ".yml")):
        from torchrec_xd.prepare.api import prepare_recipe

        given = [*(assign or []), *([f"engine={engine}"] if engine else [])]
        replaced = dict(name_and_path(text) for text in inputs or [])
        if check:
            _check(Path(name), given, replaced, unused={"--out": out, "--encoders": encoders})
            return
        folder = out or Path("data") / Path(name).stem
        made = prepare_recipe(Path(name), folder, show, assignments=given, encoders=encoders, inputs=replaced)
        show(f"{folder}: {sum(split.rows for splits in made.domains.values() for split in splits.values()):,} rows")
        return
    if encoders is not None or inputs or check:
        raise UserError(f"--encoders, --check and --input belong to a recipe, and '{name}' is no YAML file")
    from torchrec_xd.datasets import PRESETS, PrepareSettings, prepare_world
    from torchrec_xd.datasets import prepare as run_prepare
    from torchrec_xd.settings import load_yaml, override, validate

    content = override(
        load_yaml(config) if config else {}, [*(assign or []), *([f"engine={engine}"] if engine else [])]
    )
    if (name == "world") != (preset is not None):
        choices = f"prepare world --preset NAME, one of: {', '.join(PRESETS)}"
        raise UserError(f"a world has a preset, and no other data set has one; {choices}")
    if preset is not None:
        prepare_world(preset, out or Path("data") / f"world_{preset}", content, show)
    else:
        settings = validate(PrepareSettings, content, str(config or "--set"))
        run_prepare(name, out or Path("data") / name, settings, show)


def _check(recipe: Path, assignments: list[str], inputs: dict[str, str], unused: dict[str, Path | None]) -> None:
    from torchrec_xd.prepare.trial import SAMPLE_ROWS, check_on_sample

    for option, value in unused.items():
        if value is not None:
            raise UserError(f"{option} has no use with --check, which learns from a sample and writes nothing")
    warnings = check_on_sample(recipe, show, assignments=assignments, inputs=inputs)
    for line in warnings:
        show(f"warning: {line} (in a sample)", "yellow")
    show(f"{recipe}: nothing is wrong in the first {SAMPLE_ROWS:,} rows of each input")
