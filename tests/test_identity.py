"""A change is never missed, and costs no more than it is: bytes, metadata, times that waver."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import (
    PIECE,
    assert_all_is_there,
    puts_of_parts,
    run_broken_off,
    s3_job,
    visit,
)
from testing.place import (
    BOTH_MODES,
    BUCKET,
    LONG_AGO,
    MIB,
    PART,
    Place,
    rewrite_in_place,
)
from testing.protocol import Answer, Request, encode64
from testing.store import StoredObject

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
LARGE = 11 * MIB  # three parts
SIZES = {"small": 100, "large": LARGE}


def both_sizes(place: Place) -> dict[str, Path]:
    return {name: place.file(name, os.urandom(size)) for name, size in SIZES.items()}


def moved_over(path: Path) -> None:
    """Other bytes, prepared elsewhere with the same size, time and mode."""
    status, other = path.stat(), path.with_name("prepared")
    other.write_bytes(os.urandom(status.st_size))
    other.chmod(status.st_mode)
    os.utime(other, ns=(0, status.st_mtime_ns))
    other.replace(path)


def hour_later(path: Path) -> None:
    os.utime(path, (LONG_AGO + 3600, LONG_AGO + 3600))


def object_of(place: Place, name: str) -> StoredObject:
    return place.server.objects(BUCKET)[f"p/{name}"]


def told_of(place: Place, name: str) -> tuple[str, str, str, str]:
    """What an object says of its file."""
    headers = object_of(place, name).headers
    return (
        headers["x-amz-meta-mtime"],
        headers["x-amz-meta-mode"],
        headers["x-amz-meta-uid"],
        headers["x-amz-meta-gid"],
    )


def facts_of(path: Path) -> tuple[str, str, str, str]:
    """The same of the file."""
    status = path.lstat()
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    mtime = f"{seconds}.{nanoseconds:09d}"
    return mtime, f"0{status.st_mode:o}", str(status.st_uid), str(status.st_gid)


def kill_at(place: Place, operation: str, *arguments: str) -> None:
    """A run is killed when the store has done this, and before it can hear so."""
    running: list[Any] = []
    kill = Action("call", function=lambda: os.killpg(running[0].pid, signal.SIGKILL))
    place.server.faults.append(Fault(kill, operation, times=1))
    running.append(place.start(*arguments, leads="session"))
    running[0].communicate(timeout=60)
    assert running[0].returncode == -signal.SIGKILL
    place.server.faults.clear()


# ======================================================================================
# Bytes
# ======================================================================================


class TestBytes:
    """Other bytes are found, whatever size and time say; the same bytes are not sent again."""

    @pytest.mark.parametrize(
        "mode, replace, reason",
        [
            ("concurrent", moved_over, "ctime moved"),
            ("parallel", moved_over, "ctime moved"),
            ("concurrent", rewrite_in_place, "ctime moved"),
            ("parallel", rewrite_in_place, "ctime moved"),
        ],
    )
    def test_content_replaced_under_its_old_times_goes_up(
        self, place: Place, mode: str, replace: Callable[[Path], None], reason: str
    ) -> None:
        paths = both_sizes(place)
        place.file("same")
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        for path in paths.values():
            before = path.stat()
            replace(path)
            after = path.stat()
            assert before[:1] + before[4:7] == after[:1] + after[4:7]  # mode, owner and size
            assert before.st_mtime_ns == after.st_mtime_ns
        plan = place.run("--dry-run", *PART)
        assert all(re_line(plan.out, path, reason) for path in paths.values()), plan.out
        for number, options in enumerate(([], ["--checksum"])):
            with copied_ledger(place, f"copy{number}.db") as copy:
                said, _ = visit(place, "--verify", "--db", copy, *options, code=1)
            reasons = {Path(d["path"]).name: d["reason"] for d in said["differences"]}
            assert reasons == dict.fromkeys(SIZES, "changed since it was uploaded")
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], said["renewed"], said["unchanged"]) == (2, 0, 1)
        assert (sent["PutObject"], sent["UploadPart"], sent["CopyObject"]) == (1, 3, 0)
        assert place.stored() == place.local()
        assert_all_is_there(place)
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["requests"], sent) == (3, 0, Counter())

    def test_a_link_that_leads_elsewhere_goes_up(self, place: Place) -> None:
        """With a target as long as the old one, and the same time."""
        place.file("target")
        link = place.root / "link"
        link.symlink_to("aaa")
        arguments = ("--mode", "concurrent", "--links")
        os.utime(link, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        visit(place, *arguments)
        link.unlink()
        link.symlink_to("bbb")
        os.utime(link, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], said["renewed"], sent["PutObject"]) == (1, 0, 1)
        assert object_of(place, "link.rclonelink").body == b"bbb"
        assert visit(place, *arguments)[0]["unchanged"] == 2

    def test_verify_with_checksum_reads_the_files_too(self, place: Place) -> None:
        """Where not even the ctime tells."""
        paths = both_sizes(place)
        visit(place, *PART, "--mode", "concurrent")
        for path in paths.values():
            rewrite_in_place(path)
        assert visit(place, "--verify", "--ignore-ctime")[0]["verified"] == 2
        said, _ = visit(place, "--verify", "--ignore-ctime", "--checksum", code=1)
        assert said["by_reason"] == {"changed since it was uploaded": 2}
        assert visit(place, *PART, "--ignore-ctime")[0]["uploaded"] == 2
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_the_same_bytes_in_another_inode_cost_nothing(self, place: Place, mode: str) -> None:
        """A restored backup, with its times."""
        paths = both_sizes(place)
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        for path in paths.values():
            copy = path.with_name("copy")
            shutil.copy2(path, copy)
            copy.replace(path)
        plan = place.run("--dry-run", *PART)
        assert plan.out.count("compared first") == 2
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["uploaded"], sent) == (2, 0, Counter())
        rows = {row["object_key"][2:]: row for row in place.rows()}
        for name, path in paths.items():
            now = path.stat()
            told = rows[name]["inode"], rows[name]["changed_at"]
            assert told == (now.st_ino, now.st_ctime_ns)
        assert "0 would be uploaded" in place.run("--dry-run", *PART).out
        assert_all_is_there(place)

    @BOTH_MODES
    def test_a_hard_link_costs_nothing(self, place: Place, mode: str) -> None:
        paths = both_sizes(place)
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        for path in paths.values():
            os.link(path, place.path / path.name)
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["uploaded"], sent) == (2, 0, Counter())
        assert "0 would be uploaded" in place.run("--dry-run", *PART).out

    @pytest.mark.parametrize("operation, size", [("PutObject", 100), ("UploadPart", LARGE)])
    def test_killed_while_replaced_content_goes_up(
        self, place: Place, operation: str, size: int
    ) -> None:
        path = place.file("f", os.urandom(size))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        first = path.read_bytes()
        rewrite_in_place(path)
        kill_at(place, operation, *arguments)
        status = path.stat()
        path.write_bytes(first)  # and back: what was known of the store holds no more
        os.utime(path, ns=(0, status.st_mtime_ns))
        said, _ = visit(place, *arguments)
        assert (said["uploaded"], place.stored()) == (1, {"f": first})
        assert_all_is_there(place)

    @pytest.mark.parametrize("option", ["--ignore-ctime", "--ignore-inode"])
    def test_what_is_to_be_ignored_is(self, place: Place, option: str) -> None:
        paths = both_sizes(place)
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        for path in paths.values():
            if option == "--ignore-ctime":
                path.chmod(path.stat().st_mode)
            else:
                shutil.copy2(path, path.with_name("copy"))
                path.with_name("copy").replace(path)
        both = {"--ignore-ctime", "--ignore-inode"}
        needed = {option} if option == "--ignore-ctime" else both  # a copy has another ctime too
        plan = place.run("--dry-run", *needed)
        assert "0 would be uploaded" in plan.out
        assert (
            "2 would be uploaded" in place.run("--dry-run", *sorted(both - {"--ignore-ctime"})).out
        )
        assert visit(place, *arguments, *needed)[0]["unchanged"] == 2

    def test_many_files_that_were_compared_for_nothing_are_told(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "MANY_MOVED", 5)
        at_hand.files(8)
        assert s3_job(at_hand).run().exit_code == 0
        paths = [path for path in at_hand.root.rglob("f*") if path.is_file()]
        for count, is_told in ((4, False), (5, True)):
            for path in paths[:count]:
                path.chmod(path.stat().st_mode)
            summary = s3_job(at_hand).run()
            assert (summary.exit_code, summary.unchanged) == (0, 8)
            notes = [note for note in summary.notes if "--ignore-ctime" in note]
            assert bool(notes) == is_told, summary.notes
        for path in paths:
            path.chmod(path.stat().st_mode)
        rewrite_in_place(paths[0])  # one has changed: then it was worth it
        summary = s3_job(at_hand).run()
        assert (summary.uploaded, summary.notes) == (1, [])

    @pytest.mark.parametrize("forget", ["sha256", "sha256 and ETag"])
    def test_where_no_hash_is_known_the_etag_decides_or_size_and_time(
        self, place: Place, forget: str
    ) -> None:
        paths = both_sizes(place)
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        change_rows(place, "sha256 = NULL, part_size = NULL")
        if forget != "sha256":
            change_rows(place, "etag = 'no MD5'")
        for path in paths.values():
            path.chmod(0o640)
        said, sent = visit(place, *arguments)
        assert (said["renewed"], sent["UploadPart"]) == (2, 0)
        assert any("compared by size and time" in note for note in said["notes"]) == (
            forget != "sha256"
        )
        assert all(told_of(place, name) == facts_of(path) for name, path in paths.items())
        change_rows(place, "sha256 = NULL, part_size = NULL")
        for path in paths.values():
            rewrite_in_place(path)
        if forget == "sha256":
            said, _ = visit(place, *arguments)
            assert (said["uploaded"], said["renewed"]) == (2, 0)
            assert place.stored() == place.local()


@contextlib.contextmanager
def copied_ledger(place: Place, name: str) -> Iterator[str]:
    """So that --verify writes what it finds elsewhere."""
    with contextlib.ExitStack() as opened:
        db, copy = (
            opened.enter_context(contextlib.closing(sqlite3.connect(place.path / end)))
            for end in ("pfu.db", name)
        )
        db.backup(copy)
    yield name


def change_rows(place: Place, what: str) -> None:
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
        db.execute(f"UPDATE FileStat SET {what}")


def re_line(text: str, path: Path, reason: str) -> bool:
    return any(str(path) in line and reason in line for line in text.splitlines())


# ======================================================================================
# Metadata
# ======================================================================================


def chmod(path: Path) -> None:
    path.chmod(0o640 if not path.is_dir() else 0o750)


def chown(path: Path) -> None:
    os.chown(path, 12345, 23456, follow_symlinks=False)


REFUSALS = [
    Action("error", 403, "AccessDenied"),
    Action("error", 403, "InvalidObjectState"),
    Action("error", 501, "NotImplemented"),
]
OPTIONS = [
    "--storage-class STANDARD_IA",
    "--sse AES256",
    "--sse aws:kms --sse-kms-key-id key/1",
    "--content-type *=text/x-all",
    "--cache-control max-age=60",
    "--tag team=a+b/c --tag keep=7y",
    "--expected-bucket-owner 123456789012 --requester-pays",
]


class TestMetadata:
    """Where the bytes are the same, only what is said of them is renewed."""

    @BOTH_MODES
    @pytest.mark.parametrize("change", [chmod, hour_later, pytest.param(chown, marks=NEEDS_ROOT)])
    def test_metadata_are_renewed_without_the_bytes_of_large_files(
        self, place: Place, mode: str, change: Callable[[Path], None]
    ) -> None:
        paths = {**both_sizes(place), "d/": place.file("d/inner").parent}
        (place.root / "link").symlink_to("small")
        arguments = ("--mode", mode, *PART, "--links", "--directory-markers")
        names = dict(paths)
        if change is chown:
            names["link.rclonelink"] = place.root / "link"
        visit(place, *arguments)
        bodies = place.stored()
        for path in names.values():
            change(path)
        large = paths["large"]
        plan = place.run("--dry-run", *arguments[2:])
        for path in names.values():
            assert any(str(path) in line for line in plan.out.splitlines()), plan.out
        assert "only its metadata is updated" in plan.out
        said, sent = visit(place, *arguments)
        assert sent == {"PutObject": len(names) - 1, "CopyObject": 1}
        assert (said["uploaded"], said["renewed"], said["failed"]) == (len(names),) * 2 + (0,)
        assert said["unchanged"] == 5 - len(names)
        assert said["bytes_uploaded"] <= 200
        assert place.stored() == bodies
        for name, path in names.items():
            assert told_of(place, name) == facts_of(path), name
        copied = object_of(place, "large")
        (row,) = place.rows("SELECT * FROM FileStat WHERE object_key = 'p/large'")
        assert (row["etag"], row["sha256"]) == (copied.etag, copied.digest(row["part_size"]))
        assert (row["uid"], row["gid"]) == (large.stat().st_uid, large.stat().st_gid)
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["requests"], sent) == (5, 0, Counter())
        assert visit(place, "--verify", "--checksum", *arguments[2:])[0]["verified"] == 5

    @pytest.mark.parametrize("options", [[], ["--checksum"]])
    def test_verify_does_not_forget_what_the_store_has(
        self, place: Place, options: list[str]
    ) -> None:
        """What it finds to be renewed, the next run renews."""
        paths = both_sizes(place)
        visit(place, "--mode", "concurrent", *PART)
        for path in paths.values():
            chmod(path)
        said, _ = visit(place, "--verify", *options, code=1)
        assert said["by_reason"] == {"changed since it was uploaded": 2}
        said, sent = visit(place, "--mode", "concurrent", *PART)
        assert (said["renewed"], sent) == (2, {"PutObject": 1, "CopyObject": 1})
        assert_all_is_there(place)

    def test_a_change_of_a_copy_goes_up_again(self, place: Place) -> None:
        """Its ETag is that of the whole, its digest in the ledger that of the parts."""
        path = place.file("large", os.urandom(LARGE))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        chmod(path)
        assert visit(place, *arguments)[1] == {"CopyObject": 1}
        hour_later(path)
        assert visit(place, *arguments)[1] == {"CopyObject": 1}
        rewrite_in_place(path)
        assert visit(place, *arguments)[1]["UploadPart"] == 3
        assert_all_is_there(place)

    @BOTH_MODES
    def test_summer_time_renews_many_small_files(self, place: Place, mode: str) -> None:
        place.files(100)
        arguments = ("--mode", mode)
        visit(place, *arguments)
        for path in place.root.rglob("f*"):
            hour_later(path)
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], said["renewed"], sent) == (100, 100, {"PutObject": 100})
        assert place.stored() == place.local()
        assert_all_is_there(place)
        assert visit(place, *arguments)[0]["requests"] == 0

    @BOTH_MODES
    @pytest.mark.parametrize("refusal", REFUSALS, ids=lambda action: action.code)
    def test_a_refused_copy_sends_nothing_and_is_told(
        self, place: Place, mode: str, refusal: Action
    ) -> None:
        count = 8
        for number in range(count):
            place.file(f"large{number}", os.urandom(5 * MIB + 1))
        processes = 2 if mode == "parallel" else 1
        arguments = ["--mode", mode, *PART, "--concurrency", str(processes)]
        arguments += ["--workers", "2"] if mode == "parallel" else []
        visit(place, *arguments)
        place.server.faults.append(Fault(refusal, "CopyObject"))
        for path in place.root.iterdir():
            chmod(path)
        for is_first in (True, False):
            said, sent = visit(place, *arguments)
            assert (said["unchanged"], said["uploaded"], said["renewed"]) == (count, 0, 0)
            assert set(sent) == {"CopyObject"}
            assert sent["CopyObject"] <= pfu.MAX_DENIED_COPIES * processes < count
            (note,) = said["notes"]
            assert f"{count} objects" in note
            assert refusal.code in note
            assert "--renew-by-upload" in note
            assert said["bytes_uploaded"] == 0
            assert is_first or said["requests"] <= 2 * pfu.MAX_DENIED_COPIES * processes + 4
        assert {row["stale"] for row in place.rows()} == {1}
        said, _ = visit(place, "--verify", code=1)
        assert said["by_reason"] == {"changed since it was uploaded": count}
        said, sent = visit(place, *arguments, "--renew-by-upload")
        assert (said["uploaded"], sent["UploadPart"], said["notes"]) == (count, 2 * count, [])
        place.server.faults.clear()
        assert_all_is_there(place)
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["requests"]) == (count, 0)

    @pytest.mark.parametrize("why", ["", "racy", "--ignore-ctime --checksum"])
    def test_what_the_store_would_not_renew_is_read_unless_it_is_untouched(
        self, place: Place, why: str
    ) -> None:
        path = place.file("large", os.urandom(LARGE))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        place.server.deny.add("CopyObject")
        chmod(path)
        assert visit(place, *arguments)[0]["unchanged"] == 1
        rewrite_in_place(path)
        if why == "racy":  # the kernel's clock had not moved on
            with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
                db.execute("UPDATE FileStat SET racy=1, changed_at=?", (path.stat().st_ctime_ns,))
        options = why.split() if why.startswith("-") else ()
        said, sent = visit(place, *arguments, *options)
        assert (said["uploaded"], sent["UploadPart"]) == (1, 3)
        assert_all_is_there(place)

    def test_what_the_store_would_not_renew_is_not_read_again(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(5):
            at_hand.file(f"large{number}", os.urandom(2 * PIECE))
        assert s3_job(at_hand).run().exit_code == 0
        at_hand.server.deny.add("CopyObject")
        for path in at_hand.root.iterdir():
            chmod(path)
        readings: list[str] = []
        read = pfu.SourceFile.read

        def counted(source: pfu.SourceFile, offset: int, size: int) -> bytes:
            readings.append(source.path)
            return read(source, offset, size)

        monkeypatch.setattr(pfu.SourceFile, "read", counted)
        assert s3_job(at_hand).run().unchanged == 5
        assert len(set(readings)) == 5
        readings.clear()
        summary = s3_job(at_hand).run()
        assert (summary.unchanged, readings) == (5, [])
        rewrite_in_place(at_hand.root / "large3")  # but what is touched once more is
        summary = s3_job(at_hand).run()
        assert (summary.uploaded, set(readings)) == (1, {str(at_hand.root / "large3")})
        at_hand.server.deny.clear()
        summary = s3_job(at_hand).run()
        assert (summary.renewed, summary.unchanged, summary.notes) == (4, 1, [])
        assert_all_is_there(at_hand)

    def test_a_store_that_ignores_that_it_is_to_copy_has_its_bytes_again(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It takes the request for a PutObject without bytes."""
        path = place.file("large", os.urandom(LARGE))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        monkeypatch.setattr(place.server._store, "copy_object", place.server._store.put_object)
        chmod(path)
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], said["failed"], sent["UploadPart"]) == (1, 0, 3)
        assert place.stored() == place.local()
        assert_all_is_there(place)
        assert visit(place, *arguments)[0]["unchanged"] == 1

    def test_a_store_that_keeps_the_old_metadata_is_told_of(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = place.file("large", os.urandom(LARGE))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        store = place.server._store
        copy = store.copy_object

        def lazy_copy(request: Request) -> Answer:
            before = object_of(place, "large")
            answer = copy(request)
            bucket = place.server.bucket(BUCKET)
            assert bucket
            copied = bucket.objects["p/large"]
            bucket.put("p/large", dataclasses.replace(copied, headers=before.headers))
            return answer

        monkeypatch.setattr(store, "copy_object", lazy_copy)
        chmod(path)
        for _ in range(2):
            said, sent = visit(place, *arguments)
            assert (said["unchanged"], set(sent)) == (1, {"CopyObject"})
            (note,) = said["notes"]
            assert "1 object" in note
            assert "the store kept the old metadata" in note
        said, sent = visit(place, *arguments, "--renew-by-upload")
        assert (said["uploaded"], sent["UploadPart"]) == (1, 3)
        assert_all_is_there(place)

    @pytest.mark.parametrize("kind", ["lost_ack", "error200", "half_body", "garbage"])
    def test_an_answer_to_a_copy_that_is_none(self, at_hand: Place, kind: str) -> None:
        path = at_hand.file("large", os.urandom(3 * PIECE))
        assert s3_job(at_hand).run().exit_code == 0
        chmod(path)
        at_hand.server.faults.append(Fault(Action(kind), "CopyObject", times=1))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.renewed, summary.failures) == (0, 1, [])
        assert at_hand.server.acknowledged("UploadPart") == 3
        assert_all_is_there(at_hand)

    def test_a_store_that_shows_nothing_of_an_object_has_no_file_read_again_for_it(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = at_hand.file("large", os.urandom(3 * PIECE))
        assert s3_job(at_hand).run().exit_code == 0
        chmod(path)
        refusal = Action("error", 412, "PreconditionFailed")
        at_hand.server.faults.append(Fault(refusal, "CopyObject", times=1))
        look, digests_of, asked = pfu.S3Bucket.look, pfu.digests_of, []

        def silent(bucket: pfu.S3Bucket, key: str) -> pfu.Inspected | None:
            stored = look(bucket, key)
            etag = object_of(at_hand, "large").etag
            return stored and stored._replace(etag=f"not-{etag}", sha256="", metadata={})

        def counted(source: pfu.SourceFile, forms: Iterable[pfu.Form]) -> dict[pfu.Form, str]:
            asked.append(list(forms))
            return digests_of(source, asked[-1])

        monkeypatch.setattr(pfu.S3Bucket, "look", silent)
        monkeypatch.setattr(pfu, "digests_of", counted)
        s3_job(at_hand).run()
        assert at_hand.server.count("CopyObject") == 2
        assert all(asked)

    @pytest.mark.parametrize("change", [chmod, hour_later])
    @pytest.mark.parametrize("name, operation", [("small", "PutObject"), ("large", "CopyObject")])
    def test_killed_while_metadata_are_renewed(
        self, place: Place, name: str, operation: str, change: Callable[[Path], None]
    ) -> None:
        path = both_sizes(place)[name]
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        change(path)
        kill_at(place, operation, *arguments)
        assert told_of(place, name) == facts_of(path)
        said, sent = visit(place, *arguments)
        assert (said["failed"], sent["UploadPart"]) == (0, 0)
        assert_all_is_there(place)
        assert visit(place, *arguments)[0]["requests"] == 0

    @pytest.mark.parametrize("who", ["another tool", "another pfu"])
    def test_what_someone_else_put_there_is_not_given_our_metadata(
        self, place: Place, who: str
    ) -> None:
        path = place.file("large", os.urandom(LARGE))
        arguments = ("--mode", "concurrent", *PART)
        visit(place, *arguments)
        bucket, stored = place.server.bucket(BUCKET), object_of(place, "large")
        assert bucket
        body = os.urandom(LARGE)
        sha256, md5 = hashlib.sha256(body), hashlib.md5(body)
        headers = {"content-type": "text/plain"}
        if who == "another pfu":
            checksum = {"x-amz-checksum-sha256": encode64(sha256.digest())}
            headers = {**stored.headers, **checksum}
        digests = sha256.hexdigest(), md5.hexdigest()
        bucket.put("p/large", StoredObject(body, LARGE, *digests, headers, time.time()))
        hour_later(path)
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], sent["UploadPart"]) == (1, 3)
        assert_all_is_there(place)

    @pytest.mark.parametrize("refused", [False, True])
    def test_what_is_larger_than_a_copy_may_be_is_copied_by_parts(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, refused: bool
    ) -> None:
        path = at_hand.file("large", os.urandom(5 * PIECE - 1))
        assert s3_job(at_hand).run().exit_code == 0
        monkeypatch.setattr(pfu, "MAX_PART_SIZE", 2 * PIECE)
        monkeypatch.setattr(pfu, "COPIED_PART_SIZE", PIECE)
        chmod(path)
        if refused:
            at_hand.server.faults.append(
                Fault(Action("error", 403, "AccessDenied"), "UploadPartCopy", after=2)
            )
        summary = s3_job(at_hand).run()
        assert summary.exit_code == 0
        assert at_hand.server.acknowledged("UploadPart") == 5
        if refused:
            assert "AccessDenied" in summary.notes[0]
            at_hand.server.faults.clear()
            assert not at_hand.server.uploads(BUCKET)
            summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.renewed, summary.bytes_uploaded) == (0, 1, 0)
        assert at_hand.server.acknowledged("UploadPartCopy") == 5 + 2 * refused
        assert at_hand.server.acknowledged("UploadPart") == 5
        assert told_of(at_hand, "large") == facts_of(path)
        assert_all_is_there(at_hand)
        assert s3_job(at_hand).run().unchanged == 1

    @pytest.mark.parametrize("options", OPTIONS)
    def test_a_copy_says_all_that_an_upload_says(self, place: Place, options: str) -> None:
        path = place.file("large.txt", os.urandom(5 * MIB + 1))
        arguments = ("--mode", "concurrent", *PART, *options.split())
        visit(place, *arguments)
        before = object_of(place, "large.txt").headers
        chmod(path)
        _, sent = visit(place, *arguments)
        assert sent == {"CopyObject": 1}
        after = object_of(place, "large.txt").headers
        of_parts = {"x-amz-meta-pfu-upload"}  # tells one upload from another, and no copy
        names = {name for name in before.keys() | after.keys() if "checksum" not in name}
        moved = {name for name in names - of_parts if before.get(name) != after.get(name)}
        assert moved == {"x-amz-meta-mode", "x-amz-meta-file-permissions"}
        (copy,) = [r for r in place.server.log if r.operation == "CopyObject"]
        if "owner" in options:
            assert copy.headers["x-amz-expected-bucket-owner"] == "123456789012"
            assert copy.headers["x-amz-source-expected-bucket-owner"] == "123456789012"
            assert copy.headers["x-amz-request-payer"] == "requester"
        if "tag" in options:
            assert copy.headers["x-amz-tagging-directive"] == "REPLACE"


# ======================================================================================
# Times and numbers that waver
# ======================================================================================


class Wavering:
    """A stat_result whose ctime or inode is another one each time."""

    def __init__(self, status: os.stat_result, number: int, names: tuple[str, ...]) -> None:
        self._status, self._number, self._names = status, number, names

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._status, name)
        return value + self._number if name in self._names else value

    def __getitem__(self, place: int) -> Any:
        return self._status[place]


@pytest.fixture
def restless_chmod(place: Place) -> Iterator[None]:
    """All files' ctimes move, again and again."""
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(0.0005):
            for name in SIZES:
                path = place.root / name
                if path.exists():
                    path.chmod(0o644)

    mover = threading.Thread(target=move)
    mover.start()
    yield
    stop.set()
    mover.join()


class TestWavering:
    """ctime and inode that move under way prove nothing."""

    @pytest.mark.parametrize("names", [("st_ctime_ns",), ("st_ctime_ns", "st_ino")])
    def test_a_file_system_that_makes_them_up(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
    ) -> None:
        sizes = {"a": 9, "b": 3 * PIECE}
        paths = {name: at_hand.file(name, os.urandom(size)) for name, size in sizes.items()}
        numbers = iter(range(1, 1 << 30))
        fstat = os.fstat

        def wavering(fd: int) -> Any:
            status = fstat(fd)
            is_file = stat.S_ISREG(status.st_mode)
            return Wavering(status, next(numbers), names) if is_file else status

        monkeypatch.setattr(os, "fstat", wavering)
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (0, 2), summary.failures
        assert at_hand.server.acknowledged("UploadPart") == 3
        assert at_hand.stored() == at_hand.local()
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.unchanged) == (0, 2)
        rewrite_in_place(paths["b"])
        summary = s3_job(at_hand).run()
        assert (summary.uploaded, summary.unchanged) == (1, 1)
        assert at_hand.stored() == at_hand.local()

    @BOTH_MODES
    def test_a_ctime_that_never_rests(self, place: Place, restless_chmod: None, mode: str) -> None:
        both_sizes(place)
        arguments = ("--mode", mode, *PART)
        said, sent = visit(place, *arguments)
        assert (said["uploaded"], said["failures"]) == (2, [])
        assert (sent["PutObject"], sent["UploadPart"]) == (1, 3)
        assert place.stored() == place.local()
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], sent) == (2, Counter())

    @BOTH_MODES
    def test_a_hard_link_made_while_parts_go_up(self, place: Place, mode: str) -> None:
        path = place.file("large", os.urandom(26 * MIB))
        numbers = iter(range(100))
        link = Action("call", function=lambda: os.link(path, place.path / f"l{next(numbers)}"))
        place.server.faults.append(Fault(link, "UploadPart"))
        said, sent = visit(place, "--mode", mode, *PART)
        assert (said["uploaded"], sent["UploadPart"], sent["CreateMultipartUpload"]) == (1, 6, 1)
        assert sent["CopyObject"] == 0
        assert_all_is_there(place)

    @pytest.mark.parametrize("when", ["CreateMultipartUpload", "CompleteMultipartUpload"])
    def test_a_hard_link_made_while_the_store_answers(self, place: Place, when: str) -> None:
        path = place.file("large", os.urandom(LARGE))
        link = Action("call", function=lambda: os.link(path, place.path / "link"))
        place.server.faults.append(Fault(link, when, times=1))
        _, sent = visit(place, "--mode", "concurrent", *PART)
        assert (sent["UploadPart"], sent["CopyObject"]) == (3, 0)
        said, sent = visit(place, "--mode", "concurrent", *PART)
        assert (said["unchanged"], sent) == (1, Counter())
        assert_all_is_there(place)

    @BOTH_MODES
    def test_nights_with_a_snapshot_of_hard_links_in_between(self, place: Place, mode: str) -> None:
        """Each run ends early, each morning `cp -al` moves the ctime."""
        path = place.file("large", os.urandom(26 * MIB))
        for night in range(3):
            run_broken_off(place, 1, "--mode", mode)
            os.link(path, place.path / f"night{night}")
            assert len(puts_of_parts(place.server)) == night + 1
        said, _ = visit(place, "--mode", mode, *PART)
        assert said["uploaded"] == 1
        assert sorted(number for _, number in puts_of_parts(place.server)) == list("123456")
        assert place.server.count("CreateMultipartUpload") == 1
        assert place.server.count("CopyObject") == 0
        assert_all_is_there(place)

    def test_a_night_that_ends_by_the_clock(self, place: Place) -> None:
        path = place.file("large", os.urandom(26 * MIB))
        place.server.faults.append(Fault(Action("slow", seconds=0.5), "UploadPart"))
        arguments = ("--mode", "concurrent", *PART, "--concurrency", "1")
        for night in range(30):
            run = place.run(*arguments, "--max-duration", "2s", "--json")
            if run.json["uploaded"]:
                break
            assert (run.code, run.json["pending"]) == (4, 1)
            os.link(path, place.path / f"night{night}")
        assert night > 0
        assert run.json["uploaded"] == 1
        sent = place.server.part_acknowledgements(BUCKET)
        assert len(sent) == 6
        assert place.server.count("CreateMultipartUpload") == 1
        assert_all_is_there(place)

    @BOTH_MODES
    @pytest.mark.parametrize(
        "name, ending", [("small", "PutObject"), ("large", "CompleteMultipartUpload")]
    )
    def test_a_change_that_is_taken_back_after_a_lost_answer(
        self, place: Place, mode: str, name: str, ending: str
    ) -> None:
        before = both_sizes(place)[name].read_bytes()
        assert place.run(*PART, "--mode", mode).code == 0

        def take_back() -> None:
            place.file(name, before)
            raise ConnectionResetError

        place.file(name, bytes(reversed(before)))
        place.server.faults.append(Fault(Action("call", function=take_back), ending, times=1))
        assert place.run(*PART, "--mode", mode).code == 0
        assert place.run(*PART, "--mode", mode).code == 0
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_a_large_file_that_is_appended_to_keeps_its_parts(
        self, place: Place, mode: str
    ) -> None:
        path = place.file("large", os.urandom(LARGE))
        run_broken_off(place, 2, "--mode", mode)
        with open(path, "ab") as file:
            file.write(os.urandom(5 * MIB))
        said, sent = visit(place, "--mode", mode, *PART)
        assert (said["uploaded"], sent["UploadPart"], sent["CopyObject"]) == (1, 2, 1)
        assert_all_is_there(place)

    @pytest.mark.parametrize("change", [chmod, hour_later])
    @BOTH_MODES
    def test_metadata_that_change_between_two_nights(
        self, place: Place, mode: str, change: Callable[[Path], None]
    ) -> None:
        path = place.file("large", os.urandom(LARGE))
        run_broken_off(place, 1, "--mode", mode)
        change(path)
        said, sent = visit(place, "--mode", mode, *PART)
        assert (said["uploaded"], sent["UploadPart"], sent["CopyObject"]) == (1, 2, 1)
        assert place.server.count("CreateMultipartUpload") == 1
        assert told_of(place, "large") == facts_of(path)
        assert_all_is_there(place)


# ======================================================================================
# Files that others hold
# ======================================================================================

LEASE = """
import fcntl, os, signal, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
fd = os.open(path, os.O_RDWR)
def give_up(*_):
    time.sleep(seconds)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give_up)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
while True:
    time.sleep(10)
"""


def leased(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Another program has a lease, and gives it up so long after it was asked to."""
    holder = subprocess.Popen(
        [sys.executable, "-c", LEASE, str(path), str(seconds)], stdout=subprocess.PIPE
    )
    assert holder.stdout
    if not holder.stdout.readline():
        holder.wait()
        pytest.skip("no lease can be had here")
    return holder


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="Linux alone has leases")
class TestLeases:
    """A file under a lease is waited for."""

    @pytest.mark.parametrize("mode, name", [("concurrent", "small"), ("parallel", "large")])
    def test_a_lease_that_is_given_up(self, place: Place, mode: str, name: str) -> None:
        path = both_sizes(place)[name]
        with leased(path, 1.0) as holder:
            began = time.monotonic()
            try:
                said, _ = visit(place, "--mode", mode, *PART)
            finally:
                holder.kill()
        assert (said["uploaded"], said["failures"]) == (2, [])
        assert time.monotonic() - began >= 1.0
        assert_all_is_there(place)

    def test_a_lease_that_is_kept_costs_its_file(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "LEASE_SECONDS", 0.3)
        monkeypatch.setattr(pfu, "full_jitter", lambda attempt: 0.02)
        at_hand.file("free")
        with leased(at_hand.file("held"), 60) as holder:
            try:
                summary = s3_job(at_hand).run()
            finally:
                holder.kill()
        assert (summary.exit_code, summary.uploaded) == (1, 1)
        (failure,) = summary.failures
        assert failure["path"] == str(at_hand.root / "held")
        assert failure["reason"].endswith("another program holds a lease on it")
        assert s3_job(at_hand).run().uploaded == 1
