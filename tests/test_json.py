"""--json: the same names, words and units in a run, --status, --dry-run, --verify and --cleanup."""

from __future__ import annotations

import os
import signal

import pfu
from testing.faults import Action, Fault
from testing.place import BOTH_MODES, BUCKET, MIB, PART, Place, wait_until

TO = f"s3://{BUCKET}/p"
COUNTS = ("seen", "uploaded", "unchanged", "skipped", "failed", "pending", "bytes_uploaded")
IN_ALL = {"version", "status", "error", "exit_code"}


def begun(place: Place) -> None:
    """A large file, of which the store has a part."""
    place.file("large", os.urandom(11 * MIB))
    place.server.faults.append(Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=1))
    assert place.run(*PART, "--mode", "concurrent", "--concurrency", "1").code == 1
    place.server.faults.clear()


class TestSchema:
    """One schema."""

    @BOTH_MODES
    def test_status_tells_of_a_run_what_the_run_told(self, place: Place, mode: str) -> None:
        place.files(3)
        (place.root / "link").symlink_to("nowhere")
        place.server.faults.append(Fault(Action("error", 400, "NoSuchThing"), key="d1/f00001"))
        told = place.run("--mode", mode, "--json").json
        assert told["status"] == "complete with failures"
        (row,) = place.run("--status", "--json", to=None).json
        names = ("batch_id", "mode", "root", "destination", "status", "error", *COUNTS)
        assert {name: row[name] for name in names} == {name: told[name] for name in names}
        assert (row["id"], row["root_dir"]) == (row["batch_id"], row["root"])
        assert row["created_at"] <= row["finished_at"]
        assert place.rows("SELECT status FROM BatchJob") == [{"status": 4}]

    def test_all_say_how_they_ended(self, place: Place) -> None:
        begun(place)
        for arguments, code, status in (
            (("--cleanup", "--dry-run"), 0, "dry run"),
            (("--cleanup",), 0, "complete"),
            ((TO, "--dry-run"), 0, "dry run"),
            ((TO, "--mode", "concurrent"), 0, "complete"),
            ((TO, "--verify"), 0, "verified"),
            (("s3://none", "--mode", "concurrent"), 2, "interrupted"),
            (("s3://none", "--verify"), 2, "could not start"),
            (("--cleanup", "--db", "none.db"), 2, "could not start"),
            (("nowhere",), 2, "could not start"),
        ):
            root = [place.root] if arguments[0][:2] == "s3" else []
            run = place.run(*root, *arguments, "--json", to=None)
            told = run.json
            assert (run.code, told["status"], told["exit_code"]) == (code, status, code), told
            assert told.keys() >= IN_ALL
            assert bool(told["error"]) == bool(code)
            assert ("verified" in told, "aborted" in told, "seen" in told) == (
                "--verify" in arguments,
                "--cleanup" in arguments,
                not {"--verify", "--cleanup"} & set(arguments),
            )

    def test_a_wrong_option_is_told_in_json_too(self, place: Place) -> None:
        for options, shows in (
            (("--no-such-option",), "seen"),
            (("--mode", "serial", "--verify"), "checked"),
            (("--nice", "99", "--cleanup"), "aborted"),
        ):
            run = place.run(*options, "--json")
            told = run.json
            assert (run.code, told["exit_code"], told["status"]) == (2, 2, "could not start")
            assert (run.err, shows in told) == (f"pfu: {told['error']}\n", True)
        place.environment.update(PFU_JSON="1", PFU_NICE="99")
        assert place.run().json["error"].startswith("PFU_NICE: argument --nice: ")
        assert place.run("--status").out == ""

    def test_what_waits_is_not_what_went(self, place: Place) -> None:
        place.file("a", b"12345")
        plan = place.run("--dry-run", "--json").json
        assert (plan["uploaded"], plan["bytes_uploaded"]) == (0, 0)
        assert (plan["pending"], plan["bytes_pending"]) == (1, 5)
        place.server.faults.append(Fault(Action("error", 503), "PutObject"))
        arguments = ("--mode", "concurrent", "--json", "--patience", "1")
        away = place.run(*arguments).json
        assert (away["pending"], away["bytes_pending"], away["bytes_uploaded"]) == (1, 5, 0)
        place.server.faults.clear()
        done = place.run(*arguments).json
        assert (done["pending"], done["bytes_pending"], done["bytes_uploaded"]) == (0, 0, 5)

    @BOTH_MODES
    def test_status_of_a_run_under_way_has_its_counts(self, place: Place, mode: str) -> None:
        place.files(30)
        stalled = Fault(Action("slow", seconds=60), "PutObject")
        place.server.faults.append(stalled)
        run = place.start("--mode", mode)
        wait_until(lambda: stalled.applied)
        (told,) = place.run("--status", "--json", to=None).json
        assert (told["status"], told["finished_at"]) == ("uploading", None)
        assert (told["seen"], told["pending"], told["uploaded"]) == (30, 30, 0)
        text = place.run("--status", to=None).out
        assert "uploading: " in text
        assert "30 pending" in text
        run.send_signal(signal.SIGKILL)
        run.communicate()

    def test_status_of_a_verification_under_way_has_its_counts(self, place: Place) -> None:
        files = pfu.SCAN_BATCH + 10
        place.files(files)
        assert place.run("--mode", "concurrent").code == 0
        stalled = Fault(Action("slow", seconds=60), "HeadObject", after=pfu.SCAN_BATCH)
        place.server.faults.append(stalled)
        run = place.start("--verify", "--checksum", "--nice", "0")
        wait_until(lambda: stalled.applied)
        told = place.run("--status", "--json", to=None).json[0]
        assert (told["mode"], told["status"]) == ("verify", "scanning")
        assert (told["seen"], told["unchanged"]) == (pfu.SCAN_BATCH, pfu.SCAN_BATCH)
        run.send_signal(signal.SIGKILL)
        run.communicate()
