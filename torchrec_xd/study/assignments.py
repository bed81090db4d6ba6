"""Settings that a study assigns to its runs, and those that its command line assigns on top."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from torchrec_xd.errors import UserError

Assignments = tuple[str, ...]
"""`a.b=VALUE` on top of a config, as with `--set`."""


def _never_written(assign: Assignments) -> Assignments:
    if assign:
        raise ValueError("it is never written, `--set` of the command line is what gives it; write set: [a.b=VALUE, …]")
    return assign


OnTop = Annotated[Assignments, AfterValidator(_never_written)]
"""What the command line assigns; no file does."""


def given_on_top(assign: Iterable[str]) -> Assignments:
    """The assignments of a command line.

    Raises:
        UserError: one is of what a study decides for each of its runs.
    """
    given = tuple(assign)
    for each in given:
        if each.partition("=")[0] in ("seed", "init_from"):
            raise UserError(
                f"--set {each}: every run has a seed of its own (0, 1, …: --seeds) and starts from the run of its "
                "parent; leave it out"
            )
    return given
