"""Behind a company's proxy: both lanes go through it, and what it says is not the store's word."""

from __future__ import annotations

import ssl
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.fixtures import IN_NO_ENVIRONMENT
from testing.place import BOTH_MODES, BUCKET, MIB, PART, Place
from testing.proxy import Proxy, Request, page, running_proxy
from testing.server import S3Server

FILES = 40
BOTH_SCHEMES = pytest.mark.parametrize("scheme", ["http", "https"])
NAMES_IT = "(check HTTPS_PROXY and HTTP_PROXY: "


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with running_proxy() as proxy:
        yield proxy


@pytest.fixture
def behind(tmp_path: Path, certificates: Path, proxy: Proxy, scheme: str) -> Iterator[Place]:
    """A place that reaches its store by the proxy alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "address.pem", certificates / "address.key")
    with S3Server(buckets=[BUCKET], tls=context if scheme == "https" else None) as server:
        place = Place(tmp_path, server)
        place.environment["AWS_CA_BUNDLE"] = str(certificates / "ca.pem")
        place.environment.update(HTTP_PROXY=proxy.url, HTTPS_PROXY=proxy.url, NO_PROXY="")
        place.files(FILES)
        yield place


def run(place: Place, mode: str, *options: object) -> Any:
    return place.run("--mode", mode, "--json", "--patience", "4s", *options)


@BOTH_MODES
@BOTH_SCHEMES
class TestThrough:
    """The fast lane goes through a plain proxy."""

    def test_all_goes_by_it(self, behind: Place, proxy: Proxy, mode: str, scheme: str) -> None:
        behind.file("large", b"x" * (11 * MIB))
        done = run(behind, mode, *PART)
        assert (done.code, done.err) == (0, "")
        assert (done.json["fast_lane"], done.json["uploaded"]) == (FILES + 1, FILES + 1)
        assert behind.stored() == behind.local()
        if scheme == "https":
            assert {request.method for request in proxy.requests} == {"CONNECT"}
            place = urllib.parse.urlsplit(behind.server.endpoint).netloc
            assert {request.target for request in proxy.requests} == {place}
        else:
            assert len(proxy.requests) == len(behind.server.log)
            assert all(request.target.startswith("http://127") for request in proxy.requests)

    def test_user_and_password(self, behind: Place, proxy: Proxy, mode: str, scheme: str) -> None:
        proxy.user = "joe@corp:s#c/r:t"
        url = proxy.url.replace("//", "//joe%40corp:s%23c%2Fr%3At@")
        behind.environment.update(HTTP_PROXY=url, HTTPS_PROXY=url)
        log = behind.path / "log"
        done = run(behind, mode, "--log-file", log)
        assert (done.code, done.json["fast_lane"]) == (0, FILES), done.err
        kept = b"".join(p.read_bytes() for p in behind.path.iterdir() if p.is_file())
        for secret in ("s#c/r", "s%23c", "am9lQGNvcnA6"):
            assert secret not in done.out + done.err
            assert secret.encode() not in kept

    def test_one_that_closes_after_each_answer(
        self, behind: Place, proxy: Proxy, mode: str, scheme: str
    ) -> None:
        proxy.closes = True
        done = run(behind, mode)
        assert (done.code, done.json["uploaded"], done.json["failed"]) == (0, FILES, 0)
        assert behind.stored() == behind.local()

    @pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Busy", "504 Timeout", ""])
    def test_what_passes(
        self, behind: Place, proxy: Proxy, mode: str, scheme: str, status: str
    ) -> None:
        """An empty status: it closes the connection."""
        answer = page(status) if status else b"\r\n"
        proxy.says = lambda request, number: answer if number % 7 == 3 else b""
        done = run(behind, mode)
        assert (done.code, done.json["uploaded"]) == (0, FILES), done.err
        assert behind.stored() == behind.local()


@BOTH_MODES
@BOTH_SCHEMES
class TestRefused:
    """A proxy that lets nothing through ends the run with a word about the proxy."""

    @pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
    def test_from_the_start(
        self, behind: Place, proxy: Proxy, mode: str, scheme: str, status: str
    ) -> None:
        proxy.says = lambda request, number: page(status)
        done = run(behind, mode)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert f"the proxy says {status[:3]}" in done.err
        assert NAMES_IT in done.err
        assert "AWS_" not in done.err

    def test_on_the_way(self, behind: Place, proxy: Proxy, mode: str, scheme: str) -> None:
        """Once something counts as uploaded: the store was asked whether it has it."""
        for_tunnels = Fault(Action("close_after"), operation="PutObject")
        slowly = Fault(Action("slow", seconds=0.05), operation="PutObject")
        behind.server.faults.append(for_tunnels if scheme == "https" else slowly)

        def refuse(request: Request, number: int) -> bytes:
            operations = Counter(entry.operation for entry in list(behind.server.log))
            is_late = operations["HeadObject"] and operations["PutObject"] > FILES // 2
            return page("407 Proxy Authentication Required") if is_late else b""

        proxy.says = refuse
        done = run(behind, mode, "--concurrency", 2)
        assert done.code == 1
        assert "the proxy says 407" in done.json["error"]
        assert NAMES_IT in done.err
        assert (done.json["failed"], done.json["pending"] > 0) == (0, True)
        proxy.says = lambda request, number: b""
        assert run(behind, mode).code == 0
        assert behind.stored() == behind.local()

    def test_a_page_instead(self, behind: Place, proxy: Proxy, mode: str, scheme: str) -> None:
        """A portal says 200 to everything: nothing counts as uploaded."""
        proxy.says = lambda request, number: page("200 OK")
        done = run(behind, mode)
        assert done.code == 2
        lines = [line for line in done.err.splitlines() if "unavailable for" not in line]
        assert len(lines) == 1
        assert NAMES_IT in done.err or scheme == "http"
        behind.server.faults.append(Fault(Action("close_after"), operation="PutObject"))
        proxy.says = lambda request, number: page("200 OK") if number > 12 else b""
        done = run(behind, mode, "--concurrency", 2)
        assert done.code in (1, 2)
        assert done.json["failed"] == 0
        assert done.json["uploaded"] <= len(behind.stored()) < FILES


@IN_NO_ENVIRONMENT
class TestWhichProxy:
    """botocore's word decides."""

    @pytest.mark.parametrize(
        "url, address, authorization",
        [
            ("http://proxy:3128", ("proxy", 3128), None),
            ("proxy:3128", ("proxy", 3128), None),
            ("//proxy", ("proxy", 80), None),
            ("http://[::1]:8080/", ("::1", 8080), None),
            ("http://joe:s%23c%2Fr@proxy", ("proxy", 80), "Basic am9lOnMjYy9y"),
            ("http://joe@proxy", ("proxy", 80), None),
        ],
    )
    def test_what_a_url_says(
        self, url: str, address: tuple[str, int], authorization: str | None
    ) -> None:
        import botocore.config

        config = botocore.config.Config(proxies={"https": url})
        proxy = pfu.proxy_for(config, "https://s3.example")
        assert proxy
        assert proxy.address == address
        assert dict(proxy.headers).get("Proxy-Authorization") == authorization
        assert pfu.proxy_for(config, "http://s3.example") is None

    @pytest.mark.parametrize(
        "no_proxy, goes_by_it",
        [("", True), ("example", False), (".s3.example", False), ("other", True), ("*", False)],
    )
    def test_what_the_environment_exempts(
        self, monkeypatch: pytest.MonkeyPatch, no_proxy: str, goes_by_it: bool
    ) -> None:
        import botocore.config

        monkeypatch.setenv("https_proxy", "http://proxy:3128")
        monkeypatch.setenv("no_proxy", no_proxy)
        proxy = pfu.proxy_for(botocore.config.Config(), "https://a.s3.example")
        assert (proxy is not None) == goes_by_it

    @pytest.mark.parametrize(
        "host, place", [("s3.example", b"s3.example:443"), ("::1", b"[::1]:443")]
    )
    def test_a_tunnel_is_asked_for(self, host: str, place: bytes) -> None:
        known = pfu.RequestTemplate(
            *("https", host, (host, 443), "", (), ()),
            *("us-east-1", "s3", "pfu", None),
        )
        assert known.tunnel == b""
        header = ("Proxy-Authorization", "Basic x")
        by_proxy = replace(known, proxy=pfu.Proxy(("proxy", 1), (header,)))
        lines = by_proxy.tunnel.split(b"\r\n")
        assert lines == [
            b"CONNECT " + place + b" HTTP/1.1",
            b"Host: " + place,
            b"Proxy-Authorization: Basic x",
            b"",
            b"",
        ]

    @pytest.mark.parametrize(
        "reply, verdict",
        [
            (b"", False),
            (b"HTTP/1.1 200 OK\r\n", False),
            (b"HTTP/1.1 200 OK\r\n\r\n", True),
            (b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", True),
            (b"HTTP/1.1 200 OK\r\n\r\n<html>", "it answers itself"),
            (b"HTTP/1.1 407 Who?\r\n\r\n", "the proxy says 407 Who?"),
            (b"HTTP/1.1 403\r\n\r\n", "the proxy says 403"),
            (b"HTTP/1.1 503 Busy\r\n\r\n", None),
            (b"SSH-2.0-x\r\n\r\n", None),
            (b"HTTP/1.1 200 OK\r\n" + b"x" * pfu.MAX_HEAD, None),
        ],
    )
    def test_what_it_says_to_that(self, reply: bytes, verdict: bool | str | None) -> None:
        """A text: it refuses. None: it may let through later."""
        if isinstance(verdict, bool):
            assert pfu.check_tunnel(reply) is verdict
            return
        with pytest.raises(pfu.Rejected) as caught:
            pfu.check_tunnel(reply)
        assert caught.value.by_proxy == (verdict is not None)
        assert verdict is None or verdict in str(caught.value)
