"""The S3 server of the tests. It believes nothing and misbehaves on demand.

It runs asyncio in a thread of its own, speaks path-style S3 over HTTP/1.1 (TLS if given a context)
on 127.0.0.1, and answers STS GetCallerIdentity on the same endpoint. Every signature is computed
again by botocore's own signer from what arrived, and every payload digest is checked, so an object
that is in this store was signed and delivered correctly. What it stored, what it acknowledged and
every request it saw can be read from any thread.

    with S3Server(buckets=["b"]) as server:
        server.faults.append(Fault(Action("error", 503), operation="PutObject", times=3))
        subprocess.run([...], env={**os.environ, **server.environment()})
        assert server.objects("b")["a/b"].body == b"..."

A request passes: head, signature, permission, bucket | fault | body, digests | operation |
answer. What fails in the first group is refused before the body is asked for; faults see only
genuine requests.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any, Callable, NamedTuple

from testing.faults import HONEST, Action, Fault
from testing.protocol import (
    Answer,
    LoggedRequest,
    Request,
    S3Error,
    check_date,
    check_payload,
    check_payload_header,
    check_signature,
    error_answer,
    parse_authorization,
)
from testing.store import ACCOUNT, MIN_PART_SIZE, Store, StoredBucket, StoredObject, StoredUpload

ACCESS_KEY = "AKIDPFUTEST"
SECRET_KEY = "pfu-test-secret"
MAX_HEAD = 1 << 18
READ_SIZE = 1 << 18
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
UPLOADING = {"PutObject", "UploadPart"}


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def is_flushed(self) -> bool:
        transport = self.writer.transport
        return not transport.is_closing() and not transport.get_write_buffer_size()

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    def reset(self) -> None:
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.writer.transport.abort()


class S3Server:
    """The server; all its settings below may be changed while it runs.

    endpoint: URL. faults: see Fault. deny, not_implemented: operations answered 403 and 501.
    expired_tokens: session tokens answered ExpiredToken. clock_offset: seconds its clock is ahead;
    date_offset: seconds by which only the Date of its answers is, as behind a proxy.
    verify_signatures, verify_payloads: off only to prove that a test would notice.
    log: every request. connections: accepted so far. peak_in_flight: requests served at once.
    crashes: tracebacks of the server's own errors; leaving the context raises them.
    """

    def __init__(
        self,
        buckets: tuple[str, ...] | list[str] = (),
        credentials: dict[str, tuple[str, str | None]] | None = None,
        account: str = ACCOUNT,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        keep_bodies: bool = True,
        keep_log: bool = True,
        min_part_size: int = MIN_PART_SIZE,
        allow_unsigned_payload: bool = False,
        seed: int = 0,
    ) -> None:
        self.credentials = credentials or {ACCESS_KEY: (SECRET_KEY, None)}
        self.keep_log, self.allow_unsigned_payload = keep_log, allow_unsigned_payload
        self.verify_signatures = self.verify_payloads = True
        self.faults: list[Fault] = []
        self.deny: set[str] = set()
        self.not_implemented: set[str] = set()
        self.expired_tokens: set[str] = set()
        self.clock_offset = self.date_offset = 0.0
        self.random = random.Random(seed)
        self.crashes: list[str] = []
        self.connections = self.in_flight = self.peak_in_flight = 0
        self.endpoint = ""
        self._log: list[LoggedRequest] = []
        self._counts: Counter[str] = Counter()
        self._acknowledged: Counter[str] = Counter()
        self._port, self._tls = port, tls
        self._lock = threading.RLock()
        self._store = Store(account, min_part_size, keep_bodies)
        self._store.now = self.now
        for name in buckets:
            self.add_bucket(name)

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        self._store.buckets.clear()  # or it waits for the garbage collector, and makes forks slow
        self._log.clear()
        if self.crashes and kind is None:
            raise RuntimeError("the S3 server failed:\n" + "\n".join(self.crashes))

    def start(self) -> S3Server:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        scheme = "https" if self._tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        self._ready, self._tasks = threading.Event(), set[Any]()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="s3server", daemon=True
        )
        self._thread.start()
        self._ready.wait(10)
        return self

    def stop(self) -> None:
        """Drops all connections; returns within 5 s whatever happens."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(5)

    def environment(self) -> dict[str, str]:
        """AWS_* variables with the first of the credentials, for a process that sees no others."""
        access_key, (secret, token) = next(iter(self.credentials.items()))
        variables = {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        return {**variables, "AWS_SESSION_TOKEN": token} if token else variables

    def now(self) -> float:
        return time.time() + self.clock_offset

    def date(self) -> float:
        return self.now() + self.date_offset

    def add_bucket(self, name: str, owner: str | None = None) -> StoredBucket:
        with self._lock:
            bucket = StoredBucket(name, owner or self._store.account)
            return self._store.buckets.setdefault(name, bucket)

    def bucket(self, name: str) -> StoredBucket | None:
        with self._lock:
            return self._store.buckets.get(name)

    def objects(self, bucket: str) -> dict[str, StoredObject]:
        with self._lock:
            return dict(self._store.bucket(bucket).objects)

    def uploads(self, bucket: str) -> dict[str, StoredUpload]:
        """Unfinished multipart uploads by upload id."""
        with self._lock:
            return dict(self._store.bucket(bucket).uploads)

    def part_acknowledgements(self, bucket: str) -> Counter[tuple[str, str, int]]:
        """How often each (key, upload id, part number) was acknowledged."""
        with self._lock:
            return self._store.bucket(bucket).part_acknowledgements.copy()

    @property
    def log(self) -> list[LoggedRequest]:
        with self._lock:
            return list(self._log)

    def clear_log(self) -> None:
        with self._lock:
            self._log.clear()

    def count(self, operation: str | None = None) -> int:
        """Requests that ended, of one operation or of all."""
        with self._lock:
            return sum(self._counts.values()) if operation is None else self._counts[operation]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def acknowledged(self, operation: str) -> int:
        """Requests of one operation whose success was sent."""
        with self._lock:
            return self._acknowledged[operation]

    def wait_for(self, operation: str | None, requests: int, timeout: float = 10) -> bool:
        """Whether that many requests ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.count(operation) < requests:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _run(self, listener: socket.socket) -> None:
        if sys.platform == "linux":  # a thread has a priority there: hardly above that of pfu
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        asyncio.run(self._main(listener))

    async def _main(self, listener: socket.socket) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._loop_failed)
        server = await asyncio.start_server(
            self._serve, sock=listener, ssl=self._tls, limit=MAX_HEAD
        )
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()

    def _loop_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Failed handshakes and broken connections are the client's, all else is the server's."""
        if not isinstance(context.get("exception"), OSError):
            self.crashes.append(f"{context}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, connection = asyncio.current_task(), Connection(reader, writer)
        self._tasks.add(task)
        self.connections += 1
        writer.transport.set_write_buffer_limits(high=1 if self._tls else 0, low=0)
        try:
            while await self._exchange(connection):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception:  # noqa: BLE001
            self.crashes.append(traceback.format_exc())
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, connection: Connection) -> bool:
        """One request and its answer; whether another may follow on the connection."""
        head = await connection.reader.readuntil(b"\r\n\r\n")
        try:
            request = Request(head[:-4])
        except S3Error as error:
            answer = error_answer(None, error)
            answer.headers["connection"] = "close"
            await connection.send(answer.encode(self.date()))
            return False
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._answer(connection, request)
        except (OSError, asyncio.IncompleteReadError):
            self._record(request, 0, False)
            raise
        finally:
            self.in_flight -= 1

    async def _answer(self, connection: Connection, request: Request) -> bool:
        if request.bucket == "":
            await self._read_body(connection, request)
        refusal = self._attempt(request, self._admit)
        if refusal is not None:
            return await self._refuse(connection, request, refusal)
        fault = next((f for f in list(self.faults) if f.matches(request, self.random)), None)
        action = fault.action if fault else HONEST
        if action.kind.startswith("reset"):
            return await self._reset(connection, request, action.kind)
        if action.kind == "hang_up":
            return await self._hang_up(connection, request, action.seconds)
        if action.kind == "early_error":
            return await self._send_last(connection, request, injected(request, action))
        await self._read_body(connection, request)
        if action.kind in ("error", "error200", "redirect"):
            return await self._send(connection, request, injected(request, action), done=False)
        if action.kind in ("garbage", "endless"):
            return await self._babble(connection, request, action)
        answer = self._attempt(request, self._perform) or Answer()
        return await self._finish(connection, request, action, answer)

    def _attempt(self, request: Request, step: Callable[[Request], Answer | None]) -> Answer | None:
        try:
            with self._lock:
                return step(request)
        except S3Error as error:
            return error_answer(request, error)
        except Exception:  # noqa: BLE001
            self.crashes.append(traceback.format_exc())
            return error_answer(request, S3Error("InternalError"))

    def _admit(self, request: Request) -> None:
        """Everything that the head alone decides."""
        self._authenticate(request)
        if not request.operation or request.operation in self.not_implemented:
            raise S3Error("NotImplemented", f"{request.method} {request.target}")
        if request.operation in self.deny:
            raise S3Error("AccessDenied", request.operation)
        if request.scope.service == "s3":
            check_payload_header(request, self.allow_unsigned_payload)
        self._store.check_bucket(request)

    def _authenticate(self, request: Request) -> None:
        request.scope = parse_authorization(request)
        access_key, given = request.scope.access_key, request.headers.get("x-amz-security-token")
        if request.scope.service not in ("s3", "sts"):
            raise S3Error("AuthorizationHeaderMalformed", "service")
        if access_key not in self.credentials:
            raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
        secret, token = self.credentials[access_key]
        if given is not None and given in self.expired_tokens:
            raise S3Error("ExpiredToken")
        if given != token:
            raise S3Error("InvalidToken" if given else "InvalidAccessKeyId")
        check_date(request, self.now())
        if self.verify_signatures:
            check_signature(request, secret)

    def _perform(self, request: Request) -> Answer:
        if self.verify_payloads:
            check_payload(request)
        return self._store.perform(request)

    async def _read_body(
        self, connection: Connection, request: Request, leave: int = 0, keep: bool = True
    ) -> None:
        """Reads the body but its last `leave` octets; says 100 Continue first if awaited."""
        if request.unread and request.expects_continue:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        keep = keep and (self._store.keep_bodies or request.operation not in UPLOADING)
        while request.unread > leave:
            chunk = await connection.reader.read(min(request.unread - leave, READ_SIZE))
            if not chunk:
                raise ConnectionResetError
            request.receive(chunk, keep)

    async def _refuse(self, connection: Connection, request: Request, answer: Answer) -> bool:
        """Before the body if the client waits for a word, else after it so that it is heard."""
        if request.unread and request.expects_continue:
            return await self._send_last(connection, request, answer)
        await self._read_body(connection, request, keep=False)
        return await self._send(connection, request, answer, done=False)

    async def _send(
        self, connection: Connection, request: Request, answer: Answer, done: bool
    ) -> bool:
        """Sends and records; under one lock, so that who has the answer finds the record."""
        octets = answer.encode(self.date(), request.method == "HEAD")
        done = done and answer.status < 300 and not connection.reader.at_eof()
        with self._lock:
            connection.writer.write(octets)
            if connection.is_flushed():
                self._record(request, answer.status, done)
                return True
        await connection.writer.drain()
        self._record(request, answer.status, done and not connection.writer.is_closing())
        return True

    async def _send_last(self, connection: Connection, request: Request, answer: Answer) -> bool:
        answer.headers["connection"] = "close"
        await self._send(connection, request, answer, done=False)
        return False

    async def _reset(self, connection: Connection, request: Request, kind: str) -> bool:
        if kind != "reset_before_body":
            leave = (request.unread + 1) // 2 if kind == "reset_within_body" else 0
            await self._read_body(connection, request, leave, keep=False)
        self._record(request, 0, False)
        connection.reset()
        return False

    async def _hang_up(self, connection: Connection, request: Request, seconds: float) -> bool:
        self._record(request, 0, False)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(seconds)
        connection.writer.write_eof()
        await self._stopped.wait()
        return False

    async def _babble(self, connection: Connection, request: Request, action: Action) -> bool:
        """Answers that are none, or that have no end."""
        if action.kind == "garbage":
            self._record(request, 0, False)
            await connection.send(b"\x00\xff\x15\x03 this is not HTTP\r\n\r\n" * 4)
            return False
        self._record(request, 200, False)
        promise = Answer(200, headers={"content-length": str(1 << 20)})
        await connection.send(promise.encode(self.date(), head_only=True))
        while not connection.reader.at_eof():
            await asyncio.sleep(action.seconds)
            await connection.send(b" ")
        return False

    async def _finish(
        self, connection: Connection, request: Request, action: Action, answer: Answer
    ) -> bool:
        """The operation is done; what of its answer goes out, and when."""
        answer.headers.update(action.headers if action.kind == "honest" else {})
        if action.weak and "etag" in answer.headers:
            answer.headers["etag"] = f"W/{answer.headers['etag']}"
        for pattern, instead in action.altered.items():
            answer.body = re.sub(pattern.encode(), instead.encode(), answer.body)
        if action.kind == "lost_ack":
            self._record(request, 0, False)
            connection.reset()
            return False
        if action.kind in ("half_headers", "half_body"):
            self._record(request, answer.status, False)
            await connection.send(half(answer, action.kind, self.date()))
            return False
        if action.kind == "trickle":
            self._record(request, answer.status, False)
            for octet in answer.encode(self.date()):
                await asyncio.sleep(action.seconds)
                await connection.send(bytes([octet]))
            return False
        if action.function is not None:
            action.function()
        await asyncio.sleep(action.seconds)
        await self._send(connection, request, answer, done=True)
        return action.kind != "close_after"

    def _record(self, request: Request, status: int, acknowledged: bool) -> None:
        if request.ended:
            return
        request.ended = True
        with self._lock:
            self._counts[request.operation] += 1
            if self.keep_log:
                self._log.append(request.logged(status, acknowledged))
            if acknowledged:
                self._acknowledged[request.operation] += 1
                self._count_upload(request)

    def _count_upload(self, request: Request) -> None:
        bucket = self._store.buckets.get(request.bucket)
        if bucket is None:
            return
        if request.operation == "UploadPart":
            number = int(request.query["partNumber"])
            bucket.part_acknowledgements[request.key, request.query["uploadId"], number] += 1
        elif request.operation in ("PutObject", "CompleteMultipartUpload"):
            stored = bucket.objects.get(request.key)
            if stored is not None:
                stored.puts += 1


def injected(request: Request, action: Action) -> Answer:
    """The error or redirect that an action asks for."""
    error = S3Error("InternalError")
    error.status = 200 if action.kind == "error200" else action.status
    error.code, error.message = action.code, action.message
    headers = dict(action.headers)
    if action.kind == "redirect":
        error.code = "PermanentRedirect" if action.status == 301 else "TemporaryRedirect"
        error.message = "This bucket must be addressed at the endpoint given"
        error.extra = {"Endpoint": action.endpoint.partition("//")[2], "Bucket": request.bucket}
        headers["x-amz-bucket-region"] = action.region
        if action.status == 307:
            headers["location"] = action.endpoint + request.target
    answer = error_answer(request, error)
    answer.headers.update(headers)
    return answer


def half(answer: Answer, kind: str, now: float) -> bytes:
    """The beginning of an answer: up to the middle of its headers, or of a promised body."""
    if kind == "half_headers":
        head = answer.encode(now, head_only=True)
        return head[: len(head) // 2]
    body = answer.body or b"half"
    headers = {**answer.headers, "content-length": str(2 * len(body))}
    return Answer(answer.status, body, headers).encode(now)
