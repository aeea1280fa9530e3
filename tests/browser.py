"""Headless Chromium for tests: what a page measures at a width, and what it asks of the network."""

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def run(folder, *arguments):
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *_FLAGS, profile, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def measure(page, script, folder, width):
    """The value of the JavaScript expression `script` on `page`, in a frame of `width` pixels.

    The frame's window is `w`, its document `d`. A window of Chromium is never narrower than 500 pixels.
    """
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<html><body><iframe id="f" srcdoc="{html.escape(page)}" '
        f'style="border:0;width:{width}px;height:3000px"></iframe><pre id="r"></pre><script>'
        'const f = document.getElementById("f"); f.onload = () => {'
        "const w = f.contentWindow, d = w.document;"
        f'document.getElementById("r").textContent = "found:" + JSON.stringify({script}) + ":found"; }};'
        "</script></body></html>",
        encoding="utf-8",
    )
    done = run(folder, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri())
    printed = re.search("found:(.*?):found", done.stdout)
    assert printed, done.stderr[-2000:]
    return json.loads(html.unescape(printed[1]))


def measure_site(root, pages, script, width, height):
    """What `measure` gives, for each of the `pages` of the built site in the folder `root`, by name."""
    (root / "wrapper.html").write_text(
        '<html><body><iframe id="f" style="border:0"></iframe><pre id="r"></pre><script>'
        f"const pages = {json.dumps(pages)}, found = {{}}, f = document.getElementById('f');"
        f"f.style.width = '{width}px'; f.style.height = '{height}px';"
        "(async () => { for (const page of pages) {"
        " await new Promise((done) => { f.onload = done; f.src = page; });"
        " const w = f.contentWindow, d = w.document; await d.fonts.ready;"
        f" found[page] = {script}; }}"
        ' document.getElementById("r").textContent = "found:" + JSON.stringify(found) + ":found"; })();'
        "</script></body></html>",
        encoding="utf-8",
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/wrapper.html"
        with tempfile.TemporaryDirectory() as folder:
            window = f"--window-size={max(width, 500)},{height}"
            done = run(Path(folder), window, "--virtual-time-budget=60000", "--dump-dom", address)
    finally:
        server.shutdown()
        server.server_close()
        (root / "wrapper.html").unlink()
    printed = re.search("found:(.*?):found", done.stdout, re.DOTALL)
    assert printed, done.stderr[-2000:]
    return json.loads(html.unescape(printed[1]))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
