"""A model without its tables: plain tensors in, named scores out; and that as ONNX.

Shape legend: B candidates, R rows of the request side, L positions, D width, N dense features, V numbers of vectors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx import OnnxExporterError
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_xd.embeddings import ColumnRun, Embeddings, Lookups, TableVectors, table_collections
from torchrec_xd.errors import UserError
from torchrec_xd.export.attention import with_flat_attention
from torchrec_xd.export.once import once_a_request
from torchrec_xd.feature import Feature
from torchrec_xd.models.model import Model
from torchrec_xd.modules.gates import GatedLinearUnit
from torchrec_xd.modules.numeric import NumericEmbedding
from torchrec_xd.serving.artifact import GATE, REQUEST_OF, TEACHER, InputKind, NetInput, TableEntry
from torchrec_xd.serving.sides import side

OPSET = 18
"""Of ONNX: the oldest that torch writes without converting, so that older runtimes read it."""


def net_inputs(model: Model, domain: str) -> list[NetInput]:
    """What a net reads on rows of one domain.

    What is read together is one input: a graph of many small inputs spends its time on joining them.
    """
    found: dict[str, NetInput] = {}
    for owner, embeddings in _embeddings(model).items():
        features = {f.column: f for f in embeddings.read.features_of(domain)}
        runs: list[tuple[InputKind, ColumnRun]] = [("pooled", run) for run in _pooled_runs(embeddings, domain)]
        runs += [("dense", run) for _, run in _dense_runs(embeddings) if run[0] in features]
        for column, feature in features.items():
            if feature.kind == "sequence":
                runs += [("sequence", (column,)), ("length", (column,))]
            elif feature.kind == "vector":
                runs.append(("vector", (column,)))
        for kind, run in runs:
            name = input_name(kind, features[run[0]], owner)
            tables = [features[column].table_name for column in run] if kind in ("pooled", "sequence") else []
            tables = [f"{owner}/{table}" if owner else table for table in tables]
            found[name] = NetInput(name=name, columns=run, kind=kind, tables=tuple(tables))
    return list(found.values())


def input_name(kind: InputKind, feature: Feature, owner: str = "") -> str:
    """Name of the input that a feature is in, or begins."""
    shared = kind in ("length", "vector")
    return f"{side(feature)}/{kind}/{feature.column}" + (f"@{owner}" if owner and not shared else "")


def _pooled_runs(embeddings: Embeddings, domain: str) -> list[ColumnRun]:
    """Ids and bags of a domain; by run, not all in one, so that what no output depends on can be left out."""
    alone = {t.name for t in embeddings.read.tables() if t.sequential}
    features = [f for f in embeddings.read.features_of(domain) if f.kind in ("id", "bag")]
    runs: list[ColumnRun] = [(f.column,) for f in features if f.table_name in alone]
    for own in ("request", "candidate"):
        runs += embeddings.read_together(f.column for f in features if side(f) == own and f.table_name not in alone)
    return runs


def _dense_runs(embeddings: Embeddings) -> list[tuple[NumericEmbedding, ColumnRun]]:
    """Dense numbers of all domains, with what embeds them."""
    modules = [cast(NumericEmbedding, module) for module in embeddings.numeric.values()]
    return [(module, run) for module in modules for run in embeddings.read_together(module.columns)]


def _embeddings(model: Model) -> dict[str, Embeddings]:
    own = {"": model.embeddings}
    return own if model.teacher is None else {**own, TEACHER: model.teacher.embeddings}


@dataclass(frozen=True)
class _Owners:
    """Embeddings by owner, where a module does not take them for parts of its own."""

    embeddings: Mapping[str, Embeddings]


class _WatchedGate(nn.Module):
    """A gate that says how far it stands open, on average over its width."""

    def __init__(self, gate: GatedLinearUnit, name: str, opened: dict[str, Tensor]) -> None:
        super().__init__()
        self.gate, self.name, self._opened = gate, name, opened

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Called like the gate."""
        openness = self.gate.openness(x, state)
        self._opened[self.name] = openness.mean(1)
        passed: Tensor = self.gate.value(x) * openness
        return passed


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
        self.net = with_flat_attention(model.net, model.embeddings.schema)
        self.teacher = None
        if model.teacher is not None:
            self.teacher = with_flat_attention(model.teacher.net, model.teacher.embeddings.schema)
        self.dense = nn.ModuleList(
            part for each in _embeddings(model).values() for part in (each.numeric, each.projections)
        )
        self.owners = _Owners(_embeddings(model))
        gates = {path: m for path, m in self.net.named_modules() if isinstance(m, GatedLinearUnit)}
        names = {path: GATE + path.rpartition(".")[2].removeprefix("m_") for path in gates}
        self._opened: dict[str, Tensor] = {}
        for path, gate in gates.items():
            self.net.set_submodule(path, _WatchedGate(gate, names[path], self._opened))
        self.domain, self.inputs, self.outputs = domain, inputs, (*outputs, *names.values())

    def forward(self, request_of_B: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Each output `[B]`: scores, then gates."""
        given = {
            each.name: tensor.index_select(0, request_of_B) if each.name.startswith("request/") else tensor
            for each, tensor in zip(self.inputs, inputs, strict=True)
        }
        looked_up = {
            owner: self._lookups(owner, embeddings, given, request_of_B.shape[0])
            for owner, embeddings in self.owners.embeddings.items()
        }
        taught = () if self.teacher is None else (self.teacher(looked_up[TEACHER]),)
        found = {**self.net(looked_up[""], *taught).score, **self._opened}
        return tuple(found[name].float() for name in self.outputs)

    def _lookups(self, owner: str, embeddings: Embeddings, given: Mapping[str, Tensor], count: int) -> Lookups:
        features = {f.column: f for f in embeddings.read.features_of(self.domain)}

        def of(kind: InputKind, column: str) -> Tensor:
            return given[input_name(kind, features[column], owner)]

        sequences = [f.column for f in features.values() if f.kind == "sequence"]
        pooled = {run: of("pooled", run[0]) for run in _pooled_runs(embeddings, self.domain)}
        for module, run in _dense_runs(embeddings):
            dense_BN = of("dense", run[0]) if run[0] in features else torch.zeros(count, len(run))
            pooled[run] = _embedded(module, run, dense_BN)
        tables = TableVectors(
            pooled,
            {column: of("sequence", column) for column in sequences},
            {column: of("length", column) for column in sequences},
        )
        zero_B1 = torch.zeros(count, 1)
        vectors = [
            of("vector", column) if column in features else zero_B1.expand(-1, width)
            for column, width in embeddings.batch_vectors.items()
        ]
        return embeddings.arranged(
            tables,
            zero_B1.expand(-1, len(embeddings.batch_dense)),  # they are among the vectors already
            torch.cat(vectors, dim=1) if vectors else zero_B1[:, :0],
            self._slices(embeddings, count),
        )

    def _slices(self, embeddings: Embeddings, count: int) -> dict[str, slice]:
        """All rows are of the one domain: those in front of it begin and end at 0, those behind it at the end."""
        domains = list(embeddings.read.domains)
        at = domains.index(self.domain)
        ends = [0] * at + [count] * (len(domains) - at)
        starts = [0, *ends[:-1]]
        return {d: slice(start, end) for d, start, end in zip(domains, starts, ends, strict=True)}


def _embedded(module: NumericEmbedding, run: ColumnRun, dense_BN: Tensor) -> Tensor:
    """`NumericEmbedding` of some columns, `[B, N] -> [B, N * D]`, as one product; ONNX Runtime broadcasts slowly."""
    weight_ND, bias_ND = torch.stack([module.line(column).detach() for column in run], dim=1)
    each_NND = torch.eye(len(run)).unsqueeze(2) * weight_ND
    return functional.linear(dense_BN, each_NND.flatten(1).T, bias_ND.flatten())


@dataclass(frozen=True)
class ServedGraph:
    """A model's nets for one domain."""

    onnx: bytes
    inputs: list[NetInput]
    """That some output depends on."""
    outputs: tuple[str, ...]
    """The scores that were asked for, then `gate/NAME`: how far each gate of MKT stands open, from 0 to 1."""


def as_onnx(model: Model, domain: str, outputs: tuple[str, ...]) -> ServedGraph:
    """A model's nets for one domain as ONNX.

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
                output_names=list(served.outputs),
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
    return ServedGraph(*_trimmed(once_a_request(program.model_proto), inputs), served.outputs)


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
        found = [next(features[o, column] for o in owners if (o, column) in features) for column in each.columns]
        feature, dim = found[0]
        size: dict[InputKind, tuple[int, ...]] = {
            "pooled": (sum(width for _, width in found),),
            "sequence": (feature.length or 0, dim),
            "length": (),
            "dense": (len(found),),
            "vector": (feature.width,),
        }
        kind = torch.int32 if each.kind == "length" else torch.float32
        tensors.append(torch.zeros(3 if request else 5, *size[each.kind], dtype=kind))
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
