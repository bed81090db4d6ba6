"""The container files of launch/containers: as hadolint wants them, not run as root, and fit for what starts them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "launch" / "containers"
HADOLINT = Path(sys.executable).with_name("hadolint")
FILES = sorted(path.name for path in FOLDER.iterdir())


def last_stage(name):
    """The lines of the image that is shipped."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    begin = max(place for place, line in enumerate(lines) if line.startswith("FROM "))
    return lines[begin:]


def test_hadolint_has_nothing_to_say(tmp_path):
    done = subprocess.run([HADOLINT, *sorted(FOLDER.iterdir())], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
    (tmp_path / "Containerfile").write_text("FROM python\nRUN cd /tmp && apt-get install x\n")
    done = subprocess.run([HADOLINT, tmp_path / "Containerfile"], capture_output=True, text=True, check=False)
    assert "DL3006" in done.stdout  # an image without a version: the check checks
    assert done.returncode


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_slim_pinned_and_no_root(name):
    lines = last_stage(name)
    assert re.fullmatch(r"FROM python:3\.\d+-slim", lines[0])
    [user] = [line for line in lines if line.startswith("USER ")]
    assert user == "USER 10001"
    assert "--requirement requirements/" in (FOLDER / name).read_text(encoding="utf-8")
    assert "COPY --from=build /opt/venv /opt/venv" in lines


def test_jobs_of_torchx_are_commands_of_the_training_image():
    """AWS Batch passes a command to the image's entry point; Kubernetes takes its place."""
    assert not [line for line in last_stage("train.Containerfile") if line.startswith("ENTRYPOINT")]
    assert last_stage("serve.Containerfile")[-1] == 'ENTRYPOINT ["torchrec-xd"]'
