"""The site: Sphinx with MyST and furo. ``make docs`` builds it; it needs no network, then or when read."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import cdgrad
import cdgrad.metrics
import cdgrad.optax.operator
import cdgrad.optax.transformation
import cdgrad.study.statistics.paired

# Signatures show these names, not the unions and generic types behind them.
for module in (cdgrad.optax.operator, cdgrad.optax.transformation):
    module.ArrayLike = type("ArrayLike", (), {"__module__": "jax.typing"})
for module in (cdgrad.metrics, cdgrad.study.statistics.paired):
    module.Array = type("ndarray", (), {"__module__": "numpy"})
cdgrad.study.statistics.paired.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})

project = "cdgrad"
author = "the cdgrad contributors"
version = release = cdgrad.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "drawn",
    "narrow",
    "mathml",
    "spec_keys",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline", "substitution"]
myst_substitutions = {"version": version}
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the API pages begin with an object, not with a heading of level 2

# Docstrings name objects and arguments alike in single backticks.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", r"[a-z_]+"),  # an argument
    # Types of attributes that docs/spec.md and docs/statistics.md describe in words.
    ("py:class", r"cdgrad\.study\.(spec\.measure\.Measure|spec\.setting\.Arm|report\.words\.Words)"),
    ("py:exc", "StudyError"),  # as its module's own docstrings call it
    (
        "py:.*",
        r"(torch|numpy|scipy|jax|optax|collections|pathlib)\..*",
    ),  # their inventories are not at hand offline
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Of an example with prompts its input is copied, without prompts and without the lines of its output.
copybutton_exclude = ".linenos, .go"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_copy_empty_lines = False  # where there are prompts; other blocks are copied as they are

smartquotes_action = "D"  # dashes, not quotes, which are often a part of what is quoted

html_theme = "furo"
html_title = "cdgrad"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False


def bars_are_norms(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings write norms as |g|, which reStructuredText would replace; examples stay as they are."""
    for index, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            break
        parts = re.split(r"(``.*?``)", line)
        lines[index] = "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", bars_are_norms)
