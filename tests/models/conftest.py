"""A feed of three domains, for tests of models."""

import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.schema import Schema


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return Schema.model_validate(schema_at(write_feed(tmp_path_factory.mktemp("feed"))))


@pytest.fixture(scope="module")
def batch(schema):
    return next(iter(Loader(schema, LoaderSettings(batch_size=64), "train").batches()))
