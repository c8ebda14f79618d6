"""Object Lock: --object-lock-mode, --retain, --legal-hold."""

from __future__ import annotations

import os
import time

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import IS_SAFE_LANE, MIB, PART, Place
from testing.store import StoredBucket, StoredObject

BUCKET = "bkt"
BOTH_MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
BOTH_LANES = pytest.mark.parametrize("lane", ["fast", "safe"])
LOCK = ("--object-lock-mode", "GOVERNANCE", "--retain", "30d")


@pytest.fixture
def locked(place: Place) -> Place:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    bucket.object_lock = True
    place.file("small", b"s")
    place.file("large", os.urandom(11 * MIB))
    return place


def locks(place: Place) -> dict[str, tuple[str | None, ...]]:
    names = ("mode", "retain-until-date", "legal-hold")
    return {
        key: tuple(stored.headers.get(f"x-amz-object-lock-{name}") for name in names)
        for key, stored in place.server.objects(BUCKET).items()
    }


class TestLocks:
    """Every object is locked, by either lane."""

    @BOTH_MODES
    @BOTH_LANES
    def test_every_object(self, locked: Place, mode: str, lane: str) -> None:
        locked.changes = "capture_template = lambda *a: GateClosed('a test')" * (lane == "safe")
        before = time.time()
        run = locked.run(*PART, *LOCK, "--mode", mode, "--json")
        assert (run.code, run.json["notes"]) == (0, []), run.err
        told = locks(locked)
        assert {mode for mode, _, hold in told.values()} == {"GOVERNANCE"}
        for _, until, hold in told.values():
            assert until and hold is None
            at = pfu.parse_retention(until).until
            assert before + 30 * 86400 - 2 <= at <= time.time() + 30 * 86400
        puts = [r for r in locked.server.log if r.operation == "PutObject" and r.acknowledged]
        assert {IS_SAFE_LANE in put.headers for put in puts} == {lane == "safe"}

    @pytest.mark.parametrize(
        "options, lock",
        [
            (
                "--object-lock-mode COMPLIANCE --retain 2999-01-31",
                ("COMPLIANCE", "2999-01-31T00:00:00Z", None),
            ),
            (
                "--object-lock-mode COMPLIANCE --retain 2999-01-31T12:30:00Z --legal-hold",
                ("COMPLIANCE", "2999-01-31T12:30:00Z", "ON"),
            ),
            ("--legal-hold", (None, None, "ON")),
        ],
    )
    def test_what_can_be_asked_for(
        self, locked: Place, options: str, lock: tuple[str | None, ...]
    ) -> None:
        run = locked.run(*PART, *options.split())
        assert run.code == 0, run.err
        assert set(locks(locked).values()) == {lock}

    def test_a_new_version_for_new_metadata_is_locked_too(self, locked: Place) -> None:
        assert locked.run(*PART).code == 0
        for name in ("small", "large"):
            (locked.root / name).chmod(0o600)
        run = locked.run(*PART, *LOCK, "--json")
        assert (run.code, run.json["renewed"]) == (0, 2), run.err
        assert {mode for mode, *_ in locks(locked).values()} == {"GOVERNANCE"}

    def test_a_large_file_resumes_although_the_date_moves(self, locked: Place) -> None:
        locked.server.faults.append(
            Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=2)
        )
        assert locked.run(*PART, *LOCK, "--concurrency", "1").code == 1
        locked.server.faults.clear()
        time.sleep(1.1)
        before = locked.server.count("UploadPart")
        assert locked.run(*PART, *LOCK).code == 0
        assert locked.server.count("UploadPart") == before + 1

    def test_a_bucket_that_is_created_can_lock(self, locked: Place) -> None:
        run = locked.run(*PART, *LOCK, "--create-bucket", to="s3://newbucket/p")
        assert run.code == 0, run.err
        new = locked.server.bucket("newbucket")
        assert new and new.object_lock

    def test_what_is_removed_is_locked(self, locked: Place) -> None:
        run = locked.run(*PART, *LOCK, "--remove-source-files", "--json")
        assert (run.code, run.json["removed"]) == (0, 2), run.err

    def test_what_is_stored_without_a_lock_is_not_removed(self, locked: Place) -> None:
        assert locked.run(*PART).code == 0
        run = locked.run(*PART, *LOCK, "--remove-source-files", "--json")
        assert (run.code, run.json["removed"]) == (0, 0)
        assert "2 files not removed: the store does not show its lock" in run.json["notes"][0]


class TestRefuses:
    """Nothing is taken for locked that is not."""

    @pytest.mark.parametrize("status, code", [(0, ""), (501, "NotImplemented"), (405, "")])
    def test_a_bucket_without_object_lock(self, place: Place, status: int, code: str) -> None:
        place.file("f")
        if status:
            action = Action("error", status, code)
            place.server.faults.append(Fault(action, "GetObjectLockConfiguration"))
        run = place.run(*LOCK)
        assert run.code == 2 and f"lock objects in {BUCKET}: it has no Object Lock" in run.err
        assert not place.stored()

    @BOTH_MODES
    @pytest.mark.parametrize(
        "wish, operation",
        [(LOCK, "GetObjectRetention"), (("--legal-hold",), "GetObjectLegalHold")],
    )
    def test_a_store_that_ignores_the_wish(
        self, locked: Place, mode: str, wish: tuple[str, ...], operation: str
    ) -> None:
        locked.server.faults.append(
            Fault(Action("error", 404, "NoSuchObjectLockConfiguration"), operation)
        )
        run = locked.run(*wish, "--mode", mode)
        assert run.code in (1, 2) and "has not locked it" in run.err
        assert not locked.rows("SELECT * FROM FileStat WHERE status=2")

    @pytest.mark.parametrize("header", ["legal-hold", "retain-until-date", "mode"])
    def test_a_store_that_ignores_a_part_of_it(
        self, locked: Place, monkeypatch: pytest.MonkeyPatch, header: str
    ) -> None:
        put, name = StoredBucket.put, f"x-amz-object-lock-{header}"

        def put_other(bucket: StoredBucket, key: str, stored: StoredObject) -> None:
            if "until" in name:
                stored.headers[name] = "2027-01-01T00:00:00Z"
            else:
                stored.headers.pop(name, None)
            put(bucket, key, stored)

        monkeypatch.setattr(StoredBucket, "put", put_other)
        wish = "--object-lock-mode", "COMPLIANCE", "--retain", "2999-01-31", "--legal-hold"
        run = locked.run(*wish, "--mode", "concurrent")
        assert run.code in (1, 2) and "has not locked it so" in run.err, run.err

    def test_an_upload_of_an_earlier_night_has_its_date(
        self, locked: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put, name = StoredBucket.put, "x-amz-object-lock-retain-until-date"

        def put_older(bucket: StoredBucket, key: str, stored: StoredObject) -> None:
            until = time.gmtime(time.time() + 3600)
            stored.headers[name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", until)
            put(bucket, key, stored)

        monkeypatch.setattr(StoredBucket, "put", put_older)
        assert locked.run(*PART, *LOCK).code == 0

    @pytest.mark.parametrize("operation", ["GetObjectLockConfiguration", "GetObjectRetention"])
    def test_what_must_not_be_asked_is_a_note(self, locked: Place, operation: str) -> None:
        locked.server.faults.append(Fault(Action("error", 403, "AccessDenied"), operation))
        run = locked.run(*LOCK, "--json")
        assert run.code == 0, run.err
        assert len(run.json["notes"]) == 1 and "cannot tell whether" in run.json["notes"][0]

    @pytest.mark.parametrize(
        "options, says",
        [
            ("--object-lock-mode GOVERNANCE", "--object-lock-mode requires --retain"),
            ("--retain 30d", "--retain requires --object-lock-mode"),
            ("--object-lock-mode X --retain 30d", "invalid choice: 'X'"),
            ("--object-lock-mode COMPLIANCE --retain 2020-01-01", "--retain is in the past"),
            ("--object-lock-mode COMPLIANCE --retain 0d", "--retain is in the past"),
            ("--object-lock-mode COMPLIANCE --retain soon", "invalid retention 'soon'"),
            ("--object-lock-mode COMPLIANCE --retain 30", "invalid retention '30'"),
            ("--object-lock-mode COMPLIANCE --retain 3s", "invalid retention '3s'"),
            ("--object-lock-mode COMPLIANCE --retain 999999999999999d", "invalid retention"),
            ("--object-lock-mode COMPLIANCE --retain 2027-02-30", "invalid retention"),
        ],
    )
    def test_bad_input(self, place: Place, options: str, says: str) -> None:
        run = place.run(*options.split())
        assert run.code == 2 and says in run.err and len(run.err.splitlines()) == 1
