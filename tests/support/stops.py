"""Runs that are asked to stop, or that die, in a given step."""

import signal

import pytest

from torchrec_xd.errors import InterruptedRunError
from torchrec_xd.training import trainer
from torchrec_xd.training.train_run import train


class KilledError(Exception):
    """What a process that dies has no time to say."""


def train_until(step, monkeypatch, config, run, how="stop"):
    """Train until a step, in which the run is asked to stop (SIGTERM), or before which it dies without a word.

    Returns:
        What the run said in the end.
    """
    own, begun = trainer.forward, []

    def counted(training, batch):
        begun.append(1)
        if len(begun) == step:
            if how == "die":
                raise KilledError
            signal.raise_signal(signal.SIGTERM)
        return own(training, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward", counted)
        with pytest.raises(KilledError if how == "die" else InterruptedRunError) as error:
            train(config, run)
    return str(error.value)
