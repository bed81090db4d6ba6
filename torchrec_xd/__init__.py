"""Cross-domain recommendation models on sharded embedding tables.

The names below are the public Python API; all of them are typed and documented. They are imported at first use, so that
`import torchrec_xd` itself takes no time and changes nothing in the process.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec_xd.config import RunConfig, load_config
    from torchrec_xd.data.schema_files import load_schema
    from torchrec_xd.errors import InterruptedRunError, OutageError, UserError
    from torchrec_xd.models.model import CrossEntropy, Model
    from torchrec_xd.models.spec import ModelSpec
    from torchrec_xd.outputs import Losses, Output, Predictions
    from torchrec_xd.schema import Schema
    from torchrec_xd.settings import Settings
    from torchrec_xd.study.comparison import compare
    from torchrec_xd.study.replay.replaying import replay
    from torchrec_xd.training.diagnosis import diagnose
    from torchrec_xd.training.inference import evaluate, load_model, predict, score
    from torchrec_xd.training.train_run import train
    from torchrec_xd.training.workload import plan

__all__ = [
    "CrossEntropy",
    "InterruptedRunError",
    "Losses",
    "Model",
    "ModelSpec",
    "OutageError",
    "Output",
    "Predictions",
    "RunConfig",
    "Schema",
    "Settings",
    "UserError",
    "__version__",
    "compare",
    "diagnose",
    "evaluate",
    "load_config",
    "load_model",
    "load_schema",
    "plan",
    "predict",
    "replay",
    "score",
    "train",
]

__version__ = _version("torchrec-xd")

_HOMES = {
    "CrossEntropy": "models.model",
    "InterruptedRunError": "errors",
    "Losses": "outputs",
    "Model": "models.model",
    "ModelSpec": "models.spec",
    "OutageError": "errors",
    "Output": "outputs",
    "Predictions": "outputs",
    "RunConfig": "config",
    "Schema": "schema",
    "Settings": "settings",
    "UserError": "errors",
    "compare": "study.comparison",
    "diagnose": "training.diagnosis",
    "evaluate": "training.inference",
    "load_config": "config",
    "load_model": "training.inference",
    "load_schema": "data.schema_files",
    "plan": "training.workload",
    "predict": "training.inference",
    "replay": "study.replay.replaying",
    "score": "training.inference",
    "train": "training.train_run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'torchrec_xd' has no attribute '{name}'; its public names are {__all__}")
    return getattr(import_module(f"torchrec_xd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
