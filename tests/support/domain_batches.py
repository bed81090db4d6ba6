"""Batches of one domain, as its own schema or the mixed one reads them."""

from dataclasses import replace

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.data.loader import Loader, LoaderSettings


def only(schema, batch_rows, domain):
    return next(iter(Loader(schema.only((domain,)), LoaderSettings(batch_size=batch_rows), "train").batches()))


def as_mixed(target, schema):
    """A batch of the full schema that holds the rows of `target` and no others."""
    position = list(schema.domains).index("post")

    def widen(kjt, sequential):
        tables = {f.column for t in schema.tables() if t.sequential == sequential for f in t.features}
        columns = [f.column for f in schema.features if f.column in tables]
        empty = torch.empty(0, dtype=torch.int64)
        zero = torch.zeros(len(target), dtype=kjt.lengths().dtype)
        parts = {k: (jagged.values(), jagged.lengths()) for k, jagged in kjt.to_dict().items()}
        values = torch.cat([parts.get(c, (empty, zero))[0] for c in columns])
        lengths = torch.cat([parts.get(c, (empty, zero))[1] for c in columns])
        return KeyedJaggedTensor(columns, values, lengths=lengths)

    narrow = [f.column for f in schema.only(("post",)).features if f.kind == "dense"]
    dense = [f.column for f in schema.features if f.kind == "dense"]
    dense_BN = torch.zeros(len(target), len(dense))
    dense_BN[:, [dense.index(c) for c in narrow]] = target.dense_BN
    label_BT = torch.full((len(target), len(schema.tasks)), torch.nan)
    label_BT[:, position] = target.label_BT[:, 0]
    return replace(
        target,
        bags=widen(target.bags, False),
        sequences=widen(target.sequences, True),
        dense_BN=dense_BN,
        label_BT=label_BT,
        offsets=tuple(len(target) if i > position else 0 for i in range(len(schema.domains) + 1)),
    )
