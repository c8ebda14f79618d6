"""--cleanup: unfinished uploads of large files are aborted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Callable

import pytest

from testing.faults import Action, Fault
from testing.jobs import (
    IN_PARTS,
    LEAST_PART,
    PIECE,
    killed,
    known_uploads,
    recorded,
    run_broken_off,
    stall,
)
from testing.place import BUCKET, MIB, PART, Place, Run, closed_port, wait_until, without_pauses
from testing.server import S3Server

Unfinished = dict[str, tuple[str, int]]


@pytest.fixture
def unfinished(at_hand: Place) -> Unfinished:
    """Two uploads that a killed run left: key -> upload id, bytes that the ledger knows of."""
    at_hand.file("a", os.urandom(2 * PIECE))
    at_hand.file("b \u20ac", os.urandom(3 * PIECE))
    killed(at_hand, 3, stall(1, key="a$"), stall(2, key="b"))
    at_hand.endpoint = ""
    known = {upload.key: upload_id for upload_id, upload in at_hand.server.uploads(BUCKET).items()}
    return {"p/a": (known["p/a"], PIECE), "p/b \u20ac": (known["p/b \u20ac"], 2 * PIECE)}


def assert_told(run: Run, end: str) -> None:
    assert (run.code, run.err) == (0, "")
    *lines, last = run.out.splitlines()
    assert sorted(lines) == ["p/a of s3://bkt/p  512.0 KiB", "p/b \u20ac of s3://bkt/p  1.0 MiB"]
    assert last == end


def unreachable(place: Place) -> None:
    place.server.stop()


def one_refused(place: Place) -> None:
    denied = Action("error", 403, "AccessDenied")
    place.server.faults.append(Fault(denied, "AbortMultipartUpload", "a$"))


class TestCleanup:
    """--cleanup."""

    def test_cleanup_gives_up_what_the_ledger_began(self, place: Place) -> None:
        for number in range(2):
            place.file(f"large{number}", os.urandom(11 * MIB + number))
        gone = Fault(Action("error", 403, "AccessDenied"), operation="CompleteMultipartUpload")
        gone.times = None
        place.server.faults.append(gone)
        assert place.run(*PART, "--mode", "concurrent").code in (1, 2)
        planned = place.run("--cleanup", "--dry-run", to=None)
        assert planned.code == 0
        assert "2 unfinished uploads would be aborted, 22.0 MiB" in planned.out
        assert len(place.server.uploads(BUCKET)) == 2
        place.server.deny.add("AbortMultipartUpload")
        refused = place.run("--cleanup", to=None)
        assert (refused.code, len(refused.err.splitlines())) == (1, 2)
        place.server.deny.clear()
        done = place.run("--cleanup", "--json", to=None)
        assert (done.code, done.json["aborted"], done.json["problems"]) == (0, 2, [])
        assert not place.server.uploads(BUCKET)
        assert "0 unfinished uploads aborted" in place.run("--cleanup", to=None).out

    @pytest.mark.parametrize(
        "kind, change, uploaded, begun, renewed",
        [
            ("call", os.utime, 1, 1, 1),
            ("call", Path.unlink, 0, 1, 0),
        ],
        ids=["touched", "vanished"],
    )
    def test_what_an_unlucky_begin_leaves_is_given_up(
        self,
        place: Place,
        kind: str,
        change: Callable[[Path], Any],
        uploaded: int,
        begun: int,
        renewed: int,
    ) -> None:
        """Or gone on with, where that may be."""
        path = place.file("large", os.urandom(11 * MIB))
        action = Action(kind, function=lambda: change(path))
        place.server.faults.append(Fault(action, operation="CreateMultipartUpload", times=1))
        run = place.run(*PART, "--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"]) == (0, uploaded), run.err
        assert place.server.count("CreateMultipartUpload") == begun
        assert place.server.count("CopyObject") == renewed
        assert place.server.acknowledged("UploadPart") == 3 * uploaded
        assert not place.server.uploads(BUCKET)

    def test_cleanup_leaves_what_was_begun_elsewhere(self, place: Place) -> None:
        place.file("large", os.urandom(11 * MIB))
        run_broken_off(place, 1, "--mode", "concurrent")
        with S3Server() as other:
            place.endpoint = other.endpoint
            run = place.run("--cleanup", to=None)
        assert (run.code, "another endpoint is configured" in run.err) == (1, True)
        assert len(place.rows("SELECT * FROM MultipartUpload")) == 1

    def test_cleanup_needs_a_ledger(self, place: Place) -> None:
        run = place.run("--cleanup", to=None)
        assert (run.code, "it does not exist" in run.err) == (2, True)

    def test_cleanup_aborts_what_a_killed_run_left(
        self, at_hand: Place, unfinished: Unfinished
    ) -> None:
        ids = {upload_id for upload_id, _ in unfinished.values()}
        planned = at_hand.run("--cleanup", "--dry-run", to=None)
        assert_told(planned, "2 unfinished uploads would be aborted, 1.5 MiB")
        assert set(at_hand.server.uploads(BUCKET)) == known_uploads(at_hand) == ids
        assert_told(at_hand.run("--cleanup", to=None), "2 unfinished uploads aborted, 1.5 MiB")
        assert not at_hand.server.uploads(BUCKET)
        assert not known_uploads(at_hand)
        assert recorded(at_hand) == 0
        requests = at_hand.server.count()
        again = at_hand.run("--cleanup", to=None)
        assert (again.code, again.out) == (0, "0 unfinished uploads aborted, 0 B\n")
        assert at_hand.server.count() == requests

    def test_cleanup_is_quiet_if_asked(self, at_hand: Place, unfinished: Unfinished) -> None:
        log = at_hand.path / "log"
        run = at_hand.run("--cleanup", "--quiet", "--log-file", log, to=None)
        assert (run.code, run.out, run.err) == (0, "", "")
        assert "2 unfinished uploads aborted" in log.read_text()

    def test_cleanup_of_the_default_bucket_names_its_owner(self, place: Place) -> None:
        place.file("large", os.urandom(LEAST_PART + 1))
        place.server.faults.append(stall(1))
        process = place.start("--mode", "concurrent", *IN_PARTS, to="")
        wait_until(lambda: place.server.acknowledged("UploadPart") == 1)
        process.kill()
        process.wait()
        place.server.faults.clear()
        assert place.run("--cleanup", to=None).code == 0
        owners = {
            request.headers.get("x-amz-expected-bucket-owner")
            for request in place.server.log
            if request.operation == "AbortMultipartUpload"
        }
        assert owners == {"123456789012"}

    def test_cleanup_in_json(self, at_hand: Place, unfinished: Unfinished) -> None:
        run = at_hand.run("--cleanup", "--json", to=None)
        assert (run.code, run.err, run.out.count("\n")) == (0, "", 1)
        assert (run.json["aborted"], run.json["bytes"], run.json["problems"]) == (2, 3 * PIECE, [])
        rows = {row["key"]: (row["upload_id"], row["bytes"]) for row in run.json["uploads"]}
        assert rows == unfinished
        assert {row["destination"] for row in run.json["uploads"]} == {f"s3://{BUCKET}/p"}
        assert not at_hand.server.uploads(BUCKET)

    @pytest.mark.parametrize(
        "trouble, says, left",
        [
            (unreachable, "Could not connect to the endpoint URL", 2),
            (closed_port, "but another endpoint is configured", 2),
            (one_refused, "AccessDenied", 1),
        ],
    )
    def test_cleanup_forgets_nothing_that_it_could_not_abort(
        self,
        at_hand: Place,
        unfinished: Unfinished,
        trouble: Callable[[Place], None],
        says: str,
        left: int,
    ) -> None:
        without_pauses(at_hand)
        trouble(at_hand)
        run = at_hand.run("--cleanup", to=None)
        assert (run.code, run.err.count("\n")) == (1, left)
        assert all(line.startswith("pfu: ") and says in line for line in run.err.splitlines())
        assert len(known_uploads(at_hand)) == len(at_hand.server.uploads(BUCKET)) == left
        assert recorded(at_hand) == (3 if left == 2 else 1)
        assert f"{2 - left} unfinished upload" in run.out

    def test_cleanup_after_a_sandbox_that_is_no_more(
        self, at_hand: Place, unfinished: Unfinished
    ) -> None:
        with contextlib.closing(sqlite3.connect(at_hand.path / "pfu.db")) as db, db:
            db.execute("UPDATE MultipartUpload SET endpoint = 'sandbox' WHERE object_key = 'p/a'")
        run = at_hand.run("--cleanup", to=None)
        assert (run.code, run.err) == (0, "")
        assert [upload.key for upload in at_hand.server.uploads(BUCKET).values()] == ["p/a"]
        assert not known_uploads(at_hand)

    def test_cleanup_without_a_ledger_makes_none(self, place: Place) -> None:
        run = place.run("--cleanup", to=None)
        assert (run.code, run.err) == (
            2,
            "pfu: read ledger pfu.db: it does not exist (specify one with --db)\n",
        )
        assert not list(place.path.glob("pfu.db*"))
