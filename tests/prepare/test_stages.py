"""A run that stops leaves its result as it was, and the next one goes on from what was finished."""

import os
import re

import pytest

from tests.support.raw_shop import contents, goods, prepare, recipe, views, write_shop

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}


class Stop:
    """Progress that interrupts the run in the line after `after` lines; those of single vocabularies do not count."""

    def __init__(self, after):
        self.after, self.lines = after, []

    def __call__(self, line):
        if " values" not in line and sum(" values" not in each for each in self.lines) == self.after:
            raise KeyboardInterrupt
        self.lines.append(line.partition(" (")[0])


def own(lines):
    """The lines of stages."""
    return [line for line in lines if re.search(r"rows read|events read|\d values$|totals by|parts written", line)]


def shop_recipe(folder, **changes):
    return recipe(
        folder,
        goods("item"),
        goods("rate", "dense", total={"events": "shown", "what": "share", "by": ["item"], "value": "clicked"}),
        events=EVENTS,
        **changes,
    )


@pytest.fixture
def folder(tmp_path):
    return write_shop(tmp_path / "shop", views(60))


def stopped(folder, content, after):
    stop = Stop(after)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, content, progress=stop)
    return stop.lines


def test_a_stop_in_any_stage_and_the_next_call_goes_on(folder):
    content = shop_recipe(folder)
    whole = []
    expected = contents(prepare(folder, content, "whole", progress=lambda line: whole.append(line.partition(" (")[0])))
    before = set(os.listdir(folder))
    seen = []
    for _ in range(len([line for line in own(whole) if "parts written" not in line and " values" not in line]) - 1):
        seen += stopped(folder, content, 1)
        assert set(os.listdir(folder)) == before | {".out.unfinished"}
    last = Stop(99)
    prepare(folder, content, progress=last)
    seen += last.lines
    assert not any("rows read" in line for line in last.lines)
    assert len(seen) >= 4, seen  # rows of two domains, events, …
    assert sorted(own(seen)) == sorted(own(whole)), "a finished stage was run again"
    made = contents(folder / "out")
    for name in ("schema.yaml", "manifest.json"):
        made[name], expected[name] = (
            files[name].replace(str(folder / place).encode(), b"")
            for files, place in ((made, "out"), (expected, "whole"))
        )
    differing = {name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name)}
    assert differing <= {"profile.html"}  # whose charts have random names
    assert not (folder / ".out.unfinished").exists()


def test_a_stop_leaves_the_result_of_before_as_it_was(folder):
    before = contents(prepare(folder, shop_recipe(folder)))
    stopped(folder, shop_recipe(folder, dim=16), 4)
    assert contents(folder / "out") == before


def test_a_stop_in_the_middle_of_learning(folder):
    stop = Stop(99)

    def stop_at_item(line):
        stop(line)
        if line.startswith("item:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, shop_recipe(folder), progress=stop_at_item)
    assert [path.name for path in (folder / ".out.unfinished").glob("encoders*")] == []
    again = Stop(99)
    prepare(folder, shop_recipe(folder), progress=again)
    words, again_words = ([line for line in own(each.lines) if "values" in line] for each in (stop, again))
    assert words == again_words


def test_the_same_call_again_does_nothing(folder):
    prepare(folder, shop_recipe(folder))
    lines = []
    prepare(folder, shop_recipe(folder), progress=lines.append)
    assert len(lines) == 1
    assert "reused" in lines[0]


@pytest.mark.parametrize("change", ["recipe", "input"])
def test_stages_of_another_recipe_or_other_files_are_not_used(folder, change):
    first = stopped(folder, shop_recipe(folder), 3)
    assert len([line for line in first if " values" not in line]) == 3
    if change == "input":
        write_shop(folder, views(70))
    content = shop_recipe(folder, dim=16) if change == "recipe" else shop_recipe(folder)
    again = Stop(99)
    prepare(folder, content, progress=again)
    assert again.lines[: len(first)] == first


def test_every_stage_tells_its_rows_and_speed(folder):
    lines = []
    prepare(folder, shop_recipe(folder), progress=lines.append)
    for start, rows in (
        ("goods: rows read", 60),
        ("videos: rows read", 160),
        ("shown: events read", 60),
        ("goods: totals by item of shown", 60),
        ("videos: 1 of 1 parts written", 160),
    ):
        assert any(re.fullmatch(rf"{start} \({rows} rows, [\d,]+ rows/s\)", line) for line in lines), lines
