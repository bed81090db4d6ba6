"""What does not need torch starts without it: importing it takes five seconds."""

import subprocess
import sys

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
