"""The fast lane in a run: what goes by it, why it is off, what it does not understand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.fixtures import IN_NO_ENVIRONMENT, server_context
from testing.lane import KEYS
from testing.place import BOTH_MODES, BUCKET, MIB, ODD_NAMES, LaneFault, Place, closed_port, puts_of
from testing.protocol import Request
from testing.server import S3Server
from testing.store import ACCOUNT

# ======================================================================================
# In a run
# ======================================================================================


def closed_proxy(place: Place) -> str:
    closed_port(place)
    proxy, place.endpoint = place.endpoint, place.server.endpoint
    return proxy


def no_proxy_at_all(place: Place) -> None:
    """The normal case."""


def proxy_of_https(place: Place) -> None:
    place.environment["HTTPS_PROXY"] = closed_proxy(place)


def proxy_of_other_hosts(place: Place) -> None:
    place.environment.update(HTTP_PROXY=closed_proxy(place), NO_PROXY="127.0.0.1")


class TestFastLane:
    """In a run."""

    @BOTH_MODES
    @pytest.mark.parametrize("prepare", [no_proxy_at_all, proxy_of_https, proxy_of_other_hosts])
    def test_all_files_go_by_the_fast_lane(
        self, place: Place, prepare: Callable[[Place], None], mode: str
    ) -> None:
        place.files(40)
        prepare(place)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.err) == (0, "")
        assert (run.json["fast_lane"], run.json["uploaded"]) == (40, 40)
        assert run.json["fast_lane_off"] is None
        assert place.stored() == place.local()
        assert {lane: len(keys) for lane, keys in puts_of(place.server).items()} == {
            "fast": 40,
            "safe": 0,
        }

    @BOTH_MODES
    def test_large_files_count_as_fast_too(self, place: Place, mode: str) -> None:
        place.files(10)
        place.file("large", b"x" * (5 * MIB + 1))
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert run.code == 0
        assert (run.json["fast_lane"], run.json["uploaded"]) == (11, 11)
        assert run.json["fast_lane_off"] is None
        assert place.stored() == place.local()

    def test_both_lanes_say_the_same_of_a_file(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ODD_NAMES:
            place.file(name, os.fsencode(name))
        arguments = ["--storage-class", "STANDARD_IA", "--expected-bucket-owner", ACCOUNT, "--json"]
        fast = place.run("--mode", "concurrent", *arguments)
        place.server.faults.append(LaneFault(Action("error", 500), operation="PutObject"))
        safe = place.run("--mode", "concurrent", "--force", *arguments, to=f"s3://{BUCKET}/q")
        assert (fast.json["fast_lane"], safe.json["fast_lane"]) == (len(ODD_NAMES), 0)
        objects = place.server.objects(BUCKET)
        assert len(objects) == 2 * len(ODD_NAMES)
        for key, stored in objects.items():
            other = objects[f"q{key[1:]}"]
            assert (stored.body, stored.etag, stored.headers) == (
                other.body,
                other.etag,
                other.headers,
            )

    @pytest.mark.parametrize(
        "files, options, least, most",
        [(400, [], 16, pfu.HIGHEST_LIMIT), (100, ["--concurrency", "7"], 7, 7)],
    )
    def test_requests_in_flight_stay_below_the_limit(
        self, place: Place, files: int, options: list[str], least: int, most: int
    ) -> None:
        place.files(files)
        place.server.faults.append(Fault(Action("slow", seconds=0.03), operation="PutObject"))
        run = place.run("--mode", "concurrent", *options, "--json")
        assert (run.code, run.json["fast_lane"]) == (0, files)
        assert least <= place.server.peak_in_flight <= most


# ======================================================================================
# Why it is off
# ======================================================================================


def behind_a_proxy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "https://127.0.0.1:1")


def other_credentials(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfu.S3Session, "credentials", lambda session: KEYS)


def as_usual(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the destination."""


class ForgetfulUploader(pfu.S3Uploader):
    """Has credentials until it comes to the loop that uploads."""

    async def enter_loop(self) -> None:
        self.session.credentials = self._forgotten  # type: ignore[method-assign]
        await super().enter_loop()

    def _forgotten(self) -> pfu.Credentials:
        raise pfu.FatalError("read credentials", "", "they are gone")


class TestWhyItIsOff:
    """Why it is off."""

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize(
        "prepare, bucket, reason",
        [
            (as_usual, BUCKET, None),
            (behind_a_proxy, BUCKET, "the proxy for http://127.0.0.1:"),
            (other_credentials, BUCKET, "botocore signs with different credentials"),
            (as_usual, "data--euc1-az1--x-s3", "the bucket is S3 Express"),
            (
                as_usual,
                "arn:aws:s3::123456789012:accesspoint:a.mrap",
                "multi-region access point",
            ),
        ],
    )
    def test_the_gate_says_why_it_is_closed(
        self,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        prepare: Callable[[Place, pytest.MonkeyPatch], None],
        bucket: str,
        reason: str | None,
    ) -> None:
        for name, value in place.server.environment().items():
            monkeypatch.setenv(name, value)
        prepare(place, monkeypatch)
        options = pfu.S3Options(endpoint_url=place.server.endpoint)
        uploader = pfu.S3Uploader(f"s3://{bucket}", options)
        uploader.open_gate(uploader.session.client("s3"))
        if reason is None:
            assert uploader.fast_lane_off is None
        else:
            assert reason in str(uploader.fast_lane_off)
        assert place.server.log == []

    @IN_NO_ENVIRONMENT
    @BOTH_MODES
    def test_a_closed_gate_leaves_all_to_the_safe_lane(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        for name, value in place.server.environment().items():
            monkeypatch.setenv(name, value)
        place.files(40)
        options = pfu.S3Options(endpoint_url=place.server.endpoint)
        uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", options)
        settings = pfu.RunOptions(mode=mode, nice=0)
        summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()
        assert (summary.exit_code, summary.uploaded) == (0, 40)
        assert (summary.fast_lane, summary.fast_lane_off) == (0, "the test says so")
        assert place.stored() == place.local()
        assert not puts_of(place.server)["fast"]

    @IN_NO_ENVIRONMENT
    @BOTH_MODES
    def test_credentials_that_vanish_before_the_first_file_end_the_run(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        for name, value in place.server.environment().items():
            monkeypatch.setenv(name, value)
        place.files(3)
        options = pfu.S3Options(endpoint_url=place.server.endpoint)
        uploader = ForgetfulUploader(f"s3://{BUCKET}/p", options)
        settings = pfu.RunOptions(mode=mode, nice=0)
        summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()
        assert uploader.fast_lane_off is None
        assert (summary.exit_code, summary.error) == (2, "read credentials: they are gone")
        assert place.stored() == {}


# ======================================================================================
# Answers that it does not understand
# ======================================================================================


NOT_UNDERSTOOD: list[tuple[str, Action, str]] = [
    ("500", Action("error", 500), "500 Internal Server Error"),
    ("500 before the body", Action("early_error", 500), "500 Internal Server Error"),
    ("200 with an error", Action("error200"), "without an ETag"),
    ("200 and more", Action("error", 200, headers={"content-length": "0"}), "without an ETag"),
    ("403", Action("error", 403, "AccessDenied"), "403 Forbidden"),
    ("307", Action("redirect", 307, region="eu-west-1"), "307 Temporary Redirect"),
    ("garbage", Action("garbage"), "not HTTP/1.1"),
    ("endless", Action("endless", seconds=0.1), "without an ETag"),
    ("half headers", Action("half_headers"), "closed before the answer"),
    ("lost acknowledgement", Action("lost_ack"), "connection lost"),
    ("reset before the body", Action("reset_before_body"), "connection lost"),
    ("reset within the body", Action("reset_within_body"), "connection lost"),
]


@dataclass
class Storm(Fault):
    """Meets no file more than three times, lest the waits for one double all too often."""

    met: Counter[str] = field(default_factory=Counter)

    def matches(self, request: Request, generator: random.Random) -> bool:
        hits = self.met[request.key] < 3 and super().matches(request, generator)
        self.met[request.key] += hits
        return hits


class StubLane:
    """A fast lane whose answers are given; None is a success."""

    def __init__(self, *answers: pfu.Rejected | None) -> None:
        self.answers = iter(answers)
        self.requests = 0

    async def put(self, *_: Any, **__: Any) -> str:
        self.requests += 1
        answer = next(self.answers)
        if answer is not None:
            raise answer
        return '"fast"'


def uploader_with(
    lane: StubLane, monkeypatch: pytest.MonkeyPatch
) -> tuple[pfu.S3Uploader, Callable[[], str]]:
    """An S3Uploader with that fast lane, and a call that sends one file and returns its ETag."""
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p")
    uploader.fast_lane_off, uploader.lane._lane = None, lane  # type: ignore[assignment]
    monkeypatch.setattr(uploader, "put", lambda upload: pfu.Receipt('"safe"'))
    source = pfu.SourceFile(__file__, pfu.Tree(None).open, pfu.Traffic().beat)
    source.close()
    upload = pfu.Upload("k", source, b"body", "0" * 64, {}, "text/plain", 5 * MIB)

    def send() -> str:
        with ThreadPoolExecutor(1) as threads:
            return asyncio.run(uploader.send(upload, threads)).etag

    return uploader, send


class TestNotUnderstood:
    """Answers that it does not understand."""

    @pytest.mark.parametrize(
        "name, action, reason", NOT_UNDERSTOOD, ids=[c[0] for c in NOT_UNDERSTOOD]
    )
    def test_what_the_fast_lane_does_not_understand_goes_by_the_safe_one(
        self, place: Place, name: str, action: Action, reason: str
    ) -> None:
        place.files(60)
        fault = LaneFault(action, operation="PutObject")
        place.server.faults.append(fault)
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.err, run.json["failures"]) == (0, "", [])
        assert run.json["uploaded"] == 60
        assert place.stored() == place.local()
        place.check_ledger_is_honest()
        assert run.json["fast_lane"] == 0
        assert run.json["fast_lane_off"].startswith("abandoned during the run: ")
        assert reason in run.json["fast_lane_off"]
        assert fault.applied >= pfu.MAX_REFUSALS
        assert {lane: len(keys) for lane, keys in puts_of(place.server).items()} == {
            "fast": 0,
            "safe": 60,
        }

    @pytest.mark.parametrize("kind", ["garbage", "half_headers", "reset_within_body"])
    def test_every_worker_finds_its_way(self, place: Place, kind: str) -> None:
        place.changes = "PAGE_ROWS = 60"
        place.files(140, 20)  # more than one page: both workers have something to do
        fault = LaneFault(Action(kind), operation="PutObject")
        place.server.faults.append(fault)
        run = place.run("--mode", "parallel", "--workers", 2, "--json")
        assert (run.code, run.err, run.json["failures"]) == (0, "", [])
        assert (run.json["uploaded"], run.json["fast_lane"]) == (140, 0)
        assert fault.applied >= 2 * pfu.MAX_REFUSALS
        assert run.json["fast_lane_off"].startswith("abandoned during the run: ")
        assert place.stored() == place.local()
        place.check_ledger_is_honest()

    @BOTH_MODES
    @pytest.mark.parametrize("kind", ["error", "error200", "garbage", "half_headers"])
    def test_an_answer_now_and_then_costs_no_more_than_its_file(
        self, place: Place, mode: str, kind: str
    ) -> None:
        place.files(60)
        fault = LaneFault(Action(kind), operation="PutObject", times=10)
        place.server.faults.append(fault)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.err, run.json["failures"]) == (0, "", [])
        assert run.json["uploaded"] == 60
        assert place.stored() == place.local()
        assert fault.applied == 10
        assert run.json["fast_lane"] == len(puts_of(place.server)["fast"]) >= 50
        assert run.json["fast_lane_off"] is None

    @BOTH_MODES
    def test_a_store_that_closes_without_a_word_is_understood(
        self, place: Place, mode: str
    ) -> None:
        place.files(60)
        place.server.faults.append(LaneFault(Action("close_after"), operation="PutObject"))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.err, run.json["failures"]) == (0, "", [])
        assert (run.json["fast_lane"], run.json["fast_lane_off"]) == (60, None)
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_storms_of_slow_down(self, place: Place, mode: str) -> None:
        place.files(150)
        action = Action("error", 503, "SlowDown")
        storm = Storm(action, operation="PutObject", probability=0.5, times=60)
        place.server.faults.append(storm)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.err, run.json["failures"]) == (0, "", [])
        assert (run.json["uploaded"], run.json["failed"]) == (150, 0)
        assert run.json["throttled"] == storm.applied == 60
        assert (run.json["fast_lane"], run.json["fast_lane_off"]) == (150, None)
        assert run.json["retries"] == 60
        assert place.stored() == place.local()
        place.check_ledger_is_honest()

    @pytest.mark.parametrize(
        "rejected, drops, throttled, etag",
        [
            (None, 0, 0, '"fast"'),
            (pfu.Rejected(403, "Forbidden"), 0, 0, '"safe"'),
            (pfu.Rejected(500, "Internal Server Error"), 0, 0, None),
            (pfu.Rejected(None, "reset", dropped=True), 0, 0, None),
            (pfu.Rejected(503, "Slow Down", dropped=True), 0, 1, None),
            (pfu.Rejected(429, "Too Many Requests", dropped=True), 0, 1, None),
        ],
    )
    def test_a_rejection_is_weighed(
        self,
        monkeypatch: pytest.MonkeyPatch,
        rejected: pfu.Rejected | None,
        drops: int,
        throttled: int,
        etag: str | None,
    ) -> None:
        uploader, send = uploader_with(StubLane(rejected), monkeypatch)
        if etag is None:
            with pytest.raises(pfu.RetryableError, match=str(rejected)) as caught:
                send()
            assert isinstance(caught.value, pfu.SlowDownError) == (throttled == 1)
        else:
            assert send() == etag
        traffic = uploader.traffic
        assert (traffic.meter.drops, traffic.throttled) == (drops, throttled)
        assert traffic.fast_files == (etag == '"fast"')
        assert uploader.fast_lane_off is None

    def test_only_refusals_in_a_row_end_the_fast_lane(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = pfu.Rejected(None, "the response is not HTTP/1.1")
        nearly = [refused] * (pfu.MAX_REFUSALS - 1)
        lane = StubLane(*nearly, None, *nearly, refused)
        uploader, send = uploader_with(lane, monkeypatch)
        for _ in range(2 * pfu.MAX_REFUSALS - 1):
            assert uploader.fast_lane_off is None
            send()
        assert send() == '"safe"'
        assert uploader.fast_lane_off == "abandoned during the run: the response is not HTTP/1.1"
        sent = lane.requests
        assert send() == '"safe"'
        assert (lane.requests, uploader.traffic.fast_files) == (sent, 1)


# ======================================================================================
# Over TLS
# ======================================================================================


@contextlib.contextmanager
def tls_place(tmp_path: Path, certificates: Path, ca: str) -> Iterator[Place]:
    context = server_context(certificates, "address")
    with S3Server(buckets=[BUCKET], tls=context) as server:
        place = Place(tmp_path, server)
        place.environment["AWS_CA_BUNDLE"] = str(certificates / ca)
        yield place


COUNTS_CERTIFICATES = """
client_refusal = lambda client: "the test says so"
kept = []  # so that no two have the same id
def reads(context, *arguments, read=ssl.SSLContext.load_verify_locations, **named):
    kept.append(context)
    with open("read", "a") as file:
        print(f"{os.getpid()}-{id(context)}", file=file)
    read(context, *arguments, **named)
ssl.SSLContext.load_verify_locations = reads
"""


class TestOverTls:
    """Over TLS."""

    @BOTH_MODES
    def test_the_safe_lane_reads_no_certificate_in_a_context_that_is_in_use(
        self, tmp_path: Path, certificates: Path, mode: str
    ) -> None:
        """OpenSSL does not allow it; a run of four files in parts crashed at its end by it."""
        with tls_place(tmp_path, certificates, "ca.pem") as place:
            place.files(60)
            place.changes = COUNTS_CERTIFICATES
            run = place.run("--mode", mode, "--json")
            assert (run.code, run.json["uploaded"], run.json["fast_lane"]) == (0, 60, 0), run.err
            assert place.server.connections > 2  # so that they share a context
            read = (place.path / "read").read_text().split()
            assert len(read) == len(set(read)) > 1

    @BOTH_MODES
    def test_a_run_over_tls(self, tmp_path: Path, certificates: Path, mode: str) -> None:
        with tls_place(tmp_path, certificates, "ca.pem") as place:
            place.files(50)
            run = place.run("--mode", mode, "--json")
            assert (run.code, run.err) == (0, "")
            assert (run.json["uploaded"], run.json["fast_lane"]) == (50, 50)
            assert run.json["fast_lane_off"] is None
            assert place.stored() == place.local()
            assert place.server.endpoint.startswith("https:")
            place.check_ledger_is_honest()
