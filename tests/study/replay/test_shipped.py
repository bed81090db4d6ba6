"""Every replay that is shipped is one, and its models fit its data."""

import shutil
from pathlib import Path

import pytest
import yaml

from torchrec_xd.study.replay import replaying
from torchrec_xd.study.replay.replaying import replay

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {"target_rows": 100, "source_ratio": 1.0, "users": 50, "items": 30}


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIGS / "replays").glob("*.yaml"))])
def test_a_shipped_replay_begins(tmp_path, monkeypatch, name):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    path = tmp_path / "configs" / "replays" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    content["world"] |= SMALL
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    left = []

    def work(take, finish, *, workers, logs):
        while (job := take()) is not None:
            left.append(job)

    monkeypatch.setattr(replaying, "work", work)
    assert replay(path, "out") == {}
    assert len(left) == content["seeds"]  # the warm-ups; nothing else can begin before
    assert [run[0] for run in left[0].runs] == ["mkt_pretrain", "mkt"]
    assert all(run[1].checkpoint.keep == 1 for run in left[0].runs)
