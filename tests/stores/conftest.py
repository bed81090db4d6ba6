"""One object store for all tests; each has a bucket and a proxy of its own."""

import itertools

import pytest
from pyarrow import fs

from tests.support.object_store import KEYS, Proxy, Store, moto

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def moto_port():
    with moto() as port:
        yield port


@pytest.fixture
def store(moto_port, monkeypatch):
    """An empty bucket behind a proxy."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    made = Store(f"bucket{next(_NUMBERS)}", Proxy(moto_port))
    options = f"scheme=http&endpoint_override=127.0.0.1:{moto_port}&allow_bucket_creation=true"
    fs.FileSystem.from_uri(f"s3://{made.bucket}?{options}")[0].create_dir(made.bucket)
    yield made
    made.proxy.refuse()
