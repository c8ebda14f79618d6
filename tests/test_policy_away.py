"""A store that is away: patience belongs to the run (FAILURES.md, sections 1, 2 and 6)."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import BOTH_MODES, Place, assert_accounts, closed_port, wait_until
from testing.server import S3Server
from testing.trials import TWO, Way, hurry, trial_of
from testing.uploaders import InstantUploader

# ======================================================================================
# Pure: the clock, the kinds
# ======================================================================================


def signs(taken: float = 0, answered: float = 0, passing: float = 0) -> pfu.Signs:
    return pfu.Signs(taken, answered, passing)


class TestClock:
    """The run's clock."""

    def test_it_starts_at_the_first_passing_answer_and_ends_with_anything_taken(self) -> None:
        clock = pfu.RunClock(10.0)
        clock.absorb(signs(taken=5), 1.0)
        assert clock.shows(99.0) == 0
        clock.absorb(signs(taken=5, passing=1), 2.0)
        clock.absorb(signs(taken=5, passing=9), 5.0)
        assert (clock.shows(5.0), clock.is_away(5.0), clock.is_over(5.0)) == (3.0, True, False)
        assert clock.is_over(12.0)
        clock.absorb(signs(taken=6, passing=20), 11.0)
        assert (clock.shows(12.0), clock.is_away(12.0)) == (0, False)

    def test_what_passes_between_two_that_are_taken_holds_nothing_up(self) -> None:
        clock = pfu.RunClock(10.0)
        for step in range(1000):
            clock.absorb(signs(taken=step // 5, passing=step), step * 0.05)
            assert not clock.is_away(step * 0.05)

    def test_an_answer_after_an_outage_sets_it_back_once_until_something_is_taken(self) -> None:
        clock = pfu.RunClock(10.0)
        clock.absorb(signs(passing=1), 0.0)
        clock.absorb(signs(passing=2, answered=1), 5.0)
        assert clock.shows(6.0) == 0
        clock.absorb(signs(passing=3, answered=1), 6.0)
        clock.absorb(signs(passing=4, answered=2), 9.0)
        assert clock.shows(9.0) == 3.0

    def test_the_time_that_a_process_was_suspended_does_not_count(self) -> None:
        clock = pfu.RunClock(10.0)
        clock.absorb(signs(passing=1), 0.0)
        clock.absorb(signs(passing=2), 1.0)
        clock.absorb(signs(passing=2), 3601.0)
        assert (clock.is_away(3601.0), clock.is_over(3601.0)) == (True, False)
        for second in range(3602, 3615):
            clock.absorb(signs(passing=3), float(second))
        assert clock.is_over(3615.0)


@pytest.mark.parametrize(
    "code, status, kind",
    [
        ("Mystery", 400, pfu.Kind.REFUSED),
        ("Mystery", 403, pfu.Kind.REFUSED),
        ("", 418, pfu.Kind.REFUSED),
        ("InvalidStorageClass", 400, pfu.Kind.REFUSED),
        ("QuotaExceeded", 400, pfu.Kind.REFUSED),
        ("NotImplemented", 501, pfu.Kind.REFUSED),
        ("InsufficientStorage", 507, pfu.Kind.REFUSED),
        *(("Mystery", status, pfu.Kind.PASSING) for status in (408, 425, 429, 500, 503, 520, 599)),
        ("BadDigest", 400, pfu.Kind.PASSING),
        ("KeyTooLongError", 400, pfu.Kind.OWN),
        ("XMinioParentIsObject", 400, pfu.Kind.OWN),
        ("ExpiredToken", 400, pfu.Kind.FATAL),
        ("NoSuchBucket", 404, pfu.Kind.FATAL),
    ],
)
def test_what_an_answer_says(code: str, status: int, kind: pfu.Kind) -> None:
    error = pfu.classify(code, status)("upload", "f", code)
    assert pfu.kind_of_error(error) is kind


def test_what_is_not_of_the_store_is_about_the_file() -> None:
    assert pfu.kind_of_error(pfu.SourceError("read", "f", "EIO")) is pfu.Kind.OWN
    assert pfu.kind_of_error(pfu.TransferError("put", "f", "?")) is pfu.Kind.REFUSED


# ======================================================================================
# Runs
# ======================================================================================


def away(server: S3Server, seconds: float, after: int) -> threading.Thread:
    """The server ends after so many objects, and is back after so many seconds."""
    server._port = int(server.endpoint.rpartition(":")[2])

    def go() -> None:
        assert server.wait_for("PutObject", after, 30)
        server.stop()
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=go)
    thread.start()
    return thread


class TestRuns:
    """Runs whose store is away for a while, or for good."""

    @BOTH_MODES
    @pytest.mark.parametrize("seconds", [1, 7])
    def test_an_outage_loses_nothing(self, place: Place, mode: str, seconds: int) -> None:
        place.files(300)
        place.server.faults.append(Fault(Action("slow", seconds=0.05), "PutObject"))
        thread = away(place.server, seconds, 100)
        run = place.run("--mode", mode, "--concurrency", 16, "--json")
        thread.join()
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (0, 300, 0), run.err
        assert place.stored() == place.local()
        assert ("the store is back after" in run.err) == (seconds > 5), run.err
        assert place.check_ledger_is_honest() == 300

    @pytest.mark.parametrize("way", TWO, ids="-".join)
    def test_a_slow_line_is_no_store_that_is_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way
    ) -> None:
        """What arrives for the first time is movement, though an answer takes long."""
        hurry(monkeypatch)
        with trial_of(tmp_path, way) as trial:
            trial.file("refused for a while", b"x")
            trial.file("slow", os.urandom(1 << 20))
            busy = Fault(Action("error", 503, "ServiceUnavailable"), "PutObject", "while")
            trial.server.faults.append(busy)
            mend = threading.Timer(6, trial.server.faults.clear)
            mend.start()
            run = trial.run("--part-size", "5M", "--bwlimit", "128K", "--patience", "2s")
            mend.join()
            assert (run.code, run.json["uploaded"]) == (0, 2), run.err

    @BOTH_MODES
    @pytest.mark.parametrize("status", [408, 425, 520])
    def test_an_answer_that_no_table_knows_passes_too(
        self, place: Place, mode: str, status: int
    ) -> None:
        place.files(60)
        fault = Fault(Action("error", status, "Mystery"), "PutObject", after=20, times=60)
        place.server.faults.append(fault)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["notes"]) == (0, 60, []), run.err
        assert fault.applied == 60
        assert place.stored() == place.local()

    @BOTH_MODES
    @pytest.mark.parametrize(
        "action",
        [Action("error", 503, "SlowDown"), Action("error", 599, "Mystery"), Action("garbage")],
        ids=["503", "599", "garbage"],
    )
    def test_patience_ends_the_run_and_fails_nothing(
        self, place: Place, mode: str, action: Action
    ) -> None:
        place.files(300)
        place.server.faults.append(Fault(action, "PutObject", after=30))
        run = place.run("--mode", mode, "--patience", "3s", "--json")
        assert (run.code, run.json["failed"]) == (1, 0), run.err
        assert run.json["uploaded"] + run.json["pending"] == 300
        assert re.match(r"the store has been unavailable for \d+ s: upload: ", run.json["error"])
        assert place.server.count("PutObject") < 30 + 4 * 64 + 60  # in flight, then probes alone
        assert_accounts(run.json)
        place.server.faults.clear()
        again = place.run("--mode", mode, "--json")
        assert (again.code, again.json["uploaded"]) == (0, run.json["pending"])
        assert place.stored() == place.local()

    def test_what_never_answered_gets_less_patience(self, place: Place) -> None:
        place.file("f")
        closed_port(place)
        run = place.run("--mode", "concurrent", "--json", "--patience", "2s")
        assert (run.code, run.json["pending"]) == (2, 1), run.err
        assert run.json["elapsed_seconds"] >= 2
        assert pfu.FIRST_SECONDS < pfu.PATIENCE_SECONDS

    @BOTH_MODES
    def test_a_store_that_is_starting_is_waited_for(self, place: Place, mode: str) -> None:
        place.files(5)
        place.server.faults.append(
            Fault(Action("error", 500, "InternalError"), "HeadBucket", times=4)
        )
        assert place.run("--mode", mode, "--json").json["uploaded"] == 5

    def test_how_long_a_store_is_waited_for_that_is_known(self, place: Place) -> None:
        job = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "l.db")
        place.file("f")
        assert job.run().exit_code == 0
        again = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "l.db")
        with again._session():
            assert again.first_patience() == pfu.PATIENCE_SECONDS
        new = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "new.db")
        with new._session():
            assert new.first_patience() == pfu.FIRST_SECONDS


class Alone(InstantUploader):
    """Takes all but one file, and answers plain requests."""

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__()
        self.is_there = answers

    def answers(self) -> bool:
        return self.is_there

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        if upload.key.endswith("unlucky"):
            raise pfu.RetryableError("upload", upload.source.path, "no answer")
        return super().put(upload)


class TestOneFile:
    """A file that fails by itself."""

    @pytest.mark.parametrize("answers", [True, False])
    def test_a_plain_request_tells_the_last_file_from_the_store(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, answers: bool
    ) -> None:
        for name, value in {"OWN_TRIES": 3, "OWN_SECONDS": 0.0, "PROBE_SECONDS": 0.05}.items():
            monkeypatch.setattr(pfu, name, value)
        place.file("lucky")
        place.file("unlucky", b"larger")
        patience = 30.0 if answers else 2.0
        options = pfu.RunOptions(mode="concurrent", nice=0, patience=patience)
        uploader = Alone(answers=answers)
        summary = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options).run()
        assert (summary.exit_code, summary.uploaded) == (1, 1)
        assert (summary.failed, summary.pending) == ((1, 0) if answers else (0, 1)), summary


class Rude(InstantUploader):
    """A provider whose exceptions are its own."""

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        raise KeyError("no such tape")


def test_what_a_provider_raises_is_told(place: Place) -> None:
    place.file("f")
    options = pfu.RunOptions(mode="concurrent", nice=0)
    summary = pfu.BatchJobModel(place.root, Rude(), place.path / "l.db", options).run()
    assert (summary.exit_code, summary.failed) == (1, 1)
    assert summary.failures[0]["reason"] == "upload: KeyError: 'no such tape'"


def test_what_a_provider_needs_is_public() -> None:
    names = {"RetryableError", "SlowDownError", "TransferError", "FatalError", "KeyRefusedError"}
    assert names <= set(pfu.__all__)


class Movements(pfu.Observer):
    """Keeps what a run says of a store that is away."""

    def __init__(self) -> None:
        self.away: list[str] = []

    def progress(self, progress: Any) -> None:
        if progress.away:
            self.away.append(progress.away)


def test_the_live_view_says_why_it_stands_still(place: Place) -> None:
    place.file("f")
    observer = Movements()
    options = pfu.RunOptions(mode="concurrent", nice=0, patience=2.0)
    uploader = Alone()
    place.file("unlucky", b"larger")
    pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options, observer).run()
    assert any("upload: no answer" in text for text in observer.away)
    told = pfu.Progress(0, 0, 0, 0, 0, 0, 4, 0, False, "12 s: refused", 1, 1)
    *_, last = pfu.UploadView().spans(told, 1.0)
    assert last.text == "the store has been unavailable for 12 s: refused"


def test_a_limiter_learns_nothing_of_an_outage() -> None:
    limiter = pfu.Limiter(0.0, 64)
    before = limiter.limit
    limiter.begin_again(50.0)
    assert limiter.limit == before


@BOTH_MODES
def test_a_store_that_is_away_at_the_start_is_told_of_and_that_it_is_back(
    place: Place, mode: str
) -> None:
    place.file("f")
    log = place.path / "log"
    place.server.faults.append(Fault(Action("error", 500, "InternalError")))
    run = place.start("--mode", mode, "--patience", "10m", "--log-file", log)
    wait_until(lambda: log.exists() and "unavailable for" in log.read_text(), 60)
    place.server.faults.clear()
    _, err = run.communicate()
    assert run.wait() == 0, err
    told = [line.partition("pfu: note: ")[2] for line in err.splitlines()]
    begins = ("the store has been unavailable for", "the store is back after")
    assert len(told) == 2 and all(map(str.startswith, told, begins)), err
    assert all(line in log.read_text() for line in told)
