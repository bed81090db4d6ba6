"""A file belongs to one split, and users are integers or strings in all files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.numbered import write
from torchrec_xd.data.agreement import refuse_shared_files
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema


def named(root: Path, **changes: dict[str, Any]) -> Schema:
    """Two domains of which each split names files of its own, with some changes."""
    schema, _ = write(root, [[[1]] * 3] * 2)
    own = {"train": "{}/0.parquet", "valid": "{}/1.parquet", "test": "{}/2.parquet"}
    domains = {
        name: domain.model_copy(
            update={split: path.format(name) for split, path in own.items()} | changes.get(name, {})
        )
        for name, domain in schema.domains.items()
    }
    return schema.model_copy(update={"domains": domains})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"d0": {"valid": None, "test": None}},
        {"d1": {"train": "d0/0.parquet"}},
        {"d0": {"train": ("d0/0.parquet", "d0/1.parquet"), "valid": None}},
        {"d0": {"test": "not there yet"}},
    ],
)
def test_what_is_allowed(root: Path, changes: dict[str, Any]) -> None:
    refuse_shared_files(named(root, **changes))


@pytest.mark.parametrize(
    ("changes", "file", "one", "other"),
    [
        ({"d0": {"train": "."}}, "d0/1.parquet", "train split of domain 'd0'", "valid split of domain 'd0'"),
        ({"d1": {"train": "**"}}, "d0/1.parquet", "valid split of domain 'd0'", "train split of domain 'd1'"),
        ({"d0": {"test": "d0"}}, "d0/0.parquet", "train split of domain 'd0'", "test split of domain 'd0'"),
        ({"d0": {"valid": "d0/2.*"}}, "d0/2.parquet", "valid split of domain 'd0'", "test split of domain 'd0'"),
        ({"d1": {"test": "d0/0.parquet"}}, "d0/0.parquet", "train split of domain 'd0'", "test split of domain 'd1'"),
    ],
)
def test_a_file_in_two_splits(root: Path, changes: dict[str, Any], file: str, one: str, other: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_shared_files(named(root, **changes))
    assert str(error.value) == (
        f"{root}/{file} belongs to the {one} and to the {other}; a file belongs to one split: name folders or files "
        "that the splits do not share"
    )


def test_a_file_by_another_name(root: Path) -> None:
    (root / "link.parquet").unlink(missing_ok=True)
    (root / "link.parquet").symlink_to("d0/0.parquet")
    schema = named(root, d1={"test": "link.parquet"})
    with pytest.raises(
        UserError, match=r"link\.parquet belongs to the train split of domain 'd0' and to the test split"
    ):
        refuse_shared_files(schema)
    (root / "link.parquet").unlink()


def test_users_that_are_integers_here_and_strings_there(root: Path) -> None:
    schema, _ = write(root, [[[3], [2]], [[4]]])
    files = [root / name for name in ("d1/0.parquet", "d0/0.parquet", "d0/1.parquet")]
    for file, kind in zip(files, (pa.string(), pa.large_string(), pa.binary()), strict=True):
        table = pq.read_table(file)
        pq.write_table(table.set_column(0, "user", table["user"].cast(pa.string()).cast(kind)), file)
        if file == files[0]:
            with pytest.raises(UserError) as error:
                Loader(schema, LoaderSettings(), "test")
    assert str(error.value) == (
        f"users are integers in {root}/d0/0.parquet (column 'user') and strings in {root}/d1/0.parquet; the same user "
        "would count as two: write both with one type"
    )
    assert Loader(schema, LoaderSettings(), "test").users_are_strings
