"""The fast lane's signatures and requests, compared with botocore's; and when it is not used."""

from __future__ import annotations

import base64
import hashlib
import itertools
import pickle
import random
import time
from collections.abc import Iterator
from typing import Any, Callable
from urllib.parse import quote, urlsplit

import pytest
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import ReadOnlyCredentials

import pfu
from testing.fixtures import IN_NO_ENVIRONMENT
from testing.lane import (
    KEYS,
    NO_HEADERS,
    NO_MORE_CHECKSUMS,
    ODD_TEXT,
    capture,
    client_for,
    headers_of,
    odd_case,
    parse_head,
    seconds_of,
    template_for,
)
from testing.protocol import encode64

# ======================================================================================
# Signatures and heads equal botocore's
# ======================================================================================


def botocore_signs(case: dict[str, Any]) -> AWSRequest:
    path = f"{case['prefix']}/{quote(case['key'], safe='/~')}"
    url = f"{case['scheme']}://{case['host']}{path}"
    request = AWSRequest("PUT", f"{url}?{case['query']}" if case["query"] else url)
    request.data = case["body"]
    for name, value in [*case["headers"], *case["static"]]:
        request.headers[name] = value
    credentials = ReadOnlyCredentials(*case["credentials"])
    S3SigV4Auth(credentials, "s3", case["region"]).add_auth(request)
    return request


def writer_at(clock: Callable[[], float], credentials: pfu.Credentials = KEYS) -> pfu.HeadWriter:
    return pfu.HeadWriter(template_for(odd_case(random.Random(1))), credentials, clock)


def date_of(writer: pfu.HeadWriter) -> str:
    return parse_head(writer.head("k", NO_HEADERS, 0, "0" * 64))[1]["x-amz-date"]


class NoContent:
    """The empty body of the answer that botocore gets for an intercepted request."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        return iter(())


class TestSigning:
    """Signatures and heads equal botocore's."""

    @pytest.mark.parametrize("seed", range(8))
    def test_signature_equals_botocores(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            case = odd_case(rng)
            digest = hashlib.sha256(case["body"]).hexdigest()
            checksum = rng.random() < 0.5
            sums = [("x-amz-checksum-sha256", encode64(bytes.fromhex(digest)))] if checksum else []
            peer = botocore_signs({**case, "headers": [*case["headers"], *sums]})
            now = seconds_of(peer.headers["X-Amz-Date"])
            clock = itertools.repeat(now + 0.5).__next__
            writer = pfu.HeadWriter(template_for(case), case["credentials"], clock)
            headers, length = headers_of(case["headers"]), len(case["body"])
            head = writer.head(
                case["key"], headers, length, digest, case["query"], checksum=checksum
            )
            first, sent = parse_head(head)
            url = urlsplit(peer.url)
            target = f"{url.path}?{url.query}" if url.query else url.path
            assert first == f"PUT {target} HTTP/1.1"
            assert sent["authorization"] == peer.headers["Authorization"], case
            assert sent["content-length"] == str(len(case["body"]))
            assert sent["x-amz-content-sha256"] == digest
            assert sent.get("x-amz-security-token") == case["credentials"].token
            for name, value in case["headers"]:
                assert sent[name] == value

    def test_stamp_is_of_the_present_second(self) -> None:
        now = 1_700_000_000.9
        writer = writer_at(lambda: now)
        assert date_of(writer) == "20231114T221320Z"
        now += 0.2
        assert date_of(writer) == "20231114T221321Z"
        now -= 3600
        assert date_of(writer) == "20231114T211321Z"
        now += 86400
        assert date_of(writer) == "20231115T211321Z"

    def test_signing_key_is_derived_once_a_day(self, monkeypatch: pytest.MonkeyPatch) -> None:
        derived: list[str] = []
        real = pfu.signing_key

        def derive(secret_key: str, date: str, *place: str) -> bytes:
            derived.append(date)
            return real(secret_key, date, *place)

        monkeypatch.setattr(pfu, "signing_key", derive)
        now = 1_700_000_000.0
        writer = writer_at(lambda: now)
        for _ in range(50):
            now += 3600
            date_of(writer)
        assert derived == ["20231114", "20231115", "20231116", "20231117"]
        writer.use(KEYS._replace(token="t"))
        assert len(derived) == 5

    @pytest.mark.parametrize(
        "given",
        [
            {"headers": headers_of([("x-amz-meta-a", "b\r\nHost: c")])},
            {"headers": headers_of([("x-amz-meta-a", "ä")])},
            {"headers": headers_of([("x-amz-meta-a", "\t")])},
            {"headers": headers_of([("x-amz-meta-a: b\r\nc", "d")])},
            {"headers": headers_of([("X-Amz-Meta-A", "b"), ("x-amz-meta-a", "c")])},
            {"sha256_hex": "0\r\n"},
            {"query": "a=b HTTP/1.1\r\n"},
            {"query": "a=ä"},
            {"key": "\udcff"},
        ],
    )
    def test_no_header_can_be_injected(self, given: dict[str, Any]) -> None:
        whole = {"key": "k", "headers": NO_HEADERS, "length": 0, "sha256_hex": "0" * 64, **given}
        with pytest.raises(ValueError, match=r"header|query|surrogates"):
            writer_at(time.time).head(**whole)

    def test_key_cannot_break_the_request_line(self) -> None:
        head = writer_at(time.time).head("a b\r\nc?d#e%41", NO_HEADERS, 0, "0" * 64)
        assert b"/a%20b%0D%0Ac%3Fd%23e%2541 HTTP/1.1\r\n" in head


# ======================================================================================
# What is taken from botocore's request, and what closes the gate
# ======================================================================================


OWNER = "arn:aws:s3:us-east-1:123456789012"


class TestGate:
    """What is taken from botocore's request, and what closes the gate."""

    @IN_NO_ENVIRONMENT
    def test_template_of_virtual_host(self) -> None:
        extra = {
            "StorageClass": "STANDARD_IA",
            "ServerSideEncryption": "AES256",
            "ExpectedBucketOwner": "123456789012",
            "Tagging": "a=b%20c",
            "CacheControl": "no-cache",
        }
        template = capture(extra=extra, token="secret-token")
        assert template.scheme == "https"
        assert template.host == "my-bucket.s3.eu-central-1.amazonaws.com"
        assert template.address == ("my-bucket.s3.eu-central-1.amazonaws.com", 443)
        assert (template.path_prefix, template.region, template.service) == (
            "",
            "eu-central-1",
            "s3",
        )
        assert dict(template.headers) == {
            "cache-control": "no-cache",
            "x-amz-expected-bucket-owner": "123456789012",
            "x-amz-server-side-encryption": "AES256",
            "x-amz-storage-class": "STANDARD_IA",
            "x-amz-tagging": "a=b%20c",
        }
        assert template.part_headers == (("x-amz-expected-bucket-owner", "123456789012"),)
        assert template.user_agent.startswith("Boto3/")
        assert template.ca_bundle.endswith(".pem")
        assert pickle.loads(pickle.dumps(template)) == template
        assert "secret" not in repr(template)

    @IN_NO_ENVIRONMENT
    def test_template_of_path_style(self) -> None:
        template = capture(
            endpoint_url="http://LOCALHOST:9000/base", config={"s3": {"addressing_style": "path"}}
        )
        assert template.host == "localhost:9000"
        assert template.address == ("localhost", 9000)
        assert template.path_prefix == "/base/my-bucket"

    @IN_NO_ENVIRONMENT
    def test_template_keeps_the_ca_bundle(self, tmp_path: Any) -> None:
        assert capture(verify=str(tmp_path / "ca.pem")).ca_bundle == str(tmp_path / "ca.pem")

    @IN_NO_ENVIRONMENT
    def test_checksum_header_goes_along(self) -> None:
        digest = hashlib.sha256(pfu.PROBE_BODY).digest()
        value = base64.b64encode(digest).decode()
        template = capture(extra={"ChecksumSHA256": value})
        writer = pfu.HeadWriter(template, KEYS)
        sent = parse_head(writer.head("k", NO_HEADERS, 3, digest.hex(), checksum=True))[1]
        assert sent["x-amz-checksum-sha256"] == value
        assert "x-amz-checksum-sha256" in sent["authorization"]
        assert (
            "x-amz-checksum-sha256" not in parse_head(writer.head("k", NO_HEADERS, 3, "0" * 64))[1]
        )

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize("token", [None, "t"])
    @pytest.mark.parametrize("endpoint_url", [None, "http://localhost:9000/base"])
    def test_a_look_is_botocores_request(self, endpoint_url: str | None, token: str | None) -> None:
        access = {
            "ExpectedBucketOwner": "123456789012",
            "RequestPayer": "requester",
            "SSECustomerAlgorithm": "AES256",
            "SSECustomerKey": "k" * 32,
        }
        client = client_for(endpoint_url=endpoint_url, token=token)
        sent: list[Any] = []

        def intercept(request: Any, **_: Any) -> Any:
            sent.append(request)
            return AWSResponse(request.url, 200, {}, NoContent())

        client.meta.events.register_first("before-send.s3.HeadObject", intercept)
        client.head_object(Bucket="my-bucket", Key="a b/\xfc+", ChecksumMode="ENABLED", **access)
        peer = {n.lower(): pfu.text_of(value) for n, value in sent[0].headers.items()}
        extra = {**access, "StorageClass": "STANDARD_IA", "ServerSideEncryption": "AES256"}
        template = capture(extra=extra, endpoint_url=endpoint_url, token=token)
        clock = itertools.repeat(seconds_of(peer["x-amz-date"]) + 0.5).__next__
        writer = pfu.HeadWriter(template, KEYS._replace(token=token), clock)
        head = writer.head("a b/\xfc+", pfu.CHECKSUM_MODE, 0, pfu.EMPTY_SHA256, method="HEAD")
        first, ours = parse_head(head)
        assert first == f"HEAD {urlsplit(sent[0].url).path} HTTP/1.1"
        assert ours.pop("host") == urlsplit(sent[0].url).netloc
        unsigned = "user-agent", "amz-sdk-invocation-id", "amz-sdk-request"
        assert ours.pop("user-agent")
        assert ours == {n: value for n, value in peer.items() if n not in unsigned}

    @IN_NO_ENVIRONMENT
    def test_keys_are_encoded_as_botocore_does(self) -> None:
        rng = random.Random(5)
        client = client_for()
        for _ in range(60):
            key = "".join(rng.choice(ODD_TEXT) for _ in range(rng.randint(1, 30)))
            urls: list[str] = []

            def intercept(request: Any, urls: list[str] = urls, **_: Any) -> Any:
                urls.append(request.url)
                return AWSResponse(request.url, 200, {}, NoContent())

            client.meta.events.register_first("before-send.s3.PutObject", intercept)
            client.put_object(Bucket="bucket", Key=key, Body=b"")
            client.meta.events.unregister("before-send.s3.PutObject", intercept)
            expected = urlsplit(urls[0]).path
            assert expected == "/" + pfu.percent_encode_key(key), key

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize(
        ("reason", "arguments"),
        [
            ("S3 Express", {"bucket": "data--euc1-az1--x-s3"}),
            ("multi-region", {"bucket": "arn:aws:s3::123456789012:accesspoint/abc.mrap"}),
            (
                "Outposts",
                {"bucket": "arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/a"},
            ),
            ("not signed", {"config": {"signature_version": UNSIGNED}}),
            ("not signed", {"config": {"signature_version": "s3"}}),
            ("Acceleration", {"config": {"s3": {"use_accelerate_endpoint": True}}}),
            ("is reached by https", {"config": {"proxies": {"https": "https://proxy:1"}}}),
            ("is reached by https", {"config": {"proxies": {"https": "HTTPS://proxy:1"}}}),
            ("client certificate", {"config": {"client_cert": "/c.pem"}}),
            ("verification is off", {"verify": False}),
            pytest.param(
                "checksum trailers",
                {"config": {"request_checksum_calculation": "when_supported"}},
                marks=pytest.mark.skipif(not NO_MORE_CHECKSUMS, reason="botocore sends none"),
            ),
            ("x-amz-checksum-crc32", {"extra": {"ChecksumCRC32": "AAAAAA=="}}),
            ("content-md5", {"extra": {"ContentMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}}),
            ("cannot build", {"extra": {"NoSuchArgument": 1}}),
            ("cannot build", {"bucket": "no/bucket?"}),
        ],
    )
    def test_gate_is_closed(self, reason: str, arguments: dict[str, Any]) -> None:
        closed = capture(**arguments)
        assert isinstance(closed, pfu.GateClosed)
        assert reason in closed.reason

    @IN_NO_ENVIRONMENT
    def test_gate_opens_for_an_access_point_of_one_region(self) -> None:
        template = capture(
            bucket=f"{OWNER}:accesspoint/name", config={"s3": {"use_arn_region": True}}
        )
        assert isinstance(template, pfu.RequestTemplate)
        assert template.host == "name-123456789012.s3-accesspoint.us-east-1.amazonaws.com"
        assert template.region == "us-east-1"

    @IN_NO_ENVIRONMENT
    def test_gate_follows_the_environments_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://proxy:3128")
        assert capture().proxy == pfu.Proxy(("proxy", 3128), ())
        assert capture(endpoint_url="http://localhost:1").proxy is None
        monkeypatch.setenv("no_proxy", "amazonaws.com")
        assert capture().proxy is None

    @IN_NO_ENVIRONMENT
    def test_gate_is_closed_if_botocore_signs_differently(self) -> None:
        client = client_for()

        def tamper(request: Any, **_: Any) -> None:
            value = request.headers["Authorization"]
            del request.headers["Authorization"]
            request.headers["Authorization"] = value[:-4] + "0000"

        client.meta.events.register_last("request-created.s3", tamper)
        closed = pfu.capture_template(client, "my-bucket", {}, lambda: KEYS)
        assert closed == pfu.GateClosed("botocore signs differently")
        other = KEYS._replace(access_key="OTHER")
        closed = pfu.capture_template(client, "my-bucket", {}, lambda: other)
        assert closed == pfu.GateClosed("botocore signs with different credentials")

    @IN_NO_ENVIRONMENT
    def test_capture_leaves_no_handler_behind(self) -> None:
        client = client_for(
            endpoint_url="http://127.0.0.1:9", config={"retries": {"total_max_attempts": 1}}
        )
        assert isinstance(
            pfu.capture_template(client, "b-b-b", {}, lambda: KEYS), pfu.RequestTemplate
        )
        with pytest.raises(Exception, match="Could not connect"):
            client.put_object(Bucket="b-b-b", Key=pfu.PROBE_KEY)
