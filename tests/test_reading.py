"""Where files are read, in the loop or in threads; and what changes between scan and read."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import BUCKET, LONG_AGO, MIB, Place
from testing.uploaders import InstantUploader

# ======================================================================================
# Where files are read
# ======================================================================================


def turns_in_threads(place: pfu.ReadingPlace) -> int:
    """How many of the next reads go to threads."""
    count = 0
    while not place.is_loop(100):
        count += 1
    return count


def read_slowly(place: pfu.ReadingPlace) -> int:
    """How many reads of 5 ms on the loop it takes to move to threads, at most 100."""
    for count in range(100):
        if not place.is_loop(100):
            return count
        place.took(0.005)
    raise AssertionError("reads stay on the loop")


class TestReadingPlace:
    """Where files are read."""

    def test_reads_begin_on_the_loop_and_stay_there_while_they_are_quick(self) -> None:
        place = pfu.ReadingPlace()
        for _ in range(10_000):
            assert place.is_loop(100)
            place.took(0.00001)
        assert place.is_loop(pfu.INLINE_BYTES)
        assert not place.is_loop(pfu.INLINE_BYTES + 1)

    def test_one_slow_read_moves_nothing(self) -> None:
        place = pfu.ReadingPlace()
        place.took(0.005)
        assert place.is_loop(100)

    @pytest.mark.parametrize("seconds", [0.005, 0.1, 10.0])
    def test_a_busy_machine_is_no_slow_disk(self, seconds: float) -> None:
        """Who reads may wait for the CPU now and then, however long."""
        place = pfu.ReadingPlace()
        for number in range(10_000):
            place.took(seconds if number % 20 == 0 else 0.00001)
            assert place.is_loop(100)

    def test_what_was_slow_once_is_forgotten(self) -> None:
        place = pfu.ReadingPlace()
        for _ in range(5):
            read_slowly(place)
            turns_in_threads(place)
        for _ in range(64 * pfu.INLINE_PROBE):
            place.took(0.00001)
        read_slowly(place)
        assert turns_in_threads(place) < pfu.INLINE_PROBE

    def test_slow_reads_move_to_threads_and_are_tried_again_ever_later(self) -> None:
        place = pfu.ReadingPlace()
        assert 1 <= read_slowly(place) <= 3
        turns = []
        for _ in range(4):
            turns.append(
                1 + turns_in_threads(place)
            )  # the 1: it was asked once, to see that it moved
            place.took(0.005)
            assert not place.is_loop(100), "one slow probe is enough"
        first = pfu.INLINE_PROBE
        assert turns == [first - 1, 2 * first - 1, 4 * first - 1, 8 * first - 1]

    def test_a_quick_probe_brings_the_reads_back(self) -> None:
        place = pfu.ReadingPlace()
        read_slowly(place)
        turns_in_threads(place)
        for _ in range(10_000):
            place.took(0.00001)
            assert place.is_loop(100)

    def test_large_files_do_not_count_as_probes(self) -> None:
        place = pfu.ReadingPlace()
        read_slowly(place)
        for _ in range(10 * pfu.INLINE_PROBE):
            assert not place.is_loop(pfu.INLINE_BYTES + 1)
        assert turns_in_threads(place) > pfu.INLINE_PROBE / 2

    def test_slow_reads_run_side_by_side(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, readers = threading.Lock(), Counter[str]()
        real = pfu.SourceFile.read_all

        def read(source: pfu.SourceFile) -> bytes:
            with lock:
                readers["now"] += 1
                readers["most"] = max(readers["most"], readers["now"])
                readers["on the loop"] += threading.current_thread() is threading.main_thread()
            time.sleep(0.005)
            with lock:
                readers["now"] -= 1
            return real(source)

        monkeypatch.setattr(pfu.SourceFile, "read_all", read)
        place.files(600)
        settings = pfu.RunOptions(mode="concurrent", nice=0)
        job = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "l.db", settings)
        summary = job.run()
        assert (summary.exit_code, summary.uploaded) == (0, 600)
        assert readers["most"] > 8
        assert 1 <= readers["on the loop"] < 60


# ======================================================================================
# What changes between scan and read
# ======================================================================================


TOUCHED_AT = LONG_AGO * 10**9 + 123_456_789
META_CHANGES: dict[str, Callable[[Path], Any]] = {
    "touch": lambda path: os.utime(path, ns=(0, TOUCHED_AT)),
    "chmod": lambda path: path.chmod(0o600),
}


def operations_of(place: Place) -> Counter[str]:
    """How often each was asked for, up to now."""
    return Counter(request.operation for request in place.server.log)


def assert_told_alike(place: Place, path: Path) -> None:
    """File, object and ledger agree on time and mode."""
    mtime, mode = path.stat().st_mtime_ns, f"0{path.stat().st_mode:o}"
    (row,), (stored,) = place.rows(), place.server.objects(BUCKET).values()
    assert (row["last_modified"], row["permissions"]) == (mtime, mode)
    assert stored.headers["x-amz-meta-file-mtime"] == f"{mtime}ns"
    assert stored.headers["x-amz-meta-mode"] == mode


class TestBetweenScanAndRead:
    """What changes between scan and read."""

    @pytest.mark.parametrize(
        "mode, change, why, size",
        [
            ("concurrent", "touch", "racy", 100),
            ("concurrent", "chmod", "--checksum", 5 * MIB + 1),
            ("parallel", "touch", "--checksum", 100),
            ("parallel", "chmod", "racy", 5 * MIB + 1),
        ],
    )
    def test_the_same_bytes_with_other_metadata_go_up_again(
        self, place: Place, mode: str, change: str, why: str, size: int
    ) -> None:
        arguments = ["--mode", mode, "--part-size", "5M", "--json"]
        racy = why == "racy"
        path = place.file("f", b"x" * size, mtime=LONG_AGO)
        place.run(*arguments)
        while racy and not place.rows()[0]["racy"]:  # a slow machine needs more than one try
            os.utime(path, (int(time.time()) + 1,) * 2)
            place.run(*arguments)
        before = operations_of(place)
        after_the_scan = Action("call", function=lambda: META_CHANGES[change](path))
        place.server.faults.append(Fault(after_the_scan, operation="HeadBucket", times=1))
        run = place.run(*arguments, *([] if racy else [why]))
        assert place.server.faults[0].applied == 1
        assert (run.code, run.json["uploaded"], run.json["unchanged"]) == (0, 1, 0)
        assert run.json["renewed"] == 1
        is_small = size < 5 * MIB
        told = operations_of(place) - before
        del told["HeadBucket"], told["GetPublicAccessBlock"], told["HeadObject"]
        assert told == {"PutObject" if is_small else "CopyObject": 1}
        assert_told_alike(place, path)
