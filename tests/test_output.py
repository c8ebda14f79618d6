"""What is said without a terminal: the summary, JSON, the status, a dry run, help."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import BUCKET, MIB, PART, Place, redirected

# ======================================================================================
# Summary, JSON, status, dry run
# ======================================================================================


SUMMARY = pfu.Summary(
    root="/srv/data",
    destination="s3://bucket/backup",
    status="complete with failures",
    seen=50_002,
    uploaded=12_345,
    unchanged=37_652,
    skipped=3,
    failed=2,
    bytes_uploaded=5 * 10**9,
    elapsed_seconds=130.0,
    cpu_seconds=12.14,
    peak_memory_bytes=142 * MIB,
    requests=12_360,
    retries=15,
    throttled=3,
    fast_lane=12_000,
    fast_lane_off="abandoned during the run: 400",
    skipped_by_reason={"symbolic link": 2, "socket": 1},
    exit_code=1,
)
SUMMARY_TEXT = """\
complete with failures: /srv/data to s3://bucket/backup
  50,002 files seen
  12,345 uploaded     4.7 GiB
  37,652 unchanged
       3 skipped      symbolic link: 2, socket: 1
       2 failed       listed above; all are in the ledger
  2 min 10 s, 95 files/s, 36.7 MiB/s
  12.1 s of CPU, 142.0 MiB of memory, 12,360 requests, 15 retried, 3 throttled
  12,000 of 12,345 by the fast lane: abandoned during the run: 400
next: fix the errors above and rerun; pfu resumes from here"""


class TestOutput:
    """Summary, JSON, status, dry run."""

    def test_without_a_terminal_only_the_summary_is_said(self, place: Place) -> None:
        place.files(3)
        run = place.run("--mode", "concurrent")
        assert run.err == ""
        head = f"complete: {place.root} to s3://{BUCKET}/p"
        assert run.out.startswith(f"{head}\n  3 files seen\n  3 uploaded     ")
        assert "\x1b" not in run.out
        again = place.run("--mode", "concurrent").out
        assert again.startswith(f"{head}\n  3 files seen\n  0 uploaded\n  3 unchanged\n")
        assert place.run("--mode", "concurrent", "--quiet").out == ""

    def test_json_is_one_object_with_the_promised_keys(self, place: Place) -> None:
        place.files(3)
        summary = place.run("--json").json
        promised = (
            "version batch_id mode root destination status seen uploaded unchanged skipped failed "
            "pending bytes_uploaded bytes_pending elapsed_seconds cpu_seconds peak_memory_bytes "
            "requests retries throttled fast_lane fast_lane_off skipped_by_reason failures"
        )
        assert set(promised.split()) <= set(summary)
        assert summary["requests"] >= 3
        assert summary["peak_memory_bytes"] > 10 * MIB
        assert 0 < summary["cpu_seconds"] < 60

    def test_the_counts_of_requests_are_those_of_the_store(self, place: Place) -> None:
        place.files(30)
        fault = Fault(Action("error", 503, "SlowDown"), operation="PutObject", times=4)
        place.server.faults.append(fault)
        summary = place.run("--json").json
        assert place.server.count("PutObject") == 34
        assert summary["requests"] == 34 + place.server.count("HeadObject") == 36
        assert (summary["retries"], summary["throttled"]) == (4, 4)

    def test_the_summary_is_read_at_a_glance(self) -> None:
        plain, coloured = (
            "\n".join(pfu.painted(line, colours) for line in pfu.summary_lines(SUMMARY))
            for colours in (False, True)
        )
        assert plain == SUMMARY_TEXT
        assert coloured.startswith("\x1b[33mcomplete with failures\x1b[0m: /srv")
        assert "\n  \x1b[31m     2 failed\x1b[0m       listed" in coloured
        assert re.sub(r"\x1b\[\d+m", "", coloured) == SUMMARY_TEXT

    def test_status_shows_the_last_runs(self, place: Place) -> None:
        place.files(3)
        place.run("--mode", "concurrent")
        place.run("--mode", "parallel")
        place.endpoint = ""
        run = place.run("--status", to=None)
        assert run.code == 0
        first, second = run.out.splitlines()
        assert f"complete: {place.root} to s3://{BUCKET}/p: 0 uploaded (0 B), 3 unchanged" in first
        assert ": 3 uploaded (" in second
        assert [job["mode"] for job in place.run("--status", "--json", to=None).json] == [
            "parallel",
            "concurrent",
        ]
        other = place.run("--status", "--db", "none.db", to=None)
        assert (other.code, other.err.count("\n")) == (2, 1)
        assert not (place.path / "none.db").exists()

    def test_a_dry_run_says_what_would_go_and_writes_nothing(self, place: Place) -> None:
        new = place.file("new\x1b", b"12345")
        run = place.run("--dry-run")
        assert run.code == 0
        assert "tree/new\\x1b  5 B  new\n" in run.out
        head = f"dry run: {place.root} to s3://{BUCKET}/p"
        assert run.out.endswith(
            f"{head}\n  1 file seen\n  1 would be uploaded   5 B\n  1 request\n"
        )
        assert not list(place.path.glob("pfu.db*"))
        assert place.server.count() == 0
        place.run("--mode", "concurrent")
        before = (place.path / "pfu.db").read_bytes(), place.server.count()
        os.utime(new, (1, 1))
        run = place.run("--dry-run", "--json")
        told = run.json
        assert (told["pending"], told["bytes_pending"], told["bytes_uploaded"]) == (1, 5, 0)
        assert before == ((place.path / "pfu.db").read_bytes(), place.server.count())

    def test_names_are_printed_without_escapes(self, place: Place) -> None:
        place.file("a\x1b[31m\nb", b"1")
        place.server.faults.append(
            Fault(Action("error", 400, "InvalidRequest", "bad\x07"), operation="PutObject")
        )
        run = place.run("--mode", "concurrent")
        assert run.code == 1
        assert "tree/a\\x1b[31m\\nb: upload" in run.err
        assert "\x1b" not in run.err
        assert run.err.count("\n") == 1

    def test_help_fits_the_screen(self, place: Place) -> None:
        place.environment["COLUMNS"] = "100"
        run = place.run("--help", to=None)
        assert run.code == 0
        assert max(map(len, run.out.splitlines())) <= 100
        assert "--dry-run" in run.out
        assert place.run("--version", to=None).out == f"pfu {pfu.__version__}\n"

    def test_a_dry_run_tells_requests_and_their_price(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.files(3)
        place.file("large", b"x" * (11 * MIB))
        run = place.run("--dry-run", "--json", *PART)
        assert (run.json["requests"], run.json["request_cost_usd"]) == (3 + 5, None)
        assert run.json["pending"] == 4
        uploader = pfu.S3Uploader("s3://bkt", pfu.S3Options(storage_class="DEEP_ARCHIVE"))
        assert uploader.request_cost(1_000_000) == 50.0
        assert pfu.S3Uploader("s3://bkt").request_cost(50_000) == 0.25


# ======================================================================================
# Output that nobody takes
# ======================================================================================


FULL = "pfu: cannot write to standard output: No space left on device\n"


class TestNobodyListens:
    """Output that nobody takes."""

    @pytest.mark.parametrize(
        "mode, redirection, says",
        [
            ("concurrent", ">&-", ""),
            ("parallel", "2>&-", ""),
            ("parallel", "<&- >&- 2>&-", ""),
            ("concurrent", ">/dev/full", FULL),
            ("parallel", "2>/dev/full", ""),
            ("concurrent", ">/dev/full 2>&1", ""),
        ],
    )
    def test_output_that_nobody_takes_fails_no_upload(
        self, place: Place, mode: str, redirection: str, says: str
    ) -> None:
        place.files(30)
        run = redirected(place, redirection, "--mode", mode, "--verbose")
        assert run.code == 0
        assert says in run.err
        assert place.stored() == place.local()
        assert place.check_ledger_is_honest() == 30

    @pytest.mark.parametrize("options", ["--dry-run", "--json", "--status"])
    def test_a_full_disk_for_what_is_asked_is_told(self, place: Place, options: str) -> None:
        place.files(3)
        place.run("--mode", "concurrent")
        run = redirected(place, ">/dev/full", *options.split())
        assert (run.code, run.err) == (0, FULL)

    def test_what_cannot_be_said_keeps_its_exit_code(self, place: Place) -> None:
        assert redirected(place, "2>/dev/full", "--no-such-option").code == 2
        assert redirected(place, "2>/dev/full", "--db", "no/such/folder/x.db").code == 2

    @pytest.mark.parametrize("options", ["--mode concurrent", "--dry-run"])
    def test_a_reader_that_has_gone_is_no_trouble(self, place: Place, options: str) -> None:
        place.files(3)
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as gone:
            done = subprocess.run(
                place.command(*options.split()),
                cwd=place.path,
                env=place.environment,
                stdout=gone,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (done.returncode, done.stderr) == (0, b"")
        assert place.stored() == ({} if "--dry-run" in options else place.local())

    @pytest.mark.parametrize("options, code", [("--mode concurrent", 1), ("--dry-run", 0)])
    def test_names_that_the_terminal_cannot_show(
        self, place: Place, options: str, code: int
    ) -> None:
        place.file("caf\u00e9", b"1")
        place.file("plain", b"22")
        place.environment["PYTHONIOENCODING"] = "ascii"
        fault = Fault(Action("error", 400, "InvalidRequest"), operation="PutObject", key="caf")
        place.server.faults.append(fault)
        run = place.run(*options.split())
        assert run.code == code, run.err
        assert "caf\\xe9" in (run.err if code else run.out)
        assert list(place.stored()) == (["plain"] if code else [])
