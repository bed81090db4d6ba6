"""The rows of `cj_departments` by week, for a replay.

    python -m tools.cj_weeks --data data/cj_departments --out data/cj_weeks

Rows of train, valid and test lie side by side then: a replay makes its own splits. Vocabularies stay those of purchases
before validation (week 29), and target rows of cold households begin there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.dataset as ds
import typer

from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError
from torchrec_xd.writable import check_output_folder

DOMAINS = ("grocery", "drug_gm")
SPLITS = ("train", "valid", "test")


def main(
    data: Annotated[Path, typer.Option(help="What `prepare cj_departments` made.")] = Path("data/cj_departments"),
    out: Annotated[Path, typer.Option(help="Folder for DOMAIN/week=N.")] = Path("data/cj_weeks"),
) -> None:
    """Write all rows, a folder a week."""
    if missing := [
        f"{domain}/{split}" for domain in DOMAINS for split in SPLITS if not (data / domain / split).is_dir()
    ]:
        raise UserError(f"--data {data}: has no {missing[0]}; make it: torchrec-xd prepare cj_departments --out {data}")
    check_output_folder(out, "--out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} holds something already; remove it, or name another folder")
    for domain in DOMAINS:
        rows = ds.dataset([ds.dataset(data / domain / split) for split in SPLITS])
        if "week" not in rows.schema.names:
            raise UserError(f"--data {data}: has no column 'week', it was made by an older version; prepare it anew")
        week = ds.partitioning(pa.schema([rows.schema.field("week")]), flavor="hive")
        ds.write_dataset(rows, out / domain, partitioning=week, format="parquet", preserve_order=True)
        print(f"{out / domain}: {rows.count_rows():,} rows")


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
