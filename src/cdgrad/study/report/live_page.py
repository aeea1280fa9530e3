"""The report of a study as a page on the loopback interface, which follows the records while the study runs.

Nothing but that page is served: no file of the folder, and nothing to a page of another origin.
"""

from __future__ import annotations

import hashlib
import socketserver
import threading
from base64 import b64encode
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from cdgrad.study import StudyError
from cdgrad.study.records import FILE
from cdgrad.study.report import html_page
from cdgrad.study.report.compose import AS_SPECIFIED, Asked, read

HOST = "127.0.0.1"
# Fetched rather than reloaded: the reader's place is kept, and the last page when the server has ended.
_SCRIPT = """
let shown = "";
setInterval(async () => {
  try {
    const answer = await fetch("/"), text = await answer.text();
    if (!answer.ok || text === shown) return;
    const page = new DOMParser().parseFromString(text, "text/html");
    if (shown) { document.body.innerHTML = page.body.innerHTML; document.title = page.title; }
    shown = text;
  } catch {}
}, 3000);
"""
_HEAD = f'<script>{_SCRIPT}</script><noscript><meta http-equiv="refresh" content="5"></noscript></head>'
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; script-src 'sha256-"
    + b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    + "'"
)


def page(folder: Path, asked: Asked = AS_SPECIFIED) -> str:
    """The report of the study in `folder` as it is now; what is missing, where there is no report yet."""
    try:
        _, document = asked.report(read(folder))
        text = html_page.html(document)
    except StudyError as error:
        text = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>cdgrad</title></head>'
            f"<body><p>{html_page.escape(str(error))}</p></body></html>\n"
        )
    return text.replace("</head>", _HEAD, 1)


@contextmanager
def served(folder: Path, asked: Asked = AS_SPECIFIED) -> Generator[str]:
    """Inside, the page is served at the yielded address, on a free port of this machine alone.

    Raises:
        StudyError: this machine has no free port.
    """
    try:
        server = _Server(folder, asked)
    except OSError as error:
        raise StudyError(
            f"cannot serve the report on {HOST}: {error.strerror or error}; leave out --watch or --serve"
        ) from error
    threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True).start()
    try:
        yield f"http://{server.name}/"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, asked: Asked) -> None:
        super().__init__((HOST, 0), _Handler)
        self.folder, self.asked = folder, asked
        self.name = f"{HOST}:{self.server_address[1]}"
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._page = b""

    def server_bind(self) -> None:
        """As TCPServer: HTTPServer would ask the network for the name of 127.0.0.1."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def current(self) -> bytes:
        """The page, rendered again where the records have changed."""
        with self._lock:
            try:
                facts = (self.folder / FILE).stat()
                state = facts.st_mtime_ns, facts.st_size
            except OSError:
                state = None
            if state is None or state != self._state:
                self._page, self._state = page(self.folder, self.asked).encode(), state
            return self._page


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a client that sends nothing

    def do_GET(self) -> None:
        """Answer with the page, and any other path or host with an error."""
        server = cast(_Server, self.server)
        hosts = (server.name, server.name.replace(HOST, "localhost"))
        if self.headers.get("Host") not in hosts:  # another site's name that was made to point here
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            content = server.current()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", _POLICY)
            self.end_headers()
            self.wfile.write(content)

    def version_string(self) -> str:
        return "cdgrad"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the name is the base class's
        """Nothing: the terminal shows the study."""
