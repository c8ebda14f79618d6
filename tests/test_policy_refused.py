"""The same word again and again is about the run (FAILURES.md, sections 1 and 3)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from collections import Counter
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import WANTS_MD5, AsksForMd5, s3_job
from testing.place import (
    BOTH_MODES,
    Place,
    Started,
    assert_accounts,
    children_of,
    rewrite_in_place,
)

REFUSALS = [
    Action("error", 400, "InvalidStorageClass", "no such class"),
    Action("error", 507, "InsufficientStorage", "full"),
    Action("error", 400, "Mystery", "quota"),
    Action("error", 403, "AccessDenied", "no"),
]


class TestRow:
    """Twenty refusals, five others: pure."""

    def ids(self, directory: int, count: int) -> list[str]:
        return [f"{directory:012x}{number:020x}" for number in range(count)]

    def test_twenty_in_a_row_call_for_others(self) -> None:
        row = pfu.RefusedRow()
        for file_id in self.ids(1, pfu.ROW):
            assert not row.is_full
            row.refused(file_id, "no")
        assert (row.is_full, row.is_lost, row.room) == (True, False, pfu.OTHERS)
        row.try_others(others := [self.ids(n, 1)[0] for n in range(2, 2 + pfu.OTHERS)])
        for file_id in others:
            assert not row.is_lost
            row.refused(file_id, "no")
        assert row.is_lost

    def test_anything_taken_ends_the_row(self) -> None:
        row = pfu.RefusedRow()
        for _ in range(10):
            for file_id in self.ids(1, pfu.ROW - 1):
                row.refused(file_id, "no")
            row.taken()
        assert not row.is_full

    def test_no_others_is_the_end(self) -> None:
        row = pfu.RefusedRow()
        for file_id in self.ids(1, pfu.ROW):
            row.refused(file_id, "no")
        row.try_others([])
        assert row.is_lost

    def test_those_whose_worker_died_are_not_on_trial(self) -> None:
        row = pfu.RefusedRow()
        for file_id in self.ids(1, pfu.ROW):
            row.refused(file_id, "no")
        row.try_others(others := [self.ids(n, 1)[0] for n in (2, 3, 4)])
        row.lost([others[1], *self.ids(1, 5)])
        assert (row.on_trial, row.room) == ({others[0], others[2]}, pfu.OTHERS - 2)

    def test_one_file_is_one_refusal(self) -> None:
        row = pfu.RefusedRow()
        for _ in range(100):
            row.refused(self.ids(1, 1)[0], "no")
        assert len(row) == 1


class TestRuns:
    """Runs that are refused, and runs of which a part is."""

    @BOTH_MODES
    @pytest.mark.parametrize("action", REFUSALS, ids=lambda action: action.code)
    def test_a_store_that_refuses_all_costs_some_dozens(
        self, place: Place, mode: str, action: Action
    ) -> None:
        place.files(450)
        place.server.faults.append(Fault(action, "PutObject"))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (1, 0), run.err
        assert pfu.ROW <= run.json["failed"] < 200
        assert run.json["pending"] == 450 - run.json["failed"]
        met = Counter(r.key for r in place.server.log if r.operation == "PutObject")
        assert max(met.values()) <= 3
        assert sum(met.values()) <= 2 * run.json["failed"] + 4
        assert action.code in run.json["error"]
        assert "in a row" in run.json["error"]
        assert len(run.err.splitlines()) <= 5, run.err
        assert_accounts(run.json)
        place.server.faults.clear()
        assert place.run("--mode", mode, "--json").json["uploaded"] == 450
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_a_store_that_is_full_keeps_what_it_took(self, place: Place, mode: str) -> None:
        place.files(300)
        place.server.faults.append(Fault(REFUSALS[1], "PutObject", after=100))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (1, 100), run.err
        assert place.check_ledger_is_honest() == 100

    @BOTH_MODES
    def test_a_forbidden_directory_stops_nothing(self, place: Place, mode: str) -> None:
        for number in range(150):
            place.file(f"forbidden/f{number:03}", b"x")  # smallest first
        place.files(200, 600)
        place.server.faults.append(Fault(REFUSALS[3], "PutObject", "/forbidden/"))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (1, 200, 150), run.err
        told = [line for line in run.err.splitlines() if "failed: " in line]
        assert 2 <= len(told) <= 4, told

    @BOTH_MODES
    def test_others_that_are_slow_to_come_back_are_waited_for(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        """All files are with the workers then, and none is pending in the ledger."""
        monkeypatch.setattr(pfu, "RECALL_SECONDS", 0.0)
        for number in range(60):
            at_hand.file(f"forbidden/f{number:03}", b"x")
        at_hand.files(20, 600)
        at_hand.server.faults += [
            Fault(REFUSALS[3], "PutObject", "/forbidden/"),
            Fault(Action("slow", seconds=1), "PutObject"),
        ]
        summary = s3_job(at_hand, mode=mode, workers=2, concurrency=64).run()
        assert (summary.exit_code, summary.uploaded, summary.failed) == (1, 20, 60)

    @BOTH_MODES
    def test_a_run_ends_if_all_that_is_left_has_been_tried(self, place: Place, mode: str) -> None:
        """Such files wait until others have been tried, and there are no others."""
        place.files(40)
        busy = Fault(Action("error", 503, "ServiceUnavailable"), "PutObject", times=40)
        place.server.faults += [busy, Fault(REFUSALS[3], "PutObject")]
        run = place.run("--mode", mode, "--concurrency", 64, "--json")
        assert (run.code, run.json["uploaded"]) == (1, 0), run.err
        assert "AccessDenied" in run.err

    @BOTH_MODES
    @pytest.mark.parametrize(
        ("size", "count", "most"), [(100, 600, 150 + 10 * 32), (6 << 20, 24, 12 + 10 * 36)]
    )
    def test_a_credentials_error_for_each_write_while_the_bucket_answers(
        self, place: Place, mode: str, size: int, count: int, most: int
    ) -> None:
        """It is a refusal like any other, after ten tries of each request in flight, or left."""
        for number in range(count):
            place.file(f"d{number % 7}/f{number:03}", os.urandom(size))
        for operation in ("PutObject", "UploadPart"):
            expired = Action("error", 403, "ExpiredToken")
            place.server.faults.append(Fault(expired, operation, after=count // 4))
        options = "--part-size", "5M", "--concurrency", 32, "--json"
        run = place.run("--mode", mode, *options)
        assert run.code == 1 and run.json["uploaded"] <= count // 4, run.err
        assert "ExpiredToken" in run.err
        sent = place.server.count("PutObject") + place.server.count("UploadPart")
        assert sent <= most

    def test_workers_that_die_while_others_are_tried(self, place: Place) -> None:
        """Their files are no longer on trial: others are, or the same ones once more.

        One is taken, so the row of refusals starts anew; then there are no others.
        """
        for number in range(200):
            place.file(f"forbidden/f{number:03}", b"x")
        place.file("d/f", b"taken, had the worker lived")
        run: list[Started] = []

        def kill() -> None:
            for child in children_of(run[0].pid):
                os.kill(child, signal.SIGKILL)

        place.server.faults += [
            Fault(REFUSALS[3], "PutObject", "/forbidden/"),
            Fault(Action("call", function=kill), "PutObject", "/d/", times=1),
        ]
        run.append(place.start("--mode", "parallel", "--concurrency", 32, "--json"))
        out, err = run[0].communicate(timeout=60)
        summary = json.loads(out)
        assert (run[0].wait(), summary["uploaded"]) == (1, 1), err
        assert 2 * pfu.ROW <= summary["failed"] == 200 - summary["pending"], err

    def test_large_files_that_are_refused(self, place: Place) -> None:
        for number in range(40):
            place.file(f"d{number % 8}/f{number}", os.urandom(6 << 20 if number < 2 else 5 << 20))
        place.server.faults.append(Fault(REFUSALS[0], "CreateMultipartUpload"))
        place.server.faults.append(Fault(REFUSALS[0], "PutObject"))
        run = place.run("--mode", "concurrent", "--part-size", "5M", "--json")
        assert (run.code, run.json["uploaded"]) == (1, 0), run.err
        assert place.server.count("CreateMultipartUpload") <= 3

    def test_one_file_that_is_refused_is_a_failure(self, place: Place) -> None:
        place.file("f")
        place.server.faults.append(Fault(REFUSALS[3], "PutObject"))
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["failed"]) == (1, 1)
        assert place.server.count("PutObject") == 2  # for its words

    @BOTH_MODES
    def test_a_word_about_credentials_that_meets_one_key_is_about_that_key(
        self, place: Place, mode: str
    ) -> None:
        place.files(80)
        refused = Action("error", 403, "SignatureDoesNotMatch", "?")
        place.server.faults.append(Fault(refused, "PutObject", "f00033"))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (1, 79, 1), run.err
        assert "Host header" in run.err

    @BOTH_MODES
    @pytest.mark.parametrize(
        "code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed"]
    )
    def test_one_node_that_is_wrong_costs_no_file(self, place: Place, mode: str, code: str) -> None:
        place.files(200)
        date = {"date": "Fri, 27 Nov 2020 20:00:00 GMT"}
        action = Action("error", 403, code, "?", headers=date)
        place.server.faults.append(Fault(action, "PutObject", probability=0.25))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["notes"]) == (0, 200, []), run.err

    @BOTH_MODES
    def test_credentials_that_end_stop_the_run(self, place: Place, mode: str) -> None:
        place.files(1500)
        place.server.faults.append(Fault(Action("error", 403, "ExpiredToken"), after=150))
        run = place.run("--mode", mode, "--concurrency", 32, "--json")
        assert run.code == (1 if run.json["uploaded"] else 2), run.err
        assert (run.json["failed"], "ExpiredToken" in run.json["error"]) == (0, True)
        # What was in flight by either lane, and what a slow machine takes until it is sure.
        assert place.server.count("PutObject") < 150 + 10 * 32

    @BOTH_MODES
    def test_credentials_that_end_amid_a_large_file_stop_the_run(
        self, place: Place, mode: str
    ) -> None:
        """Though the parts that wait behind the one that met it are not done with."""
        place.file("large", os.urandom(20 << 20))
        place.server.faults.append(Fault(Action("error", 403, "ExpiredToken"), after=5))
        run = place.start("--mode", mode, "--part-size", "5M", "--concurrency", "1", "--json")
        out, err = run.communicate(timeout=60)
        assert (run.returncode, "ExpiredToken" in err) == (2, True), err
        assert json.loads(out)["pending"] == 1


@BOTH_MODES
def test_content_md5_is_sent_once_a_store_asks_for_it(place: Place, mode: str) -> None:
    place.files(100)
    place.file("large", os.urandom(11 << 20))
    place.server.faults += AsksForMd5(WANTS_MD5, "PutObject"), AsksForMd5(WANTS_MD5, "UploadPart")
    run = place.run("--mode", mode, "--part-size", "5M", "--json")
    assert (run.code, run.json["uploaded"], run.json["notes"]) == (0, 101, []), run.err
    assert place.stored() == place.local()


class TestOrder:
    """What is new or changed goes first, then what is looked at again, then old failures."""

    def test_the_order_of_a_run(self, place: Place) -> None:
        place.file("old/failure", b"x")
        suspect = place.file("suspect", b"xy")
        place.server.faults.append(Fault(REFUSALS[3], "PutObject", "/old/"))
        assert place.run("--mode", "concurrent").code == 1
        place.file("new", b"larger than all the others")
        rewrite_in_place(suspect)
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute("UPDATE FileStat SET racy=1, sha256='0' WHERE object_key='p/suspect'")
        place.server.clear_log()
        run = place.run("--mode", "concurrent", "--concurrency", "1", "--json")
        assert run.code == 1
        keys = [r.key for r in place.server.log if r.operation == "PutObject"]
        assert list(dict.fromkeys(keys)) == ["p/new", "p/suspect", "p/old/failure"]

    def test_an_old_failure_whose_turn_did_not_come_is_one_still(self, place: Place) -> None:
        place.file("old/failure", b"x")
        place.server.faults.append(Fault(REFUSALS[3], "PutObject", "/old/"))
        assert place.run("--mode", "concurrent").code == 1
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute("UPDATE FileStat SET status=0")
        place.file("new", b"larger")
        place.server.clear_log()
        place.run("--mode", "concurrent", "--concurrency", "1")
        keys: list[Any] = [r.key for r in place.server.log if r.operation == "PutObject"]
        assert keys[0] == "p/new"
