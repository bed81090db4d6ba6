"""Dense numbers at the scale that a schema asks for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.feature import Feature


def normalised(value_B: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    """`clip`, then `log1p`, then `mean` and `std`; NaN stays NaN."""
    if feature.clip is not None:
        value_B = np.clip(value_B, *feature.clip)
    if feature.log1p:
        value_B = np.copysign(np.log1p(np.abs(value_B)), value_B)
    if feature.mean is not None:
        value_B = value_B - feature.mean
    return value_B if feature.std is None else value_B / feature.std


def filled(null_B: NDArray[np.bool_], value_B: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    """Normalised numbers, those of null rows too: `missing`, or 0 where the schema names no such value."""
    missing = feature.missing
    fill = 0.0 if missing is None else float(normalised(np.array([missing]), feature)[0])
    return np.where(null_B, fill, normalised(value_B, feature))
