"""`/health`: whether the workers answer, for a watchdog that restarts the page if they do not."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from page.workers.pool import Pools

PATH = "/health"


class Health:
    """Answers `/health` with 200 while each kind of worker answers, and with 503 while one does not."""

    def __init__(self, app: ASGIApp, pools: Pools) -> None:
        self._app, self._pools = app, pools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/") != PATH:
            await self._app(scope, receive, send)
            return
        ready = dict(self._pools.ready)
        well = bool(ready) and all(ready.values())
        answer = JSONResponse(
            {"status": "ok" if well else "waiting for workers", "workers": ready}, 200 if well else 503
        )
        await answer(scope, receive, send)
