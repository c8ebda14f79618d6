"""--remove-source-files: what is removed is in the store, whatever happens."""

from __future__ import annotations

import mmap
import os
import random
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from testing.faults import Action, Fault
from testing.place import MIB, PART, Place, assert_accounts, children_of, rewrite_in_place
from testing.server import S3Server

MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
REMOVE = "--remove-source-files"
BUCKET = "bkt"


def left(place: Place) -> set[str]:
    return {
        str(path.relative_to(place.root))
        for path in place.root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def assert_in_store(server: S3Server, before: dict[str, bytes], gone: set[str]) -> None:
    """Every byte of every file that is gone."""
    objects = server.objects(BUCKET)
    for name in gone:
        stored = objects[f"p/{name}"]
        assert stored.size == len(before[name])
        if stored.body is not None:
            assert stored.body == before[name]
        else:
            assert stored.digest(5 * MIB)


class TestRemoves:
    """What it removes."""

    @MODES
    def test_what_is_stored(self, place: Place, mode: str) -> None:
        place.files(30)
        place.file("empty", b"")
        place.file("large", os.urandom(11 * MIB))
        place.file("sp ace/ü.txt", b"u")
        before = place.local()
        run = place.run(*PART, REMOVE, "--mode", mode, "--json")
        assert (run.code, left(place), run.json["notes"]) == (0, set(), []), run.err
        assert (run.json["uploaded"], run.json["removed"]) == (33, 33)
        assert place.stored() == before
        assert_accounts(run.json)
        assert all(path.is_dir() for path in place.root.rglob("*")), "directories stay"
        again = place.run(REMOVE, "--mode", mode, "--json")
        assert (again.code, again.json["seen"]) == (0, 0), "an empty tree is what it leaves"

    @MODES
    def test_unchanged_files_of_earlier_runs(self, place: Place, mode: str) -> None:
        place.files(12)
        place.file("large", os.urandom(6 * MIB))
        before = place.local()
        assert place.run(*PART).code == 0
        run = place.run(*PART, REMOVE, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["removed"]) == (0, 0, 13), run.err
        assert (left(place), place.stored()) == (set(), before)

    def test_other_bytes_under_the_old_time_are_sent_first(self, place: Place) -> None:
        path = place.file("f", b"before")
        assert place.run().code == 0
        rewrite_in_place(path)
        now = path.read_bytes()
        run = place.run(REMOVE, "--json")
        assert (run.json["uploaded"], run.json["removed"]) == (1, 1)
        assert place.stored() == {"f": now}

    def test_files_in_a_list(self, place: Place) -> None:
        place.files(3)
        name = sorted(place.local())[0]
        (place.path / "list").write_text(name)
        run = place.run(REMOVE, "--files-from", "list")
        assert (run.code, set(place.stored())) == (0, {name})
        assert len(left(place)) == 2

    def test_a_single_file(self, place: Place) -> None:
        path = place.file("f")
        run = place.run(str(path), "s3://bkt/p", REMOVE, to=None)
        assert (run.code, left(place), set(place.stored())) == (0, set(), {"f"})

    def test_events_and_summary(self, place: Place) -> None:
        place.file("f")
        run = place.run(REMOVE, "--events", "events")
        assert "1 removed here" in run.out
        assert '"outcome": "removed"' in (place.path / "events").read_text()


class TestKeeps:
    """What it keeps."""

    @MODES
    def test_links_and_what_has_several_names(self, place: Place, mode: str) -> None:
        place.file("plain")
        place.file("hard", b"h")
        os.link(place.root / "hard", place.root / "other")
        (place.root / "soft").symlink_to("plain")
        (place.root / "empty").mkdir()
        run = place.run(REMOVE, "--links", "--directory-markers", "--mode", mode, "--json")
        assert (run.code, left(place)) == (0, {"hard", "other", "soft"}), run.err
        assert run.json["notes"] == ["2 files not removed: it has more than one hard link"]
        assert (place.root / "empty").is_dir()
        more = place.run(REMOVE, "--remove-linked-files", "--mode", mode)
        assert more.code == 0 and len(left(place)) in (1, 2), "its other name has a new ctime now"
        more = place.run(REMOVE, "--remove-linked-files", "--mode", mode)
        assert (more.code, left(place)) == (0, {"soft"})

    def test_a_root_that_is_a_link_to_a_file(self, place: Place) -> None:
        place.file("f")
        (place.path / "link").symlink_to(place.root / "f")
        run = place.run(str(place.path / "link"), "s3://bkt/p", REMOVE, "--json", to=None)
        assert (run.code, left(place)) == (0, {"f"})
        assert "reached through a symbolic link" in run.json["notes"][0]

    @MODES
    def test_failed_and_skipped_files(self, place: Place, mode: str) -> None:
        for name in ("f", "denied", "excluded"):
            place.file(name)
        place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), key="denied"))
        run = place.run(REMOVE, "--exclude", "excluded", "--mode", mode)
        assert (run.code, left(place)) == (1, {"denied", "excluded"})

    @MODES
    @pytest.mark.parametrize("what", ["content", "touch", "mode", "replaced", "grown", "owner"])
    def test_a_file_that_changes_before_it_is_removed(
        self, place: Place, mode: str, what: str
    ) -> None:
        """When HEAD comes for it, the file is another."""
        path = place.file("f", b"before")
        new = path.with_name("new")
        changes: dict[str, Callable[[], object]] = {
            "content": lambda: rewrite_in_place(path),
            "touch": lambda: os.utime(path),
            "mode": lambda: path.chmod(0o600),
            "replaced": lambda: new.write_bytes(b"before") and new.rename(path),
            "grown": lambda: path.write_bytes(b"before and after"),
            "owner": lambda: os.chown(path, 12345, -1),
        }

        class Meanwhile(Fault):
            def matches(self, request: object, generator: object) -> bool:
                if getattr(request, "operation", "") == "HeadObject" and self.applied == 0:
                    self.applied += 1
                    time.sleep(0.02)  # ctime has a granularity
                    changes[what]()
                return False

        place.server.faults.append(Meanwhile(Action("honest")))
        options = ["--ignore-ctime"] if what == "owner" else []
        if what == "owner" and os.geteuid():
            pytest.skip("only root can give a file away")
        run = place.run(REMOVE, *options, "--mode", mode, "--json")
        assert (run.code, left(place)) == (0, {"f"}), run.err
        assert run.json["notes"] == ["1 file not removed: it has changed since it was read"]

    def test_a_file_modified_just_before_it_was_read(self, place: Place) -> None:
        path = place.file("f")
        os.utime(path)
        place.changes = "RACY_NS = 600 * 10**9"  # two seconds may be over before it is read
        run = place.run(REMOVE, "--json", "--events", "events")
        assert (run.code, left(place)) == (0, {"f"})
        assert "modified less than 2 s before it was read" in run.json["notes"][0]
        told = re.findall(r'"outcome": "([a-z ]*)"', (place.path / "events").read_text())
        assert told == ["uploaded", "not removed"]
        place.changes = ""
        time.sleep(2.1)
        assert place.run(REMOVE).code == 0 and left(place) == set()

    def test_a_store_that_does_not_show_it(self, place: Place) -> None:
        for number in range(40):
            place.file(f"f{number}")
        place.server.faults.append(
            Fault(Action("error", 403, "AccessDenied"), "HeadObject", key="p/f", after=1)
        )
        run = place.run(REMOVE, "--mode", "concurrent", "--quiet")
        assert len(left(place)) >= 39
        assert "not removed: the store does not say what it has" in run.err, "with --quiet too"

    @MODES
    @pytest.mark.parametrize("first", ["uploaded", "unchanged", "renewed"])
    def test_what_the_store_has_lost_is_a_failure(
        self, place: Place, mode: str, first: str
    ) -> None:
        paths = [place.file(f"f{number:02}") for number in range(40)]
        if first != "uploaded":
            assert place.run().code == 0
        for path in paths if first == "renewed" else ():
            path.chmod(0o600)

        class Lost(Fault):
            proofs = 1 if first == "uploaded" else 0  # which the store is asked for before

            def matches(self, request: Any, generator: random.Random) -> bool:
                if request.operation == "HeadObject" and self.proofs:
                    self.proofs -= 1
                    return False
                return super().matches(request, generator)

        place.server.faults.append(Lost(Action("error", 404), "HeadObject", key="p/f1"))
        run = place.run(REMOVE, "--mode", mode, "--json", "--events", "events")
        assert (run.code, run.json["removed"], run.json["failed"]) == (1, 30, 10), run.err
        assert run.json["uploaded"] == (0 if first == "unchanged" else 30)
        assert run.json["bytes_uploaded"] == run.json["uploaded"]
        assert_accounts(run.json)
        lost = "the store does not have it any more"
        assert {failed["reason"] for failed in run.json["failures"]} == {lost}
        assert (place.path / "events").read_text().count('"outcome": "failed"') == 10
        assert len(left(place)) == 10
        place.server.faults.clear()
        sent = place.server.acknowledged("PutObject")
        again = place.run(REMOVE, "--mode", mode, "--json")
        assert (again.code, again.json["uploaded"], left(place)) == (0, 10, set()), again.err
        assert place.server.acknowledged("PutObject") == sent + 10

    def test_a_store_that_shows_an_object_late(self, place: Place) -> None:
        place.file("f")

        class Late(Fault):
            heads = 0

            def matches(self, request: Any, generator: random.Random) -> bool:
                self.heads += request.operation == "HeadObject" and request.key == "p/f"
                return self.heads == 2 and super().matches(request, generator)

        late = Late(Action("error", 404), "HeadObject", key="p/f")
        place.server.faults.append(late)
        run = place.run(REMOVE, "--json")
        assert (run.code, left(place), late.heads) == (0, set(), 3), run.err

    def test_somebody_else_has_stored_another_object_since(self, place: Place) -> None:
        place.file("f", b"mine")
        assert place.run().code == 0
        place.file("f", b"them")
        assert place.run("--db", "theirs.db").code == 0
        place.file("f", b"mine")
        run = place.run(REMOVE, "--json")
        assert (run.code, left(place)) == (1, {"f"})
        assert "has another object under its key" in run.json["failures"][0]["reason"]
        assert place.run(REMOVE).code == 0 and place.stored() == {"f": b"mine"}

    def test_a_directory_that_must_not_be_written(self, place: Place) -> None:
        place.file("d/f")
        place.changes = "os.unlink = lambda *a, **k: os.stat('/nowhere/at/all')"
        run = place.run(REMOVE, "--mode", "concurrent", "--json")
        assert (run.code, left(place)) == (0, {"d/f"})
        assert "1 file not removed: No such file or directory" in run.json["notes"]

    def test_a_directory_that_became_a_link(self, place: Place) -> None:
        """The file outside has the same name, size and time."""
        inside = place.file("d/f", b"x")
        outside = place.path / "outside"

        class Meanwhile(Fault):
            def matches(self, request: object, generator: object) -> bool:
                if getattr(request, "operation", "") == "HeadObject" and not outside.exists():
                    inside.parent.rename(outside)
                    inside.parent.symlink_to(outside)
                return False

        place.server.faults.append(Meanwhile(Action("honest")))
        run = place.run(REMOVE, "--json")
        assert run.code == 0 and (outside / "f").exists()
        assert "1 file not removed" in run.json["notes"][0]

    @pytest.mark.parametrize(
        "options, says",
        [
            ("--sandbox", "cannot be combined with --sandbox"),
            ("--verify", "cannot be combined with --verify"),
            ("--follow-symlinks", "no target of a link is removed"),
        ],
    )
    def test_what_does_not_go_together(self, place: Place, options: str, says: str) -> None:
        place.file("f")
        place.endpoint = "" if options == "--sandbox" else place.endpoint
        run = place.run(REMOVE, *options.split())
        assert run.code == 2 and says in run.err and left(place) == {"f"}

    def test_linked_files_are_part_of_it(self, place: Place) -> None:
        run = place.run("--remove-linked-files")
        assert run.code == 2 and "requires --remove-source-files" in run.err

    def test_a_dry_run_removes_nothing(self, place: Place) -> None:
        place.file("f")
        assert place.run(REMOVE, "--dry-run").code == 0
        assert left(place) == {"f"} and not place.stored()

    def test_a_page_that_is_mapped_and_dirty(self, place: Place) -> None:
        """A write to it moves no time: but for what pfu has written back before."""
        path = place.file("f", bytes(4096))
        os.sync()
        with path.open("r+b") as file:
            pages = mmap.mmap(file.fileno(), 4096)
        pages[:5] = b"first"
        if path.stat().st_mtime < time.time() - 60:
            pytest.skip("writes through a mapping move no time here")
        time.sleep(2.1)

        class Meanwhile(Fault):
            def matches(self, request: object, generator: object) -> bool:
                if getattr(request, "operation", "") == "HeadObject" and not pages.closed:
                    pages[:5] = b"later"
                    pages.close()
                return False

        place.server.faults.append(Meanwhile(Action("honest")))
        run = place.run(REMOVE, "--json")
        assert (run.code, left(place)) == (0, {"f"}), run.err
        assert place.run(REMOVE).code == 0
        assert left(place) <= {"f"}

    def test_what_the_run_itself_reads(self, place: Place) -> None:
        place.file("list", b"list\nf\npatterns\n")
        place.file("patterns", b"*.log\n")
        place.file("f")
        lists = "--files-from", str(place.root / "list")
        run = place.run(REMOVE, *lists, "--exclude-from", str(place.root / "patterns"), "--json")
        assert (run.code, left(place)) == (0, {"list", "patterns"}), run.err
        assert run.json["notes"] == ["2 files not removed: this run reads it"]

    def test_a_dry_run_says_how_many(self, place: Place) -> None:
        place.files(3)
        (place.root / "soft").symlink_to("f")
        run = place.run(REMOVE, "--links", "--dry-run")
        assert "up to 3 files would be removed here" in run.err and len(left(place)) == 4


class TestAfterwards:
    """What later runs make of files that are gone, and in the store."""

    @MODES
    def test_the_same_list_again(self, place: Place, mode: str) -> None:
        place.files(6)
        (place.path / "list").write_text("\n".join(sorted(place.local())))
        arguments = REMOVE, "--files-from", "list", "--mode", mode, "--json"
        for name in sorted(place.local())[:2]:
            (place.path / "two").write_text(name)
            assert place.run(REMOVE, "--files-from", "two").code == 0
        run = place.run(*arguments)
        assert (run.code, run.json["removed"]) == (0, 4), run.err
        gone = "removed here by an earlier run"
        assert run.json["skipped_by_reason"] == {gone: 2}
        assert_accounts(run.json)
        again = place.run("--files-from", "list", "--mode", mode, "--json")
        assert (again.code, again.json["skipped_by_reason"]) == (0, {gone: 6}), again.err
        place.file("new")
        (place.path / "list").write_text("new\nnever")
        assert place.run(*arguments).code == 1

    @MODES
    def test_killed_before_the_ledger_knows(self, place: Place, mode: str) -> None:
        place.files(6)
        (place.path / "list").write_text("\n".join(names := sorted(place.local())))
        place.changes = (
            "import signal\n"
            "_unlink = os.unlink\n"
            "def _kill(*a, **k):\n"
            "    _unlink(*a, **k)\n"
            "    if 'dir_fd' in k: os.kill(os.getppid() if MODE else os.getpid(), signal.SIGKILL)\n"
            "os.unlink = _kill\n"
        ).replace("MODE", repr(mode == "parallel"))
        assert place.run(REMOVE, "--workers", "1", "--mode", mode).code == -signal.SIGKILL
        place.changes = ""
        time.sleep(0.5)
        here = len(left(place))
        assert here < 6
        bucket = place.server.bucket(BUCKET)
        assert bucket
        assert place.run("--verify", "--json").json["verified"] == 6
        lost = next(name for name in names if name not in left(place))
        stored = bucket.objects.pop(f"p/{lost}")
        bucket.sorted_keys = None
        assert place.run("--verify").code == 1
        bucket.put(f"p/{lost}", stored)
        for options in ((), (REMOVE,), ()):
            run = place.run(*options, "--files-from", "list", "--mode", mode, "--json")
            assert (run.code, run.json["uploaded"]) == (0, 0), (options, run.err)
            assert_accounts(run.json)
        assert left(place) == set()
        assert place.run("--mode", mode).code == 0

    def test_shares_of_a_list(self, place: Place) -> None:
        place.files(12)
        (place.path / "list").write_text("\n".join([*sorted(place.local()), "nowhere"]))
        seen = failed = 0
        for _ in range(2):
            for share in ("1/2", "2/2"):
                run = place.run(REMOVE, "--shard", share, "--files-from", "list", "--json")
                assert set(run.json["skipped_by_reason"]) <= {"removed here by an earlier run"}
                seen += run.json["seen"]
                failed += run.json["failed"]
        assert (left(place), seen, failed) == (set(), 26, 2)

    def test_a_list_that_is_reached_by_a_link(self, place: Place) -> None:
        place.file("list", b"list\nf")
        place.file("f")
        (place.path / "link").symlink_to(place.root)
        run = place.run(REMOVE, "--files-from", "link/list")
        assert (run.code, left(place)) == (0, {"list"}), run.err

    def test_a_file_of_a_list_that_others_removed_keeps_its_hash(self, place: Place) -> None:
        path = place.file("f", b"content")
        (place.path / "list").write_text("f")
        assert place.run("--files-from", "list").code == 0
        path.unlink()
        assert place.run("--files-from", "list", REMOVE).code == 1, "pfu has not removed it"
        place.file("f", b"content")
        run = place.run("--files-from", "list", "--json")
        assert (run.code, run.json["uploaded"], run.json["unchanged"]) == (0, 0, 1), run.err

    @MODES
    def test_a_root_that_was_emptied_so_is_no_error(self, place: Place, mode: str) -> None:
        place.files(3)
        assert place.run(REMOVE, "--mode", mode).code == 0
        for options in ((), ("--dry-run",), ("--verify",)):
            run = place.run(*options, "--mode", mode, "--json")
            assert (run.code, run.err) == (0, ""), (options, run.err)
        place.file("f0")
        assert place.run("--mode", mode).code == 0
        (place.root / "f0").unlink()
        assert place.run("--mode", mode).code == 2, "this one pfu has not removed"

    @pytest.mark.parametrize("checksum", [(), ("--checksum",)])
    def test_a_verification_looks_for_what_is_gone(
        self, place: Place, checksum: tuple[str, ...]
    ) -> None:
        place.files(4)
        place.file("large", os.urandom(6 * MIB))
        names = sorted(place.local())
        assert place.run(*PART, REMOVE).code == 0
        place.file("new")
        assert place.run().code == 0
        run = place.run("--verify", *checksum, "--json")
        assert (run.code, run.json["verified"], run.json["extra"]) == (0, 6, 0), run.err
        bucket = place.server.bucket(BUCKET)
        assert bucket
        del bucket.objects[f"p/{names[0]}"]
        bucket.sorted_keys = None
        for _ in range(2):
            run = place.run("--verify", *checksum, "--json")
            assert (run.code, run.json["verified"], run.json["differing"]) == (1, 5, 1), run.out
        told = f"removed here, missing or changed in the store: {place.root}"
        assert told in place.run("--verify", *checksum).out
        assert place.run("--json").json["seen"] == 1

    def test_what_comes_back_is_compared(self, place: Place) -> None:
        place.file("f", b"content")
        assert place.run(REMOVE).code == 0
        place.file("f", b"content")
        run = place.run("--json")
        assert (run.code, run.json["uploaded"], run.json["unchanged"]) == (0, 0, 1), run.err
        assert place.run("--verify").code == 0

    def test_another_provider(self, place: Place) -> None:
        place.file("f")
        place.file("../mine.py", PROVIDER)
        place.environment["PYTHONPATH"] = str(place.path)
        place.endpoint = ""
        run = place.run(REMOVE, "--provider", "mine:Mine", to="x")
        assert (run.code, left(place)) == (2, {"f"})
        assert "this provider cannot show its objects" in run.err


PROVIDER = b"""
import pfu
class Mine(pfu.Uploader):
    prefix = ""
    def __init__(self, destination, *a, **k):
        super().__init__()
        self.destination = destination
    def put(self, upload):
        return pfu.Receipt(etag="x")
"""


class TestStops:
    """Killed, stopped, or without a store."""

    @MODES
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    @pytest.mark.parametrize("share", [0.1, 0.6])
    def test_stopped_amid_it(self, place: Place, mode: str, number: int, share: float) -> None:
        place.files(200, size=20)
        place.file("large", os.urandom(6 * MIB))
        before = place.local()
        started = place.start(*PART, REMOVE, "--mode", mode)
        while len(left(place)) > len(before) * (1 - share):
            time.sleep(0.002)
        os.kill(started.pid, number)
        started.wait()
        time.sleep(0.3)
        assert_in_store(place.server, before, {*before} - left(place))
        run = place.run(*PART, REMOVE, "--mode", mode, "--json")
        assert (run.code, left(place)) == (0, set()), run.err
        assert_in_store(place.server, before, {*before})

    @MODES
    def test_a_store_that_goes_away(self, place: Place, mode: str) -> None:
        place.files(60)
        before = place.local()
        place.server.faults.append(Fault(Action("error", 503, "SlowDown"), "HeadObject", after=5))
        run = place.run(REMOVE, "--patience", "2s", "--mode", mode)
        assert_in_store(place.server, before, {*before} - left(place))
        place.server.faults.clear()
        assert place.run(REMOVE).code == 0 and left(place) == set(), run.err

    def test_a_worker_that_dies(self, place: Place) -> None:
        place.files(400, size=20)
        before = place.local()
        started = place.start(REMOVE, "--mode", "parallel", "--workers", "2")
        while len(left(place)) > 300:
            time.sleep(0.002)
        os.kill(children_of(started.pid)[-1], signal.SIGKILL)
        started.communicate(timeout=60)
        assert started.wait() == 0
        assert_in_store(place.server, before, {*before} - left(place))
        assert place.run(REMOVE).code == 0 and left(place) == set()
