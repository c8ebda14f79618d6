"""Large files that are interrupted: killed at any moment, and gone on with by the next run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import (
    IN_PARTS,
    LEAST_PART,
    PIECE,
    Killed,
    Witness,
    aborted,
    assert_all_is_there,
    killed,
    no_list,
    puts_of_parts,
    recorded,
    rewritten,
    run_broken_off,
    s3_job,
    shrunk,
    stall,
    touched,
    upload_of,
    vanished,
)
from testing.place import (
    BOTH_MODES,
    BUCKET,
    KIB,
    MIB,
    PART,
    Place,
    children_of,
    nothing,
    wait_until,
)
from testing.server import S3Server
from testing.store import StoredObject, StoredUpload


def is_large(stored: StoredObject) -> bool:
    return len(stored.parts) > 1


def kill_group(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


FIRST_STEPS = ("HeadBucket",)
LARGE_STEPS = ("CreateMultipartUpload", "ListParts")
LAST_STEPS = ("UploadPart", "CompleteMultipartUpload")


def count_of(server: S3Server, operations: tuple[str, ...]) -> int:
    return sum(map(server.count, operations))


def other_mode(place: Place) -> None:
    (place.root / "large").chmod(0o600)


def grown(place: Place) -> None:
    path = place.root / "large"
    path.write_bytes(path.read_bytes() + os.urandom(PIECE))


def other_inode(place: Place) -> None:
    path = place.root / "large"
    copy = place.file("copy", os.urandom(path.stat().st_size))
    os.replace(copy, path)


def restored(place: Place) -> None:
    """The same bytes and time in another inode, as from a backup."""
    path = place.root / "large"
    os.replace(place.file("copy", path.read_bytes()), path)


def linked(place: Place) -> None:
    os.link(place.root / "large", place.path / "snapshot")


def two_parts_rewritten(place: Place) -> None:
    """All but the part that the store has."""
    path = place.root / "large"
    kept, body = place.rows("SELECT number FROM Part")[0]["number"], bytearray(path.read_bytes())
    for number in {1, 2, 3} - {kept}:
        body[(number - 1) * PIECE] ^= 1
    path.write_bytes(body)


def part_overwritten(place: Place) -> None:
    parts, number = upload_of(place).parts, place.rows("SELECT number FROM Part")[0]["number"]
    body = os.urandom(parts[number].size)
    etag, sha256 = hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest()
    parts[number] = dataclasses.replace(parts[number], body=body, etag=etag, sha256=sha256)


def part_lost(place: Place) -> None:
    del upload_of(place).parts[place.rows("SELECT number FROM Part")[0]["number"]]


def aborted_beside_a_twin(place: Place) -> None:
    """An object that differs by its bytes alone is there."""
    headers, body = upload_of(place).headers, bytes((place.root / "large").stat().st_size)
    digests = hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()
    twin = StoredObject(body, len(body), *digests, headers, time.time())
    vars(place.server.bucket(BUCKET))["objects"]["p/large"] = twin
    aborted(place)


def half_a_list(place: Place) -> None:
    place.server.faults.append(Fault(Action("half_headers"), "ListParts", times=1))


def lists_unknown(place: Place) -> None:
    place.server.not_implemented.add("ListParts")


def no_list_and_aborted(place: Place) -> None:
    no_list(place)
    aborted(place)


def no_head_and_aborted(place: Place) -> None:
    place.server.deny.add("HeadObject")
    aborted(place)


# What is sent then; whether by the upload that was begun; and how often metadata are renewed.
MEANWHILE: list[tuple[Callable[[Place], None], dict[str, Any], int, bool, int]] = [
    (nothing, {}, 2, True, 0),
    (nothing, {"part_size": 2 * PIECE}, 2, False, 0),
    (nothing, {"storage_class": "STANDARD_IA"}, 3, False, 0),
    (touched, {}, 2, True, 1),
    (other_mode, {}, 2, True, 1),
    (grown, {}, 3, True, 1),
    (shrunk, {}, 0, False, 0),
    (other_inode, {}, 3, True, 0),
    (restored, {}, 2, True, 0),
    (linked, {}, 2, True, 0),
    (rewritten, {}, 3, True, 0),
    (two_parts_rewritten, {}, 2, True, 1),
    (part_overwritten, {}, 3, True, 0),
    (part_lost, {}, 3, True, 0),
    (aborted, {}, 3, False, 0),
    (aborted_beside_a_twin, {}, 3, False, 0),
    (no_list, {}, 2, True, 0),
    (half_a_list, {}, 2, True, 0),
    (lists_unknown, {}, 2, True, 0),
    (no_list_and_aborted, {}, 3, False, 0),
    (no_head_and_aborted, {}, 3, False, 0),
]
ODD_LARGE_NAMES: list[str | bytes] = [
    "plus+ &=%41?#'\"<>\\",
    "new\nline \t",
    b"half \xe2\x82 \xff",
    "caf\u00e9 \U0001f600",
    "\x1b[31mred",
]


def worker_of(process: Any) -> int:
    """The one child that is not multiprocessing's own."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(process.pid)}
    (worker,) = [pid for pid, command in commands.items() if "resource_tracker" not in command]
    return worker


class Stopper(pfu.Observer):
    """Stops its run when it is to."""

    def __init__(self, is_to_stop: Callable[[], bool]) -> None:
        self.is_to_stop = is_to_stop
        self.job: pfu.BatchJobModel | None = None

    def progress(self, progress: pfu.Progress) -> None:
        if self.job and self.is_to_stop():
            self.job.stop("enough")


def run_until(place: Place, parts: int, stalled: Fault) -> pfu.Summary:
    """A run that is stopped once so many parts are recorded and the next ones stall."""
    observer = Stopper(lambda: stalled.applied > 0 and recorded(place) == parts)
    observer.job = s3_job(place, observer)
    return observer.job.run()


class TestResume:
    """Crashes and resume."""

    def test_a_worker_that_dies_leaves_no_upload_behind(self, place: Place) -> None:
        for number in range(3):
            place.file(f"large{number}", os.urandom(16 * MIB))
        place.server.faults.append(Fault(Action("slow", seconds=0.3), operation="UploadPart"))
        run = place.start(*PART, "--workers", "2", "--concurrency", "2", "--json")
        wait_until(lambda: len(puts_of_parts(place.server)) > 1)
        os.kill(children_of(run.pid)[0], signal.SIGKILL)
        place.server.faults.clear()
        out, err = run.communicate(timeout=60)
        assert (run.returncode, "died and were replaced" in err) == (0, True), err
        assert json.loads(out)["uploaded"] == 3
        assert place.stored() == place.local()
        assert not any(upload.parts for upload in place.server.uploads(BUCKET).values())

    @BOTH_MODES
    def test_an_interrupted_large_file_is_gone_on_with(self, place: Place, mode: str) -> None:
        place.file("large", os.urandom(30 * MIB))
        slow = Fault(Action("slow", seconds=0.4), operation="UploadPart", times=None)
        place.server.faults.append(slow)
        run = place.start(*PART, "--mode", mode, "--concurrency", "2")
        wait_until(lambda: len(puts_of_parts(place.server)) > 1)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
        assert run.returncode == 4
        place.server.faults.clear()
        before = len(puts_of_parts(place.server))
        assert place.run(*PART, "--mode", mode).code == 0
        assert len(puts_of_parts(place.server)) == 6
        assert 2 <= before < 6
        assert place.stored() == place.local()

    def test_a_resumed_file_is_as_racy_as_it_was(self, place: Place) -> None:
        for _ in range(8):  # a slow machine needs more than one try
            modified = int(time.time()) + 1
            place.file("large", os.urandom(11 * MIB), mtime=modified)
            run_broken_off(place, 1, "--mode", "concurrent")
            if any(row["racy"] for row in place.rows("SELECT racy FROM MultipartUpload")):
                break
        time.sleep(max(0.0, modified + 2.1 - time.time()))
        assert place.run(*PART, "--mode", "concurrent").code == 0
        assert [row["racy"] for row in place.rows()] == [1]

    @BOTH_MODES
    def test_large_files_outlive_kills_at_any_moment(self, place: Place, mode: str) -> None:
        for size in (11 * MIB, 13 * MIB + 1, 16 * MIB):
            place.file(f"large{size}", os.urandom(size))
        place.files(20, 300)
        arguments = ("--mode", mode, "--concurrency", "4", *IN_PARTS)
        place.server.faults.append(Fault(Action("slow", seconds=0.25), "UploadPart"))
        for operation in ("CreateMultipartUpload", "CompleteMultipartUpload"):
            place.server.faults.append(Fault(Action("slow", seconds=0.1), operation))
        generator = random.Random(mode)
        kills = in_the_middle = 0
        for number in range(5):
            operations = LARGE_STEPS if number % 2 else FIRST_STEPS
            seen = count_of(place.server, operations)
            process = place.start(*arguments, leads="session")
            while process.poll() is None and count_of(place.server, operations) == seen:
                time.sleep(0.005)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(generator.random() * 0.4)
            kills += process.poll() is None
            kill_group(process)
            in_the_middle += bool(place.server.uploads(BUCKET))
        place.server.faults.clear()
        run = place.run(*arguments)
        assert (run.code, run.err) == (0, "")
        assert min(kills, in_the_middle) >= 3
        assert_all_is_there(place)
        assert sum(map(is_large, place.server.objects(BUCKET).values())) == 3
        sent = place.server.part_acknowledgements(BUCKET)
        assert len({upload_id for _, upload_id, _ in sent}) == 3
        assert len(sent) == 3 + 3 + 4
        assert sum(sent.values()) - len(sent) <= 4

    @pytest.mark.parametrize(
        "meanwhile, options, sent, goes_on, renewed",
        MEANWHILE,
        ids=[" ".join([case[0].__name__, *case[1]]) for case in MEANWHILE],
    )
    def test_what_happened_since_the_kill_decides(
        self,
        at_hand: Place,
        meanwhile: Callable[[Place], None],
        options: dict[str, Any],
        sent: int,
        goes_on: bool,
        renewed: int,
    ) -> None:
        at_hand.file("large", os.urandom(3 * PIECE - 7))
        before = killed(at_hand, 1)
        first = upload_of(at_hand).upload_id
        meanwhile(at_hand)
        summary = s3_job(at_hand, **options).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
        assert_all_is_there(at_hand)
        new = at_hand.server.part_acknowledgements(BUCKET) - before
        assert sum(new.values()) == sent
        assert {upload_id == first for _, upload_id, _ in new} <= {goes_on}
        assert at_hand.server.count("CopyObject") == renewed
        summary = s3_job(at_hand, **options).run()
        assert (summary.exit_code, summary.unchanged, summary.requests) == (0, 1, 0)

    def test_a_file_that_vanished_since_the_kill_leaves_nothing(self, at_hand: Place) -> None:
        at_hand.file("small")
        assert s3_job(at_hand).run().uploaded == 1
        at_hand.file("large", os.urandom(3 * PIECE))
        killed(at_hand, 2)
        vanished(at_hand)
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.seen, summary.unchanged) == (0, 1, 1)
        assert at_hand.server.count("AbortMultipartUpload") == 1
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize(
        "stored, changes, codes",
        [
            ([0, 0, 0], False, [4, 4, 1]),
            ([1, 1, 1, 1, 2], False, [4, 4, 4, 1, 4]),  # the first of them was a headway
            ([2, 2, 2, 2], True, [4, 4, 4, 1]),  # of other bytes each time
            ([1, 2, 3, 4], False, [4, 4, 4, 4]),
        ],
    )
    def test_no_headway_in_three_runs_is_a_failure(
        self,
        at_hand: Place,
        monkeypatch: pytest.MonkeyPatch,
        stored: list[int],
        changes: bool,
        codes: list[int],
    ) -> None:
        monkeypatch.setattr(pfu, "STOP_SECONDS", 0.1)
        at_hand.file("large", os.urandom(6 * PIECE))
        for parts, code in zip(stored, codes):
            if changes:
                at_hand.file("large", os.urandom(6 * PIECE))
            before = recorded(at_hand) if at_hand.server.uploads(BUCKET) and not changes else 0
            at_hand.server.faults[:] = [stalled := stall(parts - before)]
            summary = run_until(at_hand, parts, stalled)
            assert (summary.exit_code, recorded(at_hand)) == (code, parts), summary
            told = [failure["reason"] for failure in summary.failures]
            assert [re.sub("[0-9.]+ [KM]?i?B", "N", text)[:48] for text in told] == (
                ["upload: no progress in 3 runs: N of N are stored"] * (code == 1)
            )
        at_hand.server.faults.clear()
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1)
        assert_all_is_there(at_hand)

    def test_what_is_complete_is_not_sent_again(self, at_hand: Place) -> None:
        at_hand.file("large", os.urandom(3 * PIECE))
        at_hand.server.faults.append(stall(0, "CompleteMultipartUpload"))
        with pytest.raises(Killed):
            s3_job(at_hand, Witness(lambda: bool(at_hand.server.objects(BUCKET)))).run()
        for name in ("uploaded", "unchanged"):
            summary = s3_job(at_hand).run()
            assert (summary.exit_code, getattr(summary, name)) == (0, 1)
        assert set(at_hand.server.part_acknowledgements(BUCKET).values()) == {1}
        assert at_hand.server.count("CreateMultipartUpload") == 1
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize("name", ODD_LARGE_NAMES)
    def test_a_large_file_of_any_name_is_gone_on_with(
        self, at_hand: Place, name: str | bytes
    ) -> None:
        at_hand.file(name, os.urandom(2 * PIECE))
        before = killed(at_hand, 1)
        (upload,) = at_hand.server.uploads(BUCKET).values()
        others = [StoredUpload(key[-1], key, {}, time.time()) for key in (f"{upload.key}.", "p/x")]
        bucket = at_hand.server.bucket(BUCKET)
        assert bucket
        bucket.uploads.update((other.upload_id, other) for other in others)
        assert s3_job(at_hand).run().exit_code == 0
        assert sum((at_hand.server.part_acknowledgements(BUCKET) - before).values()) == 1
        assert set(at_hand.server.uploads(BUCKET)) == {".", "x"}  # another host's
        bucket.uploads.clear()
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize("cleans_up", [False, True])
    def test_a_row_without_an_id_in_an_older_ledger_is_dropped(
        self, at_hand: Place, cleans_up: bool
    ) -> None:
        at_hand.file("large", os.urandom(2 * PIECE))
        killed(at_hand, 1)
        with contextlib.closing(sqlite3.connect(at_hand.path / "pfu.db")) as db:
            db.execute("UPDATE MultipartUpload SET upload_id = NULL")
            db.execute("DELETE FROM Part")
            db.execute("PRAGMA user_version = 5")
            db.commit()
        if cleans_up:
            for arguments in (["--dry-run"], []):
                run = at_hand.run("--cleanup", *arguments, to=None)
                assert (run.code, run.err, run.out[:20]) == (0, "", "0 unfinished uploads")
        at_hand.server.bucket(BUCKET).uploads.clear()  # type: ignore[union-attr]
        assert s3_job(at_hand).run().exit_code == 0
        assert at_hand.server.count("AbortMultipartUpload") == 0
        assert at_hand.rows("SELECT * FROM MultipartUpload") == []
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize(
        "operation, first_class, change, again",
        [
            ("CreateMultipartUpload", None, nothing, 3),
            ("CreateMultipartUpload", "STANDARD_IA", nothing, 3),
            ("CompleteMultipartUpload", None, nothing, 0),
            ("CompleteMultipartUpload", "", touched, 0),
            ("CopyObject", "", touched, 0),
        ],
        ids=["begun", "begun anew", "completed", "changed and completed", "renewed"],
    )
    def test_killed_before_the_answer_is_read(
        self,
        at_hand: Place,
        operation: str,
        first_class: str | None,
        change: Callable[[Place], None],
        again: int,
    ) -> None:
        """``first_class``: the storage class of the upload that a first run has begun."""
        at_hand.file("large", os.urandom(11 * MIB))
        if first_class is not None:
            killed(at_hand, 1, part_size=LEAST_PART, storage_class=first_class)
        change(at_hand)
        running: list[Any] = []
        kill = Action("call", function=lambda: os.killpg(running[0].pid, signal.SIGKILL))
        at_hand.server.faults.append(Fault(kill, operation, times=1))
        running.append(at_hand.start("--mode", "concurrent", *IN_PARTS, leads="session"))
        running[0].communicate(timeout=120)
        assert running[0].returncode == -signal.SIGKILL
        sent = at_hand.server.acknowledged("UploadPart")
        assert s3_job(at_hand, part_size=LEAST_PART).run().exit_code == 0
        assert at_hand.server.acknowledged("UploadPart") - sent == again
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize(
        "first_class, meanwhile, operations",
        [
            (None, nothing, [*LARGE_STEPS[:1], *LAST_STEPS]),
            ("STANDARD_IA", nothing, [*LARGE_STEPS[:1], *LAST_STEPS]),
            ("", touched, [*LAST_STEPS, "CopyObject"]),
        ],
        ids=["begun", "begun anew", "touched"],
    )
    def test_workers_that_die_under_way_leave_nothing(
        self,
        at_hand: Place,
        first_class: str | None,
        meanwhile: Callable[[Place], None],
        operations: list[str],
    ) -> None:
        at_hand.file("large", os.urandom(11 * MIB))
        if first_class is not None:
            killed(at_hand, 1, part_size=LEAST_PART, storage_class=first_class)
        meanwhile(at_hand)
        running: list[Any] = []
        kill = Action("call", function=lambda: os.kill(worker_of(running[0]), signal.SIGKILL))
        at_hand.server.faults += [Fault(kill, operation, times=1) for operation in operations]
        running.append(at_hand.start("--workers", "1", "--concurrency", "2", *IN_PARTS))
        out, err = running[0].communicate(timeout=120)
        assert [fault.applied for fault in at_hand.server.faults] == [1, 1, 1]
        assert err == "pfu: 3 worker process(es) died and were replaced\n"
        assert (running[0].returncode, json.loads(out)["uploaded"]) == (0, 1)
        assert_all_is_there(at_hand)

    def test_more_parts_than_one_list_holds(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "MIN_PART_SIZE", KIB)
        at_hand.server._store.min_part_size = KIB
        at_hand.file("large", os.urandom(1100 * KIB))
        before = killed(at_hand, 1050, part_size=KIB)
        witness = Witness()
        assert s3_job(at_hand, witness, part_size=KIB).run().exit_code == 0
        assert_all_is_there(at_hand)
        new = at_hand.server.part_acknowledgements(BUCKET) - before
        assert 0 < sum(new.values()) <= 50
        assert at_hand.server.count("ListParts") == 2
        assert witness.sizes_to_upload[-1] == sum(new.values()) * KIB
