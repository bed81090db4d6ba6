"""Names of shipped configs: a wrong one is answered with those that look like it, not with all of them."""

import pytest
from typer.testing import CliRunner

from torchrec_xd.cli.app import app
from torchrec_xd.errors import UserError
from torchrec_xd.shipped import CONFIGS, copy_config, find_config, shipped_configs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", "no shipped config 'nope'; `torchrec-xd config list` shows all"),
        ("worlds/mkt_finetune", "did you mean 'world/mkt_finetune' or"),
        ("singel", "or 'world/single'?"),
        ("studies/world", "did you mean 'studies/worlds'"),
    ],
)
def test_the_nearest_names_are_offered(name, said):
    with pytest.raises(UserError) as error:
        find_config(name)
    assert said in str(error.value)
    assert str(error.value).endswith("`torchrec-xd config list` shows all")
    assert sum(f"'{known}'" in str(error.value) for known in shipped_configs()) <= 3


def test_what_is_offered_exists():
    assert CliRunner().invoke(app, ["config", "show", "world/single"]).exit_code == 0


def test_configs_that_are_there_already_stay(tmp_path):
    """In a clone `config copy` writes to the folder that it reads from."""
    assert CONFIGS / "world" / "single.yaml" in copy_config("world/single", CONFIGS)
    for _ in range(2):
        copied = copy_config("world/single", tmp_path)
    assert all(path.read_bytes() == (CONFIGS / path.relative_to(tmp_path)).read_bytes() for path in copied)
