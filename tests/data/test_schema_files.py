"""Schema files whose tables have as many rows as a vocabulary says."""

import copy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.feeds import SCHEMA
from torchrec_xd.config import load_config, load_run
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder

VOCABULARY = pa.table({"value": ["a", "b", "c"], "row": [1, 2, 3], "count": [9, 5, 5]})


def write(folder: Path, rows: object = "encoders/item.parquet", **changes: object) -> Path:
    """A feed's schema, whose items have the rows of a vocabulary of three values."""
    (folder / "encoders").mkdir(exist_ok=True)
    pq.write_table(VOCABULARY, folder / "encoders" / "item.parquet")
    content = {**copy.deepcopy(SCHEMA), "root": str(folder), **changes}
    for feature in content["features"]:
        if feature.get("table") == "item" or feature["column"] == "item":
            feature["rows"] = rows
    (folder / "schema.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "schema.yaml"


def test_rows_are_those_of_the_vocabulary_and_one_for_all_other_values(tmp_path):
    found = load_schema(write(tmp_path))
    assert {f.column: f.rows for f in found.features if f.column in ("hist", "item")} == {"hist": 4, "item": 4}
    assert found.fingerprint() == load_schema(write(tmp_path, rows=4)).fingerprint()
    assert found == load_schema(write(tmp_path, rows=4))


def test_a_run_keeps_the_number(tmp_path):
    write(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"schema": "schema.yaml", "model": {"name": "mmoe"}}))
    config = load_config(tmp_path / "run.yaml")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(config.dump())
    (tmp_path / "encoders" / "item.parquet").unlink()
    assert load_run(folder.path).data_schema.tables()[1].rows == 4


def test_root_may_be_given_on_the_command_line(tmp_path):
    path = write(tmp_path, root="nowhere")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"schema": "schema.yaml", "model": {"name": "mmoe"}}))
    with pytest.raises(UserError, match=r"schema\.yaml: feature 'hist': rows: .*nowhere/encoders/item\.parquet: no "):
        load_config(tmp_path / "run.yaml")
    config = load_config(tmp_path / "run.yaml", [f"schema.root={tmp_path}"])
    assert config.data_schema.tables()[1].rows == 4
    assert path.read_text().count("encoders/item.parquet") == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "no Parquet file is there; did you mean 'item.parquet'?"),
        (pa.table({"id": [1]}), "is no vocabulary: it has no column 'value', only id; name a file from encoders/, or"),
        ("text", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, table, said):
    path = write(tmp_path, rows="encoders/items.parquet")
    file = tmp_path / "encoders" / "items.parquet"
    if isinstance(table, str):
        file.write_text(table)
    elif table is not None:
        pq.write_table(table, file)
    with pytest.raises(UserError) as error:
        load_schema(path)
    assert str(error.value).startswith(f"{path}: feature 'hist': rows: {file}")
    assert said in str(error.value)


@pytest.mark.parametrize("changes", [{"features": "many"}, {"features": ["many"]}, {"root": 3}, {"rows": "many"}])
def test_what_is_no_path_is_left_for_the_schema_to_judge(tmp_path, changes):
    with pytest.raises(UserError, match=r"features|root"):
        load_schema(write(tmp_path, **changes) if "features" not in changes else plain(tmp_path, changes))


def plain(folder, changes):
    (folder / "schema.yaml").write_text(yaml.safe_dump({**SCHEMA, **changes}))
    return folder / "schema.yaml"
