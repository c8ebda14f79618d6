"""The fast lane's connections: reuse, deadlines, bodies, names, credentials, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import resource
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest

import pfu
from testing.fixtures import server_context
from testing.lane import (
    CLEAN,
    KEYS,
    Behaviour,
    LaneRequest,
    LaneStore,
    answer_text,
    fine,
    opened,
    put,
    read_body,
    saying,
    seconds_of,
    with_store,
    with_tls,
)
from testing.place import MIB

# ======================================================================================
# Connections
# ======================================================================================


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"EXPIRY": 0.05, "STALL": 0.4, "DRAIN": 0.2, "IDLE": 0.3, "CONNECT": 0.5}
    for name, seconds in limits.items():
        monkeypatch.setattr(pfu, f"{name}_SECONDS", seconds)


class TestConnections:
    """Connections."""

    @pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 300_000, 5_000_000])
    def test_bodies_of_all_sizes(self, size: int) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            body = random.Random(size).getrandbits(8 * size + 8).to_bytes(size + 1, "big")[:size]
            for given in (body, memoryview(body)):
                assert await put(lane, body=given) == '"e"'
            assert store.requests[1].body == body
            assert store.accepted == 1

        with_store(fine, scenario)

    def test_last_connection_used_is_used_first(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await asyncio.gather(*[put(lane, f"k{n}") for n in range(20)])
            assert store.accepted == len(lane._pool._connections) == 20
            for _ in range(20):
                await put(lane)
            assert store.accepted == 20
            assert lane._traffic.fast_requests == 40

        with_store(fine, scenario)

    def test_connection_close_is_obeyed(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            assert len(lane._pool._connections) == 0
            await put(lane)
            assert store.accepted == 2

        with_store(saying(CLEAN.replace(b"ETag", b"Connection: close\r\nETag")), scenario)

    def test_idle_connection_that_was_closed_is_noticed(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            await asyncio.sleep(0.1)
            assert len(lane._pool._connections) == 0
            assert await put(lane) == '"e"'
            assert (store.accepted, lane._traffic.fast_requests) == (2, 2)

        with_store(saying(CLEAN, then_close=True), scenario)

    def test_connection_closed_as_it_is_reused_is_repeated_once(self) -> None:
        async def close_second(
            store: LaneStore, request: LaneRequest, reader: Any, writer: Any
        ) -> None:
            await read_body(request, reader)
            if len(store.requests) == 2:
                writer.transport.abort()
                raise ConnectionError
            writer.write(CLEAN)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            assert await put(lane) == '"e"'
            assert (store.accepted, lane._traffic.fast_requests) == (2, 3)

        with_store(close_second, scenario)

    def test_bytes_on_an_idle_connection_close_it(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            store.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            await asyncio.sleep(0.05)
            assert len(lane._pool._connections) == 0

        with_store(fine, scenario)

    @pytest.mark.parametrize(
        ("behaviour", "reason", "dropped"),
        [
            (saying(b"", then_close=True), "closed before the answer", True),
            (saying(CLEAN[:30], then_close=True), "closed before the answer", True),
            (saying(answer_text(status="HTTP/1.1 503 Slow Down")), "503 Slow Down", True),
            (saying(answer_text(status="HTTP/1.1 403 Forbidden")), "403 Forbidden", False),
            (saying(b"SSH-2.0\r\n"), "not HTTP/1.1", False),
        ],
    )
    def test_bad_answers(self, behaviour: Behaviour, reason: str, dropped: bool) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            with pytest.raises(pfu.Rejected) as caught:
                await put(lane)
            assert reason in str(caught.value)
            assert caught.value.dropped is dropped
            assert (len(lane._pool._connections), lane._traffic.fast_requests) == (0, 1)

        with_store(behaviour, scenario)

    def test_answer_in_pieces(self) -> None:
        async def dribble(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            await read_body(request, reader)
            for byte in CLEAN:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.001)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            lane._pool.give_back(await lane._pool.connect())
            assert await put(lane) == await put(lane) == '"e"'
            assert store.accepted == 1

        with_store(dribble, scenario)

    def test_early_answer_to_a_large_body_is_not_believed(self) -> None:
        async def hasty(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            writer.write(CLEAN)
            await asyncio.sleep(10)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            with pytest.raises(pfu.Rejected, match="before the body was sent"):
                await put(lane, body=bytes(20_000_000))

        with_store(hasty, scenario)

    @pytest.mark.parametrize("size", [10, 20_000_000])
    def test_deadline_of_a_stalled_request(self, quick: None, size: int) -> None:
        async def silent(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            await asyncio.sleep(60)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            began = time.monotonic()
            with pytest.raises(pfu.Rejected, match="no progress") as caught:
                await put(lane, body=bytes(size))
            assert caught.value.dropped
            assert 0.3 < time.monotonic() - began < 30
            assert len(lane._pool._connections) == 0

        with_store(silent, scenario)

    def test_slow_body_is_not_stalled(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        # All lies in our buffer and the kernel's at once. The limits are long enough that a machine
        # which pauses does not seem to be a line that does.
        monkeypatch.setattr(pfu.Connection, "slice_size", 2 * MIB)
        for name in "STALL", "DRAIN":
            monkeypatch.setattr(pfu, f"{name}_SECONDS", 1.5)

        async def slow(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            left = int(request.headers["content-length"])
            while left:
                left -= len(await reader.read(8 << 10))
                await asyncio.sleep(0.015)
            writer.write(CLEAN)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            store.server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            began = time.monotonic()
            assert await put(lane, body=bytes(1_600_000)) == '"e"'
            assert time.monotonic() - began > pfu.STALL_SECONDS

        with_store(slow, scenario)

    def test_idle_connections_grow_old(self, quick: None) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            assert len(lane._pool._connections) == 1
            await asyncio.sleep(0.6)
            assert len(lane._pool._connections) == 0

        with_store(fine, scenario)

    def test_cancelled_put_closes_its_connection(self) -> None:
        async def silent(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            await asyncio.sleep(10)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            task = asyncio.ensure_future(put(lane, body=bytes(10_000_000)))
            await asyncio.sleep(0.1)
            assert len(lane._pool._connections) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(lane._pool._connections) == 0

        with_store(silent, scenario)

    def test_nothing_listens(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            store.server.close()
            await asyncio.sleep(0.05)
            with pytest.raises(pfu.Rejected, match="cannot connect to localhost") as caught:
                lane._pool.give_back(await lane._pool.connect())
            assert not caught.value.dropped
            with pytest.raises(pfu.Rejected, match="cannot connect to localhost"):
                await put(lane)

        with_store(fine, scenario)

    def test_name_is_spread_over_all_addresses(self) -> None:
        async def scenario() -> None:
            async with LaneStore(fine) as store:
                second = await asyncio.start_server(store.serve, "127.0.0.2", store.port)
                async with opened(pfu.FastLane(store.template(), lambda: KEYS)) as lane:

                    async def resolved(*_: Any, **__: Any) -> Any:
                        hosts = ["127.0.0.1", "127.0.0.3", "127.0.0.2"]
                        return [(0, 0, 0, "", (host, store.port)) for host in hosts]

                    lane._pool.loop.getaddrinfo = resolved  # type: ignore[method-assign]
                    await asyncio.gather(*[put(lane, f"k{n}") for n in range(20)])
                    hosts = [writer.get_extra_info("sockname")[0] for writer in store.writers]
                    assert min(hosts.count("127.0.0.1"), hosts.count("127.0.0.2")) >= 5
                    assert set(lane._pool._dead_until) == {"127.0.0.3"}
                second.close()

        asyncio.run(scenario())

    def test_unknown_name(self) -> None:
        async def scenario() -> None:
            async with LaneStore(fine) as store:
                template = store.template(address=("no-such-host.invalid", 1))
                async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                    with pytest.raises(pfu.Rejected, match="cannot resolve"):
                        await put(lane)

        asyncio.run(scenario())

    def test_key_that_cannot_be_encoded_is_rejected(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            with pytest.raises(pfu.Rejected):
                await put(lane, "\udcff")
            assert await put(lane) == '"e"'
            assert store.accepted == 1

        with_store(fine, scenario)

    def test_wrong_clock_is_corrected_once(self) -> None:
        clock = pfu.StoreClock(lambda: time.time() - 7200)

        async def strict(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
            await read_body(request, reader)
            skew = abs(seconds_of(request.headers["x-amz-date"]) - time.time())
            date = f"Date: {formatdate(usegmt=True)}"
            writer.write(
                CLEAN if skew < 900 else answer_text(date, status="HTTP/1.1 403 Forbidden")
            )

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            assert set(await asyncio.gather(*[put(lane) for _ in range(5)])) == {'"e"'}
            assert lane._traffic.fast_requests == 10
            assert clock.offset == pytest.approx(7200, abs=3)
            await put(lane)
            assert lane._traffic.fast_requests == 11

        with_store(strict, scenario, store_clock=clock)

    def test_one_answer_corrects_a_clock_until_it_was_accepted(self) -> None:
        """From then on two in a row have to agree, which one bad node among others does not."""
        at_ten, at_eleven = (formatdate(hour * 3600, usegmt=True) for hour in (10, 11))
        clock = pfu.StoreClock(lambda: 10 * 3600.0)
        assert not clock.corrects(403, at_ten, 0.0)
        assert not clock.corrects(400, at_eleven, 0.0)
        assert clock.corrects(403, at_eleven, 0.0)
        assert clock.offset == 3600
        assert clock.corrects(403, at_eleven, 0.0)  # of a request that was under way
        clock.took(3600.0)
        for _ in range(5):
            assert not clock.corrects(403, at_ten, 3600.0)
            clock.took(3600.0)
        assert [clock.corrects(403, at_ten, 3600.0) for _ in range(2)] == [False, True]
        assert clock.offset == 0

    @pytest.mark.parametrize("proof", ["refused", "taken"])
    @pytest.mark.parametrize("accepted", [False, True])
    def test_a_correction_that_nothing_bears_out_is_taken_back(
        self, accepted: bool, proof: str
    ) -> None:
        """A proxy whose own clock is wrong writes the Date of every answer."""
        at_eleven = formatdate(11 * 3600, usegmt=True)
        clock = pfu.StoreClock(lambda: 10 * 3600.0)
        if accepted:
            clock.took(0.0)
        for _ in range(2):
            clock.corrects(403, at_eleven, 0.0)
        assert clock.now() == 11 * 3600
        if proof == "refused":
            assert clock.corrects(403, at_eleven, 3600.0)
        else:
            clock.took(0.0)  # of a request that was under way
        assert clock.now() == 10 * 3600

    def test_what_was_signed_late_counts_for_the_clock_it_was_signed_with(self) -> None:
        """A request that waits for a connection is signed once it has one."""
        now = time.time()
        clock = pfu.StoreClock(lambda: now)

        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            connect = lane._pool.connect

            async def connect_late() -> pfu.Connection:
                clock.corrects(403, formatdate(now + 3600, usegmt=True), 0.0)
                return await connect()

            lane._pool.connect = connect_late  # type: ignore[method-assign]
            await put(lane)
            assert clock.offset == pytest.approx(3600, abs=1)

        with_store(fine, scenario, store_clock=clock)

    def test_forbidden_with_a_right_clock_is_not_repeated(self) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            with pytest.raises(pfu.Rejected, match="403"):
                await put(lane)
            assert lane._traffic.fast_requests == 1

        date = f"Date: {formatdate(usegmt=True)}"
        with_store(saying(answer_text(date, status="HTTP/1.1 403 Forbidden")), scenario)

    @pytest.mark.parametrize("kind", [pfu.FatalError, pfu.RetryableError, pfu.SlowDownError])
    def test_credentials_are_read_again(
        self, monkeypatch: pytest.MonkeyPatch, kind: type[pfu.TransferError]
    ) -> None:
        monkeypatch.setattr(pfu, "CREDENTIALS_SECONDS", 0.02)
        turn: list[pfu.Credentials | Exception] = [KEYS]
        readings = itertools.count()
        read = 0

        def source() -> pfu.Credentials:
            nonlocal read
            read = next(readings)
            if isinstance(turn[0], Exception):
                raise turn[0]
            return turn[0]

        async def put_after(lane: pfu.FastLane, now: pfu.Credentials | Exception) -> None:
            """As soon as the source has given this word three times."""
            turn[0] = now
            enough = read + 3
            while read < enough:
                await asyncio.sleep(0.01)
            assert await put(lane) == '"e"'

        async def scenario() -> None:
            async with (
                LaneStore(fine) as store,
                opened(pfu.FastLane(store.template(), source)) as lane,
            ):
                await put(lane)
                await put_after(lane, kind("renew", "", "no"))
                await put_after(lane, KEYS._replace(access_key="NEW", token="t"))
            first, second, third = (request.headers for request in store.requests)
            for kept in (first, second):
                assert "AKIDEXAMPLE/" in kept["authorization"]
                assert "x-amz-security-token" not in kept
            assert "NEW/" in third["authorization"]
            assert third["x-amz-security-token"] == "t"

        asyncio.run(asyncio.wait_for(scenario(), 2))

    def test_credentials_that_come_after_the_end_trouble_nobody(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(pfu, "CREDENTIALS_SECONDS", 0.01)
        asked, answered, readings = threading.Event(), threading.Event(), itertools.count()

        def source() -> pfu.Credentials:
            if next(readings):
                asked.set()
                answered.wait(10)
            return KEYS

        async def scenario() -> None:
            async with LaneStore(fine) as store, opened(pfu.FastLane(store.template(), source)):
                while not asked.is_set():
                    await asyncio.sleep(0.01)

        loop, threads = asyncio.new_event_loop(), ThreadPoolExecutor(1)
        loop.set_default_executor(threads)
        loop.run_until_complete(scenario())
        loop.close()
        answered.set()
        threads.shutdown()
        assert not caplog.records

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_a_server_that_hangs_up_after_the_handshake(
        self, certificates: Any, version: Any
    ) -> None:
        context = server_context(certificates, "good")
        context.maximum_version = version
        accepted: list[Any] = []

        async def hang_up(reader: Any, writer: Any) -> None:
            accepted.append(writer)
            writer.close()

        async def scenario() -> None:
            server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
            store = LaneStore(fine)
            store.port = server.sockets[0].getsockname()[1]
            template = store.template(ca=str(certificates / "ca.pem"))
            async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                for _ in range(5):
                    with pytest.raises(pfu.Rejected):
                        await asyncio.wait_for(put(lane), 1)
                assert len(lane._pool._connections) == 0
            server.close()

        asyncio.run(scenario())
        assert len(accepted) <= 10


# ======================================================================================
# TLS
# ======================================================================================


class TestTls:
    """TLS."""

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("size", [0, 4096, 65536, 65537, 5_000_000])
    def test_tls(self, certificates: Any, version: Any, size: int) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            for _ in range(3):
                await asyncio.gather(*[put(lane, body=bytes(size)) for _ in range(3)])
            assert store.accepted == 3
            assert store.requests[-1].body == bytes(size)
            assert store.writers[0].get_extra_info("ssl_object").version() == version.name.replace(
                "v1_", "v1."
            )

        with_tls(certificates, scenario, version=version)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_tls_session_is_resumed(self, certificates: Any, version: Any) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            await put(lane)
            await asyncio.gather(*[put(lane) for _ in range(4)])
            reused = [
                writer.get_extra_info("ssl_object").session_reused for writer in store.writers
            ]
            assert reused == [False, True, True, True]

        with_tls(certificates, scenario, version=version)

    def test_tls_idle_close_is_noticed(self, certificates: Any) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            for _ in range(2):
                await put(lane)
                await asyncio.sleep(0.1)
                assert len(lane._pool._connections) == 0
            assert lane._traffic.fast_requests == 2

        with_tls(certificates, scenario, behaviour=saying(CLEAN, then_close=True))

    def test_tls_verifies_name_and_chain(self, certificates: Any) -> None:
        async def scenario(store: LaneStore, lane: pfu.FastLane) -> None:
            with pytest.raises(pfu.Rejected, match="CERTIFICATE_VERIFY_FAILED"):
                await put(lane)
            assert store.requests == []
            assert len(lane._pool._connections) == 0

        with_tls(certificates, scenario, name="other")
        with_tls(certificates, scenario, ca="other.pem")

    def test_plain_server_where_tls_is_expected(self, certificates: Any) -> None:
        async def greet(reader: Any, writer: Any) -> None:
            with contextlib.closing(writer):
                writer.write(b"220 mail\r\n")
                await reader.read()  # until the other end gives up

        async def scenario() -> None:
            server = await asyncio.start_server(greet, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            async with LaneStore(fine) as store:
                template = store.template(
                    ca=str(certificates / "ca.pem"), address=("localhost", port)
                )
                async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                    with pytest.raises(pfu.Rejected, match="cannot connect"):
                        await put(lane)
            server.close()

        asyncio.run(scenario())

    def test_descriptor_limit_is_raised(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, hard), hard))
            assert pfu.descriptor_limit() == hard - pfu.RESERVED_DESCRIPTORS
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
