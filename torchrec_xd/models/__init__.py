"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from torchrec_xd.models.exit import ExitSettings, build_exit
from torchrec_xd.models.mkt import TRANSFER, FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.single import SingleSettings, build_single
from torchrec_xd.models.task import TrainTask, Transfer

ModelSettings = Annotated[
    PretrainSettings | FinetuneSettings | ExitSettings | SingleSettings, Field(discriminator="name")
]


@dataclass(frozen=True)
class Model:
    """How a model is built, and what it takes from the run that `init_from` names."""

    build: Callable[..., TrainTask]
    """`build(schema, settings, embeddings, seed)`, with the source run's parts as a fifth where there is one."""
    transfer: Transfer | None = None
    views: Callable[[Any], Mapping[str, str]] = lambda settings: {}
    """Of the model's settings: further predictions of a task that it gives, their keys to the task's."""


MODELS: dict[str, Model] = {
    "mkt_pretrain": Model(build_pretrain),
    "mkt_finetune": Model(build_finetune, TRANSFER),
    "exit": Model(build_exit, views=lambda settings: {settings.alone: settings.target}),
    "single": Model(build_single),
}
