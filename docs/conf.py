"""The documentation: `python -m sphinx -W -b html docs build/docs`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import pages  # noqa: E402

project = "pointpeft"
release = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"pointpeft {release}"
html_static_path = ["static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build", "generated"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
highlight_language = "python"


def _plain(app, what, name, obj, options, lines):
    """Single backquotes are code in our docstrings, as in Markdown; bars are not substitutions."""
    for i, line in enumerate(lines):
        line = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", line)
        parts = line.split("``")
        parts[::2] = [re.sub(r"([|*])(?!\*)", r"\\\1", part) for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app):
    """Writes the generated pages first; our docstrings are changed before napoleon turns their sections into fields."""
    app.connect("builder-inited", lambda app: pages.write(ROOT / "docs" / "generated"))
    app.connect("autodoc-process-docstring", _plain, priority=400)
