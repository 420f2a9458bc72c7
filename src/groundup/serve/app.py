"""The HTTP application: OpenAI's endpoints, the feedback store's, and the chat page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, Literal

from groundup.errors import UserError, did_you_mean, missing_extra
from groundup.serve import page
from groundup.serve.feedback import FeedbackStore, Layout
from groundup.serve.generate import Generation, ServedModel, chat_prompts, completion_prompts
from groundup.serve.protocol import ApiError, ChatRequest, CompletionRequest, FeedbackRequest, Wording

try:
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise missing_extra("serve", "fastapi") from error


def create_app(
    models: Mapping[str, ServedModel],
    feedback: FeedbackStore | None = None,
    title: str = "groundup",
    *,
    examples: Sequence[str] = (),
) -> FastAPI:
    """The application for these models, shown in this order; `feedback=None` turns the thumbs off.

    `examples` are prompts the empty chat page offers. Raises UserError when there is no model.
    """
    if not models:
        raise UserError("nothing to serve: no stage of this run has made a model yet")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for model in models.values():
            model.batcher.close()

    # no docs pages: they would load scripts from elsewhere
    app = FastAPI(title=title, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_Cors, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    _add_error_handlers(app)
    _add_generation(app, models)
    _add_feedback(app, models, feedback)
    _add_page(app, page.render(title, feedback is not None, examples))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "models": list(models),
            "feedback": feedback is not None,
            "decoding": sum(model.batcher.decoding for model in models.values()),
            "waiting": sum(model.batcher.waiting for model in models.values()),
        }

    return app


def _find(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    if name not in models:
        message = f"the model {name!r} is not served here{did_you_mean(name, models)}"
        raise ApiError(404, message, "model", "model_not_found")
    return models[name]


def _add_generation(app: FastAPI, models: Mapping[str, ServedModel]) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card() for model in models.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return _find(models, name).card()

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = _find(models, body.model)
        return await _respond(Generation(model, chat_prompts(model, body), body), request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model = _find(models, body.model)
        return await _respond(Generation(model, completion_prompts(model, body), body), request)


async def _respond(generation: Generation, request: Request) -> Response:
    body = generation.request
    counted = bool(body.stream_options and body.stream_options.include_usage)
    wording = Wording(isinstance(body, ChatRequest), body.model, counted)
    generation.start()
    if body.stream:
        return _EventStream(generation, wording)
    answer = await generation.whole(wording, request.receive)
    return JSONResponse(answer) if answer is not None else Response(status_code=499)  # the client has left


class _EventStream(StreamingResponse):
    """Server-sent events; however the response ends (a client that left included), decoding stops with it."""

    def __init__(self, generation: Generation, wording: Wording) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy may hold tokens back
        super().__init__(generation.events(wording), media_type="text/event-stream", headers=headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


def _add_feedback(app: FastAPI, models: Mapping[str, ServedModel], store: FeedbackStore | None) -> None:
    def the_store() -> FeedbackStore:
        if store is None:
            raise ApiError(404, "this server keeps no feedback", code="feedback_off")
        return store

    # plain `def`: SQLite blocks, so these run on FastAPI's threads and never hold up a stream
    @app.post("/v1/feedback")
    def rate(body: FeedbackRequest) -> dict[str, Any]:
        _find(models, body.model)
        messages = [message.plain() for message in body.messages]
        kept = the_store().add(body.model, messages, body.answer, body.rating, body.comment, body.id)
        return {"id": kept, "object": "feedback", "model": body.model, "rating": body.rating}

    @app.get("/v1/feedback")
    def read(format: Literal["counts", "jsonl"] = "counts", layout: Annotated[Layout, Query()] = "raw") -> Response:
        found = the_store()
        if format == "counts":
            counts = found.counts()
            total = sum(sum(one.values()) for one in counts.values())
            return JSONResponse({"object": "feedback.counts", "total": total, "models": counts})
        return StreamingResponse(_jsonl(found.export(layout)), media_type="application/x-ndjson")


def _jsonl(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    import json

    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _add_page(app: FastAPI, html: str) -> None:
    @app.get("/")
    async def index() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=page.HEADERS)

    app.mount("/static", StaticFiles(directory=page.STATIC))


class _Cors(CORSMiddleware):
    """Any web page may use the models, as browser clients of OpenAI's API do; none but ours may read or write
    the feedback, which holds people's conversations."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/feedback"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves as OpenAI's {"error": {...}}, with a status that says whose fault it is."""

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status)

    async def api_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(error)

    async def user_error(_request: Request, error: Exception) -> Response:
        return answer(ApiError(400, str(error)))

    async def bad_request(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [(".".join(str(p) for p in e["loc"][1:]), _plain(e["msg"])) for e in error.errors()]
        message = "; ".join(f"{where}: {what}" if where else what for where, what in found)
        return answer(ApiError(400, message, found[0][0] or None))

    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        said = error.detail if error.detail != phrase else f"{phrase}: {_request.method} {_request.url.path}"
        return answer(ApiError(error.status_code, said))

    async def our_fault(_request: Request, error: Exception) -> Response:
        return answer(ApiError(500, f"{type(error).__name__}: {error}"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, our_fault)


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
