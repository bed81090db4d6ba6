"""RecBole's atomic files: headers of names and types, typed values."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
import sqlglot

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.atomic import atomic_columns, atomic_options, atomic_select


def test_names_types_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.item"
    path.write_text(
        'item_id:token\tyear:float\tclass:token_seq\tvec:float_seq\n01\t1990.0\tSci-Fi War\t0.5 1\n"x"\t\t\t\n'
    )
    columns = atomic_columns(str(path))
    assert columns == (("item_id", "token"), ("year", "float"), ("class", "token_seq"), ("vec", "float_seq"))
    options = ", ".join(f"{key} = {value!r}" for key, value in atomic_options(str(path)).items())
    query = f"SELECT {atomic_select(columns)} FROM read_csv('{path}', {options})"
    with duckdb.connect() as engine:
        rows = engine.execute(query).fetchall()
    assert rows == [("01", 1990.0, ["Sci-Fi", "War"], [0.5, 1.0]), ('"x"', None, [], [])]


def test_spark_has_the_same_words(tmp_path: Path) -> None:
    query = f"SELECT {atomic_select((('a b', 'token_seq'), ('c', 'float_seq')))} FROM t"
    text = sqlglot.transpile(query, read="duckdb", write="spark")[0]
    assert "AS ARRAY<DOUBLE>" in text
    assert "`a b`" in text


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id,item_id", r"'user_id,item_id' is none; types are: token, token_seq, float, float_seq"),
        ("user_id:token\titem_id:string", "'item_id:string' is none"),
        ("user_id:token\tUSER_ID:token", "column 'user_id' stands twice"),
    ],
)
def test_other_headers_are_refused(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "a.inter").write_text(header + "\n1\t2\n")
    with pytest.raises(UserError, match=message):
        atomic_columns(str(tmp_path / "a.inter"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.inter: cannot be read"):
        atomic_columns(str(tmp_path / "a.inter"))
