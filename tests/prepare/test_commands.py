"""Preparation as commands: they start without torch, whose import takes five seconds, and end with one screen."""

import subprocess
import sys

import yaml

from tests.support.raw_shop import goods, recipe, write_shop

SCRIPT = """
import sys
from typer.testing import CliRunner
from torchrec_xd.cli.app import app
for command in sys.argv[1:]:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, (command, result.output, result.exception)
    print(command.split()[0], "torch" in sys.modules)
"""


def test_preparation_does_not_import_torch(tmp_path):
    lines = [f"{i % 7},{i * i % 11},2024-05-{1 + i % 28:02},{i % 3 % 2}" for i in range(600)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,time,clicked", *lines]), encoding="utf-8")
    commands = [
        "init log=log.csv --out recipe.yaml",
        "prepare recipe.yaml --check",
        "prepare recipe.yaml --out data",
        "profile data --out page.html",
    ]
    script = [sys.executable, "-c", SCRIPT, *commands]
    ran = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stdout.split() == ["init", "False", "prepare", "False", "prepare", "False", "profile", "False"], (
        ran.stderr
    )


def test_bad_input_ends_with_code_2_and_one_screen(tmp_path):
    content = recipe(write_shop(tmp_path / "shop"), goods("item"))
    content["domains"]["goods"]["user"] = "user"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "torchrec_xd.cli", "prepare", "recipe.yaml", "--out", "data"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    said = ended.stdout + ended.stderr
    assert "'user' is not a column of 'views'" in said
    assert "Traceback" not in said
    assert said.count("\n") < 20
    assert not (tmp_path / "data").exists()
