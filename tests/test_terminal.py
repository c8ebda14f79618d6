"""The live view on a terminal, and the progress that it shows."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import s3_job
from testing.place import BOTH_MODES, Place, state_of, wait_until
from testing.terminal import Screen, Seen, on_terminal, set_size
from testing.uploaders import FolderUploader

# ======================================================================================
# What is seen on a terminal
# ======================================================================================


def slow_and_busy(place: Place, files: int = 80) -> None:
    """A store that answers slowly, is too busy for a while, and never takes one of the files."""
    place.files(files, 3000)
    place.server.faults += [
        Fault(Action("error", 400, "InvalidRequest"), operation="PutObject", key="f00003"),
        Fault(Action("error", 503, "SlowDown"), operation="PutObject", times=8, after=20),
        Fault(Action("slow", seconds=0.6), operation="PutObject"),
    ]


SLOW = ("--mode", "concurrent", "--concurrency", "16")
FAILURE = r"pfu: failed: \S*f00003: upload: InvalidRequest: injected"


class TestTerminal:
    """What is seen on a terminal."""

    @pytest.mark.parametrize("columns, lines", [(40, 4), (80, 2), (200, 1)])
    def test_a_terminal_gets_a_live_view(self, place: Place, columns: int, lines: int) -> None:
        slow_and_busy(place)
        seen = on_terminal(place, *SLOW, columns=columns)
        assert seen.code == 1
        assert seen.view(r"^checking\s+the destination; 80 files to upload, 1")
        counts = r"\d+ / 80 files\s+[\d.]+ [KMi]*B / 112\.8 KiB"
        rates = r"[\d.]+ files/s\s+[\d.]+ [KMi]*B/s\s+[1-9]\d* in flight"
        view = seen.view(rf"\nuploading +\d+ %\s+{counts}\s+{rates}\s+1 failed\s+[1-8] throttled$")
        block = view[view.index("uploading") :].split("\n")
        assert len(block) == lines and max(map(len, block)) < columns
        assert {"1", "31", "33", "0"} == seen.screen.styles
        assert re.fullmatch(FAILURE, seen.screen.history().replace("\n", ""))
        assert "\x1b" not in seen.out
        assert "complete with failures: " in seen.out and "8 throttled" in seen.out

    def test_the_time_left_is_said_once_it_can_be(self, place: Place) -> None:
        place.files(100)
        place.server.faults.append(Fault(Action("slow", seconds=0.2), operation="PutObject"))
        seen = on_terminal(place, "--mode", "parallel", "--concurrency", "8")
        assert seen.view(r"(?m)^uploading [^?]* [1-9]\d* s left$")
        assert (seen.code, seen.screen.history()) == (0, "")

    @pytest.mark.parametrize("reflows", [True, False])
    def test_a_terminal_that_changes_its_size_is_left_clean(
        self, place: Place, reflows: bool
    ) -> None:
        slow_and_busy(place, 150)
        sizes = iter([(50, 24), (120, 24), (30, 12), (20, 8), (99, 30)])
        next_at = time.monotonic()

        def act(seen: Seen, process: Any, terminal: int) -> None:
            nonlocal next_at
            if "uploading" in seen.views[-1] and time.monotonic() > next_at:
                # What pfu wrote for the size that was must be on the screen before it changes.
                process.send_signal(signal.SIGSTOP)
                wait_until(lambda: state_of(process.pid) in ("T", "Z", ""))
                while select.select([terminal], [], [], 0)[0]:
                    seen.take(terminal)
                size = next(sizes, (80, 24))
                seen.screen.resize(*size)
                set_size(terminal, *size)
                process.send_signal(signal.SIGCONT)
                next_at = time.monotonic() + 0.1

        seen = on_terminal(place, *SLOW, "--verbose", reflows=reflows, act=act)
        assert next(sizes, None) is None
        assert seen.view(r"(?m)^uploading  +\d+ %")
        if reflows:
            assert seen.screen.history().startswith("pfu: 150 files to upload, ")
            lines = rf"{FAILURE}|pfu: uploaded: \S*?/d\d/f\d{{5}}"
            told = seen.screen.history().replace("\n", "")
            assert re.fullmatch(f"pfu: 150 [^:]*KiB({lines})*", told), told
        else:
            assert not re.search(r"loading  |files/s|in flight|throttled", seen.screen.history())

    @pytest.mark.parametrize("columns, rows", [(80, 2), (20, 5), (1, 1), (0, 0)])
    def test_a_tiny_terminal_is_enough(self, place: Place, columns: int, rows: int) -> None:
        place.files(40)
        place.server.faults.append(Fault(Action("slow", seconds=0.1), operation="PutObject"))
        seen = on_terminal(place, *SLOW, columns=columns, rows=rows)
        assert (seen.code, seen.screen.history()) == (0, "")
        assert max(view.count("\n") for view in seen.views) < max(rows - 1, 1) or not rows
        if columns == 20:
            assert seen.view(r"(?m)^uploading  +\d+ %$")

    @pytest.mark.parametrize("stops", [1, 2])
    def test_a_stop_leaves_the_terminal_clean(self, place: Place, stops: int) -> None:
        place.files(300)
        place.server.faults.append(Fault(Action("slow", seconds=0.4), operation="PutObject"))
        sent: list[float] = []

        def act(seen: Seen, process: Any, terminal: int) -> None:
            ready = "stopping " if sent else "in flight"
            if ready in seen.views[-1] and len(sent) < stops:
                sent.append(time.monotonic())
                process.send_signal(signal.SIGINT)

        seen = on_terminal(place, *SLOW, act=act)
        assert seen.code == 4
        assert seen.view(r"^stopping  +\d+ %")
        said = "pfu: stopped: SIGINT received", "pfu: stopped immediately; the next run resumes"
        assert seen.screen.history() == said[stops - 1]
        assert seen.screen.wraps
        assert ("rerun to resume" in seen.out) == (stops == 1)

    def test_a_suspended_run_leaves_the_terminal_clean(self, place: Place) -> None:
        place.files(60)
        place.server.faults += [
            Fault(Action("slow", seconds=3), operation="PutObject", times=1),  # still at work then
            Fault(Action("slow", seconds=0.2), operation="PutObject"),
        ]
        seen_then: list[str] = []

        def act(seen: Seen, process: Any, terminal: int) -> None:
            if "in flight" not in seen.views[-1] or seen_then:
                return
            process.send_signal(signal.SIGTSTP)
            wait_until(lambda: state_of(process.pid) == "T")
            while select.select([terminal], [], [], 0)[0]:
                seen.screen.feed(os.read(terminal, 65536).decode())
            seen_then.append(seen.screen.shown())
            process.send_signal(signal.SIGCONT)

        seen = on_terminal(place, *SLOW, act=act)
        assert (seen_then, seen.code, seen.screen.history()) == ([""], 0, "")
        assert "in flight" in seen.views[-2]

    @pytest.mark.parametrize(
        "environment, has_view, has_colours",
        [
            ({"NO_COLOR": ""}, True, True),
            ({"NO_COLOR": "1"}, True, False),
            ({"TERM": "dumb"}, False, False),
            ({"TERM": None}, False, False),
        ],
    )
    def test_colours_and_the_view_are_for_terminals_that_have_them(
        self, place: Place, environment: dict[str, str | None], has_view: bool, has_colours: bool
    ) -> None:
        slow_and_busy(place, 40)
        seen = on_terminal(place, *SLOW, environment=environment)
        assert (seen.code, "in flight" in seen.raw) == (1, has_view)
        assert bool(seen.screen.styles) == has_colours
        assert has_view or re.fullmatch(f"{FAILURE}\r\n", seen.raw)

    @pytest.mark.parametrize("option", ["--quiet", "--json"])
    def test_no_view_where_none_is_wanted(self, place: Place, option: str) -> None:
        slow_and_busy(place, 20)
        seen = on_terminal(place, *SLOW, option)
        assert re.fullmatch(f"{FAILURE}\r\n", seen.raw)
        assert (seen.out == "") == (option == "--quiet")

    def test_what_a_dry_run_lists_and_the_view_do_not_mix(self, place: Place) -> None:
        place.files(1100)
        both = Screen(400, 24)  # no line wraps, whatever the path
        master, slave = pty.openpty()
        set_size(master, 400, 24)
        process = subprocess.Popen(
            place.command("--dry-run"),
            cwd=place.path,
            env={**place.environment, "TERM": "xterm", "NO_COLOR": "1"},
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        raw = ""
        with contextlib.suppress(OSError):
            while text := os.read(master, 65536):
                raw += text.decode()
        os.close(master)
        both.feed(raw)
        assert process.wait() == 0
        lines = both.history().replace("\n", "")
        assert "scanning  500 files seen" in raw
        assert "scanning" not in lines
        assert len(re.findall(r"/d\d/f\d{5}  \d+ B  new", lines)) == 1100


# ======================================================================================
# The lines, the rates and the time left
# ======================================================================================


def progress(**figures: int) -> pfu.Progress:
    nothing = dict.fromkeys(pfu.Progress._fields, 0)
    return pfu.Progress(**{**nothing, **figures})  # type: ignore[arg-type]


def shown(columns: int, *steps: tuple[float, pfu.Progress]) -> list[str]:
    """The lines of the last step; each has a time in seconds."""
    view = pfu.UploadView()
    for seconds, step in steps:
        spans = list(view.spans(step, 1000 + seconds))
    return [pfu.painted(line, False) for line in pfu.flowing(spans, columns)]


FULL_VIEW = (
    "uploading 87 % 1,234,567 / 2,345,678 files 8.2 TiB / 9.1 TiB 123,457 files/s 838.2 GiB/s "
    "4,096 in flight 1 s left 1,000,000 failed 1,000,000 throttled"
)


class TestProgress:
    """The lines, the rates and the time left."""

    def test_no_line_is_longer_than_the_terminal_is_wide(self) -> None:
        all_of_it = {"files_to_upload": 2345678, "bytes_to_upload": 10**13}
        figures = {"in_flight": 4096, "throttled": 10**6, "failed": 10**6, **all_of_it}
        halfway = progress(files=1234567, bytes=9 * 10**12, **figures)
        steps = (0, progress(**all_of_it)), (pfu.RATE_SECONDS, halfway)
        for columns in range(250):
            lines = shown(columns, *steps)
            assert max(map(len, lines)) <= columns
            if columns > 28:
                assert " ".join(" ".join(lines).split()) == FULL_VIEW
        stopping = shown(250, *steps, (11, halfway._replace(stopping=True)))
        assert stopping[0].startswith("stopping ") and " left" not in stopping[0]

    def test_rates_are_recent_and_time_left_follows_the_work(self) -> None:
        steps = [(n, progress(files=100 * n, files_to_upload=2000)) for n in range(10)]
        (line,) = shown(200, *steps)
        assert "    100 files/s" in line and line.endswith("  11 s left")
        steps += [(9 + n, progress(files=900, files_to_upload=2000)) for n in range(1, 30)]
        (line,) = shown(200, *steps)
        assert "      0 files/s" in line and " left" not in line
        assert " left" not in shown(200, *steps[:2])[0]

    def test_files_that_need_not_be_sent_count_as_done(self) -> None:
        half = progress(files=2, bytes=200, settled_files=3, settled_bytes=300, failed=1)
        half = half._replace(files_to_upload=10, bytes_to_upload=1000)
        (line,) = shown(200, (0, half))
        assert "  50 %   5 / 10 files  " in line and " 500 B / 1000 B " in line

    @BOTH_MODES
    def test_progress_tells_the_requests_in_flight(self, at_hand: Place, mode: str) -> None:
        slow_and_busy(at_hand, 100)
        told: list[pfu.Progress] = []

        class Watcher(pfu.Observer):
            def progress(self, progress: pfu.Progress) -> None:
                told.append(progress)

        assert s3_job(at_hand, Watcher(), mode=mode, concurrency=8).run().exit_code == 1
        most = max(step.in_flight for step in told)
        assert most - 1 <= 8 == told[-1].limit <= most  # the proof of the store waits for no slot
        assert (told[-1].in_flight, told[-1].files, told[-1].failed) == (0, 99, 1)
        assert told[-1].throttled == 8

    def test_a_dead_runner_has_nothing_in_flight(self, place: Place) -> None:
        runner = pfu.LocalRunner(FolderUploader(place.path), pfu.EngineOptions())
        runner.gauges["in_flight"] = runner.gauges["files"] = 5
        runner.bury()
        assert (runner.figure("in_flight"), runner.figure("files")) == (0, 5)
        runner.close(kill=False)
