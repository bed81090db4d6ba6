"""The sharding planner: decides for a cluster how each embedding table is cut and which ranks hold its shards.

Costs are torchrec's estimates or measured ones. Each plan comes with a lower bound: no plan's slowest rank is faster.
`make_plan` in `api.py` is the entry; `inputs` holds what is given, `costs` estimates, `search` decides, `report` shows,
`plan.py` is the plan as a file. `step` estimates the whole training step and how it scales.
"""

from torchrec_xd.planner.api import Planning, RunPlan, make_plan, plan_module, plan_run
from torchrec_xd.planner.inputs.cluster import Cluster, load_cluster, this_machine
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.settings import PlannerSettings, ShardingSettings
from torchrec_xd.planner.inputs.table_lists import load_constraints, load_tables
from torchrec_xd.planner.inputs.tables import TableList, TableModule, schema_tables
from torchrec_xd.planner.plan import Plan, diff_plans, load_plan, read_plan
from torchrec_xd.planner.report.check import RankMeasured, check_run
from torchrec_xd.planner.report.explanation import explain
from torchrec_xd.planner.report.infeasible import InfeasibleError, remedies

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
