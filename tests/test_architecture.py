"""The shape of the code: who imports whom, how long files and functions are, what files are called.

The rules are checked on our own tree and, so that they cannot fall asleep, on small trees that each break one of them.
Only the syntax tree is read: an import inside a function counts like any other. An import under `if TYPE_CHECKING` may
go to a sibling of the same layer, never upward.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("errors",),
    ("given_paths",),
    ("atomic_write", "private_names", "strict_yaml"),
    (
        "settings",
        "json_lines",
        "run_folder",
        "run_lock",
        "writable",
        "shipped",
        "error_boundary",
        "doctor",
        "table_types",
    ),
    ("feature",),
    ("schema", "batch", "log", "modules", "losses"),
    ("outputs", "evaluation", "embeddings", "data"),
    ("reports",),
    ("prepare",),
    ("datasets", "diagnostics", "serving"),
    ("models",),
    ("distributed",),
    ("checkpoint", "planner", "training/trainer"),
    ("config",),
    ("training",),
    ("export",),
    ("study", "benchmark", "launch"),
    ("cli",),
    ("doors", "tools"),
)
"""From the floor up; a file imports from layers below its own and from its own folder. `doors` is folder launch/."""
LAYER_OF = {part: height for height, layer in enumerate(LAYERS) for part in layer}

TORCH_ONLY = ("modules", "losses")
MAY_IMPORT = {
    # Collectives: process group and sharded model, gathering for exact metrics, reading and writing of shards.
    "torch.distributed": ("distributed", "evaluation", "checkpoint", "private_names"),
    # The planner takes what describes shards and costs; what needs a process group is for `distributed` alone.
    "torchrec.distributed": ("distributed", "planner"),
    "torchrec.distributed.comm": ("distributed",),
    "torchrec.distributed.model_parallel": ("distributed",),
    "torchrec.distributed.DistributedModelParallel": ("distributed",),
    "torchrec.distributed.train_pipeline": ("distributed",),
    "pyarrow": ("data", "prepare", "datasets", "serving", "export", "benchmark", "tools"),
    "pandas": (),
}
"""Modules that only some parts may import; the longest name that fits decides."""

KNOW_PRIVATE_NAMES = (
    Path("torchrec_xd/private_names.py"),
    Path("torchrec_xd/benchmark/peer_worker.py"),  # runs in another library's environment, without this package
)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager"}
FILE_LINES = {"modules": 150, "models": 250}
MAX_FILE_LINES = 400
MAX_FIT_LINES = 60
MAX_CONSTRUCTOR_ARGUMENTS = 6


def faults(root: Path) -> list[str]:
    """Every broken rule below `root`, as `file:line: what`."""
    return [
        f"{path.relative_to(root)}:{line}: {text}"
        for folder in ("torchrec_xd", "launch", "tools", "tests")
        for path in sorted((root / folder).rglob("*.py"))
        for line, text in file_faults(path.relative_to(root), path.read_text(encoding="utf-8"))
    ]


def file_faults(path: Path, source: str) -> Iterator[tuple[int, str]]:
    part = part_of(path)
    lines = source.count("\n")
    budget = FILE_LINES.get(part, MAX_FILE_LINES) if path.name != "__init__.py" else MAX_FILE_LINES
    if lines > budget:
        yield lines, f"{lines} lines, the budget is {budget}: split it by meaning"
    for name in (*path.parts[:-1], path.stem):
        if FORBIDDEN_NAMES & set(name.split("_")):
            yield 1, f"'{name}' says nothing: name it after what it holds"
    if path.parts[0] == "tests":
        for line, module, _ in imports(ast.parse(source)):
            if module.startswith("tests.") and any(name.startswith("test_") for name in module.split(".")[:-1]):
                yield line, "imports from another test: what tests share lies in tests/support"
        return
    if path == Path("torchrec_xd/__init__.py"):
        return  # the public API names what lies in all layers, and imports it at first use
    if part not in LAYER_OF and path.name != "__init__.py":
        yield 1, f"'{part}' stands in no layer: give it one in tests/test_architecture.py"
    tree = ast.parse(source)
    yield from budget_faults(part, tree)
    yield from import_faults(part, tree)
    if path not in KNOW_PRIVATE_NAMES:
        yield from private_name_faults(tree)


def part_of(path: Path) -> str:
    """What a layer names, a file or a folder: torchrec_xd/data/arrow.py → data, tools/plan.py → tools."""
    if path.parts[0] != "torchrec_xd":
        return "doors" if path.parts[0] == "launch" else path.parts[0]
    inside = path.with_suffix("").parts[1:]
    names = ("/".join(inside[:length]) for length in range(len(inside), 0, -1))
    return next((name for name in names if name in LAYER_OF), inside[0] if inside else "")


def private_name_faults(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Underscore names of other people's objects; those that the file itself defines are its own."""
    defined = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            defined.add(node.attr)
    if any(module.partition(".")[0] == "ibis" for _, module, _ in imports(tree)):
        return  # attributes of an Ibis table are its columns, and `_` stands for it
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        else:
            continue
        for name in names:
            if name.startswith("_") and not name.endswith("__") and name not in defined:
                yield node.lineno, f"'{name}' is private: what is needed of a dependency goes into private_names.py"


def budget_faults(part: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        if node.name == "fit" and part == "training/trainer":
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FIT_LINES:
                yield node.lineno, f"fit has {lines} lines, the budget is {MAX_FIT_LINES}"
        if node.name == "__init__":
            given = node.args
            count = len(
                [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
            )
            if count - 1 > MAX_CONSTRUCTOR_ARGUMENTS:
                yield node.lineno, f"a constructor of {count - 1} arguments: take one settings object"


def import_faults(part: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, module, typing_only in imports(tree):
        package, _, rest = module.partition(".")
        if package in ("torchrec_xd", "launch", "tools"):
            imported = part_of(Path(package, *rest.split(".")))
            yield from ((line, text) for text in own_import_faults(part, imported, typing_only))
            continue
        if part in TORCH_ONLY and package not in {"torch", *sys.stdlib_module_names}:
            yield line, f"imports {module}: {part} imports torch only"
        allowed = allowed_parts(module)
        if allowed is not None and part not in allowed:
            yield line, f"imports {module}, which belongs in {' or '.join(allowed) or 'no part'}"


def own_import_faults(part: str, imported: str, typing_only: bool) -> Iterator[str]:
    if imported in ("", part):
        return
    if part in TORCH_ONLY:
        yield f"imports {imported}: {part} imports torch only"
    height, below = LAYER_OF.get(part, 0), LAYER_OF.get(imported, 0)
    if below > height:
        yield f"imports {imported} from a layer above"
    elif below == height and not typing_only:
        yield f"imports {imported} from its own layer: take it as an argument"


def allowed_parts(module: str) -> tuple[str, ...] | None:
    """The parts that may import `module`; None where all may."""
    names = module.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((MAY_IMPORT[prefix] for prefix in prefixes if prefix in MAY_IMPORT), None)


def imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether for type checking only, of what is imported or reached as torch.distributed."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # never relative: ruff's TID252
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.distributed", "torchrec.distributed"):
            modules = [ast.unparse(node)]
        else:
            continue
        yield from ((node.lineno, module, node in typing_only) for module in modules)


def test_our_own_tree() -> None:
    found = faults(ROOT)
    assert not found, "\n".join(found)
    assert len(list((ROOT / "torchrec_xd").rglob("*.py"))) > 5


MANY_ARGUMENTS = "class Net:\n    def __init__(self, a, b, c, d, *, e=1, f=2):\n        pass\n"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("torchrec_xd/modules/hfa.py", "import math\nimport torch\nfrom torchrec_xd.modules.mlp import MLP\n"),
        ("torchrec_xd/data/arrow.py", "import pyarrow as pa\nfrom torchrec_xd import batch\n"),
        ("torchrec_xd/distributed/a.py", "from torchrec.distributed.model_parallel import DistributedModelParallel\n"),
        ("torchrec_xd/planner/costs/a.py", "from torchrec.distributed.planner.types import Topology\n"),
        ("torchrec_xd/planner/a.py", "if TYPE_CHECKING:\n    from torchrec_xd.checkpoint import Checkpoints\n"),
        ("torchrec_xd/config.py", "from torchrec_xd.training.trainer import TrainerSettings\n"),
        ("torchrec_xd/training/train_run.py", "from torchrec_xd.config import RunConfig\n"),
        ("torchrec_xd/training/trainer.py", "def fit():\n" + "    x = 1\n" * 59),
        ("torchrec_xd/modules/mlp.py", "x = 1\n" * 150),
        ("torchrec_xd/models/mkt.py", MANY_ARGUMENTS + "x = 1\n" * 247),
        ("torchrec_xd/batch.py", "x = 1\n" * 400),
        ("torchrec_xd/batch.py", "class A:\n    def f(self):\n        self._a = other._a\n        self.__dict__\n"),
        ("torchrec_xd/private_names.py", "def f(x):\n    return x._hidden\n"),
        ("tools/plan.py", "import pyarrow\nimport torchrec_xd.cli\n"),
        ("tests/data/test_arrow.py", "import pandas, pyarrow, torch.distributed\n"),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path: Path, path: str, source: str) -> None:
    plant(tmp_path, path, source)
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "source", "line", "fault"),
    [
        ("torchrec_xd/batch.py", "\nfrom torchrec_xd.data.arrow import read\n", 2, "data from a layer above"),
        ("torchrec_xd/settings.py", "from torchrec_xd import schema\n", 1, "schema from a layer above"),
        ("torchrec_xd/models/mkt.py", "def f():\n    import torchrec_xd.config\n", 2, "config from a layer above"),
        ("torchrec_xd/data/arrow.py", "from torchrec_xd.embeddings import E\n", 1, "embeddings from its own layer"),
        ("torchrec_xd/planner/a.py", "from torchrec_xd.checkpoint import C\n", 1, "checkpoint from its own layer"),
        (
            "torchrec_xd/config.py",
            "from torchrec_xd.training.train_run import train\n",
            1,
            "training from a layer above",
        ),
        (
            "torchrec_xd/data/a.py",
            "if TYPE_CHECKING:\n    from torchrec_xd.cli import x\n",
            2,
            "cli from a layer above",
        ),
        ("torchrec_xd/reports/page.py", "from tools.plan import main\n", 1, "tools from a layer above"),
        ("torchrec_xd/doctor.py", "from torchrec_xd.shipped import CONFIGS\n", 1, "shipped from its own layer"),
        ("torchrec_xd/modules/hfa.py", "from torchrec_xd.settings import Settings\n", 1, "modules imports torch only"),
        ("torchrec_xd/losses.py", "import numpy as np\n", 1, "losses imports torch only"),
        ("torchrec_xd/batch.py", "import pyarrow.compute as pc\n", 1, "belongs in data or prepare or datasets or"),
        ("torchrec_xd/datasets/a.py", "import pandas as pd\n", 1, "belongs in no part"),
        ("torchrec_xd/training/a.py", "import torch.distributed as dist\n", 1, "belongs in distributed or"),
        ("torchrec_xd/data/a.py", "from torch import distributed\n", 1, "belongs in distributed or"),
        ("torchrec_xd/data/a.py", "import torch\nn = torch.distributed.get_rank()\n", 2, "belongs in distributed or"),
        (
            "torchrec_xd/training/a.py",
            "from torchrec.distributed import TrainPipelineBase\n",
            1,
            "in distributed or planner",
        ),
        ("torchrec_xd/planner/a.py", "from torchrec.distributed.comm import f\n", 1, "belongs in distributed"),
        ("torchrec_xd/planner/a.py", "from torchrec.distributed import DistributedModelParallel\n", 1, "distributed"),
        ("torchrec_xd/modules/mlp.py", "x = 1\n" * 151, 151, "151 lines, the budget is 150"),
        ("torchrec_xd/models/mkt.py", "x = 1\n" * 251, 251, "251 lines, the budget is 250"),
        ("tests/test_mkt.py", "x = 1\n" * 401, 401, "401 lines, the budget is 400"),
        (
            "torchrec_xd/training/trainer.py",
            "\ndef fit():\n" + "    x = 1\n" * 60,
            2,
            "fit has 61 lines, the budget is 60",
        ),
        ("torchrec_xd/batch.py", MANY_ARGUMENTS.replace("f=2", "f=2, g=3"), 2, "a constructor of 7 arguments"),
        ("torchrec_xd/batch.py", MANY_ARGUMENTS.replace("f=2", "f=2, **more"), 2, "a constructor of 7 arguments"),
        ("torchrec_xd/data/string_utils.py", "", 1, "'string_utils' says nothing"),
        ("torchrec_xd/models/base/mkt.py", "", 1, "'base' says nothing"),
        ("torchrec_xd/scoring.py", "", 1, "'scoring' stands in no layer"),
        ("torchrec_xd/planner/a.py", "def f(x):\n    return x._cdata\n", 2, "'_cdata' is private"),
        ("torchrec_xd/planner/a.py", "from torch.optim import _f\n", 1, "'_f' is private"),
        ("torchrec_xd/planner/a.py", "from torch._c import f\n", 1, "'_c' is private"),
        ("tests/data/a.py", "from tests.data.test_b import c\n", 1, "imports from another test"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, path: str, source: str, line: int, fault: str) -> None:
    plant(tmp_path, path, source)
    plant(tmp_path, "torchrec_xd/schema.py", "from torchrec_xd.settings import Settings\n")
    [found] = faults(tmp_path)
    assert found.startswith(f"{path}:{line}: ")
    assert fault in found


def plant(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
