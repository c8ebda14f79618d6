"""What the fast lane is tested with: odd requests, botocore's client, answers, a small store."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import dataclasses
import hashlib
import http.client
import io
import random
import ssl
import string
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Callable, final

import boto3
from botocore.config import Config

import pfu
from testing.fixtures import server_context

# ---------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------


KEYS = pfu.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
NO_HEADERS = pfu.Headers((), ())
ODD_TEXT = "abcXYZ019-._~ !\"#$%&'()*+,/:;<=>?@[\\]^`{|}äöü€😀\u200b\u0301//../."
PRINTABLE = string.ascii_letters + string.digits + " " * 12 + string.punctuation


def headers_of(pairs: Sequence[tuple[str, str]]) -> pfu.Headers:
    return pfu.Headers(tuple(name for name, _ in pairs), tuple(value for _, value in pairs))


def odd_case(rng: random.Random) -> dict[str, Any]:
    def text(alphabet: str, longest: int, shortest: int = 0) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))

    names = rng.sample(
        [f"x-amz-meta-{text('abc-09z', 6, 1)}{n}" for n in range(9)], rng.randint(0, 9)
    )
    headers = [(name, text(PRINTABLE, 30)) for name in names]
    if rng.random() < 0.5:
        headers.insert(0, ("content-type", rng.choice(["text/plain", "image/x; a=b  c", ""])))
    bucket, port = rng.choice(["my-bucket", "a.b.c"]), rng.choice(["", ":9000"])
    host, prefix = rng.choice(
        [
            (f"s3.example.com{port}", f"/{bucket}"),
            (f"{bucket}.s3.example.com{port}", ""),
            (f"[::1]{port}", f"/base/{bucket}"),
        ]
    )
    return {
        "key": text(ODD_TEXT, 40, 1),
        "headers": headers,
        "host": host,
        "prefix": prefix,
        "scheme": rng.choice(["http", "https"]),
        "region": rng.choice(["us-east-1", "eu-central-1", "cn-north-1", "auto", "x"]),
        "static": rng.choice(
            [(), (("x-amz-storage-class", "STANDARD_IA"), ("x-amz-tagging", "a=b%20c&d=%s"))]
        ),
        "credentials": pfu.Credentials(
            text(string.ascii_uppercase, 20, 1),
            text(PRINTABLE.strip(), 40, 1),
            rng.choice([None, text(string.ascii_letters + "/+=%", 60, 1)]),
        ),
        "query": rng.choice(
            ["", "", f"partNumber={rng.randint(1, 10000)}&uploadId={text('aZ9._-~', 20)}"]
        ),
        "body": rng.randbytes(rng.randint(0, 40)),
    }


def template_for(case: dict[str, Any]) -> pfu.RequestTemplate:
    return pfu.RequestTemplate(
        scheme=case["scheme"],
        host=case["host"],
        address=("localhost", 1),
        path_prefix=case["prefix"],
        headers=case["static"],
        part_headers=case["static"],
        region=case["region"],
        service="s3",
        user_agent="pfu %s",
        ca_bundle=None,
    )


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].decode("ascii").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return first, {name.lower(): value for name, value in pairs}


def seconds_of(timestamp: str) -> int:
    return calendar.timegm(time.strptime(timestamp, "%Y%m%dT%H%M%SZ"))


NO_MORE_CHECKSUMS = pfu.NO_MORE_CHECKSUMS if pfu.has_checksum_settings() else {}


def client_for(**arguments: Any) -> Any:
    options = arguments.pop("config", {})
    config = Config(
        **{
            **NO_MORE_CHECKSUMS,
            "retries": {"mode": "standard"},
            **options,
        }
    )
    return boto3.client(
        "s3",
        **{
            "region_name": "eu-central-1",
            "aws_access_key_id": KEYS.access_key,
            "aws_secret_access_key": KEYS.secret_key,
            "aws_session_token": arguments.pop("token", None),
            "config": config,
            **arguments,
        },
    )


def capture(bucket: str = "my-bucket", extra: dict[str, Any] | None = None, **client: Any) -> Any:
    token = client.get("token")
    return pfu.capture_template(
        client_for(**client), bucket, extra or {}, lambda: KEYS._replace(token=token)
    )


# ---------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------


CLEAN = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'


def answer_text(*lines: str, body: bytes = b"", status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *lines, "", ""]).encode("latin-1") + body


class Readable(io.BytesIO):
    def makefile(self, *_: Any) -> Readable:
        return self


def http_client_agrees(received: bytes, accepted: Any) -> None:
    peer = http.client.HTTPResponse(Readable(received), method="PUT")  # type: ignore[arg-type]
    peer.begin()
    assert peer.status == 200
    assert peer.getheader("ETag", "").strip().removeprefix("W/") == accepted.etag
    assert b"<Error" not in peer.read()
    assert peer.isclosed()


# ---------------------------------------------------------------------------
# A store that answers as it is told to
# ---------------------------------------------------------------------------


class LaneRequest:
    def __init__(self, head: bytes) -> None:
        first, self.headers = parse_head(head)
        self.target = first.split(" ")[1]
        self.body = b""


Behaviour = Callable[["LaneStore", LaneRequest, asyncio.StreamReader, asyncio.StreamWriter], Any]


@final
class LaneStore:
    """A tiny server; what it does with a request is a coroutine that a test gives."""

    def __init__(self, behaviour: Behaviour, context: ssl.SSLContext | None = None) -> None:
        self.behaviour = behaviour
        self.context = context
        self.requests: list[LaneRequest] = []
        self.accepted = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> LaneStore:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = LaneRequest(await reader.readuntil(b"\r\n\r\n"))
                self.requests.append(request)
                await self.behaviour(self, request, reader, writer)

    def template(self, ca: str | None = None, **changes: Any) -> pfu.RequestTemplate:
        case = odd_case(random.Random(3))
        case.update(host=f"localhost:{self.port}", prefix="/b", scheme="https" if ca else "http")
        changes = {"address": ("localhost", self.port), "ca_bundle": ca, **changes}
        return dataclasses.replace(template_for(case), **changes)


async def read_body(request: LaneRequest, reader: asyncio.StreamReader) -> None:
    request.body = await reader.readexactly(int(request.headers["content-length"]))
    assert hashlib.sha256(request.body).hexdigest() == request.headers["x-amz-content-sha256"]


async def fine(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
    await read_body(request, reader)
    writer.write(CLEAN)


def saying(reply: bytes, then_close: bool = False) -> Behaviour:
    async def say(store: LaneStore, request: LaneRequest, reader: Any, writer: Any) -> None:
        await read_body(request, reader)
        writer.write(reply)
        if then_close:
            writer.close()
            raise ConnectionError

    return say


async def put(
    lane: pfu.FastLane, key: str = "k", body: bytes | memoryview = b"body", **named: Any
) -> str:
    headers = headers_of([("content-type", "text/plain"), ("x-amz-meta-mode", "0100644")])
    return await lane.put(key, headers, body, hashlib.sha256(body).hexdigest(), **named)


@contextlib.asynccontextmanager
async def opened(lane: pfu.FastLane) -> AsyncIterator[pfu.FastLane]:
    await lane.open()
    try:
        yield lane
    finally:
        await lane.close()


def with_store(
    behaviour: Behaviour, scenario: Callable[[LaneStore, pfu.FastLane], Any], **named: Any
) -> Any:
    async def run() -> Any:
        async with (
            LaneStore(behaviour) as store,
            opened(pfu.FastLane(store.template(), lambda: KEYS, **named)) as lane,
        ):
            return await scenario(store, lane)

    return asyncio.run(run())


def with_tls(
    certificates: Any,
    scenario: Callable[[LaneStore, pfu.FastLane], Any],
    name: str = "good",
    behaviour: Behaviour = fine,
    version: Any = ssl.TLSVersion.TLSv1_3,
    ca: str = "ca.pem",
) -> None:
    context = server_context(certificates, name)
    context.maximum_version = version

    async def run() -> None:
        async with LaneStore(behaviour, context) as store:
            template = store.template(ca=str(certificates / ca))
            async with opened(pfu.FastLane(template, lambda: KEYS)) as lane:
                await scenario(store, lane)

    asyncio.run(run())
