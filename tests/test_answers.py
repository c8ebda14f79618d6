"""The answers that the fast lane takes, and those that it leaves to botocore."""

from __future__ import annotations

import contextlib
import http.client
import pickle
import random
from collections import Counter
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.fuzz import SHARE
from testing.lane import CLEAN, Readable, answer_text, http_client_agrees
from testing.place import BOTH_MODES, BUCKET, Place


def fed_in_slices(received: bytes, rng: random.Random) -> Any:
    end = 0
    while end < len(received):
        end += rng.randint(1, max(1, len(received) // 2))
        result = pfu.check_answer(received[:end])
        if result is not None:
            return result, received[:end]
    return None, received


def mutate(received: bytes, rng: random.Random) -> bytes:
    changed = bytearray(received)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(changed) + 1)
        action = rng.random()
        if action < 0.4 and at < len(changed):
            changed[at] = rng.choice(b"\r\n\0:; 0123456789abcdef\x80\xffX<")
        elif action < 0.7:
            del changed[at : at + rng.randint(1, 8)]
        else:
            changed[at:at] = rng.choice(
                [b"\r\n", b"\r\n\r\n", b"0", b": ", b"<Error>", b"\n", b"1\r\n"]
            )
    return bytes(changed)


class TestAnswers:
    """Answers, taken strictly."""

    @pytest.mark.parametrize(
        ("received", "etag", "keep_alive"),
        [
            (CLEAN, '"e"', True),
            (answer_text("etag:x", "content-length: 0", "Connection: close"), "x", False),
            (answer_text("ETag: x", "Content-Length: 0", "Connection: Keep-Alive"), "x", True),
            (answer_text("ETag: x", "Content-Length: 5", body=b"<Yes>"), "x", True),
            (answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "x", True),
            (
                answer_text(
                    "ETag: x",
                    "Transfer-Encoding: Chunked",
                    body=b"3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n",
                ),
                "x",
                True,
            ),
            (
                answer_text(
                    "ETag:   x \t", "X: \xe4", "X: 2", "Content-Length: 0", status="HTTP/1.1 200 "
                ),
                "x",
                True,
            ),
            (answer_text("ETag: x", "Content-Length: 0", status="HTTP/1.1 200"), "x", True),
            # Some frameworks say so of an empty body.
            (answer_text("ETag: x", "Content-Type: text/html", "Content-Length: 0"), "x", True),
        ],
    )
    def test_clean_answers(self, received: bytes, etag: str, keep_alive: bool) -> None:
        for end in range(len(received)):
            assert pfu.check_answer(received[:end]) is None
        assert pfu.check_answer(received) == pfu.Answer(etag, keep_alive)

    @pytest.mark.parametrize(
        ("received", "reason"),
        [
            (b"\x16\x03\x01", "not HTTP/1.1"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP/1.1"),
            (b"HTTP/1.1 200 OK\nETag: x\r\n\r\n", "not HTTP/1.1"),
            (answer_text("ETag: x", " folded", "Content-Length: 0"), "not HTTP/1.1"),
            (answer_text("ETag : x", "Content-Length: 0"), "not HTTP/1.1"),
            (answer_text("ETag: \x00", "Content-Length: 0"), "not HTTP/1.1"),
            (answer_text("nonsense", "ETag: x", "Content-Length: 0"), "not HTTP/1.1"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "too long"),
            (answer_text("Content-Length: 0"), "without an ETag"),
            (answer_text("ETag: x", "Content-Length: 0", "content-length: 0"), "duplicate header"),
            (answer_text("ETag: x", "ETag: y", "Content-Length: 0"), "duplicate header"),
            (answer_text("ETag: x", "Retry-After: 1", "Retry-After: 2"), "duplicate header"),
            (answer_text("ETag: x", "Content-Length: 7", body=b"<Error>"), "with an error"),
            (
                answer_text("ETag: x", "Content-Length: 1", "Content-Encoding: gzip", body=b"z"),
                "encoded body",
            ),
            (
                answer_text(
                    "ETag: x", "Transfer-Encoding: chunked", body=b"7\r\n<Error>\r\n0\r\n\r\n"
                ),
                "with an error",
            ),
            (answer_text("Content-Length: 0", status="HTTP/1.1 100 Continue"), "Continue"),
            (
                answer_text("Location: /", status="HTTP/1.1 307 Temporary Redirect"),
                "Temporary Redirect",
            ),
            (answer_text(status="HTTP/1.1 204 No Content"), "No Content"),
            (answer_text("ETag: x", "Content-Type: text/html", body=b"<"), "with HTML"),
            (answer_text("ETag: x", "Content-Type: text/html", "Content-Length: 9"), "with HTML"),
        ],
    )
    def test_other_answers_are_rejected(self, received: bytes, reason: str) -> None:
        with pytest.raises(pfu.Rejected) as caught:
            pfu.check_answer(received)
        assert reason in caught.value.reason
        assert not caught.value.dropped

    @pytest.mark.parametrize(
        "received",
        [
            answer_text("ETag: x"),
            answer_text("ETag: x", "Content-Length: -1"),
            answer_text("ETag: x", "Content-Length: 1,1"),
            answer_text("ETag: x", "Content-Length: 0", "Transfer-Encoding: chunked"),
            answer_text("ETag: x", "Transfer-Encoding: gzip, chunked"),
            answer_text("ETag: x", "Content-Length: 0", body=b"x"),
            answer_text("ETag: x", "Content-Length: 99999999"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"z\r\n"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"\r\n"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"1\r\nabc"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\nT: t\r\n\r\n"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"fffff\r\n"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"0\r\n\r\nx"),
            b"HTTP/1.0 200 OK\r\nETag: x\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nETag: x\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    def test_how_a_body_ends_decides_on_the_connection_alone(self, received: bytes) -> None:
        assert pfu.check_answer(received, is_last=True) == pfu.Answer("x", False)

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("chunked", b"00000000\r\n\r\n"),
            ("chunked", b"0\r\nTrailer: t\r\n\r\n"),
            ("chunked", b"z\r\n"),
            ("chunked", b"1\r\nabc"),
            ("", b""),
        ],
    )
    def test_a_body_whose_end_is_not_understood_is_not_waited_for(
        self, encoding: str, body: bytes
    ) -> None:
        lengths = [] if encoding else ["Content-Length:"]
        received = answer_text("ETag: x", f"Transfer-Encoding: {encoding}", *lengths, body=body)
        assert pfu.check_answer(received) == pfu.Answer("x", False)

    def test_a_body_that_is_too_long_is_not_waited_for(self) -> None:
        for body in b"", b"x":
            received = answer_text("ETag: x", f"Content-Length: {pfu.MAX_ANSWER + 1}", body=body)
            assert pfu.check_answer(received) == pfu.Answer("x", False)

    def test_what_a_rejection_tells(self) -> None:
        date = "Sun, 22 Nov 2026 19:30:20 GMT"
        with pytest.raises(pfu.Rejected) as caught:
            pfu.check_answer(
                answer_text(
                    "Date: " + date, "Retry-After: 7", "x: y", status="HTTP/1.1 503 Slow Down"
                )
            )
        problem = pickle.loads(pickle.dumps(caught.value))
        told = (problem.status, problem.reason, problem.date, problem.dropped)
        assert told == (503, "Slow Down", date, True)
        assert str(problem) == "503 Slow Down"

    def test_fuzzed_answers(self) -> None:
        rng = random.Random(7)
        seeds = [
            CLEAN,
            answer_text("x-amz-id-2: abc=", "Date: x", "ETag: x", "Server: S", "Content-Length: 0"),
            answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
            answer_text("ETag: x", "Content-Length: 4", body=b"abcd"),
            answer_text("Retry-After: 1", "Content-Length: 0", status="HTTP/1.1 503 Slow Down"),
        ]
        accepted = rejected = waiting = 0
        for _ in range(100_000 // SHARE):
            received = mutate(rng.choice(seeds), rng)
            try:
                result, used = fed_in_slices(received, rng)
            except pfu.Rejected:
                rejected += 1
                continue
            if result is None:
                waiting += 1
                assert pfu.check_answer(received) is None
                continue
            accepted += 1
            if result.keep_alive:
                http_client_agrees(used, result)
        assert min(accepted, rejected, waiting) > 5_000 // SHARE


SIZE_AND_ETAG = "Content-Length: 5000000000000", 'ETag: "e"'
NO_OBJECT = "HTTP/1.1 404 Not Found"


class TestLooks:
    """Answers to HEAD, which have no body."""

    @pytest.mark.parametrize(
        ("received", "lives"),
        [
            (answer_text(*SIZE_AND_ETAG, "x-amz-meta-A:  b "), True),
            (answer_text(*SIZE_AND_ETAG, "X-Amz-Meta-a: b", "Connection: Close"), False),
            (answer_text(*SIZE_AND_ETAG, "x-amz-meta-a: b", status="HTTP/1.0 200"), False),
            (answer_text(*SIZE_AND_ETAG, "Vary: a", "Vary: b", "x-amz-meta-a: b"), True),  # MinIO
            (answer_text("Content-Length: 300", status=NO_OBJECT), True),
            (answer_text("Content-Type: application/xml", status=NO_OBJECT), True),
        ],
    )
    def test_clean_answers(self, received: bytes, lives: bool) -> None:
        for end in range(len(received)):
            assert pfu.check_look(received[:end]) is None
        answer = pfu.check_look(received)
        assert answer is not None
        assert answer.keep_alive == lives
        if answer.fields:
            assert answer.fields["content-length"] == "5000000000000"
            assert answer.fields["x-amz-meta-a"] == "b"
        assert bool(answer.fields) == bool(b"ETag" in received)

    @pytest.mark.parametrize(
        "received",
        [
            answer_text(*SIZE_AND_ETAG, "Content-Type: text/html"),
            answer_text(*SIZE_AND_ETAG, body=b"x"),
            answer_text(*SIZE_AND_ETAG, "x-amz-meta-a: b", "X-Amz-Meta-A: c"),
            answer_text(*SIZE_AND_ETAG, status="HTTP/1.1 206 Partial Content"),
            answer_text(*SIZE_AND_ETAG, status="HTTP/1.1 403 Forbidden"),
            answer_text(*SIZE_AND_ETAG, status="HTTP/1.1 503 Slow Down"),
            answer_text(*SIZE_AND_ETAG, status="HTTP/1.1 307 Temporary Redirect"),
            answer_text("Content-Length: 7"),
            answer_text("Content-Length: 7", 'ETag: ""'),
            answer_text("Content-Length: 7", 'ETag: "e'),
            answer_text('ETag: "e"'),
            answer_text("Content-Length: -7", 'ETag: "e"'),
            answer_text("Content-Length: \xb2", 'ETag: "e"'),
            answer_text("Content-Type: text/html", status=NO_OBJECT),
            answer_text(body=b"<Error>", status=NO_OBJECT),
        ],
    )
    def test_other_answers_are_left_to_boto3(self, received: bytes) -> None:
        with pytest.raises(pfu.Rejected):
            pfu.check_look(received)

    def test_fuzzed_answers(self) -> None:
        rng = random.Random(8)
        whole = answer_text(*SIZE_AND_ETAG, "x-amz-meta-a: b", "Date: x", "Connection: close")
        seeds = [whole, answer_text("Server: S", "Content-Length: 300", status=NO_OBJECT)]
        said: Counter[str] = Counter()
        for _ in range(20_000 // SHARE):
            received = mutate(rng.choice(seeds), rng)
            try:
                answer = pfu.check_look(received)
            except pfu.Rejected:
                said["rejected"] += 1
                continue
            said[type(answer).__name__] += 1
            if answer is not None and answer.fields:
                peer = http.client.HTTPResponse(Readable(received), method="HEAD")  # type: ignore[arg-type]
                peer.begin()
                assert (peer.status, peer.headers["etag"]) == (200, answer.etag)
                assert peer.headers["content-length"].strip() == answer.fields["content-length"]
        assert min(said.values()) > 500 // SHARE, said


@pytest.mark.parametrize("method", ["inspect", "read_back"])
def test_tls_that_breaks_within_an_answer_to_boto3_is_passing(
    at_hand: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from urllib3.exceptions import SSLError

    def broken(*_: Any, **__: Any) -> bytes:
        raise SSLError("decryption failed or bad record mac")

    at_hand.file("f")
    assert at_hand.run("--mode", "concurrent").code == 0
    options = pfu.S3Options(endpoint_url=at_hand.endpoint)
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", options)
    monkeypatch.setattr("urllib3.response.HTTPResponse.read", broken)
    broken_off = pytest.raises(pfu.RetryableError, match="bad record mac")
    with contextlib.closing(uploader), broken_off:
        getattr(uploader, method)("p/f")


# pattern in a page of a listing, what stands there instead, what is said
ODD_LISTINGS = [
    ("<IsTruncated>false", "<IsTruncated>true", "makes no sense: no NextContinuationToken: it is"),
    ("<Size>[0-9]*</Size>", "", "the response lacks 'Size'"),
    ("<Key>[^<]*</Key>", "", "the response lacks 'Key'"),
    ("<Size>", "<Size>about ", "makes no sense: invalid literal for int() with base 10: 'about "),
    ("<Size>", "<Size>99999999999999999999", "makes no sense: an object of 99999999999999999999"),
    ("<Size>", "<Size>-", "makes no sense: an object of -"),
    ("<LastModified>", "<LastModified>after ", 'makes no sense: Invalid timestamp "after '),
]
ODD_HEADS = [
    ({"last-modified": "yesterday"}, ""),
    ({"x-amz-checksum-sha256": "abc"}, ""),
    ({"x-amz-checksum-sha256": "none-2"}, ""),
]


class TestOddAnswers:
    """Answers that S3 would not give: the store is named, not the configuration, nor pfu itself."""

    @pytest.mark.parametrize("pattern, instead, says", ODD_LISTINGS)
    def test_odd_listings(self, place: Place, pattern: str, instead: str, says: str) -> None:
        place.file("a")
        assert place.run().code == 0
        odd = Action("honest", altered={pattern: instead})
        place.server.faults.append(Fault(odd, "ListObjectsV2"))
        run = place.run("--verify")
        assert run.code == 2
        assert run.err.startswith(f"pfu: list s3://{BUCKET}/p/: the response "), run.err
        assert says in run.err

    def test_a_listing_that_goes_round_in_circles_has_an_end(self, place: Place) -> None:
        place.files(3)
        assert place.run().code == 0
        first = place.server._store.list_objects_v2

        def first_again(request: Any) -> Any:
            request.query.pop("continuation-token", None)
            return first(request)

        place.server._store.list_objects_v2 = first_again  # type: ignore[method-assign]
        more = {"<IsTruncated>false": "<NextContinuationToken>2</NextContinuationToken>"}
        more = {old: f"{new}<IsTruncated>true" for old, new in more.items()}
        place.server.faults.append(Fault(Action("honest", altered=more), "ListObjectsV2"))
        run = place.run("--verify")
        assert (run.code, run.err) == (
            2,
            f"pfu: list s3://{BUCKET}/p/: each page continues as the last\n",
        )

    @BOTH_MODES
    @pytest.mark.parametrize("headers, says", ODD_HEADS)
    def test_odd_descriptions_of_objects(
        self, place: Place, mode: str, headers: dict[str, str], says: str
    ) -> None:
        place.files(3)
        place.file("large", b"x" * (17 << 20))
        place.server.faults.append(Fault(Action("honest", headers=headers), "HeadObject"))
        run = place.run("--mode", mode)
        assert run.code == 0, run.err
        assert says in run.err
        assert len(run.err.splitlines()) == bool(says)
        assert place.stored() == place.local()
        assert place.run("--verify").code == 0

    def test_half_a_date_stops_nothing(self, place: Place) -> None:
        """As in an answer that is cut off."""
        place.files(3)
        cut = Action("honest", headers={"last-modified": "Mon, 30 N"})
        place.server.faults.append(Fault(cut, "HeadObject", times=2))
        run = place.run()
        assert (run.code, run.err) == (0, "")

    @BOTH_MODES
    @pytest.mark.parametrize("message", ["", "words"])
    def test_a_refusal_without_a_code(self, place: Place, mode: str, message: str) -> None:
        place.file("f")
        place.server.faults.append(Fault(Action("error", 403, "", message), "PutObject"))
        run = place.run("--mode", mode)
        told = f"upload: 403{message and ': '}{message} (the credentials lack permission, see"
        assert (run.code, told in run.err) == (1, True), run.err

    @BOTH_MODES
    @pytest.mark.parametrize("lane", ["fast", "safe"])
    @pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "HeadObject"])
    def test_weak_etags_are_those_of_the_store(
        self, place: Place, mode: str, lane: str, operation: str
    ) -> None:
        """A proxy that may compress an answer marks them so; it does not for all objects."""
        place.files(3)
        place.file("large", b"x" * (17 << 20))
        place.server.faults.append(Fault(Action("honest", weak=True), operation, "large|f00001"))
        if lane == "safe":
            place.changes = "client_refusal = lambda client: 'the test says so'"
        for options in ((), ("--verify",), ("--verify", "--checksum")):
            run = place.run("--mode", mode, *options)
            assert (run.code, run.err) == (0, ""), options
        assert place.check_ledger_is_honest() == 4

    @BOTH_MODES
    @pytest.mark.parametrize("tag", ["PartNumber", "Size", "ETag"])
    def test_odd_lists_of_parts(self, place: Place, mode: str, tag: str) -> None:
        place.file("large", b"x" * (17 << 20))
        refused = Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=1)
        place.server.faults.append(refused)
        assert place.run("--mode", mode).code == 1
        odd = Action("honest", altered={f"<{tag}>[^<]*</{tag}>": ""})
        place.server.faults[:] = [Fault(odd, "ListParts")]
        run = place.run("--mode", mode)
        assert run.code == 0, run.err
        assert place.stored() == place.local()
