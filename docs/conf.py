"""How Sphinx builds the documentation: `make docs`. It needs no network."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

import torchrec_xd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import settings_reference  # noqa: E402

settings_reference.write_pages(HERE / "settings")

project = "torchrec-xd"
release = version = torchrec_xd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["build"]
language = "en"

default_role = "code"
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
add_module_names = False

html_theme = "furo"
html_title = f"torchrec-xd {release}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_copyright = False


class Layers(SphinxDirective):
    """The table of layers, read from the test that enforces them."""

    def run(self) -> list[nodes.Node]:
        """A numbered list, the lowest layer first."""
        source = (HERE.parent / "tests" / "test_architecture.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        items = nodes.enumerated_list()
        for layer in ast.literal_eval(values["LAYERS"]):
            line = nodes.paragraph()
            for place, name in enumerate(layer):
                line += [nodes.Text(", ")] if place else []
                line += nodes.literal(text="launch/" if name == "doors" else name)
            items += nodes.list_item("", line)
        return [items]


GOOGLE_STYLE = Config(napoleon_google_docstring=True, napoleon_numpy_docstring=False)


def google_style(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Read `Args:`, `Returns:` and `Raises:`.

    Napoleon as an extension would also take what stands before a colon in an attribute's docstring for its type.
    """
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, GOOGLE_STYLE, app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", google_style)
    app.add_directive("layers", Layers)
