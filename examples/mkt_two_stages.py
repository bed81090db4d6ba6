# %% [markdown]
# # MKT in two stages
#
# Stage 1 trains on all domains together: common knowledge, and what is each domain's own. Stage 2 trains a model of the
# target domain, which reads the frozen common knowledge through gates. The data are a planted world: made-up logs whose
# true click probabilities are known, so that we also know how good a model can get.

# %%
from pathlib import Path

import torchrec_xd as xd
from torchrec_xd.datasets import prepare_world

FOLDER = Path("mkt_two_stages")
SIZES = {"target_rows": 4_000, "source_ratio": 4.0, "valid_rows": 1_000, "test_rows": 4_000, "users": 1_000}

manifest = prepare_world("helps", FOLDER / "data", SIZES, print)
print("the best possible:", manifest.oracle["click@target"])

# %%
common = {
    "schema": xd.load_schema(FOLDER / "data" / "schema.yaml").model_dump(),
    "loader": {"batch_size": 500},
    "optimizer": {"tables": {"lr": 0.2}, "dense": {"lr": 0.005}},
}

# %% [markdown]
# ## Stage 1: all domains
#
# Heterogeneous feature alignment brings each domain's specific features to one width (`aligned_dim`); the polarized
# distribution loss (`gamma`) keeps common and independent knowledge apart.

# %%
pretrain = xd.RunConfig.model_validate(
    {**common, "model": {"name": "mkt_pretrain", "expert_widths": [32, 16], "aligned_dim": 16, "tower_widths": [16]}}
)
stage_1 = xd.train(pretrain, FOLDER / "pretrain")

# %% [markdown]
# ## Stage 2: the target, taught by stage 1
#
# `init_from` names the first run. `transfer.json` in the new run folder lists every weight that was taken over, that
# starts fresh, or that was left behind.

# %%
finetune = xd.RunConfig.model_validate(
    {
        **common,
        "domains": ["target"],
        "model": {"name": "mkt_finetune", "widths": [32], "head_widths": [16]},
        "init_from": str(FOLDER / "pretrain"),
    }
)
stage_2 = xd.train(finetune, FOLDER / "finetune")
for name, metrics in {"stage 1": stage_1, "stage 2": stage_2}.items():
    print(name, {metric: metrics["eval"]["click@target"][metric] for metric in ("auc", "gauc", "logloss")})

# %% [markdown]
# ## What passed between the domains
#
# `diagnostics.html` in the folder shows the same with plots.

# %%
found = xd.diagnose(FOLDER / "finetune", FOLDER / "finetune")
found["diagnostics"]["gates"]["gates"]["gates.common"]["mean"]
