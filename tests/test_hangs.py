"""pfu never hangs: stores that say nothing, half answers, a watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.fixtures import IN_NO_ENVIRONMENT
from testing.jobs import PIECE, s3_job
from testing.place import BOTH_MODES, Place
from testing.uploaders import InstantUploader


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is silent for a second is given up."""
    monkeypatch.setattr(pfu, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(pfu, "GIVE_UP_SECONDS", 0.5)
    monkeypatch.setattr(pfu, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(pfu.Watchdog, "TICK", 0.05)


class Deaf(InstantUploader):
    """Blocks its event loop, as a disk that does not answer would."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    async def send(self, upload: pfu.Upload, threads: Any, posted: Any = None) -> pfu.Receipt:
        self.released.wait(30)
        return await super().send(upload, threads)


class LongList(InstantUploader):
    """Counts no requests, and takes its time to list what it has."""

    shows_objects = True

    def list_objects(self, threads: Any) -> Iterator[list[pfu.Listed]]:
        for number in range(20):
            time.sleep(0.1)
            yield [pfu.Listed(f"{number}", 1, "etag")]


class Listener(pfu.Observer):
    """Lets the uploader go on when it hears that the run is stuck."""

    def __init__(self, uploader: Deaf) -> None:
        self.uploader = uploader
        self.heard = ""

    def stuck(self, reason: str) -> None:
        self.heard = reason
        self.uploader.released.set()


class TestNeverHangs:
    """Never hangs."""

    @pytest.mark.parametrize("attempts", [1, 5])
    def test_a_slot_that_swallows_a_cancel_holds_up_nothing(
        self, monkeypatch: pytest.MonkeyPatch, attempts: int
    ) -> None:
        monkeypatch.setattr(pfu, "CANCEL_ATTEMPTS", attempts, raising=False)
        wait = asyncio.wait
        monkeypatch.setattr(
            asyncio, "wait", lambda tasks, timeout: wait(tasks, timeout=timeout / 10)
        )

        async def stubborn() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await asyncio.sleep(60)

        async def scenario() -> None:
            runner = pfu.PageRunner(InstantUploader(), pfu.EngineOptions(), pfu.Gauges())
            slot = asyncio.ensure_future(stubborn())
            runner._slots.add(slot)
            await asyncio.sleep(0)
            await asyncio.wait_for(runner.close(), 1)
            assert slot.cancelled() == (attempts > 1)

        asyncio.run(scenario())

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize("seconds, retries", [(0.5, 1), (5.0, 0)])
    def test_the_safe_lane_leaves_a_slow_line_time(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, seconds: float, retries: int
    ) -> None:
        assert pfu.SLOW_LINE_SECONDS > 2 * pfu.READ_SECONDS
        monkeypatch.setattr(pfu, "SLOW_LINE_SECONDS", seconds)
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        at_hand.files(1)
        at_hand.server.faults.append(Fault(Action("slow", seconds=1.5), "PutObject", times=1))
        summary = s3_job(at_hand, mode="concurrent").run()
        assert (summary.uploaded, summary.retries) == (1, retries)

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize("size", ["small", "large"])
    def test_the_safe_lane_has_no_more_patience_than_the_run(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, size: str
    ) -> None:
        monkeypatch.setattr(pfu, "READ_SECONDS", 0.5)
        monkeypatch.setattr(pfu, "LEAST_STALL_SECONDS", 0.5)
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        at_hand.file("file", os.urandom(7 * PIECE if size == "large" else 9))
        operation = "UploadPart" if size == "large" else "PutObject"
        at_hand.server.faults.append(Fault(Action("slow", seconds=60), operation, times=1))
        summary = s3_job(at_hand, part_size=3 * PIECE, patience=0.2).run()
        assert (summary.exit_code, summary.uploaded) in ((0, 1), (1, 0))
        assert summary.retries or summary.pending

    @IN_NO_ENVIRONMENT
    @pytest.mark.usefixtures("impatient")
    @BOTH_MODES
    @pytest.mark.parametrize("size", ["small", "large"])
    def test_a_store_that_never_ends_its_answers_ends_the_run(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, mode: str, size: str
    ) -> None:
        monkeypatch.setenv("PFU_START_METHOD", "fork")
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        at_hand.file("file", b"x" if size == "small" else os.urandom(3 * PIECE))
        operation = "PutObject" if size == "small" else "UploadPart"
        at_hand.server.faults.append(Fault(Action("endless", seconds=0.05), operation))
        summary = s3_job(at_hand, mode=mode, workers=1).run()
        assert (summary.exit_code, summary.pending, summary.failed) == (1, 1, 0), summary
        assert str(summary.error).startswith("no progress for 1 s: waiting for 1 file in flight")
        assert "p/file" in str(summary.error)
        at_hand.server.faults.clear()
        assert s3_job(at_hand, mode=mode).run().exit_code == 0
        assert at_hand.stored() == at_hand.local()

    @BOTH_MODES
    def test_a_store_that_hangs_up_and_reads_no_more_holds_up_nothing(
        self, place: Place, mode: str
    ) -> None:
        """The rest of the body is too much for the kernel's buffers."""
        place.file("file", os.urandom(pfu.DEFAULT_THRESHOLD))
        place.server.faults.append(Fault(Action("hang_up", seconds=1), "PutObject", times=1))
        run = place.run("--mode", mode)
        assert run.code == 0, run.err
        assert place.stored() == place.local()

    @pytest.mark.usefixtures("impatient")
    def test_a_store_that_says_nothing_of_its_bucket_ends_the_run(self, at_hand: Place) -> None:
        at_hand.file("file")
        at_hand.server.faults.append(Fault(Action("slow", seconds=30), "HeadBucket"))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.pending) == (1, 1), summary
        assert "waiting for the store to answer about s3://bkt/p" in str(summary.error)

    @pytest.mark.usefixtures("impatient")
    def test_a_run_that_does_not_even_stop_is_told_to_be_stuck(self, place: Place) -> None:
        place.file("file")
        uploader = Deaf()
        listener = Listener(uploader)
        options = pfu.RunOptions(mode="concurrent", nice=0)
        summary = pfu.BatchJobModel(
            place.root, uploader, place.path / "l.db", options, listener
        ).run()
        assert summary.exit_code == 1
        assert listener.heard.startswith("no progress for 2 s: waiting for 1 file in flight")

    @pytest.mark.usefixtures("impatient")
    def test_a_long_listing_is_progress(self, place: Place) -> None:
        options = pfu.RunOptions(nice=0)
        verdict = pfu.BatchJobModel(place.root, LongList(), place.path / "l.db", options).verify()
        assert (verdict.exit_code, verdict.objects, verdict.extra) == (0, 20, 20), verdict.error

    def test_a_process_that_was_stopped_for_an_hour_is_not_stuck(
        self,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        clock, slept = itertools.count(0, 3600), itertools.count()
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        monkeypatch.setattr("time.sleep", lambda seconds: next(slept))
        watchdog = pfu.Watchdog(lambda: 0, lambda: None, lambda: None)
        watchdog._wait_until_still(100.0)
        assert next(slept) == 50  # looks, each worth two seconds at most

    def test_what_moves_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moves = itertools.chain(range(100), itertools.repeat(0))
        slept = itertools.count()
        monkeypatch.setattr("time.sleep", lambda seconds: next(slept))
        clock = itertools.count(0, 1)
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        watchdog = pfu.Watchdog(lambda: next(moves), lambda: None, lambda: None)
        watchdog._wait_until_still(10.0)
        assert next(slept) == 110

    @pytest.mark.parametrize(
        "etag, headers, is_whole",
        [
            ('"abc"', {"content-length": "0"}, True),
            ('"abc-2"', {"transfer-encoding": "chunked"}, True),
            ("abc", {"content-length": "0"}, True),  # some stores do not quote it
            ('"abc', {"content-length": "0"}, False),
            ('abc"', {"content-length": "0"}, False),
            ('"', {"content-length": "0"}, False),
            ('""', {"content-length": "0"}, False),
            (None, {"content-length": "0"}, False),
            ('"abc"', {}, True),  # as HTTP/1.0 allows
        ],
    )
    def test_half_an_answer_is_no_acknowledgement(
        self, etag: str | None, headers: dict[str, str], is_whole: bool
    ) -> None:
        answer = {"ETag": etag, "ResponseMetadata": {"HTTPHeaders": headers}}
        if is_whole:
            assert pfu.etag_of(answer) == str(etag).strip('"')
        else:
            with pytest.raises(pfu.TransferError, match="it was cut off"):
                pfu.etag_of(answer)
