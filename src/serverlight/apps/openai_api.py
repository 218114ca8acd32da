"""A language model behind OpenAI's API: the routes, and how answers and errors reach whoever asked."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serverlight.apps.answers import Answers, Piece
from serverlight.apps.openai_replies import ChatReply, CompletionReply, Problem, Reply, problem_of
from serverlight.apps.openai_requests import parse_body, read_request
from serverlight.apps.turns import Turn, Turns
from serverlight.errors import ConfigError, ServerlightError

__all__ = ["make_app"]

MAX_BODY_BYTES = 8 << 20

_log = logging.getLogger(__name__)

_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed"}


def make_app(answers: Answers, *, model: str, api_key: str | None = None, max_waiting: int = 8) -> FastAPI:
    """The endpoint as an ASGI application.

    Args:
        answers: makes them, one at a time, in a thread of the application's own.
        model: the name that requests must give.
        api_key: what requests must bring as a bearer token, if anything.
        max_waiting: requests that may wait for the one that runs; further ones are told to come back.
    """
    endpoint = _Endpoint(answers, model, Turns(max_waiting))
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(lifespan=endpoint.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    routes = APIRouter(prefix="/v1", dependencies=[Depends(_Guard(api_key))])
    routes.add_api_route("/models", endpoint.models)
    routes.add_api_route("/models/{name:path}", endpoint.model)
    routes.add_api_route("/completions", endpoint.complete, methods=["POST"])
    routes.add_api_route("/chat/completions", endpoint.chat, methods=["POST"])
    app.include_router(routes)
    app.add_api_route("/health", endpoint.health)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ServerlightError, _on_ours)
    app.add_exception_handler(Exception, _on_other)
    return app


class _Guard:
    """Lets in who has the key."""

    def __init__(self, api_key: str | None) -> None:
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    def __call__(self, request: Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        if self._expected is not None and not secrets.compare_digest(given, self._expected):
            raise HTTPException(401, "a wrong API key, or none; send `Authorization: Bearer KEY`")


class _Endpoint:
    """The routes."""

    def __init__(self, answers: Answers, model: str, turns: Turns) -> None:
        self._answers, self._model, self._turns = answers, model, turns
        self._since_s = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        self._turns.stop()

    async def health(self) -> Response:
        return JSONResponse({"status": "ok", "model": self._model, "requests": self._turns.num_open})

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, name: str) -> Response:
        return JSONResponse(self._card()) if name == self._model else _send(self._unknown(name))

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, is_chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, is_chat=True)

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        wanted = read_request(parse_body(await _body(request)), is_chat=is_chat)
        if wanted.model != self._model:
            return _send(self._unknown(wanted.model))
        if is_chat and not self._answers.tokenizer.has_chat_template:
            return _send(_no_template(self._model))
        reply = (ChatReply if is_chat else CompletionReply)(model=self._model)
        turn = self._turns.open(self._answers.pieces(wanted.question))
        try:
            if not wanted.stream:
                return await _whole(request, turn, reply)
            first = await turn.next()  # so that what is wrong from the beginning has a status of its own
            events = _events(request, turn, reply, first, wanted.include_usage)
            return _Stream(turn, events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        except BaseException:
            turn.close()
            raise

    def _card(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._since_s, "owned_by": "serverlight"}

    def _unknown(self, name: str) -> Problem:
        message = f"no model {name[:200]!r} here; this is {self._model!r}"
        return Problem(status=404, message=message, code="model_not_found", param="model")


class _Stream(StreamingResponse):
    """Closes its turn however it ends, also where it ends before it has begun."""

    def __init__(self, turn: Turn[Piece], events: AsyncGenerator[str, None], **more: Any) -> None:
        super().__init__(events, **more)
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._turn.close()


async def _body(request: Request) -> bytes:
    # A page in somebody's browser may send other kinds of content to this address without being asked for leave.
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise ConfigError("Content-Type", "must be application/json; send that header")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request of more than {MAX_BODY_BYTES} bytes; send a shorter prompt")
    return bytes(data)


async def _whole(request: Request, turn: Turn[Piece], reply: Reply) -> Response:
    pieces = list[Piece]()
    while (piece := await turn.next()) is not None:
        pieces.append(piece)
        if await request.is_disconnected():
            turn.close()
            return Response(status_code=499)  # nobody reads it
    turn.close()
    return JSONResponse(reply.whole(pieces))


async def _events(
    request: Request, turn: Turn[Piece], reply: Reply, piece: Piece | None, include_usage: bool
) -> AsyncGenerator[str, None]:
    nothing = {"usage": None} if include_usage else {}
    if opening := reply.first():
        yield _event(opening | nothing)
    try:
        while piece is not None and not await request.is_disconnected():
            if piece.text or piece.notes or piece.finish_reason:
                yield _event(reply.chunk(piece) | nothing)
            if piece.usage and include_usage:
                yield _event(reply.usage(piece.usage))
            piece = await turn.next()
    except Exception as error:  # the status is sent: what went wrong is an event
        _log.warning("an answer broke off: %s", error, exc_info=not isinstance(error, ServerlightError))
        yield _event(problem_of(error).body)
        return
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _no_template(model: str) -> Problem:
    message = f"{model!r} has no chat template; send a plain prompt to /v1/completions instead"
    return Problem(status=400, message=message, code="no_chat_template", param="messages")


def _send(problem: Problem) -> Response:
    return JSONResponse(problem.body, status_code=problem.status, headers=problem.headers)


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_value")
    return _send(Problem(status=error.status_code, message=str(error.detail), code=code))


async def _on_ours(_: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status >= 500:
        _log.warning("%s: %s", type(error).__name__, error)
    return _send(problem)


async def _on_other(_: Request, error: Exception) -> Response:
    return _send(problem_of(error))
