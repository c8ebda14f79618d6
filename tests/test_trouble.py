"""More trouble: odd figures, stops while scanning, broken surroundings, refusals."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import job_within, s3_job
from testing.place import (
    BOTH_MODES,
    BUCKET,
    Place,
    assert_accounts,
    children_of,
    drop_privilege,
    nothing,
    rewrite_in_place,
    sitecustomize,
    without_credentials,
)
from testing.uploaders import InstantUploader

# ======================================================================================
# Figures that a database, a division or a sign does not expect
# ======================================================================================


def status_of(**fields: int) -> Any:
    """What os.stat() might say."""
    common = {"st_mode": 0o100644, "st_size": 1, "st_uid": 2, "st_gid": 3, "st_ino": 4}
    common |= {"st_mtime_ns": 0, "st_ctime_ns": 0}
    return SimpleNamespace(**{**common, **fields})


class TestFigures:
    """Figures that a database, a division or a sign does not expect."""

    def test_a_time_after_the_year_2262(self, place: Place) -> None:
        path = place.file("future", b"later")
        os.utime(path, ns=(0, 10_000_000_000 * 10**9))
        if path.stat().st_mtime_ns != 10_000_000_000 * 10**9:
            pytest.skip("the file system keeps no such time")
        for expected in ("uploaded", "unchanged"):
            run = place.run("--mode", "concurrent", "--json")
            assert (run.code, run.err, run.json[expected]) == (0, "", 1)
        assert place.server.count("PutObject") == 1
        (stored,) = place.server.objects(BUCKET).values()
        assert stored.headers["x-amz-meta-file-mtime"] == "10000000000000000000ns"
        assert stored.headers["x-amz-meta-mtime"] == "10000000000.000000000"
        rewrite_in_place(path)
        assert place.run("--mode", "concurrent", "--json").json["uploaded"] == 1
        assert place.stored() == place.local()

    @pytest.mark.parametrize("number", [0, 1, 1 << 62, 1 << 63, (1 << 63) + 5, (1 << 64) - 1])
    def test_figures_of_64_bits_fit_the_ledger(self, tmp_path: Path, number: int) -> None:
        status = status_of(st_ino=number, st_mtime_ns=number)
        inode, mtime = (now := pfu.Facts.of(status)).inode, now.last_modified
        past = pfu.Facts.of(status_of(st_mtime_ns=-number)).last_modified
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            (kept,) = db.execute("SELECT ?, ?, ?", (inode, mtime, past))
        assert kept == (inode, mtime, past)
        assert mtime == -past == min(number, (1 << 63) - 1)
        assert inode == number % (1 << 63)

    @pytest.mark.parametrize(
        "mtime, text",
        [
            (-1_500_000_000, "-1.500000000"),
            (-1, "-0.000000001"),
            (-1_000_000_000, "-1.000000000"),
            (0, "0.000000000"),
            (1_500_000_000, "1.500000000"),
        ],
    )
    def test_times_before_1970_are_written_as_a_number(self, mtime: int, text: str) -> None:
        metadata = pfu.object_metadata(status_of(st_mtime_ns=mtime), 1)
        assert (metadata["mtime"], metadata["file-mtime"]) == (text, f"{mtime}ns")


# ======================================================================================
# A stop while the tree is scanned
# ======================================================================================


class StopsTheScan(pfu.Observer):
    """Stops its job as soon as it hears of the scan."""

    job: pfu.BatchJobModel

    def busy(self, what: str, text: str) -> None:
        self.job.stop("enough")


class TestStopsWhileScanning:
    """A stop while the tree is scanned."""

    @pytest.mark.parametrize("call", ["run", "dry_run"])
    def test_a_stop_ends_the_scan(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        found, looked_at = pfu.Scan._found, itertools.count()

        def look(scan: pfu.Scan, *given: Any) -> pfu.Found:
            next(looked_at)
            return found(scan, *given)

        monkeypatch.setattr(pfu.Scan, "_found", look)
        place.files(3000, 6)
        observer = StopsTheScan()
        job = observer.job = job_within(place, observer)
        summary = getattr(job, call)()
        assert (summary.exit_code, summary.error) == (4, "enough")
        assert 0 < summary.seen <= next(looked_at) < 3000
        assert not (place.path / "store").exists()

    @pytest.mark.parametrize("call", ["run", "dry_run"])
    def test_a_stop_before_the_scan_is_not_an_empty_tree(self, place: Place, call: str) -> None:
        place.files(3)
        assert job_within(place).run().uploaded == 3
        job = job_within(place)
        job.stop("never mind")
        summary = getattr(job, call)()
        assert (summary.exit_code, summary.error, summary.seen) == (4, "never mind", 0)
        assert job_within(place).run().unchanged == 3

    @pytest.mark.parametrize("options", ["--dry-run", "--mode parallel"])
    def test_the_time_limit_holds_for_the_scan_too(self, place: Place, options: str) -> None:
        place.files(600, 6)
        run = place.run(*options.split(), "--max-duration", "0.00001s", "--json")
        assert (run.code, run.json["exit_code"], run.json["seen"]) == (4, 4, 0)
        assert run.err == "pfu: stopped: time limit of 1e-05 s reached\n"


# ======================================================================================
# One line, whatever is broken
# ======================================================================================


def credential_process(place: Place, command: str) -> None:
    without_credentials(place)
    (place.path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    place.environment["AWS_CONFIG_FILE"] = str(place.path / "config")


def closed_root(place: Place) -> dict[str, Any]:
    place.root.chmod(0)
    return {"preexec_fn": drop_privilege}


def removed_folder(place: Place) -> dict[str, Any]:
    def enter() -> None:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")

    return {"preexec_fn": enter}


def odd_destination(place: Place) -> dict[str, Any]:
    return {"to": f"s3://{BUCKET}/\udcff"}


def odd_start_method(place: Place) -> None:
    place.environment["PFU_START_METHOD"] = "nonsense"


def without_boto3(place: Place) -> None:
    sitecustomize(
        place, "import sys", "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    )


def dying_workers(place: Place) -> None:
    place.environment["PFU_START_METHOD"] = "spawn"
    sitecustomize(place, "import os, sys", "'--multiprocessing-fork' in sys.argv and os._exit(1)")


def small_files_only(place: Place) -> dict[str, Any]:
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))}


Trouble = Callable[[Place], Any]
MORE_TROUBLE: list[tuple[str, Trouble, str, str]] = [
    ("root closed", closed_root, "", "read root "),
    ("root closed, dry run", closed_root, "--dry-run", "tree: Permission denied"),
    (
        "no such credential_process",
        lambda place: credential_process(place, "/no/such/program"),
        "",
        "/no/such/program: No such file or directory (check the AWS configuration",
    ),
    (
        "credential_process that may not be run",
        lambda place: credential_process(place, "/etc/passwd"),
        "--mode concurrent",
        "Permission denied",
    ),
    (
        "garbage of a credential_process",
        lambda place: credential_process(place, "echo garbage"),
        "",
        "(check the AWS configuration",
    ),
    (
        "no object of a credential_process",
        lambda place: credential_process(place, "echo []"),
        "",
        "credential",
    ),
    ("only small files", small_files_only, "", "larger than 8.0 KiB: raise ulimit -f"),
    ("no working directory", removed_folder, "--db x.db", "no working directory"),
    ("destination not UTF-8", odd_destination, "", "it is not UTF-8"),
    ("start method", odd_start_method, "", "invalid PFU_START_METHOD"),
    ("size of 22 digits", nothing, f"--max-memory {'9' * 21}T", "invalid size"),
    ("size of 400 digits", nothing, f"--max-memory {'9' * 400}", "invalid size"),
    ("time of 400 digits", nothing, f"--max-duration {'9' * 400}", "invalid time"),
    ("no boto3", without_boto3, "", "import boto3: not installed (pip install boto3, or apt"),
    ("workers die", dying_workers, "--workers 2", "(--mode concurrent needs no workers)"),
]
PASSWORD = "pa55word"
LEAKS = [
    ("--endpoint-url", f"http://user:{PASSWORD}@127.0.0.1:1"),
    ("--endpoint-url", f"http://{PASSWORD}@127.0.0.1:1/path"),
    ("--endpoint-url", f"user:{PASSWORD}@127.0.0.1:1"),
    ("--endpoint-url", f"http://user:{PASSWORD}@[::1"),
    ("AWS_ENDPOINT_URL", f"http://user:{PASSWORD}@127.0.0.1:1"),
    ("AWS_ENDPOINT_URL", f"user:{PASSWORD}@127.0.0.1:1"),
    ("endpoint_url", f"http://user:{PASSWORD}@127.0.0.1:1"),
]


def give_endpoint(place: Place, source: str, url: str) -> list[str]:
    """By an option, a variable, or the configuration file; returns the arguments for it."""
    place.endpoint = ""
    if source.startswith("--"):
        return [source, url]
    if source == "endpoint_url":
        (place.path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
        source, url = "AWS_CONFIG_FILE", str(place.path / "config")
    place.environment[source] = url
    return []


NO_PROCESS = BlockingIOError(11, "Resource temporarily unavailable")


class TestSurroundings:
    """One line, whatever is broken."""

    @pytest.mark.parametrize(
        "name, trouble, options, says", MORE_TROUBLE, ids=[row[0] for row in MORE_TROUBLE]
    )
    def test_broken_surroundings_are_one_clear_line(
        self, place: Place, name: str, trouble: Trouble, options: str, says: str
    ) -> None:
        place.file("f", b"content")
        given = trouble(place) or {}
        run = place.run(*options.split(), "--json", **given)
        assert says in run.err
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert run.err.startswith("pfu: ")
        assert "internal error" not in run.err
        if run.out:
            assert (run.json["exit_code"], run.json["failed"]) == (2, 0)
        assert place.stored() == {}

    def test_a_destination_of_the_environment_that_is_not_utf_8(self, place: Place) -> None:
        place.environment["PFU_DESTINATION"] = f"s3://{BUCKET}/\udcff"
        run = place.run(place.root, to=None)
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert "s3://bkt/\\xff: it is not UTF-8" in run.err

    @pytest.mark.parametrize("source, url", LEAKS)
    def test_a_password_in_the_endpoint_is_not_repeated(
        self, place: Place, source: str, url: str
    ) -> None:
        place.file("f")
        run = place.run(*give_endpoint(place, source, url), "--json")
        assert (run.code, run.json["exit_code"], run.err.count("\n")) == (2, 2, 1), run.err
        assert "internal error" not in run.err
        written = [path.read_bytes().decode("latin-1") for path in place.path.glob("*.db*")]
        assert not any(PASSWORD in text for text in (run.out, run.err, *written))

    @pytest.mark.parametrize(
        "problem, started", [(NO_PROCESS, 1), (RuntimeError("can't start new thread"), 0)]
    )
    def test_workers_that_the_system_refuses(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, problem: Exception, started: int
    ) -> None:
        submit, left = ProcessPoolExecutor.submit, [started]

        def refuse(pool: Any, *given: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return submit(pool, *given)
            raise problem

        place.files(3)
        monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse)
        summary = job_within(place, mode="parallel", workers=2).run()
        assert summary.exit_code == 2
        assert str(summary.error) == f"start worker: {problem} (--mode concurrent needs no workers)"
        assert (summary.failed, summary.pending, summary.failures) == (0, 3, [])
        assert not multiprocessing.active_children()
        assert job_within(place).run().uploaded == 3

    def test_a_thread_that_the_system_refuses(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith("pfu-thread"):
                raise RuntimeError("can't start new thread")
            start(thread)

        place.files(3)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        summary = job_within(place, mode="concurrent").run()
        told = "start thread: can't start new thread (raise the process limit: ulimit -u)"
        assert (summary.exit_code, summary.error) == (2, told)
        assert (summary.failed, summary.pending, summary.failures) == (0, 3, [])

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_that_die_before_they_start(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setenv("PFU_START_METHOD", "fork")
        monkeypatch.setattr(pfu, "_start_worker", lambda *_: os._exit(1))
        place.files(3)
        summary = job_within(place, mode="parallel", workers=workers).run()
        assert (summary.exit_code, summary.failed, summary.pending) == (2, 0, 3)
        assert "of them died at startup (--mode concurrent needs no workers)" in str(summary.error)
        assert not multiprocessing.active_children()
        assert job_within(place).run().uploaded == 3

    def test_a_file_that_kills_every_worker_is_named(self, place: Place) -> None:
        path = place.file("poison")
        started: list[Any] = []

        def kill() -> None:
            for child in children_of(started[0].pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

        place.server.faults.append(Fault(Action("call", function=kill), "PutObject"))
        started.append(place.start("--mode", "parallel", "--workers", "1"))
        _, err = started[0].communicate(timeout=60)
        assert f"failed: {path}: the worker process died 3 times with this file" in err
        assert started[0].returncode == 1
        place.server.faults.clear()
        assert place.run().code == 0

    def test_what_dying_workers_sent_is_not_taken_for_what_was_there_before(
        self, place: Place
    ) -> None:
        path = place.file("poison", b"first")
        assert place.run().code == 0
        started: list[Any] = []

        def kill() -> None:
            for child in children_of(started[0].pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

        place.file("poison", b"other")
        place.server.faults.append(Fault(Action("call", function=kill), "PutObject"))
        started.append(place.start("--mode", "parallel", "--workers", "1"))
        started[0].communicate(timeout=60)
        place.server.faults.clear()
        assert place.stored() == {"poison": b"other"}
        place.file("poison", b"first")
        assert place.run().code == 0
        assert place.stored() == {"poison": path.read_bytes()}

    def test_what_the_ledger_does_not_take_is_not_counted(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once something is uploaded, the transaction that is to record it is not completed."""
        place.files(30)
        job = job_within(place)

        def check(ledger: pfu.Ledger) -> None:
            if job.summary.uploaded:
                raise pfu.LedgerError("write ledger", ledger.path, "the disk is full")

        monkeypatch.setattr(pfu.Ledger, "check_in_place", check)
        summary = job.run()
        assert (summary.exit_code, summary.error) == (1, f"write ledger {job.db}: the disk is full")
        assert (summary.uploaded, summary.bytes_uploaded, summary.pending) == (0, 0, 30)
        with contextlib.closing(pfu.Ledger(job.db)) as ledger:
            assert ledger.pending(job.id)[0] == 30
        assert job_within(place).run().uploaded == 30


# ======================================================================================
# Refusals
# ======================================================================================


REFUSED = Action("error", 400, "InvalidRequest")
DENIED = Action("error", 403, "AccessDenied")
REFUSALS: list[tuple[str, dict[str, Action], int]] = [
    ("403 is but a name", {"a403": REFUSED, "b": DENIED}, 1),
    ("AccessDenied is but a name", {"AccessDenied": REFUSED, "b": DENIED}, 1),
    ("all denied", {"a": DENIED, "b": DENIED, "c": DENIED}, 1),
]


class UnreachableUploader(InstantUploader):
    """Stores nothing."""

    def put(self, upload: pfu.Upload) -> pfu.Receipt:
        raise pfu.RetryableError("store", upload.source.path, "no answer")


class TestRefusals:
    """Refusals."""

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_what_prepares_holds_nothing_open(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        monkeypatch.setattr(pfu, "start_method", lambda: method)
        preparation = pfu.Preparation(s3_job(at_hand).uploader)
        assert preparation.is_done(60)
        assert preparation.result() == []
        preparation.close()
        assert preparation._answer.closed and preparation._answering.closed

    def test_what_a_store_cannot_take_stops_nothing(self, at_hand: Place) -> None:
        for number in range(pfu.ROW + 5):
            at_hand.file(f"d{number}/f")
        at_hand.server.faults.append(
            Fault(Action("error", 501, "NotImplemented"), "PutObject", "/$")
        )
        scan = pfu.ScanOptions(directory_markers=True)
        summary = s3_job(at_hand, scan=scan, concurrency=2).run()
        assert (summary.exit_code, summary.uploaded) == (1, pfu.ROW + 5)

    @BOTH_MODES
    @pytest.mark.parametrize("name, answers, code", REFUSALS, ids=[row[0] for row in REFUSALS])
    def test_only_a_run_that_is_denied_altogether_could_not_start(
        self, place: Place, mode: str, name: str, answers: dict[str, Action], code: int
    ) -> None:
        for path, action in answers.items():
            place.file(path)
            place.server.faults.append(Fault(action, "PutObject", f"^p/{path}$"))
        run = place.run("--mode", mode, "--workers", 1, "--json")
        assert (run.code, run.json["exit_code"]) == (code, code), run.err
        assert_accounts(run.json)
        assert place.check_ledger_is_honest() == run.json["uploaded"]

    def test_a_store_that_does_not_answer_denies_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(3):
            place.file(f"403/{number}")
        settings = pfu.RunOptions(mode="concurrent", nice=0, patience=1.0)
        job = pfu.BatchJobModel(place.root, UnreachableUploader(), place.path / "l.db", settings)
        summary = job.run()
        assert (summary.exit_code, summary.failed, summary.pending) == (1, 0, 3)

    def test_one_request_needs_one_worker(self, place: Place) -> None:
        place.files(45)
        place.server.faults.append(Fault(Action("slow", seconds=0.01), operation="PutObject"))
        process = place.start("--concurrency", "1", "--workers", "8", "--json")
        assert place.server.wait_for("PutObject", 3, 60)
        assert len(children_of(process.pid)) == 1
        out, err = process.communicate(timeout=30)
        assert (process.returncode, json.loads(out)["uploaded"], err) == (0, 45, "")
        assert place.server.peak_in_flight == 1
        assert place.stored() == place.local()
