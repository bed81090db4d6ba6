"""What a run would refuse at its start is found before the first run of a study is trained."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.study.conftest import STUDY, write_study
from tests.support.feeds import SCHEMA, write_feed
from torchrec_xd.errors import UserError
from torchrec_xd.study import comparison, tuning
from torchrec_xd.study.cells import cells
from torchrec_xd.study.checks import check_cells
from torchrec_xd.study.comparison import run_study
from torchrec_xd.study.design import load_study
from torchrec_xd.study.tuning import tune


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the feed, in which nothing may be trained."""
    write_feed(tmp_path / "feed")
    for module in (comparison, tuning):
        monkeypatch.setattr(module, "work", lambda *_, **__: pytest.fail("something was trained"))
    return tmp_path


def refused(place, change=None, run=None):
    path = write_study(place, change)
    with pytest.raises(UserError) as error:
        (run or run_study)(load_study(path), path, place / "out")
    assert not list(place.glob("out/feed/*"))
    return str(error.value)


def rewrite(place, split, change):
    path = place / "feed" / "post" / f"{split}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def test_a_source_without_a_test_split_names_the_remedy(place):
    source = {"config": "single.yaml", "domains": "source", "shown": False}
    said = refused(place, {"models": {**STUDY["models"], "pre": source}})
    assert said == (
        "feed/pre: no domain that it reads (items) has a 'test' split, on which it is measured after training; name "
        "its files in the schema (domains: NAME: test: PATH), or set evaluate_on=valid or evaluate_on=train"
    )
    path = write_study(place, {"models": {**STUDY["models"], "pre": {**source, "set": ["evaluate_on=valid"]}}})
    every = cells(load_study(path), place, place / "out")
    assert check_cells(every, every) == []


def test_trackers_that_cannot_be_used_are_refused(place, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI does not say where MLflow is" in refused(place, {"set": ["trackers=[mlflow]"]})


def test_rows_that_let_nothing_be_learnt(place):
    seconds = pa.array(1_700_000_000 + np.arange(400))
    rewrite(place, "train", lambda table: table.set_column(table.column_names.index("words"), "words", seconds))
    said = refused(place)
    assert "feed/single: dense feature 'words' reaches 1.7e+09, " in said
    assert "Where all numbers lie beyond 100,000, nothing is learnt" in said


def test_what_is_compared_is_measured_on_test_rows(place):
    """Its metrics of other rows would stand next to verdicts of these."""
    models = {**STUDY["models"], "bottom": {"config": "bottom.yaml", "set": ["evaluate_on=valid"]}}
    said = refused(place, {"models": models})
    assert "bottom.yaml, as feed/bottom: evaluate_on is valid, and models are compared on test rows: leave it o" in said


def test_test_rows_are_needed_by_what_is_compared(place):
    rewrite(place, "test", lambda table: table.drop_columns("style"))
    said = refused(place)
    assert "feed/bottom: " in said
    assert "test.parquet (domain 'post'): no column 'style'" in said


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_split_is_looked_at(place, split):
    rewrite(place, split, lambda table: table.drop_columns("topic"))
    said = refused(place)
    assert f"{split}.parquet (domain 'post'): no column 'topic'" in said
    for model in ("single", "mkt", "bottom", "stage1"):
        assert f"feed/{model}: " in said
    assert len(said.splitlines()) == 4  # each fault once, not for every seed


def test_missing_files_are_missed_at_once(place):
    (place / "feed" / "post" / "valid.parquet").unlink()
    assert "valid.parquet: no Parquet file is there" in refused(place)


def test_empty_test_rows_are_refused_and_empty_validation_rows_are_warned_of(place):
    rewrite(place, "valid", lambda table: table.slice(0, 0))
    path = write_study(place, {"seeds": 1})
    every = cells(load_study(path), place, place / "out")
    assert set(check_cells(every, every)) == {
        f"feed/{model}: the valid split has no rows" for model in ("single", "mkt")
    }
    rewrite(place, "test", lambda table: table.slice(0, 0))
    said = "feed/single: the test split of domain 'post' has no rows, and models are compared on these"
    assert said in refused(place)


def test_a_file_of_two_splits_is_refused(place):
    (place / "feed" / "post" / "valid.parquet").unlink()
    (place / "feed" / "post" / "valid.parquet").symlink_to(place / "feed" / "post" / "test.parquet")
    assert "a file belongs to one split" in refused(place)


def test_a_parent_of_the_wrong_kind_is_refused(place):
    said = refused(place, {"models": {**STUDY["models"], "mkt": {"config": "stage2.yaml", "parent": "single"}}})
    assert said == "feed/mkt: its parent is a 'single'; 'mkt_finetune' starts from a run of 'mkt_pretrain'"


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ({"config": "stage2.yaml", "parent": "stage1", "set": ["without=[hour]"]}, "stage 1 was trained with feature"),
        ({"config": "single.yaml", "parent": "single", "set": ["model.widths=[8, 2]"]}, "model.widths: "),
    ],
)
def test_a_parent_of_another_schema_or_shape_is_refused(place, child, said):
    assert refused(place, {"models": {**STUDY["models"], "child": child}}).startswith(f"feed/child: {said}")


def test_what_is_finished_is_not_looked_at_again(lab, tmp_path):
    every = cells(load_study(lab), lab.parent, lab.parent / "out")
    moved = lab.parent / "feed" / "items"
    shutil.move(moved, tmp_path / "items")
    try:
        assert check_cells(every, []) == []
        with pytest.raises(UserError, match=r"feed/stage1: .*no Parquet file is there"):
            check_cells(every, every)
    finally:
        shutil.move(tmp_path / "items", moved)


def test_tune_looks_too(place):
    rewrite(place, "valid", lambda table: table.drop_columns("topic"))
    said = refused(place, run=lambda study, path, out: tune(study, path, out, 1))
    assert "valid.parquet (domain 'post'): no column 'topic'" in said


def test_tune_needs_validation_rows_of_what_trials_are_judged_by(place):
    domains = {name: dict(domain) for name, domain in SCHEMA["domains"].items()}
    del domains["post"]["valid"]
    models = {"bottom": STUDY["models"]["bottom"]}
    path = write_study(place, {"models": models, "reference": "bottom"}, schema={"domains": domains})
    with pytest.raises(UserError) as error:
        tune(load_study(path), path, place / "out", 1)
    assert str(error.value) == (
        "feed/bottom: its trials are judged by 'click@post' on the valid split, and domain 'post' has none; name its "
        "files in the schema (domains: post: valid: PATH)"
    )
