"""A Google Cloud Storage server of one bucket for tests: the two calls of its JSON API that readers make.

Source: https://cloud.google.com/storage/docs/json_api/v1/objects (list, get).
"""

import contextlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

PAGE = 50  # names on a page, so that readers must ask for the next one


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
        if match is None or match[1] != self.server.bucket:
            self._answer(404, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}')
        elif self.server.failure:
            self._answer(self.server.failure, b'{"error": {"message": "Anonymous caller does not have access."}}')
        elif match[2] is None:
            self._list(query)
        else:
            self._get(self.server.folder / urllib.parse.unquote(match[2]), query.get("alt", "json"))

    def _list(self, query: dict):
        files = (file for file in self.server.folder.rglob("*") if file.is_file())
        names = sorted(file.relative_to(self.server.folder).as_posix() for file in files)
        names = [name for name in names if name.startswith(query.get("prefix", ""))]
        begin, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        names = [name for name in names if begin <= name < end]
        begin = int(query.get("pageToken", 0))
        content = {"kind": "storage#objects", "items": [{"name": name} for name in names[begin : begin + PAGE]]}
        if begin + PAGE < len(names):
            content["nextPageToken"] = str(begin + PAGE)
        self._answer(200, json.dumps(content).encode())

    def _get(self, file: pathlib.Path, alt: str):
        self.server.requests.append((file.name, self.headers.get("Range")))
        if not file.is_file():
            self._answer(404, b"No such object")
            return
        data, headers = file.read_bytes(), {"x-goog-generation": "1"}
        if alt == "json":
            facts = {"kind": "storage#object", "name": file.name, "size": str(len(data)), "generation": "1"}
            self._answer(200, json.dumps(facts).encode())
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data, headers)
            return
        begin, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if begin > end:
            self._answer(416, b"")
            return
        self._answer(206, data[begin : end + 1], headers | {"Content-Range": f"bytes {begin}-{end}/{len(data)}"})

    def _answer(self, code: int, body: bytes, headers: dict | None = None):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(folder: pathlib.Path, bucket: str = "weights") -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of the files below `folder` as gs://bucket/...

    Its `requests` lists (file name, range) of what was read; `failure` is an HTTP code with which all is refused.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.bucket, server.failure, server.requests = folder, bucket, 0, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
