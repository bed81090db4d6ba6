"""The sharding planner: any cluster, real tables, torchrec's prices, a plan with a certificate."""

from torchrec_xd.planner.advice import explain, remedies
from torchrec_xd.planner.check import METRICS_FILE, PLAN_FILE, RankMeasured, check_run
from torchrec_xd.planner.communication import CommunicationSettings
from torchrec_xd.planner.constraints import Constraint
from torchrec_xd.planner.lists import load_constraints, load_tables
from torchrec_xd.planner.plan import Plan, diff_plans, load_plan, read_plan
from torchrec_xd.planner.planning import (
    InfeasibleError,
    PlannerSettings,
    Planning,
    RunPlan,
    ShardingSettings,
    make_plan,
    plan_module,
    plan_run,
)
from torchrec_xd.planner.tables import (
    TableList,
    TableModule,
    default_sharders,
    schema_tables,
    set_optimizer,
)
from torchrec_xd.planner.topology import Cluster, load_cluster, this_machine

__all__ = [
    "METRICS_FILE",
    "PLAN_FILE",
    "Cluster",
    "CommunicationSettings",
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
    "default_sharders",
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
    "set_optimizer",
    "this_machine",
]
