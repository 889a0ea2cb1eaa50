"""A model hub on this machine, which answers the calls of the real clients with the headers that they need."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "some-org/gated"  # exists, but its files may not be read
TORN = "some-org/torn"  # lists data files that it does not have


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@contextmanager
def hub(models: dict[str, dict[str, bytes]], datasets: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serve repositories (name -> path -> content) and yield the endpoint for HF_ENDPOINT."""

    class Handler(_Handler):
        repositories = {"models": models, "datasets": datasets}

    with serving(Handler) as endpoint:
        yield endpoint


@contextmanager
def broken_hub(status: int) -> Iterator[str]:
    """A host that answers every request with the same status and without the headers of a hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with serving(Handler) as endpoint:
        yield endpoint


@contextmanager
def silent_hub() -> Iterator[str]:
    """A host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()


class _Server(ThreadingHTTPServer):
    """A server that can close its connections, since its threads would otherwise keep serving open ones."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connections: list[socket.socket] = []

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def hang_up(self) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, dict[str, bytes]]]

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"))
        else:
            self._file(path)

    do_HEAD = do_POST = do_GET

    def _api(self, path: str) -> None:
        """Answer /api/KINDs/REPO[/revision/R], .../tree/R/FOLDER and .../paths-info/R."""
        kind, _, path = path.partition("/")
        repo, files, call = self._repository(kind, path)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        if call.startswith("tree/"):
            folder = call.split("/", 2)[2] if call.count("/") > 1 else ""
            return self._json(self._listing(files, f"{folder}/" if folder else ""))
        if call.startswith("paths-info/"):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            sent = json.loads(body) if body.startswith("{") else parse_qs(body)
            return self._json(self._entries(files, [f for f in sent["paths"] if f in files]))
        if call and not call.startswith("revision/"):
            return self._refuse(404, "EntryNotFound")
        siblings = [{"rfilename": f} for f in files]
        info = {"_id": "0", "id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        return self._json({**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    def _file(self, path: str) -> None:
        """Answer /[datasets/]REPO/resolve/REVISION/FILE."""
        kind = "datasets" if path.startswith("datasets/") else "models"
        repo, files, call = self._repository(kind, path.removeprefix("datasets/"))
        if repo == GATED:
            return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if files is None:
            return self._refuse(404, "RepoNotFound")
        file = call.split("/", 2)[2]
        if file not in files or (repo == TORN and file.startswith("data/")):
            return self._refuse(404, "EntryNotFound")
        content = files[file]
        span = self.headers.get("Range")
        start, stop = 0, len(content)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else stop, stop)
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self._finish(content[start:stop])

    def _repository(self, kind: str, path: str) -> tuple[str, dict[str, bytes] | None, str]:
        """(repository, its files or None, the rest) of a path. The name of a repository has one or two parts."""
        parts = path.split("/")
        for length in (2, 1):
            repo = "/".join(parts[:length])
            if repo in self.repositories.get(kind, {}) or repo == GATED:
                return repo, self.repositories[kind].get(repo), "/".join(parts[length:])
        return path, None, ""

    def _listing(self, files: dict[str, bytes], prefix: str) -> list[dict]:
        """The files directly in a folder or, with ?recursive=true, in its subfolders, too."""
        inside = [f for f in files if f.startswith(prefix)]
        folders = {prefix + f.removeprefix(prefix).partition("/")[0] for f in inside} - set(inside)
        if "recursive=true" not in self.path.lower():
            inside = [f for f in inside if "/" not in f.removeprefix(prefix)]
        return [{"type": "directory", "oid": "0", "size": 0, "path": f} for f in folders] + self._entries(files, inside)

    def _entries(self, files: dict[str, bytes], names: list[str]) -> list[dict]:
        return [{"type": "file", "oid": _oid(files[n]), "size": len(files[n]), "path": n} for n in names]

    def _json(self, record: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._finish(json.dumps(record).encode())

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self._finish(b"")

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
