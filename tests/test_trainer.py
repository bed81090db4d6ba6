"""The trainer's clock."""

from torchrec_xd import trainer
from torchrec_xd.trainer import _Stopwatch


def test_the_clock_of_steps_leaves_out_validation_and_checkpoints(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 113.0, 117.0, 127.0])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(times))
    clock = _Stopwatch(100)
    assert clock.median() is None
    # From 10 to 12: four steps of half a second.
    assert clock.lap(rows=40, step=104) == 20
    # From 12 to 117, stopped from 13 to 113: five seconds for two steps.
    with clock.stopped():
        pass
    assert clock.lap(rows=50, step=106) == 2
    # From 117 to 127: ten seconds for ten steps.
    assert clock.lap(rows=60, step=116) == 1
    assert clock.laps == [0.5, 2.5, 1.0]
    assert clock.median() == 1.0
