"""What a user sees of pfu through the command line: jobs, reruns, stops, trees, trouble, privacy.

Further tests are in tests/, by subject; what they all stand on is in testing/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import boto3
import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import run_within, s3_job
from testing.place import (
    BOTH_MODES,
    BUCKET,
    EDGES,
    HERE,
    HOW_REFUSED,
    LONG_AGO,
    MIB,
    NEEDS_MOTO,
    ODD_NAMES,
    OPEN,
    Place,
    assert_accounts,
    children_of,
    drop_privilege,
    is_alive,
    nothing,
    rewrite_in_place,
    temporary_directory,
    wait_until,
    without_credentials,
    wrong_secret,
)
from testing.server import S3Server
from testing.store import ALL_BLOCKED

# ======================================================================================
# The main job
# ======================================================================================


class TestJob:
    """The main job."""

    @BOTH_MODES
    def test_uploads_a_tree_with_its_metadata(self, place: Place, mode: str) -> None:
        for number, name in enumerate(ODD_NAMES):
            place.file(name, b"%d" % number * number)
        for directory in (b"sub/dir with space", b"sub/\xff\xfe", "sub/caf\u00e9".encode()):
            place.file(directory + b"/in.jpg", directory)
        os.chmod(place.root / "plain.txt", 0o640)
        os.utime(place.root / "plain.txt", ns=(1, 1_700_000_000_000_000_042))

        run = place.run("--mode", mode, "--json")

        assert (run.code, run.err) == (0, "")
        assert place.stored() == place.local()
        assert_accounts(run.json)
        assert run.json["uploaded"] == len(ODD_NAMES) + 3
        assert run.json["bytes_uploaded"] == sum(map(len, place.local().values()))
        plain = place.server.objects(BUCKET)["p/plain.txt"].headers
        assert {k: v for k, v in plain.items() if k.startswith("x-amz-meta-")} == {
            "x-amz-meta-file-size": "0",
            "x-amz-meta-file-mtime": "1700000000000000042ns",
            "x-amz-meta-file-permissions": "0100640",
            "x-amz-meta-file-owner": str(os.getuid()),
            "x-amz-meta-file-group": str(os.getgid()),
            "x-amz-meta-mtime": "1700000000.000000042",
            "x-amz-meta-mode": "0100640",
            "x-amz-meta-uid": str(os.getuid()),
            "x-amz-meta-gid": str(os.getgid()),
        }
        assert plain["content-type"] == "text/plain"

    @BOTH_MODES
    def test_the_ledger_describes_what_is_stored(self, place: Place, mode: str) -> None:
        path = place.file("a/b.txt", b"hello")
        place.file(b"a/\xff", b"bytes")
        place.run("--mode", mode)
        rows = {row["object_key"]: row for row in place.rows()}
        row = rows["p/a/b.txt"]
        status = path.stat()
        assert row["file_path"] == str(path)
        assert rows["p/a/\u201bFF"]["file_path"] == os.fsencode(place.root / "a") + b"/\xff"
        assert (row["status"], row["file_size"], row["last_modified"]) == (2, 5, status.st_mtime_ns)
        assert row["permissions"] == f"0{status.st_mode:o}"
        assert row["sha256"] == hashlib.sha256(b"hello").hexdigest()
        assert row["etag"] == hashlib.md5(b"hello").hexdigest()
        assert row["error"] is None
        assert abs(row["uploaded_at"] - time.time()) < 60
        (job,) = place.rows("SELECT * FROM BatchJob")
        assert job["id"] == row["batch_id"]
        assert (job["status"], job["mode"], job["root_dir"]) == (3, mode, str(place.root))
        assert job["destination"] == f"s3://{BUCKET}/p"
        assert job["created_at"] <= job["finished_at"]
        place.check_ledger_is_honest()

    def test_the_tables_have_the_columns_that_others_rely_on(self, place: Place) -> None:
        place.run()
        expected = {
            "FileStat": "id created_at file_size last_modified permissions file_path status "
            "batch_id "
            "object_key etag sha256 attempts error uploaded_at",
            "BatchJob": "id status created_at root_dir destination mode finished_at",
        }
        numbers = {"created_at", "file_size", "last_modified", "status", "attempts"}
        numbers |= {"uploaded_at", "finished_at"}
        for table, columns in expected.items():
            found = {row["name"]: row for row in place.rows(f"PRAGMA table_info({table})")}
            assert set(columns.split()) <= set(found)
            assert all(
                found[c]["type"] == ("INTEGER" if c in numbers else "TEXT") for c in columns.split()
            )
            assert found["id"]["pk"] == 1
        (mode,) = place.rows("PRAGMA journal_mode")[0].values()
        assert mode == "wal"
        assert oct((place.path / "pfu.db").stat().st_mode) == "0o100600"

    def test_smallest_files_go_first(self, place: Place) -> None:
        sizes = [5000, 10, 0, 70_000, 300, 1, 20]
        for size in sizes:
            place.file(f"f{size}", b"x" * size)
        place.run("--mode", "concurrent", "--concurrency", 1)
        put = [r.key for r in place.server.log if r.operation == "PutObject"]
        assert put == [f"p/f{size}" for size in sorted(sizes)]

    @BOTH_MODES
    def test_many_files_in_one_directory_and_deep_ones(self, place: Place, mode: str) -> None:
        place.files(1500, 20)
        place.file("/".join(["deep"] * 60) + "/end", b"bottom")
        run = place.run("--mode", mode, "--json")
        assert run.code == 0
        assert run.json["uploaded"] == 1501
        assert place.stored() == place.local()
        puts = [r.key for r in place.server.log if r.operation == "PutObject"]
        assert len(puts) == len(set(puts))

    @BOTH_MODES
    @pytest.mark.parametrize("arguments", [("s3://bkt",), ("s3://bkt/",), ("s3://bkt/a/b/",)])
    def test_destinations(self, place: Place, arguments: tuple[str], mode: str) -> None:
        place.file("f")
        run = place.run("--mode", mode, "--json", to=arguments[0])
        prefix = arguments[0][len("s3://bkt") :].strip("/")
        assert list(place.stored("")) == [f"{prefix}/f" if prefix else "f"]
        assert run.json["destination"] == arguments[0].rstrip("/")

    def test_destination_from_the_environment(self, place: Place) -> None:
        place.file("f")
        place.environment["PFU_DESTINATION"] = "s3://bkt/from-environment"
        run = place.run(place.root, to=None)
        assert run.code == 0
        assert list(place.stored("")) == ["from-environment/f"]

    def test_root_may_be_one_file(self, place: Place) -> None:
        path = place.file("only.txt", b"one")
        run = place.run(path, f"s3://{BUCKET}/p", "--json", to=None)
        assert (run.code, run.json["uploaded"]) == (0, 1)
        assert place.stored() == {"only.txt": b"one"}

    @BOTH_MODES
    def test_options_that_go_with_every_object(self, place: Place, mode: str) -> None:
        place.file("small")
        place.file("large", b"x" * (5 * MIB + 1))
        options = "--storage-class STANDARD_IA --sse aws:kms --sse-kms-key-id k1 --part-size 5M"
        assert place.run("--mode", mode, *options.split()).code == 0
        for stored in place.server.objects(BUCKET).values():
            assert stored.headers["x-amz-storage-class"] == "STANDARD_IA"
            assert stored.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert stored.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k1"

    @BOTH_MODES
    @pytest.mark.parametrize("over", [-1, 0, 1, 5 * MIB, 5 * MIB + 1])
    def test_large_files_go_up_in_parts(self, place: Place, mode: str, over: int) -> None:
        body = os.urandom(1 << 20) * 11
        place.file("big.iso", body[: 5 * MIB + over])
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert run.code == 0
        (stored,) = place.server.objects(BUCKET).values()
        assert stored.body == body[: 5 * MIB + over]
        assert bool(stored.parts) == (over > 0)
        assert stored.headers["x-amz-meta-file-size"] == str(5 * MIB + over)
        assert not place.server.uploads(BUCKET)
        assert (
            place.run("--mode", mode, "--part-size", "5M", "--json", "--checksum").json["unchanged"]
            == 1
        )


# ======================================================================================
# Rerun, resume, incremental
# ======================================================================================


CHANGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("grown", lambda p: p.write_bytes(b"much longer than before"), "size changed"),
    ("touched", lambda p: os.utime(p, (LONG_AGO + 1, LONG_AGO + 1)), "modification time changed"),
    (
        "touched by a nanosecond",
        lambda p: os.utime(p, ns=(0, LONG_AGO * 10**9 + 1)),
        "modification time changed",
    ),
    ("older", lambda p: os.utime(p, (LONG_AGO - 9, LONG_AGO - 9)), "modification time changed"),
    ("chmod", lambda p: p.chmod(0o600), "permissions changed"),
]


class TestRerun:
    """Rerun, resume, incremental."""

    @pytest.mark.parametrize("name, change, reason", CHANGES, ids=[c[0] for c in CHANGES])
    def test_a_changed_file_goes_up_again(
        self, place: Place, name: str, change: Callable[[Path], Any], reason: str
    ) -> None:
        place.file("same")
        path = place.file("changing", b"first")
        place.run("--mode", "concurrent")
        change(path)
        plan = place.run("--dry-run")
        assert f"{path}  {path.stat().st_size} B  {reason}" in plan.out
        requests = place.server.count()
        run = place.run("--mode", "concurrent", "--json")
        assert (run.json["uploaded"], run.json["unchanged"]) == (1, 1)
        assert place.server.count("PutObject") == 3
        assert place.server.count() > requests
        assert place.stored() == place.local()
        assert place.run("--json").json["unchanged"] == 2

    @BOTH_MODES
    def test_an_unchanged_tree_costs_no_request(self, place: Place, mode: str) -> None:
        place.files(50)
        place.run("--mode", mode)
        requests = place.server.count()
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["unchanged"], run.json["requests"]) == (0, 50, 0)
        assert place.server.count() == requests

    @BOTH_MODES
    @pytest.mark.parametrize("size", [100, 5 * MIB + 7])
    def test_a_racily_clean_file_is_hashed_before_it_is_believed(
        self, place: Place, mode: str, size: int
    ) -> None:
        arguments = ("--mode", mode, "--part-size", "5M", "--json")
        path = place.file("racy", b"a" * size, mtime=int(time.time()) + 1)
        place.run(*arguments)
        while not place.rows()[0]["racy"]:  # a slow machine needs more than one try
            os.utime(path, (int(time.time()) + 1,) * 2)
            place.run(*arguments)
        puts = place.server.count("PutObject"), place.server.count("UploadPart")
        assert place.run(*arguments).json["unchanged"] == 1
        assert puts == (place.server.count("PutObject"), place.server.count("UploadPart"))
        rewrite_in_place(path)
        os.utime(path, ns=(0, place.rows()[0]["last_modified"]))
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute("UPDATE FileStat SET racy = 1")
        assert place.run(*arguments).json["uploaded"] == 1
        assert place.stored() == place.local()

    def test_checksum_finds_what_size_and_time_hide(self, place: Place) -> None:
        """And the ctime, where it means nothing."""
        path = place.file("hidden", b"first")
        arguments = ("--mode", "concurrent", "--ignore-ctime", "--json")
        place.run(*arguments)
        rewrite_in_place(path)
        assert place.run(*arguments).json["unchanged"] == 1
        assert place.run(*arguments, "--checksum").json["uploaded"] == 1
        assert place.stored() == place.local()

    def test_force_uploads_all_again(self, place: Place) -> None:
        place.files(5)
        place.run("--mode", "concurrent")
        assert place.run("--mode", "concurrent", "--force", "--json").json["uploaded"] == 5
        assert place.server.count("PutObject") == 10

    def test_each_destination_has_its_own_rows(self, place: Place) -> None:
        place.files(3)
        place.run("--mode", "concurrent")
        run = place.run("--mode", "concurrent", "--json", to=f"s3://{BUCKET}/other")
        assert run.json["uploaded"] == 3
        assert len(place.rows()) == 6
        assert place.run("--json").json["unchanged"] == 3

    def test_another_endpoint_is_another_destination(self, place: Place) -> None:
        place.files(3)
        place.run("--mode", "concurrent")
        with S3Server(buckets=[BUCKET]) as other:
            arguments = ("--mode", "concurrent", "--json", "--endpoint-url", other.endpoint)
            assert place.run(*arguments).json["uploaded"] == 3
            assert len(other.objects(BUCKET)) == 3

    def test_an_endpoint_from_the_environment_counts_too(self, place: Place) -> None:
        place.files(1)
        place.run("--mode", "concurrent")
        place.environment["AWS_ENDPOINT_URL"], place.endpoint = place.endpoint, ""
        assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1

    def test_what_vanished_is_not_pending_any_more(self, place: Place) -> None:
        place.file("stays")
        gone = place.file("goes")
        place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), key="goes"))
        assert place.run("--mode", "concurrent").code == 1
        gone.unlink()
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["seen"], run.json["unchanged"]) == (0, 1, 1)
        assert [row["object_key"] for row in place.rows()] == ["p/stays"]


# ======================================================================================
# Crashes, signals, dying workers
# ======================================================================================


class TestCrashesAndSignals:
    """Crashes, signals, dying workers."""

    @BOTH_MODES
    def test_killed_at_any_moment_the_next_run_completes(self, place: Place, mode: str) -> None:
        place.files(400, 300)
        place.file("large", os.urandom(6 * MIB))
        arguments = ("--mode", mode, "--part-size", "5M", "--concurrency", "8")
        place.server.faults.append(Fault(Action("slow", seconds=0.1), probability=0.6))
        generator = random.Random(mode)
        kills = 0
        for _ in range(8):
            process = place.start(*arguments)
            try:
                process.wait(0.35 + generator.random() * 0.8)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            process.communicate()
            ledger = place.path / "pfu.db"  # a slow start may have been killed before it
            if ledger.exists() and ledger.stat().st_size and kills:
                with contextlib.suppress(sqlite3.OperationalError):
                    place.check_ledger_is_honest()
        place.server.faults.clear()
        run = place.run(*arguments, "--json")
        assert run.code == 0, run.err
        assert kills >= 3
        assert place.check_ledger_is_honest() == 401
        assert place.stored() == place.local()
        assert_accounts(run.json)
        jobs = place.rows("SELECT status, error FROM BatchJob ORDER BY rowid")
        assert {(5, "killed")} <= {(job["status"], job["error"]) for job in jobs}
        assert jobs[-1]["status"] == 3

    @BOTH_MODES
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_cleanly(self, place: Place, mode: str, number: int) -> None:
        place.files(300)
        place.server.faults.append(Fault(Action("slow", seconds=0.1)))
        process = place.start("--mode", mode, "--concurrency", "4", "--json", leads="session")
        assert place.server.wait_for("HeadObject", 2, 60)  # what was taken before waits for them
        assert place.server.wait_for("PutObject", place.server.count("PutObject") + 16, 60)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 4, err
        summary = json.loads(out)
        assert_accounts(summary)
        assert summary["pending"] > 0
        assert summary["status"] == "interrupted"
        assert f"pfu: stopped: {signal.Signals(number).name} received" in err
        assert place.check_ledger_is_honest() == summary["uploaded"] > 0
        assert place.rows("SELECT count(*) n FROM FileStat WHERE status = 1")[0]["n"] == 0
        place.server.faults.clear()
        assert place.run("--mode", mode).code == 0
        assert place.stored() == place.local()
        assert place.server.count("PutObject") <= 300 + 4

    def test_a_stop_does_not_wait_for_a_store_that_hangs(self, place: Place) -> None:
        place.files(20)
        place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
        process = place.start("--mode", "parallel")
        time.sleep(1.5)
        process.terminate()
        process.communicate(timeout=50)
        assert process.returncode == 4

    @pytest.mark.parametrize(
        "operation, options, to",
        [
            ("ListObjectsV2", ["--verify"], f"s3://{BUCKET}/p"),
            ("HeadObject", ["--verify", "--checksum"], f"s3://{BUCKET}/p"),
            ("GetCallerIdentity", [], ""),
        ],
    )
    def test_a_stop_does_not_wait_for_a_question(
        self, place: Place, operation: str, options: list[str], to: str
    ) -> None:
        place.files(5)
        assert place.run("--mode", "concurrent").code == 0
        place.server.faults.append(Fault(Action("slow", seconds=60), operation))
        process = place.start("--json", *options, to=to)
        wait_until(lambda: place.server.in_flight > 0)
        process.terminate()
        out, err = process.communicate(timeout=15)
        assert (process.returncode, "SIGTERM received" in err) == (4, True), err
        told = json.loads(out)
        assert (told["exit_code"], "SIGTERM received" in told["error"]) == (4, True)
        assert not told.get("extra")

    def test_a_stop_gives_up_what_hangs_on_one_loop_too(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "STOP_SECONDS", 0.5)
        place.files(20)
        place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
        os.environ.update(place.server.environment())
        uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", pfu.S3Options(endpoint_url=place.endpoint))
        options = pfu.RunOptions(mode="concurrent", nice=0)
        job = pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options)
        threading.Timer(1.5, job.stop, ["enough"]).start()
        summary = job.run()
        assert (summary.exit_code, summary.error, summary.pending) == (4, "enough", 20)

    @BOTH_MODES
    def test_a_second_interrupt_stops_at_once(self, place: Place, mode: str) -> None:
        place.files(20)
        place.server.faults.append(Fault(Action("slow", seconds=60), operation="PutObject"))
        process = place.start("--mode", mode, leads="session")
        time.sleep(1.5)
        children = children_of(process.pid)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 4
        assert time.monotonic() - began < pfu.STOP_SECONDS
        time.sleep(1)
        assert not any(map(is_alive, children))

    def test_a_dying_worker_does_not_lose_the_run(self, place: Place) -> None:
        place.files(600)
        place.server.faults.append(Fault(Action("slow", seconds=0.02)))
        process = place.start("--workers", "2", "--concurrency", "8", "--json")
        assert place.server.wait_for("PutObject", 50)
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        assert place.server.wait_for("PutObject", 300)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        summary = json.loads(out)
        assert (process.returncode, summary["uploaded"]) == (0, 600)
        assert "2 worker process(es) died and were replaced" in err
        assert place.check_ledger_is_honest() == 600
        assert place.stored() == place.local()

    @pytest.mark.parametrize("nice, expected", [((), 19), (("--nice", "5"), 5)])
    def test_every_process_runs_at_low_priority(
        self, place: Place, nice: tuple[str, ...], expected: int
    ) -> None:
        place.files(100)
        place.server.faults.append(Fault(Action("slow", seconds=0.2)))
        process = place.start("--workers", "2", "--concurrency", "4", *nice)
        assert place.server.wait_for("PutObject", 8)
        pids = [process.pid, *children_of(process.pid)]
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [expected] * 3
        process.terminate()
        process.communicate()

    def test_a_time_limit_stops_cleanly(self, place: Place) -> None:
        place.files(300)
        place.server.faults.append(Fault(Action("slow", seconds=0.1), "PutObject"))
        arguments = ("--mode", "concurrent", "--concurrency", "2", "--max-duration", "4s", "--json")
        run = place.run(*arguments)
        assert (run.code, run.json["status"]) == (4, "interrupted")
        assert "time limit of 4 s reached" in run.err
        assert place.check_ledger_is_honest() == run.json["uploaded"] > 0


# ======================================================================================
# What a tree may hold
# ======================================================================================


def disturbances(path: Path) -> dict[str, Callable[[], Any]]:
    """Ways in which a file changes while it is read."""

    def replace_with_the_same_time() -> None:
        path.write_bytes(b"x")
        os.utime(path, (LONG_AGO, LONG_AGO))

    return {
        "grow": lambda: path.write_bytes(b"after " * 1000),
        "shrink": lambda: os.truncate(path, 10),
        "rewrite": lambda: path.write_bytes(b"BEFORE " * 100),
        "replace": replace_with_the_same_time,
        "touch": lambda: os.utime(path),
    }


def disturb_readings(
    monkeypatch: pytest.MonkeyPatch, name: str, disturb: Callable[[], Any], times: int
) -> None:
    """Have the file ``name`` changed just after it was read, so many times."""
    left = [times]

    def disturbing(read: Callable[..., bytes]) -> Callable[..., bytes]:
        def disturbed(source: pfu.SourceFile, *piece: int) -> bytes:
            body = read(source, *piece)
            if source.path.endswith(name) and left[0]:
                left[0] -= 1
                disturb()
            return body

        return disturbed

    for how in ("read", "read_all"):
        monkeypatch.setattr(pfu.SourceFile, how, disturbing(getattr(pfu.SourceFile, how)))


def is_held_elsewhere(place: Place) -> bool:
    """Asked by another process: to its own, a lock of POSIX is none."""
    code = "import pfu, sys; print(pfu.LedgerLock.is_held(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, place.path / "pfu.db"],
        cwd=HERE,
        capture_output=True,
        check=True,
    )
    return run.stdout == b"True\n"


class TestTree:
    """What a tree may hold."""

    def test_only_regular_files_are_opened(self, place: Place) -> None:
        place.file("regular")
        os.mkfifo(place.root / "fifo")
        os.symlink("regular", place.root / "link")
        os.symlink("nowhere", place.root / "broken")
        os.symlink("..", place.root / "up")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.root / "sock"))
            run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 1, 5)
        assert run.json["skipped_by_reason"] == {"FIFO": 1, "socket": 1, "symbolic link": 3}
        assert_accounts(run.json)

    def test_links_are_followed_on_demand_and_cycles_end(self, place: Place) -> None:
        place.file("a/regular", b"1")
        elsewhere = place.path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "target").write_bytes(b"2")
        os.symlink("regular", place.root / "a/file-link")
        os.symlink(elsewhere, place.root / "a/directory-link")
        os.symlink("..", place.root / "a/cycle")
        os.symlink("a", place.root / "twice")
        os.symlink("nowhere", place.root / "broken")
        run = place.run("--mode", "concurrent", "--json", "--follow-symlinks")
        assert run.code == 0
        files = {"regular": b"1", "file-link": b"1", "directory-link/target": b"2"}
        assert place.stored() == {f"{d}/{n}": c for d in ("a", "twice") for n, c in files.items()}
        assert run.json["skipped_by_reason"] == {
            "symbolic link into its own parents": 2,
            "broken symbolic link": 1,
        }

    def test_one_file_system_stops_at_a_mount(self, place: Place) -> None:
        if os.stat("/dev/shm").st_dev == os.stat(place.path).st_dev:
            pytest.skip("/dev/shm is on the file system of the tests")
        place.file("here")
        with contextlib.ExitStack() as stack:
            other = Path(stack.enter_context(temporary_directory("/dev/shm")))
            (other / "there").write_bytes(b"x")
            os.symlink(other, place.root / "mount")
            arguments = ("--mode", "concurrent", "--json", "--follow-symlinks")
            assert place.run(*arguments, "--one-file-system").json["skipped_by_reason"] == {
                "other file system": 1
            }
            assert place.run(*arguments).json["uploaded"] == 1

    def test_what_cannot_be_read_is_named_and_stops_nothing(self, place: Place) -> None:
        place.file("good")
        place.file("secret").chmod(0)
        place.file("closed/inside")
        (place.root / "closed").chmod(0)
        place.file(
            "k" * 200 + "/" + "e" * 250 + "/" + "y" * 250 + "/" + "l" * 250 + "/" + "n" * 200
        )
        try:
            run = place.run("--mode", "concurrent", "--json", preexec_fn=drop_privilege)
        finally:
            (place.root / "closed").chmod(0o700)
        assert run.code == 1
        assert (run.json["uploaded"], run.json["failed"], run.json["seen"]) == (1, 3, 4)
        reasons = {failure["path"]: failure["reason"] for failure in run.json["failures"]}
        assert "Permission denied" in reasons[str(place.root / "secret")]
        assert "cannot read directory: Permission denied" in reasons[str(place.root / "closed")]
        assert [r for r in reasons.values() if "its key is 1156 bytes long, S3 allows 1024" in r]
        assert run.err.count("pfu: failed: ") == 3
        (place.root / "secret").chmod(0o600)
        again = place.run("--mode", "concurrent", "--json")
        assert (again.json["uploaded"], again.json["unchanged"], again.json["failed"]) == (2, 1, 1)

    @pytest.mark.parametrize("kind", list(disturbances(Path())))
    @pytest.mark.parametrize("size", [700, 6 * MIB])
    def test_a_file_that_changes_while_it_is_read_is_read_again(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
    ) -> None:
        path = place.file("busy", b"before " * (size // 7))
        disturb_readings(monkeypatch, "busy", disturbances(path)[kind], times=2)
        summary = run_within(place)
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
        assert (place.path / "store/busy").read_bytes() == path.read_bytes()
        with contextlib.closing(pfu.Ledger(place.path / "l.db", read_only=True)) as ledger:
            ((size, mtime),) = ledger._rows("SELECT file_size, last_modified FROM FileStat")
        assert (size, mtime) == (path.stat().st_size, path.stat().st_mtime_ns)

    @pytest.mark.parametrize("size", [100, 6 * MIB])
    def test_a_file_that_never_holds_still_fails(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        path = place.file("restless", b"x" * size)
        place.file("calm")
        disturb_readings(monkeypatch, "restless", lambda: os.utime(path), times=1000)
        summary = run_within(place)
        assert (summary.exit_code, summary.failed, summary.uploaded) == (1, 1, 1)
        assert summary.failures == [
            {"path": str(path), "reason": f"read {path}: it changed while being read"}
        ]

    @BOTH_MODES
    @pytest.mark.parametrize("kind", list(disturbances(Path())))
    def test_a_change_after_the_reading_is_found_by_the_next_run(
        self, place: Place, mode: str, kind: str
    ) -> None:
        path = place.file("busy", b"before " * 100)
        disturb = disturbances(path)[kind]
        place.server.faults.append(
            Fault(Action("call", function=disturb), operation="PutObject", times=1)
        )
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1)
        assert place.stored() == {"busy": b"before " * 100}
        place.check_ledger_is_honest()
        assert place.run("--mode", mode, "--json").json["uploaded"] == 1
        assert place.stored() == place.local()

    def test_a_large_file_that_changes_under_way_is_never_completed(self, place: Place) -> None:
        """What is the same in the end need not be sent again by the next run."""
        path = place.file("restless", b"x" * (11 * MIB))
        change = Action("call", function=lambda: rewrite_in_place(path))
        place.server.faults.append(Fault(change, operation="UploadPart"))
        arguments = ("--mode", "concurrent", "--part-size", "5M", "--concurrency", "1", "--json")
        run = place.run(*arguments)
        assert (run.code, run.json["failed"]) == (1, 1)
        assert "it changed while being read" in run.json["failures"][0]["reason"]
        assert not place.server.objects(BUCKET)
        assert len(place.server.uploads(BUCKET)) == 1
        place.server.faults.clear()
        again = place.run(*arguments)
        assert (again.code, again.json["uploaded"]) == (0, 1)
        assert place.server.count("CreateMultipartUpload") == 1
        assert not place.server.uploads(BUCKET)
        assert place.stored() == place.local()
        place.check_ledger_is_honest()

    def test_a_file_that_vanishes_between_scan_and_read_is_no_failure(self, place: Place) -> None:
        place.file("a", b"")
        later = place.file("later", b"later")
        place.server.faults.append(
            Fault(Action("call", function=later.unlink), key="p/a$", times=1)
        )
        run = place.run("--mode", "concurrent", "--concurrency", 1, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1)
        assert run.json["skipped_by_reason"] == {"vanished": 1}
        assert_accounts(run.json)
        assert len(place.rows()) == 1

    def test_a_file_that_becomes_a_fifo_hangs_nothing(self, place: Place) -> None:
        place.file("a", b"")
        later = place.file("later", b"later")

        def replace() -> None:
            later.unlink()
            os.mkfifo(later)

        place.server.faults.append(Fault(Action("call", function=replace), key="p/a$", times=1))
        run = place.run("--mode", "concurrent", "--concurrency", 1, "--json")
        assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 1, 1)

    def test_the_ledger_in_the_tree_is_left_out(self, place: Place) -> None:
        place.file("f")
        place.file("sub/pfu.db", b"not the ledger")
        run = place.run("--mode", "concurrent", "--json", "--db", place.root / "pfu.db")
        assert run.code == 0
        assert sorted(place.stored()) == ["f", "sub/pfu.db"]

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_links_to_the_ledger_and_its_lock_are_left_out(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, link: Callable[..., None]
    ) -> None:
        """Who closes one of these files gives away all locks that this process has on it."""
        at_hand.file("f")
        assert s3_job(at_hand).run().exit_code == 0
        job = s3_job(at_hand, scan=pfu.ScanOptions(follow_symlinks=True))
        compare = job.compare

        def compare_with_links() -> pfu.Comparison:
            for name in ("pfu.db", "pfu.db.lock"):
                link(at_hand.path / name, at_hand.root / f"of {name}")
            return compare()

        monkeypatch.setattr(job, "compare", compare_with_links)
        at_hand.file("g")
        held: list[bool] = []
        look = Action("call", function=lambda: held.append(is_held_elsewhere(at_hand)))
        at_hand.server.faults.append(Fault(look, "PutObject", "g$"))
        summary = job.run()
        assert (summary.uploaded, summary.skipped_by_reason) == (1, {pfu.OWN_LEDGER: 2})
        assert held == [True]


# ======================================================================================
# Trouble: one clear line, and the exit code
# ======================================================================================


def unknown_key(place: Place) -> None:
    place.environment["AWS_ACCESS_KEY_ID"] = "AKIDNOBODY"


def expired_token(place: Place) -> None:
    place.environment["AWS_SESSION_TOKEN"] = "old"
    place.server.expired_tokens.add("old")


def all_denied(place: Place) -> None:
    place.server.deny |= {"PutObject", "HeadBucket", "ListObjectsV2", "GetPublicAccessBlock"}


def text_ledger(place: Place) -> None:
    (place.path / "pfu.db").write_text("this is no database, " * 100)


def foreign_database(place: Place) -> None:
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
        db.execute("CREATE TABLE theirs(x)")


def newer_ledger(place: Place) -> None:
    place.run("--mode", "concurrent")
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
        db.execute("PRAGMA user_version = 99")


def linked_ledger(place: Place) -> None:
    os.symlink(place.path / "target", place.path / "pfu.db")


def root_removed(place: Place) -> None:
    shutil.rmtree(place.root)


def root_is_fifo(place: Place) -> None:
    shutil.rmtree(place.root)
    os.mkfifo(place.root)


def root_emptied(place: Place) -> None:
    place.run("--mode", "concurrent")
    shutil.rmtree(place.root)
    place.root.mkdir()


TROUBLE: list[tuple[Callable[[Place], None], str, int, str]] = [
    (without_credentials, "", 2, "Unable to locate credentials (set AWS_ACCESS_KEY_ID"),
    (without_credentials, "--profile nobody", 2, "profile (nobody) could not be found"),
    (wrong_secret, "", 2, "SignatureDoesNotMatch"),
    (unknown_key, "", 2, "InvalidAccessKeyId"),
    (expired_token, "", 2, "ExpiredToken"),
    (all_denied, "", 1, "AccessDenied"),
    (text_ledger, "", 2, "pfu.db: file is not a database (choose another --db"),
    (foreign_database, "", 2, "pfu.db: database of another program (choose another --db)"),
    (newer_ledger, "", 2, "created by a newer pfu (schema 99) (update pfu.py)"),
    (linked_ledger, "", 2, "is a symbolic link"),
    (nothing, "--db no/such/folder/pfu.db", 2, "No such file or directory (choose a --db in"),
    (nothing, "--db tree", 2, "Is a directory"),
    (root_removed, "", 2, "tree: No such file or directory"),
    (root_is_fifo, "", 2, "tree: it is a FIFO (specify a directory or a file)"),
    (root_emptied, "", 2, "is it mounted?"),
    (nothing, "--mode serial", 2, "argument --mode: invalid choice: 'serial'"),
    (nothing, "--no-such-option", 2, "unrecognized arguments: --no-such-option"),
    (nothing, "--nice 20", 2, "'20' is not between 0 and 19"),
    (nothing, "--workers 0", 2, "'0' is not between 1 and 256"),
    (nothing, "--concurrency -1", 2, "'-1' is not between 1 and 4096"),
    (nothing, "--part-size 4M", 2, "--part-size must be between 5 MiB and 5 GiB"),
    (nothing, "--part-size lots", 2, "invalid size 'lots': use e.g. 16M or 1.5GiB"),
    (nothing, "--max-duration soon", 2, "invalid time 'soon': use e.g. 90s, 15m, 2h or 7d"),
    (nothing, "--mode concurrent --workers 2", 2, "--workers must be 1 with --mode concurrent"),
    (nothing, "--quiet --verbose", 2, "cannot be combined with --verbose"),
    (nothing, "--sse-kms-key-id k", 2, "requires --sse aws:kms"),
    (nothing, "--dry-run --status", 2, "--status cannot be combined with --dry-run"),
    (nothing, "--endpoint-url ftp://x", 2, "is not an http:// or https:// URL"),
    (
        nothing,
        "--endpoint-url http://h:99999",
        2,
        "the endpoint's port 99999 is not one: 1 to 65535",
    ),
    (
        nothing,
        f"--endpoint-url http://{'a.' * 127}",
        2,
        "the endpoint's host has over 253 characters",
    ),
    (nothing, "--expected-bucket-owner 999999999999", 1, "AccessDenied"),
]
LARGE_FAULTS = [("CompleteMultipartUpload", Action("error", 400, "InvalidPart"), None, 1)]


class TestTrouble:
    """Trouble: one clear line, and the exit code."""

    @pytest.mark.parametrize(
        "trouble, options, code, says", TROUBLE, ids=[f"{t[0].__name__} {t[1]}" for t in TROUBLE]
    )
    def test_trouble_is_one_clear_line(
        self, place: Place, trouble: Callable[[Place], None], options: str, code: int, says: str
    ) -> None:
        place.file("f", b"content")
        trouble(place)
        arguments = ["--mode", "concurrent", *options.split()]
        run = place.run(*arguments, *([] if "--quiet" in options else ["--quiet"]))
        assert says in run.err
        assert (run.code, run.err.count("\n")) == (code, 1), run.err
        assert run.err.startswith("pfu: ")

    @pytest.mark.parametrize(
        "destination, says",
        [
            ("bkt", "it does not start with s3:// (use s3://BUCKET"),
            ("s3://", "no bucket name"),
            ("s3://a%b", "no bucket name"),
            ("s3://x", "x: no such bucket"),  # other stores than AWS have such names
            ("s3://UP_per!", "UP_per!: no such bucket"),
            (
                "s3://missing-bucket",
                "missing-bucket: no such bucket (check the name, or pass --create",
            ),
        ],
    )
    def test_destinations_that_cannot_be(self, place: Place, destination: str, says: str) -> None:
        place.file("f")
        run = place.run("--mode", "concurrent", to=destination)
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert says in run.err

    @pytest.mark.parametrize(
        "arguments, says",
        [
            ("s3://bkt", "ROOT is a directory or a file here, and comes before the destination"),
            ("a b s3://bkt", "arguments: s3://bkt (one ROOT, a directory or a file, then one dest"),
            ("tree ''", "argument DESTINATION: the value is empty"),
            ("-- tree ''", "argument DESTINATION: the value is empty"),
            ("'' s3://bkt", "argument ROOT: the value is empty"),
            ("tree s3://bkt --delete", "unrecognized arguments: --delete (see --help)"),
            ("tree s3://bkt --verfy", "unrecognized arguments: --verfy (did you mean --verify?)"),
            ("tree s3://bkt -v", "unrecognized arguments: -v (see --help)"),
        ],
    )
    def test_arguments_out_of_place(self, place: Place, arguments: str, says: str) -> None:
        place.file("f")
        place.environment["PFU_DESTINATION"] = f"s3://{BUCKET}/p"
        place.environment["PFU_ENDPOINT_URL"], place.endpoint = place.endpoint, ""
        run = place.run(*shlex.split(arguments), to=None)
        assert (run.code, run.err.count("\n"), place.server.count()) == (2, 1, 0), run.err
        assert says in run.err

    def test_no_root_no_run(self, place: Place) -> None:
        run = place.run(to=None)
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert "ROOT is missing" in run.err

    def test_an_empty_tree_is_no_trouble(self, place: Place) -> None:
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["seen"], run.json["status"]) == (0, 0, "complete")

    def test_nothing_secret_is_said_or_written(self, place: Place) -> None:
        place.file("f")
        place.environment["AWS_SESSION_TOKEN"] = "token-that-is-secret"
        run = place.run("--mode", "concurrent", "--verbose", "--json")
        assert run.code == 2
        secret = place.environment["AWS_SECRET_ACCESS_KEY"]
        for text in (run.out, run.err, (place.path / "pfu.db").read_bytes().decode("latin-1")):
            assert secret not in text
            assert "token-that-is-secret" not in text

    @pytest.mark.parametrize(
        "operation, action, times, code",
        LARGE_FAULTS,
        ids=[f"{f[0]} {f[1].kind} {f[1].code}" for f in LARGE_FAULTS],
    )
    def test_faults_with_large_files(
        self, place: Place, operation: str, action: Action, times: int | None, code: int
    ) -> None:
        place.file("large", os.urandom(11 * MIB))
        place.file("small")
        place.server.faults.append(Fault(action, operation=operation, times=times))
        run = place.run("--mode", "concurrent", "--part-size", "5M", "--json")
        assert run.code == code, run.err
        assert run.json["uploaded"] == 2 - code
        assert len(place.server.uploads(BUCKET)) == 1  # begun anew once; the next run goes on
        place.check_ledger_is_honest()
        if not code:
            assert place.stored() == place.local()


# ======================================================================================
# Privacy: who may see a bucket, and whose it is
# ======================================================================================


BLOCKED_ELSEWHERE = {**ALL_BLOCKED, "BlockPublicAcls": False}  # RGW would refuse every PUT
ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
PRIVACY: list[tuple[str, dict[str, Any], set[str], str]] = [
    ("blocked", {}, set(), ""),
    ("no blocks, no policy, no ACLs", {"public_access_block": None}, set(), ""),
    ("no blocks, private ACL", OPEN, set(), ""),
    ("public policy", {**OPEN, "policy_public": True}, set(), "its policy is public"),
    ("public policy, blocked", {"policy_public": True}, set(), ""),
    ("public ACL", {**OPEN, "acl_groups": [ALL_USERS]}, set(), "its ACL is public"),
    (
        "public ACL, not in force",
        {"public_access_block": None, "acl_groups": [ALL_USERS]},
        set(),
        "",
    ),
    ("may not ask", {}, {"GetPublicAccessBlock"}, ""),
    ("may ask nothing", OPEN, {"GetPublicAccessBlock", "GetBucketPolicyStatus"}, "cannot tell"),
    ("may not ask for the ACL", OPEN, {"GetBucketAcl"}, "cannot tell"),
]


class TestPrivacy:
    """Privacy: who may see a bucket, and whose it is."""

    @pytest.mark.parametrize("name, state, unasked, says", PRIVACY, ids=[p[0] for p in PRIVACY])
    @pytest.mark.parametrize("how", HOW_REFUSED)
    def test_public_buckets_are_refused(
        self, place: Place, name: str, state: dict[str, Any], unasked: set[str], says: str, how: str
    ) -> None:
        place.file("f")
        vars(place.server.bucket(BUCKET)).update(state)
        getattr(place.server, how).update(unasked)
        run = place.run("--mode", "concurrent")
        public = "public" in says
        assert run.code == (2 if public else 0)
        assert bool(place.stored()) != public
        if says or unasked:
            assert (says or "cannot tell") in run.err
        else:
            assert run.err == ""
        if public:
            assert place.run("--mode", "concurrent", "--allow-public").code == 0
            assert place.stored() == place.local()

    @pytest.mark.parametrize("mode", ["concurrent", "parallel"])
    def test_the_default_bucket_is_made_private_and_owned(self, place: Place, mode: str) -> None:
        place.file("f")
        place.file("large", b"x" * (5 * MIB + 1))
        run = place.run("--mode", mode, "--json", "--part-size", "5M", to="")
        assert run.code == 0, run.err
        name = "pfu-123456789012-us-east-1"
        assert run.json["destination"] == f"s3://{name}"
        bucket = place.server.bucket(name)
        assert bucket and bucket.public_access_block == BLOCKED_ELSEWHERE
        assert not {"x-amz-acl", "x-amz-object-ownership"} & bucket.headers.keys()
        assert sorted(place.server.objects(name)) == ["f", "large"]
        writes = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
        owners = {
            request.operation: request.headers.get("x-amz-expected-bucket-owner")
            for request in place.server.log
            if request.operation in writes
        }
        assert owners == dict.fromkeys(writes, "123456789012")
        assert place.run("--json", "--part-size", "5M", to="").json["unchanged"] == 2

    def test_a_default_bucket_of_a_stranger_is_refused(self, place: Place) -> None:
        place.file("f")
        place.server.add_bucket("pfu-123456789012-us-east-1", owner="666666666666")
        run = place.run("--mode", "concurrent", to="")
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert not place.server.objects("pfu-123456789012-us-east-1")

    def test_a_named_bucket_is_made_only_on_demand(self, place: Place) -> None:
        place.file("f")
        assert place.run("--mode", "concurrent", to="s3://new-bucket").code == 2
        assert place.server.bucket("new-bucket") is None
        run = place.run(
            "--mode", "concurrent", "--create-bucket", "--region", "eu-west-1", to="s3://new-bucket"
        )
        assert run.code == 0, run.err
        bucket = place.server.bucket("new-bucket")
        assert bucket and bucket.location == "eu-west-1"
        assert bucket.public_access_block == BLOCKED_ELSEWHERE

    def test_a_bucket_that_another_run_has_just_made_is_used(self, place: Place) -> None:
        """As where the shares of one tree start at the same moment."""
        place.file("f")
        create = place.server._store.create_bucket

        def create_twice(request: Any) -> Any:
            create(request)
            return create(request)

        place.server._store.create_bucket = create_twice  # type: ignore[method-assign]
        run = place.run("--create-bucket", to="s3://new-bucket/p")
        assert (run.code, run.err) == (0, "")
        assert "p/f" in place.server.objects("new-bucket")

    @pytest.mark.parametrize(
        "operation, action",
        [
            ("CreateBucket", Action("lost_ack")),
            ("PutPublicAccessBlock", Action("error", 503, "SlowDown")),
            ("PutPublicAccessBlock", Action("lost_ack")),
        ],
        ids=["created, not told", "not blocked", "blocked, not told"],
    )
    def test_a_bucket_is_created_private_whatever_answer_is_lost(
        self, place: Place, operation: str, action: Action
    ) -> None:
        place.file("f")
        place.server.faults.append(Fault(action, operation, times=1))
        run = place.run("--create-bucket", to="s3://new-bucket")
        assert (run.code, run.err) == (0, "")
        bucket = place.server.bucket("new-bucket")
        assert bucket and bucket.public_access_block == BLOCKED_ELSEWHERE

    @pytest.mark.parametrize("to", ["s3://new-bucket/p", ""])
    @pytest.mark.parametrize("blocks", [None, dict.fromkeys(ALL_BLOCKED, False)])
    def test_a_bucket_whose_run_was_killed_is_made_private_by_the_next(
        self, place: Place, to: str, blocks: dict[str, bool] | None
    ) -> None:
        place.file("f")
        name, option = "new-bucket" if to else "pfu-123456789012-us-east-1", ["--create-bucket"]
        stalled = Fault(Action("slow", seconds=60), "CreateBucket")
        place.server.faults.append(stalled)
        process = place.start(*option, to=to)
        wait_until(lambda: place.server.bucket(name))
        process.kill()
        process.wait()
        place.server.faults.clear()
        bucket = place.server.bucket(name)
        assert bucket
        bucket.public_access_block = blocks  # other stores block nothing by themselves
        run = place.run(*option, to=to)
        assert (run.code, run.err) == (0, "")
        assert bucket.public_access_block == BLOCKED_ELSEWHERE

    @pytest.mark.parametrize("options", [[], ["--create-bucket"], ["--create-bucket", "denied"]])
    def test_a_bucket_of_others_is_left_as_it_is(self, place: Place, options: list[str]) -> None:
        """One that nobody asked to create, that is in use, or that this role may not change."""
        place.file("f")
        bucket = place.server.add_bucket("theirs")
        bucket.public_access_block = None
        if options[1:]:
            place.server.deny.add("PutPublicAccessBlock")
        elif options:
            assert place.run(to="s3://theirs/q").code == 0
        run = place.run(*options[:1], to="s3://theirs/p")
        assert run.code == 0, run.err
        told = "bucket theirs: public access is not blocked: AccessDenied"
        assert (told in run.err) == bool(options[1:]), run.err
        assert bucket.public_access_block is None

    def test_at_aws_all_four_are_blocked_and_acls_are_off(self, at_hand: Place) -> None:
        options = pfu.S3Options(endpoint_url=at_hand.endpoint, create_bucket=True)
        uploader = pfu.S3Uploader("s3://new-bucket", options)
        uploader.endpoint = ""  # as for AWS
        with contextlib.closing(uploader):
            assert uploader.prepare() == []
        bucket = at_hand.server.bucket("new-bucket")
        assert bucket and bucket.public_access_block == ALL_BLOCKED
        assert bucket.headers["x-amz-object-ownership"] == "BucketOwnerEnforced"
        assert "x-amz-acl" not in bucket.headers

    def test_the_expected_owner_goes_with_every_data_call(self, place: Place) -> None:
        place.file("f")
        run = place.run("--mode", "concurrent", "--expected-bucket-owner", "123456789012")
        assert run.code == 0
        assert {
            r.headers.get("x-amz-expected-bucket-owner") for r in place.server.log if r.bucket
        } == {"123456789012"}

    def test_put_object_alone_is_permission_enough(self, place: Place) -> None:
        place.file("f")
        place.file("large", b"x" * (5 * MIB + 1))
        reads = "HeadBucket ListObjectsV2 GetObject HeadObject GetBucketAcl GetPublicAccessBlock"
        place.server.deny |= {*reads.split(), "GetBucketPolicyStatus", "GetBucketOwnershipControls"}
        run = place.run("--mode", "concurrent", "--part-size", "5M")
        assert run.code == 0
        assert "cannot tell whether it is private" in run.err
        assert place.stored() == place.local()


# ======================================================================================
# Other servers: the sandbox, LocalStack
# ======================================================================================


class TestOtherServers:
    """Other servers: the sandbox, LocalStack."""

    @NEEDS_MOTO
    @BOTH_MODES
    def test_the_sandbox_needs_no_account(self, place: Place, mode: str) -> None:
        place.endpoint = ""
        place.environment = {k: v for k, v in place.environment.items() if not k.startswith("AWS_")}
        place.files(12)
        run = place.run(place.root, "--mode", mode, "--sandbox", to=None)
        assert (run.code, run.err) == (0, "")
        assert "  12 files seen\n  12 uploaded " in run.out
        assert "The sandbox holds 12 objects" in run.out
        assert f"file-mtime={LONG_AGO}000000000ns" in run.out
        again = place.run(place.root, "--mode", mode, "--sandbox", "--json", to=None)
        assert again.json["uploaded"] == 12
        assert len(place.rows()) == 12

    @NEEDS_MOTO
    def test_the_sandbox_ends_with_the_run(self, place: Place) -> None:
        place.endpoint = ""
        place.files(2000)
        process = place.start(place.root, "--sandbox", "--mode", "concurrent", to=None)
        deadline = time.monotonic() + 30
        while not (children := children_of(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 10
        while any(map(is_alive, children)):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_without_moto_the_sandbox_says_what_to_install(self, place: Place) -> None:
        place.endpoint = ""
        (place.path / "moto.py").write_text("raise ModuleNotFoundError('No module named moto')")
        place.environment["PYTHONPATH"] = str(place.path)
        run = place.run(place.root, "--sandbox", to=None)
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert "moto is not installed (pip install 'moto[s3]' flask" in run.err

    @BOTH_MODES
    def test_localstack(self, place: Place, mode: str) -> None:
        endpoint = os.environ.get("PFU_TEST_LOCALSTACK")
        if not endpoint:
            pytest.skip("PFU_TEST_LOCALSTACK names no LocalStack")
        place.endpoint = endpoint
        place.environment.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
        for name in ODD_NAMES:
            if b"\xff" not in os.fsencode(name):
                place.file(name, os.fsencode(name))
        for size in EDGES:
            place.file(f"edges/{size}", os.urandom(size))
        bucket = f"s3://pfu-test-{mode}-{os.getpid()}"
        arguments = ("--mode", mode, "--create-bucket", "--part-size", "5M", "--json")
        run = place.run(*arguments, to=bucket)
        assert run.code == 0, run.err
        assert run.json["uploaded"] == len(place.local())
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for key, body in place.local().items():
            stored = client.get_object(Bucket=bucket[5:], Key=key)
            assert stored["Body"].read() == body
            assert stored["Metadata"]["file-size"] == str(len(body))
        assert place.run(*arguments, to=bucket).json["unchanged"] == len(place.local())
