"""A model without its tables: plain tensors in, named scores out; and that as ONNX.

Shape legend: B candidates, R rows of the request side, L positions, D width, N dense features, V numbers of vectors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_xd.embeddings import ColumnRun, Embeddings, Lookups, TableVectors, table_collections
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.models.model import Model
from torchrec_xd.serving.artifact import REQUEST_OF, TEACHER, NetInput, TableEntry
from torchrec_xd.serving.sides import side

OPSET = 18
"""Of ONNX: the oldest that torch writes without converting, so that older runtimes read it."""


def net_inputs(model: Model, domain: str) -> list[NetInput]:
    """What a net reads on rows of one domain: by embeddings, then in schema order."""
    found: dict[str, NetInput] = {}
    for owner, embeddings in _embeddings(model).items():
        for feature in embeddings.read.features_of(domain):
            name = f"{side(feature)}/{feature.column}"
            if not feature.has_table:
                found[name] = NetInput(name=name, column=feature.column, kind=feature.kind)
                continue
            if feature.kind == "sequence":
                length = f"{name}/length"
                found[length] = NetInput(name=length, column=feature.column, kind="length")
            name += f"@{owner}" if owner else ""
            table = f"{owner}/{feature.table_name}" if owner else feature.table_name
            found[name] = NetInput(name=name, column=feature.column, kind=feature.kind, table=table)
    return list(found.values())


def _embeddings(model: Model) -> dict[str, Embeddings]:
    own = {"": model.embeddings}
    return own if model.teacher is None else {**own, TEACHER: model.teacher.embeddings}


@dataclass(frozen=True)
class _Owners:
    """Embeddings by owner, where a module does not take them for parts of its own."""

    embeddings: Mapping[str, Embeddings]


class ServedNet(nn.Module):
    """A model's nets on what a server looks up: rows of the request side are taken by index, once a candidate.

    Args:
        model: in evaluation mode; its tables are not read.
        domain: of all rows.
        inputs: from `net_inputs`, in the order of the tensors.
        outputs: names of scores.
    """

    def __init__(self, model: Model, domain: str, inputs: list[NetInput], outputs: tuple[str, ...]) -> None:
        super().__init__()
        # Not the model itself: its tables would be part of the graph.
        self.net = model.net
        self.teacher = None if model.teacher is None else model.teacher.net
        self.dense = nn.ModuleList(
            part for each in _embeddings(model).values() for part in (each.numeric, each.projections)
        )
        self.owners = _Owners(_embeddings(model))
        self.domain, self.inputs, self.outputs = domain, inputs, outputs

    def forward(self, request_of_B: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Each output `[B]`."""
        given = {each.name: tensor for each, tensor in zip(self.inputs, inputs, strict=True)}
        looked_up = {
            owner: self._lookups(owner, embeddings, given, request_of_B)
            for owner, embeddings in self.owners.embeddings.items()
        }
        taught = () if self.teacher is None else (self.teacher(looked_up[TEACHER]),)
        score = self.net(looked_up[""], *taught).score
        return tuple(score[name].float() for name in self.outputs)

    def _lookups(
        self, owner: str, embeddings: Embeddings, given: Mapping[str, Tensor], request_of_B: Tensor
    ) -> Lookups:
        rows = _Rows(request_of_B, given, f"@{owner}" if owner else "")
        features = embeddings.read.features_of(self.domain)
        alone = {t.name for t in embeddings.read.tables() if t.sequential}
        pooled: dict[ColumnRun, Tensor] = {}
        for which in ("request", "candidate"):
            own = {f.column: f for f in features if side(f) == which and f.kind in ("id", "bag")}
            # By run, not all in one: what no output depends on can then be left out of the graph.
            for run in embeddings.read_together(c for c, f in own.items() if f.table_name not in alone):
                pooled[run] = rows.taken(which, torch.cat([rows.given(own[column]) for column in run], dim=1))
            pooled |= {(c,): rows.of(f) for c, f in own.items() if f.table_name in alone}
        sequences = [f for f in features if f.kind == "sequence"]
        tables = TableVectors(
            pooled, {f.column: rows.of(f) for f in sequences}, {f.column: rows.of(f, "/length") for f in sequences}
        )
        columns = {f.column: f for f in features}
        zero_B = request_of_B.new_zeros(request_of_B.shape[0], dtype=torch.float32)
        dense = [rows.of(columns[c]) if c in columns else zero_B for c in embeddings.batch_dense]
        vector = [
            rows.of(columns[c]) if c in columns else zero_B.unsqueeze(1).expand(-1, width)
            for c, width in embeddings.batch_vectors.items()
        ]
        return embeddings.arranged(
            tables,
            torch.stack(dense, dim=1) if dense else zero_B.unsqueeze(1)[:, :0],
            torch.cat(vector, dim=1) if vector else zero_B.unsqueeze(1)[:, :0],
            self._slices(embeddings, request_of_B.shape[0]),
        )

    def _slices(self, embeddings: Embeddings, count: int) -> dict[str, slice]:
        """All rows are of the one domain: those in front of it begin and end at 0, those behind it at the end."""
        domains = list(embeddings.read.domains)
        at = domains.index(self.domain)
        ends = [0] * at + [count] * (len(domains) - at)
        starts = [0, *ends[:-1]]
        return {d: slice(start, end) for d, start, end in zip(domains, starts, ends, strict=True)}


@dataclass(frozen=True)
class _Rows:
    """Inputs by feature, those of the request side as many as candidates."""

    request_of_B: Tensor
    inputs: Mapping[str, Tensor]
    suffix: str

    def given(self, feature: Feature) -> Tensor:
        name = f"{side(feature)}/{feature.column}"
        return self.inputs[name + self.suffix if feature.has_table else name]

    def taken(self, which: str, rows: Tensor) -> Tensor:
        return rows.index_select(0, self.request_of_B) if which == "request" else rows

    def of(self, feature: Feature, part: str = "") -> Tensor:
        which = side(feature)
        return self.taken(which, self.inputs[f"{which}/{feature.column}{part}"] if part else self.given(feature))


def as_onnx(model: Model, domain: str, outputs: tuple[str, ...]) -> tuple[bytes, list[NetInput]]:
    """A model's nets for one domain as ONNX, and those inputs that some output depends on.

    Raises:
        UserError: the model or its net cannot be exported; the message says why.
    """
    if type(model).forward is not Model.forward or type(model.embeddings).forward is not Embeddings.forward:
        raise UserError(
            f"{type(model).__name__} has a forward of its own, which export cannot take apart: have `build` return a "
            "plain Model(embeddings, net, loss), and compute the scores in the net"
        )
    inputs = net_inputs(model, domain)
    served = ServedNet(model.eval(), domain, inputs, outputs).eval()
    examples, shapes = _examples(model, inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                served,
                examples,
                dynamo=True,
                input_names=[REQUEST_OF, *(each.name for each in inputs)],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"the net of {type(model.net).__name__} cannot be exported to ONNX: {cause}; sizes of a batch are read by "
            "tensor.shape[0], not by len(tensor), and no value of a tensor decides what is computed"
        ) from error
    assert program is not None
    return _trimmed(program.model_proto, inputs)


def _trimmed(proto: onnx.ModelProto, inputs: list[NetInput]) -> tuple[bytes, list[NetInput]]:
    """Without inputs that nothing reads, and without notes of where in the source a node came from."""
    read = {name for node in proto.graph.node for name in node.input} | {REQUEST_OF}
    kept = [each for each in proto.graph.input if each.name in read]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    return proto.SerializeToString(), [each for each in inputs if each.name in read]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say of packages and optimisations that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _examples(model: Model, inputs: list[NetInput]) -> tuple[tuple[Tensor, ...], Any]:
    """Tensors of 3 rows of the request side and 5 candidates, and which of their sizes vary."""
    requests, candidates = torch.export.Dim("R", min=1), torch.export.Dim("B", min=1)
    features = {
        (owner, feature.column): (feature, embeddings.schema.dim_of(feature))
        for owner, embeddings in _embeddings(model).items()
        for feature in embeddings.schema.features
    }
    tensors, shapes = [torch.zeros(5, dtype=torch.int64)], [{0: candidates}]
    for each in inputs:
        request = each.name.startswith("request/")
        owners = (TEACHER,) if each.name.endswith(f"@{TEACHER}") else ("", TEACHER)
        feature, dim = next(features[owner, each.column] for owner in owners if (owner, each.column) in features)
        length = feature.length or 0
        size = {"vector": (feature.width,), "sequence": (length, dim), "id": (dim,), "bag": (dim,)}
        kind = torch.int32 if each.kind == "length" else torch.float32
        tensors.append(torch.zeros(3 if request else 5, *size.get(each.kind, ()), dtype=kind))
        shapes.append({0: requests if request else candidates})
    return tuple(tensors), (shapes[0], tuple(shapes[1:]))


def table_weights(model: Model) -> dict[str, tuple[Tensor, TableEntry]]:
    """Every table by the name that `NetInput.table` has, `[rows, D]`, and what it is."""
    found = {}
    for owner, embeddings in _embeddings(model).items():
        for collection in table_collections(embeddings):
            pooled = isinstance(collection, EmbeddingBagCollection)
            modules = collection.embedding_bags if pooled else collection.embeddings
            for config in collection.embedding_bag_configs() if pooled else collection.embedding_configs():
                mean = pooled and config.pooling == PoolingType.MEAN
                entry = TableEntry(
                    rows=config.num_embeddings,
                    dim=config.embedding_dim,
                    dtype="fp32",
                    pooling="mean" if mean else "sum",
                )
                found[f"{owner}/{config.name}" if owner else config.name] = (modules[config.name].weight, entry)
    return found
