"""Outputs that cannot be written: told before the work, on one screen, with exit code 2."""

import os
import resource

import pytest
import yaml

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from torchrec_xd.errors import UserError
from torchrec_xd.writable import check_output_file, check_output_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    content = {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 16},
        "trainer": {"threads": 1, "log_every": 1, "epochs": 4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command("train", folder / "run.yaml", "--run-dir", folder / "run")
    return folder


ARGUMENTS = {
    "evaluate --json": ["evaluate", "run", "--json", "FILE"],
    "evaluate --report": ["evaluate", "run", "--report", "FILE"],
    "score": ["score", "run", "feed/post/test.parquet", "--domain", "post", "--out", "FILE"],
    "diagnose": ["diagnose", "run", "--out", "FOLDER"],
    "train": ["train", "run.yaml", "--run-dir", "FOLDER"],
    "plan make": ["plan", "make", "run.yaml", "--cluster", "cpu", "--out", "FILE"],
    "plan make --html": ["plan", "make", "run.yaml", "--cluster", "cpu", "--html", "FILE"],
    "plan check": ["plan", "check", "run", "--json", "FILE"],
    "plan calibrate": ["plan", "calibrate", "FILE", "--cluster", "cpu"],
    "prepare": ["prepare", "world", "--preset", "helps", "--out", "FOLDER"],
    "config copy": ["config", "copy", "mkt_cj_pretrain", "--out", "FOLDER"],
    "benchmark": ["benchmark", "counts", "--json", "FILE"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_place_below_a_file_is_refused_at_once(folder, name, command_here):
    (folder / "file").write_text("")
    words = [word.replace("FILE", "file/x").replace("FOLDER", "file/x") for word in ARGUMENTS[name]]
    done = command_here(*words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "file" in done.stderr
    assert "name another" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""


@pytest.mark.parametrize("name", [name for name, words in ARGUMENTS.items() if "FILE" in words])
def test_a_folder_in_place_of_a_file_is_refused_at_once(folder, name, command_here):
    done = command_here(*[word.replace("FILE", "feed") for word in ARGUMENTS[name]], cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "feed is a folder; name a file in it" in done.stderr
    assert done.stdout == ""


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "popen-", "pytest-")):
            folder.chmod(0o755)  # pytest's own folders are for their owner alone
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        for place in ("theirs/x.json", "theirs/new/x.json"):
            with pytest.raises(
                UserError, match=r"--json .*x.json cannot be written: no permission to write in .*theirs;"
            ):
                check_output_file(tmp_path / place, "--json")
        with pytest.raises(UserError, match="no permission"):
            check_output_folder(tmp_path / "theirs", "--out")
    finally:
        if root:
            os.seteuid(0)
    check_output_folder(tmp_path / "new" / "folder", "--out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["score", "config copy", "prepare", "plan make"])
def test_a_name_that_is_too_long_is_refused(folder, name, command_here):
    words = [word.replace("FILE", 300 * "a").replace("FOLDER", 300 * "a") for word in ARGUMENTS[name]]
    done = command_here(*words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("bytes_left", [1_000, 6_000, 9_000, 12_000, 40_000])
def test_a_full_disk_ends_a_run_with_a_message(folder, tmp_path, bytes_left):
    """Full while the config, the log, the metrics or a checkpoint is being written."""

    def full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))

    done = command(
        "train", folder / "run.yaml", "--run-dir", tmp_path / "run", check=False, cwd=folder, preexec_fn=full_disk
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
