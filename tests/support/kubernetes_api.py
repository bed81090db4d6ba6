"""A stand-in for a Kubernetes API: what TorchX asks of one, over HTTP. It keeps Volcano's jobs and schedules none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

JOBS = "/apis/batch.volcano.sh/v1alpha1/namespaces/{}/jobs"


class KubernetesApi(ThreadingHTTPServer):
    """Jobs by their path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, str]] = []
        """Method and path of every request."""

    def job(self, namespace: str, name: str) -> dict[str, Any]:
        """A job as it was submitted; what is changed in it is what the API says next."""
        return self.jobs[f"{JOBS.format(namespace)}/{name}"]

    def write_access(self, path: Path) -> None:
        """A kubeconfig file for this API, with a token."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "someone", "user": {"token": "a-token"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "someone", "namespace": "ads"}}],
        }
        path.write_text(yaml.safe_dump(content))


class _Handler(BaseHTTPRequestHandler):
    server: KubernetesApi

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = f"{self.path}/{body['metadata']['name']}"
        if path in self.server.jobs:
            self._answer(409, {"kind": "Status", "reason": "AlreadyExists", "details": {"name": path}}, "Conflict")
        else:
            self.server.jobs[path] = body
            self._answer(201, body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removesuffix("/status")
        found = self.server.jobs.get(path)
        self._answer(200, found) if found else self._answer(404, {"kind": "Status", "code": 404})

    def do_DELETE(self) -> None:
        found = self.server.jobs.pop(self.path.partition("?")[0], None)
        self._answer(200 if found else 404, {"kind": "Status"})

    def _answer(self, code: int, content: dict[str, Any], reason: str | None = None) -> None:
        self.server.seen.append((self.command, self.headers.get("authorization", "")))
        data = json.dumps(content).encode()
        self.send_response(code, reason)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def kubernetes_api() -> Iterator[KubernetesApi]:
    """The API, served by a thread."""
    with KubernetesApi() as api:
        thread = threading.Thread(target=api.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()
