"""`torchrec-xd init`: what it says about files that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.raw_logs import exposures, with_columns
from tests.support.recipes import made_recipe
from torchrec_xd.cli.app import app
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init import init_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pq.write_table(exposures(300, 20), "log.parquet")
    return tmp_path


def message(*inputs: str) -> str:
    with pytest.raises(UserError) as caught:
        init_recipe(inputs, Path("shop.yaml"), lambda line: None)
    assert not Path("shop.yaml").exists()
    return str(caught.value)


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert message("log=lok.parquet") == (
        f"lok.parquet: no such file; did you mean 'log.parquet'?; in {folder} there is: log.parquet"
    )


def test_an_empty_folder(folder: Path) -> None:
    Path("logs").mkdir()
    Path("logs/_SUCCESS").touch()
    assert message("log=logs").startswith("logs: the folder holds no files; name files or folders with: .parquet, .pq")


def test_an_ending_that_is_not_known(folder: Path) -> None:
    Path("log.xlsx").touch()
    found = message("log=log.xlsx")
    assert found.startswith(
        "log.xlsx: .xlsx is the ending of no known format; endings are: .parquet, .pq, .csv, .tsv, .json"
    )


def test_a_folder_of_several_formats(folder: Path) -> None:
    pa_csv.write_csv(exposures(30, 5), "log.csv")
    assert message("log=.") == ".: holds files of several formats (csv, parquet); name a glob of one, as log='./*.csv'"


def test_a_file_that_is_no_parquet(folder: Path) -> None:
    Path("bad.parquet").write_bytes(b"no Parquet at all")
    assert "bad.parquet: cannot be read as Parquet" in message("log=bad.parquet")


def test_a_csv_that_is_none(folder: Path) -> None:
    Path("bad.csv").write_bytes(bytes(range(256)) * 20)
    found = message("log=bad.csv")
    assert found.startswith("bad.csv: cannot be read as CSV: ")
    assert found.endswith("; correct the file, or convert it to Parquet")
    assert len(found) < 500


@pytest.mark.parametrize("name", ["empty.csv", "empty.parquet", "empty.jsonl"])
def test_a_table_without_rows(folder: Path, name: str) -> None:
    if name.endswith("parquet"):
        pq.write_table(exposures(30, 5).slice(0, 0), name)
    else:
        Path(name).write_text("user_id,click\n" if name.endswith("csv") else "")
    assert message(f"log={name}") == f"{name}: has no rows; name files that have some"


def test_two_inputs_of_one_name(folder: Path) -> None:
    assert message("log=log.parquet", "LOG=log.parquet").startswith(
        "'LOG=log.parquet': a second input of the name 'LOG'"
    )


@pytest.mark.parametrize("given", ["log.parquet", "=log.parquet", "log=", "my-log=log.parquet", "1=log.parquet"])
def test_an_input_without_a_proper_name(folder: Path, given: str) -> None:
    assert message(given).startswith(f"'{given}': an input is NAME=PATH, as clicks=logs/clicks.parquet")


def test_an_existing_recipe_is_not_written_over(folder: Path) -> None:
    Path("shop.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"--out shop.yaml exists; name another file, or write over it with --force"):
        init_recipe(["log=log.parquet"], Path("shop.yaml"), lambda line: None)
    assert Path("shop.yaml").read_text() == "mine"


def test_no_user_and_no_label_say_what_is_there(folder: Path) -> None:
    table = exposures(300, 20)
    pq.write_table(table.drop_columns("user_id"), "a.parquet")
    pq.write_table(table.drop_columns("click"), "b.parquet")
    found = message("a=a.parquet", "b=b.parquet").splitlines()
    assert found[0] == (
        "a.parquet: no column looks like the user; columns are: item_id, ts, click, category, price, device, age; "
        "name it user_id (integers or texts, several rows for each user), or write the recipe by hand"
    )
    assert found[1].startswith("b.parquet: the user is user_id, but no column looks like a label; columns are: user_id")


def test_columns_that_differ_in_capitals_only(folder: Path) -> None:
    pq.write_table(with_columns(exposures(30, 5), Price=[1] * 30), "log.parquet")
    assert message("log=log.parquet") == (
        "log.parquet: column 'price' stands there twice (SQL ignores capitals); rename one"
    )


def test_files_that_differ_in_a_type(folder: Path) -> None:
    Path("logs").mkdir()
    pq.write_table(pa.table({"user_id": [1, 2]}), "logs/a.parquet")
    pq.write_table(pa.table({"user_id": ["a", "b"]}), "logs/b.parquet")
    assert message("log=logs").startswith("logs: the files do not have the same columns: ")


def test_the_command(folder: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(app, ["init", "log=log.parquet", "--out", "shop.yaml"])
    assert made.exit_code == 0, made.output
    assert "log: target, user user_id, time ts, labels click" in made.output
    assert "torchrec-xd prepare shop.yaml --out data/shop" in made.output
    again = runner.invoke(app, ["init", "log=log.parquet", "--out", "shop.yaml"])
    assert isinstance(again.exception, UserError)
    assert runner.invoke(app, ["init", "log=log.parquet", "--out", "shop.yaml", "--force"]).exit_code == 0


def test_odd_names_of_columns_are_quoted(folder: Path) -> None:
    table = with_columns(
        exposures(300, 20), **{'my "col"': ["a", "b", "c"] * 100, "order": [1, 2, 3] * 100, "a.b": [1, 2] * 150}
    )
    pq.write_table(table, "log.parquet")
    recipe, _ = made_recipe(Path("shop.yaml"), "log=log.parquet")
    values = {each.column: each.value for each in recipe.features if each.value is not None}
    assert values["my_col"] == '"my ""col"""'
    assert values["a_b"] == '"a.b"'
