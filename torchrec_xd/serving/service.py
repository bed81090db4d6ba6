"""Requests to answers: limits, errors in words, the work in a thread, and what is counted and logged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from torchrec_xd.errors import UserError
from torchrec_xd.serving import open_inference
from torchrec_xd.serving.monitoring import Monitoring, log_line
from torchrec_xd.serving.server_settings import ServerSettings
from torchrec_xd.serving.versions import ServedVersion, Versions

THREADS = 2
"""Of a process, for work on requests: a large one does not hold up a small one."""
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass
class Answer:
    """What became of a request."""

    content: dict[str, Any]
    version: ServedVersion | None = None
    candidates: int = 0
    unseen: Counter[str] = field(default_factory=Counter)
    missing: Sequence[str] = ()


Work: TypeAlias = Callable[[Any], Answer]
"""A body of JSON to its answer."""


class RefusedError(Exception):
    """An answer that is an error: its status and its words."""

    def __init__(self, status: int, text: str, retry_after: int | None = None):
        super().__init__(text)
        self.status, self.retry_after = status, retry_after


class Service:
    """Answers requests of one process.

    Args:
        settings: limits.
        versions: that are served.
        monitoring: where requests are counted.
    """

    def __init__(self, settings: ServerSettings, versions: Versions, monitoring: Monitoring):
        self.settings, self.versions, self.monitoring = settings, versions, monitoring
        self._inflight = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="score")

    def score(self, body: Any) -> Answer:
        """`/score`: the user once, candidates in columns."""
        user = None
        given = body.get("request") if isinstance(body, dict) else None
        if isinstance(given, dict):
            user = given.get(self.version(None).reader.user)
        version = self.versions.for_user(user if isinstance(user, int | str) else None)
        read, _ = version.reader.read(body, self.settings.max_candidates, self.settings.missing)
        scores = version.scorer.score(read.candidates, read.request, read.request_of_B)
        content: dict[str, Any] = {"model": version.model, "version": version.number, "scores": scores}
        if read.unseen:
            content["unseen"] = dict(read.unseen)
        if read.missing:
            content["missing"] = read.missing
        return Answer(content, version, len(read), read.unseen, read.missing)

    def infer(self, body: Any, number: int | None) -> Answer:
        """`/v2/models/…/infer`, of one version or the one that answers the user."""
        version = self.version(number)
        request, candidates = open_inference.columns_of(body, version.reader)
        if number is None:
            first, *others = request.get(version.reader.user) or [None]
            alone = isinstance(first, int | str) and all(user == first for user in others)
            chosen = self.versions.for_user(first if alone else None)  # an answer is of one version
            if chosen is not version:
                version = chosen
                request, candidates = open_inference.columns_of(body, version.reader)
        read = version.reader.read_columns(request, candidates, self.settings.max_candidates, self.settings.missing)
        scores = version.scorer.score(read.candidates, read.request, read.request_of_B)
        outputs = open_inference.outputs_of(scores, body.get("outputs"))
        content: dict[str, Any] = {
            "model_name": version.model,
            "model_version": str(version.number),
            "outputs": outputs,
        }
        if isinstance(body.get("id"), str):
            content["id"] = body["id"]
        parameters = {"unseen": dict(read.unseen), "missing": read.missing}
        if any(parameters.values()):
            content["parameters"] = {name: value for name, value in parameters.items() if value}
        return Answer(content, version, len(read), read.unseen, read.missing)

    def version(self, number: int | None) -> ServedVersion:
        """A version that is served; by default the current one.

        Raises:
            RefusedError: it is not there, or none is ready.
        """
        served = self.versions.served()
        if not served:
            raise RefusedError(503, f"no version is ready: {self.versions.reason}", retry_after=5)
        found = served[0] if number is None else self.versions.numbered(number)
        if found is None:
            there = ", ".join(str(each.number) for each in served)
            raise RefusedError(404, f"version {number} is not served; there are: {there}")
        return found

    async def answer(self, request: Request, route: str, work: Work) -> Response:
        """The answer to a request with a body of JSON, counted and logged."""
        begun = time.perf_counter()
        self.monitoring.inflight.inc()
        answer, headers = Answer({}), {}
        try:
            answer = await self._worked(request, work, begun)
            status = 200
        except RefusedError as refused:
            status, answer.content = refused.status, {"error": str(refused)}
            headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
        except UserError as error:
            status, answer.content = 422, {"error": str(error)}
        except ClientDisconnect:
            status, answer.content = 499, {"error": "the client left before the body had come"}
        except Exception as error:  # what is our own fault is logged, and not shown
            status, answer.content = 500, {"error": "internal error; the server's log says more"}
            log_line("error", {"route": route, "reason": repr(error)})
        finally:
            self.monitoring.inflight.dec()
        seconds = time.perf_counter() - begun
        self.monitoring.request(route, status, seconds)
        line: dict[str, Any] = {"route": route, "status": status, "ms": round(seconds * 1000, 3)}
        if answer.version is not None:
            self.monitoring.scored(answer.version.number, answer.candidates, answer.unseen, answer.missing)
            line |= {"model": answer.version.model, "version": answer.version.number}
            line |= {"candidates": answer.candidates} | ({"unseen": dict(answer.unseen)} if answer.unseen else {})
        elif status != 200:
            line["reason"] = str(answer.content["error"])[:200]
        log_line("request", line)
        return Response(orjson.dumps(answer.content, option=_NUMPY), status, headers, "application/json")

    async def _worked(self, request: Request, work: Work, begun: float) -> Answer:
        if self._inflight >= self.settings.max_concurrent:
            text = f"{self._inflight} requests are being answered, as many as may be; come again"
            raise RefusedError(429, text, retry_after=1)
        self._inflight += 1
        running: asyncio.Future[Answer] | None = None
        try:
            body = await asyncio.wait_for(self._body(request), self.settings.timeout)
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._parsed, body, work)
            left = max(0.001, self.settings.timeout - (time.perf_counter() - begun))
            return await asyncio.wait_for(asyncio.shield(running), left)
        except asyncio.TimeoutError:
            text = f"took longer than {self.settings.timeout:g} seconds; send fewer candidates, or come again"
            raise RefusedError(503, text, retry_after=1) from None
        finally:
            if running is None or running.done():
                self._inflight -= 1
            else:  # the thread goes on, and counts until it ends
                running.add_done_callback(self._late)

    def _late(self, running: asyncio.Future[Answer]) -> None:
        self._inflight -= 1
        if not running.cancelled():
            running.exception()  # nobody waits for it any longer

    async def _body(self, request: Request) -> bytes:
        most = self.settings.max_bytes
        text = f"the body is larger than {self.settings.max_body_mb:g} MiB; send fewer candidates"
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise RefusedError(413, text)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise RefusedError(413, text)
            parts.append(part)
        return b"".join(parts)

    @staticmethod
    def _parsed(body: bytes, work: Work) -> Answer:
        try:
            content = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            text = str(error)[:200]
            raise UserError(f"the body is no JSON: {text}; NaN and Infinity are none either, null is") from None
        return work(content)
