"""Models on plain tables as servers have them: without a run, without files of tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Rows
from torchrec_xd.export.net import as_onnx, table_weights
from torchrec_xd.models.model import Model
from torchrec_xd.schema import Schema
from torchrec_xd.serving.artifact import NET, Artifact, ArtifactManifest
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.serving.tables import Tables


def scorer_of(
    model: Model, schema: Schema, domain: str, outputs: tuple[str, ...], folder: Path
) -> tuple[Scorer, Schema]:
    """What scores rows of a domain without torch, and the schema by which it reads them."""
    net = as_onnx(model, domain, outputs)
    folder.mkdir(parents=True)
    (folder / NET).write_bytes(net.onnx)
    own = schema.only((domain,))
    read = {column for given in net.inputs for column in given.columns}
    own = own.without(tuple(f.column for f in own.features if f.column not in read))
    tables = {name for given in net.inputs for name in given.tables}
    weights = {name: each for name, each in table_weights(model).items() if name in tables}
    manifest = ArtifactManifest(
        written_by="test",
        model="test",
        run="test",
        checkpoint="test",
        domain=domain,
        fingerprint=schema.fingerprint(),
        tasks=tuple(task.name for task in own.tasks),
        outputs=net.outputs,
        inputs=tuple(net.inputs),
        tables={name: entry for name, (_, entry) in weights.items()},
        tables_dtype="fp32",
        tolerance=1e-6,
        difference=0.0,
    )
    arrays = {name: weight.detach().numpy() for name, (weight, _) in weights.items()}
    return Scorer(Artifact(folder, 0, manifest, own), tables=Tables(manifest.tables, arrays)), own


def decoded(schema: Schema, path: Path) -> Rows:
    """All rows of a file of the schema's one domain."""
    (domain,) = schema.domains
    decoder = Decoder(schema, domain, labels=False, extra=())
    (batch,) = pq.read_table(path, columns=list(decoder.columns)).combine_chunks().to_batches()
    return decoder.decode(batch, Origin(str(path), 0))
