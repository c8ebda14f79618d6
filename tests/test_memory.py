"""The budget of memory, the pace (--bwlimit), and the cycle collector."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import heapq
import itertools
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import (
    BOTH_LANES,
    LEAST_PART,
    PIECE,
    WANTS_MD5,
    AsksForMd5,
    assert_all_is_there,
    run_in_process,
    s3_job,
)
from testing.place import (
    BOTH_MODES,
    BUCKET,
    IS_SAFE_LANE,
    KIB,
    MIB,
    PART,
    LaneFault,
    Place,
    Run,
    puts_of,
    rewrite_in_place,
)

# ======================================================================================
# Memory
# ======================================================================================


ENGINES = [
    ({"mode": "concurrent"}, 64 * pfu.GIB, (16, 8, 104)),
    ({"mode": "concurrent", "max_memory": 10 * MIB}, 64 * pfu.GIB, (5, 5, 10)),
    ({"mode": "concurrent", "max_memory": 50 * MIB}, 64 * pfu.GIB, (13, 8, 26)),
    ({"mode": "concurrent"}, 256 * MIB, (16, 8, 40)),
    ({"mode": "concurrent"}, MIB, (5, 5, 10)),
    ({"mode": "concurrent", "part_size": 100 * MIB}, 64 * pfu.GIB, (52, 52, 104)),
    ({"mode": "concurrent", "part_size": 6 * MIB}, 64 * pfu.GIB, (6, 6, 104)),
    ({"workers": 2}, 64 * pfu.GIB, (16, 8, 40)),
    ({"workers": 8}, 64 * pfu.GIB, (5, 5, 10)),
    ({"workers": 8, "max_memory": pfu.GIB}, 64 * pfu.GIB, (16, 8, 104)),
    ({"workers": 8, "concurrency": 2, "max_memory": pfu.GIB}, 1 * pfu.GIB, (16, 8, 104)),
]


def tiny_memory(monkeypatch: pytest.MonkeyPatch, lane: str) -> list[type]:
    """No part fits into memory. Returns the kinds of bodies that are sent."""
    kinds: list[type] = []
    engine, send_part = pfu.RunOptions.engine, pfu.S3Uploader.send_part

    async def send(uploader: pfu.S3Uploader, part: pfu.Part, threads: Any) -> pfu.Receipt:
        kinds.append(type(part.body))
        return await send_part(uploader, part, threads)

    monkeypatch.setattr(pfu.S3Uploader, "send_part", send)
    monkeypatch.setattr(
        pfu.RunOptions, "engine", lambda self: dataclasses.replace(engine(self), memory=100 * KIB)
    )
    if lane == "safe":
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
    return kinds


LATE = {"asyncio", "boto3", "concurrent.futures.process", "email.utils", "multiprocessing", "ssl"}


@BOTH_MODES
def test_a_run_with_nothing_to_do_imports_little(place: Place, mode: str) -> None:
    place.files(3)
    place.environment["PYTHONPROFILEIMPORTTIME"] = "1"

    def imported() -> set[str]:
        run = run_with(place, lambda: None, "--mode", mode)
        assert run.code == 0, run.err
        lines = [line for line in run.err.splitlines() if line.startswith("import time:")]
        return {line.rpartition("|")[2].strip() for line in lines}

    assert imported() & LATE
    assert not imported() & LATE


class TestMemory:
    """Memory."""

    def test_buffers_are_used_again_and_given_up_for_others(self) -> None:
        budget = pfu.ByteBudget(3 * MIB)
        assert budget.take(MIB)
        first = budget.buffer(MIB)
        budget.keep(first)
        budget.give_back(MIB)
        assert budget.take(MIB)
        assert budget.buffer(MIB - 1) is first
        budget.keep(first)
        budget.give_back(MIB)
        assert budget.take(5 * MIB), "one body always passes"
        assert not budget._spare
        assert not budget.take(1)

    def test_nothing_waits_for_ever_on_the_budget(self) -> None:
        async def scenario() -> list[int]:
            budget, order = pfu.ByteBudget(10), []

            async def use(size: int) -> None:
                if not budget.take(size):
                    await budget.wait_for(size)
                await asyncio.sleep(0)
                order.append(size)
                budget.give_back(size)

            sizes = [8, 3, 100, 1, 10, 2, 50]
            await asyncio.wait_for(asyncio.gather(*map(use, sizes)), 5)
            return order

        assert asyncio.run(scenario()) == [8, 3, 100, 1, 10, 2, 50]

    @pytest.mark.parametrize("limit", [96 * MIB, 1 << 40])
    def test_memory_is_a_quarter_of_the_machines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        monkeypatch.setattr(
            pfu, "CGROUP_LIMITS", (f"{tmp_path}/memory.max{{}}", f"{tmp_path}/none")
        )
        pfu.memory_of_machine.cache_clear()
        engine = pfu.RunOptions(mode="concurrent", max_memory=1 << 50).engine()
        pfu.memory_of_machine.cache_clear()
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        expected = min(limit, machine) // 4 - pfu.CLIENT_MEMORY
        assert engine.memory == max(expected, 2 * pfu.MIN_PART_SIZE)
        assert engine.part_size <= engine.memory // 2

    @pytest.mark.parametrize("lane", ["fast", "safe"])
    def test_a_part_larger_than_memory_stays_in_its_file(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, lane: str
    ) -> None:
        place.file("large", os.urandom(11 * MIB))
        if lane == "safe":
            place.server.faults.append(LaneFault(Action("error", 500), operation="UploadPart"))
        options = pfu.EngineOptions(threshold=MIB, part_size=5 * MIB, memory=4 * MIB, nice=0)
        monkeypatch.setattr(pfu.RunOptions, "engine", lambda _: options)
        summary = run_in_process(place)
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary
        assert place.stored() == place.local()

    def test_a_job_leaves_the_collector_of_its_program_alone(self, at_hand: Place) -> None:
        at_hand.files(3)
        before = gc.get_threshold()
        gc.unfreeze()
        try:
            assert s3_job(at_hand).run().uploaded == 3
            assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
        finally:
            gc.freeze()

    def test_the_budget_is_first_come_first_served(self) -> None:
        async def scenario() -> None:
            budget, order = pfu.ByteBudget(10), list[int]()

            async def wait(size: int) -> None:
                await budget.wait_for(size)
                order.append(size)

            assert budget.take(6)
            assert budget.take(4)
            waiting = [asyncio.ensure_future(wait(size)) for size in (7, 1, 0, 3, 2)]
            await asyncio.sleep(0)
            budget.give_back(4)
            assert not budget.take(0), "it would overtake"
            await asyncio.sleep(0)
            assert order == []
            budget.give_back(6)
            await asyncio.sleep(0)
            assert order == [7, 1, 0]
            budget.give_back(1)
            await asyncio.sleep(0)
            assert order == [7, 1, 0, 3]
            budget.give_back(7)
            await asyncio.gather(*waiting)
            assert order == [7, 1, 0, 3, 2]
            assert budget.take(5)
            assert not budget.take(1)

        asyncio.run(scenario())

    def test_a_body_that_is_larger_than_the_budget_passes_alone(self) -> None:
        async def scenario() -> None:
            budget = pfu.ByteBudget(10)
            assert budget.take(1)
            assert not budget.take(25)
            giant = asyncio.ensure_future(budget.wait_for(25))
            await asyncio.sleep(0)
            assert not giant.done()
            budget.give_back(1)
            await giant
            assert not budget.take(1)
            budget.give_back(25)
            assert budget.take(10)

        asyncio.run(scenario())

    @pytest.mark.parametrize("seed", range(3))
    def test_nothing_waits_for_ever_and_the_budget_is_kept(self, seed: int) -> None:
        generator = random.Random(seed)
        held: list[int] = []

        async def hold(budget: pfu.ByteBudget, size: int) -> None:
            if not budget.take(size):
                await budget.wait_for(size)
            held.append(size)
            assert sum(held) <= 100 or [s for s in held if s] == [size]
            for _ in range(generator.randrange(4)):
                await asyncio.sleep(0)
            held.remove(size)
            budget.give_back(size)

        async def scenario() -> None:
            budget = pfu.ByteBudget(100)
            sizes = [generator.choice([0, 1, 20, 60, 100, 150]) for _ in range(400)]
            await asyncio.wait_for(asyncio.gather(*(hold(budget, size) for size in sizes)), 10)
            assert budget.take(100)

        asyncio.run(scenario())

    def test_buffers_are_used_again_while_there_is_room(self) -> None:
        budget = pfu.ByteBudget(30)
        assert budget.take(10)
        buffer = budget.buffer(10)
        budget.keep(buffer)
        budget.give_back(10)
        for size in (10, 3):
            assert budget.take(size)
            assert budget.buffer(size) is buffer
            budget.keep(buffer)
            budget.give_back(size)
        assert budget.take(11)
        other = budget.buffer(11)
        assert len(other) == 11
        budget.keep(other)
        budget.give_back(11)
        assert budget.take(5)
        assert budget.buffer(5) is other, "the smaller one is gone"

    def test_buffers_give_way_to_other_things(self) -> None:
        budget = pfu.ByteBudget(30)
        buffers = [bytearray(10), bytearray(10)]
        for buffer in buffers:
            budget.keep(buffer)
        assert all(budget.take(10) for _ in range(3))
        taken = [budget.buffer(10) for _ in range(3)]
        assert sum(any(one is buffer for buffer in buffers) for one in taken) == 1
        budget.give_back(30)
        budget.keep(buffers[0])
        assert budget.take(25)
        assert budget.buffer(5) is not buffers[0]

    @pytest.mark.parametrize("options, machine, expected", ENGINES)
    def test_memory_decides_what_is_large(
        self,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
        machine: int,
        expected: tuple[int, int, int],
    ) -> None:
        monkeypatch.setattr(pfu, "memory_of_machine", lambda: machine)
        engine = pfu.RunOptions(**options).engine()
        found = engine.threshold, engine.part_size, engine.memory
        assert found == tuple(number * MIB for number in expected)

    @pytest.mark.parametrize(
        "limits, expected",
        [
            ({"max": "1048576\n"}, 1048576),
            ({"max": "max\n", "high": "2097152\n"}, 2097152),
            ({"max": "4096\n", "slice/max": "2048\n", "slice/job/high": "max\n"}, 2048),
            ({"slice/job/max": "1024\n", "other/max": "1\n"}, 1024),
            ({"max": "0\n", "high": ""}, None),
            ({"max": "9223372036854771712\n"}, None),
            ({}, None),
        ],
    )
    def test_memory_of_a_container(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        limits: dict[str, str],
        expected: int | None,
    ) -> None:
        for name, text in limits.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        patterns = tuple(f"{tmp_path}{{}}/{name}" for name in ("max", "high"))
        monkeypatch.setattr(pfu, "CGROUP_LIMITS", patterns)
        monkeypatch.setattr(pfu, "_cgroups", lambda: {"", "/slice", "/slice/job"})
        pfu.memory_of_machine.cache_clear()
        found = pfu.memory_of_machine()
        pfu.memory_of_machine.cache_clear()
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert found == (expected or machine)

    @BOTH_LANES
    def test_parts_larger_than_the_memory_go_up_from_the_file(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str
    ) -> None:
        kinds = tiny_memory(monkeypatch, lane)
        at_hand.file("large", os.urandom(11 * MIB + 1))
        at_hand.server.faults.append(Fault(Action("reset_within_body"), "UploadPart", times=1))
        summary = s3_job(at_hand, part_size=LEAST_PART).run()
        assert (summary.exit_code, summary.fast_lane) == (0, lane == "fast"), summary.failures
        assert kinds == [pfu.FileBody] * 4  # one is sent again
        assert_all_is_there(at_hand)
        lanes = [
            IS_SAFE_LANE in r.headers for r in at_hand.server.log if r.operation == "UploadPart"
        ]
        assert sorted(lanes) == [lane == "safe"] * 4

    @BOTH_LANES
    def test_parts_larger_than_the_memory_are_not_read_whole_for_their_md5(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str
    ) -> None:
        kinds, sizes, read = tiny_memory(monkeypatch, lane), [], pfu.FileBody.read

        def counted(body: pfu.FileBody) -> bytes:
            sizes.append(len(body))
            return read(body)

        monkeypatch.setattr(pfu.FileBody, "read", counted)
        at_hand.file("large", os.urandom(11 * MIB + 1))
        at_hand.server.faults.append(AsksForMd5(WANTS_MD5, "UploadPart"))
        assert s3_job(at_hand, part_size=LEAST_PART).run().exit_code == 0
        assert set(kinds) == {pfu.FileBody}
        assert max(sizes) <= pfu.HASH_BYTES
        assert_all_is_there(at_hand)

    @BOTH_LANES
    @pytest.mark.parametrize("kind", ["rewrite", "shrink"])
    def test_a_part_that_changes_between_hash_and_sending_is_not_stored(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str, kind: str
    ) -> None:
        tiny_memory(monkeypatch, lane)
        path = at_hand.file("large", os.urandom(3 * PIECE))
        changes: dict[str, Callable[[Path], None]] = {
            "rewrite": rewrite_in_place,
            "shrink": lambda path: os.truncate(path, PIECE + 9),
        }
        checks = itertools.count()

        def check(source: pfu.SourceFile) -> None:
            if next(checks) == 3:
                changes[kind](path)

        monkeypatch.setattr(pfu.SourceFile, "check_unchanged", check)
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
        assert_all_is_there(at_hand)


# ======================================================================================
# Too little memory, too few processes
# ======================================================================================


ROOMS = [  # mode, workers, memory, processes: mode and workers that it becomes
    ("parallel", 8, 64 * pfu.GIB, 1 << 20, ("parallel", 8)),
    ("parallel", 8, 512 * MIB, 1 << 20, ("parallel", 7)),
    ("parallel", 8, 256 * MIB, 1 << 20, ("parallel", 3)),
    ("parallel", 8, 96 * MIB, 1 << 20, ("concurrent", 1)),
    ("parallel", 1, 128 * MIB, 1 << 20, ("parallel", 1)),
    ("parallel", 8, 64 * pfu.GIB, 20, ("parallel", 2)),
    ("parallel", 8, 64 * pfu.GIB, 10, ("concurrent", 1)),
    ("concurrent", 0, 88 * MIB, 5, ("concurrent", 1)),
    ("concurrent", 0, 87 * MIB, 5, None),
    ("parallel", 2, 64 * pfu.GIB, 4, None),
]
CGROUPS = [  # folder, name of the limit, what else belongs there
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", ()),
    ("/sys/fs/cgroup", "memory.max", (("memory.swap.max", "0"),)),
]


@pytest.fixture
def container() -> Iterator[Path]:
    """A cgroup with 96 MiB of memory."""
    for parent, limit, others in CGROUPS:
        folder = Path(parent, f"pfu-test-{os.getpid()}")
        try:
            folder.mkdir()
            (folder / limit).write_text(str(96 * MIB))
            for name, value in others:
                (folder / name).write_text(value)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no cgroup can be made here")


def run_with(place: Place, limit: Callable[[], object], *arguments: Any) -> Run:
    """A run that is under a limit from its first moment on."""
    return place.run(*arguments, "--json", preexec_fn=limit)


def run_as_nobody(place: Place, processes: int, *arguments: Any) -> Run:
    """A run of a user who may have so many processes and threads. Root is under no such limit."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become another user")
    rights = "+dac_override,+dac_read_search"
    user = ["setpriv", f"--reuid={1_000_000 + os.getpid()}", "--clear-groups"]
    command = [*user, f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_NPROC, (processes, processes))
    done = subprocess.run(
        [*command, *place.command(*arguments, "--json")],
        cwd=place.path,
        env=place.environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def limit_addresses(size: int) -> Callable[[], object]:
    return functools.partial(resource.setrlimit, resource.RLIMIT_AS, (size, size))


def small_and_large(place: Place) -> None:
    place.files(20)
    for number in range(3):
        place.file(f"large{number}", os.urandom(24 * MIB))


class TestTooLittle:
    """Too little memory, too few processes."""

    @pytest.mark.parametrize("mode, workers, memory, tasks, expected", ROOMS)
    def test_no_more_workers_than_there_is_room_for(
        self,
        monkeypatch: pytest.MonkeyPatch,
        mode: str,
        workers: int,
        memory: int,
        tasks: int,
        expected: tuple[str, int] | None,
    ) -> None:
        monkeypatch.setattr(pfu, "memory_of_machine", lambda: memory)
        monkeypatch.setattr(pfu, "room_for_tasks", lambda: tasks)
        options = pfu.RunOptions(mode=mode, workers=workers)
        if expected is None:
            with pytest.raises(pfu.UsageError, match=r"only .* available, .* needed"):
                options.fitted()
            return
        fitted, told = options.fitted()
        assert (fitted.mode, fitted.processes()) == expected
        assert bool(told) == ((mode, options.processes()) != expected)

    @pytest.mark.parametrize("folder", ["", "/slice/job"])
    def test_processes_of_a_container(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
    ) -> None:
        (tmp_path / folder[1:]).mkdir(parents=True, exist_ok=True)
        for name, text in (("max", "20\n"), ("current", "13\n")):
            Path(f"{tmp_path}{folder}/pids.{name}").write_text(text)
        monkeypatch.setattr(pfu, "CGROUP_TASKS", (f"{tmp_path}{{}}/pids.{{}}",))
        monkeypatch.setattr(pfu, "_cgroups", lambda: {"", "/slice", "/slice/job"})
        assert pfu.room_for_tasks() == 7

    @BOTH_MODES
    def test_a_container_of_96_mib(self, place: Place, container: Path, mode: str) -> None:
        small_and_large(place)
        enter = functools.partial((container / "cgroup.procs").write_text, "0")
        workers = ["--workers", "4"] if mode == "parallel" else []
        run = run_with(place, enter, "--mode", mode, *workers)
        assert (run.code, run.json["uploaded"]) == (0, 23), run.err
        assert run.json["mode"] == "concurrent"
        assert run.err.count("not enough memory for 4 workers") == (mode == "parallel")
        assert place.stored() == place.local()

    @BOTH_MODES
    @pytest.mark.parametrize("size", [200, 390])
    def test_little_address_space_suffices(self, place: Place, mode: str, size: int) -> None:
        small_and_large(place)
        workers = ["--workers", "4"] if mode == "parallel" else []
        run = run_with(place, limit_addresses(size * MIB), "--mode", mode, *workers)
        assert (run.code, run.json["uploaded"], run.err) == (0, 23, "")
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_too_little_address_space_is_one_line(self, place: Place, mode: str) -> None:
        place.files(3)
        run = run_with(place, limit_addresses(100 * MIB), "--mode", mode)
        assert run.code == 2
        assert run.err == (
            "pfu: start: only 100.0 MiB of address space (ulimit -v) available, 192.0 MiB needed\n"
        )
        assert place.stored() == {}

    @BOTH_MODES
    @pytest.mark.parametrize("processes", [8, 20])
    def test_few_processes_suffice(self, place: Place, mode: str, processes: int) -> None:
        small_and_large(place)
        workers = ["--workers", "4"] if mode == "parallel" else []
        run = run_as_nobody(place, processes, "--mode", mode, *workers)
        assert (run.code, run.json["uploaded"]) == (0, 23), run.err
        assert run.err.count("\n") == run.err.count("note: not enough processes (")
        assert bool(run.err) == (mode == "parallel")
        assert place.stored() == place.local()

    @BOTH_MODES
    @pytest.mark.parametrize("processes", [1, 4])
    def test_too_few_processes_are_one_line(self, place: Place, mode: str, processes: int) -> None:
        place.files(3)
        run = run_as_nobody(place, processes, "--mode", mode)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "more processes or threads (ulimit -u or cgroup) available, 5 needed" in run.err
        assert place.stored() == {}

    @pytest.mark.parametrize("size", [100, 2 * PIECE])
    def test_memory_that_ends_under_way_is_one_line(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        for number in range(3):
            at_hand.file(f"f{number}", b"x" * size)

        def fail(*_: Any) -> Any:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(pfu.Transfer, "describe", fail)
            patch.setattr(pfu.ByteBudget, "buffer", fail)
            summary = s3_job(at_hand).run()
        assert str(summary.error).startswith("out of memory")
        assert (summary.exit_code, summary.failed, summary.pending) == (2, 0, 3), summary
        assert s3_job(at_hand).run().uploaded == 3
        assert_all_is_there(at_hand)

    def test_memory_that_ends_in_the_scan_is_one_line(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Any:
            raise MemoryError

        at_hand.files(3)
        with monkeypatch.context() as patch:
            patch.setattr(pfu.Ledger, "known", fail)
            summary = s3_job(at_hand).run()
        assert summary.exit_code == 1
        assert str(summary.error).startswith("out of memory")
        assert s3_job(at_hand).run().uploaded == 3


# ======================================================================================
# Pace: --bwlimit
# ======================================================================================


class TestPace:
    """Pace: --bwlimit."""

    def test_bwlimit_holds_on_the_safe_lane(self, place: Place) -> None:
        place.server.faults.append(LaneFault(Action("error", 500), operation="PutObject"))
        for number in range(40):
            place.file(f"f{number}", os.urandom(128 * KIB))
        run = place.run("--mode", "concurrent", "--bwlimit", "4M", "--json")
        assert (run.code, run.json["fast_lane"]) == (0, 0), run.err
        assert run.json["elapsed_seconds"] > 1
        assert place.stored() == place.local()

    @pytest.mark.parametrize("size", [8 * KIB, 64 * KIB, 256 * KIB])
    def test_a_pacer_keeps_its_rate(self, size: int) -> None:
        pacer, now, sent = pfu.Pacer(), 100.0, 0
        pacer.rate = 20e6
        while now < 110:
            now += pacer.delay(size, now) + 1e-5
            sent += size
        assert 0.95 <= sent / 10 / 20e6 <= 1.05
        assert pacer.slice_size <= 20e6 * pfu.PACE_SLICE

    @pytest.mark.parametrize("text, seconds", [("off", 0.0), ("2K", 0.45), ("512", 1.8)])
    def test_a_new_rate_applies_to_turns_that_were_given(self, text: str, seconds: float) -> None:
        """Of 1 KiB sent at 1 KiB per second, a tenth was paid for by the time before."""
        pacer, rate = pfu.Pacer(), pfu.parse_bandwidth(text)
        assert isinstance(rate, int)
        pacer.turn_to(1024.0, 50.0)
        assert pacer.delay(1024, 50.0) == 0.0
        pacer.turn_to(rate, 50.0)
        assert pacer.delay(1, 50.0) == pytest.approx(seconds)

    def test_a_pacer_without_a_rate_never_waits(self) -> None:
        assert pfu.Pacer().delay(1 << 40, 1.0) == 0

    @pytest.mark.parametrize(
        "table, when, rate",
        [
            ("08:00,1M 18:00,off", "Mon 07:59", 0),
            ("08:00,1M 18:00,off", "Mon 08:00", MIB),
            ("08:00,1M 18:00,off", "Sun 17:59", MIB),
            ("18:00,off 08:00,1M", "Sun 18:00", 0),
            ("Mon-08:00,1M", "Mon 07:59", MIB),  # since last week
            ("Mon-08:00,1M Fri-18:30,2M", "Mon 07:59", 2 * MIB),
            ("Mon-08:00,1M fri-18:30,2M", "Fri 18:29", MIB),
            ("08:00,1M 18:00,off Sat-08:00,off Sun-08:00,off", "Sat 09:00", 0),
            ("Sat-08:00,off 08:00,1M 18:00,off", "Fri 09:00", MIB),
            ("Sat-08:00,off 08:00,1M 18:00,off", "Sat 09:00", 0),
            ("12:00,1M Sat-00:00,off Sun-23:59,3K", "Sat 11:59", 0),
            ("12:00,1M Sat-00:00,off Sun-23:59,3K", "Sat 12:00", MIB),
            ("12:00,1M Sat-00:00,off Sun-23:59,3K", "Mon 00:00", 3 * KIB),
        ],
    )
    def test_a_timetable(self, table: str, when: str, rate: int) -> None:
        timetable = pfu.parse_bandwidth(table)
        assert isinstance(timetable, pfu.Timetable)
        day, clock = when.split()
        first_monday = time.mktime((2026, 6, 1, 0, 0, 0, 0, 0, -1))
        hours, minutes = map(int, clock.split(":"))
        now = first_monday + pfu.DAYS.index(day) * 86400 + hours * 3600 + minutes * 60
        assert timetable.rate(now) == rate

    @pytest.mark.parametrize("mode", ["parallel", "concurrent"])
    def test_a_change_takes_effect_at_once(self, place: Place, mode: str) -> None:
        """A minute's limit would take half a minute; it ends after a second."""
        for number in range(30):
            place.file(f"f{number}", os.urandom(64 * KIB))
        place.changes = (
            "Timetable.rate = lambda self, now, begun=time.time():"
            " self.turns[0][1] if now < begun + 2 else 0"
        )
        run = place.run("--mode", mode, "--bwlimit", "00:00,64K", "--json")
        assert (run.code, place.stored() == place.local()) == (0, True), run.err
        assert 1.0 < run.json["elapsed_seconds"] < 12

    @pytest.mark.parametrize("mode, content", [("parallel", "small"), ("concurrent", "large")])
    def test_bwlimit_holds_for_all_processes_together(
        self, place: Place, mode: str, content: str
    ) -> None:
        if content == "large":
            place.file("large", os.urandom(6 * MIB))
        else:
            for number in range(48):
                place.file(f"f{number}", os.urandom(128 * KIB))
        run = place.run(*PART, "--mode", mode, "--bwlimit", "4M", "--json")
        assert (run.code, place.stored() == place.local()) == (0, True)
        assert run.json["elapsed_seconds"] > 1.2

    def test_the_pacer_gives_turns(self) -> None:
        pacer = pfu.Pacer()
        assert pacer.delay(10**12, 5.0) == 0.0
        pacer.rate = 100.0
        waits = [
            pacer.delay(size, now) for size, now in [(10, 50.0), (5, 50.0), (20, 50.0), (1, 50.1)]
        ]
        assert waits == pytest.approx([0.0, 0.0, 0.05, 0.15])
        assert pacer.delay(30, 90.0) == 0.0, "what was not used is lost"
        assert pacer.delay(1, 90.0) == pytest.approx(0.2)
        assert pacer.delay(1, 90.3) == 0.0

    @pytest.mark.parametrize(
        "rate, size", [(0.0, 256 * KIB), (20e6, 1_000_000), (1e6, 50_000), (100.0, KIB)]
    )
    def test_slices_are_short(self, rate: float, size: int) -> None:
        pacer = pfu.Pacer()
        pacer.rate = rate
        assert pacer.slice_size == size

    @pytest.mark.parametrize("senders", [1, 8, 100])
    def test_the_pacer_keeps_its_rate(self, senders: int) -> None:
        pacer, sent = pfu.Pacer(), 0
        pacer.rate = 20e6
        ready = [(1000.0, number) for number in range(senders)]
        while ready[0][0] < 1010.0:
            now, number = heapq.heappop(ready)
            sent += pacer.slice_size
            heapq.heappush(ready, (now + pacer.delay(pacer.slice_size, now) + 0.001, number))
        in_flight = senders * pacer.slice_size
        assert 0.95 * 200e6 <= sent - in_flight <= sent <= 1.05 * 200e6 + in_flight

    def test_the_safe_lane_keeps_the_rate(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        began: list[float] = []
        mark = Action("call", function=lambda: began.append(time.time()))
        at_hand.server.faults.append(Fault(mark, "HeadBucket", times=1))
        at_hand.file("large", os.urandom(2 * PIECE))
        for number in range(10):
            at_hand.file(f"small{number}", os.urandom(50 * KIB))
        assert s3_job(at_hand, bwlimit=3 * MIB).run().exit_code == 0
        assert_all_is_there(at_hand)
        ended = max(stored.modified for stored in at_hand.server.objects(BUCKET).values())
        assert ended - began[0] >= 0.35
        assert not puts_of(at_hand.server)["fast"]
