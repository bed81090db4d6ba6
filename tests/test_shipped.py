"""Names of shipped configs: a wrong one is answered with those that look like it, not with all of them."""

import pytest
from typer.testing import CliRunner

from torchrec_xd.cli.app import app
from torchrec_xd.errors import UserError
from torchrec_xd.shipped import find_config, shipped_configs


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
