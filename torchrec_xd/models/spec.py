"""The declaration of a model: one `ModelSpec` in the model's own file holds all that the rest of the package needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_xd.diagnostics.diagnostic import Diagnostic
from torchrec_xd.models.model import Model
from torchrec_xd.models.transfer import Transfer
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings


@dataclass(frozen=True)
class DiagnosedRun:
    """A run whose model is to be diagnosed: what a model's own diagnostics are made from."""

    schema: Schema
    """The schema in use."""
    settings: Any
    """Of the model."""
    net: nn.Module
    """With its trained weights."""
    folder: Path
    """The run folder."""


@dataclass(frozen=True)
class ModelSpec:
    """All that the package knows of a model."""

    settings: type[Settings]
    """Its keys under `model:` in a run config; the field `name` is the model's name, with that name as its default."""
    build: Callable[..., Model]
    """`build(schema, settings, embeddings, seed)`, with a `SourceRun` as fifth argument where `init_from` names a run.
    First weights are drawn here, under the run's seed."""
    transfer: Transfer | None = None
    """What it takes from the run that `init_from` names; None where it cannot start from one."""
    auxiliary_scores: Callable[[Any], Mapping[str, str]] = lambda settings: {}
    """Of the model's settings: further scores that it gives, `<task>/<name>`, each to the task whose rows it is for."""
    diagnostics: Callable[[DiagnosedRun], list[Diagnostic]] = lambda run: []
    """Its own diagnostics, besides those that every model has."""
    report: Callable[[Schema, Any], list[Diagnostic]] = lambda schema, settings: []
    """Of schema and settings: diagnostics of scores alone, which `evaluate --report` adds to its page."""

    @property
    def name(self) -> str:
        """The model's name in configs."""
        return str(self.settings.model_fields["name"].default)
