"""The ledger: its states and SQL, pages of files, and ledgers that hold odd things."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import (
    BOTH_MODES,
    BUCKET,
    HERE,
    Place,
    assert_accounts,
    drop_privilege,
    wait_until,
)

# ======================================================================================
# States and SQL
# ======================================================================================


class TestStates:
    """States and SQL."""

    def test_a_file_takes_only_possible_steps(self) -> None:
        possible = {(0, 1), (1, 2), (1, 3), (1, 0), (2, 0), (3, 0)}
        for before, after in itertools.product(pfu.FileStatus, repeat=2):
            file = pfu.FileModel("i", 0, 0, 0, "", "", before, "b", "k")
            if (before, after) in possible:
                file.move_to(after)
                assert file.status is after
            else:
                with pytest.raises(
                    ValueError, match=f"no transition from {before.name} to {after.name}"
                ):
                    file.move_to(after)
                assert file.status is before

    def test_a_run_takes_only_possible_steps(self) -> None:
        possible = {(0, 1), (1, 2), (2, 3), (2, 4), (0, 5), (1, 5), (2, 5)}
        for before, after in itertools.product(pfu.JobStatus, repeat=2):
            job = pfu.BatchJobRow("i", before, 0, "", "", "")
            if (before, after) in possible:
                job.move_to(after)
            else:
                with pytest.raises(ValueError, match="no transition"):
                    job.move_to(after)

    def test_sql_comes_from_the_fields(self) -> None:
        @dataclass
        class Row(pfu.BaseModel):
            table = "T"
            indexes = {"T_n": "(n, id)"}  # noqa: RUF012
            id: str
            n: int
            text: str | None = None

        assert Row.create_sql() == [
            "CREATE TABLE IF NOT EXISTS T(id TEXT PRIMARY KEY, n INTEGER, text TEXT)",
            "CREATE INDEX IF NOT EXISTS T_n ON T(n, id)",
        ]
        assert Row.insert_sql() == "INSERT INTO T(id, n, text) VALUES(?, ?, ?)"
        assert Row.insert_sql(updating=["n"]).endswith("ON CONFLICT(id) DO UPDATE SET n=excluded.n")
        assert Row.update_sql(["n", "text"]) == "UPDATE T SET n=?, text=? WHERE id=?"
        assert Row.select_sql("WHERE n=?", ["id"]) == "SELECT id FROM T WHERE n=?"
        assert Row("a", 1).values() == ("a", 1, None)


# ======================================================================================
# Pages of files, and their outcomes
# ======================================================================================


HERE_IT_GOES = pfu.DestinationModel(7, "", "s3://bkt/p")


class TestPages:
    """Pages of files, and their outcomes."""

    def test_the_ledger_takes_many_files_in_little_memory(self, tmp_path: Path) -> None:
        ledger = pfu.Ledger(tmp_path / "l.db")
        found = (
            pfu.Found(f"{n:032x}", f"/p/{n}", f"k{n}", n % 50, 1, "0100644") for n in range(5000)
        )
        for batch in pfu.batches((pfu.Change(f, "new") for f in found), 500):
            ledger.take_in(batch, "job", 1, HERE_IT_GOES)
        position, seen = (-1, ""), []
        while page := ledger.begin_page("job", position, 300, 1 << 40):
            assert len(page) <= 300
            position = (page[-1].file_size, page[-1].id)
            seen += [(file.file_size, file.id) for file in page]
        assert seen == sorted(seen)
        assert len(set(seen)) == 5000
        for turn in pfu.TURNS:
            sql = "EXPLAIN QUERY PLAN " + pfu.FileModel.select_sql(pfu.PAGE.format(turn))
            plan = str(ledger._rows(sql, (0, 5, "a", "job", 10)))
            assert "FileStat_unfinished (status=? AND (file_size,id)>(?,?))" in plan
            assert "TEMP B-TREE" not in plan

    def test_pages_are_bounded_by_bytes_too(self, tmp_path: Path) -> None:
        ledger = pfu.Ledger(tmp_path / "l.db")
        sizes = [1, 10, 10, 100, 1000]
        found = [pfu.Found(f"{n}", f"/{n}", f"{n}", size) for n, size in enumerate(sizes)]
        ledger.take_in([pfu.Change(f, "new") for f in found], "job", 1, HERE_IT_GOES)
        pages, position = [], (-1, "")
        while page := ledger.begin_page("job", position, 10, 100):
            position = (page[-1].file_size, page[-1].id)
            pages.append([file.file_size for file in page])
        assert pages == [[1, 10, 10], [100], [1000]]

    def test_a_page_is_recorded_whole_or_not_at_all(self, tmp_path: Path) -> None:
        ledger = pfu.Ledger(tmp_path / "l.db")
        found = [pfu.Found(f"{n}", f"/{n}", f"{n}", 1) for n in range(3)]
        ledger.take_in([pfu.Change(f, "new") for f in found], "job", 1, HERE_IT_GOES)
        page = ledger.begin_page("job", (-1, ""), 10, 100)
        for file in page:
            file.fail("reason", 1)
        page[2].error = object()  # type: ignore[assignment]
        with pytest.raises(pfu.LedgerError):
            ledger.record(page)
        ledger.fold()
        assert ledger.failures("job", 1) == (0, [])
        assert ledger.pending("job")[0] == 3

    @pytest.mark.parametrize("read_only", [False, True], ids=["run", "dry run"])
    def test_what_a_killed_run_recorded_is_known(
        self, tmp_path: Path, read_only: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A dry run makes no copy of the ledger for that: there may be no room for it."""
        ledger = pfu.Ledger(tmp_path / "l.db")
        monkeypatch.setattr(pfu.Ledger, "_may_write", None)
        ledger.take_in([pfu.Change(pfu.Found("1", "/1", "1", 7, 8), "new")], "job", 1, HERE_IT_GOES)
        page = ledger.begin_page("job", (-1, ""), 10, 100)
        outcome = pfu.Outcome(
            *("1", pfu.OutcomeKind.UPLOADED, "", 1, 9, 10, "0100644", 13, 14, 11, 12, 0, "e", "s")
        )
        page[0].apply(outcome)
        ledger.record(page)
        ledger.close()
        ledger = pfu.Ledger(tmp_path / "l.db", read_only=read_only)
        ledger.fold()
        assert ledger.has_uploads(HERE_IT_GOES)
        (row,) = ledger.known(["1"]).values()
        assert row[pfu.FACTS_KNOWN] == (9, 10, "0100644", 13, 14, 11, 12)
        assert row[pfu.STATE_KNOWN] == pfu.AS_STORED == (pfu.FileStatus.SUCCESS, 0, None, None)
        (file,) = ledger.stored(["1"], as_they_are=True).values()
        assert (file.id, file.is_hashed, file.late) == ("1", True, 0)


# ======================================================================================
# Ledgers that hold odd things, or nothing
# ======================================================================================


class TestOddLedgers:
    """Ledgers that hold odd things, or nothing."""

    def test_a_root_whose_name_is_not_utf_8(self, place: Place) -> None:
        place.root = place.root.rename(os.fsdecode(os.fsencode(place.path) + b"/tree\xff"))
        place.file("f")
        assert place.run("--mode", "concurrent").code == 0
        assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1
        plan = place.run("--dry-run")
        assert (plan.code, plan.err) == (0, "")
        assert "  1 file seen\n  0 would be uploaded " in plan.out
        place.endpoint = ""
        status = place.run("--status", to=None)
        assert (status.code, status.err) == (0, "")
        assert f"{place.path}/tree\\xff to s3://{BUCKET}/p: 1 uploaded" in status.out
        jobs = place.run("--status", "--json", to=None).json
        assert {job["root_dir"] for job in jobs} == {str(place.root)}

    def test_the_status_of_a_run_that_goes_on_and_of_one_that_was_killed(
        self, place: Place
    ) -> None:
        place.file("f")
        stalled = Fault(Action("slow", seconds=60), "PutObject")
        place.server.faults.append(stalled)
        running = place.start("--mode", "concurrent", leads="session")
        wait_until(lambda: stalled.applied)
        status = place.run("--status", to=None)
        assert (status.code, f"  uploading: {place.root} to " in status.out) == (0, True)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        for _ in range(2):  # asking writes nothing
            status = place.run("--status", to=None)
            assert (status.code, status.err) == (0, "")
            assert f"  interrupted: {place.root} to " in status.out
            assert status.out.endswith("\n    killed\n")
            assert place.rows("SELECT status FROM BatchJob")[0]["status"] == pfu.JobStatus.UPLOADING
        (job,) = place.run("--status", "--json", to=None).json
        assert (job["status"], job["error"]) == ("interrupted", "killed")

    def test_who_only_asks_whether_a_ledger_is_held_stops_no_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(tmp_path / "pfu.db")
        assert not pfu.LedgerLock.is_held(path)
        code = f"import pfu\nlock = pfu.LedgerLock({path!r})\nprint('held', flush=True)\ninput()"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=HERE, stdin=pipe, stdout=pipe
        ) as other:
            assert other.stdout and other.stdout.readline() == b"held\n"
            assert pfu.LedgerLock.is_held(path)
            # The one who asks is done while the one who wants it waits.
            monkeypatch.setattr(time, "sleep", lambda seconds: other.communicate(b"\n") and None)
            pfu.LedgerLock(path).close()
        assert not pfu.LedgerLock.is_held(path)

    @pytest.mark.parametrize("content", ["CREATE TABLE T(a)", "no database"])
    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_file_that_is_refused_is_closed(
        self, tmp_path: Path, content: str, read_only: bool
    ) -> None:
        """A program that uses pfu as a library goes on; Python 3.13 and later tell of it."""
        path = tmp_path / "l.db"
        if content.startswith("CREATE"):
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute(content)
        else:
            path.write_text(content * 99)
        program = f"import pfu\npfu.Ledger({str(path)!r}, read_only={read_only})"
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
        run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        assert "LedgerError" in run.stderr and "unclosed" not in run.stderr

    @pytest.mark.parametrize("options", ["--status", "--dry-run", "--status --json"])
    def test_an_empty_ledger_file_is_an_empty_ledger(self, place: Place, options: str) -> None:
        place.file("f")
        (place.path / "pfu.db").touch()
        run = place.run(*options.split())
        assert (run.code, run.err) == (0, "")
        assert [path.name for path in place.path.glob("pfu.db*")] == ["pfu.db"]
        assert (place.path / "pfu.db").stat().st_size == 0

    @pytest.mark.parametrize("options", ["--status", "--dry-run"])
    def test_so_is_one_whose_run_was_killed_while_it_was_made(
        self, place: Place, options: str
    ) -> None:
        place.file("f")
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
            db.execute("PRAGMA journal_mode=WAL")
        (place.path / "pfu.db").chmod(0o600)
        made = (place.path / "pfu.db").read_bytes()
        run = place.run(options)
        assert (run.code, run.err) == (0, "")
        assert (place.path / "pfu.db").read_bytes() == made

    @pytest.mark.parametrize("options", ["--status", "--dry-run"])
    def test_a_ledger_in_a_directory_that_is_read_only(self, place: Place, options: str) -> None:
        place.file("f")
        (place.path / "snapshot").mkdir()
        arguments = "--db", place.path / "snapshot/pfu.db", "--json"
        assert place.run("--mode", "concurrent", *arguments).code == 0
        (place.path / "snapshot").chmod(0o500)
        run = place.run(options, *arguments, preexec_fn=drop_privilege)
        (place.path / "snapshot").chmod(0o700)
        assert (run.code, run.err) == (0, "")
        if options == "--dry-run":
            assert (run.json["unchanged"], run.json["pending"]) == (1, 0)

    @BOTH_MODES
    def test_a_hash_is_not_believed_once_an_engine_had_the_file(
        self, place: Place, mode: str
    ) -> None:
        place.file("f", b"content")
        place.run("--mode", mode)
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute("UPDATE FileStat SET status = ?", (pfu.FileStatus.IN_PROGRESS,))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1)
        assert place.server.count("PutObject") == 2
        place.check_ledger_is_honest()

    @pytest.mark.parametrize("attempts", [0, 1])
    @pytest.mark.parametrize("sent, kept", [(False, ("e", "h")), (True, (None, None))])
    @pytest.mark.parametrize(
        "kind, status",
        [
            (pfu.OutcomeKind.RELEASED, pfu.FileStatus.PENDING),
            (pfu.OutcomeKind.FATAL, pfu.FileStatus.PENDING),
            (pfu.OutcomeKind.FAILED, pfu.FileStatus.FAILED),
            (pfu.OutcomeKind.REFUSED, pfu.FileStatus.FAILED),
        ],
    )
    def test_a_file_that_was_sent_loses_its_hash(
        self,
        kind: pfu.OutcomeKind,
        status: pfu.FileStatus,
        attempts: int,
        sent: bool,
        kept: tuple[Any, Any],
    ) -> None:
        """Not one that could only not be read: what the store has is known as it was."""
        file = pfu.FileModel("i", 0, 0, 0, "", "", pfu.FileStatus.IN_PROGRESS, "b", "k")
        file.etag, file.sha256 = "e", "h"
        file.apply(pfu.Outcome("i", kind, "", attempts, sent=sent))
        assert (file.status, file.etag, file.sha256) == (status, *kept)

    @pytest.mark.parametrize("name", ["own.db", "own.db.lock"])
    def test_a_root_that_is_the_ledger_is_left_out(self, place: Place, name: str) -> None:
        (place.root / "own.db").touch()
        root = place.root / name
        root.touch()
        arguments = ("--mode", "concurrent", "--db", "tree/own.db", "--json")
        run = place.run(root, f"s3://{BUCKET}/p", *arguments, to=None)
        assert run.code == 0, run.err
        assert run.json["skipped_by_reason"] == {"pfu's own ledger": 1}
        assert_accounts(run.json)
        assert place.stored() == {}

    @pytest.mark.parametrize("options", [[], ["--verify"], ["--dry-run"], ["--cleanup"]])
    def test_the_database_of_another_program_stays_as_it_is(
        self, place: Place, options: list[str]
    ) -> None:
        """Even its journal: that program may be older than write-ahead logs, or on NFS."""
        place.file("f")
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute("CREATE TABLE theirs(x)")
        before = (place.path / "pfu.db").read_bytes()
        run = place.run(*options)
        assert (run.code, "database of another program" in run.err) == (2, True), run.err
        assert (place.path / "pfu.db").read_bytes() == before
        assert not {"pfu.db-wal", "pfu.db-shm"} & set(os.listdir(place.path))

    def test_json_of_a_run_that_finds_the_ledger_locked(self, place: Place) -> None:
        place.file("f")
        with contextlib.closing(pfu.LedgerLock(str(place.path / "pfu.db"))):
            run = place.run("--json")
        assert (run.code, run.json["exit_code"], run.json["status"]) == (3, 3, "could not start")
        assert f"in use by process {os.getpid()}" in run.json["error"]

    @pytest.mark.parametrize("options", [[], ["--verify"], ["--cleanup"]], ids=str)
    def test_a_lock_file_that_cannot_be_written(self, place: Place, options: list[str]) -> None:
        def fill_the_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        place.file("f")
        assert place.run().code == 0
        run = place.run(*options, preexec_fn=fill_the_disk)
        assert run.code == 2
        assert "pfu.db.lock: File too large (free some space and rerun" in run.err
        assert len(run.err.splitlines()) == 1
        assert place.run(*options).code == 0

    @pytest.mark.parametrize("damage", ["permissions = 'x'", "permissions = -5", "racy = 7"])
    def test_a_file_whose_row_is_damaged_is_uploaded_again(self, place: Place, damage: str) -> None:
        place.file("f")
        assert place.run().code == 0
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
            db.execute(f"UPDATE FileStat SET {damage}")
        assert "its row in the ledger is damaged" in place.run("--dry-run").out
        runs = [place.run("--mode", "concurrent", "--json").json for _ in range(2)]
        assert [(run["uploaded"], run["failed"]) for run in runs] == [(1, 0), (0, 0)]
        place.check_ledger_is_honest()

    @pytest.mark.parametrize("options", [[], ["--verify"], ["--cleanup"]], ids=str)
    def test_no_lock_is_left_beside_a_file_of_another_program(
        self, place: Place, options: list[str]
    ) -> None:
        place.file("f")
        (place.path / "notes.txt").write_text("not a database\n" * 100)
        with contextlib.closing(sqlite3.connect(place.path / "theirs.db")) as db, db:
            db.execute("CREATE TABLE theirs(x)")
        before = set(os.listdir(place.path))
        for name in ("notes.txt", "theirs.db"):
            run = place.run("--db", name, *options)
            assert (run.code, run.err.count("\n")) == (2, 1), run.err
            assert f" ledger {place.path / name}: " in run.err
        assert set(os.listdir(place.path)) == before

    @pytest.mark.parametrize("options", [["--status"], ["--dry-run"], ["--cleanup", "--dry-run"]])
    def test_what_only_reads_leaves_no_file(self, place: Place, options: list[str]) -> None:
        """One of another user would stop the next run."""
        place.file("f")
        assert place.run("--mode", "concurrent").code == 0
        place.file("new")
        before = {path: path.stat().st_mtime_ns for path in place.path.glob("pfu.db*")}
        for _ in range(2):
            assert place.run(*options).code == 0
            assert {path: path.stat().st_mtime_ns for path in place.path.glob("pfu.db*")} == before
