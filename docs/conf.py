"""How the documentation is built: `sphinx-build -W --keep-going -b html docs docs/_build/html`.

The pages read well on GitHub too. What is for the built pages alone (tables of contents, the API) stands in comments
that begin with `<!-- sphinx`, or `<!-- sphinx MODULE` where it needs that module; other comments are the tests', see
tests/live/pages.py.
"""

import re
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

from pygments.lexers import PostgresLexer

HERE = Path(__file__).parent

project = "pgnotifier"
author = "the authors of pgnotifier"
version = release = installed("pgnotifier")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Other projects' names: their inventories would need a network to build.
    (r"py:.*", r"(psycopg|asyncio|collections|concurrent|datetime|typing|pyrsistent|contextlib)\..*"),
    # Type variables and the private halves of public types.
    (r"py:class", r"(pgnotifier\.maps\.)?[KV]|PMap|Future|Source|Reason"),
]

myst_heading_anchors = 3
default_role = "code"  # the docstrings' `backticks`
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"pgnotifier {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]


def _comments(app, name, source):
    """Unwrap what is for Sphinx, and drop the other comments; lines keep their numbers."""

    def replaced(found):
        mark, _, text = found[0].removesuffix("-->").partition("\n")
        needs = mark.removeprefix("<!-- sphinx").strip()  # a module, for pages that tell of it
        if mark.startswith("<!-- sphinx") and (not needs or find_spec(needs)):
            return "\n" + text
        return "\n" * found[0].count("\n")

    source[0] = re.sub(r"^<!--.*?-->", replaced, source[0], flags=re.DOTALL | re.MULTILINE)


def _bases(app, name, obj, options, bases):
    """A private base says nothing to readers: show what it stands for."""
    bases[:] = [shown for base in bases for shown in (base.__bases__ if base.__name__ == "_KeyError" else (base,))]


def setup(app):
    app.connect("autodoc-process-bases", _bases)
    app.add_lexer("sql", PostgresLexer)  # the plain one does not know $$
    app.connect("source-read", _comments)
