"""The models, by name; models of other packages are found too.

A model of yours is a `ModelSpec` in your own package. A config names it as `package.module:ATTRIBUTE`, or by the name
under which your package registers it in the entry point group `torchrec_xd.models` (docs/add_a_model.md).
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from torchrec_xd.errors import UserError
from torchrec_xd.models.conet import CONET
from torchrec_xd.models.ctnet import CTNET
from torchrec_xd.models.exit import EXIT
from torchrec_xd.models.fibinet import FIBINET
from torchrec_xd.models.minet import MINET
from torchrec_xd.models.mkt import FINETUNE, PRETRAIN
from torchrec_xd.models.mmoe import MMOE
from torchrec_xd.models.ple import PLE
from torchrec_xd.models.shared_bottom import SHARED_BOTTOM
from torchrec_xd.models.single import SINGLE
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.star import STAR

SPECS = (PRETRAIN, FINETUNE, EXIT, SINGLE, SHARED_BOTTOM, MMOE, PLE, STAR, CONET, MINET, CTNET, FIBINET)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in SPECS}
"""The models of this package."""
ENTRY_POINTS = "torchrec_xd.models"
"""Group in which other packages register theirs."""


@cache
def find_model(name: str) -> ModelSpec:
    """The model that a config names.

    Raises:
        UserError: no model has this name, or what it refers to cannot be imported or is no ModelSpec.
    """
    if name in MODELS:
        return MODELS[name]
    registered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    reference = registered.get(name, name)
    module, colon, attribute = reference.partition(":")
    if not colon:
        known = ", ".join([*MODELS, *registered])
        raise UserError(f"unknown model '{name}'; models are: {known}; or name your own: package.module:ATTRIBUTE")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model '{name}': {reference} cannot be imported: {error}; is the package installed, or on PYTHONPATH?"
        ) from error
    if not isinstance(found, ModelSpec):
        raise UserError(f"model '{name}': {reference} is a {type(found).__name__}, and has to be a ModelSpec")
    return found
