"""--events: what happens in a run, line by line, for programs; --verbose: for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from testing.faults import Action, Fault
from testing.place import MIB, PART, Place, rewrite_in_place

MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
FILE_KEYS = {
    *("event", "time", "path", "key", "outcome", "bytes", "seconds", "etag", "sha256", "reason"),
}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def by_name(place: Place, events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    cut = len(f"{place.root}/")
    return {told["path"][cut:]: told for told in events if told["event"] == "file"}


class TestEvents:
    """--events."""

    @MODES
    def test_every_file_that_ends(self, place: Place, mode: str) -> None:
        for name in ("a", "b", "denied"):
            place.file(name, name.encode())
        place.file("large", os.urandom(11 * MIB))
        place.file(
            "x" * 200 + "/" + "y" * 200 + "/" + "z" * 250 + "/" + "w" * 250 + "/" + "v" * 200
        )
        place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), key="denied"))
        run = place.run(*PART, "--events", "events", "--mode", mode, "--json")
        events = events_of((place.path / "events").read_text())
        assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
        end = {key: value for key, value in events[-1].items() if key not in ("event", "time")}
        assert end == run.json and run.code == 1
        files = by_name(place, events)
        assert all(told.keys() == FILE_KEYS for told in files.values())
        assert {name: told["outcome"] for name, told in files.items() if len(name) < 10} == {
            **dict.fromkeys(("a", "b", "large"), "uploaded"),
            "denied": "failed",
        }
        assert "AccessDenied" in files["denied"]["reason"]
        objects = place.server.objects("bkt")
        for name in ("a", "b", "large"):
            told, stored = files[name], objects[files[name]["key"]]
            assert told["etag"] == stored.etag.strip('"') and told["bytes"] == stored.size
            assert told["sha256"] and 0 <= told["seconds"] < 60
        assert sum(told["event"] == "file" for told in events) == 5

    def test_reruns_append_and_tell_what_became_of_changes(self, place: Place) -> None:
        for name in ("same", "mode", "gone"):
            place.file(name, name.encode())
        place.run("--events", "events")
        (place.root / "mode").chmod(0o600)
        place.run("--checksum", "--events", "events")
        events = events_of((place.path / "events").read_text())
        starts = [number for number, told in enumerate(events) if told["event"] == "start"]
        again = by_name(place, events[starts[1] :])
        assert {name: told["outcome"] for name, told in again.items()} == {
            **dict.fromkeys(("same", "gone"), "unchanged"),
            "mode": "metadata updated",
        }

    def test_what_is_unchanged_has_no_line(self, place: Place) -> None:
        place.file("a")
        place.run()
        place.run("--events", "events")
        events = events_of((place.path / "events").read_text())
        assert [told["event"] for told in events] == ["start", "end"]

    def test_standard_output(self, place: Place) -> None:
        place.file("a")
        run = place.run("--events", "-")
        kinds = [told["event"] for told in events_of(run.out)]
        assert (run.code, kinds[0], kinds[-1]) == (0, "start", "end") and "file" in kinds

    def test_a_dry_run_tells_what_is_pending(self, place: Place) -> None:
        place.file("a")
        run = place.run("--events", "-", "--dry-run")
        events = events_of(run.out)
        assert by_name(place, events)["a"]["outcome"] == "pending"
        assert (events[0]["dry_run"], events[-1]["status"]) == (True, "dry run")

    def test_progress_is_told_once_a_second(self, place: Place) -> None:
        for number in range(30):
            place.file(f"f{number}", os.urandom(100_000))
        run = place.run("--events", "-", "--bwlimit", "1M")
        told = [each for each in events_of(run.out) if each["event"] == "progress"]
        assert 2 <= len(told) <= 6
        assert told[-1]["files_to_upload"] == 30 and told[-1]["bytes_to_upload"] == 3_000_000
        assert told[0]["files"] <= told[-1]["files"] <= 30

    @pytest.mark.parametrize("path", ["no/where", "tree", "link"])
    def test_a_file_that_cannot_be_written_is_told_first(self, place: Place, path: str) -> None:
        place.file("a")
        (place.path / "link").symlink_to("target")
        run = place.run("--events", path)
        assert run.code == 2 and "open events" in run.err and not place.stored()

    def test_a_full_disk_stops_nothing(self, place: Place) -> None:
        for number in range(200):
            place.file(f"f{number}")
        done = place.run_in_shell('"$@" > /dev/full', "--events", "-", "--mode", "concurrent")
        assert (done.returncode, len(place.stored())) == (0, 200)
        assert done.stderr.count("cannot write events to standard output: No space left") == 1

    def test_a_reader_that_goes_stops_nothing(self, place: Place) -> None:
        for number in range(200):
            place.file(f"f{number}")
        script = 'set -o pipefail; "$@" | head -n 1'
        done = place.run_in_shell(script, "--events", "-", "--mode", "concurrent")
        assert (done.returncode, len(place.stored())) == (0, 200), done.stderr
        assert json.loads(done.stdout)["event"] == "start"

    @pytest.mark.parametrize(
        "options, says",
        [
            ("--events - --json", "both print to standard output"),
            ("--events e --verify", "--events applies to uploads, not to --status"),
            ("--events e --cleanup", "--events applies to uploads, not to --status"),
        ],
    )
    def test_what_does_not_go_together(self, place: Place, options: str, says: str) -> None:
        run = place.run(*options.split())
        assert run.code == 2 and says in run.err

    @pytest.mark.parametrize("how", ["full", "closed"])
    def test_who_does_not_take_them_costs_one_line(self, place: Place, how: str) -> None:
        place.files(40)
        script = {"full": '"$@" > /dev/full', "closed": '"$@" | head -c 10; exit ${PIPESTATUS[0]}'}
        done = place.run_in_shell(script[how], "--events", "-", "--mode", "concurrent")
        assert (done.returncode, len(place.stored())) == (0, 40), done.stderr
        assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 2, done.stderr

    @pytest.mark.parametrize(
        "path", ["pfu.db", "pfu.db-wal", "pfu.db-shm", "pfu.db.lock", "log", "./log"]
    )
    def test_a_file_that_is_taken(self, place: Place, path: str) -> None:
        place.file("a")
        run = place.run("--events", path, "--log-file", "log")
        assert run.code == 2 and "--events names the same file as" in run.err, run.err
        assert place.run().code == 0

    @pytest.mark.parametrize(
        "options",
        [
            "--metrics-file pfu.db",
            "--metrics-file pfu.db.lock",
            "--metrics-file m --db m.new",
            "--log-file a --metrics-file a",
            "--log-file a --events a",
        ],
    )
    def test_what_is_refused_is_not_written(self, place: Place, options: str) -> None:
        place.file("f")
        db = options.partition("--db ")[2] or "pfu.db"
        assert place.run("--db", db).code == 0
        (place.path / "a").write_text("mine")
        before = (place.path / db).read_bytes()
        run = place.run(*options.split())
        assert run.code == 2 and "names the same file as" in run.err, run.err
        assert (place.path / db).read_bytes() == before
        assert (place.path / "a").read_text() == "mine"
        assert place.run("--db", db, "--json").json["unchanged"] == 1

    def test_a_line_that_was_cut_is_ended(self, place: Place) -> None:
        place.file("a")
        (place.path / "events").write_text('{"event": "fi')
        (place.path / "events").chmod(0o600)
        assert place.run("--events", "events").code == 0
        first, *others = (place.path / "events").read_text().splitlines()
        assert first == '{"event": "fi' and json.loads(others[0])["event"] == "start"

    def test_the_file_itself_is_not_uploaded(self, place: Place) -> None:
        place.file("a")
        run = place.run("--events", str(place.root / "events"))
        assert (run.code, set(place.stored())) == (0, {"a"})
        assert place.run("--events", str(place.root / "events")).code == 0

    def test_a_run_that_cannot_start_says_so(self, place: Place) -> None:
        place.file("a")
        run = place.run("--events", "-", to="s3://nobucket")
        events = events_of(run.out)
        assert run.code == 2 and events[-1]["event"] == "end"
        assert events[-1]["error"] and events[-1]["exit_code"] == 2

    def test_names_that_are_not_utf8(self, place: Place) -> None:
        place.file(b"\xff")
        run = place.run("--events", "-")
        (told,) = (each for each in events_of(run.out) if each["event"] == "file")
        assert os.fsencode(told["path"]) == os.fsencode(place.root) + b"/\xff"

    @MODES
    def test_a_file_that_was_told_is_in_the_ledger(self, place: Place, mode: str) -> None:
        """Killed at any moment."""
        place.files(2000, size=10)
        started = place.start("--events", "events", "--mode", mode)
        path = place.path / "events"
        while not path.exists() or path.read_text().count('"file"') < 300:
            assert started.pid
        started.kill()
        lines = path.read_text().rpartition("\n")[0]
        told = {each["key"] for each in events_of(lines) if each["event"] == "file"}
        assert place.run("--json").json["uploaded"] <= 2000 - len(told)


class TestVerbose:
    """--verbose."""

    @MODES
    def test_a_line_for_each_file(self, place: Place, mode: str) -> None:
        place.files(5)
        place.file("large", os.urandom(6 * MIB))
        run = place.run("--verbose", *PART, "--mode", mode)
        lines = {line for line in run.err.splitlines() if line.startswith("pfu: uploaded: ")}
        paths = {Path(place.root, name) for name in place.local()}
        assert lines == {f"pfu: uploaded: {path}" for path in paths}
        rewrite_in_place(place.root / "large")
        assert "pfu: uploaded: " in place.run("--verbose", *PART).err
