"""Small runs that stop early, and what they write into metrics.jsonl."""

import json

from torchrec_xd.config import RunConfig
from torchrec_xd.settings import validate


def config_of(schema, **content):
    return validate(
        RunConfig,
        {
            "schema": schema,
            "model": {"name": "single", "widths": [4]},
            "domains": ["post"],
            "loader": {"batch_size": 64},
            "trainer": {"epochs": 9, "patience": 2, "log_every": 1, "threads": 1},
            **content,
        },
        "test",
    )


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "rows_per_second"} for line in found]
