"""How the documentation is built: `sphinx-build -W --keep-going -b html docs docs/_build/html`.

The pages read well on GitHub too. Tables of contents are for the built pages alone. They stand in comments that begin
with `<!-- sphinx`. Tests use other comments, see tests/live/pages.py.
"""

import re
from importlib.metadata import version as installed

from pygments.lexers import PostgresLexer

project = "pgnotifier"
author = "the authors of pgnotifier"
version = release = installed("pgnotifier")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

html_theme = "furo"
html_theme_options = {  # a link to each page's source
    "source_repository": "https://github.com/benhowell/pgnotifier/",
    "source_branch": "main",
    "source_directory": "docs/",
}
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
        return "\n" + text if mark.startswith("<!-- sphinx") else "\n" * found[0].count("\n")

    source[0] = re.sub(r"^<!--.*?-->", replaced, source[0], flags=re.DOTALL | re.MULTILINE)


def setup(app):
    app.add_lexer("sql", PostgresLexer)  # the plain one does not know $$
    app.connect("source-read", _comments)
