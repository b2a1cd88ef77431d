"""What the parts alone can do here, under the same load: the figures of the product stand on these.

- web: uvicorn + Starlette that parse the JSON and answer 202, nothing else
- insert: the rows of an event, its delivery and its attempt, 100 events a transaction, on one connection
- post: aiohttp, 64 at a time, with a body of the same size, to the same receiver
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from pathlib import Path
from uuid import UUID

import aiohttp
import asyncpg

from bench.children import Receiver, generate
from bench.load import Order
from bench.platform import BenchError, Platform, own_environment
from cli.process import Command, Process
from cli.supervisor.ports import free_port, why_not_200
from core import ids

START_WITHIN_S = 10.0
ROWS = 100  # events a transaction
CONNECTIONS = 64


async def measure(
    platform: Platform, receiver: Receiver, folder: Path, payload_bytes: int, seconds: float
) -> dict[str, float]:
    """Each a second."""
    return {
        "web": await web(folder, payload_bytes, seconds),
        "insert": await insert(platform.database_url, payload_bytes, seconds),
        "post": await post(receiver, payload_bytes, seconds),
    }


# --- web -----------------------------------------------------------------------------------------------------------


async def web(folder: Path, payload_bytes: int, seconds: float) -> float:
    port = free_port("127.0.0.1", 0)
    argv = (sys.executable, "-m", "bench.floors", str(port))
    process = Process.spawn(Command("floor", argv, env=own_environment()))
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while await why_not_200("127.0.0.1", port, "/healthz") is not None:
            if time.monotonic() > deadline:
                raise BenchError("the bare web server did not start")
            await asyncio.sleep(0.05)
        order = Order(
            port=port, payload_bytes=payload_bytes, connections=CONNECTIONS, seconds=seconds, scenario="floor"
        )
        outcome = await generate(order, folder)
    finally:
        process.kill()
        await process.wait()
    return len(outcome.ids) / (outcome.answered_at[-1] - outcome.started_at)


def serve(port: int) -> None:
    import orjson
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def create(request: Request) -> Response:
        given = orjson.loads(await request.body())
        answer = {
            "data": {"event_id": "evt_00000000000000000000000000", "event_type": given["event_type"]},
            "message": "Event accepted",
        }
        return Response(orjson.dumps(answer), 202, media_type="application/json")

    async def healthz(_: Request) -> Response:
        return Response(b"ok")

    app = Starlette(routes=[Route("/v1/events", create, methods=["POST"]), Route("/healthz", healthz)])
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


# --- insert --------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE SCHEMA floor;
CREATE TABLE floor.events (LIKE public.events INCLUDING ALL);
CREATE TABLE floor.deliveries (LIKE public.deliveries INCLUDING ALL);
CREATE TABLE floor.attempts (LIKE public.attempts INCLUDING ALL);
"""

_INSERT = """
WITH e AS (
    INSERT INTO floor.events (id, organization_id, event_type, occurred_at, payload, data_at, matched_subscriptions)
    SELECT id, $3, 'bench', now(), $4, 100, 1 FROM unnest($1::uuid[]) AS id
), d AS (
    INSERT INTO floor.deliveries (id, organization_id, subscription_id, event_id, event_type, state, attempt_count)
    SELECT id, $3, $3, id, 'bench', 'delivered', 1 FROM unnest($1::uuid[]) AS id
)
INSERT INTO floor.attempts (
    id, delivery_id, organization_id, series, number, started_at, duration_ms, status_code, url, request_headers,
    response_headers, response_body
)
SELECT attempt_id, id, $3, 0, 1, now(), 1, 200, $5, $6, '[]', 'ok'
FROM unnest($1::uuid[], $2::uuid[]) AS new(id, attempt_id)
"""


async def insert(database_url: str, payload_bytes: int, seconds: float) -> float:
    organization = UUID(int=1)
    payload = secrets.token_hex(payload_bytes // 2 + 100).encode()
    url, headers = "http://127.0.0.1:10000/hook", secrets.token_hex(200)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_SCHEMA)
        try:
            started, events = time.monotonic(), 0
            while time.monotonic() - started < seconds:
                made = [ids.new_id() for _ in range(ROWS)]
                tried = [ids.new_id() for _ in range(ROWS)]
                await connection.execute(_INSERT, made, tried, organization, payload, url, headers)
                events += ROWS
            return events / (time.monotonic() - started)
        finally:
            await connection.execute("DROP SCHEMA floor CASCADE")
    finally:
        await connection.close()


# --- post ----------------------------------------------------------------------------------------------------------


async def post(receiver: Receiver, payload_bytes: int, seconds: float) -> float:
    [url] = receiver.urls("floor", 1)
    body = b"x" * (payload_bytes + 150)
    sent = 0
    deadline = time.monotonic() + seconds

    async def keep_posting(session: aiohttp.ClientSession) -> None:
        nonlocal sent
        while time.monotonic() < deadline:
            async with session.post(url, data=body, headers={"webhook-id": "evt_floor"}) as answer:
                await answer.read()
            sent += 1

    started = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        await asyncio.gather(*(keep_posting(session) for _ in range(CONNECTIONS)))
    elapsed = time.monotonic() - started
    await receiver.dump("floor")
    return sent / elapsed


if __name__ == "__main__":
    serve(int(sys.argv[1]))
