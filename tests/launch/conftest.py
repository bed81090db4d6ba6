"""A small feed with the configs of both stages of MKT, and `torchx run` on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN

ROOT = Path(__file__).parents[2]
STAGES = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
}


@pytest.fixture(scope="session")
def feed(tmp_path_factory):
    """A folder with feed/, pretrain.yaml and finetune.yaml."""
    folder = tmp_path_factory.mktemp("feed")
    write_feed(folder / "feed")
    for stage, model in STAGES.items():
        content = {
            "schema": schema_at(folder / "feed"),
            "model": model,
            "loader": {"batch_size": 128},
            "trainer": {"epochs": 2, "log_every": 3, "threads": 1},
            **({"domains": ["post"], "init_from": "told by the component"} if stage == "finetune" else {}),
        }
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


@pytest.fixture
def torchx(tmp_path):
    """Start `torchx run` of a component on local_cwd, away from the project; returns the process."""
    binaries = Path(sys.executable).parent
    started = []

    def start(component, *arguments):
        words = [binaries / "torchx", "run", "-s", "local_cwd", f"{ROOT / 'launch' / 'components.py'}:{component}"]
        process = subprocess.Popen(
            [str(word) for word in (*words, *arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # TorchX ends its job then
        process.wait(60)
