"""A feed of three domains, and small runs on it."""

import shutil

import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import MEM, TEM
from tests.support.small_models import train_run
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.schema import Schema


@pytest.fixture(scope="session")
def feed(tmp_path_factory):
    """A feed whose domains all have test rows: copies of the run's own training rows."""
    folder = write_feed(tmp_path_factory.mktemp("feed"), rows=160)
    content = schema_at(folder)
    for name in content["domains"]:
        shutil.copy(folder / name / "train.parquet", folder / name / "copy.parquet")
    return {**content, "domains": {k: {**v, "test": f"{k}/copy.parquet"} for k, v in content["domains"].items()}}


@pytest.fixture(scope="session")
def schema(feed):
    return Schema.model_validate(feed)


@pytest.fixture(scope="session")
def batches(schema):
    return list(Loader(schema, LoaderSettings(batch_size=128), "train").batches())


@pytest.fixture(scope="session")
def runs(feed, tmp_path_factory):
    """Finished runs: both stages of MKT, and one domain by itself."""
    folder = tmp_path_factory.mktemp("runs")
    content = {"schema": feed, "loader": {"batch_size": 128}, "trainer": {"threads": 1, "log_every": 2}}
    train_run(folder, "mem", **content, model=MEM)
    train_run(folder, "tem", **content, model=TEM, domains=["post"], init_from=str(folder / "mem"))
    train_run(folder, "single", **content, model={"name": "single", "widths": [4]}, domains=["post"])
    return folder
