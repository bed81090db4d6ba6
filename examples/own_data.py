# %% [markdown]
# # Your own data: from Parquet files to metrics
#
# A shop shows products and coupons to the same users. We write a few made-up logs, say what their columns mean, train
# a model on both domains, and read its metrics and predictions. Every cell runs on a laptop, in a few seconds.

# %%
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import torchrec_xd as xd

FOLDER = Path("own_data")

# %% [markdown]
# ## The logs
#
# One Parquet file per domain and split; any Parquet that Spark, Polars, DuckDB or pandas writes will do. A row is an
# exposure: who was shown what, and whether it was clicked.

# %%
random = np.random.default_rng(0)
taste = random.normal(size=(200, 8))  # what each user likes of each category, in both domains


def write_logs(domain: str, split: str, rows: int) -> None:
    user, category = random.integers(200, size=rows), random.integers(8, size=rows)
    clicked = random.random(rows) < 1 / (1 + np.exp(-2 * taste[user, category]))
    columns = {
        "user_id": user,
        "category": category,
        "last_categories": [random.integers(8, size=n).tolist() for n in random.integers(6, size=rows)],
        "click": clicked.astype(np.int8),
        **({"price": random.random(rows)} if domain == "product" else {"discount": random.integers(5, size=rows)}),
    }
    path = FOLDER / domain / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


for split, rows in {"train": 4_000, "valid": 500, "test": 1_000}.items():
    write_logs("product", split, 4 * rows)
    write_logs("coupon", split, rows)

# %% [markdown]
# ## The schema
#
# It says which columns are labels and features, in which domain, and which share an embedding table. Here the history
# `last_categories` shares the table of `category`.

# %%
paths = {split: f"{{domain}}/{split}.parquet" for split in ("train", "valid", "test")}
schema = {
    "name": "shop",
    "root": str(FOLDER),
    "user": "user_id",
    "domains": {
        name: {"role": role, **{split: path.format(domain=name) for split, path in paths.items()}}
        for name, role in {"product": "source", "coupon": "target"}.items()
    },
    "tasks": [{"label": "click", "domain": "product"}, {"label": "click", "domain": "coupon"}],
    "features": [
        {"column": "user_id", "kind": "id", "group": "user", "rows": 200},
        {"column": "category", "kind": "id", "group": "shared", "rows": 8},
        {
            "column": "last_categories",
            "kind": "sequence",
            "group": "sequence",
            "table": "category",
            "rows": 8,
            "length": 5,
        },
        {"column": "price", "kind": "dense", "group": "specific", "domains": ["product"]},
        {"column": "discount", "kind": "id", "group": "specific", "domains": ["coupon"], "rows": 5},
    ],
}

# %% [markdown]
# ## The run
#
# A config is usually a YAML file; `RunConfig.model_validate` takes the same keys. Unknown or misspelt keys are errors.

# %%
config = xd.RunConfig.model_validate(
    {
        "schema": schema,
        "model": {"name": "shared_bottom", "widths": [32], "tower_widths": [16], "aligned_dim": 8},
        "loader": {"batch_size": 500},
        "optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.005}},
        "trainer": {"epochs": 3},
    }
)
metrics = xd.train(config, FOLDER / "run")
metrics["eval"]["click@coupon"]

# %% [markdown]
# ## Predictions
#
# The run folder holds all that is needed: config, plan, checkpoints, metrics, log.

# %%
predictions = xd.predict(FOLDER / "run", FOLDER / "coupon" / "test.parquet", domain="coupon")
predictions.slice(0, 5)
