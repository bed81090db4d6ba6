"""The settings of `prepare`."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from torchrec_xd.datasets.interest_labels.labels import LabelSettings
from torchrec_xd.prepare.engine_settings import FileSettings


class PrepareSettings(FileSettings):
    """How a data set of the Complete Journey is prepared."""

    negatives: PositiveInt | None = None
    """One in this many unbought products is kept, and weighs as many. Default: each data set has its own number."""
    labels: LabelSettings = LabelSettings()
    """Interest labels of `cj_placement`; its times are weeks."""

    def meaning(self) -> dict[str, Any]:
        """The settings that decide the content of every file."""
        return self.model_dump(mode="json", include={"seed", "negatives", "part_rows", "labels"})
