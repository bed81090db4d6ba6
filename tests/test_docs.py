"""The documentation: nothing public is undocumented, every command line in it parses, and the site builds.

`torchrec-xd ...` in a code block has to be a complete command line; in running text, command and options have to exist.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import typer.core

import torchrec_xd
from torchrec_xd.benchmark.commands import app as benchmark_app
from torchrec_xd.cli.app import app
from torchrec_xd.serving.server_settings import ServerSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = typer.main.get_command(app)
BENCHMARK = typer.main.get_command(benchmark_app)
ClickException: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Of click, or of the copy of click that newer versions of typer have inside."""
OWN_PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(
        path
        for path in sorted(DOCS.rglob("*.md"))
        if path.relative_to(DOCS).parts[0] not in ("results", "settings", "decisions.md")
    ),
]
BLOCK = re.compile(r"^```\w*\n(?P<fenced>.*?)^```|^(?P<indented>(?:    .*(?:\n|\Z))+)", re.MULTILINE | re.DOTALL)


def reference() -> ModuleType:
    """docs/settings_reference.py, which is in no package."""
    name = "settings_reference"
    if name not in sys.modules:
        found = spec_from_file_location(name, DOCS / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """What stands behind `torchrec-xd` in code, and whether it is a whole command line."""
    for block in BLOCK.finditer(text):
        code = block["fenced"] or block["indented"]
        for line in code.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:[A-Z]+=\S+ )*torchrec-xd (.*)", line)
            if found:
                yield found[1], "…" not in found[1]
    for found in re.finditer(r"`torchrec-xd ([^`]+)`", BLOCK.sub("", text)):
        yield found[1].replace("\n", " "), False


def parse(words: list[str], whole: bool, command: Any = COMMANDS) -> None:
    """Check a command line without calling anything.

    Raises:
        ClickException: no such command or option; or, where it is whole, a missing or wrong value.
    """
    context = typer.Context(command, info_name="torchrec-xd")
    if isinstance(command, typer.core.TyperGroup):
        rest = [word for word in words if word != "--debug"] if command is COMMANDS else words
        if not rest or rest[0].startswith("-"):
            command.make_parser(context).parse_args(list(rest))
            return
        if rest[0] == "benchmark" and command is COMMANDS:
            parse(rest[1:], whole, BENCHMARK)
            return
        _, below, left = command.resolve_command(context, list(rest))
        assert below is not None
        parse(left, whole, below)
    elif whole:
        command.make_context("torchrec-xd", list(words))
    else:
        command.make_parser(context).parse_args(list(words))


def fault(line: str, whole: bool) -> str:
    """What is wrong with a command line; empty where nothing is."""
    try:
        parse(shlex.split(line, comments=True), whole)
    except (ClickException, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("name", torchrec_xd.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    api = (DOCS / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. (auto)?\w+:: torchrec_xd\.{name}\b", api, re.MULTILINE), f"docs/api.md lacks {name}"
    if name != "__version__":
        assert getattr(torchrec_xd, name).__doc__


@pytest.mark.parametrize("page", ["run", "schema", "models", "data_sets", "studies", "planner"])
def test_every_setting_has_a_description(page: str) -> None:
    docs = reference()
    assert page in docs.PAGES
    sections = docs.PAGES[page][1]
    missing = [
        f"{section.title}: {key.path}" for section in sections for key in docs.keys(section) if not key.description
    ]
    assert not missing, "settings without a docstring:\n" + "\n".join(missing)


def test_the_settings_reference_names_defaults_and_nested_keys() -> None:
    docs = reference()
    keys = {key.path: key for key in docs.keys(docs.RUN)}
    assert (keys["trainer.epochs"].type, keys["trainer.epochs"].default) == ("integer (> 0)", "default: `1`")
    assert keys["sharding.constraints[].tables"].default == "required"
    assert keys["optimizer.dense.betas"].type == "list of 2 numbers (≥ 0, < 1)"
    assert "schema.dim" not in keys, "the schema has a page of its own"
    models = {key.path for section in docs.PAGES["models"][1] for key in docs.keys(section)}
    assert {"model.sources.NAME.wanted", "model.domain_weight"} <= models


@pytest.mark.parametrize("path", OWN_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_parse(path: Path) -> None:
    found = [(line, fault(line, whole)) for line, whole in command_lines(path.read_text(encoding="utf-8"))]
    assert [f"torchrec-xd {line}: {error}" for line, error in found if error] == []


def test_command_lines_are_found() -> None:
    text = (
        "Inline `torchrec-xd train` here.\n\n    torchrec-xd train a.yaml \\\n        --run-dir runs/a   # why\n\n"
        "```\nX=1 torchrec-xd doctor\ntorchrec-xd compare … --list\n```\n"
    )
    found = [(shlex.split(line, comments=True), whole) for line, whole in command_lines(text)]
    assert found == [
        (["train", "a.yaml", "--run-dir", "runs/a"], True),
        (["doctor"], True),
        (["compare", "…", "--list"], False),
        (["train"], False),
    ]


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("plan --tables a.csv", False),
        ("train a.yaml", True),
        ("train a.yaml --run-dir a --folds 3", True),
        ("evaluate runs/a --split validation", True),
        ("fit a.yaml", False),
        ("benchmark stepp", False),
        ("benchmark step --modell mmoe", False),
    ],
)
def test_a_wrong_command_line_is_a_fault(line: str, whole: bool) -> None:
    with pytest.raises(ClickException):
        parse(line.split(), whole)


def test_every_study_that_comes_along_is_listed() -> None:
    """In docs/compare.md, as `NAME`, or as `_END` in a line whose first name begins alike."""
    listed = set()
    for line in (DOCS / "compare.md").read_text(encoding="utf-8").splitlines():
        names = re.findall(r"`(\w+)`", line.split("|")[1]) if line.startswith("| `") else []
        start = names[0].rpartition("_")[0] if names else ""
        listed |= {start + name if name.startswith("_") else name for name in names}
    assert listed == {path.stem for path in (ROOT / "configs/studies").glob("*.yaml")}


def test_the_layers_in_contributing_are_those_that_are_checked() -> None:
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    layers = ast.literal_eval(values["LAYERS"])
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "\n".join(", ".join(layer) for layer in layers) in text


def test_the_readme_can_be_typed_in_order() -> None:
    """What a command reads is in the repository, or an earlier one has made it; nothing is made twice."""
    text, made = (ROOT / "README.md").read_text(encoding="utf-8"), set[str]()
    for line, _ in command_lines(text):
        words = [word for word in shlex.split(line, comments=True) if word != "--set"]
        outputs = {words[at + 1] for at, word in enumerate(words) if word in ("--out", "--run-dir")}
        for word in set(words) - outputs:
            path = word.rpartition("=")[2]
            if path.startswith(("runs/", "data/", "models/")) or path.endswith(".yaml"):
                assert (ROOT / path).exists() or any(f"{path}/".startswith(f"{own}/") for own in made), line
        again = {path for path in outputs & made if path.startswith("runs/")}
        assert not again, line
        made |= outputs
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", text)) == {str(ServerSettings.model_fields["port"].default)}


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 130


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_outside_of_the_site_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_links_in_the_repository_lead_somewhere_or_say_what_makes_the_page() -> None:
    for path in sorted(DOCS.rglob("*.md")):
        if path.parent.name == "settings":
            continue
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            for text, link in re.findall(r"\[([^\[\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)", paragraph):
                target = path.parent / link
                if target.parent.resolve() == DOCS / "settings":  # without a text it would show nothing
                    assert target.stem in reference().PAGES, f"{path}: {link}"
                    assert text, f"{path}: {link}"
                    assert "`make docs`" in paragraph, f"{path}: {link}"
                else:
                    assert "://" in link or target.exists(), f"{path}: {link}"


def test_python_in_the_pages_is_python() -> None:
    for path in OWN_PAGES:
        for code in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            ast.parse(code)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    arguments = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path / "site")]
    found = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "site" / "searchindex.js").is_file()
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="torchrec_xd.train"' in api
