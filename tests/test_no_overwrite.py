"""--no-overwrite: what the store has already is left as it is."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import time
from typing import Any

import pytest

from testing.faults import Action, Fault
from testing.place import BOTH_MODES, IS_SAFE_LANE, MIB, PART, Place, assert_accounts
from testing.store import StoredObject

BUCKET = "bkt"
EVERY_WAY = pytest.mark.parametrize(
    "mode, lane", [(m, lane) for m in ("concurrent", "parallel") for lane in ("fast", "safe")]
)
KEEP = "--no-overwrite"
THERE = "in the store already"


def by_lane(place: Place, lane: str) -> None:
    place.changes = "capture_template = lambda *a: GateClosed('a test')" * (lane == "safe")


def theirs(place: Place, *names: str) -> None:
    """Somebody else has stored objects of these names."""
    kept = {name: (place.root / name).read_bytes() for name in names}
    for name in names:
        (place.root / name).write_bytes(b"theirs")
    (place.path / "theirs").write_text("\n".join(names))
    assert place.run("--files-from", "theirs", "--db", "theirs.db").code == 0
    for name, content in kept.items():
        place.file(name, content)


class TestKeeps:
    """Objects that are there."""

    @EVERY_WAY
    def test_what_is_there_is_kept(self, place: Place, mode: str, lane: str) -> None:
        by_lane(place, lane)
        place.files(40)
        place.file("large", os.urandom(11 * MIB))
        place.file("other-large", os.urandom(6 * MIB))
        names = sorted(place.local())
        theirs(place, *names[:20], "large")
        run = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 21), run.err
        assert run.json["skipped_by_reason"] == {THERE: 21}
        assert_accounts(run.json)
        stored, local = place.stored(), place.local()
        spared = {*names[:20], "large"}
        assert {name for name, body in stored.items() if body == b"theirs"} == spared
        assert all(stored[name] == local[name] for name in local.keys() - spared)
        assert not place.server.uploads(BUCKET)

    @EVERY_WAY
    def test_it_is_remembered(self, place: Place, mode: str, lane: str) -> None:
        by_lane(place, lane)
        place.files(10)
        theirs(place, *sorted(place.local())[:4])
        assert place.run(KEEP, "--mode", mode).code == 0
        before = len(place.server.log)
        again = place.run(KEEP, "--mode", mode, "--json")
        assert (again.code, again.json["unchanged"]) == (0, 6), again.err
        assert again.json["skipped_by_reason"] == {THERE: 4}
        assert_accounts(again.json)
        assert len(place.server.log) == before, "no request"
        plain = place.run("--mode", mode, "--json")
        assert (plain.code, plain.json["uploaded"]) == (0, 4)
        assert place.stored() == place.local()

    def test_a_changed_file_is_tried_again_and_kept(self, place: Place) -> None:
        place.file("f", b"one")
        assert place.run(KEEP).code == 0
        place.file("f", b"other")
        run = place.run(KEEP, "--json")
        assert (run.code, run.json["skipped_by_reason"]) == (0, {THERE: 1})
        assert place.stored() == {"f": b"one"}
        assert place.run("--json").json["uploaded"] == 1
        assert place.stored() == {"f": b"other"}

    @EVERY_WAY
    def test_a_lost_ledger_finds_its_own_files(self, place: Place, mode: str, lane: str) -> None:
        by_lane(place, lane)
        place.files(12)
        assert place.run().code == 0
        (place.path / "pfu.db").unlink()
        run = place.run(KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["unchanged"], run.json["skipped"]) == (0, 12, 0), run.err
        assert run.json["bytes_uploaded"] == 0
        plain = place.run("--mode", mode, "--json")
        assert (plain.json["uploaded"], plain.json["unchanged"]) == (0, 12)

    def test_metadata_of_what_is_there_is_kept(self, place: Place) -> None:
        place.file("small", b"s")
        place.file("large", os.urandom(6 * MIB))
        assert place.run(*PART).code == 0
        before = {k: o.headers for k, o in place.server.objects(BUCKET).items()}
        for name in ("small", "large"):
            (place.root / name).chmod(0o600)
        run = place.run(*PART, KEEP, "--json")
        assert run.code == 0, run.err
        assert before == {k: o.headers for k, o in place.server.objects(BUCKET).items()}
        assert_accounts(run.json)

    @pytest.mark.parametrize("mode", ["concurrent", "parallel"])
    def test_an_object_that_comes_while_parts_are_sent(self, place: Place, mode: str) -> None:
        place.file("large", os.urandom(11 * MIB))
        other = hashlib.md5(b"theirs").hexdigest()
        theirs = StoredObject(b"theirs", 6, "", other, {"content-type": "text/plain"}, time.time())
        bucket = place.server.bucket(BUCKET)
        assert bucket
        store = functools.partial(bucket.put, "p/large", theirs)
        place.server.faults.append(Fault(Action("call", function=store), "UploadPart", times=1))
        run = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["skipped_by_reason"]) == (0, {THERE: 1}), run.err
        assert (place.stored(), bucket.uploads) == ({"large": b"theirs"}, {})
        assert_accounts(run.json)

    def test_nothing_spared_is_removed(self, place: Place) -> None:
        place.file("mine", b"m")
        place.file("spared", b"s")
        theirs(place, "spared")
        run = place.run(KEEP, "--remove-source-files", "--json")
        assert (run.code, run.json["removed"]) == (0, 1), run.err
        assert (place.root / "spared").exists() and not (place.root / "mine").exists()

    @BOTH_MODES
    def test_looking_first_does_not_wait_for_the_name_of_the_store(
        self, place: Place, mode: str
    ) -> None:
        """Threads that wait for the fast lane must leave one to look up its address."""
        place.changes = "THREADS = 2"
        place.endpoint = place.endpoint.replace("127.0.0.1", "localhost")
        for number in range(6):
            place.file(f"large{number}", os.urandom(6 * MIB))
        run = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 6), run.err


class TestLostAnswers:
    """A 412 may be about one's own object."""

    @EVERY_WAY
    @pytest.mark.parametrize("kind", ["lost_ack", "half_headers"])
    def test_an_object_whose_answer_was_lost_is_ones_own(
        self, place: Place, mode: str, lane: str, kind: str
    ) -> None:
        by_lane(place, lane)
        place.files(30)
        place.file("large", os.urandom(6 * MIB))
        for operation in ("PutObject", "CompleteMultipartUpload"):
            place.server.faults.append(Fault(Action(kind), operation, times=5))
        run = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 31, 0), run.err
        assert place.stored() == place.local()
        objects = place.server.objects(BUCKET)
        for row in place.rows():
            stored = objects[row["object_key"]]
            assert row["status"] == 2 and row["etag"] == stored.etag.strip('"')
            assert row["sha256"] == stored.digest(row["part_size"])


class TestStops:
    """Killed once the store has done something, and before pfu hears of it."""

    @EVERY_WAY
    @pytest.mark.parametrize(
        ("operation", "after"),
        [
            ("PutObject", 1),
            ("PutObject", 10),
            ("CreateMultipartUpload", 0),
            ("UploadPart", 1),
            ("CompleteMultipartUpload", 0),
        ],
    )
    def test_killed_amid_it(
        self, place: Place, mode: str, lane: str, operation: str, after: int
    ) -> None:
        by_lane(place, lane)
        place.files(24)
        for name in ("large", "other-large"):
            place.file(name, os.urandom(6 * MIB))
        spared = {*sorted(place.local())[:8], "other-large"}
        theirs(place, *spared)
        started: list[Any] = []
        kill = Action("call", function=lambda: os.killpg(started[0].pid, signal.SIGKILL))
        fault = Fault(kill, operation, after=after, times=1)
        place.server.faults.append(fault)
        started.append(place.start(*PART, KEEP, "--mode", mode, leads="session"))
        started[0].communicate(timeout=60)
        assert started[0].returncode == -signal.SIGKILL and fault.applied == 1
        run = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (run.code, run.json["skipped_by_reason"]) == (0, {THERE: 9}), run.err
        assert_accounts(run.json)
        stored, local = place.stored(), place.local()
        assert {name for name, body in stored.items() if body == b"theirs"} == spared
        assert all(stored[name] == local[name] for name in local.keys() - spared)
        assert not any(upload.parts for upload in place.server.uploads(BUCKET).values())
        again = place.run(*PART, KEEP, "--mode", mode, "--json")
        assert (again.code, again.json["unchanged"], again.json["skipped"]) == (0, 17, 9)


class TestStores:
    """Stores that do not heed the condition."""

    @EVERY_WAY
    def test_a_store_that_ignores_it_is_found_out(self, place: Place, mode: str, lane: str) -> None:
        by_lane(place, lane)
        place.files(20)
        theirs(place, *sorted(place.local())[:10])
        before = place.stored()
        place.server._store._check_condition = lambda *_: None  # type: ignore[method-assign]
        run = place.run(KEEP, "--mode", mode)
        assert run.code in (1, 2) and "the store ignores If-None-Match" in run.err, run.err
        after = place.stored()
        assert all(after[name] == body for name, body in before.items())
        assert len(after) <= len(before) + 4

    @EVERY_WAY
    def test_a_store_that_refuses_it_is_found_out(self, place: Place, mode: str, lane: str) -> None:
        by_lane(place, lane)
        place.files(20)
        place.server.faults.append(Fault(Action("error", 501, "NotImplemented"), "PutObject"))
        run = place.run(KEEP, "--mode", mode)
        assert run.code in (1, 2) and "the store refuses If-None-Match" in run.err, run.err
        assert place.server.count("PutObject") < 20

    def test_without_the_permission_to_look(self, place: Place) -> None:
        """PutObject is permission enough."""
        place.files(20)
        theirs(place, *sorted(place.local())[:10])
        place.server.deny.add("HeadObject")
        run = place.run(KEEP, "--json")
        assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 10, 10), run.err

    def test_both_lanes_state_the_condition(self, place: Place) -> None:
        place.files(60)
        assert place.run(KEEP, "--mode", "concurrent").code == 0
        puts = [r for r in place.server.log if r.operation == "PutObject"]
        assert {r.headers.get("if-none-match") for r in puts} == {"*"}
        assert {IS_SAFE_LANE in r.headers for r in puts} == {True, False}
