"""The report in a real browser: at a phone's width, on a desk, and on paper."""

import re

import pytest
from browser import measure, needs_browser, run

from cdgrad.study import spec
from cdgrad.study.records import Run
from cdgrad.study.report import compose, html_page
from cdgrad.study.report.document import Document, Section, Table
from cdgrad.study.statistics import Results

SPEC = """
title = 'A title with "quotes" & <tags>'
baseline = "sgd"
seeds = 6
entry = "mine:run"
[arms.sgd]
values.lr = 0.05
[arms.reweighted-3]
metric = "reweighted:lam=3"
values.lr = 0.1
"""


@pytest.fixture(scope="module")
def html():
    study = spec.parse(SPEC, "browser")
    runs = []
    for k, arm in enumerate(study.arms):
        for seed in study.seeds:
            setting = study.setting("", arm)
            epochs = [{"validation_error": 9.0 - k - seed / 7 - epoch} for epoch in range(3)]
            columns = {"status": "ok", "error": 5.0 + k / 3 + seed / 7, "evaluated": "test", "values": {}}
            columns |= {"epochs": epochs, "measures": {}, "config": spec.as_json(setting), "message": ""}
            columns |= {"fingerprint": setting.fingerprint, "environment": {}, "started": "", "seconds": 1.0}
            runs.append(Run("", arm, None, seed, **columns))
    return html_page.html(compose.document(Results.of(study, runs)))


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways_and_no_result_is_clipped(html, tmp_path, width):
    reach = measure(html, "[d.documentElement.scrollWidth, w.innerWidth]", tmp_path, width)
    assert reach[0] <= reach[1] == width
    ends = (
        '[...d.querySelectorAll("section:first-of-type table")].slice(0, 2).map(t => '
        '[...t.rows[1].cells].filter(c => !c.classList.contains("long")).slice(0, 3)'
        ".map(c => c.getBoundingClientRect().right))"
    )
    results = measure(html, ends, tmp_path, width)
    assert len(results) == 2
    assert all(right <= width for table in results for right in table), results


@needs_browser
def test_pictures_are_shown_and_the_network_is_not_asked(html, tmp_path):
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "url(" not in html
    loaded = measure(html, "[...d.images].map(i => i.complete && i.naturalWidth > 0)", tmp_path, 390)
    assert loaded
    assert all(loaded)


@needs_browser
def test_printed_pages_are_numbered_and_carry_the_title(html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    pdf = tmp_path / "page.pdf"
    run(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", (tmp_path / "page.html").as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
    assert "@bottom-right" in html
    assert '"A title with \\22 quotes\\22  \\26  \\3c tags\\3e "' in html


def test_every_cell_of_a_table_has_a_header_of_its_column_and_of_its_row():
    table = Table(
        "T",
        ("cell", "arm", "mean"),
        [("one", "a", "1"), ("", "b", "2"), ("two", "a", "3")],
        "",
        "llr",
        grouped=True,
    )
    page = html_page.html(Document("D", "", (), (), [Section("", (), [table])], (), ""))
    (found,) = re.findall("<table>.*?</table>", page)
    assert re.findall(r'<th scope="col"[^>]*>(\w+)', found) == ["arm", "mean"]
    groups = re.findall("<tbody>(.*?)</tbody>", found)
    assert [re.findall(r'scope="rowgroup">(\w+)', group) for group in groups] == [["one"], ["two"]]
    assert [re.findall(r'<th scope="row"[^>]*>(\w+)', group) for group in groups] == [["a", "b"], ["a"]]
    assert [re.findall(r"<td>(\w+)", group) for group in groups] == [["1", "2"], ["3"]]
