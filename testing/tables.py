"""The tables of faults: what breaks, on which ways, and what pfu has to say of it."""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

import botocore.auth

import pfu
from testing.faults import Action, Fault
from testing.place import LONG_AGO
from testing.trials import (
    DATA_STEPS,
    EVEN,
    LARGE,
    ODD,
    PARALLEL,
    SMALL,
    TWO,
    WAYS,
    Trial,
    Way,
)

# ---------------------------------------------------------------------------
# Answers of the store that pass
# ---------------------------------------------------------------------------


PASSING: dict[str, Action] = {
    "500": Action("error", 500, "InternalError"),
    "500 before the body": Action("early_error", 500, "InternalError"),
    "500 of no known kind": Action("error", 500, "Mystery"),
    "502": Action("error", 502, "BadGateway"),
    "503": Action("error", 503, "SlowDown"),
    "503 before the body": Action("early_error", 503, "SlowDown"),
    "503 of no known kind": Action("error", 503, "Mystery"),
    "503 of a service": Action("error", 503, "ServiceUnavailable"),
    "504": Action("error", 504, "GatewayTimeout"),
    "429": Action("error", 429, "TooManyRequests"),
    "509": Action("error", 509, "BandwidthLimitExceeded"),
    "400 for a slow body": Action("error", 400, "RequestTimeout"),
    "400 for half a body": Action("error", 400, "IncompleteBody"),
    "bad digest": Action("error", 400, "BadDigest"),
    "other digest": Action("error", 400, "XAmzContentSHA256Mismatch"),
    "400 of a busy key service": Action("error", 400, "KMS.ThrottlingException"),
    "conflict": Action("error", 409, "OperationAborted"),
    "200 and an error": Action("error200"),
    "reset before the body": Action("reset_before_body"),
    "reset within the body": Action("reset_within_body"),
    "reset after the body": Action("reset_after_body"),
    "half headers": Action("half_headers"),
    "no HTTP": Action("garbage"),
    "lost acknowledgement": Action("lost_ack"),
    "closed afterwards": Action("close_after"),
}
BOTO_STEPS = ("CreateMultipartUpload", "CompleteMultipartUpload")  # by the safe lane in any way


def give_each_file_a_fault(trial: Trial, actions: Mapping[str, Action], times: int | None) -> None:
    """One file for each action and operation that it can befall."""
    trial.patch("MAX_REFUSALS", sys.maxsize)  # the fast lane meets them all
    steps = BOTO_STEPS if trial.way == ("concurrent", "safe", "large") else ()
    for (name, action), operation in itertools.product(actions.items(), (trial.operation, *steps)):
        trial.file(f"{operation}/{name}", trial.content(parts=2))
        few = times and min(times, 3 if operation in BOTO_STEPS else times)
        trial.server.faults.append(Fault(action, operation, f"/{operation}/{name}$", few))


# ---------------------------------------------------------------------------
# Answers of the store that one file does not outlive
# ---------------------------------------------------------------------------


CLOSED = "Connection was closed before we received a valid response"
REFUSED: dict[str, tuple[Action, str]] = {
    "403": (Action("error", 403, "AccessDenied"), "AccessDenied"),
    "403 of no known kind": (Action("error", 403, "Mystery"), "Mystery"),
    "400": (Action("error", 400, "InvalidRequest"), "InvalidRequest"),
    "413": (Action("error", 413, "EntityTooLarge"), "EntityTooLarge"),
    "507": (Action("error", 507, "InsufficientStorage"), "InsufficientStorage"),
}
LASTING: dict[str, tuple[Action, str]] = {
    "500": (Action("error", 500, "InternalError"), "InternalError|500 Internal"),
    "520": (Action("error", 520, "Mystery"), "Mystery|520 "),
    "503": (Action("error", 503, "SlowDown"), "SlowDown|503 Service Unavailable"),
    "425": (Action("error", 425, "TooEarly"), "TooEarly|425 "),
    "200 and an error": (Action("error200"), "InternalError|200 without"),
    "reset within the body": (Action("reset_within_body"), "onnection"),
    "no HTTP": (Action("garbage"), "onnection|not HTTP"),
    "lost acknowledgement": (Action("lost_ack"), "onnection"),
}


# ---------------------------------------------------------------------------
# What ends or breaks while files go up
# ---------------------------------------------------------------------------


def refuse_connections(trial: Trial) -> None:
    """The server ends, with all its connections."""
    trial.in_the_middle(lambda: trial.server._stopped.set())
    trial.server._port = int(trial.endpoint.rpartition(":")[2])

    def start_again() -> None:
        trial.server.stop()
        trial.server.start()

    trial.repair = start_again


def delete_bucket(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("error", 404, "NoSuchBucket"), after=9))


def deny_all(trial: Trial) -> None:
    trial.in_the_middle(lambda: trial.server.deny.update(DATA_STEPS))
    trial.repair = trial.server.deny.clear


def set_store_clock(trial: Trial) -> None:
    trial.in_the_middle(lambda: vars(trial.server).update(clock_offset=3600))
    trial.repair = lambda: vars(trial.server).update(clock_offset=0)


def step_clock(trial: Trial, seconds: int, of_botocore: bool = True) -> None:
    """The machine's clock goes back."""
    clock, clock_ns, datetime_of = time.time, time.time_ns, botocore.auth.get_current_datetime

    def patch() -> None:
        time.time = lambda: clock() - seconds * trial.is_on.value
        time.time_ns = lambda: clock_ns() - seconds * 10**9 * trial.is_on.value
        pfu.FastLane.__init__.__defaults__ = (time.time, None, 300.0)
        botocore.auth.get_current_datetime = lambda *given: (
            datetime_of(*given) - timedelta(seconds=seconds * of_botocore * trial.is_on.value)
        )

    trial.patches.append(patch)
    trial.in_the_middle(trial.turn_on)


def forget_names(trial: Trial) -> None:
    """No name can be resolved any more, and every request needs a connection."""
    resolve = socket.getaddrinfo

    def look_up(host: Any, *given: Any, **named: Any) -> Any:
        if trial.is_on.value:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1" if host == "localhost" else host, *given, **named)

    trial.endpoint = trial.endpoint.replace("127.0.0.1", "localhost")
    trial.patch("RESOLVE_SECONDS", 0.0)
    trial.patches.append(lambda: setattr(socket, "getaddrinfo", look_up))
    trial.server.faults.append(Fault(Action("close_after")))
    trial.in_the_middle(trial.turn_on)


def redirect(trial: Trial) -> None:
    action = Action("redirect", 301, region="eu-west-1", endpoint=trial.endpoint)
    trial.server.faults.append(Fault(action, after=9))


def refuse_region(trial: Trial) -> None:
    """As a store does that does not say which region is the right one."""
    action = Action("error", 400, "AuthorizationHeaderMalformed")
    trial.server.faults.append(Fault(action, after=9))


NO_CONNECTION = "Could not connect to the endpoint URL"
AWAY = "the store has been unavailable for"
UNDER_WAY: list[tuple[str, Callable[[Trial], None], Sequence[Way], int, str]] = [
    ("connections refused", refuse_connections, EVEN, 1, AWAY),
    ("bucket deleted", delete_bucket, ODD, 2, "NoSuchBucket"),
    ("all denied", deny_all, SMALL, 1, "AccessDenied"),
    ("all denied", deny_all, LARGE, 1, "AccessDenied"),
    ("redirected", redirect, EVEN, 0, ""),
    ("region refused", refuse_region, ODD, 2, "AuthorizationHeaderMalformed"),
    ("store an hour ahead", set_store_clock, WAYS, 0, ""),
    ("clock ten minutes back", lambda trial: step_clock(trial, 600), EVEN, 0, ""),
    ("time() an hour back", lambda trial: step_clock(trial, 3600, False), ODD, 0, ""),
    ("no names", forget_names, EVEN[1:], 1, AWAY),
    ("no names", forget_names, EVEN[:1], 0, ""),  # the fast lane keeps those that it has
]


# ---------------------------------------------------------------------------
# What breaks before anything is sent
# ---------------------------------------------------------------------------


def from_the_start(trial: Trial, breaks: Callable[[Trial], None]) -> None:
    """The same as under way, but at once."""
    vars(trial)["in_the_middle"] = lambda function: function()
    breaks(trial)


def refuse_from_the_start(trial: Trial) -> None:
    trial.server._port = int(trial.endpoint.rpartition(":")[2])
    trial.server.stop()
    trial.repair = trial.server.start


def refuse_all(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("error", 503, "SlowDown")))


def reset_all(trial: Trial) -> None:
    trial.server.faults.append(Fault(Action("reset_before_body")))


def no_descriptors(trial: Trial, count: int) -> None:
    def limit() -> None:
        there = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (there + count, there + count))

    trial.patches.append(limit)


def no_process(trial: Trial) -> None:
    """Only who is not root is held to it; it can do no more than read and write everything."""

    def become_nobody() -> None:
        libc = ctypes.CDLL(None)
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setresuid(54321, 54321, 54321)
        kept = struct.pack("6I", 6, 6, 0, 0, 0, 0)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(struct.pack("Ii", 0x20080522, 0), kept) == 0
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    trial.patches.append(become_nobody)


def no_worker(trial: Trial) -> None:
    fork, forks = os.fork, itertools.count(1)

    def refuse() -> int:
        if next(forks) == 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    trial.patches.append(lambda: setattr(os, "fork", refuse))


FROM_THE_START: list[tuple[str, Callable[[Trial], None], Sequence[Way], int, str]] = [
    ("connections refused", refuse_from_the_start, TWO, 2, NO_CONNECTION),
    ("connections reset", reset_all, TWO, 2, CLOSED),
    ("no names", lambda t: from_the_start(t, forget_names), TWO, 2, NO_CONNECTION),
    ("all 503", refuse_all, TWO, 2, "SlowDown|503"),
    ("no process", no_process, EVEN, 2, "only 0 more processes"),
    ("no second worker", no_worker, PARALLEL, 2, "needs no workers"),
    *(
        (
            f"{count} descriptors",
            functools.partial(no_descriptors, count=count),
            ODD,
            2,
            "Too many open files",
        )
        for count in (2, 4, 8)
    ),
]


# ---------------------------------------------------------------------------
# Files that cannot be read, or shrink
# ---------------------------------------------------------------------------


READS = ("pread", "readv")


class Reads:
    """What the program's os.pread(), os.readv() and os.fstat() do with one file."""

    def __init__(self, path: Path, before: Callable[[Path], None], reads: Sequence[str]) -> None:
        self.path, self.inode, self.before, self.reads = path, path.stat().st_ino, before, reads

    def __call__(self) -> None:
        self.functions = {name: getattr(os, name) for name in (*READS, "fstat")}
        for name in self.reads:
            setattr(os, name, functools.partial(self.read, name))

    def read(self, name: str, number: int, *given: Any) -> Any:
        if self.functions["fstat"](number).st_ino == self.inode:
            self.before(self.path)
        return self.functions[name](number, *given)


def fail(number: int) -> Callable[[Path], None]:
    def raise_it(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def cut_once(path: Path) -> None:
    if path.stat().st_size > 1:
        os.truncate(path, 1)
        os.utime(path, (LONG_AGO, LONG_AGO))


def cut_always(path: Path) -> None:
    """It shrinks while it is read, each time."""
    size = path.stat().st_size
    os.truncate(path, size - 1)


READING: list[tuple[str, Callable[[Path], None], Sequence[str], Sequence[Way], int, str]] = [
    ("EIO", fail(errno.EIO), READS, ODD, 1, "Input/output error"),
    ("ESTALE of fstat", fail(errno.ESTALE), ("fstat",), EVEN, 1, "Stale file handle"),
    ("shrinks once", cut_once, READS, ODD, 0, ""),
    ("shrinks always", cut_always, READS, EVEN, 1, "while being read"),
]


# ---------------------------------------------------------------------------
# The ledger
# ---------------------------------------------------------------------------


def cut(trial: Trial) -> None:
    os.truncate(trial.path / "pfu.db", 8192)


def overwrite(trial: Trial) -> None:
    with open(trial.path / "pfu.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)


def write_text(trial: Trial) -> None:
    (trial.path / "pfu.db").write_text("this is no database, " * 1000)


LEDGERS = [
    (cut, "move this file away"),
    (overwrite, "move this file away"),
    (write_text, "file is not a database (choose another --db"),
]
