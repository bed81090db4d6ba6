"""`torchrec-xd init`: looks at files and writes a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrec_xd.atomic_write import write_text
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init.document import Document
from torchrec_xd.prepare.init.draft import draft_recipe
from torchrec_xd.prepare.init.files import find
from torchrec_xd.prepare.init.layouts import Layout, known_set
from torchrec_xd.prepare.init.sample import sample
from torchrec_xd.prepare.recipe import Recipe
from torchrec_xd.writable import check_output_file

__all__ = ["Layout", "init_recipe"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def init_recipe(
    inputs: Sequence[str], out: Path, show: Callable[[str], None], force: bool = False, layout: Layout | None = None
) -> None:
    """Look at files, and write a recipe for them.

    Args:
        inputs: `NAME=PATH` each; with a layout also the PATH alone.
        out: the recipe, a YAML file.
        show: prints a line.
        force: write over an existing file.
        layout: of a known data set.

    Raises:
        UserError: an input that cannot be read or is no table of interactions; or `out` exists.
    """
    _check_out(out, force)
    if layout is None:
        made = draft_recipe(safe_name(out), [sample(find(name, path)) for name, path in _named(inputs).items()])
    else:
        named = _named([each if "=" in each else f"{_name_of(each)}={each}" for each in inputs])
        found = known_set(layout, named)
        made = draft_recipe(safe_name(out), [sample(known.files) for known in found.inputs], found.inputs)
        made.content |= found.settings
        made.comments[("name",)] = found.notes
    options = "" if layout is None else f" --format {layout}"
    finish(made, f"{' '.join(map(shlex.quote, inputs))}{options}", out, show)


def finish(made: Document, given: str, out: Path, show: Callable[[str], None]) -> None:
    """Check a recipe, write it and say what to do next."""
    recipe = Recipe.model_validate(made.content)  # what `init` writes, `prepare` reads
    head = [
        f"Made by: torchrec-xd init {given} --out {shlex.quote(str(out))}",
        "These are guesses from a sample: check them, and answer or delete each QUESTION.",
    ]
    made.comments[("name",)] = [*head, *made.comments.get(("name",), [])]
    write_text(out, made.text())
    for name, domain in recipe.domains.items():
        show(f"{name}: {domain.role}, user {domain.user}, time {domain.time}, labels {', '.join(domain.labels)}")
    show(
        f"{out}: {len(recipe.features)} features, {made.questions} questions (lines with QUESTION); read it, then run:"
    )
    show(f"    torchrec-xd prepare {out} --out data/{recipe.name}")


def safe_name(out: Path) -> str:
    """A data set's name, from the recipe's file name."""
    return re.sub(r"\W+", "_", out.name.partition(".")[0]) or "data"


def _name_of(path: str) -> str:
    """A domain's name, from the path of its data set."""
    return re.sub(r"\W+", "_", Path(path).name.partition(".")[0]).strip("_0123456789") or "log"


def _check_out(out: Path, force: bool) -> None:
    check_output_file(out, "--out")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists; name another file, or write over it with --force")


def _named(inputs: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for each in inputs:
        name, equals, path = each.partition("=")
        if not equals or not path or not _NAME.fullmatch(name):
            raise UserError(
                f"'{each}': an input is NAME=PATH, as clicks=logs/clicks.parquet; a name has letters, digits and "
                "underscores, and begins with a letter"
            )
        if name.lower() in {other.lower() for other in named}:
            raise UserError(f"'{each}': a second input of the name '{name}'; give each its own")
        named[name] = path
    return named
