"""Configs, schemas and `--set` assignments whose text is damaged: told with their line, or read as YAML means them."""
# ruff: noqa: PLR0911, PT017 - seeds and counts are printed; what a refusal says is checked case by case

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.support.feeds import SCHEMA
from torchrec_xd.config import load_config
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.strict_yaml import parse_yaml

Random = np.random.Generator
CONFIG: dict[str, Any] = {
    "schema": "schema.yaml",
    "model": {"name": "mmoe", "expert_widths": [16, 8], "aligned_dim": 8, "tower_widths": [4]},
    "loader": {"batch_size": 64, "mixing": {"items": 1.0, "video": 0.5, "post": 2.0}},
    "optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.005}},
    "trainer": {"epochs": 2},
    "metrics": {"slices": {"clicks": {"few": [0, 1], "many": [2]}}},
    "train_on_valid": False,
    "seed": 3,
}
SCALARS = [
    "", "~", "yes", "no", "true", "0100", "12:30:45", "2024-02-30", "0x_", "0x1F", "1_000", "-1", "0", "1e400", ".inf",
    ".nan", "9" * 23, "9" * 500, "!!int abc", "!!float x", "!!bool maybe", "!!timestamp 2024-02-30", "!!binary x",
    "!!python/name:os.system", "*a", "&a x", "[", "{", "]", "- x", "? x", "'", '"', "|", ">", "%TAG", "@", "`", "#",
    "a: b: c", "\t", "\x00", "\ud7ff", "\ufeff", "<<", "=", "{<<: [1]}", "[[1]]", "{a: {b: {c: d}}}", "null", "ü.ü",
]  # fmt: skip
PIECES = [
    *SCALARS,
    "\n",
    ":",
    ": ",
    " ",
    ",",
    "---\n",
    "...\n",
    "[" * 99,
    "{a: " * 99,
    "- " * 99,
    "&x [*x]",
    "<<: *y\n",
]


def replace_a_value(text: str, random: Random) -> str:
    lines = text.splitlines() or [""]
    at = int(random.integers(len(lines)))
    key, colon, _ = lines[at].partition(":")
    lines[at] = f"{key}{colon} {random.choice(SCALARS)}"
    return "\n".join(lines)


def insert(text: str, random: Random) -> str:
    at = int(random.integers(len(text)))
    return text[:at] + str(random.choice(PIECES)) + text[at:]


def cut_out(text: str, random: Random) -> str:
    at = int(random.integers(len(text)))
    return text[:at] + text[at + int(random.integers(1, 20)) :]


def repeat_a_line(text: str, random: Random) -> str:
    lines = text.splitlines() or [""]
    lines.insert(int(random.integers(len(lines))), lines[int(random.integers(len(lines)))])
    return "\n".join(lines)


def truncate(text: str, random: Random) -> str:
    return text[: int(random.integers(len(text)))]


MUTATIONS: list[Callable[[str, Random], str]] = [replace_a_value, insert, cut_out, repeat_a_line, truncate]


def dumped(content: dict[str, Any], random: Random) -> str:
    style = [False, None][int(random.integers(2))]
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=style, allow_unicode=True)


def one_meaning(text: str, value: Any) -> bool:
    """Whether PyYAML reads the text too, and reads the same where it has one meaning in all versions of YAML."""
    return alike(yaml.load(text, yaml.BaseLoader), value)


def alike(texts: Any, value: Any) -> bool:
    """Whether values are what the texts (of a loader that resolves nothing) say."""
    if isinstance(value, dict):
        if not isinstance(texts, dict) or len(texts) > len(value):
            return False
        return "<<" in texts or all(alike(a, b) for a, b in zip(texts.values(), value.values(), strict=True))
    if isinstance(value, list):
        return isinstance(texts, list) and all(alike(a, b) for a, b in zip(texts, value, strict=True))
    if value is None:
        return texts in (None, "", "~", "null", "Null", "NULL")
    if isinstance(value, bool):
        return isinstance(texts, str) and texts.lower() == str(value).lower()
    if isinstance(value, int):
        return isinstance(texts, str) and int(texts, 0) == value and len(str(abs(value))) <= len(texts)
    if isinstance(value, float):
        number = float(texts.replace(".inf", "inf").replace(".nan", "nan").lower())
        return number == value or (math.isnan(number) and math.isnan(value))
    return bool(texts == value)


def test_files(tmp_path: Path, fuzz_seeds: range) -> None:
    config, schema, refused = tmp_path / "run.yaml", tmp_path / "schema.yaml", 0
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        texts = {config: dumped(CONFIG, random), schema: dumped(SCHEMA, random)}
        damaged = [config, schema][int(random.integers(2))]
        for _ in range(int(random.integers(1, 3))):
            mutate = MUTATIONS[int(random.integers(len(MUTATIONS)))]
            texts[damaged] = mutate(texts[damaged] or "a: b", random)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="")
        try:
            value = parse_yaml(texts[damaged], str(damaged))
            assert one_meaning(texts[damaged], value)
            load_schema(schema)
            load_config(config)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path)), error
            assert all(len(line) < 2000 for line in str(error).splitlines())
    print(f"{refused} of {len(fuzz_seeds)} refused")
    assert refused > len(fuzz_seeds) // 2


KEYS = [
    "seed", "loader.batch_size", "loader.mixing", "loader.mixing.items", "model.expert_widths", "model", "schema.root",
    "schema.features", "schema.name", "schema", "metrics.slices", "trainer.epochs", "train_on_valid", "init_from",
    "domains", "optimizer.tables.lr", "monitor_tasks", "", ".", "a..b", "seed.x", "model.name", "ü", "\udc80", "a\nb",
    "extends",
]  # fmt: skip


def test_assignments(tmp_path: Path, fuzz_seeds: range) -> None:
    config, refused = tmp_path / "run.yaml", 0
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    config.write_text(yaml.safe_dump(CONFIG))
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        made = []
        for _ in range(int(random.integers(1, 3))):
            pieces = [SCALARS, PIECES][int(random.integers(2))]
            value = "".join(str(piece) for piece in random.choice(pieces, size=random.integers(1, 4)))
            made.append(f"{random.choice(KEYS)}{'=' if random.random() < 0.95 else ''}{value}")
        try:
            load_config(config, made)
        except UserError as error:
            refused += 1
            assert str(error).startswith((str(config), "--set ")), error
            assert all(len(line) < 2000 for line in str(error).splitlines())
    print(f"{refused} of {len(fuzz_seeds)} refused")
    assert refused > len(fuzz_seeds) // 2
