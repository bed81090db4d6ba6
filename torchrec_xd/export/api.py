"""`export`: the model of a run becomes an artefact that is checked against the run's own scores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import torchrec_xd
from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.checkpoint import CheckpointChoice
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.agreement import read_kinds
from torchrec_xd.data.key_rows import arrays_of
from torchrec_xd.data.vocabularies import vocabularies_of
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError
from torchrec_xd.export.checks import AucChange, Checked, auc_change, difference
from torchrec_xd.export.delta import check_base, checksums, write_changes
from torchrec_xd.export.narrow import narrowed
from torchrec_xd.export.net import as_onnx, table_weights
from torchrec_xd.models import find_model
from torchrec_xd.prepare.encoders import load_encoders
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.run_lock import run_lock
from torchrec_xd.schema import Domain, Schema, Split
from torchrec_xd.serving import artifact as files
from torchrec_xd.serving.artifact import Artifact, ArtifactManifest, NetInput, TableEntry, TablesDtype
from torchrec_xd.serving.delta import TABLES, VOCABULARIES
from torchrec_xd.serving.encoding import word_rows
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.serving.tables import Tables
from torchrec_xd.training.inference import load_plain
from torchrec_xd.writable import check_output_folder

TOLERANCE = 1e-6
"""Largest difference between a score of the artefact, its tables not narrowed, and of the run."""
AUC_TOLERANCE = 0.0005
"""Largest change of a task's AUC by narrower tables, where nobody allows more."""
_PARTIAL = ".partial"


def export(
    directory: str | Path,
    out: str | Path,
    domain: str | None = None,
    tables: TablesDtype = "fp32",
    checkpoint: CheckpointChoice = "best",
    max_auc_change: float = AUC_TOLERANCE,
    since: int | None = None,
) -> Artifact:
    """Write a run's model as the next version below `out`, and make it the current one.

    The version appears whole or not at all, and only if its scores are those of the run; until then the version before
    stays current.

    Args:
        directory: the run folder.
        out: folder of `versions/N` and `current.json`.
        domain: whose rows are scored. Default: the run's only domain, or its only target.
        tables: type of the tables' numbers.
        checkpoint: best or last.
        max_auc_change: what narrower tables may change in the AUC of any task.
        since: a version below `out`; `changes.txt` then names the files that make this version of a copy of that one.

    Raises:
        UserError: no run, no such domain, a net that cannot be exported, scores that differ, or an AUC that changes by
            more.
    """
    config, out = load_run(Path(directory)), Path(out)
    check_output_folder(out, "--out")
    own = _Exported(config, RunFolder(Path(directory)), _domain(config.schema_in_use, domain), tables, checkpoint)
    own.split()
    base = None if since is None else _base(out, since)
    with run_lock(out, "--out"):
        partial = out / files.VERSIONS / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
        partial.mkdir(parents=True)
        try:
            written = _write(own, partial, max_auc_change, base)
            version = 1 + max((int(p.name) for p in partial.parent.iterdir() if p.name.isdecimal()), default=0)
            final = partial.rename(partial.parent / str(version))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        write_json(out / files.CURRENT, {"version": version})
    return replace(written, folder=final, version=version)


def _base(out: Path, since: int) -> Artifact:
    folder = out / files.VERSIONS / str(since)
    if not folder.is_dir():
        there = sorted(int(path.name) for path in folder.parent.glob("*") if path.name.isdecimal())
        raise UserError(f"--since {since}: no such version below {out}; there are: {', '.join(map(str, there)) or '-'}")
    return Artifact.open(folder)


@dataclass(frozen=True)
class _Exported:
    """What is exported."""

    config: RunConfig
    folder: RunFolder
    domain: str
    tables: TablesDtype
    checkpoint: CheckpointChoice

    def split(self) -> Split:
        """Where the rows come from on which the artefact is checked."""
        domain = self.config.schema_in_use.domains[self.domain]
        splits: tuple[Split, ...] = ("test", "valid", "train")
        return next(split for split in splits if domain.paths(split))

    def outputs(self) -> tuple[str, ...]:
        tasks = [task.name for task in self.config.schema_in_use.tasks if task.domain == self.domain]
        auxiliary = find_model(self.config.model.name).auxiliary_scores(self.config.model)
        return (*tasks, *(name for name, task in auxiliary.items() if task in tasks))

    def schema(self, inputs: list[NetInput]) -> Schema:
        """Of the domain alone, without features that its net does not read."""
        schema = self.config.schema_in_use.only((self.domain,))
        read = {column for each in inputs for column in each.columns}
        return schema.without(tuple(f.column for f in schema.features if f.column not in read))


def _domain(schema: Schema, domain: str | None) -> str:
    if domain is not None and domain not in schema.domains:
        raise UserError(f"--domain {domain}: the run's domains are: {', '.join(schema.domains)}")
    choices = schema.targets() if len(schema.domains) > 1 else tuple(schema.domains)
    if domain is None and len(choices) != 1:
        raise UserError(f"an artefact scores one domain: name it, --domain NAME, one of: {', '.join(schema.domains)}")
    return domain or choices[0]


def _write(own: _Exported, place: Path, max_auc_change: float, base: Artifact | None) -> Artifact:
    """All files of a version, and what changed since another one; its net checked against the run, READY last."""
    checked = Checked.of(own.config, own.folder.path, own.domain, own.split(), own.checkpoint)
    with process_group(own.config.trainer) as processes:
        if processes.size > 1:
            raise UserError("export runs in one process; start it without torchrun")
        model, name = load_plain(own.config, own.folder, own.checkpoint, processes)
    net = as_onnx(model, own.domain, own.outputs())
    (place / files.NET).write_bytes(net.onnx)
    schema = _with_vocabularies(own.schema(net.inputs), own.folder.encoders, place)
    write_text(place / files.SCHEMA, files.dump_schema(_served(schema)))
    tables = {name for each in net.inputs for name in each.tables}
    weights = {name: each for name, each in table_weights(model).items() if name in tables}
    manifest = ArtifactManifest(
        written_by=torchrec_xd.__version__,
        model=own.config.model.name,
        run=own.folder.path.resolve().name,
        checkpoint=name,
        domain=own.domain,
        fingerprint=own.config.schema_in_use.fingerprint(),
        tasks=tuple(task.name for task in schema.tasks),
        outputs=net.outputs,
        inputs=tuple(net.inputs),
        tables={name: entry for name, (_, entry) in weights.items()},
        tables_dtype=own.tables,
        id_kinds=_id_kinds(own, schema),
        tolerance=TOLERANCE,
        difference=0.0,
    )
    if base is not None:
        check_base(base, manifest)
    arrays = {name: weight.detach().float().numpy() for name, (weight, _) in weights.items()}
    exact = Scorer(Artifact(place, 0, manifest, _served(schema)), tables=Tables(manifest.tables, arrays))
    found = difference(exact, checked, schema, TOLERANCE)
    manifest = _write_tables(place, manifest, arrays).model_copy(update={"difference": found})
    scorer = Scorer(Artifact(place, 0, manifest, _served(schema)))
    if own.tables != "fp32":
        change = auc_change(exact, scorer, own.config, schema, own.split())
        _refuse_change(change, own.tables, max_auc_change)
        manifest = manifest.model_copy(update={"auc_change": change.by_task, "auc_split": change.split})
    checked.write_sample(place / files.SAMPLE, scorer, _served(schema))
    if own.folder.encoders.is_dir():
        shutil.copytree(own.folder.encoders, place / files.ENCODERS)
    if base is None:
        sums = checksums(place)
    else:
        sums, changed = write_changes(place, base)
        write_text(place / files.CHANGES, "\n".join([*changed, files.MANIFEST, files.READY, ""]))
    manifest = manifest.model_copy(update={"files": sums, "since": None if base is None else base.version})
    write_json(place / files.MANIFEST, manifest.model_dump(mode="json"))
    (place / files.READY).touch()
    return Artifact(place, 0, manifest, _served(schema))


def _with_vocabularies(schema: Schema, encoders: Path, place: Path) -> Schema:
    """The same schema; vocabularies of the run and of its encoders are written, and keys are looked up there."""
    found = dict(vocabularies_of(schema, schema.features))
    if encoders.is_dir():
        learnt = load_encoders(encoders).tables
        names = {f.table_name.removeprefix("t_") for f in schema.features if f.has_table} & set(learnt)
        found |= {files.WORDS + name: word_rows(encoders / learnt[name].file) for name in sorted(names)}
    if found:
        save_file(arrays_of(found), place / VOCABULARIES)
        (place / VOCABULARIES).chmod((place / files.NET).stat().st_mode)
    return files.with_own_vocabularies(schema, place)


def _served(schema: Schema) -> Schema:
    """What requests are read by: no paths of the machine that trained, no columns that only training reads."""
    (name,) = schema.domains
    own = Domain(role=schema.domains[name].role, train=files.SAMPLE)
    return schema.model_copy(update={"domains": {name: own}, "root": ".", "weight": None, "activity": None})


def _id_kinds(own: _Exported, schema: Schema) -> dict[str, Any]:
    names = {"", *(table.name for table in schema.tables())}
    return {each.table: each.kind for each in read_kinds(own.folder.id_kinds) if each.table in names}


def _write_tables(place: Path, manifest: ArtifactManifest, arrays: dict[str, Any]) -> ArtifactManifest:
    entries: dict[str, TableEntry] = {}
    written: dict[str, Any] = {}
    for name, array in arrays.items():
        entries[name], parts = narrowed(name, array, manifest.tables[name], manifest.tables_dtype)
        written |= {part: np.ascontiguousarray(value) for part, value in parts.items()}
    save_file(written, place / TABLES)
    (place / TABLES).chmod((place / files.NET).stat().st_mode)  # it made a file of this user alone
    return manifest.model_copy(update={"tables": entries})


def _refuse_change(change: AucChange, tables: TablesDtype, most: float) -> None:
    task, worst = max(change.by_task.items(), key=lambda each: abs(each[1]))
    if abs(worst) > most:
        raise UserError(
            f"--tables {tables} changes the AUC of {task} by {worst:+.5f} on the {change.split} split, more than "
            f"{most}: use wider tables (fp32, fp16), or allow it: --max-auc-change {abs(worst) * 1.1:.4f}"
        )
