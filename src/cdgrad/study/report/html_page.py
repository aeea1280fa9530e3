"""A document as one HTML page that needs no network: styles and pictures are in it, values are escaped.

It reads on a telephone (tables and code scroll sideways, by touch or by keyboard), in print (nothing
scrolls, and no picture or row is cut), and on a dark screen (pictures keep their white ground).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape as html_escape

from cdgrad.study.report.document import Document, Figure, Section, Table
from cdgrad.study.shown import lines, one_line


def escape(text: str) -> str:
    """`text` on one line, for HTML."""
    return html_escape(one_line(text))


def html(document: Document) -> str:
    """The document as one HTML page, which needs no other file."""
    sections = "".join(_section(section, f"part-{k}") for k, section in enumerate(document.sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>{_STYLE.replace("PAGE-TITLE", _css_string(document.title))}</style>
</head>
<body>
<h1>{escape(document.title)}</h1>
<p class="note">{escape(document.summary)}</p>
{_sentences(document.verdicts, "verdict")}
{_sentences(document.remarks, "said")}
{_contents(document.sections)}
<main>
{sections}
</main>
<h2 id="environment">Environment</h2>
<ul>{"".join(f"<li>{escape(line)}</li>" for line in document.environment)}</ul>
<h2 id="specification">Specification</h2>
<pre tabindex="0">{html_escape(lines(document.spec.strip()))}</pre>
</body>
</html>
"""


_STYLE = """
:root { --ink: #222; --dim: #555; --line: #ddd; --ground: #fff; --raised: #f4f4f4; --link: #0b5394;
  --shade: #0003; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --dim: #aaa; --line: #444; --ground: #181818; --raised: #242424; --link: #8ab4f8;
    --shade: #fff3; }
  figure img { background: #fff; padding: .5rem; border-radius: .3rem; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 52rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
section > h2 { border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: var(--link); }
ul { padding-left: 1.2rem; } .verdict { font-weight: 600; } .verdict li, .said li { margin: .3rem 0; }
.note { color: var(--dim); font-size: .9rem; margin: .4rem 0; }
nav ul { columns: 16rem; list-style: none; padding: 0; } nav li { padding: .25rem 0; }
/* A shadow at an edge beyond which a table continues; the background covers it where the table ends. */
.scroll { overflow-x: auto; background:
    linear-gradient(to right, var(--ground) 40%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--ground) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; } tbody th { font-weight: normal; }
tbody .group { padding-top: .8rem; font-weight: bold; }
.text { text-align: left; }
td.long { white-space: normal; min-width: 11rem; }
@media (max-width: 30rem) {
  table { font-size: .85rem; } th, td { padding-right: .6rem; }
  td.long { white-space: nowrap; }
}
figure { margin: 1.5rem 0; break-inside: avoid; } figure img { width: 100%; max-width: 38rem; height: auto; }
pre { background: var(--raised); padding: 1rem; overflow-x: auto; font-size: .85rem; }
@media print {
  @page { margin: 15mm 15mm 18mm;
    @bottom-right { content: counter(page) " / " counter(pages); font-size: 8pt; }
    @bottom-left { content: "PAGE-TITLE"; font-size: 8pt; } }
  :root { --ink: #000; --dim: #333; --line: #bbb; --ground: #fff; --raised: #f4f4f4; --link: #000; }
  body { max-width: none; margin: 0; font-size: 10pt; }
  nav { display: none; } .scroll { overflow: visible; } table { font-size: 10pt; }
  th, td { padding-right: .5rem; } tr { break-inside: avoid; } thead { display: table-header-group; }
  h2, h3, .group { break-after: avoid; } .note { break-inside: avoid; }
  figure { margin: .8rem 0; } figure img { max-width: 25rem; padding: 0; }
  pre { white-space: pre-wrap; overflow: visible; font-size: 8pt; }
}
"""


def _css_string(text: str) -> str:
    """Text inside a quoted CSS string in a <style> element: all but letters, digits and spaces escaped."""
    return "".join(c if c.isalnum() or c == " " else f"\\{ord(c):x} " for c in text)


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections, where there are some."""
    titled = [(f"part-{k}", section.title) for k, section in enumerate(sections) if section.title]
    if len(titled) < 2:
        return ""
    titled += [("environment", "Environment"), ("specification", "Specification")]
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in titled)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _section(section: Section, anchor: str) -> str:
    title = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    level = "h3" if section.title else "h2"
    parts = [
        title,
        _sentences(section.sentences, "said"),
        *(_table(p, level) if isinstance(p, Table) else _figure(p) for p in section.parts),
    ]
    return f'<section id="{anchor}">{"".join(parts)}</section>'


def _sentences(sentences: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


_CLASSES = {"r": "", "l": ' class="text"', "p": ' class="text long"'}


def _table(table: Table, level: str) -> str:
    # A column of cells would push all else off a telephone: each cell gets a row of its own instead.
    grouped = table.grouped
    width = len(table.header) - grouped
    kinds = [_CLASSES[letter] for letter in table.align]

    def row(cells: Sequence[str], *tags: str) -> str:
        """A row; the last of `tags` is that of all further cells."""
        visible = list(zip(kinds, cells, strict=True))[grouped:]
        names = [*tags, *[tags[-1]] * len(visible)]
        parts = [
            f"<{tag}{kind}>{escape(cell)}</{tag.split()[0]}>"
            for tag, (kind, cell) in zip(names, visible, strict=False)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    body = "<tbody>"
    for cells in table.rows:
        if grouped and cells[0]:
            group = f'<th class="text group" colspan="{width}" scope="rowgroup">{escape(cells[0])}</th>'
            body += f"</tbody><tbody><tr>{group}</tr>"
        body += row(cells, 'th scope="row"', "td")
    body = f"{body}</tbody>".replace("<tbody></tbody>", "", 1) if table.rows else ""
    head = row(table.header, 'th scope="col"')
    return (
        f"<{level}>{escape(table.title)}</{level}>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'
        f"<table><thead>{head}</thead>{body}</table></div>"
        f'<p class="note">{escape(table.note)}</p>'
    )


def _figure(figure: Figure) -> str:
    source = f"data:image/svg+xml;base64,{b64encode(figure.svg()).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(figure.alt)}">'
        f'<figcaption class="note">{escape(figure.caption)}</figcaption></figure>'
    )
