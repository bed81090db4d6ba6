"""Every replay that is shipped is one, and its models fit its data."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.raw_journey import varied, write_raw
from tools.cj_weeks import main as cj_weeks
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.errors import UserError
from torchrec_xd.study.replay import replaying
from torchrec_xd.study.replay.replaying import replay

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {"target_rows": 100, "source_ratio": 1.0, "users": 50, "items": 30}


WORLDS = sorted(path.stem for path in (CONFIGS / "replays").glob("*.yaml") if "world:" in path.read_text())


@pytest.mark.parametrize("name", WORLDS)
def test_a_shipped_replay_begins(tmp_path, monkeypatch, name):
    left, seeds = begun(tmp_path, monkeypatch, name, world=SMALL)
    assert len(left) == seeds  # the warm-ups; nothing else can begin before
    assert [run[0] for run in left[0].runs] == ["mkt_pretrain", "mkt"]
    assert all(run[1].checkpoint.keep == 1 for run in left[0].runs)


def test_the_replay_of_real_weeks_begins(tmp_path, monkeypatch):
    data = tmp_path / "data"
    raw = write_raw(varied(3), tmp_path / "raw")
    prepare("cj_departments", data / "cj_departments", PrepareSettings(threads=1, negatives=2), len, raw=raw)
    cj_weeks(data / "cj_departments", data / "cj_weeks")
    every = [set((data / "cj_weeks" / domain).iterdir()) for domain in ("grocery", "drug_gm")]
    cj_weeks(data / "cj_departments", tmp_path / "again")
    for path in (data / "cj_weeks").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(data / "cj_weeks")).read_bytes()
    with pytest.raises(UserError, match="holds something already"):
        cj_weeks(data / "cj_departments", data / "cj_weeks")
    weeks = set.intersection(*({path.name for path in paths} for paths in every))
    assert len(weeks) > 10
    for path in set.union(*every):  # so small a shop has weeks without one department
        if path.name not in weeks:
            shutil.rmtree(path)
    left, seeds = begun(tmp_path, monkeypatch, "cj_weeks", warm_up=len(weeks) - 5)
    assert len(left) == seeds
    assert [run[0] for run in left[0].runs] == ["single", "mkt_pretrain", "mkt"]


def begun(tmp_path, monkeypatch, name, world=None, **changes):
    """The first steps of a shipped replay, and its seeds."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    path = tmp_path / "configs" / "replays" / f"{name}.yaml"
    content = {**yaml.safe_load(path.read_text()), **changes}
    if world:
        content["world"] |= world
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    left = []

    def work(take, finish, *, workers, logs):
        while (job := take()) is not None:
            left.append(job)

    monkeypatch.setattr(replaying, "work", work)
    assert replay(path, "out") == {}
    return left, content["seeds"]
