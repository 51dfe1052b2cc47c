"""The server: routes of the OpenAI API, of the page, of the health and the metrics, and what guards them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from tinychat.serve import answers
from tinychat.serve.metrics import Metrics
from tinychat.serve.replies import Piece, Reply
from tinychat.serve.requests import ApiError, asked
from tinychat.serve.served import Language, Reward, Served
from tinychat.serve.worker import Job, Worker, joined

log = logging.getLogger("tinychat")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
OPEN = ("/", "/health")  # without a key
LOCAL = {"localhost", "127.0.0.1", "::1"}
BODY_SECONDS = 30.0  # for a body to arrive
BODY_SECONDS_OF_MANY = 1.0  # where there are too many requests at once
READ_SECONDS = 10.0  # beyond the time of the request, for a slow reader
SERVER_ERROR = ApiError("an error in the server; its log says more", status=500, kind="server_error")


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server, and all together."""

    rows: int = 32  # replies of a model side by side
    queue: int = 64  # requests that may wait; more get 429
    most_tokens: int = 2048  # of a reply
    body: int = 1 << 20  # bytes
    seconds: float = 300.0  # a request may take


class Server:
    """Models, the worker that computes them, and the ASGI application."""

    def __init__(self, served: Sequence[Served], limits: Limits, key: str | None = None, host: str = "127.0.0.1"):
        """key: what clients must send; None: nothing, but then under names of this machine alone (host: one more)."""
        self.limits, self.metrics = limits, Metrics()
        self.served = {model.name: model for model in served}
        self.languages = [model for model in served if isinstance(model, Language)]
        self.worker = Worker(self.languages, limits.rows, limits.queue, limits.seconds, self.metrics)
        self._encoders = ThreadPoolExecutor(1, "encode")
        self._arriving: dict[asyncio.Future[None], float] = {}  # bodies, and since when (time.monotonic)
        self._page, self._policy = _page()
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(ApiError, _as_answer)
        app.add_exception_handler(HTTPException, _as_answer)
        app.add_exception_handler(Exception, _as_answer)
        for path, method, handler in (
            ("/", "GET", self.page),
            ("/health", "GET", self.health),
            ("/metrics", "GET", self.metrics_text),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{name}", "GET", self.one_model),
            ("/v1/chat/completions", "POST", self.chat),
            ("/v1/completions", "POST", self.completions),
            ("/v1/score", "POST", self.score),
        ):
            app.add_api_route(path, handler, methods=[method], response_model=None)
        at_once = limits.queue + limits.rows * max(1, len(self.languages)) + 16
        self.app = _Guard(app, key, LOCAL | {host}, self.metrics, at_once, self._make_room)

    def start(self) -> None:
        self.worker.start()

    def close(self) -> None:
        self.worker.close()
        self._encoders.shutdown(wait=False)

    # ------------------------------------------------------------------------------------------------- routes

    async def page(self) -> Response:
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        }
        return HTMLResponse(self._page, headers=headers)

    async def health(self) -> Response:
        if not self.worker.alive:
            raise ApiError("nothing is computed any more: start the server again", status=503, kind="server_error")
        return JSONResponse({"status": "ok"})

    async def metrics_text(self) -> Response:
        return PlainTextResponse(self.metrics.text(self.worker.sizes()), media_type="text/plain; version=0.0.4")

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [answers.model(model) for model in self.served.values()]})

    async def one_model(self, name: str) -> Response:
        return JSONResponse(answers.model(self._named(name, list(self.served.values()))))

    async def chat(self, request: Request) -> Response:
        return await self._reply(request, chat=True)

    async def completions(self, request: Request) -> Response:
        return await self._reply(request, chat=False)

    async def score(self, request: Request) -> Response:
        body = await self._body(request)
        if not isinstance(body, dict):
            raise ApiError("the body must be a JSON object")
        row = dict(body)
        rewards = [model for model in self.served.values() if isinstance(model, Reward)]
        if not rewards:
            raise ApiError("no reward model is served here; name one more CKPT when the server is started", status=404)
        model = self._named(row.pop("model", None), rewards)
        (scored,) = await self._result(request, self.worker.call([lambda: model.score(row)]))
        return JSONResponse(scored)

    # -------------------------------------------------------------------------------------------- their parts

    def _named(self, name: Any, among: Sequence[Any]) -> Any:
        """The model of that name; the first where none is named."""
        if name is None:
            return among[0]
        found = self.served.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(model.name for model in among)
            raise ApiError(
                f"model {str(name)[:100]!r} is not served here: {known}", "model", 404, code="model_not_found"
            )
        if found not in among:
            does = (
                "scores replies (/v1/score)" if isinstance(found, Reward) else "writes replies (/v1/chat/completions)"
            )
            raise ApiError(f"model {name} {does}; for this there are {', '.join(one.name for one in among)}", "model")
        return found

    async def _body(self, request: Request) -> Any:
        """Its JSON. Raises ApiError."""
        too_large = ApiError(f"the body is larger than {self.limits.body:,} bytes", status=413)
        with contextlib.suppress(ValueError):
            if int(request.headers.get("content-length", 0)) > self.limits.body:
                raise too_large
        raw = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                raw.extend(chunk)
                if len(raw) > self.limits.body:
                    raise too_large

        late = ApiError("the body did not arrive in time", status=408, kind="timeout")
        reading = asyncio.ensure_future(read())
        self._arriving[reading] = time.monotonic()
        try:
            await asyncio.wait_for(reading, BODY_SECONDS)
        except asyncio.TimeoutError:
            raise late from None
        except asyncio.CancelledError:
            if reading in self._arriving:
                raise
            raise late from None  # it made room
        except ClientDisconnect:
            raise ApiError("the client has gone", status=499) from None
        finally:
            self._arriving.pop(reading, None)
        try:
            return json.loads(bytes(raw))
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the body is no JSON: {str(error)[:200]}") from None

    def _make_room(self) -> bool:
        """Whether a request was ended whose body has been arriving for too long while others want to be heard."""
        reading, since = next(iter(self._arriving.items()), (None, 0.0))
        if reading is None or time.monotonic() - since < BODY_SECONDS_OF_MANY:
            return False
        del self._arriving[reading]
        return reading.cancel()

    async def _reply(self, request: Request, chat: bool) -> Response:
        wanted = asked(await self._body(request), chat, self.limits.most_tokens)
        model: Language = self._named(wanted.model, self.languages)
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(self._encoders, model.encode, wanted)
        self.metrics.prompt_tokens += sum(map(len, prompts))
        replies = model.replies(wanted, prompts, self.limits.most_tokens)
        echoes: list[Any] | None = None
        if wanted.echo:
            given = list(zip(wanted.prompts, prompts, strict=True))
            calls = [partial(model.echoed, *prompt, wanted.alternatives) for prompt in given]
            echoes = await self._result(request, self.worker.call(calls))
        form = answers.Form(model.name, wanted, prompts, echoes)
        if wanted.max_tokens == 0:
            return JSONResponse(form.whole([Piece(reply.index, finish="length") for reply in replies]))
        job = self.worker.submit(model, replies)
        if wanted.stream:
            return _Stream(self._events(job, form, len(replies)), lambda: self._gone(job), self.limits.seconds)
        try:
            pieces = await _unless_gone(request, self._collected(job, replies))
        except _Gone:
            self._gone(job)
            return Response(status_code=499)
        finally:
            self.worker.cancel(job)
        self.metrics.request.add(time.monotonic() - job.begun)
        return JSONResponse(form.whole(pieces))

    async def _collected(self, job: Job, replies: Sequence[Reply]) -> list[Piece]:
        """Each reply whole, in their order. Raises ApiError."""
        own: dict[int, list[Piece]] = {reply.index: [] for reply in replies}
        left = len(own)
        while left:
            piece = await job.pieces.get()
            if isinstance(piece, ApiError):
                raise piece
            own[piece.index].append(piece)
            left -= piece.finish is not None
        return [joined(pieces) for pieces in own.values()]

    async def _events(self, job: Job, form: answers.Form, replies: int) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream; what has come in the meantime is one."""
        for index in range(replies if form.asked.chat else 0):
            yield form.opening(index)
        left, tokens = replies, dict.fromkeys(range(replies), 0)
        while left:
            came = [await job.pieces.get()]
            while not job.pieces.empty():
                came.append(job.pieces.get_nowait())
            for index in dict.fromkeys(piece.index for piece in came if isinstance(piece, Piece)):
                piece = joined([one for one in came if isinstance(one, Piece) and one.index == index])
                tokens[index] = piece.tokens
                left -= piece.finish is not None
                yield form.chunk(piece)
            for error in came:
                if isinstance(error, ApiError):
                    yield error.body()
                    return
        self.metrics.request.add(time.monotonic() - job.begun)
        if form.asked.tell_usage:
            yield form.usage_chunk(sum(tokens.values()))

    async def _result(self, request: Request, job: Job) -> Any:
        """Of a call. Raises ApiError."""
        try:
            result = await _unless_gone(request, job.pieces.get())
        except _Gone:
            self._gone(job)
            raise ApiError("the client has gone", status=499) from None
        if isinstance(result, ApiError):
            raise result
        return result

    def _gone(self, job: Job) -> None:
        self.metrics.cancelled += 1
        self.worker.cancel(job)


class _Gone(Exception):
    """The client has closed the connection."""


async def _unless_gone(request: Request, wanted: Awaitable[Any]) -> Any:
    """What is awaited. Raises _Gone where the client leaves before."""
    waiting, watching = asyncio.ensure_future(wanted), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((waiting, watching), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise _Gone
        return waiting.result()
    finally:
        waiting.cancel()
        watching.cancel()


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Stream(Response):
    """Server-sent events. However it ends, `gone` is called unless all was sent."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], gone: Callable[[], None], seconds: float):
        self._events, self._gone, self._seconds = events, gone, seconds + READ_SECONDS
        self.status_code, self.background = 200, None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        done = False
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, watching), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            done = sending.done() and sending.exception() is None
        finally:
            watching.cancel()
            sending.cancel()
            if not done:
                self._gone()

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send(
                {"type": "http.response.body", "body": f"data: {json.dumps(event)}\n\n".encode(), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _as_answer(request: Request, error: Exception) -> Response:
    """An error in the API's format."""
    if isinstance(error, HTTPException):
        told = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}"
        error = ApiError(told, status=error.status_code, code="unknown_url" if error.status_code == 404 else None)
    if not isinstance(error, ApiError):  # the log has it
        error = SERVER_ERROR
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


class _Guard:
    """Around the application: who may ask, how many at once, and what is counted."""

    def __init__(
        self,
        app: Any,
        key: str | None,
        hosts: set[str],
        metrics: Metrics,
        at_once: int,
        make_room: Callable[[], bool],
    ):
        """make_room: ends a request that can be spared, where there is one."""
        self._app, self._key, self._hosts, self._metrics, self._at_once = app, key, hosts, metrics, at_once
        self._make_room = make_room
        self._open = 0
        self._paths = {route.path for route in app.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, begun = 0, False

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        self._open += 1
        try:
            refused = self._refused(scope)
            if refused is not None:
                await _as_answer(Request(scope), refused)(scope, receive, counted)  # type: ignore[arg-type]
            else:
                await self._app(scope, receive, counted)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not begun:
                await _as_answer(Request(scope), SERVER_ERROR)(scope, receive, counted)  # type: ignore[arg-type]
        finally:
            self._open -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests[path, status] += 1

    def _refused(self, scope: Scope) -> ApiError | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self._key is None:
            # Pages from elsewhere must not use a server that trusts whoever reaches it, by a name of their own that
            # leads here either.
            host, origin = headers.get("host", ""), headers.get("origin")
            if _name(f"//{host}") not in self._hosts or (origin is not None and urlsplit(origin).netloc != host):
                whose = f"requests of {(origin or host)[:100]!r}" if origin or host else "requests without a Host"
                return ApiError(
                    f"{whose} are not answered without --api-key",
                    status=403,
                    code="forbidden",
                )
        elif scope["path"] not in OPEN:
            sent = re.sub(r"^bearer +", "", headers.get("authorization", ""), flags=re.I)
            if not hmac.compare_digest(sent.encode(), self._key.encode()):
                what = "a wrong key" if sent else "no key"
                return ApiError(
                    f"{what} was sent; it goes into the header Authorization: Bearer KEY",
                    status=401,
                    kind="authentication_error",
                    code="invalid_api_key",
                )
        if self._open > self._at_once and scope["path"].startswith("/v1/") and not self._make_room():
            return ApiError("too many requests at once", status=429, kind="requests", code="rate_limit_exceeded")
        return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _page() -> tuple[str, str]:
    """The page, and the policy under which a browser runs nothing but its own script and loads nothing from outside."""
    text = resources.files("tinychat.serve").joinpath("page.html").read_text("utf-8")

    def hashes(tag: str) -> str:
        own = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in own)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
