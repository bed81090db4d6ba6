"""`prepare --check`: what a run would say at its end, from a sample, with nothing written."""

import os
import re
import tempfile
from datetime import timedelta

import pytest
import yaml

from tests.support.raw_shop import contents, goods, recipe, views, write_shop
from torchrec_xd.cli.prepare import prepare as command
from torchrec_xd.errors import UserError
from torchrec_xd.prepare import trial

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
FEATURES = [
    goods("item", vocabulary={"min_count": 500}),
    goods("price", "dense", log1p=True, standard=True),
    goods("tags", "bag"),
    goods("last", "sequence", group="sequence", table="item", length=3, history={"events": "shown", "value": "item"}),
    goods("seen", "dense", total={"events": "shown", "what": "count", "by": ["user"]}),
]


def check(folder, content, **options):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    lines = []
    warnings = trial.check_on_sample(folder / "recipe.yaml", lines.append, **options)
    return lines, warnings


def line_of(lines, start):
    found = [line for line in lines if line.strip().startswith(start)]
    assert len(found) == 1, lines
    return found[0]


def test_it_shows_what_values_become_and_writes_nothing(tmp_path, monkeypatch):
    folder = write_shop(tmp_path / "shop")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    content = recipe(folder, *FEATURES, events=EVENTS)
    content["split"] = {"valid": "2031-01-01", "test": "2032-01-01"}  # the sample has no such rows
    before = set(contents(folder))
    lines, warnings = check(folder, content)
    assert set(contents(folder)) == before | {"recipe.yaml"}
    assert os.listdir(scratch) == []
    assert not warnings
    assert "user_id string" in line_of(lines, "input views (1 file):")
    assert line_of(lines, "domain goods").startswith("domain goods (source): 400 rows of the sample, 2024-10-")
    positives = sum(row["clicked"] for row in views())
    assert f"{positives} of 400 positive" in line_of(lines, "label click")
    assert re.search(r"vocabulary of \d\d rows: p\d+ → \d+; p", line_of(lines, "item: id"))
    assert " → " in line_of(lines, "price: dense, log1p, standard:")
    assert "] → [" in line_of(lines, "tags: bag, vocabulary of 5 rows:")
    assert "0 → 0" not in line_of(lines, "seen: dense, total count, as it is:").split(":")[2].split(";")[0]


def test_it_reads_the_first_rows_only(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "SAMPLE_ROWS", 150)
    rows = views()
    rows[399] |= {"clicked": 2}
    folder = write_shop(tmp_path / "shop", rows)
    lines, _warnings = check(folder, recipe(folder, goods("item")))
    assert "150 rows of the sample" in line_of(lines, "domain goods")


def test_what_a_sample_may_lack_is_a_warning(tmp_path):
    rows = [row | {"clicked": 0, "tags": None} for row in views()]
    folder = write_shop(tmp_path / "shop", rows)
    _lines, warnings = check(folder, recipe(folder, goods("tags", "bag")))
    assert any("'domains.goods.labels.click': none of the" in line for line in warnings)
    assert any("feature 'tags', vocabulary: no value occurs" in line for line in warnings)


def test_a_fault_of_the_rows_is_found(tmp_path):
    rows = views()
    rows[7] |= {"clicked": 2, "ts": rows[7]["ts"] + timedelta(days=1)}
    folder = write_shop(tmp_path / "shop", rows)
    with pytest.raises(UserError, match=r"recipe\.yaml:\d+: 'domains\.goods\.labels\.click': 1 rows of 'goods' have"):
        check(folder, recipe(folder, goods("item")))


def test_the_command(tmp_path, capsys):
    folder = write_shop(tmp_path / "shop")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder, goods("item"))))
    command(str(tmp_path / "recipe.yaml"), check=True)
    assert "nothing is wrong in the first 10,000 rows" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(UserError, match="--out has no use with --check"):
        command(str(tmp_path / "recipe.yaml"), out=tmp_path / "out", check=True)
    with pytest.raises(UserError, match="--check and --input belong to a recipe"):
        command("world", check=True)
