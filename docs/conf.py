"""How Sphinx builds the documentation: `make docs`. It needs no network."""

from __future__ import annotations

import sys
from pathlib import Path

import torchrec_xd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import settings_reference  # noqa: E402

settings_reference.write_pages(HERE / "settings")

project = "torchrec-xd"
release = version = torchrec_xd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"torchrec-xd {release}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_copyright = False
