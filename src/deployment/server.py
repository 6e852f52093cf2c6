"""The web page as a server.

It knows a page, the files of `page/static`, and one thing to ask. A video is the body of a request, and what is said of
it, pictures included, is that request's response: no one else can come by either.
"""

from __future__ import annotations

import mimetypes
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import VIDEO_SUFFIXES
from deployment.desk import Desk, Limits, Refused
from deployment.shown import PAGES, TEMPLATES, Adviser

BYTES = "application/octet-stream"  # no page of another origin can send this without being asked for leave, in vain
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}


def application(adviser: Adviser, limits: Limits, hosts: list[str]) -> Starlette:
    """The page and what it asks, for requests to some names of this machine (`*` for any)."""
    text = PAGES.get_template("page.html.j2").render(adviser=adviser, limits=limits, suffixes=VIDEO_SUFFIXES)
    desk = Desk(adviser, limits)

    async def page(_: Request) -> Response:
        return HTMLResponse(text)

    async def ask(request: Request) -> Response:
        try:
            if request.headers.get("content-type") != BYTES:
                raise Refused(415, f"A video is sent as {BYTES}.")
            limits.check_size(int(request.headers.get("content-length", 0)))
            asked = request.query_params
            job = await desk.take(asked.get("model", ""), asked.get("name", ""), request.stream())
        except Refused as refused:
            hang_up = {"Connection": "close"} if refused.status == 413 else {}  # or else the rest would be listened to
            return JSONResponse({"error": refused.reason}, refused.status, hang_up)
        except ClientDisconnect:
            return Response(status_code=400)
        return StreamingResponse(desk.told(job), media_type="application/x-ndjson")

    @asynccontextmanager
    async def open_hours(_: Starlette):
        yield
        desk.close()

    mimetypes.add_type("text/javascript", ".js")  # some Windows call it plain text, which browsers won't run
    routes = [Route("/", page), Route("/ask", ask, methods=["POST"]),
              Mount("/static", StaticFiles(directory=TEMPLATES / "static"))]
    middleware = [Middleware(Guarded), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    return Starlette(routes=routes, middleware=middleware, lifespan=open_hours)


class Guarded:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, guarded)
