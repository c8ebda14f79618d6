"""A forward proxy on loopback, as companies have: CONNECT for https, whole URLs for http."""

from __future__ import annotations

import base64
import contextlib
import io
import select
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

PAGE = "<!DOCTYPE html><html><body>Welcome. Please log in.</body></html>"


def page(status: str) -> bytes:
    """An answer of the proxy itself."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n\r\n"
    return (head + PAGE).encode()


@dataclass
class Request:
    """What came in: the request line, and the headers with their names in lower case."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))


@dataclass
class Proxy:
    """The settings may change while it runs."""

    user: str = ""  # USER:PASSWORD that it wants
    closes: bool = False  # after each answer, as HTTP/1.0 does
    says: Callable[[Request, int], bytes] = lambda request, number: b""  # instead of asking
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Request) -> bytes:
        """Its own answer; empty if it lets the request through."""
        self.requests.append(request)
        wanted = f"Basic {base64.b64encode(self.user.encode()).decode()}"
        if self.user and request.headers.get("proxy-authorization") != wanted:
            return page("407 Proxy Authentication Required")
        return self.says(request, len(self.requests))


class Handler(socketserver.StreamRequestHandler):
    proxy: Proxy

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self.one() and not self.proxy.closes:
                pass

    def one(self) -> bool:
        """One request; whether another one may follow."""
        request = read_request(self.rfile)
        if request is None:
            return False
        own = self.proxy.answer(request)
        if own:
            self.rfile.read(request.length)
            self.wfile.write(own)
            return request.method != "CONNECT"
        if request.method == "CONNECT":
            self.tunnel(request.target)
            return False
        return self.forward(request)

    def tunnel(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as store:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: store, store: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)

    def forward(self, request: Request) -> bool:
        url = urllib.parse.urlsplit(request.target)
        target = url.path + (f"?{url.query}" if url.query else "")
        kept = {n: v for n, v in request.headers.items() if not n.startswith("proxy-")}
        head = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        with socket.create_connection((url.hostname, url.port or 80)) as store:
            store.sendall(f"{request.method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
            store.sendall(self.rfile.read(request.length))
            with store.makefile("rb") as answer:
                whole = read_answer(answer, request.method)
        self.wfile.write(whole)
        return b"\r\nconnection: close" not in whole.lower()


def read_head(file: IO[bytes] | io.BufferedIOBase) -> tuple[str, dict[str, str]]:
    lines: list[str] = []
    while (line := file.readline().decode("latin-1").strip()) or not lines:
        if not line:
            return "", {}
        lines.append(line)
    pairs = (line.partition(":") for line in lines[1:])
    return lines[0], {name.lower(): value.strip() for name, _, value in pairs}


def read_request(file: io.BufferedIOBase) -> Request | None:
    line, headers = read_head(file)
    if not line:
        return None
    method, target, _ = line.split(" ")
    return Request(method, target, headers)


def read_answer(file: IO[bytes], method: str) -> bytes:
    """With the headers as they came, but for their case."""
    line, headers = read_head(file)
    has_body = method != "HEAD" and line[9:12] not in ("204", "304")
    body = file.read(int(headers.get("content-length", 0))) if has_body else b""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{line}\r\n{head}\r\n".encode("latin-1") + body


@contextlib.contextmanager
def running_proxy() -> Iterator[Proxy]:
    """On a port of its own."""
    proxy = Proxy()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away."""

    with Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"proxy": proxy})) as server:
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
