"""Plans, explanations and comparisons as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from torchrec_xd.planner.inputs.cluster import GIB
from torchrec_xd.planner.plan import Plan, PlannedTable
from torchrec_xd.planner.report.check import RankCheck
from torchrec_xd.planner.report.explanation import OptionVerdict
from torchrec_xd.planner.report.lookups import RankLookups
from torchrec_xd.planner.report.torchrec_default import DefaultPlan

BAR_WIDTH = 24
ROWS_SHOWN = 40
CHECK_NOTE = (
    "Bytes: the estimate includes the buffers of ids and vectors; the measured tables are weights and optimizer state "
    "only. Peak memory is that of the whole process, with dense model, batches and libraries.\n"
    "Time: the estimate is for the embeddings only (lookup, update, exchange); the measured step includes reading, the "
    "dense model and its optimizer. Ranks wait for the slowest one: all have about the same step time."
)


def plan_view(plan: Plan) -> Group:
    """Tables, ranks, and the lower bound."""
    return Group(_tables_view(plan), _ranks_view(plan), certificate(plan))


def certificate(plan: Plan) -> Text:
    """How good the plan is, in one line."""
    return Text(
        f"slowest rank {plan.slowest_rank_ms:.3f} ms; no plan can beat {plan.lower_bound_ms:.3f} ms under these costs: "
        f"the gap is at most {plan.gap:.1%}",
        style="bold",
    )


def _tables_view(plan: Plan) -> Table:
    view = Table("table", "rows", "dim", "type", "kernel", "ranks", "HBM GiB", "DDR GiB", "ms", title="Tables by time")
    for column in (1, 2, 6, 7, 8):
        view.columns[column].justify = "right"
    largest = sorted(plan.tables, key=lambda table: -table.ms)
    for table in largest[:ROWS_SHOWN]:
        view.add_row(
            table.fqn,
            f"{table.rows:,}",
            str(table.dim),
            table.sharding_type,
            table.kernel_text,
            ranks_text(table),
            f"{table.hbm / GIB:.3f}",
            f"{table.ddr / GIB:.3f}",
            f"{table.ms:.4f}",
        )
    if len(largest) > ROWS_SHOWN:
        rest = largest[ROWS_SHOWN:]
        view.add_row(f"… and {len(rest)} more", *[""] * 7, f"{sum(t.ms for t in rest):.4f}")
    return view


def ranks_text(table: PlannedTable) -> str:
    """Ranks in short form: `all`, `3`, `8-15`, `1, 4, 9`."""
    if table.ranks == "all":
        return "all"
    first, count = table.ranks[0], len(table.ranks)
    if count > 1 and list(table.ranks) == list(range(first, first + count)):
        return f"{first}-{table.ranks[-1]}"
    return ", ".join(str(rank) for rank in table.ranks[:8]) + (" …" if count > 8 else "")


def _ranks_view(plan: Plan) -> Table:
    view = Table("rank", "ms", "compute | exchange", "memory GiB", "used", title="Ranks by time")
    view.columns[1].justify = view.columns[3].justify = "right"
    cluster = plan.cluster
    cuda = cluster.device == "cuda"
    used, limit = (plan.rank_hbm, cluster.hbm_bytes) if cuda else (plan.rank_ddr, cluster.ddr_bytes)
    took = plan.rank_ms
    order = sorted(range(cluster.world_size), key=lambda rank: -took[rank])
    shown = order if len(order) <= ROWS_SHOWN else order[: ROWS_SHOWN // 2] + order[-ROWS_SHOWN // 2 :]
    for place, rank in enumerate(shown):
        if len(shown) < len(order) and place == ROWS_SHOWN // 2:
            view.add_row(f"… {len(order) - len(shown)} ranks", "", "", "", "")
        view.add_row(
            str(rank),
            f"{took[rank]:.3f}",
            _bar(plan.rank_compute_ms[rank], plan.rank_comms_ms[rank], plan.slowest_rank_ms),
            f"{used[rank] / GIB:.2f}",
            _bar(used[rank], 0.0, limit),
        )
    return view


def _bar(first: float, second: float, full: float) -> Text:
    if full <= 0:
        return Text("")
    solid, light = round(BAR_WIDTH * first / full), round(BAR_WIDTH * second / full)
    return Text("█" * solid, style="blue") + Text("█" * light, style="yellow")


def verdicts_view(name: str, verdicts: Sequence[OptionVerdict]) -> Table:
    """Options of one table, and why they were chosen or not."""
    view = Table("option", "shards", "largest ms", "total ms", "HBM GiB", "DDR GiB", "why", title=f"Options of {name}")
    for verdict in verdicts:
        option = verdict.option
        view.add_row(
            option.label,
            str(option.num_shards),
            f"{option.largest_ms:.4f}",
            f"{option.total_ms:.4f}",
            f"{sum(run.count * run.storage.hbm for run in option.runs) / GIB:.3f}",
            f"{sum(run.count * run.storage.ddr for run in option.runs) / GIB:.3f}",
            verdict.why,
            style="bold" if verdict.chosen else None,
        )
    return view


def lookups_view(measured: Sequence[RankLookups]) -> Table:
    """Estimated and measured lookups of each rank."""
    view = Table(
        "rank", "lookups estimated", "measured", "memory estimated", "measured", title="Lookups on this machine"
    )
    for rank in measured:
        view.add_row(
            str(rank.rank),
            f"{rank.estimated_ms:.3f} ms",
            f"{rank.measured_ms:.3f} ms",
            f"{rank.estimated_bytes / GIB:.3f} GiB",
            f"{rank.measured_bytes / GIB:.3f} GiB",
        )
    return view


def check_view(checks: Sequence[RankCheck]) -> Group:
    """A finished run: estimates and measurements by rank, and what they include."""
    view = Table("rank", title="Estimated by the plan, measured by the run")
    for heading in ("bytes est.", "tables", "est./meas.", "peak memory"):
        view.add_column(heading, justify="right")
    for heading in ("lookups est. ms", "exchange est. ms", "sum ms", "step ms", "est./meas."):
        view.add_column(heading, justify="right")
    for check in checks:
        view.add_row(
            str(check.rank),
            f"{check.estimated_bytes:,}",
            f"{check.table_bytes:,}",
            _ratio(check.bytes_ratio),
            f"{check.peak_memory_bytes:,}",
            f"{check.estimated_lookup_ms:.4f}",
            f"{check.estimated_exchange_ms:.4f}",
            f"{check.estimated_ms:.4f}",
            "–" if check.step_ms is None else f"{check.step_ms:.3f}",
            _ratio(check.ms_ratio),
        )
    return Group(view, Text(CHECK_NOTE))


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def comparison_view(plan: Plan, seconds: float, default: DefaultPlan) -> Table:
    """Our plan next to torchrec's."""
    view = Table("", "this planner", "torchrec's default", title="Under the same costs and limits")
    slowest = "no plan found" if default.slowest_rank_ms is None else f"{default.slowest_rank_ms:.3f} ms"
    view.add_row("time to plan", f"{seconds:.2f} s", f"{default.seconds:.2f} s")
    view.add_row("slowest rank", f"{plan.slowest_rank_ms:.3f} ms", slowest)
    view.add_row("fullest rank, HBM", f"{max(plan.rank_hbm) / GIB:.2f} GiB", f"{default.largest_hbm / GIB:.2f} GiB")
    view.add_row("fullest rank, DDR", f"{max(plan.rank_ddr) / GIB:.2f} GiB", f"{default.largest_ddr / GIB:.2f} GiB")
    return view
