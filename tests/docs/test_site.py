"""The site builds offline without a warning; every page is found from the first, and every link arrives."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("furo", reason="needs the extra docs")
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


def test_the_site(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    no_network = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    built = subprocess.run(
        [*command, "--doctree-dir", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        env={**os.environ, **no_network, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    html = tmp_path / "html"
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
