"""The routes of the server, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

import torchrec_xd
from torchrec_xd.errors import UserError
from torchrec_xd.serving import open_inference
from torchrec_xd.serving.examples import example_body
from torchrec_xd.serving.monitoring import Monitoring, log_line
from torchrec_xd.serving.pages import SAFE, documentation_page, try_page
from torchrec_xd.serving.server_settings import ServerSettings
from torchrec_xd.serving.service import RefusedError, Service
from torchrec_xd.serving.versions import Versions

SCORE = "/score"
V2 = "/v2/models/{model}"


def create_app(settings: ServerSettings, versions: Versions | None = None) -> FastAPI:
    """The application of one process.

    Args:
        settings: of the server.
        versions: that are loaded already. Default: they are loaded when the process starts.
    """
    monitoring = Monitoring()

    def say(event: str, content: Mapping[str, Any]) -> None:
        if event == "version refused":
            monitoring.refused()
        log_line(event, content)

    found = Versions(settings, say) if versions is None else versions
    found.say = say
    service = Service(settings, found, monitoring)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if found.reason is not None:
            try:
                await asyncio.to_thread(found.load)
            except UserError as error:
                say("version refused", {"reason": str(error), "version": None})
        _tell(found, monitoring)
        follower = asyncio.create_task(_follow(found, monitoring, settings.poll))
        yield
        follower.cancel()

    app = FastAPI(
        title="torchrec-xd", version=torchrec_xd.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    _add_errors(app)
    _add_scoring(app, service)
    _add_protocol(app, service)
    _add_pages(app, service)
    return app


async def _follow(versions: Versions, monitoring: Monitoring, poll: float) -> None:
    while True:
        await asyncio.sleep(poll)
        try:
            if await asyncio.to_thread(versions.follow):
                _tell(versions, monitoring)
        except Exception as error:  # the server goes on with the version that it has
            log_line("error", {"route": "follow", "reason": repr(error)})


def _tell(versions: Versions, monitoring: Monitoring) -> None:
    for place, version in zip(("current", "canary"), versions.served(), strict=False):
        monitoring.serves(version.model, place, version.number)


def _add_errors(app: FastAPI) -> None:
    """Errors of routes that are not there look like all others."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"error": str(error)}, error.status, headers)


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post(SCORE, summary="Score the candidates of one user")
    async def score(request: Request) -> Response:
        """`{"request": {"user": 7, …}, "candidates": {"item": [1, 2], …}}`: each column of the request has one value,
        each of the candidates a list; null stands for what is not known. `/` shows which columns there are.

        The answer has a list for each output, in the order of the candidates; `unseen` counts ids without a row of
        their own.
        """  # noqa: D205
        return await service.answer(request, SCORE, service.score)

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        """Requests by route and status, their seconds, candidates, unseen ids by feature, and versions."""
        text = service.monitoring.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_protocol(app: FastAPI, service: Service) -> None:
    """The Open Inference Protocol, version 2."""
    versions = service.versions

    def number_of(model: str, version: str | None) -> int | None:
        current = service.version(None)
        if model != current.model:
            raise RefusedError(404, f"no model '{model[:60]}'; the model is '{current.model}'")
        if version is None:
            return None
        if not version.isdecimal() or len(version) > 9:
            raise RefusedError(404, f"versions are numbers, and '{version[:60]}' is none")
        return int(version)

    @app.get("/v2", summary="What this server is")
    async def server() -> dict[str, Any]:
        return {"name": "torchrec-xd", "version": torchrec_xd.__version__, "extensions": []}

    @app.get("/v2/health/live", summary="Whether the process runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether requests are answered")
    async def ready() -> Response:
        """503, with the reason, until the current version has scored its sample as where it was exported."""
        if versions.served():
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": versions.reason}, 503)

    async def model_metadata(model: str, version: str | None = None) -> dict[str, Any]:
        chosen = service.version(number_of(model, version))
        own = open_inference.metadata(chosen.reader.columns, chosen.scorer.outputs)
        numbers = [str(each.number) for each in versions.served()]
        return {"name": chosen.model, "versions": numbers, "platform": "onnxruntime", **own}

    async def model_ready(model: str, version: str | None = None) -> dict[str, Any]:
        chosen = service.version(number_of(model, version))
        return {"name": chosen.model, "version": str(chosen.number), "ready": True}

    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Tensors in, tensors out. Inputs of the request's side have one row, or one for each candidate."""
        return await service.answer(request, f"{V2}/infer", lambda body: service.infer(body, number_of(model, version)))

    for place in (V2, f"{V2}/versions/{{version}}"):
        app.get(place, summary="Inputs and outputs of the model")(model_metadata)
        app.get(f"{place}/ready", summary="Whether the model is served")(model_ready)
        app.post(f"{place}/infer", summary="Score by the Open Inference Protocol")(infer)


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/", summary="A page to try the model", response_class=HTMLResponse)
    async def page() -> Response:
        version = service.version(None)
        numbers = [each.number for each in service.versions.served()]
        return HTMLResponse(try_page(version, example_body(version), numbers), headers=SAFE)

    @app.get("/docs", summary="This list of routes", response_class=HTMLResponse)
    async def documentation() -> Response:
        return HTMLResponse(documentation_page(app.openapi()), headers=SAFE)
