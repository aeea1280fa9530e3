"""The directive ``{drawn}``: panels that the build draws from cdgrad's own code, side by side.

Its argument names the panels, functions of `figures`; its content is the caption. Each panel is drawn twice,
for light and for dark pages, and the panels stack where the screen is narrow.
"""

import inspect
from html import escape
from pathlib import Path
from typing import ClassVar

import figures
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator


class drawn(nodes.General, nodes.Element):  # noqa: N801 (docutils names nodes like this)
    """The panels of a figure, and the words for who cannot see them."""


class Drawn(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        names = self.arguments[0].split()
        if unknown := [name for name in names if name not in figures.PANELS]:
            raise self.error(f"no panel {unknown[0]!r}; there are {', '.join(figures.PANELS)}")
        if "alt" not in self.options:
            raise self.error("a figure needs :alt:")
        self.env.note_dependency(inspect.getfile(figures))
        caption = nodes.caption()
        self.state.nested_parse(self.content, self.content_offset, caption)
        figure = nodes.figure("", drawn(names=names, alt=self.options["alt"]))
        if caption.children:
            figure += nodes.caption("", "", *caption.children[0].children)
        return [figure]


def visit(writer: HTML5Translator, node: drawn) -> None:
    folder = Path(writer.builder.outdir, "_images")
    folder.mkdir(exist_ok=True)
    writer.body.append('<div class="panels">')
    for index, name in enumerate(node["names"]):
        for theme in ("light", "dark"):
            file = f"{name}-{theme}.svg"
            (folder / file).write_bytes(figures.svg(name, theme))
            alt = escape(node["alt"]) if index == 0 else ""
            source = f"{writer.builder.imgpath}/{file}"
            writer.body.append(f'<img class="only-{theme}" src="{source}" alt="{alt}">')
    writer.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(drawn, html=(visit, None))
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
