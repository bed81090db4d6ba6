"""DuckDB's SQL has DuckDB's values on Spark, or is refused."""

import math
from datetime import datetime, timezone

import pytest

from torchrec_xd.prepare.dialect import SparkRefusal, spark_sql
from torchrec_xd.prepare.engine import connect
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.tables import Tables

ROWS = """
(SELECT * FROM (VALUES
    (1, 2.5::DOUBLE, -7, [4, 5], TIMESTAMP '2024-05-31 23:59:30.25', TIMESTAMP '2024-06-02 00:00:01', '12.5', 2.5, 0),
    (2, 3.5::DOUBLE, 9, [4], TIMESTAMP '2024-06-02 03:00:00', TIMESTAMP '2023-06-02 00:00:01', 'x', -2.5, 3),
    (3, -0.5::DOUBLE, 0, NULL, NULL, TIMESTAMP '2023-06-02 00:00:01', NULL, 0.5, 0)
) t(n, f, i, l, a, b, s, d, z))
"""
SAME = [
    *("f / z", "i / z", "d / 3", "i / 2 / z", "i // 2", "i % 4", "f * 2 + d", "-i // 2"),
    *("CAST(f AS BIGINT)", "f::INT", "CAST(d AS INT)", "CAST(f < 3 AS INT)", "CAST(i AS BIGINT)", "CAST(d / 2 AS INT)"),
    *("try_cast(s AS INT)", "try_cast(s AS DOUBLE)", "i::VARCHAR", "d::VARCHAR", "a::VARCHAR", "f::VARCHAR"),
    *("log(100 + i)", "ln(z)", "exp(f)", "power(f, 2)", "2 ** 3", "round(f)", "round(d)", "greatest(i, NULL)"),
    *("dayofweek(a)", "isodow(a)", "weekday(a)", "extract(dow FROM a)", "extract(isodow FROM a)", "hour(a)", "year(a)"),
    *(f"date_diff('{unit}', a, b)" for unit in ("second", "hour", "day", "week", "month", "year")),
    *("epoch(a)", "epoch_us(a)", "make_timestamp(1700000000000001 + i)", "epoch_ms(1700000000123)"),
    *("to_timestamp(1700000000.5)", "strptime('2024-05-31 10', '%Y-%m-%d %H')", "try_strptime(s, '%Y-%m-%d')"),
    *("date_trunc('hour', a)", "strftime(a, '%Y%m')", "a::DATE", "a - INTERVAL 1 DAY", "b > a"),
    *("'2024-05-31T10:00:00'::TIMESTAMP", "CAST('2024-05-31T10:00:00+02:00' AS TIMESTAMPTZ)"),
    *("l[1]", "l[2]", "string_split('a|b|', '|')", "split_part('a-b', '-', 2)", "list_contains(l, 5)"),
    *("list_filter(l, lambda x: x > 4)", "list_transform(l, lambda x: x + 1)", "array_length(l)"),
    *(
        "regexp_extract(s, '[0-9]+')",
        "regexp_replace('a1b2', '[0-9]', '', 'g')",
        "lower('Ä')",
        "s || i",
        "concat(s, i)",
    ),
    *(
        "substr(s, 1, 2)",
        "left('abc', 2)",
        "trim(' a ')",
        "replace('abc', 'b', '')",
        "len(s)",
        "md5(s)",
        "isnan(f / z)",
    ),
    *("CASE WHEN i > 0 THEN 1 END", "coalesce(s, '-')", "nullif(i, 9)", "if(i > 0, 1, 2)", "i IN (9)", "i & 3"),
    *("xor(i, 3) * 2", "xor(n, n + 5 >> 1) % 3", "xor(i * 2, n) + xor(1, n)", "xor(i, 1) = 8"),
]


def plain(value):
    """A value without what the engines show differently: the place of a digit, and that the zone is UTC."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value if math.isinf(value) else float(f"{value:.12g}")
    if isinstance(value, datetime):
        return value.replace(tzinfo=timezone.utc)
    return value


@pytest.mark.slow
def test_expressions(tmp_path, local_spark):
    query = f"SELECT n, {', '.join(f'{sql} AS c{i}' for i, sql in enumerate(SAME))} FROM {ROWS}"
    found = []
    for engine in (EngineSettings(), local_spark):
        connection = connect(engine, tmp_path)
        if engine.spark is None:
            connection.raw_sql("SET TimeZone = 'UTC'")
        tables = Tables(connection)
        rows = tables.arrow(tables.view("expressions", query).order_by("n")).to_pylist()
        found.append({sql: [plain(row[f"c{i}"]) for row in rows] for i, sql in enumerate(SAME)})
        assert [row["n"] for row in rows] == [1, 2, 3]
    assert found[1] == found[0]
    assert found[0]["f / z"] == [math.inf, 1.16666666667, -math.inf]
    assert found[0]["CAST(f AS BIGINT)"] == [2, 4, 0]
    assert found[0]["dayofweek(a)"] == [5, 0, None]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("hash(a)", r"hash\(\) has other values on Spark"),
        ("random() < 0.5", r"rand\(\) has other values on Spark"),
        ("regexp_replace(a, 'x', '')", r"write regexp_replace\(…, 'g'\)"),
        ("a[2:3]", r"\[a:b\] and \[-1\] are not computed on Spark"),
        ("a[-1]", r"\[a:b\] and \[-1\] are not computed on Spark"),
        ("date_diff('decade', a, b)", "date_diff by decade is not computed on Spark; choose from day, hour"),
    ],
)
def test_what_spark_computes_otherwise_is_refused(sql, said):
    with pytest.raises(SparkRefusal, match=said):
        spark_sql(f"SELECT {sql} FROM t")
