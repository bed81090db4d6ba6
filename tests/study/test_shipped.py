"""Every study that is shipped is read, and every config for planted worlds is run."""

import shutil
from pathlib import Path

import pytest
import yaml

from torchrec_xd.settings import load_yaml
from torchrec_xd.study.cells import cells, prepare_worlds
from torchrec_xd.study.comparison import run_study
from torchrec_xd.study.design import load_ablation, load_study, select

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = sorted(path for path in (CONFIGS / "studies").glob("*.yaml") if not path.name.startswith("simulate_"))
SMALL = {"target_rows": 400, "source_ratio": 2.0, "valid_rows": 100, "test_rows": 400, "users": 50, "items": 30}


def load(path):
    return load_ablation(path) if "switches" in load_yaml(path) else load_study(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The configs, their worlds small."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(CONFIGS, folder / "configs")
    for path in (folder / "configs" / "studies" / study.name for study in STUDIES):
        content = yaml.safe_load(path.read_text())
        for entry in content["data"].values():
            if "world" in entry:
                entry["world"] |= SMALL
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


@pytest.mark.parametrize("name", [path.stem for path in STUDIES])
def test_every_study_is_one(project, name, monkeypatch):
    monkeypatch.chdir(project)
    path = Path("configs/studies") / f"{name}.yaml"
    study = select(load(path), seeds=1)
    prepare_worlds(study, lambda line: None)
    found = cells(study, path.parent, Path("runs"))
    assert len(found) == sum(len(study.trained(data)) for data in study.data)
    assert all(cell.config.checkpoint.keep == 1 for cell in found)


def test_exit_as_recommended_has_a_baseline_that_learns_from_the_same_rows(project, monkeypatch):
    monkeypatch.chdir(project)
    path = Path("configs/studies/homepage.yaml")
    study = select(load(path), data=["homepage"], seeds=1)
    prepare_worlds(study, lambda line: None)
    configs = {cell.model: cell.config for cell in cells(study, path.parent, Path("runs"))}
    exit_, bottom = configs["exit_recommended"], configs["shared_bottom_source_rows"]
    assert exit_.domains == bottom.domains == ("target", "source")
    assert set(exit_.tasks) - set(bottom.tasks) == {"fit@target"}  # which needs the selector
    assert exit_.model.sources["source"].own == "click@source"
    assert (exit_.model.transfer_on, exit_.model.transfer_error) == ("transfer", "cross_entropy")
    assert exit_.model.transfer_weight == 1.0
    assert exit_.trainer == bottom.trainer


def test_every_config_for_worlds_is_in_a_study_and_runs(project, monkeypatch):
    monkeypatch.chdir(project)
    ran = set()
    for name, data in {"worlds": "helps", "homepage": "homepage"}.items():
        path = Path("configs/studies") / f"{name}.yaml"
        study = select(load(path), data=[data], seeds=1, assign=("trainer.epochs=1",))
        assert run_study(study, path, Path("runs") / name, workers=2) == {}
        ran |= {model.config.name for model in study.models.values()}
        text = (Path("runs") / name / "results.md").read_text()
        assert "Distance to the oracle" in text
    assert ran == {path.name for path in (CONFIGS / "world").glob("*.yaml")}
