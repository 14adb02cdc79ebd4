"""As much of a model hub's HTTP API, on 127.0.0.1, as the file system of huggingface_hub needs to read one model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "someone/model"


class Hub:
    """Serves the files of `folder` as the branch `main` of MODEL. ranges: {path: [(start, stop) of each answer's
    body]}."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges: dict[str, list[tuple[int, int]]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def files(self) -> list[dict[str, Any]]:
        """The hub's description of each file."""
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),  # noqa: S324
            }
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self._hub = hub
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith(f"/api/models/{MODEL}/tree/main"):
            self._answer(200, json.dumps(self._hub.files()).encode())
        elif path in (f"/api/models/{MODEL}", f"/api/models/{MODEL}/revision/main"):
            self._answer(200, json.dumps({"id": MODEL, "sha": "0" * 40, "siblings": []}).encode())
        elif path.startswith(f"/{MODEL}/resolve/main/"):
            self._send_file(path.removeprefix(f"/{MODEL}/resolve/main/"))
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def log_message(self, *_: object) -> None:
        return

    def _send_file(self, name: str) -> None:
        data = (self._hub.folder / name).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
        self._hub.ranges.setdefault(name, []).append((start, stop))
        where = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if asked else {}
        self._answer(206 if asked else 200, data[start:stop], where)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
