"""Two commands never write into one folder: the second is refused before it trains anything."""

import pytest

from tests.study.replay.conftest import write_history
from tests.support.held_folders import held
from torchrec_xd.errors import UserError
from torchrec_xd.study.comparison import compare
from torchrec_xd.study.design import load_study
from torchrec_xd.study.replay.replaying import replay
from torchrec_xd.study.tuning import tune


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return write_history(tmp_path_factory.mktemp("history"))


@pytest.mark.parametrize("command", ["compare", "tune", "replay"])
def test_a_second_command_on_a_folder_is_refused(command, lab, history, tmp_path):
    commands = {
        "compare": lambda: compare(lab, tmp_path),
        "tune": lambda: tune(load_study(lab), lab, tmp_path, 1),
        "replay": lambda: replay(history, tmp_path),
    }
    with held(tmp_path) as holder, pytest.raises(UserError, match=f"^--out .* is in use by process {holder.pid} on "):
        commands[command]()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
