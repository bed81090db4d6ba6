"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from torchrec_xd.models.mkt import TRANSFER, FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.single import SingleSettings, build_single
from torchrec_xd.models.task import TrainTask, Transfer

ModelSettings = Annotated[PretrainSettings | FinetuneSettings | SingleSettings, Field(discriminator="name")]


@dataclass(frozen=True)
class Model:
    """How a model is built, and what it takes from the run that `init_from` names."""

    build: Callable[..., TrainTask]
    """`build(schema, settings, embeddings, seed)`, with the source run's parts as a fifth where there is one."""
    transfer: Transfer | None = None


MODELS: dict[str, Model] = {
    "mkt_pretrain": Model(build_pretrain),
    "mkt_finetune": Model(build_finetune, TRANSFER),
    "single": Model(build_single),
}
