"""`prepare RECIPE`: raw logs to Parquet, schema, encoders and manifest, in stages that survive a stop."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.assembly import Assembler, total_groups, totals
from torchrec_xd.prepare.checks import RowCounts, check_events, check_rows, check_splits, check_types, refuse_empty
from torchrec_xd.prepare.encoders import NAME, RECIPE, Encoders, NumberEncoder, sha256
from torchrec_xd.prepare.engine import count_rows
from torchrec_xd.prepare.features import features_of, is_read
from torchrec_xd.prepare.hashing import hash_of
from torchrec_xd.prepare.learning import learn_number, learn_vocabulary, vocabulary_tables
from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.rows import domain_rows, event_rows
from torchrec_xd.prepare.tables import Tables
from torchrec_xd.prepare.writing import write_rows

BUCKET_BYTES = 128 << 20
"""Of input files, for each bucket of users: about a million rows, which are assembled at a time."""
MAX_BUCKETS = 512


@dataclass(frozen=True)
class Stages:
    """Folders of finished stages below a folder next to the result."""

    folder: Path
    progress: Callable[[str], None]

    def done(self, what: str, rows: int, begun: float) -> None:
        """Tell of finished work: how many rows, and how fast since `begun`, a `time.monotonic`."""
        speed = rows / max(time.monotonic() - begun, 1e-3)
        self.progress(f"{what} ({rows:,} rows, {speed:,.0f} rows/s)")

    @contextmanager
    def stage(self, name: str) -> Iterator[Path | None]:
        """A new folder for a stage; None where the stage was finished before. What breaks off vanishes."""
        place, mark = self.folder / name, self.folder / f"{name}.done"
        if mark.exists():
            yield None
            return
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield place
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        mark.touch()


@dataclass(frozen=True)
class Preparation:
    """One run of a recipe.

    Args:
        tables: of the engine, with all inputs and views.
        file: the recipe.
        stages: what is finished.
        buckets: of users.
        labels: whether rows have labels; if not, splits are not looked at either.
    """

    tables: Tables
    file: RecipeFile
    stages: Stages
    buckets: int
    labels: bool = True

    def run(
        self, out: Path, given: tuple[Encoders, Path] | None = None
    ) -> tuple[Encoders, dict[str, dict[str, RowCounts]]]:
        """Write the rows of all domains, `out/DOMAIN/SPLIT/*.parquet`, and what was learnt, `out/encoders/`.

        Args:
            out: a new folder.
            given: what was learnt before, and its folder; then nothing is learnt.
        """
        rows = {name: self._rows(name) for name in self.file.recipe.domains}
        events = {name: self._events(name) for name in self.file.recipe.events}
        check_events(self.file, rows, events)
        counts = {}
        for name, table in rows.items():
            counts[name] = check_rows(self.tables, self.file, name, table, labels=self.labels)
            if self.labels and given is None:
                check_splits(self.file, name, counts[name])
        encoders, folder = given or self._learn(rows, events)
        words = {name: self.tables.parquet(folder / file.file) for name, file in encoders.tables.items()}
        assemble = Assembler(self.tables, self.file.recipe, encoders, words)
        for name, table in rows.items():
            known = [self._totals(name, table, group, events) for group in self._over_all_users(name)]
            write_rows(self, assemble, name, known, out)
        return encoders, counts

    def _rows(self, name: str) -> Table:
        with self.stages.stage(f"rows/{name}") as folder:
            if folder is not None:
                begun = time.monotonic()
                rows = domain_rows(self.tables, self.file, name, labels=self.labels)
                check_types(self.tables, self.file, name, rows)
                numbered = self.buckets if self.labels else 0  # rows without labels are numbered already
                self.tables.write(self._placed(rows), folder, by=["_bucket"], numbered=numbered)
                refuse_empty(self.file, ("domains", name, "rows"), folder)
                self.stages.done(f"{name}: rows read", count_rows(self.tables.parquet(folder)), begun)
        return self.tables.parquet(self.stages.folder / "rows" / name)

    def _events(self, name: str) -> Table:
        with self.stages.stage(f"events/{name}") as folder:
            if folder is not None:
                begun = time.monotonic()
                events = self._placed(event_rows(self.tables, self.file, name))
                self.tables.write(events, folder, by=["_bucket"])
                refuse_empty(self.file, ("events", name, "rows"), folder)
                self.stages.done(f"{name}: events read", count_rows(self.tables.parquet(folder)), begun)
        return self.tables.parquet(self.stages.folder / "events" / name)

    def _placed(self, rows: Table) -> Table:
        """With the bucket of the user, and a hash that orders rows."""
        seed = self.file.recipe.seed
        rows = rows.mutate(_key=self.tables.number(rows._user))
        bucket = (hash_of([rows._key], seed) % self.buckets).cast("int32")
        order = hash_of([rows._key, self.tables.number(rows._time)], seed + 1).cast("int32")
        return rows.mutate(_bucket=bucket, _order=order).drop("_key")

    def _learn(self, rows: Mapping[str, Table], events: Mapping[str, Table]) -> tuple[Encoders, Path]:
        place = self.stages.folder / "encoders"
        with self.stages.stage("encoders") as folder:
            if folder is not None:
                folder.mkdir()
                vocabularies = {}
                for table in vocabulary_tables(self.file.recipe.features):
                    path = folder / f"{table}.parquet"
                    vocabularies[table] = learn_vocabulary(self.tables, self.file, table, rows, events, path)
                    self.stages.progress(f"{table}: {vocabularies[table].rows - 1:,} values")
                (folder / RECIPE).write_text(self.file.text, encoding="utf-8")
                learnt = Encoders(
                    recipe_sha256=sha256(folder / RECIPE), tables=vocabularies, numbers=self._numbers(rows, events)
                )
                (folder / NAME).write_text(learnt.model_dump_json(indent=1), encoding="utf-8")
        return Encoders.model_validate_json((place / NAME).read_bytes()), place

    def _numbers(self, rows: Mapping[str, Table], events: Mapping[str, Table]) -> dict[str, NumberEncoder]:
        found = {}
        for feature in self.file.recipe.features:
            if not (feature.quantiles or feature.standard or feature.missing != "zero"):
                continue
            seen = []
            for name, table in rows.items():
                if feature not in features_of(self.file.recipe, name):
                    continue
                train = table.filter(table._split == 0)
                if is_read(feature):
                    seen.append(train.select(value=train[f"v_{feature.column}"].cast("float64")))
                elif feature.total is not None:
                    group = feature.total.events, feature.total.by
                    column = total_groups(self.file.recipe, name)[group][feature.column]
                    past = totals(train, events[group[0]], group[1], {feature.column: column})
                    seen.append(past.select(value=past[f"t_{feature.column}"].cast("float64")))
            found[feature.column] = learn_number(ibis.union(*seen), feature)
            self.stages.progress(f"{feature.column}: learnt")
        return found

    def _over_all_users(self, domain: str) -> list[tuple[str, tuple[str, ...]]]:
        return [group for group in total_groups(self.file.recipe, domain) if "user" not in group[1]]

    def _totals(
        self, domain: str, rows: Table, group: tuple[str, tuple[str, ...]], events: Mapping[str, Table]
    ) -> Path:
        """Totals that are not of one user need all rows at once; they are written by bucket."""
        stage = f"totals/{domain}/{'-'.join([group[0], *group[1]])}"
        with self.stages.stage(stage) as folder:
            if folder is not None:
                begun = time.monotonic()
                wanted = total_groups(self.file.recipe, domain)[group]
                found = totals(rows, events[group[0]], group[1], wanted)
                found = found.mutate(_bucket=(_._row % self.buckets).cast("int32"))
                self.tables.write(found, folder, by=["_bucket"])
                what = f"{domain}: totals by {', '.join(group[1])} of {group[0]}"
                self.stages.done(what, count_rows(self.tables.parquet(folder)), begun)
        return self.stages.folder / stage


def bucket_count(sizes: int) -> int:
    """Buckets of users for input files of so many bytes; the same on every engine."""
    return min(MAX_BUCKETS, -(-max(sizes, 1) // BUCKET_BYTES))
