"""An asyncio service that scores items for a user by the dot product of their rows.

python examples/inference_service.py hps://HOST:PORT [PORT]
    GET /score?user=alice&items=shoes,hats   ->   {"shoes": 0.12, "hats": null}

One connection carries the lookups of all requests at a time, each with a deadline of its own. An
item that has no row yet scores null; a lookup never creates one. Ids are texts, as in training.
"""

import asyncio
import sys

from aiohttp import web

import hybridps as hps

DEADLINE_S = 0.5
URL = web.AppKey("url", str)
STORE = web.AppKey("store", hps.aio.ParameterServer)


async def score(request: web.Request) -> web.Response:
    """Scores of the items of one request; 503 when the servers are late."""
    items = request.query["items"].split(",")
    ids = {"user": [request.query["user"]], "item": items}
    try:
        found = await request.app[STORE].lookup(ids, return_found=True, timeout=DEADLINE_S)
    except (hps.DeadlineError, hps.UnavailableError) as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from None
    (user, _), (rows, is_known) = found["user"], found["item"]
    scores = zip(items, (rows @ user[0]).tolist(), is_known.tolist(), strict=True)
    return web.json_response({item: value if known else None for item, value, known in scores})


async def connected(app: web.Application) -> object:
    """The store, for as long as the service runs."""
    async with hps.aio.connect(app[URL]) as ps:
        app[STORE] = ps
        yield


async def main(url: str, port: int = 0) -> None:
    """Serves until it is stopped."""
    app = web.Application()
    app[URL] = url
    app.router.add_get("/score", score)
    app.cleanup_ctx.append(connected)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"serving at {runner.addresses[0][1]}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
