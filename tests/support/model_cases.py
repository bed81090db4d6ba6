"""Every model, small, with what it starts from: what is asked of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support import placements
from tests.support.feeds import histories_at, schema_at, write_feed, write_histories
from tests.support.kinds import with_kinds, write_kinds
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.small_models import EMBEDDINGS, JOINT, settings_of
from torchrec_xd.models import MODELS
from torchrec_xd.models.model import Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings

SINGLE = {"name": "single", "widths": [6, 5], "aligned_dim": 3}
SEARCH = {**placements.SETTINGS["sources"]["search"], "own": "click@search"}
EXIT = {
    "name": "exit",
    **placements.SETTINGS,
    "sources": {**placements.SETTINGS["sources"], "search": SEARCH},
}
HISTORIES = {"items": ["hist"], "video": ["watched"], "post": ["seen"]}


@dataclass(frozen=True)
class Case:
    """A model, the domains that it reads, and the run that it starts from."""

    model: dict
    domains: tuple[str, ...] | None = None
    source: dict | None = None
    source_domains: tuple[str, ...] | None = None


CASES = {
    "mkt_pretrain": Case(PRETRAIN),
    "mkt_pretrain, 2 levels, dropout": Case({**PRETRAIN, "levels": 2, "dropout": 0.1}),
    "mkt_pretrain, no HFA": Case({**PRETRAIN, "hfa": False, "sequence_pooling": "mean"}),
    "mkt_finetune": Case(FINETUNE, ("post",), PRETRAIN),
    "mkt_finetune, dynamic": Case({**FINETUNE, "gates": "dynamic"}, ("post",), PRETRAIN),
    "exit": Case(EXIT),
    "exit, transfer": Case({**EXIT, "transfer_on": "transfer", "ssn": False}),
    "exit, cross entropy, scenes": Case(
        {**EXIT, "transfer_on": "transfer", "transfer_error": "cross_entropy", "scene_to_towers": True}
    ),
    "exit, no ICL": Case({**EXIT, "icl": False}),
    "single": Case({"name": "single", "widths": [6, 5]}, ("post",)),
    "single, going on": Case(SINGLE, ("post",), SINGLE, ("items",)),
    **{name: Case({"name": name, "aligned_dim": 8, "tower_widths": [4], **own}) for name, own in JOINT.items()},
    "minet": Case({"name": "minet", "aligned_dim": 8, "tower_widths": [4], "widths": [8], "sequences": HISTORIES}),
    "ctnet": Case({"name": "ctnet", "widths": [7, 6]}, ("post",), {"name": "single", "widths": [6, 5]}, ("items",)),
    **{
        f"fibinet, {kernel}": Case({"name": "fibinet", "widths": [8], "bilinear": kernel}, ("post",))
        for kernel in ("all", "each", "interaction")
    },
}


def case_schemas(folder: Path, *, kinds: bool, rows: int | None = None) -> dict[str, Schema]:
    """The schemas of the models by name, with or without the further kinds of features, on data in `folder`."""
    sizes = {} if rows is None else {"rows": rows}
    home = placements.schema_at(placements.write_placements(folder / "home", **sizes))
    feed = write_histories(write_feed(folder / "feed", **sizes))
    every = (home, histories_at(feed), schema_at(feed))
    if kinds:
        write_kinds(folder)
        every = (with_kinds(home), *(with_kinds(one, specific="post") for one in every[1:]))
    return dict(zip(("exit", "minet", "others"), map(Schema.model_validate, every), strict=True))


def built(case: Case, schemas: Mapping[str, Schema]) -> tuple[ModelSpec, Settings, Schema, Model]:
    """A case's model, tables on `meta`, with its settings and its schema."""
    whole = schemas.get(case.model["name"], schemas["others"])
    schema = whole if case.domains is None else whole.only(case.domains)
    source = []
    if case.source is not None:
        taught = whole if case.source_domains is None else whole.only(case.source_domains)
        source = [SourceRun(taught, settings_of(**case.source), EMBEDDINGS)]
    own = case.model
    if "sequences" in own and "past" in schema.sequences():
        own = {**own, "sequences": {**HISTORIES, "items": ["hist", "past"]}}
    spec, settings = MODELS[own["name"]], settings_of(**own)
    torch.manual_seed(0)
    return spec, settings, schema, spec.build(schema, settings, EMBEDDINGS, 0, *source)
