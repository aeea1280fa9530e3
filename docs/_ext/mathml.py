"""Formulas as MathML, which browsers draw themselves: the pages load no script from elsewhere."""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

# What docutils writes, and what browsers draw as TeX would, even without a font for formulas.
_MEANT = {
    r'<mover accent="false">(.*?)<mo accent="true">_</mo>\s*</mover>': r'<mrow class="overline">\1</mrow>',
    r"<mo>([\u27e8\u27e9])</mo>": r'<mo stretchy="false">\1</mo>',
    r"<mo>'</mo>": "<mo>\u2032</mo>",
    r'<mo class="mathopen">\|</mo>': r'<mo form="prefix" stretchy="false">|</mo>',
}


def inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def block(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    source = node.astext()
    try:
        if re.search(r"frac\d\d", source):
            raise MathError(r"\frac needs braces: docutils reads 12 as one number")
        markup = tex2mathml(source, as_block=as_block)
    except MathError as error:
        logger.warning("%s in the formula %r", error, source, location=node)
        return f"<code>{escape(source)}</code>"
    for written, meant in _MEANT.items():
        markup = re.sub(written, meant, markup, flags=re.DOTALL)
    return markup


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
