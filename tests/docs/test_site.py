"""The site builds offline without a warning; every page is found from the first, and every link arrives."""

import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest

import cdgrad

pytest.importorskip("furo", reason="needs the extra docs")
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).with_suffix("") for p in DOCS.rglob("*.md") if "_build" not in p.parts)


class Page(HTMLParser):
    """The ids of a page, what it links to, and what its browser loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The site, built without a network."""
    folder = tmp_path_factory.mktemp("site")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        for kind in ("http", "https"):
            patch.setenv(f"{kind}_proxy", "http://127.0.0.1:9")
        options = {"status": None, "warning": said, "warningiserror": True}
        site = Sphinx(DOCS, DOCS, folder / "html", folder / "doctrees", "html", **options)
        site.build()
    assert site.statuscode == 0, said.getvalue()
    return folder / "html"


def test_the_site(html):
    pages = {path: Page(path) for path in html.rglob("*.html")}

    navigation = {urlsplit(link).path for link in pages[html / "index.html"].links}
    lost = [page for page in PAGES if f"{page.as_posix()}.html" not in navigation and page.name != "index"]
    assert not lost, "in no toctree"
    assert len(PAGES) > 10

    for path, page in pages.items():
        for load in page.loads:
            assert not urlsplit(load).netloc, f"{path.name} loads {load} from elsewhere"
        for link in page.links + page.loads:
            where = urlsplit(link)
            if where.scheme or where.netloc:
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            assert target.is_file(), f"{path.name} links to {link}"
            if where.fragment and target in pages:
                assert unquote(where.fragment) in pages[target].ids, f"{path.name} links to {link}"


def test_the_panels_of_dark_pages_have_no_color_of_light_ones(html):
    light = sorted((html / "_images").glob("*-light.svg"))
    assert len(light) > 10
    for panel in light:
        other = panel.with_name(panel.name.replace("-light", "-dark"))
        colors = [{*re.findall("#[0-9a-f]{6}", file.read_text("utf-8"))} for file in (panel, other)]
        assert len(colors[0]) == len(colors[1]) > 2
        assert colors[0].isdisjoint(colors[1])


NAMES = [f"{page.as_posix()}.html" for page in PAGES]


SIDEWAYS = """[...d.querySelectorAll("article *")].filter((e) => e.scrollWidth > e.clientWidth + 1
  && ["auto", "scroll"].includes(w.getComputedStyle(e).overflowX)
  && !e.closest(".highlight, .table-wrapper")).map((e) => e.outerHTML.slice(0, 80))"""
PICTURES = '[...d.querySelectorAll("picture img")].map((i) => i.currentSrc.split("/").pop())'


@pytest.fixture(scope="module")
def phone(html):
    """What every page is like on a phone."""
    script = f"({{ width: d.documentElement.scrollWidth, sideways: {SIDEWAYS}, pictures: {PICTURES} }})"
    return browser.measure_site(html, NAMES, script, 390, 900)


@pytest.fixture(scope="module")
def laptop(html):
    """What every page is like on a laptop."""
    return browser.measure_site(html, NAMES, f"({{ ...{SEEN}, pictures: {PICTURES} }})", 1280, 900)


@browser.needs_browser
def test_no_page_is_wider_than_a_phone(phone):
    assert {name: seen["width"] for name, seen in phone.items() if seen["width"] > 390} == {}
    assert phone.keys() == {*NAMES}


@browser.needs_browser
def test_on_a_phone_only_code_and_tables_scroll_sideways_and_figures_are_the_narrow_ones(phone, laptop):
    assert {name: seen["sideways"] for name, seen in phone.items() if seen["sideways"]} == {}
    drawn = {f"{figure.stem}.svg" for figure in DOCS.rglob("*.svg") if "-narrow" not in figure.name}
    for pages, ending in ((phone, "-narrow.svg"), (laptop, ".svg")):
        names = {name for page in ("evidence.html", "start.html") for name in pages[page]["pictures"]}
        assert names == {figure.replace(".svg", ending) for figure in drawn}


COPIED = """(() => {
  const copied = [];
  d.execCommand = () => {
    const field = d.activeElement;
    copied.push(field.value.substring(field.selectionStart, field.selectionEnd));
    return true;
  };
  d.querySelectorAll("button.copybtn").forEach((button) => button.click());
  return copied;
})()"""


@browser.needs_browser
def test_a_copy_button_copies_the_input_without_prompts_and_output(html):
    found = browser.measure_site(html, ["start.html", "own.html", "api/cdgrad.html"], COPIED, 1280, 900)
    assert "cdgrad study quickstart --out runs/quickstart" in found["start.html"]
    assert "cdgrad inspect mynet:on_digits" in found["own.html"]
    assert (
        'grad = torch.tensor([1.0, 3.0])\nchannel_directed_([grad], "reweighted:lam=4")\ngrad'
        in (found["api/cdgrad.html"])
    )
    for copied in (text for texts in found.values() for text in texts):
        assert copied == copied.rstrip()
        assert not re.search(r"^(>>>|\.\.\.|\$)", copied, re.MULTILINE)


SEEN = """(() => {
  const box = (query) => { const e = d.querySelector(query); return e ? e.getBoundingClientRect() : null; };
  const visible = (r) => !!r && r.width > 0 && r.left >= 0 && r.right <= 1280 && r.top < 900;
  const scroll = d.querySelector(".sidebar-scroll");
  scroll.scrollTop = scroll.scrollHeight;
  const entries = [...d.querySelectorAll(".sidebar-tree > ul > li > a")];
  const last = entries[entries.length - 1].getBoundingClientRect();
  return { contents: visible(box(".toc-tree li")), titles: d.querySelectorAll("article h2").length,
    last: last.bottom <= 900 && last.top >= 0, width: d.documentElement.scrollWidth };
})()"""


@browser.needs_browser
def test_on_a_laptop_the_contents_are_visible_and_the_sidebars_last_entry_can_be_reached(laptop):
    own_contents = [name for name, seen in laptop.items() if seen["titles"] > 2 and name != "index.html"]
    assert len(own_contents) > 10
    assert [name for name in own_contents if not laptop[name]["contents"]] == []
    assert [name for name, seen in laptop.items() if not seen["last"] or seen["width"] > 1280] == []


@browser.needs_browser
def test_formulas_are_drawn_with_the_sites_own_font(html):
    script = '[...d.fonts].filter((f) => f.status === "loaded").map((f) => f.family.replaceAll(\'"\', ""))'
    fonts = browser.measure_site(html, ["theory.html", "index.html"], script, 1280, 900)
    assert fonts == {"theory.html": ["cdgrad-math"], "index.html": []}


def test_the_index_of_the_api_has_every_public_name_and_attach_first():
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:cdgrad\.)?([\w.]+)`", text)
    assert named[0] == "attach"
    assert {*cdgrad.__all__} <= {*named}


def test_the_evidence_leads_with_one_sentence_and_its_figure():
    blocks = [b for b in (DOCS / "evidence.md").read_text(encoding="utf-8").split("\n\n") if "<!--" not in b]
    assert blocks[0].startswith("# ")
    assert re.fullmatch(r"\*\*[^.]+\.\*\*", blocks[1].replace("\n", " "))
    assert blocks[2].startswith("![")
