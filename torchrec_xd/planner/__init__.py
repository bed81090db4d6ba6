"""The sharding planner: any cluster, real tables, torchrec's cost model, and a lower bound that no plan can beat."""

from torchrec_xd.planner.api import (
    InfeasibleError,
    PlannerSettings,
    Planning,
    RunPlan,
    ShardingSettings,
    make_plan,
    plan_module,
    plan_run,
)
from torchrec_xd.planner.inputs.cluster import Cluster, load_cluster, this_machine
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.table_lists import load_constraints, load_tables
from torchrec_xd.planner.inputs.tables import TableList, TableModule, schema_tables
from torchrec_xd.planner.plan import Plan, diff_plans, load_plan, read_plan
from torchrec_xd.planner.report.check import RankMeasured, check_run
from torchrec_xd.planner.report.explanation import explain, remedies

__all__ = [
    "Cluster",
    "Constraint",
    "InfeasibleError",
    "Plan",
    "PlannerSettings",
    "Planning",
    "RankMeasured",
    "RunPlan",
    "ShardingSettings",
    "TableList",
    "TableModule",
    "check_run",
    "diff_plans",
    "explain",
    "load_cluster",
    "load_constraints",
    "load_plan",
    "load_tables",
    "make_plan",
    "plan_module",
    "plan_run",
    "read_plan",
    "remedies",
    "schema_tables",
    "this_machine",
]
