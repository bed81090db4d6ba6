"""A run knows its data: what changed between two starts is found, in resumed runs and in studies."""

import copy
import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.patient_runs import config_of
from tests.support.stops import train_until
from torchrec_xd.errors import UserError
from torchrec_xd.training.train_run import train


@pytest.fixture
def feed(tmp_path):
    """Train files in a folder, so that one can be added."""
    feed = write_feed(tmp_path / "feed")
    (feed / "post" / "train").mkdir()
    (feed / "post" / "train.parquet").rename(feed / "post" / "train" / "0.parquet")
    return feed


@pytest.fixture
def config(feed):
    schema = copy.deepcopy(schema_at(feed))
    schema["domains"]["post"]["train"] = "post/train"
    return config_of(schema, trainer={"epochs": 2, "threads": 1})


def test_a_file_that_was_added_is_named_and_can_be_accepted(config, feed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train_until(3, monkeypatch, config, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shutil.copy(feed / "post" / "train" / "0.parquet", feed / "post" / "train" / "1.parquet")
    with pytest.raises(UserError, match="data are not those") as error:
        train(config, run, resume=True)
    assert "train files of domain 'post': post/train/1.parquet was added (400 rows)" in str(error.value)
    assert "--accept-changed-data" in str(error.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    content = train(config, run, resume=True, accept_changed_data=True)
    # 3 of 7 steps are 5 of the 13 that 800 rows need: 8 are left of this epoch, and 13 of the next
    assert content["train"]["steps"] == 21
    assert content["checkpoint"] in ("step_000000011", "step_000000024")
    assert len(json.loads((run / "data.json").read_text())["train"]["post"]) == 2
    assert "post/train/1.parquet was added" in (run / "log.txt").read_text()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_labels_that_were_inverted_in_place_are_noticed(config, feed, tmp_path, monkeypatch, split):
    """Size and footer stay as they were: the same schema, page sizes, smallest and largest values."""
    run = tmp_path / "run"
    file = feed / "post" / ("train/0.parquet" if split == "train" else f"{split}.parquet")
    table = pq.read_table(file)
    at, click = table.schema.get_field_index("click"), table["click"].cast(pa.float32())
    pq.write_table(table.set_column(at, "click", click), file)
    train_until(3, monkeypatch, config, run)
    before = file.read_bytes()
    pq.write_table(table.set_column(at, "click", pc.subtract(pa.scalar(1, pa.float32()), click)), file)
    length = int.from_bytes(before[-8:-4], "little") + 8
    assert len(file.read_bytes()) == len(before)
    assert file.read_bytes()[-length:] == before[-length:]
    with pytest.raises(UserError, match=rf"{split} files of domain 'post': post/.* was written again"):
        train(config, run, resume=True)


def test_a_file_that_is_gone_is_named(config, feed, tmp_path, monkeypatch):
    shutil.copy(feed / "post" / "train" / "0.parquet", feed / "post" / "train" / "1.parquet")
    train_until(3, monkeypatch, config, tmp_path / "run")
    (feed / "post" / "train" / "0.parquet").unlink()
    with pytest.raises(UserError, match=r"post/train/0.parquet is gone \(400 rows\)"):
        train(config, tmp_path / "run", resume=True)


def test_data_that_moved_to_another_machine_are_the_same(config, feed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train_until(3, monkeypatch, config, run)
    shutil.copytree(feed, tmp_path / "copy")
    shutil.rmtree(feed)
    shutil.move(tmp_path / "copy", feed)  # other inodes, other times
    assert train(config, run, resume=True)["train"]["steps"] == 11


def test_who_starts_from_a_run_is_told_that_its_data_have_changed(config, feed, tmp_path):
    train(config, tmp_path / "source")
    shutil.copy(feed / "post" / "train" / "0.parquet", feed / "post" / "train" / "1.parquet")
    later = config.model_copy(update={"init_from": tmp_path / "source"})
    train(later, tmp_path / "run")
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"init_from: the data that {tmp_path / 'source'} was trained on have changed since" in said
    assert "post/train/1.parquet was added" in said
