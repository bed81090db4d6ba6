"""Study files, tuned.json and journals of trials, changed at random: only errors for the user leave."""

import contextlib
import copy
import dataclasses
import json

import numpy as np
import pytest
import yaml

from tests.study.conftest import STUDY, write_study
from tests.support.feeds import write_feed
from torchrec_xd.datasets.planted import worlds
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import load_yaml
from torchrec_xd.study import tuning
from torchrec_xd.study.cells import cells, prepare_worlds
from torchrec_xd.study.checks import check_cells
from torchrec_xd.study.design import load_ablation, load_study, load_tuned, select
from torchrec_xd.study.tuning import tune
from torchrec_xd.study.verdicts import power_warnings

WORLD = {"preset": "helps", "overlap": 0.5, "target_rows": 400}
COMPARED = {**STUDY, "data": {"feed": {"task": "click@post", "set": {"bottom": ["loader.batch_size=32"]}}}}
FORMS = {
    "study": COMPARED,
    "tuned on other data": {**COMPARED, "data": {**COMPARED["data"], "b": {"task": "click@post", "tuned_on": "feed"}}},
    "world": {**COMPARED, "data": {"helps": {"task": "click@target", "world": WORLD}}},
    "outside": {**COMPARED, "models": {**STUDY["models"], "old": {"scores": "old/{data}-{seed}.parquet"}}},
    "ablation": {
        **{key: value for key, value in COMPARED.items() if key != "reference"},
        "base": "mkt",
        "samples": 800,
        "switches": {"wo": {"stage1": ["model.hfa=false"]}, "slow": {"mkt": ["optimizer.dense.lr=0.001"]}},
    },
}
ODD = [None, True, 0, -1, 3, 1.5, float("nan"), float("inf"), 2**70, "", "a", "x=1", "=", "a..b=[", "{data}", "{", "..",
       "single", "feed", "click@post", "@", "\0", "\ud7ff", "2024-02-30", [], {}, [None], ["seed=1"], {"a": {}},
       {1: 2}, [["deep"]], {"preset": []}, {"config": "single.yaml"}, {"low": 0, "high": 1, "log": True}]  # fmt: skip


class BuiltError(Exception):
    """A world would be built: its settings are valid."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The feed and the configs."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_feed(folder / "feed")
    write_study(folder)
    return folder


def spots(content):
    """Every container with a key of it."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from spots(content[key])


def mutated(random, content):
    """A copy with a change or a few of values, names, nesting or presence."""
    content = copy.deepcopy(content)
    for _ in range(random.geometric(0.7)):
        every = list(spots(content))
        if not every:
            break
        (holder, key), (other, name) = (every[i] for i in random.integers(len(every), size=2))
        odd = copy.deepcopy(ODD[random.integers(len(ODD))])
        change = random.integers(7)
        if change == 0:
            del holder[key]
        elif change == 1:
            holder[key] = odd
        elif change == 2:
            holder[key] = [holder[key]]
        elif change == 3:
            holder[key] = {"a": holder[key]}
        elif change == 4:
            holder[key] = copy.deepcopy(other[name])
        elif isinstance(holder, dict):
            new = odd if isinstance(odd, str | int | float | None) else "extra"
            holder[new] = holder.pop(key) if change == 5 else odd
        else:
            holder.append(odd)
    return content


def expand(path, out):
    """All that happens to a study before something is trained."""
    study = load_ablation(path) if "switches" in load_yaml(path) else load_study(path)
    study = select(study, data=list(study.data)[:1])
    prepare_worlds(study, lambda line: None)
    power_warnings(study)
    every = cells(study, path.parent, out)
    check_cells(every, every)


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_study_is_refused_or_read(fuzz_seeds, place, form, monkeypatch):
    def build(settings):
        raise BuiltError

    kinds = {name: dataclasses.replace(kind, build=build) for name, kind in worlds.KINDS.items()}
    monkeypatch.setattr(worlds, "KINDS", kinds)
    path, read = place / "changed.yaml", 0
    path.write_text(yaml.safe_dump(FORMS[form], sort_keys=False))
    with pytest.raises(BuiltError) if form == "world" else contextlib.nullcontext():
        expand(path, place / "out")
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        content = mutated(np.random.default_rng(seed), FORMS[form])
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        try:
            expand(path, place / "out")
        except (UserError, BuiltError) as error:
            read += isinstance(error, BuiltError)
        else:
            read += 1
    print(f"{read} of {len(fuzz_seeds)} were read")


def pretend(take, finish, *, workers, logs):
    """Jobs that are not trained, and get scores that depend on their configs alone."""
    while (job := take()) is not None:
        score = job.config.optimizer.dense.lr
        path = RunFolder(job.folder).metrics
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"eval": {"click@post": {"auc": score}}}))
        finish(job, None)


@pytest.fixture(scope="module")
def tuned(place):
    """The folder of a search that was not trained, and its study."""
    study = select(load_study(place / "study.yaml"), models=["bottom"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "work", pretend)
        assert tune(study, place / "study.yaml", place / "tuned", 2) == {}
    return place / "tuned", study


def test_a_changed_tuned_json_is_refused_or_read(fuzz_seeds, place, tuned):
    out, study = tuned
    content = json.loads((out / "tuned.json").read_text())
    path = place / "changed.json"
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        if seed % 3:
            changed = json.dumps(mutated(random, content)).encode()
        else:
            changed = damaged(random, (out / "tuned.json").read_bytes())
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            cells(study, place, place / "out", load_tuned(path))


def damaged(random, content):
    """Bytes that were cut, changed or repeated."""
    start, stop = sorted(random.integers(len(content) + 1, size=2))
    return {
        0: content[:start],
        1: content[:start] + random.bytes(stop - start) + content[stop:],
        2: content[:start] + content[stop:],
        3: content[:stop] + content[start:],
        4: content[:start] + bytes([random.integers(256)]) + content[start + 1 :],
    }[int(random.integers(5))]


def test_a_damaged_journal_is_refused_or_gone_on_with(fuzz_seeds, place, tuned, monkeypatch):
    out, study = tuned
    content = (out / "tuning.journal").read_bytes()
    monkeypatch.setattr(tuning, "work", pretend)
    monkeypatch.setattr(tuning, "check_run", lambda *_: [])
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        lines = content.split(b"\n")
        if seed % 3 == 0:
            changed = content[: random.integers(len(content))]  # killed while writing
        elif seed % 3 == 1:
            changed = damaged(random, content)
        else:
            line = random.integers(len(lines) - 1)
            lines[line] = json.dumps(mutated(random, json.loads(lines[line]))).encode()
            changed = b"\n".join(lines)
        again = place / "again"
        again.mkdir(exist_ok=True)
        (again / "tuning.journal").write_bytes(changed)
        said = ""
        try:
            tune(study, place / "study.yaml", again, 3)
        except UserError as error:
            said = str(error)
        assert seed % 3 or not said, said  # what was cut off is no reason to refuse what is there
