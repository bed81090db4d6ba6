"""Data sets: prepared offline as Ibis expressions, or planted; and labels for any logs."""

from torchrec_xd.datasets.complete_journey.preparation import DATA_SETS, prepare
from torchrec_xd.datasets.complete_journey.settings import PrepareSettings
from torchrec_xd.datasets.interest_labels.step import LabelStepSettings, label
from torchrec_xd.datasets.planted.worlds import PRESETS, prepare_world
from torchrec_xd.prepare.manifest import Manifest

__all__ = [
    "DATA_SETS",
    "PRESETS",
    "LabelStepSettings",
    "Manifest",
    "PrepareSettings",
    "label",
    "prepare",
    "prepare_world",
]
