"""One object, one file: which ROOT fills a destination, what a ledger takes over and forgets."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

import pfu
from testing.faults import Action, Fault
from testing.jobs import SENDING, assert_all_is_there, puts_of_parts, run_broken_off, visit
from testing.lane import NO_MORE_CHECKSUMS
from testing.place import (
    BOTH_MODES,
    BUCKET,
    LONG_AGO,
    MIB,
    PART,
    Place,
    drop_privilege,
    rewrite_in_place,
)

LARGE = 11 * MIB  # three parts
TO = f"s3://{BUCKET}/p"
CONCURRENT = ("--mode", "concurrent", *PART)


def from_root(place: Place, root: Any, *arguments: Any, code: int = 0, to: str = TO) -> Any:
    """visit(), with another ROOT."""
    return visit(place, root, to, *arguments, code=code, to=None)


def ledger(place: Place, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
        db.execute(sql)


def three_files(root: Path) -> None:
    for name, size in (("d/small", 100), ("same", 100), ("large", LARGE)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        os.utime(path, (LONG_AGO, LONG_AGO))


# ======================================================================================
# One destination, one ROOT
# ======================================================================================


def renamed(place: Place) -> Path:
    return place.root.rename(place.path / "renamed")


def linked(place: Place) -> Path:
    link = place.path / "link"
    link.symlink_to(place.root)
    return link


def parent_linked(place: Place) -> Path:
    link = place.path / "here"
    link.symlink_to(place.path)
    return link / "tree"


@pytest.fixture
def mounted(place: Place) -> Iterator[Path]:
    """The tree once more: a snapshot that is mounted elsewhere."""
    snapshot = place.path / "snapshot"
    snapshot.mkdir()
    command = ["mount", "--bind", str(place.root), str(snapshot)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield snapshot
    subprocess.run(["umount", "--lazy", str(snapshot)], check=True)


class TestRoots:
    """A ledger knows a destination by the ROOT that fills it."""

    @BOTH_MODES
    def test_another_root_is_refused_before_anything_happens(self, place: Place, mode: str) -> None:
        """Same names, sizes and times."""
        three_files(place.root)
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        first = place.stored()
        other = place.path / "other tree"
        three_files(other)
        requests = place.server.count()
        for options in ([], ["--dry-run"], ["--verify"]):
            run = place.run(other, TO, *arguments, *options, to=None)
            assert (run.code, place.server.count()) == (2, requests), run.err
            assert str(place.root) in run.err
            assert str(other) in run.err
            assert "--db" in run.err
            (hint,) = re.findall(r"--root-as (\S+)", run.err)
            assert shlex.split(hint) == [str(place.root)]
        assert place.stored() == first
        assert visit(place, *arguments)[0]["unchanged"] == 3  # its own is as it was
        said, _ = from_root(place, other, *arguments, "--db", "other.db")
        assert said["uploaded"] == 3
        assert place.stored() != first

    def test_another_root_under_the_known_name_goes_up(self, place: Place) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        other = place.path / "other"
        three_files(other)
        (other / "same").write_bytes((place.root / "same").read_bytes())
        os.utime(other / "same", (LONG_AGO, LONG_AGO))
        said, sent = from_root(place, other, *CONCURRENT, "--root-as", place.root)
        assert (said["uploaded"], said["renewed"], said["unchanged"]) == (2, 0, 1)
        assert (sent["PutObject"], sent["UploadPart"]) == (1, 3)
        names = ("d/small", "same", "large")
        assert place.stored() == {name: (other / name).read_bytes() for name in names}
        known = {row["file_path"] for row in place.rows()}
        assert known == {str(place.root / name) for name in names}

    @BOTH_MODES
    @pytest.mark.parametrize("way", [renamed, linked, parent_linked])
    def test_a_root_that_is_the_same_is_taken_over(
        self, place: Place, mode: str, way: Callable[[Place], Path]
    ) -> None:
        three_files(place.root)
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        root = way(place)
        rewrite_in_place(root / "same")
        plan = place.run(root, TO, *arguments, "--dry-run", to=None)
        assert plan.code == 0
        said, sent = from_root(place, root, *arguments)
        assert (said["uploaded"], said["unchanged"], sent) == (1, 2, {"PutObject": 1})
        (note,) = said["notes"]
        assert str(place.root) in note
        assert str(root) in note
        said, sent = from_root(place, root, *arguments)
        assert (said["unchanged"], said["requests"], said["notes"]) == (3, 0, [])
        assert {row["file_path"] for row in place.rows()} <= {
            str(path) for top in (root, place.root) for path in top.rglob("*")
        } | {str(place.root / name) for name in ("d/small", "same", "large")}

    @pytest.mark.parametrize(
        "root, to",
        [
            ("tree", TO),
            ("./tree/", TO),
            ("tree/../tree", TO),
            ("tree", f"{TO}/"),
        ],
    )
    def test_other_words_for_the_same_ends(self, place: Place, root: str, to: str) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        said, _ = from_root(place, root, *CONCURRENT, to=to)
        assert (said["unchanged"], said["requests"], said["notes"]) == (3, 0, [])

    def test_single_files_of_one_directory_share_a_destination(self, place: Place) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        said, _ = from_root(place, place.root / "same", *CONCURRENT)
        assert (said["unchanged"], said["requests"], said["notes"]) == (1, 0, [])
        assert visit(place, *CONCURRENT)[0]["unchanged"] == 3
        other = place.path / "elsewhere/same"
        other.parent.mkdir()
        other.write_bytes(os.urandom(100))
        os.utime(other, (LONG_AGO, LONG_AGO))
        run = place.run(other, TO, *CONCURRENT, to=None)
        assert (run.code, "--root-as" in run.err) == (2, True)

    def test_another_prefix_or_endpoint_is_another_destination(self, place: Place) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        other = place.path / "other"
        three_files(other)
        said, _ = from_root(place, other, *CONCURRENT, to=f"{TO}2")
        assert said["uploaded"] == 3
        localhost = place.endpoint.replace("127.0.0.1", "localhost")
        said, _ = from_root(place, other, *CONCURRENT, "--endpoint-url", localhost)
        assert said["uploaded"] == 3

    @BOTH_MODES
    def test_a_snapshot_is_known_by_the_name_of_its_source(
        self, place: Place, mounted: Path, mode: str
    ) -> None:
        """Inode and ctime are the same in it: nothing is even read."""
        three_files(place.root)
        arguments = ("--mode", mode, *PART)
        visit(place, *arguments)
        snapshot = ("--root-as", place.root, *arguments)
        plan = place.run(mounted, TO, *snapshot, "--dry-run", to=None)
        assert "0 would be uploaded" in plan.out
        said, _ = from_root(place, mounted, *snapshot)
        assert (said["unchanged"], said["requests"], said["notes"]) == (3, 0, [])
        rewrite_in_place(place.root / "same")
        place.file("new")
        said, sent = from_root(place, mounted, *snapshot)
        assert (said["uploaded"], sent) == (2, {"PutObject": 2})
        said, _ = visit(place, *arguments)  # and back
        assert (said["unchanged"], said["requests"], said["notes"]) == (4, 0, [])
        assert place.stored() == place.local()
        assert_all_is_there(place)
        assert from_root(place, mounted, *snapshot, "--verify")[0]["verified"] == 4

    def test_a_snapshot_of_the_root_directory(self, place: Place) -> None:
        three_files(place.root)
        said, _ = from_root(place, place.root, *CONCURRENT, "--root-as", "/")
        paths = {f"/{path.relative_to(place.root)}" for path in place.root.rglob("*")}
        assert said["uploaded"] == 3
        assert {row["file_path"] for row in place.rows()} == {
            p for p in paths if p[1:] in place.local()
        }
        (place.root / "same").chmod(0)
        run = place.run(
            place.root,
            TO,
            *CONCURRENT,
            "--root-as",
            "/",
            "--json",
            to=None,
            preexec_fn=drop_privilege,
        )
        assert [failure["path"] for failure in run.json["failures"]] == [str(place.root / "same")]

    def test_a_large_file_goes_on_from_a_snapshot(self, place: Place, mounted: Path) -> None:
        place.file("large", os.urandom(LARGE))
        run_broken_off(place, 1, "--mode", "concurrent")
        said, sent = from_root(place, mounted, *CONCURRENT, "--root-as", place.root)
        assert (said["uploaded"], sent["UploadPart"]) == (1, 2)
        assert sorted(number for _, number in puts_of_parts(place.server)) == ["1", "2", "3"]
        assert_all_is_there(place)

    @pytest.mark.parametrize("option", [[], ["--verify"]])
    def test_a_root_that_has_become_empty_is_an_error(
        self, place: Place, option: list[str]
    ) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        shutil.rmtree(place.root)
        place.root.mkdir()
        run = place.run(*CONCURRENT, *option)
        assert (run.code, "is it mounted?" in run.err) == (2, True)
        assert len(place.rows()) == 3


# ======================================================================================
# One object, one file
# ======================================================================================


class TestOneObject:
    """No two files have one key."""

    @BOTH_MODES
    def test_a_link_and_a_file_named_as_its_object(self, place: Place, mode: str) -> None:
        (place.root / "a").symlink_to("t")
        (place.root / "b").symlink_to("t")
        place.file("a.rclonelink", b"file")
        arguments = ("--mode", mode, "--links")
        for uploaded in (2, 0, 0):  # they do not alternate
            said, sent = visit(place, *arguments, code=1)
            assert (said["uploaded"], said["failed"], sent["PutObject"]) == (uploaded, 1, uploaded)
            (failure,) = said["failures"]
            assert failure["path"] == str(place.root / "a")
            assert "a.rclonelink" in failure["reason"]
            assert place.stored()["a.rclonelink"] == b"file"
        said, _ = visit(place, "--verify", "--links", code=1)
        assert (said["verified"], said["differing"]) == (2, 1)
        said, _ = visit(place, *arguments, "--exclude", "/a.rclonelink")
        assert (said["uploaded"], said["failed"]) == (1, 0)  # without the file it is the link's
        assert place.stored()["a.rclonelink"] == b"t"

    @BOTH_MODES
    @pytest.mark.parametrize("how", ["ROOT", "behind a link"])
    @pytest.mark.parametrize("name", ["/proc/cpuinfo", "/sys"])
    def test_files_whose_size_is_made_up_are_refused(
        self, place: Place, mode: str, how: str, name: str
    ) -> None:
        """/proc says 0, /sys 4,096 bytes."""
        file = Path(name) if name != "/sys" else attribute_of_sys()
        if how == "ROOT":
            run = place.run(file, TO, "--mode", mode, "--json", to=None)
        else:
            place.file("other")
            (place.root / "link").symlink_to(file)
            run = place.run("--mode", mode, "--follow-symlinks", "--json")
        assert (run.code, run.json["failed"]) == (1, 1), run.err
        (failure,) = run.json["failures"]
        assert failure["reason"].endswith("its size is not what the file system reports")
        assert run.json["uploaded"] == len(place.stored()) == (how != "ROOT")


def attribute_of_sys() -> Path:
    for path in Path("/sys/kernel").iterdir():
        with contextlib.suppress(OSError):
            if path.is_file() and 0 < len(path.read_bytes()) < path.stat().st_size == 4096:
                return path
    pytest.skip("/sys has no such file here")


# ======================================================================================
# What a ledger forgets
# ======================================================================================


def pages_of(place: Place) -> int:
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(db.execute("PRAGMA page_count").fetchone()[0])


def grow_old(place: Place, days: int) -> None:
    """As if so many days had passed since the last run."""
    seconds = days * 86_400
    ledger(place, f"UPDATE FileStat SET missing_since = missing_since - {seconds}")
    ledger(place, f"UPDATE BatchJob SET created_at = created_at - {seconds}")
    ledger(place, f"UPDATE Destination SET swept_at = swept_at - {seconds}")


class TestHistory:
    """Rows of files that are gone go too, after a while."""

    @pytest.mark.parametrize("history", ["0", "3d"])
    def test_the_ledger_of_rotating_logs_does_not_grow(self, place: Place, history: str) -> None:
        rows, pages = [], []
        for night in range(14):
            for number in range(40):
                place.file(f"log.{night}.{number}", b"%d" % night)
                (place.root / f"log.{night - 2}.{number}").unlink(missing_ok=True)
            said, _ = visit(place, "--mode", "concurrent", "--keep-history", history)
            assert said["uploaded"] == 40
            rows.append(len(place.rows("SELECT id FROM FileStat")))
            pages.append(pages_of(place))
            grow_old(place, 1)
        kept = 80 if history == "0" else 80 + 3 * 40
        assert rows[-1] == max(rows[5:]) == kept
        assert pages[-1] <= pages[9] + 2  # a night's rows take three
        assert len(place.stored()) == 14 * 40
        if history != "0":
            assert len(place.rows("SELECT id FROM BatchJob")) <= 5

    def test_what_is_gone_is_remembered_for_90_days(self, place: Place) -> None:
        place.file("stays")
        gone = place.file("goes", b"content")
        visit(place, *CONCURRENT)
        gone.unlink()
        grow_old(place, 2)
        visit(place, *CONCURRENT)
        marks = {row["object_key"]: row["missing_since"] for row in place.rows()}
        assert marks["p/stays"] is None
        assert marks["p/goes"] is not None
        grow_old(place, 80)
        place.file("goes", b"content")  # a backup brings it back
        said, sent = visit(place, *CONCURRENT)
        assert (said["unchanged"], sent) == (2, Counter())
        assert {row["missing_since"] for row in place.rows()} == {None}
        gone.unlink()
        grow_old(place, 2)
        visit(place, *CONCURRENT)
        grow_old(place, 89)
        visit(place, *CONCURRENT)
        assert len(place.rows()) == 2
        grow_old(place, 2)
        visit(place, *CONCURRENT)
        assert [row["object_key"] for row in place.rows()] == ["p/stays"]

    def test_what_is_gone_is_looked_for_once_a_day(self, place: Place) -> None:
        place.file("stays")
        gone = place.file("goes")
        visit(place, *CONCURRENT)
        gone.unlink()
        for hours, is_noticed in ((2, False), (23, True)):
            ledger(place, f"UPDATE Destination SET swept_at = swept_at - {hours * 3600}")
            visit(place, *CONCURRENT)
            assert any(row["missing_since"] for row in place.rows()) == is_noticed

    def test_a_clock_that_was_ahead_for_a_night(self, place: Place) -> None:
        place.file("stays")
        gone = place.file("goes")
        visit(place, *CONCURRENT)
        gone.unlink()
        for _ in range(2):  # that night found a file missing, and then another one did
            grow_old(place, -20_000)
            visit(place, *CONCURRENT)
            marks = {row["object_key"]: row["missing_since"] for row in place.rows()}
            assert marks["p/stays"] is None
            assert 0 <= time.time() - marks["p/goes"] < 86_400

    @pytest.mark.parametrize("number", [4_000_000_000, (1 << 63) - 1])
    def test_memory_does_not_depend_on_the_numbers_of_rows(self, place: Place, number: int) -> None:
        place.file("stays")
        gone = place.file("goes")
        visit(place, *CONCURRENT)
        ledger(place, f"UPDATE FileStat SET rowid = {number} WHERE object_key = 'p/stays'")
        gone.unlink()
        place.file("new")
        grow_old(place, 2)
        said, _ = visit(place, *CONCURRENT)
        marks = {row["object_key"]: row["missing_since"] for row in place.rows()}
        assert [key for key, since in marks.items() if since] == ["p/goes"]
        assert said["peak_memory_bytes"] < 200 * MIB

    def test_every_share_looks_for_its_own(self, place: Place) -> None:
        place.files(20)
        for night in range(2):
            for share in ("1/2", "2/2"):
                visit(place, *CONCURRENT, "--db", "pfu.db", "--shard", share)
            if night == 0:
                shutil.rmtree(place.root)
                place.file("stays")
                grow_old(place, 2)
        marks = {row["object_key"]: row["missing_since"] for row in place.rows()}
        assert [key for key, since in marks.items() if since is None] == ["p/stays"]

    def test_of_old_runs_the_last_success_is_kept(self, place: Place) -> None:
        place.file("f")
        for _ in range(3):
            visit(place, *CONCURRENT)
        visit(place, *CONCURRENT, to=f"{TO}2")
        grow_old(place, 200)
        place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), "PutObject"))
        place.file("f", b"other")
        for _ in range(2):
            assert place.run(*CONCURRENT).code in (1, 2)
        jobs = place.rows("SELECT * FROM BatchJob WHERE created_at < strftime('%s') - 86400")
        assert sorted(job["destination"] for job in jobs) == [TO, f"{TO}2"]
        assert {job["status"] for job in jobs} == {pfu.JobStatus.COMPLETE}
        assert place.run("--status", to=None).code == 0

    def test_half_a_scan_forgets_nothing(self, place: Place) -> None:
        place.file("open/f")
        place.file("closed/f")
        visit(place, *CONCURRENT)
        grow_old(place, 2)
        closed = place.root / "closed"
        closed.chmod(0)
        try:
            run = place.run(*CONCURRENT, "--keep-history", "0", preexec_fn=drop_privilege)
        finally:
            closed.chmod(0o755)
        assert run.code == 1
        assert {row["missing_since"] for row in place.rows()} >= {None}
        assert {row["object_key"] for row in place.rows()} >= {"p/open/f", "p/closed/f"}

    def test_a_share_forgets_its_own_alone(self, place: Place) -> None:
        place.files(20)
        arguments = (*CONCURRENT, "--db", "pfu.db", "--keep-history", "0", "--shard")
        for share in ("1/2", "2/2", "1/2"):
            visit(place, *arguments, share)
        assert len(place.rows()) == 20
        for path in place.root.glob("d1/*"):
            path.unlink()
        visit(place, *arguments, "1/2")
        left = {row["file_path"] for row in place.rows()}
        mine, top = pfu.Shard(1, 2), place.root
        own = {path for path in left if mine.has(os.fsencode(os.path.relpath(path, top)))}
        assert all(os.path.exists(path) for path in own)
        assert not all(map(os.path.exists, left - own))

    def test_verify_tells_what_went_away_from_what_it_never_knew(self, place: Place) -> None:
        place.files(4)
        visit(place, *CONCURRENT)
        (place.root / "d1/f00001").rename(place.root / "d1/renamed")
        (place.root / "d2/f00002").unlink()
        boto_client(place).put_object(Bucket=BUCKET, Key="p/stranger", Body=b"")
        visit(place, *CONCURRENT)
        said, _ = visit(place, "--verify")
        assert (said["verified"], said["extra"], said["extra_known"]) == (3, 3, 2)


# ======================================================================================
# What a ledger takes over
# ======================================================================================


SCHEMA_2 = {
    "FileStat": (
        "id TEXT PRIMARY KEY, created_at INTEGER, file_size INTEGER, last_modified INTEGER, "
        "permissions TEXT, file_path TEXT, status INTEGER, batch_id TEXT, object_key TEXT, "
        "etag TEXT, sha256 TEXT, attempts INTEGER, error TEXT, uploaded_at INTEGER, "
        "inode INTEGER, racy INTEGER"
    ),
    "Outcome": (
        "file_id TEXT, file_size INTEGER, last_modified INTEGER, permissions TEXT, "
        "status INTEGER, etag TEXT, sha256 TEXT, attempts INTEGER, error TEXT, "
        "uploaded_at INTEGER, inode INTEGER, racy INTEGER"
    ),
}


def make_older(place: Place) -> None:
    """The ledger as pfu 0.1 has written it: without ctime, owner, part size and destinations."""
    with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
        for table, columns in SCHEMA_2.items():
            names = ", ".join(column.split()[0] for column in columns.split(", "))
            db.execute(f"ALTER TABLE {table} RENAME TO newer")
            db.execute(f"CREATE TABLE {table}({columns})")
            db.execute(f"INSERT INTO {table} SELECT {names} FROM newer")
            db.execute("DROP TABLE newer")
        db.execute("CREATE INDEX FileStat_pages ON FileStat(status, file_size, id)")
        db.execute("DROP TABLE Destination")
        db.execute("PRAGMA user_version=2")
        db.commit()


def boto_client(place: Place) -> Any:
    told = place.server.environment()
    return boto3.client(
        "s3",
        endpoint_url=place.endpoint,
        config=Config(**NO_MORE_CHECKSUMS),
        region_name="us-east-1",
        aws_access_key_id=told["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=told["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture
def foreign(lenient_place: Place) -> Place:
    """A destination that boto3 has filled, in parts of 8 MiB, without any metadata."""
    place = lenient_place
    three_files(place.root)
    client = boto_client(place)
    for name in place.local():
        path = str(place.root / name)
        client.upload_file(path, BUCKET, f"p/{name}", Config=TransferConfig(use_threads=False))
    for stored in place.server.objects(BUCKET).values():
        assert "x-amz-meta-mtime" not in stored.headers
    return place


UNKNOWN = "has objects that are not in this ledger"


class TestTakeover:
    """Ledgers of an older pfu, and objects that none has put there."""

    @BOTH_MODES
    def test_an_older_ledger_is_taken_over_without_a_byte_sent(
        self, place: Place, mode: str
    ) -> None:
        three_files(place.root)
        (place.root / "link").symlink_to("same")
        arguments = ("--mode", mode, *PART, "--links", "--directory-markers")
        visit(place, *arguments)
        make_older(place)
        older = (place.path / "pfu.db").read_bytes()
        plan = place.run(*arguments, "--dry-run")
        assert (plan.code, "the ledger is from an older pfu" in plan.out) == (0, True)
        assert (place.path / "pfu.db").read_bytes() == older
        assert place.run("--status", to=None).code == 0
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["uploaded"], sent) == (5, 0, Counter())
        assert len([note for note in said["notes"] if "older pfu" in note]) == 1
        said, sent = visit(place, *arguments)
        assert (said["unchanged"], said["requests"], said["notes"]) == (5, 0, [])
        for name in ("same", "large"):
            (place.root / name).chmod(0o640)
        said, sent = visit(place, *arguments)
        assert (said["renewed"], sent) == (2, {"PutObject": 1, "CopyObject": 1})

    @BOTH_MODES
    def test_a_file_that_an_older_pfu_read_too_soon_is_not_renewed(
        self, place: Place, mode: str
    ) -> None:
        three_files(place.root)
        visit(place, "--mode", mode, *PART)
        make_older(place)
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
            db.execute("UPDATE FileStat SET racy=1")
            db.commit()
        said, sent = visit(place, "--mode", mode, *PART)
        assert (said["unchanged"], said["renewed"], sent) == (3, 0, Counter())

    def test_what_changed_meanwhile_is_found_in_an_older_ledger(self, place: Place) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        make_older(place)
        for name in ("same", "large"):
            rewrite_in_place(place.root / name)
        said, _ = visit(place, *CONCURRENT)
        assert (said["uploaded"], said["unchanged"]) == (2, 1)
        assert place.stored() == place.local()
        assert_all_is_there(place)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_an_owner_that_an_older_ledger_does_not_know(self, place: Place) -> None:
        three_files(place.root)
        visit(place, *CONCURRENT)
        make_older(place)
        visit(place, *CONCURRENT)
        for name in ("same", "large"):
            os.chown(place.root / name, 12345, 12345)
        said, sent = visit(place, *CONCURRENT)
        assert (said["renewed"], sent) == (2, {"PutObject": 1, "CopyObject": 1})
        for name in ("same", "large"):
            told = place.server.objects(BUCKET)[f"p/{name}"].headers
            assert (told["x-amz-meta-uid"], told["x-amz-meta-gid"]) == ("12345", "12345")

    def test_a_large_file_that_an_older_pfu_began_keeps_its_parts(self, place: Place) -> None:
        place.file("large", os.urandom(LARGE))
        run_broken_off(place, 2, "--mode", "concurrent")
        make_older(place)
        said, sent = visit(place, *CONCURRENT)
        assert (said["uploaded"], sent["UploadPart"]) == (1, 1)
        assert_all_is_there(place)

    @BOTH_MODES
    def test_foreign_objects_are_announced_and_taken_over_by_their_bytes(
        self, foreign: Place, mode: str
    ) -> None:
        arguments = ("--mode", mode, *PART)
        bodies = foreign.stored()
        said, _ = visit(foreign, "--verify")
        assert (said["adopted"], said["verified"], said["extra"]) == (3, 3, 0)
        said, sent = visit(foreign, *arguments)
        assert not any(UNKNOWN in note for note in said["notes"])
        assert sent == {"PutObject": 2, "CopyObject": 1}
        assert (said["renewed"], said["failed"]) == (3, 0)
        assert foreign.stored() == bodies == foreign.local()
        for name in bodies:
            headers = foreign.server.objects(BUCKET)[f"p/{name}"].headers
            assert headers["x-amz-meta-file-mtime"] == f"{LONG_AGO}000000000ns"
        said, _ = visit(foreign, *arguments)
        assert (said["unchanged"], said["requests"]) == (3, 0)
        assert visit(foreign, "--verify", "--checksum")[0]["verified"] == 3

    def test_a_foreign_object_with_other_bytes_is_not_taken_over(self, foreign: Place) -> None:
        for name in ("same", "large"):
            rewrite_in_place(foreign.root / name)
        said, _ = visit(foreign, "--verify", code=1)
        assert (said["adopted"], said["differing"]) == (1, 2)
        said, sent = visit(foreign, *CONCURRENT)
        assert (said["uploaded"], said["renewed"], sent["UploadPart"]) == (3, 1, 3)
        assert foreign.stored() == foreign.local()

    def test_unknown_objects_are_announced_before_the_first_byte(self, foreign: Place) -> None:
        before = len(foreign.server.log)
        run = foreign.run(*CONCURRENT, "--json")
        (note,) = run.json["notes"]
        assert UNKNOWN in note
        assert "--verify" in note
        assert note in run.err
        operations = [request.operation for request in foreign.server.log[before:]]
        first = min(operations.index(name) for name in SENDING & {*operations})
        assert operations.index("ListObjectsV2") < first
        foreign.file("new")
        said, _ = visit(foreign, *CONCURRENT)
        assert (said["uploaded"], said["notes"]) == (1, [])

    @pytest.mark.parametrize("refused", ["deny", "not_implemented"])
    def test_where_no_one_may_list_nothing_is_announced(self, foreign: Place, refused: str) -> None:
        getattr(foreign.server, refused).add("ListObjectsV2")
        said, _ = visit(foreign, *CONCURRENT)
        assert (said["uploaded"], said["notes"]) == (3, [])

    def test_an_empty_destination_is_no_news(self, place: Place) -> None:
        place.file("f")
        boto_client(place).put_object(Bucket=BUCKET, Key="p2/other", Body=b"")
        assert visit(place, *CONCURRENT)[0]["notes"] == []


# ======================================================================================
# Patterns that would match nothing, mounts that are not wanted
# ======================================================================================


PATTERN_FILES: dict[str, tuple[bytes, str]] = {
    "UTF-16 LE": (codecs.BOM_UTF16_LE + "secret\n".encode("utf-16-le"), "it is not UTF-8 text"),
    "UTF-16 BE": (codecs.BOM_UTF16_BE + "secret\n".encode("utf-16-be"), "it is not UTF-8 text"),
    "UTF-16 without a mark": ("secret\n".encode("utf-16-le"), "it is not UTF-8 text"),
    "Latin-1": (b"secret\n# comment\ncaf\xe9\n", "line 3"),
    "./": (b"other\n./secret\n", "line 2"),
    "../": (b"../secret\n", "line 1"),
    "//": (b"d//secret\n", "line 1"),
    "/./": (b"d/./secret\n", "line 1"),
    "negated": (b"*\n!./secret\n", "line 2"),
}


class TestPatterns:
    """A pattern that can never match is told, before a secret goes up."""

    @pytest.mark.parametrize("content, says", PATTERN_FILES.values(), ids=list(PATTERN_FILES))
    def test_pattern_files_that_are_none(self, place: Place, content: bytes, says: str) -> None:
        place.file("secret")
        place.file("d/secret")
        (place.path / "patterns").write_bytes(content)
        run = place.run("--exclude-from", "patterns")
        assert (run.code, place.server.count()) == (2, 0)
        assert says in run.err
        assert "patterns" in run.err

    def test_a_byte_order_mark_is_no_part_of_the_first_pattern(self, place: Place) -> None:
        place.file("secret")
        place.file("fine")
        (place.path / "patterns").write_bytes(codecs.BOM_UTF8 + b"secret\r\n")
        said, _ = visit(place, *CONCURRENT, "--exclude-from", "patterns")
        assert (said["uploaded"], said["skipped"]) == (1, 1)
        assert set(place.stored()) == {"fine"}

    @pytest.mark.parametrize("option", ["--exclude", "--include"])
    @pytest.mark.parametrize("pattern", ["./x", "../x", "a//b", "a/../b"])
    def test_patterns_of_the_command_line(self, place: Place, option: str, pattern: str) -> None:
        place.file("x")
        run = place.run(option, pattern)
        assert (run.code, place.server.count()) == (2, 0)
        assert "can never match" in run.err

    @pytest.mark.parametrize("option, code", [(["--one-file-system"], 0), ([], 1)])
    def test_a_mount_that_cannot_be_read(self, place: Place, option: list[str], code: int) -> None:
        place.file("fine")
        mount = place.root / "mount"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "mode=000", "none", str(mount)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            run = place.run(*CONCURRENT, *option, "--json", preexec_fn=drop_privilege)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (code, 1, code)
        assert run.json["skipped_by_reason"] == ({} if code else {"other file system": 1})

    def test_a_directory_that_cannot_be_read_is_no_mount(self, place: Place) -> None:
        closed = place.file("closed/f").parent
        closed.chmod(0)
        try:
            run = place.run(*CONCURRENT, "--one-file-system", preexec_fn=drop_privilege)
        finally:
            closed.chmod(0o755)
        assert (run.code, "cannot read directory" in run.err) == (1, True)


class TestWhatMayNotBeListed:
    """A directory that may be entered, but not listed; one that may be listed, but not entered."""

    @BOTH_MODES
    @pytest.mark.parametrize("size", [100, LARGE])
    @pytest.mark.parametrize(
        "root, option",
        [("f", ""), ("link", ""), ("f", "--follow-symlinks"), ("", "--files-from list")],
    )
    def test_a_file_that_is_named(
        self, place: Place, root: str, option: str, size: int, mode: str
    ) -> None:
        file = place.file("passage/below/f", os.urandom(size))
        for folder in (file.parent, file.parent.parent):
            (folder / "link").symlink_to(file)
        (place.path / "list").write_text("below/f\n")
        named = str(file.parent / root if root else file.parent.parent)
        options = ("--mode", mode, *PART, *option.split())
        file.parent.chmod(0o111)
        file.parent.parent.chmod(0o111)
        try:
            first, again, verified = (
                place.run(named, TO, *options, *more, to=None, preexec_fn=drop_privilege)
                for more in ([], [], ["--verify"] if root else ["--dry-run"])
            )
        finally:
            file.parent.parent.chmod(0o755)
            file.parent.chmod(0o755)
        assert (first.code, len(place.stored())) == (0, 1), first.err
        assert (again.code, verified.code) == (0, 0), again.err + verified.err

    @pytest.mark.parametrize("option", ["", "--follow-symlinks"])
    def test_links_are_told_from_files_without_a_look_at_them(
        self, place: Place, option: str
    ) -> None:
        file = place.file("closed/f")
        (file.parent / "link").symlink_to("f")
        file.parent.chmod(0o444)
        try:
            run = place.run(*CONCURRENT, "--json", *option.split(), preexec_fn=drop_privilege)
        finally:
            file.parent.chmod(0o755)
        skipped = {"broken " * bool(option) + "symbolic link": 1}
        assert (run.code, run.json["failed"], run.json["skipped_by_reason"]) == (1, 1, skipped)
