"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from torchrec_xd.models.conet import CollaborativeCrossNetworks, CoNetSettings
from torchrec_xd.models.ctnet import FROM_SOURCE, CTNetSettings, build_ctnet
from torchrec_xd.models.exit import ExitSettings, build_exit
from torchrec_xd.models.fibinet import FiBiNetSettings, build_fibinet
from torchrec_xd.models.joint import joint
from torchrec_xd.models.minet import MiNetSettings, build_minet
from torchrec_xd.models.mkt import TRANSFER, FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.mmoe import MMoESettings, MultiGateMixtureOfExperts
from torchrec_xd.models.ple import PLEModel, PLESettings
from torchrec_xd.models.shared_bottom import SharedBottom, SharedBottomSettings
from torchrec_xd.models.single import CONTINUE, SingleSettings, build_single
from torchrec_xd.models.star import StarSettings, StarTopologyAdaptiveRecommender
from torchrec_xd.models.task import TrainTask, Transfer

ModelSettings = Annotated[
    PretrainSettings
    | FinetuneSettings
    | ExitSettings
    | SingleSettings
    | SharedBottomSettings
    | MMoESettings
    | PLESettings
    | StarSettings
    | CoNetSettings
    | CTNetSettings
    | MiNetSettings
    | FiBiNetSettings,
    Field(discriminator="name"),
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
    "single": Model(build_single, CONTINUE),
    "shared_bottom": Model(joint(SharedBottom)),
    "mmoe": Model(joint(MultiGateMixtureOfExperts)),
    "ple": Model(joint(PLEModel)),
    "star": Model(joint(StarTopologyAdaptiveRecommender)),
    "conet": Model(joint(CollaborativeCrossNetworks)),
    "minet": Model(build_minet),
    "ctnet": Model(build_ctnet, FROM_SOURCE),
    "fibinet": Model(build_fibinet),
}
