"""A trial: the program goes one of eight ways, and a fault comes.

A way is a mode, a lane and a size of files. The program is forked from this process, so that
nothing has to be imported again; it has none of this process's descriptors, and what is patched
here or in a trial's `patches` holds there and in its workers. Nobody waits between two tries.
After each run: the code, what is said, the accounts, and an honest ledger. Then a run without the
fault brings all that is missing, and sends nothing again that the ledger knows of.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import random
import signal
import ssl
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple

import boto3
import pytest
from botocore.hooks import EventAliaser, accepts_kwargs

import pfu
from testing.faults import HONEST, Fault
from testing.jobs import assert_all_is_there
from testing.place import BUCKET, IS_SAFE_LANE, KIB, Place, Run, assert_accounts
from testing.protocol import Request
from testing.server import S3Server

Patch = Callable[[], object]


class Way(NamedTuple):
    """How files go up."""

    mode: str
    lane: str
    size: str


MODES, LANES, WAY_SIZES = ("concurrent", "parallel"), ("fast", "safe"), ("small", "large")
WAYS = [Way(*way) for way in itertools.product(MODES, LANES, WAY_SIZES)]
EVERY_WAY = pytest.mark.parametrize("trial", WAYS, ids="-".join, indirect=True)
PARALLEL = [way for way in WAYS if way.mode == "parallel"]
SMALL, LARGE = ([way for way in WAYS if way.size == size] for size in WAY_SIZES)
FAST_SMALL = [way for way in SMALL if way.lane == "fast"]
EVEN = [way for way in WAYS if sum(map(bool, map(str.count, way, ("p", "safe", "large")))) % 2 == 0]
ODD = [way for way in WAYS if way not in EVEN]  # any two of mode, lane and size meet in both
TWO = [Way("concurrent", "fast", "small"), Way("parallel", "safe", "large")]
LEAST_PIECE = 64 * KIB
DATA_STEPS = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


@dataclass
class Moment(Fault):
    """Is no fault, but the moment when one begins."""

    begins: Patch = lambda: None

    def matches(self, request: Request, generator: random.Random) -> bool:
        if self.applied == 0 and super().matches(request, generator):
            self.begins()
        return False


class Trial(Place):
    """A place where the program goes one way."""

    # Its first use imports a module: in a server's thread at the moment of a fork, it would be
    # half imported for ever in the child.
    time.strptime("2000", "%Y")

    def __init__(self, path: Path, server: S3Server, way: Way) -> None:
        path.mkdir(exist_ok=True)
        super().__init__(path, server)
        server._store.min_part_size = LEAST_PIECE
        self.way = way
        self.operation = "PutObject" if way.size == "small" else "UploadPart"
        self.patches: list[Patch] = []
        self.is_on = multiprocessing.RawValue("b", 0)  # what the program and its workers see of it
        self.pids: list[int] = []
        self.groups: list[int] = []
        self.repair: Patch = lambda: None
        if way.lane == "safe":
            self.patch("client_refusal", lambda client: "the test says so")

    def patch(self, name: str, value: object) -> None:
        """Another value for one of pfu's names, in the program."""
        self.patches.append(functools.partial(setattr, pfu, name, value))

    def tree(self, files: int = 12) -> None:
        """Files of the size of the way: small ones, or a third as many in three parts each."""
        for number in range(files if self.way.size == "small" else files // 3):
            self.file(f"f{number:03}", self.content())

    def content(self, parts: int = 3) -> bytes:
        return os.urandom(100 if self.way.size == "small" else (parts - 1) * LEAST_PIECE + 1)

    def program(self, *arguments: object) -> list[str]:
        options = ["--mode", self.way.mode, "--part-size", LEAST_PIECE, "--nice", 0, "--json"]
        options += ["--patience", "4s"]
        options += ["--workers", 2] if self.way.mode == "parallel" else []
        return self.command(*options, *arguments)[2:]

    def launch(self, *arguments: object) -> int:
        """Fork the program; returns its process id, which is that of its group too."""
        program = self.program(*arguments)  # here: what it compiles is compiled once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
            pid = os.fork()
        if pid == 0:
            try:
                self._be_the_program(program)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(70)
        self.pids.append(pid)
        self.groups.append(pid)
        return pid

    def _be_the_program(self, arguments: Sequence[str]) -> None:
        os.setsid()
        gc.freeze()  # nor is anything of this process looked at again, if only to be counted
        gc.get_freeze_count = lambda: 1
        written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        streams = [os.open(os.devnull, os.O_RDONLY)]
        streams += [os.open(self.path / name, written) for name in self._outputs(os.getpid())]
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # the one that listed them
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.dup2(0, number)
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            file = open(descriptor, "w" if descriptor else "r")  # noqa: SIM115
            setattr(sys, name, file)
        os.chdir(self.path)
        os.environ.update(self.environment)
        for patch in self.patches:
            patch()
        pfu.leave(pfu.main(arguments))

    def _outputs(self, pid: int) -> tuple[str, str]:
        return f"out.{pid}", f"err.{pid}"

    def end_of(self, pid: int, seconds: float = 30) -> Run:
        """What the program has said when it has ended."""
        deadline = time.monotonic() + seconds
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.002)
            ended, status = os.waitpid(pid, os.WNOHANG)
        self.pids.remove(pid)
        out, err = ((self.path / name).read_text() for name in self._outputs(pid))
        assert "Traceback" not in err, err
        return Run(os.waitstatus_to_exitcode(status), out, err)

    def run(self, *arguments: Any, **_: Any) -> Run:
        return self.end_of(self.launch(*arguments))

    def close(self) -> None:
        """End all that is left: programs, and workers that outlived theirs."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)

    def in_the_middle(self, function: Patch, after: int = 3) -> None:
        """Have a function called, in the server's thread, when so many requests have come."""
        self.server.faults.insert(0, Moment(HONEST, self.operation, after=after, begins=function))

    def turn_on(self) -> None:
        self.is_on.value = 1

    def mend(self) -> None:
        """No fault any more."""
        self.repair()
        self.repair = lambda: None
        self.server.faults.clear()
        self.is_on.value = 0

    def acknowledged(self) -> dict[tuple[str, str, int], int]:
        """What the ledger knows to be in the store, and how often the store said so.

        Key, upload id and number of a part; of a whole file, the key alone.
        """
        objects, parts = self.server.objects(BUCKET), self.server.part_acknowledgements(BUCKET)
        files = self.rows(
            "SELECT object_key FROM FileStat WHERE status = 2 UNION SELECT object_key FROM Outcome "
            "JOIN FileStat ON FileStat.id = file_id WHERE Outcome.status = 2"
        )
        rows = self.rows(
            "SELECT object_key, upload_id, number FROM Part JOIN MultipartUpload "
            "ON MultipartUpload.id = substr(Part.id, 1, instr(Part.id, '/') - 1)"
        )
        known = {(row["object_key"], row["upload_id"], row["number"]) for row in rows}
        return {part: parts[part] for part in known} | {
            (row["object_key"], "", 0): objects[row["object_key"]].puts for row in files
        }

    def first_lanes(self) -> set[str]:
        """The lanes that the bytes of each file were sent by at first."""
        lanes: dict[str, str] = {}
        for request in self.server.log:
            if request.operation == self.operation:
                lanes.setdefault(request.key, "safe" if IS_SAFE_LANE in request.headers else "fast")
        return set(lanes.values())


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, short pauses between tries, and botocore's models and plug-ins loaded once."""
    monkeypatch.setattr(pfu, "MIN_PART_SIZE", LEAST_PIECE)
    monkeypatch.setattr(pfu, "full_jitter", lambda attempt: 0.03)
    monkeypatch.setattr(pfu, "proportional_set_size", lambda pid: LEAST_PIECE)  # a slow look
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.0)
    remember_hooks(monkeypatch)
    session = common_session()  # in this process, so that all others have it
    monkeypatch.setattr(pfu.S3Session, "boto3", session)


takes_all = functools.lru_cache(maxsize=None)(accepts_kwargs)
alias = functools.lru_cache(maxsize=None)(EventAliaser(None)._alias_event_name)


def remember_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What botocore learns of its own functions and events is the same for each client."""
    monkeypatch.setattr("botocore.hooks.accepts_kwargs", takes_all)
    monkeypatch.setattr(EventAliaser, "_alias_event_name", lambda aliaser, name: alias(name))


@functools.cache
def common_session() -> Any:
    """Reads the environment as late as its clients are made."""
    session = boto3.Session()
    session.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    return session


@contextlib.contextmanager
def trial_of(path: Path, way: Way, tls: ssl.SSLContext | None = None) -> Iterator[Trial]:
    with S3Server(buckets=[BUCKET], tls=tls) as server:
        trial = Trial(path, server, way)
        try:
            yield trial
        finally:
            trial.close()


def assert_said(run: Run, code: int, says: str = "") -> Any:
    """The code, what is told, a cause but once, and accounts that are right."""
    assert run.code == code, (run.err, run.out)
    assert says in run.err
    summary, lines = run.json, run.err.splitlines()
    assert all(line.startswith("pfu: ") for line in lines)
    lines = [line for line in lines if not line.startswith("pfu: note: the store ")]
    told = {*summary["notes"], *filter(None, [summary["error"]])}
    assert all(any(reason in line for line in lines) for reason in told), lines
    assert any(line.startswith("pfu: failed: ") for line in lines) == bool(summary["failures"])
    assert len(lines) <= len(told) + 3 * len(summary["failures"]), lines
    assert "internal error" not in run.err
    assert summary["exit_code"] == code
    assert_accounts(summary)
    return summary


def assert_recovers(trial: Trial) -> None:
    """Without the fault the next run brings all, and nothing again that the ledger knows of."""
    trial.mend()
    trial.check_ledger_is_honest()
    before = trial.acknowledged()
    assert_said(trial.run(), 0)
    assert_all_is_there(trial)
    objects, parts = trial.server.objects(BUCKET), trial.server.part_acknowledgements(BUCKET)
    for (key, upload_id, number), count in before.items():
        assert count == (parts[key, upload_id, number] if upload_id else objects[key].puts)


@dataclass
class TenSeconds(Fault):
    """From the first request that matches, for ten seconds."""

    ends: float = 0.0

    def matches(self, request: Request, generator: random.Random) -> bool:
        if not self.ends and self._concerns(request):
            self.ends = time.monotonic() + 10
        return time.monotonic() < self.ends and super().matches(request, generator)

    def _concerns(self, request: Request) -> bool:
        return request.operation in DATA_STEPS
