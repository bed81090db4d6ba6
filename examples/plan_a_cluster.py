# %% [markdown]
# # Planning a cluster that you do not have
#
# The planner decides how every embedding table is sharded, for any cluster, from any laptop. Here: 40 tables of very
# different sizes on nodes of eight H100.

# %%
import torchrec_xd as xd
from torchrec_xd.planner import TableList

tables = TableList.model_validate(
    {
        "tables": [
            {"name": f"table_{i}", "rows": 1_000 * 3 ** (i % 12), "dim": 128, "features": 1 + i % 4, "pooling": 2}
            for i in range(40)
        ]
    }
)

# %%
planning = xd.plan(tables, cluster="8xH100", batch_size=4096)
plan = planning.plan
print(f"planned in {planning.seconds:.2f} s")
print(f"slowest rank: {plan.slowest_rank_ms:.2f} ms; no plan can beat {plan.lower_bound_ms:.2f} ms")

# %% [markdown]
# Each table with the way it is sharded and the ranks of its shards:

# %%
for table in plan.tables[:5]:
    print(table.name, table.sharding_type, table.kernel, table.ranks)

# %% [markdown]
# ## What would change with more GPUs?

# %%
for nodes in (1, 2, 4):
    cluster = planning.plan.cluster.with_changes(world_size=8 * nodes)
    found = xd.plan(tables, cluster, batch_size=4096)
    print(f"{8 * nodes} GPUs: {found.plan.slowest_rank_ms:.2f} ms")

# %% [markdown]
# `plan.save("plan.json")` writes the file that training loads: `sharding: {plan: plan.json}` in a run config whose
# model has these tables. `xd.plan` takes a run config or a schema as well.
