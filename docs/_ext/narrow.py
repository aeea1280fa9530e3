"""Pictures for phones: an image beside which NAME-narrow.svg lies is replaced by that on a narrow screen."""

import shutil
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

SCREEN = "(max-width: 600px)"  # as in the picture of README


def _narrow(writer: HTML5Translator, node: nodes.image) -> Path | None:
    image = Path(writer.builder.srcdir, node["uri"])
    file = image.with_name(f"{image.stem}-narrow{image.suffix}")
    return file if file.is_file() else None


def visit(writer: HTML5Translator, node: nodes.image) -> None:
    node["narrow"] = file = _narrow(writer, node)
    if file:
        folder = Path(writer.builder.outdir, "_images")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / file.name)
        source = escape(f"{writer.builder.imgpath}/{file.name}")
        writer.body.append(f'<picture><source media="{SCREEN}" srcset="{source}">')
    HTML5Translator.visit_image(writer, node)


def depart(writer: HTML5Translator, node: nodes.image) -> None:
    HTML5Translator.depart_image(writer, node)
    if node["narrow"]:
        writer.body.append("</picture>")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(nodes.image, override=True, html=(visit, depart))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
