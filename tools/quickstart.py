"""The tours: real data in, a table of models out. What an earlier tour has made is reused.

python -m tools.quickstart          MKT and its baselines on `cj_feed`
python -m tools.quickstart exit     EXIT and its baselines on `cj_placement`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.references import reference_rows
from tools.tour import Model, Tour

MKT = Tour(
    data=Path("data/cj_feed"),
    task="redeemed@coupon",
    title="coupons redeemed, test period",
    models=(
        Model("MKT stage 1 (w/o TEM)", "mkt_pretrain", "configs/mkt_cj_pretrain.yaml"),
        Model("MKT", "mkt_finetune", "configs/mkt_cj_finetune.yaml", "mkt_pretrain"),
        Model("single domain", "single", "configs/single_cj.yaml"),
    ),
    groups="campaign_type",
    references=reference_rows,
)
EXIT = Tour(
    data=Path("data/cj_placement"),
    task="bought@promoted",
    title="products on promotion bought, test period",
    models=(
        Model("EXIT", "exit", "configs/exit_cj.yaml"),
        Model("target only", "target_only", "configs/exit_cj_target_only.yaml"),
        Model("shared bottom", "shared_bottom", "configs/exit_cj_shared_bottom.yaml"),
    ),
    auxiliary={"/target": ", target tower alone"},
)
TOURS = {"mkt": (MKT, Path("runs/quickstart")), "exit": (EXIT, Path("runs/exit-quickstart"))}


def tour(
    name: Annotated[Literal["mkt", "exit"], typer.Argument(help="Which method.")] = "mkt",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs and of summary.json.")] = None,
) -> None:
    """Prepare the data, train and measure every model, and compare them on the test period."""
    chosen, usual = TOURS[name]
    chosen.take(out or usual)


if __name__ == "__main__":
    typer.run(tour)
