"""The bodies of all requests share memory and places; the largest one that arrives gives way."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import HTTPException, Request

from headkit.export.serving.bodies import FORM_BYTES, Bodies, unless_client_leaves
from headkit.export.serving.limits import Limits

LIMITS = Limits(upload_bytes=10_000_000, body_bytes=10_000_000, seconds=0.5, waiting=4)


class Client:
    """A client that sends chunks when the test says so."""

    def __init__(self, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "http", "method": "POST", "headers": headers or []}
        self.request = Request(scope, self.messages.get)

    def send(self, size: int, *, more: bool = False) -> "Client":
        message = {"type": "http.request", "body": bytes(size), "more_body": more}
        self.messages.put_nowait(message)
        return self

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def receive(bodies: Bodies, client: Client, stack: AsyncExitStack | None = None) -> int:
    """Return the size of a body, or minus the status of its refusal."""
    async with AsyncExitStack() as own:
        try:
            body = await (stack or own).enter_async_context(bodies.receive(client.request, LIMITS))
        except HTTPException as error:
            return -error.status_code
        return len(body)


async def check_empty(bodies: Bodies) -> None:
    assert (bodies._arriving, bodies._arriving_bytes) == (set(), 0)
    assert (bodies._waiting, bodies._waiting_bytes) == (0, 0)


def test_bodies_are_refused_by_size_time_and_departure() -> None:
    async def run() -> None:
        bodies = Bodies()
        assert await receive(bodies, Client().send(5, more=True).send(7)) == 12
        large = LIMITS.upload_bytes + FORM_BYTES + 1
        stated = Client([(b"content-length", str(large).encode())])
        assert await receive(bodies, stated) == -413
        assert await receive(bodies, Client().send(large)) == -413
        assert await receive(bodies, Client().send(5, more=True)) == -408
        client = Client().send(5, more=True)
        client.leave()
        assert await receive(bodies, client) == -400
        await check_empty(bodies)

    asyncio.run(run())


def test_the_largest_body_that_arrives_gives_way() -> None:
    async def run() -> None:
        bodies, slow = Bodies(), [Client().send(4_000_000, more=True) for _ in range(2)]
        slow.append(Client().send(1_500_000, more=True))
        tasks = [asyncio.ensure_future(receive(bodies, client)) for client in slow]
        await asyncio.sleep(0.01)
        assert await receive(bodies, Client().send(1_000_000)) == 1_000_000
        results = await asyncio.gather(*tasks)
        assert sorted(results) == [-503, -408, -408]
        await check_empty(bodies)

    asyncio.run(run())


def test_waiting_bodies_have_places_and_leave_room_for_small_ones() -> None:
    async def run() -> None:
        bodies = Bodies()
        async with AsyncExitStack() as stack:
            assert await receive(bodies, Client().send(7_000_000), stack) == 7_000_000
            assert await receive(bodies, Client().send(2_000_000), stack) == -503
            for _ in range(3):
                assert await receive(bodies, Client().send(500_000), stack) == 500_000
            assert await receive(bodies, Client().send(1), stack) == -503  # all places are taken
        assert await receive(bodies, Client().send(1)) == 1
        await check_empty(bodies)

    asyncio.run(run())


def test_work_ends_when_its_client_leaves() -> None:
    async def run() -> None:
        ended = list[str]()

        async def work(seconds: float) -> int:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return 3

        assert await unless_client_leaves(Client().request, work(0.01)) == 3
        client = Client()
        client.leave()
        with pytest.raises(HTTPException, match="the client left"):
            await unless_client_leaves(client.request, work(60))
        assert ended == ["cancelled"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await unless_client_leaves(Client().request, work(60))
        assert ended == ["cancelled"] * 2

    asyncio.run(run())
