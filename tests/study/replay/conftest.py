"""A history of five slices of a small feed, whose users grow, replayed once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from torchrec_xd.study.replay import replaying
from torchrec_xd.study.replay.replaying import replay

DATES = ("1", "2", "3", "9", "10")
"""Numbers, not in the order of text."""
DOMAINS = ("items", "video", "post")
CONFIGS = {
    "single": {"model": {"name": "single", "widths": [8, 4]}, "domains": ["post"]},
    "stage1": {"model": PRETRAIN},
    "stage2": {"model": FINETUNE, "domains": ["post"], "init_from": "somewhere/else"},
}
REPLAY = {
    "schema": "schema.yaml",
    "slices": {domain: f"{domain}/day=*" for domain in DOMAINS},
    "warm_up": 2,
    "policies": ["never", "scratch", "incremental", "incremental_without_growth", "incremental_without_state"],
    "grows": ["user"],
    "seeds": 1,
    "samples": 400,
    "models": {
        "single": {"config": "single.yaml"},
        "stage1": {"config": "stage1.yaml", "shown": False},
        "stage2": {"config": "stage2.yaml", "parent": "stage1"},
    },
}


def write_history(folder):
    """Slices, schema, configs, and the replay."""
    for number, date in enumerate(DATES):
        feed = write_feed(folder / "whole" / date, rows=72, seed=number)
        for domain in DOMAINS:
            table = pq.read_table(feed / domain / "train.parquet")
            users = table["user"].to_numpy() % (20 + 4 * number)  # users are born
            table = table.set_column(table.column_names.index("user"), "user", pa.array(users))
            path = folder / "feed" / domain / f"day={date}" / "part.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(table, path)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema_at(folder / "feed"), sort_keys=False))
    for name, content in CONFIGS.items():
        common = {
            "schema": "schema.yaml",
            "loader": {"batch_size": 32},
            "optimizer": {"tables": {"lr": 0.2}, "dense": {"lr": 0.01}},
            "trainer": {"threads": 1},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **content}, sort_keys=False))
    return write_replay(folder)


def write_replay(folder, change=None, name="replay"):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**REPLAY, **(change or {})}, sort_keys=False))
    return path


def in_process(take, finish, *, workers, logs):
    """In place of a pool of processes."""
    while (job := take()) is not None:
        job.run()
        finish(job, None)


@pytest.fixture(scope="package")
def history(tmp_path_factory):
    """Folder of the replay's file and of `out`."""
    folder = tmp_path_factory.mktemp("history")
    path = write_history(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaying, "work", in_process)
        assert replay(path, folder / "out") == {}
    return folder


def rows_of(folder, domain, date):
    """Columns of a slice as NumPy arrays: user, click."""
    table = pq.read_table(folder / "feed" / domain / f"day={date}" / "part.parquet")
    return table["user"].to_numpy(), table["click"].to_numpy().astype(np.float64)
