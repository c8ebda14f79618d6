#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["boto3>=1.26"]
# ///
"""pfu (parallel file upload): upload a directory tree to a private S3 bucket, and keep a ledger.

    python pfu.py ROOT [s3://BUCKET[/PREFIX]] [--mode {parallel,concurrent}]

How it works. ROOT is scanned into a SQLite ledger that has one row for every file. Rows that are
not yet in the store are read in pages, smallest file first, and handed to an engine, which
uploads them in parallel: on one event loop (concurrent) or on one in each of several processes
(parallel). What the store has acknowledged is written back to the ledger, one transaction for
each report of results. Only the parent process touches the ledger.

    directory --scan--> ledger --pages--> engine --Uploader--> object storage
                          ^------------- outcomes -----------'

There are two lanes to S3. The safe lane is boto3's own calls, in threads. The fast lane replays,
on asyncio connections, the one PutObject that boto3 built and signed for it; whatever it does not
understand goes to the safe lane. One limiter tunes the number of requests in flight.

What is guaranteed. A row becomes success only after the store has acknowledged the bytes that the
row describes. If a run is killed at any moment, the next one completes it. A second run uploads
what is new, changed (size, modification time in ns, permissions) or failed, and makes no request
for the rest. Memory is bounded by pages, never by the size of the tree.

As a library:

    from pfu import BatchJobModel, S3Uploader
    summary = BatchJobModel("samples", S3Uploader("s3://bucket/prefix"), db="pfu.db").run()
    sys.exit(summary.exit_code)  # summary.error: why it stopped early; PfuError: it cannot start

Another provider is a subclass of Uploader with one method, put().

Exit codes: 0 everything is in the store; 1 something is not, and not because you stopped it; 2
could not start; 3 another run holds the ledger; 4 stopped on request, the next run resumes.

Stable: the names in __all__, the option names, the keys of --json, the columns of the tables
FileStat and BatchJob, the exit codes and the metadata of the objects.
"""

from __future__ import annotations

import signal
import sys

if "main__" in __name__ and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an import: see main()

if (here := sys.version_info) < (3, 9):  # pfu needs Python 3.9 or later: run it by a newer one
    sys.stderr.write(f"pfu: Python 3.9 or later is needed, and this is {here[0]}.{here[1]}\n")
    sys.exit(2)

import argparse
import array
import binascii
import codecs
import contextlib
import dataclasses
import errno
import fcntl
import functools
import gc
import importlib
import importlib.util
import io
import itertools
import operator
import os
import re
import resource
import shlex
import sqlite3
import stat
import termios
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import (
    Awaitable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Any, Callable, ClassVar, NamedTuple, TypeVar, Union

__version__ = "0.2.0"

__all__ = [
    "BaseModel",
    "BatchJobModel",
    "ExitCode",
    "FatalError",
    "FileModel",
    "FileStatus",
    "JobStatus",
    "KeyRefusedError",
    "PfuError",
    "Receipt",
    "RetryableError",
    "RunOptions",
    "S3Options",
    "S3Uploader",
    "SlowDownError",
    "Summary",
    "TransferError",
    "Upload",
    "Uploader",
    "UsageError",
]

T = TypeVar("T")
Row = TypeVar("Row", bound="BaseModel")


LATE_MODULES = (
    *("asyncio", "base64", "calendar", "concurrent.futures.process", "difflib", "email.utils"),
    *("hashlib", "hmac", "ipaddress", "json", "mimetypes", "multiprocessing", "random", "select"),
    *("selectors", "shutil", "socket", "ssl", "subprocess", "unicodedata", "urllib.parse"),
)


class Later:
    """A module of LATE_MODULES until it is used: a run with nothing to upload needs few of them."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, wanted: str) -> Any:
        package = globals()[self._module.partition(".")[0]] = __import__(self._module)
        return getattr(package, wanted)


if TYPE_CHECKING:
    import asyncio
    import base64
    import calendar
    import concurrent.futures.process
    import difflib
    import email.utils
    import hashlib
    import hmac
    import ipaddress
    import json
    import mimetypes
    import multiprocessing
    import random
    import select
    import selectors
    import shutil
    import socket
    import ssl
    import subprocess
    import unicodedata
    import urllib.parse
else:
    globals().update({module.partition(".")[0]: Later(module) for module in LATE_MODULES})

if __name__ in ("__main__", "__mp_main__"):  # a provider's module imports this one by its name
    sys.modules.setdefault("pfu", sys.modules[__name__])

# ======================================================================================
# Constants: limits of S3, sizes and times
# ======================================================================================

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MAX_KEY_BYTES = 1024  # S3 user guide, "Naming objects": a key is at most 1,024 bytes of UTF-8
MAX_PARTS = 10_000  # S3 user guide, "Multipart upload limits"
MIN_PART_SIZE = 5 * MIB  # the same page; the last part may be smaller
MAX_PART_SIZE = 5 * GIB  # the same page; also the largest single PUT
MAX_OBJECT_SIZE = MAX_PARTS * MAX_PART_SIZE
MAX_TAGS = 10  # S3 user guide, "Categorizing your storage using tags"

DEFAULT_THRESHOLD = 16 * MIB  # files above it go up in parts
DEFAULT_PART_SIZE = 8 * MIB  # or larger, so that MAX_PARTS are enough
RACY_NS = 2_000_000_000  # a change within 2 s of the read may leave the mtime as it was (FAT: 2 s)
READ_ATTEMPTS = 3  # times a file is read that keeps changing

SCAN_BATCH = 500  # files compared with the ledger at once; SQLite before 3.32 takes 999 variables
SCAN_COMMIT = 5_000  # changed rows in one transaction of the scan
CHECKPOINT_PAGES = 4000  # of 4 KiB in the write-ahead log, before a checkpoint
SWEEP_ROWS = 5_000  # rows per transaction in the search for files that are gone
ROWS_SEEN = 2048  # rows whose bits are one number: their memory is that of rows, not of their range
SWEEP_SECONDS = 86_400.0  # a ledger is swept once a day: enough for 90 d of history
KEPT_HISTORY = 90 * 86_400.0  # seconds that the ledger keeps deleted files and old runs
FOLD_ROWS = 25_000  # outcomes appended before they are folded into FileStat
PAGE_ROWS = 500  # rows in one page
PAGE_BYTES = 64 * MIB  # bytes of files in one page (a page holds at least one row)
REPORTED_FAILURES = 100  # failures listed one by one; the ledger has all of them
TOLD_CAUSES, TOLD_PATHS = 50, 3  # of failures, as shown to the user
TOLD_CHARACTERS = 2000  # of a path, a reason or a line in any output
COUNTED_STEP = 10  # a cause is reported again when its count has grown by this factor

SAFE_CONCURRENCY = 32  # requests in flight in one process on the safe lane
THREADS = 64  # in one process, for slow reads and the safe lane; started on demand
INLINE_BYTES = 64 * KIB  # files up to this size may be read on the event loop
SLOW_READ = 0.001  # seconds; reads that take longer on average move to threads
LONGEST_READ = 0.005  # seconds; what takes longer counts as this: the CPU may have been elsewhere
READ_WEIGHT = 0.1  # of the last read in the average: one alone moves nothing
LEASE_SECONDS = 60.0  # a lease is broken after 45 s (proc_sys_fs(5), lease-break-time)
INLINE_PROBE = 200  # reads in threads, before one on the loop is tried again
MAX_REFUSALS = 20  # unexpected answers in a row before the fast lane is abandoned
LANE_DOUBT = 3  # temporary failures in a row before boto3 is tried instead
MAX_WORKERS = 8  # processes, unless --workers asks for more
DEFAULT_MEMORY = 128 * MIB  # for the contents of files in flight, all processes together
LEAST_MEMORY = 88 * MIB  # for one process: Python, boto3 and minimal buffers
WORKER_MEMORY = 64 * MIB  # for each worker, replaced ones included, and for their parent
LEAST_ADDRESSES = 192 * MIB  # of RLIMIT_AS, which also counts libraries and stacks
THREAD_ADDRESSES = 16 * MIB  # the same, for a thread: its stack is 8 MiB
M_ARENA_MAX = -8  # malloc.h of glibc
LEAST_TASKS = 5  # processes and threads besides the main one: Watchdog, Preparation, Threads
WORKER_TASKS = 7  # for each worker: its process and 4 threads, 2 threads of the parent
MANY_TASKS = 4096  # whoever may have more has enough
CLIENT_MEMORY = 24 * MIB  # per process, kept free for boto3's client
REPORT_SECONDS = 1.0  # an engine reports at least this often
IDLE_REPORT_SECONDS = 0.1  # and this often while it has spare capacity
EARLY_REPORTS = 20  # always sent this often
HASH_BYTES = MIB  # read and hashed at a time, so that it stays in the CPU cache
TICK_SECONDS = 0.05  # interval at which the parent and the loops read each other's gauges
ORPHAN_SECONDS = 0.25  # a worker notices within this time that its parent was killed
STOP_SECONDS = 8.0  # time for requests in flight to finish after a stop
MAX_OPEN_UPLOADS = 64  # large files in progress at a time
IDLE_RUNS = 3  # a large file without progress in this many runs is a failure
WORKER_DEATHS = 3  # times that a page is retried after its worker died
START_SECONDS = 60.0  # for a worker's first response; at the thread limit it may never come
KILL_SECONDS = 1.0  # for a killed worker to end; one waiting for a disk may not
CANCEL_ATTEMPTS = 5  # before Python 3.12 a cancellation may be lost in asyncio.wait_for()

CONNECT_SECONDS, READ_SECONDS = 10, 60  # timeouts of one botocore request
SLOW_LINE_SECONDS = 180  # the read timeout, where the kernel's send buffer drains over a slow line
COMPLETE_SECONDS = 600  # the read timeout, for assembling an object from up to 10,000 parts
WATCH_SECONDS = 300.0  # without anything read, sent or answered: the run is stopped
GIVE_UP_SECONDS = 30.0  # later it is aborted
APPLICATION_ID = 0x70667531  # "pfu1", written into the header of the ledger file
SCHEMA_VERSION = 6
MAX_INTEGER = (1 << 63) - 1  # SQLite's largest
KILLED = "killed"  # BatchJob.error of a run that was killed
NO_WAIT = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
LOCK_SUFFIX = ".lock"
NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
OPEN_FILES_HINT = "raise the open file limit: ulimit -n"
NO_LOCKS = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS))  # fcntl(2)
NO_LOCKS_HINT = "that file system has no file locks: use a --db on a local disk"
ASKING_SECONDS = 0.05  # longer than is_held() holds the lock
LEDGER_SUFFIXES = ("", "-wal", "-shm", "-journal", LOCK_SUFFIX)
LOG_BYTES, LOG_FILES = 10 * MIB, 5  # size of a log before it is rotated; number of old ones kept
LOG_SUFFIXES = ("", ".new", *(f".{number}" for number in range(1, LOG_FILES + 1)))
SANDBOX_ENDPOINT = "sandbox"  # the ledger's name for the endpoint of every sandbox


class ExitCode(IntEnum):
    """The exit status of the program."""

    OK = 0  # everything is in the store
    INCOMPLETE = 1  # something is not, and not because you stopped it: failed, refused, unavailable
    CANNOT_START = 2  # nothing was sent, or the endpoint is not an object store
    LOCKED = 3  # another run holds the ledger
    STOPPED = 4  # on request (signal, time limit), nothing failed; the next run resumes


# ======================================================================================
# Errors: each names the operation, its subject, the cause and what to do
# ======================================================================================


HIDDEN = "***"
MAX_SECRETS = 64  # only the newest are kept, as keys may be renewed for weeks
LEAST_SECRET, PLAIN_SECRET = 4, 8  # characters; shorter secrets are masked as whole words
# a password may contain / or #, which makes its URL invalid
URL_SECRET = r"(?is)(?:[a-z][a-z0-9+.-]*://|//)?(?:([^/?#@:\s]*):(.+)|([^/?#@\s]+))@"


def _in_any_form(character: str) -> str:
    """A pattern: as is, after a backslash, percent-encoded, or as JSON writes it."""
    if character.isascii() and character.isalnum():
        return character
    plain, json_form = re.escape(character), re.escape(json.dumps(character)[1:-1])
    encoded = urllib.parse.quote(character, safe="", errors="surrogateescape")
    return rf"(?:\\?{plain}|{json_form}|(?i:{encoded}))"


class Mask:
    """What must not appear in any text that leaves this process. One per process, fed wherever a
    secret is read: errors are built through it, and all output and logging passes it.
    """

    def __init__(self) -> None:
        self._known: dict[str, None] = {}  # the newest last
        self._pattern: re.Pattern[str] | None = None  # compiled on demand

    def learn(self, *secrets: str | None) -> None:
        """From now on show ``***`` instead of these, percent-encoded or not."""
        told = {form.strip() for s in secrets if s for form in (s, urllib.parse.unquote(s))}
        new = {secret for secret in told if len(secret) >= LEAST_SECRET}
        if not new <= self._known.keys():
            newest = [*self._known, *sorted(new - self._known.keys())][-MAX_SECRETS:]
            self._known, self._pattern = dict.fromkeys(newest), None

    def learn_url(self, url: str) -> None:
        """Its password, also in the form in which it is sent; a lone word before an @ is one."""
        match = re.match(URL_SECRET, url)
        if match and not re.search("[\ud800-\udc7f\udd00-\udfff]", url):
            user, password = match[1] or "", match[2] or match[3]
            pair = urllib.parse.unquote(f"{user}:{password}").encode("utf-8", "surrogateescape")
            self.learn(password, *re.split("[/?#@]", password), base64.b64encode(pair).decode())

    def hide(self, text: str) -> str:
        """``text`` with all of them masked."""
        if not self._known:
            return text
        pattern = self._pattern or re.compile(
            "|".join(
                "".join(map(_in_any_form, secret))
                if len(secret) >= PLAIN_SECRET
                else rf"(?<!\w){''.join(map(_in_any_form, secret))}(?!\w)"
                for secret in sorted(self._known, key=len, reverse=True)
            )
        )
        self._pattern = pattern
        return pattern.sub(HIDDEN, text)


MASK = Mask()


class PfuError(Exception):
    """A failure that a user can read: ``operation subject: cause (hint)``.

    ``exit_code`` is the exit status if nothing else can be done about it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.CANNOT_START

    def __init__(self, operation: str, subject: str = "", cause: str = "", hint: str = "") -> None:
        subject, cause = MASK.hide(subject), shortened(MASK.hide(cause))
        super().__init__(operation, subject, cause, hint)
        self.operation, self.subject, self.cause, self.hint = operation, subject, cause, hint

    def __str__(self) -> str:
        return shortened(self.told(f"{self.operation} {printable(self.subject)}".strip()))

    def told(self, head: str) -> str:
        """The cause and the hint, after ``head``."""
        text = f"{head}: {printable(self.cause)}" if self.cause else head
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(PfuError):
    """The request is invalid or impossible: options, root, destination, credentials."""


class InternalError(PfuError):
    """A bug that showed in a worker process, with its place there."""

    exit_code = ExitCode.INCOMPLETE


class LockedError(PfuError):
    """Another run holds the ledger."""

    exit_code = ExitCode.LOCKED


class StoppedError(PfuError):
    """The run was stopped while it waited for an answer."""

    exit_code = ExitCode.STOPPED


class LedgerError(PfuError):
    """The ledger cannot be read or written."""


class SourceError(PfuError):
    """A file cannot be read, or keeps changing."""


class VanishedError(SourceError):
    """A file that the scan saw is no longer there, or something else is."""


class ChangedError(SourceError):
    """A file changed while being read."""


class LeasedError(SourceError):
    """Another program (Samba) holds a lease on a file, and the kernel asks it to give it up."""


class TransferError(PfuError):
    """The store did not accept a file. The class says what kind of failure it is: kind_of_error().

    A plain TransferError is a refusal that may apply to all files.
    """

    code = ""  # the store's error code
    status = 0  # HTTP


class RetryableError(TransferError):
    """A temporary failure: no connection, a truncated answer, an error inside the store."""

    dropped = False  # the store or the network may be overloaded: for the limiter


class SlowDownError(RetryableError):
    """The store asks for fewer requests."""

    dropped = True


class UploadGoneError(TransferError):
    """The store no longer knows a multipart upload, or a part of it."""


class KeyRefusedError(TransferError):
    """The store refuses this key or object, which says nothing about others."""


class DeniedError(TransferError):
    """The store understands this request and refuses it."""


class UnsupportedError(DeniedError):
    """The store does not support such requests at all."""


class OddAnswerError(DeniedError):
    """The store's answer lacks something, or cannot be read."""


class TooManyPartsError(DeniedError):
    """The store allows fewer parts per object than S3 does."""


class KeptError(TransferError):
    """The store has an object of this name, which is not to be overwritten: --no-overwrite.

    ``same``: it has the file's bytes and metadata; ``etag`` is its. ``resent``: an earlier request
    may have stored it.
    """

    same = resent = False
    etag = ""
    upload: Upload  # what was to be stored


class FatalError(TransferError):
    """No file can be uploaded any more. With a store's ``code``, several are needed to stop."""


class Option(NamedTuple):
    """What the command line knows of an option, besides the name of its field.

    A new one is a field that option() makes, of S3Options, ScanOptions or RunOptions, or a row of
    COMMAND_OPTIONS; its place in --help is in GROUPS.
    """

    default: Any  # False: it takes no value; a tuple: it may be given several times
    help: str
    metavar: str | None = None  # also says how the value is read, see PARSERS
    name: str = ""  # if it is not that of the field
    choices: Sequence[str] | None = None
    within: tuple[int, int] | None = None  # least and most, besides the default

    def name_of(self, field_name: str) -> str:
        """Its name, without the dashes before it."""
        return self.name or field_name.replace("_", "-")


def option(default: T, help: str, metavar: str | None = None, **more: Any) -> T:
    """A field of a dataclass that the command line can set, too."""
    return field(default=default, metadata={"option": Option(default, help, metavar, **more)})


def options_of(kind: Any) -> dict[str, Option]:
    """The fields of a dataclass that the command line can set."""
    return {f.name: f.metadata["option"] for f in dataclasses.fields(kind) if f.metadata}


# what is said of options -> whether it is true of them; the first that is true is said
Faults = Mapping[str, Callable[[Any], Any]]


def check_faults(options: Any, faults: Faults) -> None:
    """Raises UsageError for the first fault; a value of the wrong type is one, too."""
    for told, is_found in faults.items():
        try:
            found = is_found(options)
        except (TypeError, AttributeError):
            found = True
        if found:
            raise UsageError(told, hint="see --help")


def check_fields(options: Any, faults: Faults) -> None:
    """The same for a dataclass, whose numbers must be within their limits, too."""
    for name, about in options_of(options).items():
        if about.within:
            least, most = about.within
            if not is_within(getattr(options, name), min(least, about.default), most):
                told = f"--{about.name_of(name)} must be between {least} and {most}"
                raise UsageError(told, hint="see --help")
    check_faults(options, faults)


def is_within(number: Any, least: int, most: int) -> bool:
    return isinstance(number, int) and least <= number <= most


OUT_OF_MEMORY = "out of memory (raise the memory limit of the container or ulimit -v)"


def internal_error(error: Exception) -> str:
    """One line for a bug, with its place in this file."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    file = os.path.basename(trace.tb_frame.f_code.co_filename) if trace else ""
    text = printable(f"{type(error).__name__}: {error}")
    return f"internal error: {text} ({file}:{trace.tb_lineno if trace else 0}, pfu {__version__})"


def os_cause(error: OSError) -> str:
    """The system's message for an OSError, without the path, which the caller adds."""
    cause = error.strerror or str(error) or type(error).__name__
    return f"{cause} ({OPEN_FILES_HINT})" if error.errno in NO_DESCRIPTORS else cause


def why_no_descriptors(count: int) -> str:
    """Why so many more files cannot be opened; empty if they can."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return os_cause(error)
    return ""


def shortened(text: str) -> str:
    """``text``, with its middle cut out if it is too long to read."""
    if len(text) <= TOLD_CHARACTERS:
        return text
    half = TOLD_CHARACTERS // 2
    return f"{text[:half]}[...]{text[5 - half :]}"


def printable(text: str) -> str:
    """``text`` on one line, shortened, without secrets and terminal escapes."""
    text = shortened(MASK.hide(text))
    if text.isascii() and text.isprintable():
        return text
    return shortened("".join(c if c.isprintable() else _escaped(c) for c in text))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


# ======================================================================================
# Models: the rows of the ledger, and the states of a file
# ======================================================================================


class Facts(NamedTuple):
    """What a file is: wherever they stand in a row, they stand in this order."""

    file_size: int  # bytes
    last_modified: int  # nanoseconds since the epoch, or the nearest that SQLite holds (to 2262)
    permissions: str
    uid: int | None  # None, like changed_at: unknown
    gid: int | None
    inode: int  # folded, if the file system uses all 64 bits
    changed_at: int | None  # nanoseconds since the epoch: ctime

    @classmethod
    def of(cls, status: os.stat_result) -> Facts:
        """As stat shows them."""
        return cls(*facts_of(status))


facts = operator.attrgetter(*Facts._fields)  # as a row, an outcome or the scan has them


def facts_of(status: os.stat_result) -> tuple[int, int, str, int, int, int, int]:
    """The same, made faster."""
    mtime, ctime, inode = status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    if not 0 <= mtime | ctime | inode <= MAX_INTEGER:
        mtime, ctime = (max(-MAX_INTEGER, min(ns, MAX_INTEGER)) for ns in (mtime, ctime))
        inode &= MAX_INTEGER
    mode = permissions_text(status.st_mode)
    return status.st_size, mtime, mode, status.st_uid, status.st_gid, inode, ctime


@functools.lru_cache(maxsize=256)
def permissions_text(mode: int) -> str:
    """FileStat.permissions."""
    return f"0{mode:o}"


def what_changed(now: Facts | Found, before: Facts | Found | FileModel, options: Any) -> str:
    """How a file differs from what it was, empty: not at all; its bytes may be the same.

    ``options``: with ignore_ctime and ignore_inode.
    """
    if facts(before) == facts(now):
        return ""
    told = {
        SIZE_CHANGED: now.file_size != before.file_size,
        "modification time changed": now.last_modified != before.last_modified,
        "permissions changed": now.permissions != before.permissions,
        OLDER_LEDGER: before.changed_at is None,
        "owner changed": (now.uid, now.gid) != (before.uid, before.gid),
        CTIME_MOVED: now.changed_at != before.changed_at and not options.ignore_ctime,
        INODE_MOVED: now.inode != before.inode and not options.ignore_inode,
    }
    return next((reason for reason, is_so in told.items() if is_so), "")


NEVER = -MAX_INTEGER - 1  # no file's ctime
SIZE_CHANGED = "size changed"
CTIME_MOVED, INODE_MOVED = "ctime moved", "inode moved"
MOVED_ALONE = frozenset((CTIME_MOVED, INODE_MOVED))
OLDER_LEDGER = "the ledger is from an older pfu"
SAME_METADATA = MOVED_ALONE | {"", OLDER_LEDGER}  # what an object has of a file is the same


class FileStatus(IntEnum):
    """FileStat.status."""

    PENDING = 0  # to be uploaded, or to be hashed again before it is trusted
    IN_PROGRESS = 1  # handed to an engine; in the ledger only if an older pfu was killed
    SUCCESS = 2  # the store has acknowledged what the row describes
    FAILED = 3  # not in the store, or outdated there; `error` says why


FILE_TRANSITIONS: tuple[tuple[FileStatus, ...], ...] = (
    (FileStatus.IN_PROGRESS,),  # from PENDING
    (FileStatus.SUCCESS, FileStatus.FAILED, FileStatus.PENDING),  # from IN_PROGRESS
    (FileStatus.PENDING,),  # from SUCCESS
    (FileStatus.PENDING,),  # from FAILED
)


class JobStatus(IntEnum):
    """BatchJob.status."""

    CREATED = 0
    SCANNING = 1
    UPLOADING = 2
    COMPLETE = 3
    COMPLETE_WITH_FAILURES = 4
    INTERRUPTED = 5  # stopped, killed or aborted; the next run resumes

    @property
    def text(self) -> str:
        """As it is told: ``complete with failures``."""
        return self.name.lower().replace("_", " ")


JOB_TRANSITIONS: tuple[tuple[JobStatus, ...], ...] = (
    (JobStatus.SCANNING, JobStatus.INTERRUPTED),  # from CREATED
    (JobStatus.UPLOADING, JobStatus.INTERRUPTED),  # from SCANNING
    (JobStatus.COMPLETE, JobStatus.COMPLETE_WITH_FAILURES, JobStatus.INTERRUPTED),
    *((), (), ()),  # the others are final
)


class BaseModel(ABC):
    """A row of a table. A subclass is a dataclass; its fields, in order, are the columns.

    A column's type follows the annotation: ``int`` is INTEGER, all else is TEXT; the field
    ``id`` is the primary key. SQL is built from the fields, values are always bound parameters.
    """

    table: ClassVar[str]
    indexes: ClassVar[Mapping[str, str]] = {}  # name: columns, and which rows

    @classmethod
    def fields(cls) -> list[tuple[str, str]]:
        """The names of the columns, and their annotations."""
        return [(f.name, str(f.type)) for f in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the columns, in the order of the fields."""
        return tuple(name for name, _ in cls.fields())

    @classmethod
    def create_sql(cls) -> list[str]:
        """The statements that create the table and its indexes."""
        body = ", ".join(
            f"{name} {sql_type(annotation)}{' PRIMARY KEY' * (name == 'id')}"
            for name, annotation in cls.fields()
        )
        indexes = [
            f"CREATE INDEX IF NOT EXISTS {name} ON {cls.table}{what}"
            for name, what in cls.indexes.items()
        ]
        return [f"CREATE TABLE IF NOT EXISTS {cls.table}({body})", *indexes]

    @classmethod
    def insert_sql(cls, columns: Sequence[str] = (), *, updating: Sequence[str] = ()) -> str:
        """INSERT of ``columns`` (all if none is named).

        With ``updating`` an existing row with that id gets those columns instead; columns that
        are not in ``columns`` become NULL.
        """
        columns = columns or cls.columns()
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {cls.table}({', '.join(columns)}) VALUES({marks})"
        if not updating:
            return sql
        assignments = ", ".join(f"{name}=excluded.{name}" for name in updating)
        return f"{sql} ON CONFLICT(id) DO UPDATE SET {assignments}"

    @classmethod
    def update_sql(cls, columns: Sequence[str]) -> str:
        """UPDATE of ``columns`` by id; the id is the last parameter."""
        return f"UPDATE {cls.table} SET {', '.join(f'{c}=?' for c in columns)} WHERE id=?"

    @classmethod
    def select_sql(cls, where: str = "", columns: Sequence[str] = ()) -> str:
        """SELECT of ``columns`` (all if none is named), followed by ``where``."""
        return f"SELECT {', '.join(columns or cls.columns())} FROM {cls.table} {where}".rstrip()

    def values(self) -> tuple[Any, ...]:
        """The values of all columns, in their order."""
        return tuple(getattr(self, name) for name in self.columns())


def sql_type(annotation: str) -> str:
    """The type of a column."""
    return "INTEGER" if re.match(r"int\b|FileStatus|JobStatus|Stale", annotation) else "TEXT"


NOT_UTF8 = frozenset(("file_path", "root_dir", "error"))  # columns that may hold a BLOB
STATUSES: Mapping[str, type[IntEnum]] = {"FileStatus": FileStatus, "JobStatus": JobStatus}


class Column(NamedTuple):
    """What a column may hold."""

    name: str
    types: frozenset[type]
    values: frozenset[int]  # empty: any


@functools.cache
def columns_of(model: type[BaseModel]) -> list[Column]:
    """The columns of a table, in the order of its fields."""
    return [_column(name, annotation) for name, annotation in model.fields()]


def _column(name: str, annotation: str) -> Column:
    types: set[type] = {int if sql_type(annotation) == "INTEGER" else str}
    if annotation.endswith("None"):
        types.add(type(None))
    if name in NOT_UTF8:
        types.add(bytes)
    return Column(name, frozenset(types), frozenset(map(int, STATUSES.get(annotation, ()))))


class Stale(IntEnum):
    """FileStat.stale: in what the object differs from a row that is a success."""

    OUTDATED = 1  # the store has these bytes, with outdated metadata
    SPARED = 2  # it has another object under this key, which --no-overwrite spared
    MOVED = 3  # it is as it was stored, and pfu removed the file here


OUTDATED, SPARED, MOVED = Stale

UNFINISHED = f"status<>{FileStatus.SUCCESS:d}"  # the rows of an index, and of what may use it


@dataclass
class FileModel(BaseModel):
    """One file and one destination.

    A row describes what the store has: ``etag`` and ``sha256`` are of the bytes that it
    acknowledged with exactly this size, time, mode and owner. Both become NULL as soon as the bytes
    are known to differ, or are unknown. A pending row that still has one is read and compared
    first: only different bytes are sent, and changed metadata is updated in the store.
    """

    table: ClassVar[str] = "FileStat"
    indexes: ClassVar[Mapping[str, str]] = {
        "FileStat_unfinished": f"(status, file_size, id) WHERE {UNFINISHED}"
    }

    id: str  # hash of endpoint, destination and path below the root
    created_at: int  # seconds since the epoch
    file_size: int  # bytes
    last_modified: int  # nanoseconds since the epoch
    permissions: str  # octal text of the whole mode, as 0100644
    file_path: str  # absolute; a name that is not UTF-8 is stored as a BLOB of its bytes
    status: FileStatus
    batch_id: str  # the last run that had work to do on the file
    object_key: str
    etag: str | None = None
    sha256: str | None = None  # hex; of an object in N parts: hash of the parts' hashes, then -N
    attempts: int = 0  # tries within batch_id
    error: str | None = None
    uploaded_at: int | None = None  # seconds since the epoch
    inode: int = 0
    racy: int = 0  # 1: last modified within two seconds of being read
    changed_at: int | None = None  # nanoseconds since the epoch: the inode's ctime
    uid: int | None = None  # NULL, like changed_at, in rows from an older pfu
    gid: int | None = None
    part_size: int | None = None  # bytes of the parts that sha256 was computed from
    stale: Stale | None = None
    destination_id: int | None = None  # Destination.id
    missing_since: int | None = None  # seconds since the epoch: first missed by a complete scan

    @property
    def is_hashed(self) -> bool:
        """Whether it is known what the store has: not once an engine had the file."""
        return bool(self.sha256 or self.etag) and self.status != FileStatus.IN_PROGRESS

    @property
    def late(self) -> int:
        """1: it failed before and has not succeeded since; 2: it would fail again."""
        return (self.error is not None) + str(self.error).startswith(KEPT_OTHERWISE)

    def move_to(self, status: FileStatus) -> None:
        """Change to ``status``. Raises ValueError if the transition is not allowed."""
        if status not in FILE_TRANSITIONS[self.status]:
            before = FileStatus(self.status).name
            raise ValueError(f"no transition from {before} to {status.name}")
        self.status = status

    def fail(self, error: str, attempts: int) -> None:
        """The file is not in the store in its current form; ``error`` says why."""
        self.move_to(FileStatus.FAILED)
        self.error, self.attempts = shortened(error), self.attempts + attempts

    def apply(self, outcome: Outcome) -> None:
        """Apply an engine's report on the file. Once sent, nobody knows what the store has."""
        if outcome.kind in STORED:
            self.succeed(outcome)
        elif outcome.kind is OutcomeKind.KEPT:
            self.keep(outcome)
        else:
            if outcome.kind in GIVEN_BACK:
                self.move_to(FileStatus.PENDING)
            else:
                self.fail(outcome.error, outcome.attempts)
            if outcome.sent:
                self.etag = self.sha256 = None

    def succeed(self, outcome: Outcome) -> None:
        """The store has the file as ``outcome`` read it."""
        self.move_to(FileStatus.SUCCESS)
        self.file_size, self.last_modified = outcome.file_size, outcome.last_modified
        self.permissions, self.inode, self.racy = outcome.permissions, outcome.inode, outcome.racy
        self.changed_at, self.uid, self.gid = outcome.changed_at, outcome.uid, outcome.gid
        self.error, self.attempts = None, self.attempts + outcome.attempts
        self.sha256, self.part_size = outcome.sha256 or None, outcome.part_size or None
        self.stale = OUTDATED if outcome.stale else None
        if outcome.kind is not OutcomeKind.UNCHANGED or not self.etag:
            self.etag, self.uploaded_at = outcome.etag, outcome.uploaded_at

    def keep(self, outcome: Outcome) -> None:
        """The store has another object under its key, which --no-overwrite spared."""
        self.succeed(outcome)
        self.etag = self.sha256 = self.uploaded_at = self.part_size = None
        self.stale = SPARED


class OutcomeKind(IntEnum):
    """The result for a file that was handed to an engine."""

    UPLOADED = 0  # acknowledged by the store
    UNCHANGED = 1  # read and compared: the store already has these bytes
    FAILED = 2
    REFUSED = 3  # failed: the store refuses it, and may refuse others for the same reason
    VANISHED = 4  # no longer there, or no longer a regular file
    RELEASED = 5  # not started, or interrupted: the engine wants it back
    UNSENT = 6  # failed after many tries while others succeeded: retried once at the end
    FATAL = 7  # no file can be uploaded any more: the run stops, the next one resumes
    CHANGED = 8  # a large file changed during the upload
    GONE = 9  # its multipart upload no longer exists
    LARGE = 10  # the file has grown and must now go up in parts
    RENEWED = 11  # the store already has these bytes; its metadata is now up to date
    CRAMPED = 12  # a large file has more parts than the store allows
    KEPT = 13  # the store has another object under its key, which is not to be overwritten


STORED = frozenset((OutcomeKind.UPLOADED, OutcomeKind.UNCHANGED, OutcomeKind.RENEWED))
SENT_WHOLE = frozenset((OutcomeKind.UPLOADED, OutcomeKind.RENEWED))
SKIPPED = {OutcomeKind.VANISHED: "vanished", OutcomeKind.KEPT: "in the store already"}
GIVEN_BACK = frozenset((OutcomeKind.RELEASED, OutcomeKind.FATAL))


class Outcome(NamedTuple):
    """An engine's report on one file. All but id, kind and error is as read, not as scanned."""

    id: str
    kind: OutcomeKind
    error: str = ""
    attempts: int = 0  # tries
    file_size: int = 0
    last_modified: int = 0  # nanoseconds since the epoch
    permissions: str = ""
    uid: int = 0
    gid: int = 0
    inode: int = 0
    changed_at: int = 0  # nanoseconds since the epoch: the inode's ctime
    racy: int = 0
    etag: str = ""
    sha256: str = ""
    uploaded_at: int = 0  # seconds since the epoch
    part_size: int = 0  # bytes of the parts that sha256 was computed from; 0: none
    stale: bool = False  # the metadata in the store is outdated; ``error`` says why
    sent: bool = False  # the store may have some of it
    cause: str = ""  # of a failure: the error without the file, which several may share
    status: int = 0  # HTTP, of a failure
    seconds: float = 0.0  # since its transfer began

    @property
    def bytes_sent(self) -> int:
        """Of a file that is stored: small ones are sent again for their metadata."""
        is_again = self.kind is OutcomeKind.RENEWED and self.sent
        return self.file_size if is_again or self.kind is OutcomeKind.UPLOADED else 0


OUTCOME_COLUMNS = (
    *Facts._fields,
    *("status", "etag", "sha256", "attempts", "error", "uploaded_at", "racy", "part_size", "stale"),
)


class OutcomeRow(BaseModel):
    """The outcome of a file, until it is folded into the file's row: some of its columns."""

    table: ClassVar[str] = "Outcome"

    @classmethod
    def fields(cls) -> list[tuple[str, str]]:
        """As in FileModel, but for the id, which need not be unique."""
        known = dict(FileModel.fields())
        return [("file_id", "str"), *((name, known[name]) for name in OUTCOME_COLUMNS)]


@dataclass
class UploadModel(BaseModel):
    """A multipart upload that was started: at most one per large file."""

    table: ClassVar[str] = "MultipartUpload"

    id: str  # of the file
    upload_id: str
    created_at: int  # seconds since the epoch
    batch_id: str  # the run that started it
    destination: str
    endpoint: str
    object_key: str
    part_size: int = 0  # bytes
    inode: int = 0
    changed_at: int = 0  # nanoseconds since the epoch: the inode's ctime
    racy: int = 0  # 1: the file was modified within two seconds of first being read
    fingerprint: str = ""  # hashes of what Create said: without metadata, a slash, metadata
    most_bytes: int = 0  # of the file, stored when a run started work on it
    idle_runs: int = 0  # runs that have worked on it since without storing more


@dataclass
class PartModel(BaseModel):
    """A part of an unfinished upload that the store has acknowledged."""

    table: ClassVar[str] = "Part"

    id: str  # of the file, a slash, and the number
    number: int  # from 1
    part_size: int  # bytes
    etag: str
    sha256: str  # hex


@dataclass
class DestinationModel(BaseModel):
    """A place that files go to, and the ROOT that is uploaded there: one ROOT per destination."""

    table: ClassVar[str] = "Destination"

    id: int | None
    endpoint: str  # of a store that is not AWS
    destination: str
    root_dir: str | None = None
    swept_at: int = 0  # seconds since the epoch: last search for rows of deleted files


@dataclass
class BatchJobRow(BaseModel):
    """One run, as the ledger keeps it. The counts are written again and again while it goes on."""

    table: ClassVar[str] = "BatchJob"
    indexes: ClassVar[Mapping[str, str]] = {"BatchJob_created": "(created_at)"}

    id: str
    status: JobStatus
    created_at: int  # seconds since the epoch
    root_dir: str
    destination: str
    mode: str
    finished_at: int | None = None  # seconds since the epoch
    endpoint: str = ""  # of a store that is not AWS
    seen: int = 0
    uploaded: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    pending: int = 0
    bytes_uploaded: int = 0
    error: str | None = None  # why the run stopped early

    def told(self) -> dict[str, Any]:
        """As --status --json tells it: a run's own --json has the same names and words."""
        row = dataclasses.asdict(self)
        status = JobStatus(self.status).text
        return {**row, "batch_id": self.id, "root": self.root_dir, "status": status}

    def move_to(self, status: JobStatus) -> None:
        """Change to ``status``. Raises ValueError if the transition is not allowed."""
        if status not in JOB_TRANSITIONS[self.status]:
            raise ValueError(f"no transition from {self.status.name} to {status.name}")
        self.status = status


# ======================================================================================
# Ledger: the only place where SQL is executed
# ======================================================================================
#
# One SQLite file in WAL mode, written by one process, guarded by a lock file next to it. A commit
# is one fsync (synchronous=FULL): a result that was reported survives a power cut.
#
# The scan looks rows up by id in batches and writes only those that differ, so an unchanged tree
# costs reads alone. An id begins with the hash of the file's directory: the files of one directory
# are neighbours in the index, and a batch touches few of its pages.
#
# Files are uploaded in order of size, which scatters them over the whole table: writing each result
# in place would cost one database page per file. So outcomes are appended to a table of their own,
# and folded into FileStat FOLD_ROWS at a time, in the table's own order. What a killed run left
# there is folded before the next one starts.


FOLDER_DIGITS = 12  # digits of an id that belong to the directory: see Ids
BEHIND_HEX = "g"
FAILED_BEFORE = "failed before"
KEPT_OTHERWISE = "this store keeps it under another name"
LATE = None, FAILED_BEFORE, KEPT_OTHERWISE  # by Change.late


def directory_of(file_id: str) -> str:
    """The prefix that the ids of a directory's files share."""
    return file_id[:FOLDER_DIGITS]


NOT_THERE = os.strerror(errno.ENOENT)


class Found(NamedTuple):
    """One file seen by the scan. With a ``problem`` it fails without being read."""

    id: str
    path: str
    key: str
    file_size: int = 0
    last_modified: int = 0
    permissions: str = ""
    uid: int = 0
    gid: int = 0
    inode: int = 0
    changed_at: int = 0
    problem: str = ""

    @classmethod
    def of(cls, file: FileModel) -> Found:
        """A file as its row describes it."""
        return cls(file.id, file.file_path, file.object_key, *facts(file))


# What the scan compares, without a look at the rest of a row.
KNOWN_COLUMNS = ("id", *Facts._fields, "status", "racy", "stale", "missing_since", "rowid")
FACTS_KNOWN, FACTS_FOUND = slice(1, 8), slice(3, 10)  # of them, and of a Found
STATE_KNOWN = slice(8, 12)  # status to missing_since
AS_STORED = (FileStatus.SUCCESS, 0, None, None)  # these, if all is well


class Listed(NamedTuple):
    """An object as listed by the store."""

    key: str
    size: int  # bytes
    etag: str


class Inspected(NamedTuple):
    """An object as described by the store."""

    size: int  # bytes
    etag: str
    sha256: str  # hex, of objects in parts as combined(); empty if not kept
    metadata: Mapping[str, str]
    stored_at: int  # nanoseconds since the epoch
    part_size: int = 0  # bytes; 0: not in parts, or not reported
    lacks_lock: bool = False  # which this run asks for; or the store does not report it

    def is_of(self, found: Found) -> bool:
        """Whether its metadata is that of a file: size, time and permissions."""
        modified = nanoseconds(self.metadata.get("mtime", ""))
        modified = modified and min(modified, MAX_INTEGER)
        mode = self.metadata.get("mode", "").lstrip("0")
        told = (self.size, modified, mode)
        return told == (found.file_size, found.last_modified, found.permissions.lstrip("0"))

    def has(self, metadata: Mapping[str, str]) -> bool:
        """Whether it has these metadata, among others."""
        return metadata.items() <= self.metadata.items()

    @property
    def digests(self) -> list[str]:
        """What the store reports of its bytes: SHA-256, and an ETag that may be an MD5."""
        md5 = self.etag if is_md5_etag(self.etag) else ""
        told = [self.sha256, md5]
        if self._is_of_parts_untold:
            told.append(f"{self.sha256}-{md5.partition('-')[2]}")
        return list(filter(None, told))

    def forms(self) -> list[tuple[Form, str]]:
        """What its bytes can be compared by: possible forms of its digests, and the digests."""
        forms = (forms_of(digest, self.size, self.part_size) for digest in self.digests)
        return list(itertools.chain.from_iterable(forms))

    @property
    def sha256_forms(self) -> list[Form]:
        """Those of its SHA-256."""
        return [form for form, _ in self.forms() if form.algorithm == "sha256"]

    @property
    def _is_of_parts_untold(self) -> bool:
        """Whether its digest may be one of parts without their number, as moto returns it."""
        is_in_parts = "-" in self.etag and bool(is_md5_etag(self.etag))
        return is_in_parts and bool(self.sha256) and "-" not in self.sha256

    @property
    def clear_sha256(self) -> str:
        """Its digest, if it is known what it covers."""
        return "" if self._is_of_parts_untold else self.sha256

    def proves(self, size: int, digests: Collection[str]) -> bool | None:
        """Whether its bytes are those with this size and these digests, one for each of forms().

        None: it has nothing comparable. An ETag that looks like an MD5 need not be one (SSE-KMS),
        and the parts may have other sizes than those known: such a digest can only prove that the
        bytes are the same.
        """
        if size != self.size:
            return False
        sha256 = self.sha256_forms
        is_clear = len(sha256) == 1 and not self._is_of_parts_untold
        if is_clear and (self.part_size or sha256 == [WHOLE_SHA256]):
            return self.sha256 in digests
        return None if set(digests).isdisjoint(self.digests) else True

    def shows(self, upload: Upload, digests: Collection[str], mark: str = "") -> bool:
        """Whether it is what ``upload`` stores: by its ``mark``, or by a digest and all metadata.

        One of the same size and time may be that of last night.
        """
        if self.size == upload.size and mark and self.metadata.get(UPLOAD_MARK) == mark:
            return True
        return self.has(upload.metadata) and bool(self.proves(upload.size, digests))


def nanoseconds(text: str) -> int | None:
    """Of a decimal number of seconds, as rclone and pfu write it; None if malformed."""
    match = re.fullmatch(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?", text)
    if not match:
        return None
    count = int(match[2]) * 10**9 + int((match[3] or "").ljust(9, "0"))
    return -count if match[1] else count


class Change(NamedTuple):
    """Why a file needs a closer look."""

    found: Found
    reason: str
    keeps_hash: bool = False  # what the store has is known: read and compare, then decide
    late: int = 0  # 1: it failed before, all else goes first; 2: it would fail again


FOUND_COLUMNS = (
    *("id", "file_path", "object_key", *Facts._fields, "error"),
    *("created_at", "status", "batch_id", "attempts", "racy", "destination_id"),
)
TAKE_IN_SQL = FileModel.insert_sql(
    FOUND_COLUMNS, updating=[c for c in FileModel.columns() if c not in ("id", "created_at")]
)
REHASH_COLUMNS = ("file_path", "status", "batch_id", "attempts", "error", "missing_since")
OUTCOME_SQL = OutcomeRow.insert_sql()
FOLD_SQL = (
    f"INSERT INTO FileStat(id, {', '.join(OUTCOME_COLUMNS)}) "
    f"{OutcomeRow.select_sql('WHERE true ORDER BY file_id')} ON CONFLICT(id) DO UPDATE SET "
    + ", ".join(f"{name}=excluded.{name}" for name in OUTCOME_COLUMNS)
)
outcome_values = operator.attrgetter("id", *OUTCOME_COLUMNS)
JOBS_TO_FORGET = (
    "created_at < ? AND id NOT IN (SELECT batch_id FROM MultipartUpload) AND rowid NOT IN "
    "(SELECT max(rowid) FROM BatchJob WHERE status=? GROUP BY destination, endpoint)"
)
# New and changed files first, then files that only need a look, then earlier failures: so old
# failures never come before tonight's data.
TURNS = ("sha256 IS NULL AND error IS NULL", "sha256 NOTNULL AND error IS NULL", "error NOTNULL")
PAGE = (
    f"WHERE {UNFINISHED} AND status=? AND (file_size, id) > (?, ?) AND batch_id=? AND {{}} "
    "ORDER BY file_size, id LIMIT ?"
)


is_sha256 = re.compile(r"[0-9a-f]{64}").fullmatch
# SQLite may quote names from a damaged file that are not UTF-8: they are passed on as they are.
SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class FileInPlace:
    """A file that has to stay where it was opened: the ledger, and the lock that guards it."""

    path: str
    _opened: os.stat_result

    def check_in_place(self) -> None:
        """Raises LedgerError if another file, or none, is there now."""
        with contextlib.suppress(OSError):
            now = os.stat(self.path)
            if os.path.samestat(self._opened, now) or not os.path.samestat(now, os.stat(self.path)):
                return  # the same, or on a file system with made-up inode numbers
        cause = "it was removed or replaced during the run"
        raise LedgerError("write", self.path, cause, "rebuild it with --verify")


class LedgerFile(FileInPlace):
    """The SQLite file. Raises LedgerError, with a hint, for everything that goes wrong with it."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        """Open the ledger at ``path``; create it if it does not exist.

        ``read_only``: nothing is written, not even a file; a missing ledger counts as empty.
        """
        self.path = os.fspath(path)
        self.read_only = read_only
        self.is_new = False  # created here
        with contextlib.ExitStack() as refused:
            try:
                self._db = self._connect()
                refused.callback(self.close)
                self._set_up()
                self._check()
            except SQL_ERRORS as error:
                raise self._error("open", error) from error
            refused.pop_all()

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            if not os.path.exists(self.path) or not os.path.getsize(self.path):
                return sqlite3.connect("", isolation_level=None)
            uri = f"file://{urllib.parse.quote(os.fsencode(absolute(self.path)))}?mode=ro"
            if not os.path.exists(f"{self.path}-wal"):  # SQLite makes one, and removes it if it may
                places = self.path, os.path.dirname(absolute(self.path))
                may_write = all(os.access(place, os.W_OK) for place in places)
                uri = uri[:-1] + "w" if may_write else f"{uri}&immutable=1"
            return sqlite3.connect(uri, uri=True, isolation_level=None)
        for end in LEDGER_SUFFIXES[1:]:
            check_own(self.path + end)
        os.close(open_own(self.path))
        self._opened = os.stat(self.path)
        return sqlite3.connect(self.path, isolation_level=None, timeout=10)

    def _set_up(self) -> None:
        cache, checkpoint = f"cache_size=-{4 * KIB}", f"wal_autocheckpoint={CHECKPOINT_PAGES}"
        settings = "trusted_schema=OFF", "synchronous=FULL", cache, checkpoint
        for setting in ("query_only=ON",) if self.read_only else settings:
            self._db.execute(f"PRAGMA {setting}")

    def close(self) -> None:
        """Close the file. Nothing that was recorded depends on it."""
        with contextlib.suppress(*SQL_ERRORS):
            self._db.close()

    # -- schema

    def _check(self) -> None:
        version = self._number("PRAGMA user_version")
        owner = self._number("PRAGMA application_id")
        if version > SCHEMA_VERSION and owner == APPLICATION_ID:
            cause = f"created by a newer pfu (schema {version})"
            raise LedgerError("open ledger", self.path, cause, "update pfu.py")
        if owner != APPLICATION_ID and self._number("SELECT count(*) FROM sqlite_master"):
            cause = "database of another program"
            raise LedgerError("open ledger", self.path, cause, "choose another --db")
        if not self.read_only:
            self._db.execute("PRAGMA journal_mode=WAL")  # changes the file
        if owner != APPLICATION_ID:
            self._may_write()
            self._create()
            return
        if version < SCHEMA_VERSION:
            self._extend()
        self._check_schema()

    def _check_schema(self) -> None:
        """Raises LedgerError if it contains what pfu does not create: trigger, view, table."""
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            create_tables(db)
            known = schema_of(db.execute)
        for kind, name in sorted(schema_of(self._db.execute) - known, reverse=True):
            cause = f"it contains {kind} {name}, which pfu did not create"
            raise LedgerError("open ledger", self.path, cause, MOVE_AWAY)

    def _create(self) -> None:
        self.is_new = True
        with self.together():
            create_tables(self._db)
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _extend(self) -> None:
        """Give a ledger from an older pfu the columns and tables that it lacks."""
        self._may_write()
        with self.together():
            self._db.execute("DROP INDEX IF EXISTS FileStat_pages")
            for model in TABLES:
                there = {row[1] for row in self._rows(f"PRAGMA table_info({model.table})")}
                for name, annotation in model.fields() if there else ():
                    if name not in there:
                        column = f"{name} {sql_type(annotation)}"
                        self._db.execute(f"ALTER TABLE {model.table} ADD {column}")
            self._create()
            self._db.execute(f"DELETE FROM {UploadModel.table} WHERE upload_id IS NULL")
            self._db.execute(
                "INSERT INTO Destination(endpoint, destination, root_dir, swept_at) SELECT "
                "endpoint, destination, root_dir, 0 FROM BatchJob WHERE rowid IN "
                "(SELECT max(rowid) FROM BatchJob GROUP BY endpoint, destination) AND NOT EXISTS "
                "(SELECT 1 FROM Destination)"
            )
            self._db.execute(
                "UPDATE FileStat SET destination_id=(SELECT Destination.id FROM Destination "
                "JOIN BatchJob USING (endpoint, destination) WHERE BatchJob.id=batch_id) "
                "WHERE destination_id IS NULL"
            )

    def _may_write(self) -> None:
        """What must not be written is copied first, into a file that is gone with the process."""
        if not self.read_only:
            return
        original, self._db = self._db, sqlite3.connect("", isolation_level=None)
        with contextlib.closing(original):
            try:
                original.backup(self._db)
            except SQL_ERRORS as error:
                raise self._error("read", error) from error

    # -- statements

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """One transaction around several calls, all or nothing; nested uses join the outermost."""
        if self._db.in_transaction:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except SQL_ERRORS as error:
            self._roll_back()
            raise self._error("write", error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        with contextlib.suppress(*SQL_ERRORS):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _write(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        with self.together():
            return self._db.execute(sql, parameters)

    def _write_all(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self.together():
            self._db.executemany(sql, rows)

    def save(self, *rows: BaseModel) -> None:
        """Insert rows of one table, or rewrite all their columns."""
        if rows:
            sql = rows[0].insert_sql(updating=rows[0].columns())
            self._write_all(sql, map(_row, rows))

    def _set(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write columns of files; the last value of each row is the file's id."""
        self._write_all(FileModel.update_sql(columns), rows)

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except SQL_ERRORS as error:
            raise self._error("read", error) from error

    def _number(self, sql: str, *parameters: Any) -> int:
        """The first column of the first row; 0 if there is none."""
        return int(next(iter(self._rows(sql, parameters)), (0,))[0] or 0)

    def _read(self, model: type[Row], where: str, *parameters: Any) -> list[Row]:
        """Rows of a table, checked to hold what pfu writes there."""
        rows = self._rows(model.select_sql(where), parameters)
        checked: list[Iterable[Any]] = []
        for column, values in zip(columns_of(model), zip(*rows)):
            types = set(map(type, values))
            if types - column.types or (column.values and set(values) - column.values):
                raise self._malformed(model, column.name)
            checked.append(map(python_path, values) if bytes in types else values)
        return [model(*row) for row in zip(*checked)]

    def _malformed(self, model: type[BaseModel], name: str) -> LedgerError:
        return self._error("read", sqlite3.DatabaseError(f"malformed: {model.table}.{name}"))

    def _error(self, operation: str, error: Exception) -> LedgerError:
        text = str(error)
        if isinstance(error, UnicodeDecodeError):
            text = "malformed: it contains text that is not UTF-8"
        hints = {
            "full": "free some space and rerun; nothing already uploaded is lost",
            "disk I/O error": "is the disk full or failing? Fix it and rerun",
            "not a database": "choose another --db, or move this file away",
            "malformed": MOVE_AWAY,
            "readonly": "the file and its directory must be writable",
            "unable to open": "its directory must exist and be writable",
            "locked": "another program has it open",
        }
        hint = next((hint for part, hint in hints.items() if part in text), "")
        if "unable to open" in text and (cause := why_no_descriptors(1)):
            text, hint = cause, ""
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if "disk I/O" in text and most != resource.RLIM_INFINITY:
            hint = f"no file may be larger than {bytes_text(most)}: raise ulimit -f, then rerun"
        return LedgerError(f"{operation} ledger", self.path, text, hint)


class UploadTables(LedgerFile):
    """Multipart uploads that are not finished, and those of their parts that are in the store."""

    def unfinished_upload(self, file_id: str) -> UploadModel | None:
        """The unfinished upload of a file, if there is one."""
        return next(iter(self._read(UploadModel, "WHERE id=?", file_id)), None)

    def unfinished_uploads(self, condition: str = "", *parameters: Any) -> Iterator[UploadModel]:
        """All unfinished uploads that meet a condition, by the id of their file."""
        where, last = f"WHERE id > ? {condition} ORDER BY id LIMIT 1", ""
        while rows := self._read(UploadModel, where, last, *parameters):
            upload = rows[0]
            if upload.id <= last:  # a damaged file may repeat it for ever
                raise self._malformed(UploadModel, "id")
            yield upload
            last = upload.id

    def left_over_uploads(self, job: BatchJobRow) -> Iterator[UploadModel]:
        """Those of earlier runs to the same place, of files that are not pending in ``job``.

        Only call it if its scan saw all files.
        """
        condition = (
            "AND destination=? AND endpoint=? AND NOT EXISTS (SELECT 1 FROM FileStat "
            "WHERE FileStat.id=MultipartUpload.id AND FileStat.batch_id=? AND status != ?)"
        )
        ends = sql_path(job.destination), sql_path(job.endpoint)
        return self.unfinished_uploads(condition, *ends, job.id, FileStatus.SUCCESS)

    def save_upload(self, upload: UploadModel) -> None:
        """Write an upload that was started; its file has no parts then."""
        with self.together():
            self._forget_parts(upload.id)
            self.save(upload)

    def count_headway(self, upload: UploadModel) -> None:
        """A run resumes an upload of an earlier one: has there been progress?"""
        stored = self._stored_bytes(upload.id)
        upload.idle_runs = 0 if stored > upload.most_bytes else upload.idle_runs + 1
        upload.most_bytes = max(stored, upload.most_bytes)
        sql = UploadModel.update_sql(("most_bytes", "idle_runs"))
        self._write(sql, upload.most_bytes, upload.idle_runs, upload.id)

    def forget_upload(self, file_id: str) -> None:
        """Drop an upload that is complete or aborted."""
        with self.together():
            self._forget_parts(file_id)
            self._write(f"DELETE FROM {UploadModel.table} WHERE id=?", file_id)

    def parts(self, file_id: str) -> list[PartModel]:
        """The parts of a file that the store has acknowledged, by number."""
        where = "WHERE id > ? AND id < ? ORDER BY number"
        parts = self._read(PartModel, where, f"{file_id}/", f"{file_id}0")
        if not all(is_sha256(part.sha256) for part in parts):
            raise self._malformed(PartModel, "sha256")
        return parts

    def _stored_bytes(self, file_id: str) -> int:
        return sum(part.part_size for part in self.parts(file_id))

    def forget_parts(self, file_id: str, numbers: Iterable[int]) -> None:
        """Drop parts that turn out not to be in the store."""
        ids = [(part_id(file_id, number),) for number in numbers]
        self._write_all(f"DELETE FROM {PartModel.table} WHERE id=?", ids)

    def _forget_parts(self, file_id: str) -> None:
        sql = f"DELETE FROM {PartModel.table} WHERE id > ? AND id < ?"
        self._write(sql, f"{file_id}/", f"{file_id}0")


class ListingTable(LedgerFile):
    """What the store says it has: a temporary table on disk, while the ledger is open."""

    def begin_listing(self) -> None:
        """Create the table."""
        columns = "key TEXT PRIMARY KEY, size INTEGER, etag TEXT, found INTEGER DEFAULT 0"
        self._write(f"CREATE TEMP TABLE Listed({columns}) WITHOUT ROWID")

    def add_listed(self, objects: Iterable[Listed]) -> None:
        """Add a page of a listing."""
        self._write_all("INSERT OR REPLACE INTO Listed(key, size, etag) VALUES(?,?,?)", objects)

    def listed(self, keys: Sequence[str]) -> dict[str, Listed]:
        """Those of ``keys`` that the store has."""
        sql = f"SELECT key, size, etag FROM Listed WHERE key IN ({_marks(keys)})"
        return {row[0]: Listed._make(row) for row in self._rows(sql, keys)}

    def mark_found(self, keys: Iterable[str]) -> None:
        """These keys have a local file."""
        self._write_all("UPDATE Listed SET found=1 WHERE key=?", [(key,) for key in keys])

    def not_found(self, count: int) -> tuple[int, list[str]]:
        """How many objects have no local file, and the first of them."""
        rows = self._rows("SELECT key FROM Listed WHERE found=0 ORDER BY key LIMIT ?", (count,))
        total = self._number("SELECT count(*) FROM Listed WHERE found=0")
        return total, [row[0] for row in rows]

    def went_away(self, place: DestinationModel) -> int:
        """How many of these objects are in the ledger: their files were deleted since."""
        sql = (
            "SELECT count(*) FROM FileStat JOIN Listed ON Listed.key=object_key "
            "WHERE found=0 AND destination_id=?"
        )
        return self._number(sql, place.id)


class Ledger(UploadTables, ListingTable):
    """Runs, their destinations, and the files there."""

    renamed: tuple[str, str] = ("", "")  # ROOT, and the name it has in the rows, if that is another
    _not_folded = 0
    _unfolded: Mapping[str, Sequence[Any]] = {}  # outcomes by file, if nothing must be written

    # -- runs

    def interrupt_unfinished_jobs(self) -> None:
        """Mark runs that were killed: the caller holds the lock, so none of them is alive."""
        sql = "UPDATE BatchJob SET status=?, error=? WHERE status < ?"
        self._write(sql, JobStatus.INTERRUPTED, KILLED, JobStatus.COMPLETE)

    def last_jobs(self, count: int) -> list[BatchJobRow]:
        """The newest runs, newest first."""
        return self._read(BatchJobRow, "ORDER BY rowid DESC LIMIT ?", count)

    # -- destinations

    def destination(self, job: BatchJobRow) -> DestinationModel:
        """What is known about the destination of a run; its id is None if nothing is."""
        ends = sql_path(job.destination), sql_path(job.endpoint)
        rows = self._read(DestinationModel, "WHERE destination=? AND endpoint=?", *ends)
        return rows[0] if rows else DestinationModel(None, job.endpoint, job.destination)

    def save_destination(self, place: DestinationModel) -> None:
        """Write what is known about a destination; a new one gets its id."""
        written = self._write(DestinationModel.insert_sql(updating=place.columns()), *_row(place))
        place.id = place.id or written.lastrowid

    def forget_files(self, place: DestinationModel) -> None:
        """Drop all files of a destination that no longer exists."""
        with self.together():
            ends = place.destination, place.endpoint
            for upload in list(self.unfinished_uploads("AND destination=? AND endpoint=?", *ends)):
                self.forget_upload(upload.id)
            self._write("DELETE FROM FileStat WHERE destination_id=?", place.id)

    def has_uploads(self, place: DestinationModel) -> bool:
        """Whether any file has been uploaded there, and was not removed here by pfu."""
        where = "WHERE status=? AND destination_id=? AND stale IS NOT ? LIMIT 1"
        which = FileStatus.SUCCESS, place.id, MOVED
        not_folded = "Outcome JOIN (SELECT id, destination_id FROM FileStat) ON id=file_id"
        return any(
            self._number(f"SELECT 1 FROM {rows} {where}", *which)
            for rows in ("FileStat", not_folded)
        )

    def has_files(self, place: DestinationModel) -> bool:
        """Whether any file is recorded there."""
        sql = "SELECT 1 FROM FileStat WHERE destination_id=? LIMIT 1"
        return bool(self._number(sql, place.id))

    # -- scan

    def known(self, ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """What is known about ``ids``, at most SCAN_BATCH of them: KNOWN_COLUMNS."""
        sql = FileModel.select_sql(f"WHERE id IN ({_marks(ids)})", KNOWN_COLUMNS)
        return {row[0]: row for row in self._latest(KNOWN_COLUMNS, self._rows(sql, ids))}

    def _latest(
        self, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> Iterable[tuple[Any, ...]]:
        """These rows of files, as they are once all outcomes are folded."""
        if not self._unfolded:
            return rows
        newer = (dict(zip(OUTCOME_COLUMNS, self._unfolded.get(row[0], ()))) for row in rows)
        return [tuple(map(new.get, columns, row)) for new, row in zip(newer, rows)]

    def stored(self, ids: Sequence[str], *, as_they_are: bool = False) -> dict[str, FileModel]:
        """The rows of ``ids``, as many at most; ``as_they_are``: whatever they hold."""
        where = f"WHERE id IN ({_marks(ids)})"
        if as_they_are:
            rows = self._latest(FileModel.columns(), self._rows(FileModel.select_sql(where), ids))
            return {row[0]: FileModel(*row) for row in rows}
        return {file.id: file for file in self._read(FileModel, where, *ids)}

    def take_in(
        self, changes: Iterable[Change], batch_id: str, now: int, place: DestinationModel
    ) -> None:
        """Write files that need work: pending, or failed if the scan says so."""
        rehash, anew = [], []
        for found, _, keeps_hash, late in changes:
            path = sql_path(rebased(found.path, *self.renamed))
            status = int(FileStatus.FAILED if found.problem else FileStatus.PENDING)
            error = found.problem or LATE[late]
            if keeps_hash:
                rehash.append((path, status, batch_id, 0, error, None, found.id))
            else:
                ends = found.id, path, *found[2:10], error
                anew.append((*ends, now, status, batch_id, 0, 0, place.id))
        anew.sort()
        with self.together():
            self._set(REHASH_COLUMNS, rehash)
            self._write_all(TAKE_IN_SQL, anew)

    def _real_path(self, path: str) -> str:
        return rebased(path, *reversed(self.renamed))

    def forget_vanished(self, job: BatchJobRow, place: DestinationModel) -> int:
        """Drop files that earlier runs left unfinished and this scan did not see.

        Returns their number.
        """
        sql = "DELETE FROM FileStat WHERE status != ? AND batch_id != ? AND destination_id=?"
        return self._write(sql, FileStatus.SUCCESS, job.id, place.id).rowcount

    # -- history

    def seen_again(self, ids: Iterable[str]) -> None:
        """Files that were missing are back."""
        self._set(("missing_since",), [(None, file_id) for file_id in ids])

    def sweep(
        self,
        job: BatchJobRow,
        place: DestinationModel,
        is_missing: Callable[[int, str], bool],
        forgotten: float,
    ) -> None:
        """Mark files that a complete scan did not see, and drop those missing since ``forgotten``.

        ``is_missing`` is called for each row of earlier runs with its number and path. Runs that
        started before ``forgotten`` are dropped too, except the last success at each destination.
        """
        columns = ("rowid", "id", "missing_since", "file_path")
        where = "WHERE rowid > ? AND destination_id=? AND batch_id != ? ORDER BY rowid LIMIT ?"
        sql, last = FileModel.select_sql(where, columns), 0
        while rows := self._rows(sql, (last, place.id, job.id, SWEEP_ROWS)):
            last = rows[-1][0]
            missing = [r for r in rows if is_missing(r[0], self._real_path(str(python_path(r[3]))))]
            new = [r[1] for r in missing if r[2] is None or r[2] > job.created_at]
            old = [
                (r[1],) for r in missing if (job.created_at if r[2] is None else r[2]) <= forgotten
            ]
            with self.together():
                self._set(("missing_since",), [(job.created_at, file_id) for file_id in new])
                self._write_all("DELETE FROM FileStat WHERE id=?", old)
        sql = f"DELETE FROM BatchJob WHERE {JOBS_TO_FORGET}"
        self._write(sql, int(forgotten), JobStatus.COMPLETE)

    # -- verification

    def moved(self, place: DestinationModel) -> Iterator[Found]:
        """Files that pfu removed here, as they were stored, but for those that are back."""
        where = (
            "WHERE id > ? AND stale=? AND status=? AND destination_id=? AND NOT EXISTS "
            "(SELECT 1 FROM Listed WHERE key=object_key AND found=1) ORDER BY id LIMIT ?"
        )
        last, which = "", (MOVED, FileStatus.SUCCESS, place.id, SCAN_BATCH)
        while files := self._read(FileModel, where, last, *which):
            for file in files:
                yield Found.of(file)._replace(path=self._real_path(file.file_path))
            last = files[-1].id

    def doubt(self, ids: Iterable[str], changed: Iterable[str]) -> None:
        """The store does not have ``ids`` as recorded: they are uploaded again.

        It has the ``changed`` files as recorded: they are compared.
        """
        with self.together():
            lost = [(FileStatus.PENDING, None, None, file_id) for file_id in ids]
            self._set(("status", "etag", "sha256"), lost)
            self._set(("status",), [(FileStatus.PENDING, file_id) for file_id in changed])

    def adopt(self, files: Iterable[FileModel]) -> None:
        """Add files that are in the store but were not in the ledger."""
        named = ((file, rebased(file.file_path, *self.renamed)) for file in files)
        self.save(*(dataclasses.replace(file, file_path=path) for file, path in named))

    # -- pages

    def pending(self, batch_id: str) -> tuple[int, int]:
        """Files and bytes still pending in this run."""
        sql = (
            "SELECT count(*), CAST(coalesce(sum(file_size), 0) AS INTEGER) FROM FileStat "
            f"WHERE {UNFINISHED} AND status=? AND batch_id=?"
        )
        files, size = self._rows(sql, (FileStatus.PENDING, batch_id))[0]
        return int(files), int(size)

    def begin_page(
        self, batch_id: str, after: tuple[int, str], rows: int, size: int, turn: int = 0
    ) -> list[FileModel]:
        """The next pending files of a turn after ``after`` = (file_size, id), for an engine.

        At most ``rows`` files and ``size`` bytes in total, but at least one file if there is one.
        """
        where = FileStatus.PENDING, *after, batch_id, rows
        found = self._read(FileModel, PAGE.format(TURNS[turn]), *where)
        sizes = itertools.accumulate(file.file_size for file in found)
        fitting = sum(1 for total in sizes if total <= size)
        return self._begin(found[: max(1, fitting)])

    def begin_elsewhere(
        self, batch_id: str, count: int, directories: set[str], taken: Collection[str]
    ) -> list[FileModel]:
        """Pending files, one per directory, from none of these directories."""
        self.fold()
        where = "WHERE id > ? AND status=? AND batch_id=? ORDER BY id LIMIT 1"
        last = ""
        page: list[FileModel] = []
        while len(page) < count and (
            rows := self._read(FileModel, where, last, FileStatus.PENDING, batch_id)
        ):
            last = rows[0].id
            if directory_of(last) in directories:
                last = directory_of(last) + BEHIND_HEX
            elif last not in taken:
                page += rows
                last = directory_of(last) + BEHIND_HEX
        return self._begin(page)

    def _begin(self, page: list[FileModel]) -> list[FileModel]:
        for file in page:
            file.file_path = self._real_path(file.file_path)
            file.move_to(FileStatus.IN_PROGRESS)
        return page

    def idle_files(self, batch_id: str) -> Iterator[tuple[FileModel, UploadModel, int]]:
        """Files of a run without progress in IDLE_RUNS runs, and the bytes stored."""
        where = "WHERE id=? AND status=? AND batch_id=?"
        for upload in self.unfinished_uploads("AND idle_runs >= ?", IDLE_RUNS - 1):
            files = self._read(FileModel, where, upload.id, FileStatus.PENDING, batch_id)
            stored = self._stored_bytes(upload.id)
            if files and stored <= upload.most_bytes:
                yield self._begin(files)[0], upload, stored

    def doubt_hashes(self, files: Iterable[FileModel]) -> None:
        """Drop the known hashes before the files are sent: after a crash they would be wrong."""
        hashed = [(None, None, file.id) for file in files if file.sha256 or file.etag]
        if hashed:
            self._set(("etag", "sha256"), hashed)

    def record(self, files: Collection[FileModel], gone: Iterable[FileModel] = ()) -> None:
        """Write the outcomes of files, and drop files that are gone, in one transaction."""
        with self.together():
            self._write_all(OUTCOME_SQL, map(outcome_values, files))
            self._write_all("DELETE FROM FileStat WHERE id=?", [(file.id,) for file in gone])
        self._not_folded += len(files)
        if self._not_folded >= FOLD_ROWS:
            self.fold()

    def fold(self) -> None:
        """Fold all outcomes into the rows of their files.

        Where nothing must be written they are kept in memory: there are FOLD_ROWS at most.
        """
        self._not_folded = 0
        if self.read_only:
            rows = self._rows(OutcomeRow.select_sql())
            self._unfolded = {file_id: values for file_id, *values in rows}
            return
        with self.together():
            self._write(FOLD_SQL)
            self._write(f"DELETE FROM {OutcomeRow.table}")

    def mark_moved(self, moved: Collection[tuple[int | None, str]]) -> None:
        """What becomes of files here, which the store has: ``stale`` of each id.

        MOVED is written before a file is removed: if the run is killed, it may be there yet.
        """
        with self.together():
            self._set(("stale",), moved)
            self._write_all(f"UPDATE {OutcomeRow.table} SET stale=? WHERE file_id=?", moved)

    def record_lost(self, lost: Iterable[tuple[str, str]]) -> None:
        """The store does not have these files any more: ids, and what is said of them."""
        self.fold()
        rows = [(FileStatus.FAILED, error, None, None, file_id) for file_id, error in lost]
        self._set(("status", "error", "etag", "sha256"), rows)

    def lose_objects(self, job: BatchJobRow, keys: set[str]) -> None:
        """Mark files pending that may have been overwritten by what was sent as ``keys``."""
        if not keys:
            return
        plain = set().union(*map(plain_parts, keys))
        keys.clear()
        self.fold()
        condition = (
            "WHERE status=? AND destination_id IS "
            "(SELECT destination_id FROM FileStat WHERE batch_id=? LIMIT 1)"
        )
        sql = FileModel.select_sql(condition, ("id", "object_key"))
        with self.together():
            found = self._db.execute(sql, (FileStatus.SUCCESS, job.id))
            self.doubt([i for i, key in found if not plain.isdisjoint(plain_parts(key))], ())

    # -- the end of a run

    def failures(self, batch_id: str, count: int) -> tuple[int, list[tuple[str, str]]]:
        """How many files of a run have failed; paths and reasons of the first ``count``."""
        where = f"WHERE {UNFINISHED} AND status=? AND batch_id=?"
        failed = FileStatus.FAILED, batch_id
        total = self._number(f"SELECT count(*) FROM FileStat {where}", *failed)
        files = self._read(FileModel, f"{where} ORDER BY file_size, id LIMIT ?", *failed, count)
        return total, [(self._real_path(file.file_path), file.error or "") for file in files]


def rebased(path: str, old: str, new: str) -> str:
    """``path``, if it is below ``old``, as it would be below ``new``."""
    return new + path[len(old) :] if path.startswith(old) else path


def stored_parts(rows: Iterable[PartModel]) -> tuple[StoredPart, ...]:
    """The parts in the form that engines use."""
    return tuple(StoredPart(p.number, p.part_size, p.etag, p.sha256) for p in rows)


def file_id_of(task_id: str) -> str:
    """The file that a task is about: a step of a large file has the id of the file, and its own."""
    return task_id.partition("/")[0]


def part_id(file_id: str, number: int) -> str:
    """PartModel.id; a file's parts have all the ids between ``file_id/`` and ``file_id0``."""
    return f"{file_id}/{number:05d}"


def _row(model: BaseModel) -> tuple[Any, ...]:
    return tuple(
        sql_path(value) if type(value) is str and not value.isascii() else value
        for value in model.values()
    )


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


MOVE_AWAY = "move this file away and rebuild the ledger from the store with --verify"


def create_tables(db: sqlite3.Connection) -> None:
    """All tables of a ledger, with their indexes."""
    for model in TABLES:
        for sql in model.create_sql():
            db.execute(sql)


def schema_of(execute: Callable[[str], Iterable[tuple[Any, ...]]]) -> set[tuple[str, str]]:
    """Kind and name of everything in a database except SQLite's own; columns too."""
    found = {
        (str(kind), str(name))
        for kind, name in execute("SELECT type, name FROM sqlite_master")
        if kind not in ("table", "index") or not str(name).startswith("sqlite_")
    }
    for table in [name for kind, name in found if kind == "table"]:
        quoted = table.replace('"', '""')
        for row in execute(f'PRAGMA table_xinfo("{quoted}")'):
            found.add(("generated column" if row[6] else "column", f"{table}.{row[1]}"))
    return found


def sql_path(path: str) -> str | bytes:
    """A path as stored in SQLite: text, or the bytes of a name that is not UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def python_path(value: Any) -> Any:
    """The inverse of sql_path(); anything else is returned unchanged."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


# -- files beside the run: ledger, lock, log, metrics, patterns
#
# They may be in directories that others can write to. What pfu keeps is a regular file of its own
# user, with one name, that nobody else may write to. Links are not followed, and nothing blocks.
# What it only reads may also belong to root, be a link or a pipe, and is limited in size.

MAX_READ = 16 * MIB  # of a file named by an option
PIPE_SECONDS = 10.0  # without data from a pipe
OWN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | NO_WAIT
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def open_own(path: str, more_flags: int = 0) -> int:
    """A descriptor, for reading and writing, of a file that pfu keeps; created if missing.

    Raises LedgerError, with a hint, if others may have tampered with it.
    """
    try:
        check_own(path)
        fd = os.open(path, OWN_FLAGS | more_flags | os.O_CREAT, 0o600)
    except OSError as error:
        hint = "choose a --db in an existing, writable directory"
        raise LedgerError("open", path, os_cause(error), hint) from error
    try:
        check_own(path, os.fstat(fd))
    except PfuError:
        os.close(fd)
        raise
    return fd


def check_own(path: str, status: os.stat_result | None = None) -> None:
    """Raises LedgerError if there is a file that pfu alone cannot have written.

    ``status``: of the open file; without it, of whatever is at ``path``.
    """
    with contextlib.suppress(FileNotFoundError):
        strange, hint = strangeness(path, status or os.lstat(path))
        if strange:
            raise LedgerError("open", path, strange, hint)


def strangeness(path: str, status: os.stat_result) -> tuple[str, str]:
    """Why a file cannot be one that pfu keeps, and what to do about it; empty if it can.

    A file system may show all files as one user's, or as writable by all (exFAT, NFS with root
    squashing): then a newly created file looks the same.
    """
    remove = "remove it, or choose another file"
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link", "remove it, or choose another --db"
    if stat.S_ISDIR(status.st_mode):
        return os.strerror(errno.EISDIR), "choose a file in an existing, writable directory"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file", remove
    if status.st_nlink > 1:
        return "it has more than one hard link", remove
    foreign = foreign_owner(path, status, os.geteuid())
    if foreign:
        return foreign, f"run as that user, or {remove}"
    if status.st_mode & OTHERS_MAY_WRITE:
        made = _made_beside(path)
        if made is None or not made.st_mode & OTHERS_MAY_WRITE:
            return (
                "it is writable by other users",
                "chmod go-w it if you trust its contents, or remove it",
            )
    return "", ""


def foreign_owner(path: str, status: os.stat_result, *owners: int) -> str:
    """Names a file's owner if it is not one of ``owners``, unless the file system fakes owners."""
    if status.st_uid in owners:
        return ""
    made = _made_beside(path)
    is_made_so = made is not None and made.st_uid == status.st_uid
    return "" if is_made_so else f"it is owned by another user ({status.st_uid})"


def _made_beside(path: str) -> os.stat_result | None:
    """The status of a file newly created by this user in the same directory."""
    name = os.path.join(os.path.dirname(path), f".pfu-{os.urandom(16).hex()}")
    try:
        fd = os.open(name, OWN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
        os.unlink(name)


def content_of(path: str) -> bytes:
    """All of a small file. Raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def read_given(operation: str, path: str, limit: int = MAX_READ) -> bytes:
    """The contents of a file named by an option: regular and owned by root or us, or a pipe.

    Raises UsageError, also for more than ``limit`` bytes or a pipe without data.
    """
    until = time.monotonic() + PIPE_SECONDS

    def heed_time() -> None:
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, f"no data from the pipe in {PIPE_SECONDS:.0f} s")

    content = bytearray()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            check_given(operation, path, status)
            for piece in pieces_of(file, heed_time):
                content += piece
                until = time.monotonic() + PIPE_SECONDS
                if len(content) > limit:
                    raise UsageError(operation, path, f"it is larger than {bytes_text(limit)}")
    except OSError as error:
        raise UsageError(operation, path, os_cause(error)) from error
    if not content and stat.S_ISFIFO(status.st_mode):  # whoever was to write it has failed
        raise UsageError(operation, path, "no data from the pipe")
    return bytes(content)


def check_given(operation: str, path: str, status: os.stat_result) -> None:
    """Raises UsageError unless it is a file of root or of ours, or a pipe."""
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(operation, path, os.strerror(errno.EISDIR))
    if stat.S_ISREG(status.st_mode):
        if foreign := foreign_owner(path, status, 0, os.geteuid()):
            raise UsageError(operation, path, foreign, "it must be owned by you or by root")
    elif not stat.S_ISFIFO(status.st_mode):
        raise UsageError(operation, path, "it is neither a regular file nor a pipe")


def pieces_of(file: io.FileIO, heed: Callable[[], None]) -> Iterator[bytes]:
    """What a file or a pipe holds; ``heed`` is called again and again. Raises OSError."""
    is_plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    while True:
        heed()
        if is_plain or select.select([file], [], [], TICK_SECONDS)[0]:
            piece = os.read(file.fileno(), LIST_PIECE)
            if not piece:
                return
            yield piece


TABLES: tuple[type[BaseModel], ...] = (
    *(FileModel, BatchJobRow, OutcomeRow, UploadModel, PartModel),
    DestinationModel,
)


class NameList:
    """Paths, sorted and each once, in a temporary file that is gone with the process."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # SQLite's own file, already removed
        self._db.execute("CREATE TABLE Name(path BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def add(self, paths: Iterable[bytes]) -> None:
        """Raises LedgerError if there is no room for them."""
        try:
            rows = ((path,) for path in paths)
            self._db.executemany("INSERT OR IGNORE INTO Name VALUES(?)", rows)
        except SQL_ERRORS as error:
            hint = "is there room for temporary files? SQLITE_TMPDIR names another directory"
            raise LedgerError("sort", "list of files", str(error), hint) from error

    def __iter__(self) -> Iterator[bytes]:
        return (row[0] for row in self._db.execute("SELECT path FROM Name ORDER BY path"))

    def close(self) -> None:
        """Give back the room."""
        self._db.close()


class LedgerLock(FileInPlace):
    """The right to write to a ledger, held until close() or the end of the process.

    A POSIX record lock on a file next to the ledger: it is released when the process ends, however
    it ends, and worker processes do not inherit it. The file names the holder, and is kept.
    """

    def __init__(self, ledger_path: str) -> None:
        """Take the lock. Raises LockedError, naming the holder, if another process has it."""
        check_own(ledger_path)  # no lock is left beside a device or a directory
        self.path = ledger_path + LOCK_SUFFIX
        if not os.path.exists(self.path):  # nor beside a file of another program
            Ledger(ledger_path, read_only=True).close()
        self._file = os.fdopen(open_own(self.path), "r+b", buffering=0)
        self._opened = os.stat(self.path)
        try:
            if not (_lock_file(self._file, self.path) or self._lock_again()):
                holder = self._file.read().decode(errors="replace").strip() or "another process"
                cause = f"in use by {holder}"
                raise LockedError("lock ledger", ledger_path, cause, "only one run at a time")
            self._write_holder()
        except PfuError:
            self.close()
            raise

    def _lock_again(self) -> bool:
        """The first attempt may have collided with a mere check: see is_held()."""
        time.sleep(ASKING_SECONDS)
        return _lock_file(self._file, self.path)

    @staticmethod
    def is_held(ledger_path: str) -> bool:
        """Whether a process has the lock; also if that cannot be determined.

        Not for a process that may hold it itself: closing the file would release it (fcntl(2)).
        """
        try:
            with open(ledger_path + LOCK_SUFFIX, "r+b") as file:
                return not _lock_file(file, file.name)
        except FileNotFoundError:
            return False
        except (OSError, UsageError):
            return True

    def _write_holder(self) -> None:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        told = f"process {os.getpid()}, started {started}\n".encode()
        try:
            self._file.truncate(0)
            self._file.write(told)
        except OSError as error:
            hint = "free some space and rerun; nothing already uploaded is lost"
            raise LedgerError("lock ledger", self.path, os_cause(error), hint) from error

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


def _lock_file(file: IO[Any], path: str) -> bool:
    """Whether this process has locked the file now.

    Raises UsageError if the file system has no locks, such as NFS without lockd.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise UsageError("lock", path, os_cause(error), NO_LOCKS_HINT) from error
        return False
    return True


# ======================================================================================
# Files: the walk, object keys, content types, POSIX metadata, reading
# ======================================================================================
#
# The walk keeps one directory open per level and reads names as they come, so its memory grows
# only with the depth of the tree. That is bounded: a directory whose own key is longer than S3
# allows is a failure and is not entered, as no key below it could be shorter.
# Directories are opened relative to their parent and without following links: if a directory is
# swapped for a link during the walk, the link is not followed out of ROOT.

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
PASSAGE_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC  # not listed
FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO in place of it must not block

# rclone writes a byte that is not UTF-8 behind this sign (lib/encoder); the sign itself is doubled.
# Everything else makes the round trip through rclone unchanged: tested with 1.75.
QUOTE = "\u201b"  # SINGLE HIGH-REVERSED-9 QUOTATION MARK

COMPRESSED_TYPES = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}
DEFAULT_CONTENT_TYPE = "application/octet-stream"
DIRECTORY_TYPE = "application/x-directory"
MAX_EXTENSION = 16  # characters; no longer extension has a media type
KEPT_DIRECTORIES = 1000  # kept open in each process, of those that files were read from
RESERVED_DESCRIPTORS = 64  # file descriptors for everything but connections
UNLIMITED_DESCRIPTORS = 1 << 16
OWN_LEDGER = "pfu's own ledger"  # or its log, or its metrics file
EXCLUDED = "excluded"
DIRECTORY = "directory"  # named in a list of files
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
LIST_PIECE = 64 * KIB
LONGEST_LINE = 64 * KIB  # of a list of files; Linux takes paths of 4 KiB
UTF16_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
SAVE_AS_UTF8 = "save it as UTF-8"
OTHER_SYSTEM = "other file system"
LINK_SUFFIX = ".rclonelink"  # rclone's --links: an object that holds the target of a link
is_shard_ledger = re.compile(r"pfu\.\d+-of-\d+\.db(-wal|-shm|-journal|\.lock)?").fullmatch


@dataclass(frozen=True)
class Glob:
    """A pattern as in .gitignore, for paths below ROOT.

    ``*`` and ``?`` do not match a slash, ``**`` does; ``[a-z]``, ``[!a-z]`` and a backslash work as
    usual. With a slash inside or at its start it is anchored at ROOT, otherwise it matches at any
    level; with a slash at its end it matches directories only.
    """

    text: str
    pattern: re.Pattern[str]
    only_directories: bool = False

    @classmethod
    def of(cls, text: str) -> Glob:
        """Raises ValueError if the pattern is invalid."""
        body = text[:-1] if text.endswith("/") else text
        tied = "/" in body
        body = body[1:] if body.startswith("/") else body
        if not body:
            raise ValueError("the pattern is empty")
        if {"", ".", ".."} & set(body.split("/")):
            raise ValueError(f"{text!r} can never match: paths have no empty, . or .. component")
        try:
            pattern = re.compile(("" if tied else "(?:.*/)?") + glob_regex(body), re.DOTALL)
        except re.error as error:
            raise ValueError(str(error)) from error
        return cls(text, pattern, text.endswith("/"))

    def matches(self, path: str, *, is_directory: bool) -> bool:
        """``path`` is relative to ROOT, without a trailing slash."""
        if self.only_directories and not is_directory:
            return False
        return self.pattern.fullmatch(path) is not None


GLOB_TOKEN = re.compile(
    r"(?P<anywhere>(?:^|(?<=/))\*\*/)|(?P<below>(?<=/)\*\*$)|(?P<many>\*+)|(?P<one>\?)"
    r"|\[(?P<negated>[!^]?)(?P<set>\]?[^\]]*)\]|\\(?P<escaped>.)|(?P<plain>.)",
    re.DOTALL,
)


def glob_regex(body: str) -> str:
    """The regular expression for a glob without its outer slashes.

    Of several ``*`` in one name, and of several ``**/``, all but the last match as little as
    possible and never backtrack: no match is lost by that, and the time is at most the length of
    the path times that of the pattern.
    """
    fixed = {"anywhere": "(?:.*/)?", "below": ".+", "many": "[^/]*", "one": "[^/]"}
    pieces: list[str] = []
    stars: dict[str, int] = {}  # position in pieces of the last one of a kind
    for token in GLOB_TOKEN.finditer(body):
        kind = token.lastgroup or ""
        if kind in LEAST:
            if kind in stars:
                rest = "".join(pieces[stars[kind] + 1 :])
                name = f"at{token.start()}"
                pieces[stars[kind] :] = [f"(?=(?P<{name}>{LEAST[kind]}{rest}))(?P={name})"]
            stars[kind] = len(pieces)
        if kind in fixed:
            pieces.append(fixed[kind])
        elif kind == "set":
            members = token["set"].replace("\\", "\\\\").replace("[", "\\[").replace("&&", "&\\&")
            members = members.replace("]", "\\]").replace("~~", "~\\~").replace("||", "|\\|")
            pieces.append(f"(?!/)[{'^' * bool(token['negated'])}{members}]")
            re.compile(pieces[-1])  # an empty set must not swallow what follows
        else:
            pieces.append(re.escape(token["escaped"] or token["plain"]))
        if pieces[-1] == "/":
            stars.pop("many", None)
    return "".join(pieces)


LEAST: Mapping[str, str] = {"anywhere": "(?:[^/]*/)*?", "many": "[^/]*?"}


class Rule(NamedTuple):
    """An --include or an --exclude."""

    takes: bool
    glob: Glob


def rules_of_file(path: str) -> list[Rule]:
    """The lines of a file in .gitignore's format: patterns to exclude, or with ``!`` to include.

    Raises UsageError.
    """
    content = read_given("read patterns", path)
    if b"\0" in content or content.startswith(UTF16_MARKS):
        raise UsageError("read patterns", path, "it is not UTF-8 text", SAVE_AS_UTF8)
    content = content[len(codecs.BOM_UTF8) :] if content.startswith(codecs.BOM_UTF8) else content
    lines = os.fsdecode(content).split("\n")
    rules = []
    for number, line in enumerate(lines, start=1):
        line = re.sub(r"(?:(?<![\\\s])|(?<=\\\s))\s+$", "", line)
        if not line or line.startswith("#"):
            continue
        if re.search("[\udc80-\udcff]", line):
            cause = f"line {number} is not UTF-8: {line}"
            raise UsageError("read patterns", path, cause, SAVE_AS_UTF8)
        takes = line.startswith("!")
        try:
            rules.append(Rule(takes, Glob.of(line[takes:])))
        except ValueError as error:
            raise UsageError("read patterns", path, f"line {number}: {error}") from error
    return rules


class Shard(NamedTuple):
    """One of several shares of a tree, for as many machines; each has its own ledger."""

    number: int  # from 1
    total: int

    def has(self, below_root: bytes) -> bool:
        """Whether a path belongs to it: depends on the path alone, so it is the same everywhere."""
        digest = hashlib.blake2b(below_root, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1


@dataclass(frozen=True)
class ScanOptions:
    """What of a tree is uploaded. An age is in seconds since the last modification."""

    follow_symlinks: bool = option(False, "follow symbolic links (default: skip)")
    one_file_system: bool = option(False, "do not cross file systems")
    links: bool = option(False, "store symbolic links, like rclone --links")
    directory_markers: bool = option(False, "store directories, like rclone")
    rules: tuple[Rule, ...] = ()  # the last match wins
    min_age: float = option(0.0, "only older files, e.g. 1h", "TIME")
    max_age: float = option(0.0, "only newer files, e.g. 7d", "TIME")
    min_size: int = option(0, "only files from SIZE up", "SIZE")
    max_size: int = option(-1, "only files up to SIZE", "SIZE")
    shard: Shard | None = option(
        None, "upload share K of N; auto or auto/N takes the numbers from the array job", "K/N"
    )
    exclude_if_present: tuple[str, ...] = option(
        (), "skip directories below ROOT that contain NAME, e.g. .nobackup", "NAME"
    )
    exclude_caches: bool = option(False, "skip directories marked by CACHEDIR.TAG")
    files_from: Sequence[str] = option(
        (), "upload only the paths listed in FILE, relative to ROOT (-: stdin)", "FILE"
    )
    files_from0: Sequence[str] = option(
        (), "the same, each path ended by a NUL, as find -print0 writes them", "FILE"
    )
    own_files: tuple[str, ...] = ()  # written by pfu, besides the ledger: skipped
    read_files: tuple[str, ...] = ()  # lists and patterns: never removed

    def __post_init__(self) -> None:
        """Raises UsageError."""
        check_fields(self, SCAN_FAULTS)

    @property
    def name_lists(self) -> Sequence[str]:
        """The files that list what to look at, if any."""
        return self.files_from or self.files_from0

    def decision(self, path: str, *, is_directory: bool) -> bool | None:
        """The decision of the rules on a path below ROOT; None: no rule matches."""
        for takes, glob in reversed(self.rules):
            if glob.matches(path, is_directory=is_directory):
                return takes
        return None

    def beyond_limits(self, status: os.stat_result, now: float) -> str:
        """Why a file is skipped for its size or age, or nothing."""
        age = now - status.st_mtime
        if self.max_age and age > self.max_age:
            return "older than --max-age"
        if self.min_age and age < self.min_age:
            return "newer than --min-age"
        if status.st_size < self.min_size:
            return "below --min-size"
        return "above --max-size" if -1 < self.max_size < status.st_size else ""


SCAN_FAULTS: Faults = {
    "--links cannot be combined with --follow-symlinks": lambda o: o.links and o.follow_symlinks,
    "--min-age must not be negative": lambda o: not o.min_age >= 0,
    "--max-age must not be negative": lambda o: not o.max_age >= 0,
    "--max-age is less than --min-age": lambda o: o.max_age and o.max_age < o.min_age,
    "--min-size must not be negative": lambda o: o.min_size < 0,
    "--max-size is less than --min-size": lambda o: o.max_size != -1 and o.max_size < o.min_size,
    "--files-from must be a sequence of paths": lambda o: isinstance(o.files_from, str),
    "--files-from0 must be a sequence of paths": lambda o: isinstance(o.files_from0, str),
    "--files-from0 cannot be combined with --files-from": lambda o: o.files_from and o.files_from0,
    "--shard does not exist": lambda o: o.shard and not 0 < o.shard.number <= o.shard.total,
}


class Ids:
    """Names the files of one directory: a hash of the directory, then one of the file."""

    def __init__(self, identity: bytes, below_root: bytes) -> None:
        self._folder = hashlib.blake2b(
            below_root, digest_size=FOLDER_DIGITS // 2, key=identity
        ).hexdigest()
        self._hash = hashlib.blake2b(below_root + b"\0", digest_size=10, key=identity)

    def of(self, name: str) -> str:
        """128 bits in hex; they differ wherever destination, path or name differ."""
        name_hash = self._hash.copy()
        name_hash.update(name.encode() if name.isascii() else os.fsencode(name))
        return self._folder + name_hash.hexdigest()


@dataclass
class OpenDirectory:
    """A directory that the walk is in."""

    path: str  # with a trailing slash
    key: str  # prefix of the keys of its contents
    below_root: bytes  # path below the root, with a trailing slash
    place: tuple[int, int]  # device and inode: identify it, whatever its path
    fd: int
    entries: Iterator[os.DirEntry[str]]
    ids: Ids
    takes: bool = True  # what no rule matches

    def path_of(self, name: str) -> bytes:
        """The path below the root of an entry."""
        return self.below_root + os.fsencode(name)

    def status(self, name: str, *, follow: bool = False) -> os.stat_result:
        """Of an entry, or of what a link leads to. Raises OSError."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=follow)

    def mode(self, name: str) -> int:
        """Of an entry; 0 if none can be seen."""
        try:
            return self.status(name).st_mode
        except OSError:
            return 0

    def is_cache(self) -> bool:
        """Whether it is marked as a cache (https://bford.info/cachedir/)."""
        try:
            fd = os.open(CACHE_TAG, FILE_FLAGS | os.O_NOFOLLOW, dir_fd=self.fd)
            try:
                return os.read(fd, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
            finally:
                os.close(fd)
        except OSError:
            return False

    def close(self) -> None:
        """Close what the directory holds open."""
        self.entries.close()  # type: ignore[attr-defined]
        os.close(self.fd)


def shown_kind(entry: os.DirEntry[str]) -> int:
    """What the directory itself shows an entry to be (see stat.S_IFMT); 0: that must be asked."""
    try:
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG
        if entry.is_symlink():
            return stat.S_IFLNK
        return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else 0
    except OSError:
        return 0


def listed_paths(path: str, ending: bytes, heed_stop: Callable[[], None]) -> Iterator[bytes]:
    """The paths in a list of files, without ``.`` and doubled slashes.

    ``ending``: of each path, a line feed or NUL. ``heed_stop`` is called again and again. Raises
    UsageError.
    """
    rest, is_first = b"", ending == b"\n"
    for piece in _list_pieces(path, heed_stop):
        if is_first and piece.startswith(UTF16_MARKS):
            raise UsageError("read list of files", path, "it is UTF-16", SAVE_AS_UTF8)
        if b"\0" in piece and ending != b"\0":
            hint = "if each path ends with a NUL, pass it as --files-from0"
            raise UsageError("read list of files", path, "it contains NUL bytes", hint)
        if is_first and piece.startswith(codecs.BOM_UTF8):
            piece = piece[len(codecs.BOM_UTF8) :]
        *lines, rest = (rest + piece).split(ending)
        is_first = False
        if len(rest) > LONGEST_LINE:
            cause = f"it has a path of more than {LONGEST_LINE:,} bytes"
            raise UsageError("read list of files", path, cause)
        yield from filter(None, map(cleaned_path, lines))
    if last := cleaned_path(rest):
        yield last


def cleaned_path(path: bytes) -> bytes:
    """Without ``.`` and doubled slashes; empty for ROOT itself."""
    parts = b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
    return b"/" + parts if path.startswith(b"/") else parts


def _list_pieces(path: str, heed_stop: Callable[[], None]) -> Iterator[bytes]:
    if path == "-" and sys.stdin is None:
        raise UsageError("read list of files", path, "standard input is closed")
    try:
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | NO_WAIT)
        with os.fdopen(fd, "rb", buffering=0) as file:
            yield from pieces_of(file, heed_stop)
    except OSError as error:
        raise UsageError("read list of files", path, os_cause(error)) from error


class Scan:
    """One walk over a tree: iterate over its results, then read the counts.

    Yields a Found for every regular file, and one with a ``problem`` for every directory or name
    that cannot be uploaded. Everything else is counted in ``skipped``, by reason.
    """

    def __init__(
        self,
        root: str,
        identity: str,
        prefix: str,
        options: ScanOptions | None = None,
        ledger_path: str = "",
    ) -> None:
        """``identity`` names the destination, ``prefix`` starts every key.

        The ledger and its files are skipped, wherever they are.
        """
        self.root = root
        self.prefix = prefix
        self.options = options or ScanOptions()
        self.skipped: Counter[str] = Counter()
        self.elsewhere = 0  # files of other shares
        self.keys_elsewhere: list[str] | None = None  # their keys, if a caller collects them
        self._identity = hashlib.sha256(os.fsencode(identity)).digest()
        own = [(ledger_path, LEDGER_SUFFIXES), *((p, LOG_SUFFIXES) for p in self.options.own_files)]
        self._ledger_place = _place(os.path.dirname(os.path.abspath(ledger_path)))
        self._own = {
            os.path.basename(path) + end: _place(os.path.dirname(os.path.abspath(path)))
            for path, ends in own
            for end in ends
        }
        places = [_place(path + end) for path, ends in own for end in ends]
        # under another name: to close one would release all locks of this process on it
        self._own_devices = {inode: device for device, inode in places}
        self.is_single = False
        self.is_whole = not self.options.name_lists  # every directory is read, and to its end
        self.heed_stop: Callable[[], None] = lambda: None  # raises PfuError
        self.beats = 0  # grows while lists are read, or waited for
        self._list_read = ""
        self.root_place = -1, -1  # device and inode of the root, or of a single file's parent
        self._stack: list[OpenDirectory] = []
        self._top = ""  # the root, or a single file's parent, with a trailing slash
        self._follows = self.options.follow_symlinks
        self._began = time.time()
        of = self.options
        self._has_limits = (of.min_age, of.max_age, of.min_size, of.max_size) != (0.0, 0.0, 0, -1)

    def __iter__(self) -> Iterator[Found]:
        """Raises UsageError if the root cannot be read."""
        try:
            self.is_single = not stat.S_ISDIR(os.stat(self.root).st_mode)
            folder, name = os.path.split(self.root) if self.is_single else (self.root, "")
            top = self._open(folder, None)
        except OSError as error:
            raise UsageError("read root", self.root, os_cause(error)) from error
        rules = self.options.rules  # the first is an include: what no rule matches is left out
        top.takes = not rules or not rules[0].takes
        self._stack.append(top)
        self._top, self.root_place = top.path, top.place
        try:
            if not self.is_single:
                yield from self._listed() if self.options.name_lists else self._walk()
            elif self.options.name_lists:
                cause = "it is not a directory, which the paths of a list are relative to"
                raise UsageError("read root", self.root, cause)
            else:
                self._follows = True
                yield from filter(None, [self._visit(name, stat.S_IFREG, top)])
        finally:
            while self._stack:
                self._stack.pop().close()

    @property
    def where(self) -> str:
        """The directory or list being read."""
        if self._list_read:
            return self._list_read
        return self._stack[-1].path if self._stack else self.root

    def _is_own(self, name: str, place: tuple[int, int]) -> bool:
        """Whether pfu itself writes the file: in this run, or in that of another shard."""
        if is_shard_ledger(name) and place == self._ledger_place:
            return True
        return self._own.get(name) == place

    def _walk(self) -> Iterator[Found]:
        while self._stack:
            directory = self._stack[-1]
            try:
                for entry in directory.entries:
                    found = self._visit(entry.name, shown_kind(entry), directory)
                    if found:
                        yield found
                    if self._stack[-1] is not directory:
                        break
                else:
                    self._stack.pop().close()
            except OSError as error:
                self.is_whole = False
                yield self._problem(directory, "", f"cannot read the rest of it: {os_cause(error)}")
                self._stack.pop().close()

    def _listed(self) -> Iterator[Found]:
        """What the list names, and nothing else; directories are opened as in a walk."""
        ending = b"\0" if self.options.files_from0 else b"\n"
        with contextlib.closing(NameList()) as names:
            for path_of_list in self.options.name_lists:
                self._list_read = path_of_list
                names.add(listed_paths(path_of_list, ending, self._heed_stop))
            self._list_read = ""
            for path in names:
                found = self._look_up(path)
                if found:
                    yield found

    def _heed_stop(self) -> None:
        self.beats += 1
        self.heed_stop()

    def _look_up(self, path: bytes) -> Found | None:
        """One path of the list, without ``.`` and doubled slashes."""
        if path.startswith(b"/"):
            return self._named(path, "it is absolute: paths in the list are relative to ROOT")
        parts = path.split(b"/")
        if b".." in parts:
            return self._named(path, "paths with .. are refused: they may lead out of ROOT")
        try:
            if cause := self._go_to(parts[:-1]):
                return self._named(path, cause)
            directory = self._stack[-1]
            if len(self._stack) < len(parts):
                return None  # skipped with one of its directories
            name = os.fsdecode(parts[-1])
            kind = stat.S_IFMT(directory.status(name).st_mode)
            if kind == stat.S_IFDIR and not self.options.directory_markers:
                return self._skipping(DIRECTORY)
        except OSError as error:
            ends = {b"\r": "Windows line ends", b"\n": "line ends: use --files-from"}
            hint = next((f" (the list has {ends[end]})" for end in ends if end in path), "")
            return self._named(path, os_cause(error) + hint)
        return self._visit(name, kind, directory)

    def _go_to(self, parts: Sequence[bytes]) -> str:
        """Open the directories on the way, as far as they are taken. Returns why that failed."""
        below = b"".join(part + b"/" for part in parts)
        while not below.startswith(self._stack[-1].below_root):
            self._stack.pop().close()
        for part in parts[len(self._stack) - 1 :]:
            directory, name = self._stack[-1], os.fsdecode(part)
            mode = directory.status(name, follow=self._follows).st_mode
            if not stat.S_ISDIR(mode):
                where = printable(os.fsdecode(directory.below_root + part))
                return f"{where} is not a directory but a {kind_of(mode)}"
            if not self._is_taken(name, directory, is_directory=True):
                self._skipping(EXCLUDED)
                return ""
            found = self._descend(name, directory)
            if self._stack[-1] is directory:
                return found.problem if found else ""
        return ""

    def _named(self, path: bytes, problem: str) -> Found | None:
        """A path of the list that cannot be looked up; None if it belongs to another share."""
        folder, slash, name = path.rpartition(b"/")
        file_id = Ids(self._identity, folder + slash).of(os.fsdecode(name))
        text = os.fsdecode(path)
        key = self.prefix + "/".join(map(encode_name, text.split("/")))
        if self._is_elsewhere(path, key):
            return None
        return Found(file_id, os.path.join(self.root, "") + text, key, problem=problem)

    def _visit(self, name: str, kind: int, directory: OpenDirectory) -> Found | None:
        """``kind``: of stat.S_IFMT, if it is known."""
        try:
            kind = kind or stat.S_IFMT(directory.status(name).st_mode)
            if kind == stat.S_IFLNK and self._follows:
                with contextlib.suppress(OSError):
                    kind = stat.S_IFMT(directory.status(name, follow=True).st_mode)
            if self.options.rules and not self._is_taken(
                name, directory, is_directory=kind == stat.S_IFDIR
            ):
                return self._skipping(EXCLUDED)
            if kind == stat.S_IFREG:
                return self._file(name, directory)
            if kind == stat.S_IFDIR:
                return self._descend(name, directory)
            if kind == stat.S_IFLNK and self.options.links:
                return self._link(name, directory)
            is_broken = kind == stat.S_IFLNK and self._follows
            return self._skipping(f"{'broken ' * is_broken}{kind_of(kind)}")
        except FileNotFoundError:
            return self._skipping("vanished")
        except OSError as error:
            return self._problem(directory, name, os_cause(error))

    def _is_taken(self, name: str, directory: OpenDirectory, *, is_directory: bool) -> bool:
        """Whether the rules take an entry; a directory that none names may still hold a match."""
        path = directory.path[len(self._top) :] + name
        decision = self.options.decision(path, is_directory=is_directory)
        return (is_directory or directory.takes) if decision is None else decision

    def _skipping(self, reason: str) -> Found | None:
        self.skipped[reason] += 1
        return None

    def _is_elsewhere(self, below_root: bytes, key: str) -> bool:
        """Whether it belongs to another share."""
        shard = self.options.shard
        if shard is None or shard.has(below_root):
            return False
        self.elsewhere += 1
        if self.keys_elsewhere is not None:
            self.keys_elsewhere.append(key)
        return True

    def _file(self, name: str, directory: OpenDirectory) -> Found | None:
        if (name in self._own or self.options.shard) and self._is_own(name, directory.place):
            return self._skipping(OWN_LEDGER)
        key = directory.key + (name if name.isascii() else encode_name(name))
        if self.options.shard and self._is_elsewhere(directory.path_of(name), key):
            return None
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=self._follows)
        if self._own_devices.get(status.st_ino) == status.st_dev:
            return self._skipping(OWN_LEDGER)
        reason = self.options.beyond_limits(status, self._began) if self._has_limits else ""
        return self._skipping(reason) if reason else self._found(name, directory, key, status)

    def _link(self, name: str, directory: OpenDirectory) -> Found | None:
        key, other = directory.key + encode_name(name) + LINK_SUFFIX, name + LINK_SUFFIX
        if self._is_elsewhere(directory.path_of(name), key):
            return None
        if stat.S_ISREG(directory.mode(other)) and self._is_taken(
            other, directory, is_directory=False
        ):
            return self._problem(directory, name, f"same object key as {other}")
        return self._found(name, directory, key, directory.status(name))

    def _marker(self, name: str, directory: OpenDirectory, below: OpenDirectory) -> Found | None:
        if self._is_elsewhere(below.below_root, below.key):
            return None
        found = self._found(name, directory, below.key, os.fstat(below.fd))
        return found._replace(file_size=0)

    def _descend(self, name: str, directory: OpenDirectory) -> Found | None:
        try:
            below = self._open(name, directory)
        except FileNotFoundError:
            return self._skipping("vanished")
        except OSError as error:
            if self.options.one_file_system and self._is_mount(directory, name):
                return self._skipping(OTHER_SYSTEM)
            self.is_whole = False
            return self._problem(directory, name, f"cannot read directory: {os_cause(error)}")
        reason = self._reason_to_skip(below)
        if reason:
            below.close()
            return self._skipping(reason)
        problem = too_large(below.key, 0)
        if problem:
            below.close()
            if self._is_elsewhere(below.below_root, below.key):
                return None
            return self._problem(directory, name, f"{problem}; its contents are skipped")
        self._stack.append(below)
        decision = self.options.decision(below.path[len(self._top) : -1], is_directory=True)
        below.takes = directory.takes if decision is None else decision
        return self._marker(name, directory, below) if self.options.directory_markers else None

    def _reason_to_skip(self, below: OpenDirectory) -> str:
        if self.options.one_file_system and below.place[0] != self.root_place[0]:
            return OTHER_SYSTEM
        if self._follows and any(above.place == below.place for above in self._stack):
            return "symbolic link into its own parents"
        for name in self.options.exclude_if_present:
            if below.mode(name):
                return f"directory with {name}"
        if self.options.exclude_caches and below.is_cache():
            return "cache directory"
        return ""

    def _is_mount(self, directory: OpenDirectory, name: str) -> bool:
        """Whether it is a mount point; a broken one may not even answer stat()."""
        try:
            return directory.status(name, follow=True).st_dev != self.root_place[0]
        except OSError:
            return os.path.join(os.path.realpath(directory.path), name) in mount_points()

    def _open(self, name: str, above: OpenDirectory | None) -> OpenDirectory:
        """A directory in the one ``above``; without one, the top of the walk. Raises OSError.

        Where the names are given, it is not listed, for that may be forbidden.
        """
        path, key, below_root = os.path.join(name, ""), self.prefix, b""
        is_listed = not self.is_single and not self.options.name_lists
        flags = DIRECTORY_FLAGS if is_listed else PASSAGE_FLAGS
        if above:
            path, key = f"{above.path}{name}/", f"{above.key}{encode_name(name)}/"
            below_root = above.path_of(name) + b"/"
            flags |= 0 if self._follows else os.O_NOFOLLOW
        fd = os.open(name, flags, dir_fd=above.fd if above else None)
        try:
            status, entries = os.fstat(fd), os.scandir(fd) if is_listed else (_ for _ in ())
        except BaseException:
            os.close(fd)
            raise
        place, ids = (status.st_dev, status.st_ino), Ids(self._identity, below_root)
        return OpenDirectory(path, key, below_root, place, fd, entries, ids)

    def _found(
        self, name: str, directory: OpenDirectory, key: str, status: os.stat_result
    ) -> Found:
        is_odd = len(key) > MAX_KEY_BYTES // 4 or status.st_size > MAX_PART_SIZE
        problem = too_large(key, status.st_size) if is_odd else ""
        path = directory.path + name
        return Found(directory.ids.of(name), path, key, *facts_of(status), problem)

    def _problem(self, directory: OpenDirectory, name: str, cause: str) -> Found:
        path, key = directory.path + name, directory.key + encode_name(name)
        return Found(directory.ids.of(name), path, key, problem=cause)


def mount_points() -> set[str]:
    """Mount points, as far as the system lists them (proc_pid_mountinfo(5))."""
    try:
        lines = content_of("/proc/self/mountinfo").splitlines()
    except OSError:
        return set()
    octal = re.compile(rb"\\([0-7]{3})")
    places = (line.split(b" ")[4] for line in lines)
    return {os.fsdecode(octal.sub(lambda m: bytes([int(m[1], 8)]), place)) for place in places}


def _place(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


def too_large(key: str, size: int) -> str:
    """Why S3 cannot hold such an object, or nothing."""
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"its key is {len(key.encode())} bytes long, S3 allows {MAX_KEY_BYTES}"
    if size > MAX_OBJECT_SIZE:
        return f"it is {size} bytes long, S3 allows {MAX_OBJECT_SIZE}"
    return ""


def kind_of(mode: int) -> str:
    """What a path is, in a word or two."""
    kinds = {
        stat.S_IFREG: "regular file",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "directory",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def encode_name(name: str) -> str:
    """A file's name as a part of an object key: valid UTF-8, and reversible.

    Bytes that are not UTF-8 are written as rclone writes them, ``\u201bFF``, and a literal
    sign of this kind is doubled. Nothing is normalised.
    """
    if name.isascii():
        return name
    quoted = name.replace(QUOTE, QUOTE * 2)
    return re.sub("[\udc80-\udcff]", lambda m: f"{QUOTE}{ord(m[0]) - 0xDC00:02X}", quoted)


def content_type(path: str) -> str:
    """The media type for the extension of a file's name."""
    stem, _, extension = path[path.rfind("/") + 1 :].rpartition(".")
    if not stem or len(extension) > MAX_EXTENSION:
        return DEFAULT_CONTENT_TYPE
    return _content_type(extension.lower())


@functools.lru_cache(maxsize=1024)
def _content_type(extension: str) -> str:
    kind, encoding = _media_types().guess_type(f"x.{extension}")
    if encoding:
        return COMPRESSED_TYPES.get(encoding, DEFAULT_CONTENT_TYPE)
    return kind or DEFAULT_CONTENT_TYPE


@functools.lru_cache(maxsize=1)
def _media_types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()


def object_metadata(status: os.stat_result, size: int) -> dict[str, str]:
    """User metadata of an object of ``size`` bytes, from the fstat result of its file.

    The ``file-`` names are read by FSx for Lustre, DataSync and S3 Files, the others by rclone
    (with --metadata) and s3fs. All values are printable ASCII.
    """
    mode = f"0{status.st_mode:o}"
    seconds, fraction = divmod(abs(status.st_mtime_ns), 1_000_000_000)
    sign = "-" if status.st_mtime_ns < 0 else ""
    for_rclone = {
        "mtime": f"{sign}{seconds}.{fraction:09d}",
        "mode": mode,
        "uid": str(status.st_uid),
        "gid": str(status.st_gid),
    }
    if stat.S_ISLNK(status.st_mode):  # any other keys would become attributes of the link
        return for_rclone
    return {
        "file-size": str(size),
        "file-mtime": f"{status.st_mtime_ns}ns",
        "file-permissions": mode,
        "file-owner": str(status.st_uid),
        "file-group": str(status.st_gid),
        **for_rclone,
    }


def descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (ValueError, OSError):
        pass  # then keep the soft limit
    return UNLIMITED_DESCRIPTORS if soft < 0 else max(soft - RESERVED_DESCRIPTORS, 1)


class Root(NamedTuple):
    """The directory that was scanned; for a single file, its parent."""

    path: str
    place: tuple[int, int]  # device and inode when it was scanned
    follow_symlinks: bool = False

    def check(self, status: os.stat_result) -> None:
        """Raises FatalError if ``status`` is of another directory than the one scanned."""
        if (status.st_dev, status.st_ino) != self.place:
            cause = "it is no longer the directory that was scanned"
            raise FatalError("read root", self.path, cause, "is it mounted?")

    def check_is_there(self) -> None:
        """Raises FatalError if the path no longer leads to that directory."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise FatalError("read root", self.path, os_cause(error), "is it mounted?") from error
        self.check(status)


class Folder:
    """An open directory, closed once nobody uses it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int | None) -> None:
        self.fd = fd

    def __del__(self) -> None:
        if self.fd is not None:
            os.close(self.fd)


class Tree:
    """Opens files below a root, and no others: links below the root are not followed.

    Each directory on the way is opened relative to the one above it. Those used last stay open:
    files come in the order of their sizes, and so from all over the tree. Without a root, or with
    links that are to be followed, files are opened by their paths, wherever they lead.
    """

    def __init__(self, root: Root | None) -> None:
        self._root = root
        self._follows = root is not None and root.follow_symlinks
        self._flags = FILE_FLAGS if self._follows else FILE_FLAGS | os.O_NOFOLLOW
        self._cut = len(os.path.join(root.path, "")) if root and not self._follows else 0
        self._kept: dict[str, Folder] = {}  # by path below the root, the last used last
        self._room = min(KEPT_DIRECTORIES, 1 + descriptor_limit() // 8)
        self._lock = threading.Lock()
        self.settles = False  # see settle()

    def open(self, path: str) -> int:
        """A descriptor of the file, for reading. Raises OSError; FatalError if the root is gone."""
        fd = self._reach(path, self._open)
        if self.settles:
            settle(fd)
        return fd

    def _open(self, folder: Folder, name: str) -> int:
        return os.open(name, self._flags, dir_fd=folder.fd)

    def look(self, path: str) -> tuple[bytes, os.stat_result]:
        """The target of a link, or nothing of a directory, and its status. Raises like open()."""
        return self._reach(path, self._look)

    def _look(self, folder: Folder, name: str) -> tuple[bytes, os.stat_result]:
        status = os.stat(name, dir_fd=folder.fd, follow_symlinks=self._follows)
        is_link = stat.S_ISLNK(status.st_mode)
        return os.fsencode(os.readlink(name, dir_fd=folder.fd)) if is_link else b"", status

    def remove(self, path: str, reason_to_keep: Callable[[os.stat_result], str]) -> str:
        """Remove a file, unless its lstat result is a reason not to. Returns why it is kept.

        All directories are opened anew: one that was kept may have been moved out of ROOT. Raises
        OSError, FatalError.
        """
        if not self._cut:
            return "it may have been reached through a symbolic link"
        folder, name = Tree(self._root)._at(path)
        reason = reason_to_keep(os.stat(name, dir_fd=folder.fd, follow_symlinks=False))
        if not reason:
            os.unlink(name, dir_fd=folder.fd)
        return reason

    def close(self) -> None:
        """Close all directories that nobody is using."""
        self._kept.clear()

    def _reach(self, path: str, act: Callable[[Folder, str], T]) -> T:
        """What ``act`` returns for the directory and the name of a file."""
        try:
            return act(*self._at(path))
        except OSError as error:  # a directory may have been replaced by another one since
            if error.errno not in (errno.ENOENT, errno.ESTALE) or not self._forget(path):
                raise
        return act(*self._at(path))

    def _at(self, path: str) -> tuple[Folder, str]:
        if not self._cut:
            return Folder(None), path
        folder, _, name = path[self._cut :].rpartition("/")
        return self._folder(folder), name

    def _folder(self, path: str) -> Folder:
        with self._lock:
            folder = self._kept.pop(path, None)
            if folder:
                self._kept[path] = folder
                return folder
        if path:
            above, _, name = path.rpartition("/")
            parent = self._folder(above)
            folder = Folder(os.open(name, PASSAGE_FLAGS | os.O_NOFOLLOW, dir_fd=parent.fd))
        else:
            folder = self._open_root()
        with self._lock:
            if len(self._kept) >= self._room:
                self._kept.pop(next(iter(self._kept)))
            self._kept[path] = folder
        return folder

    def _open_root(self) -> Folder:
        assert self._root is not None
        try:
            fd = os.open(self._root.path, PASSAGE_FLAGS)
        except OSError as error:
            cause = os_cause(error)
            raise FatalError("read root", self._root.path, cause, "is it mounted?") from error
        folder = Folder(fd)
        self._root.check(os.fstat(fd))
        return folder

    def _forget(self, path: str) -> bool:
        """Keep none of the directories on the way, but for the root; whether any was kept."""
        folder, was_kept = path[self._cut :].rpartition("/")[0], False
        with self._lock:
            while folder:
                was_kept = bool(self._kept.pop(folder, None)) or was_kept
                folder = folder.rpartition("/")[0]
        return was_kept


def open_source(tree: Tree, path: str, permissions: str, beat: Callable[[], None]) -> SourceFile:
    """Opens what the scan saw there. Links and directories are stored as such."""
    kind = stat.S_IFMT(int(permissions or "0", 8))
    if kind in (stat.S_IFLNK, stat.S_IFDIR):
        return SourceEntry(path, kind, tree.look)
    return SourceFile(path, tree.open, beat)


def settle(fd: int) -> None:
    """Write back what was written to a file, so that the next write moves its times.

    A write through a mapping moves them only for a page that is clean; Linux writes dirty ones back
    after some 30 s (vm.dirty_expire_centisecs).
    """
    with contextlib.suppress(OSError):
        if time.time() - os.fstat(fd).st_mtime < SETTLED_SECONDS:
            os.fsync(fd)


SETTLED_SECONDS = 120


def source_error(path: str, error: OSError) -> PfuError:
    """Why a file cannot be opened."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return VanishedError("read", path, "it vanished")
    if error.errno in NO_DESCRIPTORS:
        return FatalError("read", path, os_cause(error))
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return VanishedError("read", path, "it is no longer a regular file")
    if error.errno == errno.EWOULDBLOCK:
        return LeasedError("read", path, "another program holds a lease on it")
    return SourceError("read", path, os_cause(error))


def check_kind(path: str, status: os.stat_result, kind: int) -> None:
    """Raises VanishedError if it is of another kind (see stat.S_IFMT) now."""
    if stat.S_IFMT(status.st_mode) != kind:
        raise VanishedError("read", path, f"it is no longer a {kind_of(kind)}")


class SourceFile:
    """A regular file open for reading, and its fstat result at that time."""

    __slots__ = ("_beat", "fd", "path", "read_at", "status")

    def __init__(self, path: str, opener: Callable[[str], int], beat: Callable[[], None]) -> None:
        """``beat`` is called whenever bytes have been read.

        Raises SourceError; FatalError if the root is gone.
        """
        self.path = path
        self._beat = beat
        try:
            self.fd = opener(path)
        except OSError as error:
            raise source_error(path, error) from error
        self.read_at = time.time_ns()
        try:
            self.status = self._ask(os.fstat)
            check_kind(path, self.status, stat.S_IFREG)
        except SourceError:
            self.close()
            raise

    def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """The result of a system call on the file. Raises SourceError."""
        try:
            return call(self.fd, *arguments)
        except OSError as error:
            raise SourceError("read", self.path, os_cause(error)) from error

    def close(self) -> None:
        """Close the file, unless already closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def size(self) -> int:
        """Bytes of the object, according to fstat."""
        return self.status.st_size

    @property
    def racy(self) -> bool:
        """Whether a later change could go unnoticed in what the ledger keeps of it."""
        mtime = self.status.st_mtime_ns
        return abs(self.read_at - mtime) < RACY_NS or abs(mtime) > MAX_INTEGER

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``. Raises SourceError if there are fewer."""
        content = b""
        while len(content) < size:
            piece = self._ask(os.pread, size - len(content), offset + len(content))
            if not piece:
                raise self._size_error("it shrank while being read")
            self._beat()
            content += piece
        return content

    def read_all(self) -> bytes:
        """All bytes. Raises SourceError if their number is not what fstat reported."""
        size = self.size
        content = self._ask(os.pread, size + 1, 0)
        self._beat()
        if len(content) < size:  # one call may return 2 GiB at most, or less
            content += self.read(len(content), size - len(content))
            self.check_end()
        elif len(content) > size:
            raise self._size_error("it grew while being read")
        return content

    def check_end(self) -> None:
        """Raises SourceError if there are more bytes than fstat reported."""
        if self._ask(os.pread, 1, self.size):
            raise self._size_error("it grew while being read")

    def _size_error(self, cause: str) -> SourceError:
        """The error for a wrong size: the file is changing, or the size was never right."""
        if self._ask(os.fstat).st_size == self.status.st_size:
            return SourceError("read", self.path, "its size is not what the file system reports")
        return ChangedError("read", self.path, cause)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from ``offset``. Raises SourceError if there are too few bytes.

        Not for two threads at a time: the system keeps the place for them (macOS has no preadv).
        """
        self._ask(os.lseek, offset, os.SEEK_SET)
        while view:
            count = self._ask(os.readv, [view])
            if not count:
                raise self._size_error("it shrank while being read")
            self._beat()
            view = view[count:]

    def has_moved(self) -> bool:
        """Whether its ctime has changed since it was opened: then its bytes must be read again.

        Mode and owner are updated. Raises ChangedError if size or time have changed.
        """
        now, then = self._ask(os.fstat), self.status
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise ChangedError("read", self.path, "it changed while being read")
        self.status = now
        return now.st_ctime_ns != then.st_ctime_ns

    def check_unchanged(self, read_again: Callable[[], T], before: T) -> None:
        """Raises ChangedError if the file is no longer what it was when it was opened.

        A new ctime (a hard link, a chmod, a file system that makes it up) proves nothing: the bytes
        are read again and compared with what was read ``before``.
        """
        if not self.has_moved():
            return
        if read_again() != before:
            raise ChangedError("read", self.path, "it changed while being read")
        self.has_moved()  # its size or time may have changed meanwhile


class SourceEntry(SourceFile):
    """A symbolic link, whose bytes are its target, or a directory, which has none."""

    __slots__ = ("_content", "_kind", "_look")

    def __init__(
        self, path: str, kind: int, look: Callable[[str], tuple[bytes, os.stat_result]]
    ) -> None:
        """Raises SourceError; FatalError if the root is gone."""
        self.path, self.fd = path, -1
        self._kind, self._look = kind, look
        self._content, self.status = self._see()
        self.read_at = time.time_ns()

    def _see(self) -> tuple[bytes, os.stat_result]:
        try:
            content, status = self._look(self.path)
        except OSError as error:
            raise source_error(self.path, error) from error
        check_kind(self.path, status, self._kind)
        return content, status

    @property
    def size(self) -> int:
        """Bytes of a target; the size of a directory means nothing elsewhere."""
        return len(self._content)

    def read(self, offset: int, size: int) -> bytes:
        """A slice of it."""
        return self._content[offset : offset + size]

    def read_all(self) -> bytes:
        """All of it."""
        return self._content

    def check_end(self) -> None:
        """There is no more of it."""

    def has_moved(self) -> bool:
        """Raises ChangedError if the target is another one now."""
        if self._see()[0] != self._content:
            raise ChangedError("read", self.path, "it changed while being read")
        return False


class FileBody:
    """Bytes that stay in their file until they are sent: a part too large for memory.

    Slices are bodies too; read() gives the bytes.
    """

    def __init__(self, source: SourceFile, offset: int, size: int) -> None:
        self._source = source
        self._offset = offset
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> FileBody:
        start, stop, _ = part.indices(self._size)
        return FileBody(self._source, self._offset + start, max(0, stop - start))

    def read(self) -> bytes:
        """Raises SourceError."""
        return self._source.read(self._offset, self._size)


Body = Union[bytes, memoryview, FileBody]


# ======================================================================================
# Signing: Signature Version 4, pure
# ======================================================================================
#
# Signature Version 4 in three pure stages, each a string that can be compared with botocore's:
#
#     canonical request  what is requested, in normal form
#     string to sign     when and where, and the digest of the canonical request
#     signature          HMAC of that, with a key valid for one day, region and service
#
# S3 differs from other services in the path: the key is percent-encoded once, and "//", "." and
# ".." are left alone.

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "s3"
TIMESTAMP = "%Y%m%dT%H%M%SZ"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes

is_plain_key = re.compile(r"[A-Za-z0-9._~/-]*").fullmatch


class Credentials(NamedTuple):
    """What a request is signed with; the token is None for long-lived keys."""

    access_key: str
    secret_key: str
    token: str | None

    def __repr__(self) -> str:
        """Shows no secret, wherever it is printed."""
        return f"Credentials({self.access_key!r}, ...)"

    def check(self) -> None:
        """Keep the secrets out of all text. Raises FatalError if they cannot be valid."""
        MASK.learn(self.secret_key, self.token)
        for kind, value in zip(CREDENTIAL_VARIABLES, self):
            check_sent(kind, value or "", CREDENTIAL_VARIABLES[kind])


CREDENTIAL_VARIABLES = {
    "the access key": ("AWS_ACCESS_KEY_ID",),
    "the secret key": ("AWS_SECRET_ACCESS_KEY",),
    "the session token": ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
}


def check_sent(kind: str, value: str, variables: Iterable[str]) -> None:
    """Raises FatalError, without repeating the value, if it cannot be sent in a header."""
    if value.isprintable() and value.isascii() and value == value.strip():
        return
    where = [name for name in variables if os.environ.get(name) == value]
    cause = "it contains a character that is not allowed in a header"
    if value != value.strip():
        cause = "it starts or ends with white space, such as a newline"
    raise FatalError("read", where[0] if where else kind, cause)


def percent_encode_key(key: str) -> str:
    """Return the key as written in a path. Raises UnicodeEncodeError for lone surrogates."""
    return key if is_plain_key(key) else urllib.parse.quote(key, safe="/~")


def canonical_query(query: str) -> str:
    """Sort the pairs of an encoded query string by name, then by value."""
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&"))
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: Iterable[tuple[str, str]],
    payload_sha256: str,
) -> str:
    """Path and query are already encoded, the query is sorted; every header given is signed."""
    signed = sorted((name.lower(), fold(value)) for name, value in headers)
    lines = "".join(f"{name}:{value}\n" for name, value in signed)
    names = signed_names(name for name, _ in signed)
    return f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload_sha256}"


def fold(value: str) -> str:
    return " ".join(value.split())


def signed_names(names: Iterable[str]) -> str:
    return ";".join(sorted(name.lower() for name in names))


def credential_scope(date: str, region: str, service: str = SERVICE) -> str:
    return f"{date}/{region}/{service}/aws4_request"


def string_to_sign(timestamp: str, scope: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{digest}"


def signing_key(secret_key: str, date: str, region: str, service: str = SERVICE) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def signature(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def authorization(access_key: str, scope: str, names: str, signed: str) -> str:
    """Return the value of the Authorization header."""
    return f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signed}"


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as 2027-01-31T00:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def timestamp_of(seconds: float) -> str:
    """X-Amz-Date: seconds since the epoch, as Signature Version 4 writes them."""
    return time.strftime(TIMESTAMP, time.gmtime(seconds))


# ======================================================================================
# Wire: bytes of requests and answers, pure
# ======================================================================================
#
# Bytes in, bytes out, no socket. Outgoing, a head is written by filling in a format: the header
# names of all files are the same, so the canonical request and the head are built once, with %s for
# whatever differs, by the same pure functions that a single request would use.
#
# Incoming, an answer is its status line and whole head: 200 with sane headers and an ETag, not
# HTML, and no <Error> in whatever body there is. How the body ends only decides whether the
# connection is kept. Everything else is Rejected, with just what the policy, the limiter and the
# clock need to know. check_answer() gets all bytes so far each time; an answer nearly always comes
# in one piece and is at most MAX_ANSWER, so no state is kept.

MAX_HEAD = 16 * KIB
MAX_ANSWER = 64 * KIB
MAX_SAFE_ANSWER = 8 * MIB  # for boto3: 1,000 keys of 1,024 bytes, percent-encoded, take 4
MAX_LINE = 64 * KIB
MAX_CHUNKS = 64  # the answer is parsed again for each piece that arrives

CHECKSUM_HEADER = "x-amz-checksum-sha256"
OTHER_DIGEST = "with a digest that does not match the bytes sent"
SLOW_DOWN_STATUSES = frozenset((429, 503, 509))

is_header_name = re.compile(r"[a-z0-9-]+").fullmatch
is_query = re.compile(r"[A-Za-z0-9._~%=&-]*").fullmatch
answer_line = re.compile(
    r"HTTP/1\.([01]) ([1-9][0-9]{2})( [\t\x20-\x7e\x80-\xff]*)?(?=\r\n|\Z)"
).match
header_lines = re.compile(
    r"\r\n([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)(?=\r\n|\Z)"
).findall
stands_once = re.compile(  # of the headers that are read
    r"(?:content-(?:length|type|encoding)|transfer-encoding|etag|connection|date"
    r"|last-modified|retry-after)$|x-amz-(?:meta|checksum|object)-"
).match
is_length = re.compile(r"[0-9]{1,9}").fullmatch
is_quoted = re.compile(r'(?:W/)?"[^"]+"').fullmatch
chunk_head = re.compile(rb"([0-9A-Fa-f]{1,6})[ \t]{0,8}(?:;[\t\x20-\x7e]{0,240})?\r\n").match


@dataclass(frozen=True)
class RequestTemplate:
    """What all requests of a run share, as built by botocore.

    Pickles. The only secret that it holds is the proxy's password.
    """

    scheme: str
    host: str
    """As in the Host header: lower case, with the port only if it is not the scheme's default."""
    address: tuple[str, int]
    path_prefix: str
    """`/bucket` in path style, empty in virtual-host style; after the endpoint's own path."""
    headers: tuple[tuple[str, str], ...]
    part_headers: tuple[tuple[str, str], ...]
    """Those of `headers` that UploadPart supports; sent with requests that have a query."""
    region: str
    service: str
    user_agent: str
    ca_bundle: str | None
    proxy: Proxy | None = None

    @property
    def by_proxy(self) -> Proxy | None:
        """The proxy, if it reads the requests; by https it sees none of them."""
        return self.proxy if self.scheme == "http" else None

    @property
    def tunnel(self) -> bytes:
        """What asks the proxy for a connection to the store; empty where there is none.

        RFC 9110, 9.3.6 (CONNECT).
        """
        if self.proxy is None or self.scheme == "http":
            return b""
        host, port = self.address
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = (f"{name}: {value}\r\n" for name, value in self.proxy.headers)
        return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{''.join(lines)}\r\n".encode("ascii")


class Proxy(NamedTuple):
    """An HTTP proxy on the way to the store."""

    address: tuple[str, int]
    headers: tuple[tuple[str, str], ...]  # for the proxy alone: Proxy-Authorization


@dataclass(eq=False)
class Rejected(Exception):
    """The fast lane did not get the one answer it understands. The object's state is unknown."""

    status: int | None
    reason: str
    date: str | None = None
    """The store's Date header."""
    dropped: bool = False
    """The store or the network is overloaded (503, 429, timeout, reset): for the limiter."""
    passing: bool = False
    """No answer, or a truncated one; for complete answers the status decides."""
    by_proxy: bool = False
    """A proxy refused to connect to the store."""
    resent: bool = False
    """An earlier request, without an answer, may have stored the object."""

    def __post_init__(self) -> None:
        self.passing |= self.dropped

    def __str__(self) -> str:
        return self.reason if self.status is None else f"{self.status} {self.reason}".rstrip()


class Headers(NamedTuple):
    """Headers of one request: the names, the same tuple for all files, and the values."""

    names: tuple[str, ...]
    values: tuple[str, ...]


class Answer(NamedTuple):
    """A clean 200: the ETag as received (with quotes), and whether the connection is kept."""

    etag: str
    keep_alive: bool
    fields: Mapping[str, str] = {}
    """For HEAD: all headers of the answer, names in lower case; empty if there is no object."""


class HeadFormat(NamedTuple):
    """The two texts of a request, with %s for what differs, in the order of `order`."""

    canonical: str
    head: str
    order: Callable[[Sequence[str]], tuple[str, ...]]


BLANK = "\0"


def head_format(
    template: RequestTemplate,
    credentials: Credentials,
    names: Iterable[str],
    is_part: bool,
    checksum: bool,
    method: str,
) -> HeadFormat:
    """For requests with headers of these names; with ``checksum``, that of the body follows."""
    varying = [*map(str.lower, names), "x-amz-content-sha256", "x-amz-date"]
    varying += [CHECKSUM_HEADER] * checksum
    static = dict(template.headers if method == "PUT" and not is_part else template.part_headers)
    if credentials.token is not None:
        static["x-amz-security-token"] = credentials.token
    headers = {**static, **dict.fromkeys(varying, BLANK)}
    are_fine = all(map(is_header_name, headers)) and all(map(is_printable, static.values()))
    if not are_fine or len(set(varying)) < len(varying):
        raise ValueError("not headers, or one of them twice")
    signed = {**headers, "host": template.host}
    canonical = canonical_request(method, BLANK, BLANK, signed.items(), BLANK)
    sent, target = sorted(headers.items()), BLANK
    sent.append(("User-Agent", template.user_agent))
    access_key, names_signed = credentials.access_key, signed_names(signed)
    sent.append(("Authorization", authorization(access_key, BLANK, names_signed, BLANK)))
    if template.by_proxy:  # absolute-form: RFC 9112, 3.2.2
        target = f"http://{template.host}{BLANK}"
        sent += template.by_proxy.headers
    if method == "PUT":
        sent.append(("Content-Length", BLANK))
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent)
    head = f"{method} {target} HTTP/1.1\r\nHost: {template.host}\r\n{lines}\r\n"
    order = operator.itemgetter(*map(varying.index, sorted(varying)))
    return HeadFormat(with_blanks(canonical), with_blanks(head), order)


def with_blanks(text: str) -> str:
    return text.replace("%", "%%").replace(BLANK, "%s")


def is_printable(text: str) -> bool:
    """Whether all characters are from 0x20 to 0x7E, so that no line can be broken."""
    return text.isascii() and text.isprintable()


class HeadWriter:
    """Writes signed heads; credentials and `clock`, the store's time, may change at any moment."""

    def __init__(
        self,
        template: RequestTemplate,
        credentials: Credentials,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._template = template
        self._clock = clock
        self._formats: dict[tuple[tuple[str, ...], bool, bool, str], HeadFormat] = {}
        self.use(credentials)

    def use(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._formats.clear()
        self._date = ""
        self._turn_to(int(self._clock()))

    def head(
        self,
        key: str,
        headers: Headers,
        length: int,
        sha256_hex: str,
        query: str = "",
        *,
        checksum: bool = False,
        method: str = "PUT",
    ) -> bytes:
        """Raise ValueError if key, header or query cannot be part of a request."""
        second = int(self._clock())
        if second != self._second:
            self._turn_to(second)
        names, values = headers
        kind = names, query != "", checksum, method
        fill = self._formats.get(kind)
        if fill is None:
            fill = self._formats[kind] = head_format(self._template, self._credentials, *kind)
        sums = (base64_of(sha256_hex),) if checksum else ()
        ordered = fill.order((*values, sha256_hex, self._timestamp, *sums))
        joined = "".join((*values, sha256_hex))
        if not is_printable(joined):
            raise ValueError("a header's value is not printable ASCII")
        folded = tuple(map(fold, ordered)) if " " in joined else ordered
        path = target = f"{self._template.path_prefix}/{percent_encode_key(key)}"
        if query:
            if not is_query(query):
                raise ValueError("the query is not percent-encoded")
            target, query = f"{path}?{query}", canonical_query(query)
        canonical = fill.canonical % (path, query, *folded, sha256_hex)
        to_sign = string_to_sign(self._timestamp, self._scope, canonical)
        filled = target, *ordered, self._scope, signature(self._key, to_sign)
        return (fill.head % (filled if method == "HEAD" else (*filled, length))).encode("ascii")

    def _turn_to(self, second: int) -> None:
        self._second, self._timestamp = second, timestamp_of(second)
        date, region, service = self._timestamp[:8], self._template.region, self._template.service
        if date != self._date:
            self._date = date
            self._scope = credential_scope(date, region, service)
            self._key = signing_key(self._credentials.secret_key, date, region, service)


def base64_of(hex_digest: str) -> str:
    return binascii.b2a_base64(bytes.fromhex(hex_digest), newline=False).decode("ascii")


def bare_etag(told: object) -> str:
    """An ETag without its quotes, nor the W/ of a proxy that compresses; empty if there is none."""
    return str(told or "").removeprefix("W/").strip('"')


class AnswerHead(NamedTuple):
    """The start of an answer: its status line, and its headers with names in lower case."""

    status: int
    phrase: str
    fields: dict[str, str]
    size: int
    """In bytes, with the empty line."""
    lives: bool
    """Whether the connection may be used again."""

    def rejection(self) -> Rejected:
        """For an answer that is a refusal, or none that is understood."""
        is_busy = self.status in SLOW_DOWN_STATUSES
        return Rejected(self.status, self.phrase, self.fields.get("date"), dropped=is_busy)


def answer_head(received: bytes) -> AnswerHead | None:
    """None if more must come. Raises Rejected if it is not HTTP, or too long."""
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        if not any(start.startswith(received[:9]) for start in (b"HTTP/1.1 ", b"HTTP/1.0 ")):
            raise Rejected(None, "the response is not HTTP/1.1", passing=True)
        if len(received) >= MAX_HEAD:
            raise Rejected(None, "the response headers are too long")
        return None
    head = received[:end].decode("latin-1")
    status, pairs = answer_line(head), header_lines(head)
    if not status or len(pairs) < head.count("\n"):
        raise Rejected(None, "the response is not HTTP/1.1", passing=True)
    fields = {name.lower(): value.strip(" \t") for name, value in pairs}
    if len(fields) < len(pairs):
        counts = Counter(name.lower() for name, _ in pairs)
        if any(count > 1 and stands_once(name) for name, count in counts.items()):
            raise Rejected(None, "duplicate header in the response")
    connection = fields.get("connection", "").lower()
    lives = "close" not in connection and (status[1] == "1" or "keep-alive" in connection)
    return AnswerHead(int(status[2]), (status[3] or "").strip(), fields, end + 4, lives)


def check_answer(received: bytes, sha256: str = "", *, is_last: bool = False) -> Answer | None:
    """Return the answer if it is complete, None if more must come. Raises Rejected.

    `sha256`: in hex, of the bytes sent. `is_last`: nothing more will come.
    """
    head = answer_head(received)
    if head is None:
        return None
    status, _, fields, size, lives = head
    if status != 200:
        raise head.rejection()
    etag, rest = fields.get("etag", "").removeprefix("W/"), received[size:]
    is_html = "html" in fields.get("content-type", "").lower()
    if is_html and (rest or fields.get("content-length", "0").strip("0")):
        raise Rejected(200, "with HTML: not an object store", passing=True)
    if not etag.strip('"'):
        raise Rejected(200, "without an ETag: not an object store", passing=True)
    if "content-encoding" in fields:
        raise Rejected(200, "with an encoded body")
    has_ended, content = body_so_far(fields, rest)
    if b"<Error" in rest or b"<Error" in content:
        raise Rejected(200, "with an error", passing=True)
    if has_ended is None and not is_last and len(rest) <= MAX_ANSWER:
        return None
    if sha256 and (told := fields.get(CHECKSUM_HEADER)) and told != base64_of(sha256):
        raise Rejected(200, OTHER_DIGEST, passing=True)
    return Answer(etag, lives and bool(has_ended))


def check_look(received: bytes, *, is_last: bool = False) -> Answer | None:
    """The same for HEAD, whose answer has no body: 200 with a size and an ETag, or 404."""
    head = answer_head(received)
    if head is None:
        return None
    status, _, fields, size, lives = head
    if status not in (200, 404):
        raise head.rejection()
    if len(received) > size or "html" in fields.get("content-type", ""):
        raise Rejected(status, "an unusual response to HEAD")
    etag, length = fields.get("etag", ""), fields.get("content-length", "")
    if status == 200 and not (is_quoted(etag) and length.isdecimal() and length.isascii()):
        raise Rejected(200, "without a size or an ETag")
    return Answer(etag, lives, fields if status == 200 else {})


def body_so_far(fields: Mapping[str, str], rest: bytes) -> tuple[bool | None, bytes]:
    """Whether a body ends properly, and its contents.

    None: more must come. False: no other answer can follow.
    """
    encoding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if length is not None and encoding is None and is_length(length):
        missing = int(length) - len(rest)
        return (None if missing > 0 and int(length) <= MAX_ANSWER else missing == 0), rest
    if length is None and encoding is not None and encoding.lower() == "chunked":
        return chunks_so_far(rest)
    return (None if length is encoding is None else False), rest


def chunks_so_far(rest: bytes) -> tuple[bool | None, bytes]:
    """Trailers are not accepted: nobody sends them with an answer of this size."""
    content, end = b"", 0
    for _ in range(MAX_CHUNKS):
        match = chunk_head(rest, end)
        if not match:
            return (False if b"\n" in rest[end:] else None), content
        start, size = match.end(), int(match[1], 16)
        end = start + size + 2
        content += rest[start : end - 2]
        if rest[end - 2 : end] != b"\r\n":
            return (None if len(rest) < end else False), content
        if size == 0:
            return len(rest) == end, content
    return False, content


# ======================================================================================
# Failure policy: five kinds of answers, one clock for the run
# ======================================================================================
#
# The kind of an answer decides what happens next, in either lane:
#
# taken     success; the clock and the row of refusals are reset
# own       a problem of this file alone, which fails
# passing   retried, with full jitter, as long as the run's patience lasts
# refused   this file fails; many refusals in a row may stop the run: see RefusedRow
# fatal     credentials or bucket: three keys must get it, with nothing taken in between
#
# An answer is blamed on the file only if it is known to be about the file: an unknown 4xx is
# refused, an unknown 5xx is passing. The codes below add what the status alone does not say; a code
# that is missing here makes no outcome worse.
#
# Patience is per run. RunClock starts at the first passing answer since something was last taken.
# When it reaches HOLD_SECONDS the run holds: a few probes test whether the store is back,
# everything else waits, and the limiter ignores what it sees. Uploaders report what an answer was,
# and never retry on their own.


class Kind(IntEnum):
    """The kind of an answer other than success."""

    OWN = 0
    PASSING = 1
    REFUSED = 2
    FATAL = 3


PATIENCE_SECONDS = 300.0  # a store may be unavailable: longer than a restart or failover takes
FIRST_SECONDS = 15.0  # until its first answer: a mistyped URL must not cost five minutes
HOLD_SECONDS = 1.0  # on RunClock before the run holds; a store that is only busy answers sooner
TELL_SECONDS = 5.0  # on RunClock before the user is told
PROBES = 4  # requests at a time while the store is unavailable, all processes together
PROBE_SECONDS = 2.0  # at most between two probes, so that its return is noticed within seconds
PAUSE_SECONDS = 3.0  # RunClock is looked at more often, unless this process is suspended
OWN_TRIES, OWN_SECONDS = 10, 60.0  # of failing while others succeed: then the file fails
FATAL_KEYS = 3  # that must get the same code about credentials or bucket
FATAL_SECONDS = 10.0  # that a good answer about the bucket stays valid
ROW = 20  # different files refused in a row, nothing taken in between: is everything refused?
OTHERS = 5  # files from directories without a refusal, tried to find out

SLOW_DOWN_CODES = frozenset(
    (
        *("SlowDown", "ServiceUnavailable"),
        *("TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    )
)
PASSING_CODES = frozenset(  # retried despite a 4xx: damage in transit, or two conflicting requests
    (
        *("InternalError", "RequestTimeout", "IncompleteBody", "BadDigest"),
        *("XAmzContentSHA256Mismatch", "OperationAborted", "ConditionalRequestConflict"),
    )
)
GONE_CODES = frozenset(("NoSuchUpload", "InvalidPart", "InvalidPartOrder"))
KEY_CODES = frozenset(
    (
        *("KeyTooLongError", "EntityTooSmall", "MetadataTooLarge"),
        *("XMinioParentIsObject", "XMinioObjectExistsAsDirectory", "XMinioInvalidObjectName"),
        *("InvalidURI", "XMinioInvalidResourceName", "InvalidObjectName"),
    )
)
PROXY_REFUSES = "ProxyRefuses"  # pfu's own code: a proxy lets no request through
CREDENTIAL_CODES = frozenset(
    (
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"),
        *("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"),
        *("SignatureDoesNotMatch", "RequestExpired"),
    )
)
FATAL_CODES = CREDENTIAL_CODES | {
    *("AuthorizationHeaderMalformed", "RequestTimeTooSkewed", "NoSuchBucket", "AllAccessDisabled"),
    *("AccountProblem", "NotSignedUp", "PermanentRedirect", PROXY_REFUSES),
}
PROXY_HINT = "check HTTPS_PROXY and HTTP_PROXY: address, user, password"
REFUSING_5XX = frozenset((501, 507))  # not implemented, out of space: the 5xx that are not retried
PASSING_4XX = frozenset((408, 425, 429))
ERROR_HINTS: Mapping[str, str] = {
    "ExpiredToken": "renew the credentials and rerun",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "InvalidClientTokenId": "check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": (
        "check AWS_SECRET_ACCESS_KEY; a reverse proxy must not change the Host header"
    ),
    "AuthorizationHeaderMalformed": "check --region",
    "RequestTimeTooSkewed": "correct this machine's clock",
    PROXY_REFUSES: PROXY_HINT,
    "NoSuchBucket": "check the name, or pass --create-bucket",
    "HtmlAnswer": "is that URL an S3 server?",
    "InsufficientStorage": "the store is full",
    "QuotaExceeded": "the store is full",
    "AccessDenied": "the credentials lack permission, see docs/permissions.md",
    "403": "the credentials lack permission, see docs/permissions.md",
    "InvalidStorageClass": "check --storage-class",
}


REDIRECTS = range(300, 400)
REDIRECT_HINT = "redirected: check --region and --endpoint-url"


def is_passing(status: int) -> bool:
    """Whether an answer with this HTTP status may be temporary."""
    return status in PASSING_4XX or (status >= 500 and status not in REFUSING_5XX)


def classify(code: str, status: int) -> type[TransferError]:
    """The class of error for a code and HTTP status of the store."""
    if code in FATAL_CODES:
        return FatalError
    if code in KEY_CODES:
        return KeyRefusedError
    if code in GONE_CODES:
        return UploadGoneError
    is_throttled = "throttling" in code.lower()  # ThrottlingException, KMS.ThrottlingException ...
    if is_throttled or code in SLOW_DOWN_CODES or status in SLOW_DOWN_STATUSES:
        return SlowDownError
    if code in PASSING_CODES or is_passing(status):
        return RetryableError
    is_unknown = code in ("NotImplemented", "MethodNotAllowed") or status in (405, 501)
    return UnsupportedError if is_unknown else DeniedError


def kind_of_error(error: PfuError) -> Kind:
    """The kind of an error. One that is not from the store concerns the file alone."""
    if isinstance(error, RetryableError):
        return Kind.PASSING
    if isinstance(error, FatalError):
        return Kind.FATAL
    is_own = isinstance(error, KeyRefusedError) or not isinstance(error, TransferError)
    return Kind.OWN if is_own else Kind.REFUSED


def full_jitter(attempt: int, base: float = 0.2, cap: float = 20.0) -> float:
    """Seconds to wait before try ``attempt`` + 1: anything up to base x 2^attempt.

    AWS Architecture Blog, "Exponential Backoff And Jitter".
    """
    return random.uniform(0, min(cap, base * 2.0 ** min(attempt, 30)))


class Signs(NamedTuple):
    """Counts of the store's answers, for the whole run; they only grow."""

    taken: float  # files and parts acknowledged, plus body bytes that arrived for the first time
    answered: float  # definite answers, refusals included: the store responds
    passing: float


class RunClock:
    """How long the store has been unavailable. Pure: the caller passes the time."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience  # seconds
        self.cause = ""  # of the last passing answer
        self.since: float | None = None  # the first passing answer since something was taken
        self._signs = Signs(0, 0, 0)
        self._looked = float("inf")
        self._was_set_back = False

    def absorb(self, signs: Signs, now: float) -> None:
        """Take in the current counts."""
        before, self._signs = self._signs, signs
        if self.since is not None:
            self.since += max(now - self._looked - PAUSE_SECONDS, 0.0)
        self._looked = now
        if signs.taken != before.taken:
            self.since, self._was_set_back = None, False
        elif signs.answered != before.answered and self.is_away(now) and not self._was_set_back:
            self.since, self._was_set_back = None, True
        elif signs.passing != before.passing and self.since is None:
            self.since = now

    def shows(self, now: float) -> float:
        """Seconds on the clock."""
        return 0.0 if self.since is None else now - self.since

    def is_away(self, now: float) -> bool:
        """Whether the run should hold."""
        return self.since is not None and self.shows(now) >= min(HOLD_SECONDS, self.patience)

    def is_over(self, now: float) -> bool:
        """Whether patience has run out."""
        return self.since is not None and self.shows(now) >= self.patience


def patiently(
    ask: Callable[[], T],
    patience: float,
    tell: Callable[[RetryableError], None] = lambda error: None,
) -> T:
    """Call ``ask``, and retry RetryableError for ``patience`` seconds. Raises PfuError.

    For requests made outside an engine. ``tell`` is called with each failure, and may raise too.
    """
    began = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return ask()
        except RetryableError as error:
            if time.monotonic() - began >= patience:
                raise
            tell(error)
            time.sleep(min(full_jitter(attempt), PROBE_SECONDS))
    raise AssertionError("unreachable")


class RefusedRow:
    """Tells a store that refuses everything from one that refuses some files.

    After ROW different files are refused with nothing taken in between, up to OTHERS are tried,
    from directories without a refusal. If none of them is taken, the whole run is refused.
    """

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()  # refusals in the row, by cause
        self.directories: set[str] = set()  # with a refusal in this run
        self.on_trial: set[str] = set()  # those being tried
        self._row: set[str] = set()
        self._tried = 0

    def taken(self) -> None:
        """Something was taken: the row ends."""
        if self._row or self._tried:
            self._row.clear()
            self.codes.clear()
            self.on_trial.clear()
            self._tried = 0

    def refused(self, file_id: str, cause: str) -> None:
        """One more file was refused."""
        self.directories.add(directory_of(file_id))
        self._row.add(file_id)
        self.on_trial.discard(file_id)
        self.codes[cause] += 1

    def __len__(self) -> int:
        return len(self._row)

    @property
    def is_full(self) -> bool:
        """Whether only files from other directories should be tried."""
        return len(self._row) >= ROW

    @property
    def room(self) -> int:
        """How many such files may still be tried."""
        return OTHERS - self._tried

    def try_others(self, file_ids: Collection[str]) -> None:
        """These are being tried now; none: there are no others."""
        self.on_trial.update(file_ids)
        self._tried = self._tried + len(file_ids) if file_ids else OTHERS

    def lost(self, file_ids: Iterable[str]) -> None:
        """The worker died that had these: there is no answer, so others may be tried."""
        without_answer = self.on_trial.intersection(file_ids)
        self.on_trial -= without_answer
        self._tried -= len(without_answer)

    @property
    def is_lost(self) -> bool:
        """Whether the others were refused too, or there are none."""
        return self.is_full and not self.on_trial and self._tried >= OTHERS


# ======================================================================================
# Concurrency: how many requests in flight
# ======================================================================================
#
# The limiter sets how many requests are in flight. Latency would mislead, as it depends on file
# size, so the limiter measures goodput and reacts to drops.
#
# work        bytes + REQUEST_WORK per completed request, so that small files count too
# drop        503, 429, a timeout or a reset, on a request begun after the last cut
# window      lasts at least WINDOW seconds and WINDOW_LIMITS x limit completions; it opens one
#             latency after the limit changed, so that it sees only the new limit
# goodput     by Little's law: in flight x work / time in flight. Counting completions would depend
#             on where in a burst the window opens: a store with even latency answers in bursts
# slow start  the step is SLOW_START_STEP, windows last 1 x limit completions, trials do not pause
#
# A trial up raises the limit for one window. It is kept if goodput rises by GAIN x the limit's
# relative change, and the next step is larger. Otherwise the limit goes back to the base, the pause
# before the next trial doubles, and that one goes down: kept if goodput falls by LOSS at most. In
# slow start a trial that seems to fail gets a second window, as the first may have been spent on
# opening connections. Too many drops reject a trial up, or cut the base. If goodput at the base
# shifts by itself, the workload has changed, and trials resume soon.

REQUEST_WORK = 256 * KIB
LOWEST_LIMIT = 4
START_LIMIT = 32
HIGHEST_LIMIT = 512
WINDOW = 1.0
WINDOW_LIMITS = 2
SLOW_START_WINDOW = 0.05
SLOW_START_STEP = 2.0
STEP = 1.25
STEP_DOWN = 0.8
CUT = 0.7
GAIN = 0.25
LOSS = 0.02
USED = 0.9
SLOW_START_USED = 0.6
LONGEST_HOLD = 16
LEAST_DROPS = 4
DROP_SHARE = 0.02
CHANGED_SHARE = 0.3
AVERAGE_WEIGHT = 0.3


PACE_SLACK = 0.1
PACE_SLICE = 0.05
SLICE = 256 * KIB


class Tally(NamedTuple):
    """What the run's requests did over some time."""

    work: float
    completions: float
    busy: float
    """Sum of the seconds these requests took."""
    drops: float


class Meter:
    """Counts for the limiter, in the process that sends the requests. The figures only grow.

    The limiter may run in another process: it reads them every SLOW_START_WINDOW or so, and sets
    `cut_at`: a dropped request that began before this monotonic time does not count.
    """

    def __init__(self) -> None:
        self.work = 0.0
        self.completions = 0
        self.busy = 0.0
        self.drops = 0
        self.cut_at = 0.0

    def completed(self, nbytes: int, began: float, now: float) -> None:
        self.work += nbytes + REQUEST_WORK
        self.completions += 1
        self.busy += now - began

    def dropped(self, began: float, now: float) -> None:
        self.busy += now - began
        self.drops += began >= self.cut_at


class Limiter:
    """Finds the number of requests in flight (`limit`) at which goodput stops growing.

    Pure: `now` is a reading of one monotonic clock. `lowest == highest` fixes it.
    """

    def __init__(
        self,
        now: float,
        start: int = START_LIMIT,
        lowest: int = LOWEST_LIMIT,
        highest: int = HIGHEST_LIMIT,
    ) -> None:
        self._lowest, self._highest = lowest, highest
        self.limit = self._base = min(max(start, lowest), highest)
        self._factor = SLOW_START_STEP  # of the next trial
        self._slow_start = True
        self._hold = self._pause = 1  # windows at the base before the next trial
        self._is_second = False
        self._latency = 0.0
        self._reference = 0.0  # goodput at the base; 0: unknown
        self.cut_at = now
        self._set(self._base, now)
        self._closes, self._enough = now, 1

    def absorb(self, tally: Tally, now: float) -> None:
        """Add what was done since the last tally; its drops began after `cut_at`."""
        self._drops += tally.drops
        if tally.drops and self._drops >= max(LEAST_DROPS, DROP_SHARE * self._completions):
            self._retreat(now)
        if now < self._opens:
            return
        self._work += tally.work
        self._completions += tally.completions
        self._busy += tally.busy
        if self._completions >= self._enough and now >= self._closes:
            self._close_window(now)

    def begin_again(self, now: float) -> None:
        """Start a new window after a pause that was not the limit's fault."""
        self.cut_at = now
        self._set(self._base, now)

    def _set(self, limit: int, now: float) -> None:
        """Open a window at this limit, one latency after a change."""
        self._opens = now + (self._latency if limit != self.limit else 0.0)
        self.limit, self._is_second = limit, False
        self._work = self._completions = self._drops = self._busy = 0.0
        shortest = SLOW_START_WINDOW if self._slow_start else WINDOW
        self._closes = self._opens + max(shortest, self._latency)
        self._enough = limit * (1 if self._slow_start else WINDOW_LIMITS)

    def _close_window(self, now: float) -> None:
        is_first, self._latency = not self._latency, self._busy / max(self._completions, 1)
        if is_first or self._busy <= 0:  # shared memory has no locks: figures can be out of step
            self._set(self.limit, now)
            return
        used = SLOW_START_USED if self._slow_start else USED
        in_flight = min(self.limit, self._busy / (now - self._opens) / used)
        goodput = in_flight * self._work / self._busy
        if self.limit != self._base:
            change = self.limit / self._base - 1
            least = 1 + (GAIN * change if change > 0 else -LOSS)
            self._end_trial(goodput, goodput >= least * (self._reference or goodput), now)
            return
        weight = AVERAGE_WEIGHT if self._reference and not self._slow_start else 1.0
        if self._reference and abs(goodput - self._reference) > CHANGED_SHARE * self._reference:
            self._hold, self._pause, weight = 1, 1, 1.0
        self._reference += weight * (goodput - self._reference)
        self._hold -= in_flight >= self.limit
        if self._hold <= 0:
            self._try(now)
        else:
            self._set(self._base, now)

    def _try(self, now: float) -> None:
        wanted = min(max(round(self._base * self._factor), self._lowest), self._highest)
        if wanted == self._base:
            self._reference = 0.0
            self._turn(2)
        self._set(wanted, now)

    def _end_trial(self, goodput: float, won: bool, now: float) -> None:
        if won:
            self._factor = min(max(1.0, self._factor) + STEP - 1, SLOW_START_STEP)
            self._base, self._reference, self._pause, self._hold = self.limit, goodput, 1, 1
            if self._slow_start:
                self._try(now)
                return
        elif self._slow_start and not self._is_second:
            self._set(self.limit, now)
            self._is_second = True
            return
        else:
            self._turn(1)
        self._set(self._base, now)

    def _turn(self, doublings: int) -> None:
        """Pause longer, then try the other direction."""
        self._slow_start = False
        self._factor = STEP_DOWN if self._factor > 1 else STEP
        self._hold = self._pause = min(self._pause << doublings, LONGEST_HOLD)

    def _retreat(self, now: float) -> None:
        self.cut_at = now
        if self.limit > self._base:
            self._turn(1)
        else:
            self._slow_start, self._reference = False, 0.0
            self._factor = min(self._factor, STEP)
            self._hold = self._pause
            self._base = max(int(self._base * CUT), self._lowest)
        self._set(self._base, now)


class Pacer:
    """Spreads bytes evenly over time: at most ``rate`` bytes per second; 0: no limit.

    A sender asks for its delay and waits it out; turns are given in the order asked. Unused time is
    lost, except for PACE_SLACK seconds, so there is no burst. Thread-safe.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.turns = 0  # given so far
        self._free_at = 0.0
        self._lock = threading.Lock()

    def turn_to(self, rate: float, now: float) -> None:
        """From now on ``rate`` applies, to turns that were given too."""
        with self._lock:
            owed = max(0.0, self._free_at - now) * self.rate  # bytes
            self._free_at = now + owed / rate if owed and rate else min(self._free_at, now)
            self.rate = rate

    def delay(self, nbytes: int, now: float) -> float:
        """Seconds to wait before ``nbytes`` are sent; ``now`` is monotonic time."""
        self.turns += 1
        if not self.rate:
            return 0.0
        with self._lock:
            turn = max(self._free_at, now - PACE_SLACK)
            self._free_at = turn + nbytes / self.rate
        return max(0.0, turn - now)

    @property
    def slice_size(self) -> int:
        """Bytes to send at a time, so that a slice takes PACE_SLICE seconds at most."""
        return max(KIB, int(self.rate * PACE_SLICE)) if self.rate else SLICE


# ======================================================================================
# Connections: the only sockets
# ======================================================================================
#
# A connection carries one request at a time. The pool is last in, first out: a few connections stay
# warm, the rest go idle and are closed. Whoever takes a connection from the pool gives it one
# request and awaits one future; when the answer is in, the connection goes back by itself.
#
# Head and small body go out in one write. A larger body goes out in slices, each once the kernel
# has taken the one before, so that nothing piles up in our own buffers.
#
# Each connection has one deadline, checked once a second by sweep(): a timer per request would cost
# as much as signing it. Progress moves the deadline, as it does a socket timeout. A slow line may
# need minutes for the part of a body that the kernel has buffered: as long as it shrinks, that
# counts as progress too.
#
# TLS runs here over a plain transport, through ssl.MemoryBIO. asyncio's own TLS keeps a receive
# buffer of 256 KiB per connection (Python 3.11 and later) and costs more time per request. Sessions
# are resumed: a full handshake costs as much as many small files.

CONNECT_ATTEMPTS = 3
NEXT_ADDRESS_SECONDS = 2.0  # to connect, if the name has another address
DEAD_SECONDS = 60.0  # that an address is tried last after it failed to connect
STALL_SECONDS, LEAST_STALL_SECONDS = 60.0, 10.0
DRAIN_SECONDS = 15.0
IDLE_SECONDS = 15.0
EXPIRY_SECONDS = 1.0  # between two looks for connections past their deadline
END_SECONDS = 1.0
RESOLVE_SECONDS = 30.0
RECEIVE_BUFFER = 4 * KIB
ONE_WRITE = 64 * KIB
TLS_SLICE = 64 * KIB
TLS_READ = 16 * KIB


Check = Callable[..., "Answer | None"]  # check_answer() or check_look()
Waiter = Union["asyncio.Future[Answer]", "Posted"]


class ConnectionStale(Rejected):
    """A connection that had been idle was closed before the first byte of an answer."""


class Posted:
    """A small request that no coroutine waits for: a callback gets the result."""

    __slots__ = ("_ended", "began", "offset", "problem", "sha256", "terms")

    def __init__(
        self, sha256_hex: str, terms: Any, ended: Callable[[Posted, Answer | None], None]
    ) -> None:
        """``ended`` is called with the answer, or with None if there is a ``problem``."""
        self.sha256, self.terms, self._ended = sha256_hex, terms, ended
        self.began = time.monotonic()
        self.offset = 0.0  # of the store's clock, as it was signed with
        self.problem: Rejected | None = None

    def done(self) -> bool:
        """Like a future's. Always False: once it is done, the connection forgets it."""
        return False

    def set_result(self, answer: Answer) -> None:
        """Like a future's."""
        self._ended(self, answer)

    def set_exception(self, problem: Rejected) -> None:
        """Like a future's."""
        self.problem = problem
        self._ended(self, None)


class Connection:
    """One keep-alive connection over TCP, an asyncio.BufferedProtocol. Belongs to its pool."""

    slice_size = SLICE

    def __init__(self, pool: ConnectionPool) -> None:
        self.deadline = pool.now + CONNECT_SECONDS
        self.ready: asyncio.Future[None] = pool.loop.create_future()
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._waiter: Waiter | None = None
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._received = b""
        self._rest: memoryview | FileBody | None = None
        self._unsent: int | None = None  # bytes at the last look; None since other progress
        self._is_paused = False
        self._is_waiting = False  # for the pacer
        self._is_used = False
        self._size = 0  # bytes of the body
        self.arrived: Callable[[int], None] | None = None  # called with the bytes so far

    def exchange(self, head: bytes, body: Body, waiter: Waiter, check: Check) -> None:
        """Send one request; ``waiter`` gets the answer or the error. To cancel, call abort()."""
        self._waiter = waiter
        self._check = check
        self._size = len(body)
        self._has_moved()
        if self._transport is None:
            self._lose()
        elif len(body) > ONE_WRITE or isinstance(body, FileBody):
            self._rest = memoryview(body) if isinstance(body, bytes) else body
            self._write(head)
            self._send_slice()
        elif self._pool.pacer.rate:
            self._rest = memoryview(b"".join((head, body)))
            self._send_slice()
        else:
            self._write(b"".join((head, body)))

    def abort(self) -> None:
        """Close at once; what is unsent is dropped."""
        self._waiter = self._rest = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def look(self) -> None:
        """Report how much of the body has arrived, as far as the kernel knows."""
        if self.arrived and self._waiter is not None and self._transport is not None:
            rest = 0 if self._rest is None else len(self._rest)
            self.arrived(self._size - rest - unsent_bytes(self._transport))

    def expire(self) -> None:
        """Called by the pool after the deadline."""
        if self._waiter is not None:
            if not self._is_draining() and not self._take_last():
                self._fail(
                    Rejected(None, f"no progress in {self._pool.stall_seconds:.0f} s", dropped=True)
                )
        elif self.ready.done():
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self._pool.remember(self)
        self._begin()

    def eof_received(self) -> None:
        self._lose()

    def connection_lost(self, problem: Exception | None) -> None:
        self._transport = None
        self._give_up_connecting(problem or ConnectionResetError("closed while connecting"))
        self._lose(problem)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._has_moved()
        self._send_slice()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._take_in(self._view[:nbytes].tobytes())

    def _take_in(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.abort()
            return
        if self._received:
            data = self._received + data
        try:
            answer = self._check(data)
            if answer is not None and (self._rest is not None or self._is_paused):
                raise Rejected(200, "before the body was sent", passing=True)
        except Rejected as rejected:
            self._fail(rejected)
            return
        if answer is None:
            self._received = data
            if self._check(data, is_last=True):  # nothing marks the end of the body
                self.deadline = min(self.deadline, self._pool.now + END_SECONDS)
        else:
            self._finish(waiter, answer)

    def _take_last(self) -> bool:
        """Whether what has arrived is an answer, though nothing marks the end of its body."""
        waiter, is_sent = self._waiter, self._rest is None and not self._is_paused
        with contextlib.suppress(Rejected):
            answer = self._check(self._received, is_last=True)
            if answer and waiter and is_sent and not waiter.done():
                self._finish(waiter, answer._replace(keep_alive=False))
                return True
        return False

    def _begin(self) -> None:
        self.ready.set_result(None)

    def _has_moved(self, then_waits: float = 0.0) -> None:
        self.deadline = self._pool.now + then_waits + self._pool.stall_seconds
        self._unsent = None

    def _is_draining(self) -> bool:
        """Whether less is unsent than at the last look, or this is the first; sets the deadline."""
        unsent = unsent_bytes(self._transport) if self._transport else 0
        before, self._unsent = self._unsent, unsent
        if before is None:
            seconds = DRAIN_SECONDS if unsent else 0.0
        else:
            seconds = self._pool.stall_seconds if unsent < before else 0.0
        self.deadline = self._pool.now + seconds
        return seconds > 0

    def _write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _send_slice(self) -> None:
        """Send the next slice once the kernel has taken the one before and the pacer allows it."""
        if self._rest is None or self._is_paused or self._is_waiting:
            return
        pacer = self._pool.pacer
        size = min(self.slice_size, pacer.slice_size, len(self._rest))
        delay = pacer.delay(size, self._pool.loop.time())
        if delay:
            self._is_waiting = True
            self._has_moved(then_waits=delay)
            self._pool.loop.call_later(delay, self._send_now, size)
        else:
            self._send_now(size)

    def _send_now(self, size: int) -> None:
        self._is_waiting, rest = False, self._rest
        if rest is None:
            return
        self._rest = rest[size:] if len(rest) > size else None
        piece = rest[:size]
        try:
            self._write(piece.read() if isinstance(piece, FileBody) else piece)
        except SourceError as error:
            self._fail(Rejected(None, str(error), passing=True))
            return
        if not self._is_paused and self._rest is not None:
            self._pool.loop.call_soon(self._send_slice)

    def _finish(self, waiter: Waiter, answer: Answer) -> None:
        self._waiter = None
        self._received = b""
        self._is_used = True
        if answer.keep_alive:
            self.deadline = self._pool.now + IDLE_SECONDS
            self._pool.idle.append(self)
        else:
            self.abort()
        waiter.set_result(answer)

    def _give_up_connecting(self, problem: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(problem)
            self.ready.exception()  # so that asyncio does not warn if nobody awaits it

    def _lose(self, problem: Exception | None = None) -> None:
        reason = f"connection lost: {problem}" if problem else "closed before the answer"
        if self._waiter is None:
            self.abort()
        elif self._is_used and not self._received:
            self._fail(ConnectionStale(None, reason, passing=True))
        elif not self._take_last():
            self._fail(Rejected(None, reason, dropped=True))

    def _fail(self, rejected: Rejected) -> None:
        waiter = self._waiter
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(rejected)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Bytes written to ``transport`` that the other end has not acknowledged, as far as is known.

    On Linux, those in the kernel are included (TIOCOUTQ: tcp(7)).
    """
    queued = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    return transport.get_write_buffer_size() + queued[0]


class TlsConnection(Connection):
    """The same over TLS."""

    slice_size = TLS_SLICE

    def __init__(self, pool: ConnectionPool, context: ssl.SSLContext) -> None:
        super().__init__(pool)
        self._has_ended = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_hostname=pool.server_name,
            session=pool.tls_session,
        )

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.write(self._buffer[:nbytes])
        try:
            if not self.ready.done():
                self._handshake()
            plain = self._decrypt() if self.ready.done() else b""
        except ssl.SSLError as problem:
            self._break(problem)
            return
        if plain:
            self._take_in(plain)
        if self._has_ended:
            self._lose()

    def _begin(self) -> None:
        self._handshake()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            self.ready.set_result(None)
        self._flush()

    def _decrypt(self) -> bytes:
        pieces = []
        try:
            while self._incoming.pending or self._tls.pending():
                piece = self._tls.read(TLS_READ)
                if not piece:
                    self._has_ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as problem:
            self._break(problem)
        else:
            self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            super()._write(self._outgoing.read())

    def _finish(self, waiter: Waiter, answer: Answer) -> None:
        if not self._is_used and not self._tls.session_reused:
            self._pool.tls_session = self._tls.session
        super()._finish(waiter, answer)

    def _break(self, problem: ssl.SSLError) -> None:
        self._give_up_connecting(problem)
        self._fail(Rejected(None, f"TLS: {problem}"))


class TunnelConnection(TlsConnection):
    """The same through a tunnel that a proxy opens (CONNECT)."""

    def __init__(self, pool: ConnectionPool, context: ssl.SSLContext) -> None:
        super().__init__(pool, context)
        self._reply: bytes | None = b""  # the proxy's, so far; None: the tunnel is open

    def _begin(self) -> None:
        Connection._write(self, self._pool.tunnel)

    def buffer_updated(self, nbytes: int) -> None:
        if self._reply is None:
            super().buffer_updated(nbytes)
            return
        self._reply += self._buffer[:nbytes]
        try:
            if not check_tunnel(self._reply):
                return
        except Rejected as rejected:
            self._give_up_connecting(rejected)
            self.abort()
            return
        self._reply = None
        super()._begin()


def check_tunnel(reply: bytes) -> bool:
    """Whether the proxy has opened the tunnel; False: incomplete reply. Raises Rejected."""
    head = answer_head(reply)
    if head is None:
        return False
    if head.status // 100 != 2:
        said, passing = f"the proxy says {head.status} {head.phrase}", is_passing(head.status)
    elif len(reply) > head.size:
        said, passing = "it answers itself", False
    else:
        return True
    raise Rejected(None, said.rstrip(), dropped=passing, by_proxy=not passing)


class ConnectionPool:
    """Connections to one origin, or to the proxy in front of it, spread over all its addresses."""

    stall_seconds = STALL_SECONDS

    def __init__(
        self, template: RequestTemplate, context: ssl.SSLContext | None, pacer: Pacer
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.pacer = pacer
        self.server_name = template.address[0]
        self.tunnel = template.tunnel
        self.host, self.port = template.proxy.address if template.proxy else template.address
        self.now = self.loop.time()
        self.idle: list[Connection] = []
        self.tls_session: ssl.SSLSession | None = None
        self._context = context
        self._connections: set[Connection] = set()
        self._addresses: list[str] = []
        self._dead_until: dict[str, float] = {}
        self._resolved_at = -RESOLVE_SECONDS
        self._resolving = asyncio.Lock()
        self._turn = 0

    async def connect(self) -> Connection:
        """Return a new connection. Raises Rejected if no address can be connected to."""
        problem: Exception | None = None
        candidates = (await self._candidates())[:CONNECT_ATTEMPTS]
        for number, address in enumerate(candidates, start=1):
            is_last = number == len(candidates)
            try:
                seconds = CONNECT_SECONDS if is_last else NEXT_ADDRESS_SECONDS
                return await asyncio.wait_for(self._open(address), seconds)
            except (OSError, asyncio.TimeoutError) as caught:
                problem = caught
                self._dead_until[address] = self.loop.time() + DEAD_SECONDS
        timed_out = isinstance(problem, (asyncio.TimeoutError, TimeoutError, ConnectionResetError))
        reason = str(problem) or type(problem).__name__
        is_tls = isinstance(problem, ssl.SSLError)  # boto3 reports it better
        raise Rejected(
            None, f"cannot connect to {self.host}: {reason}", dropped=timed_out, passing=not is_tls
        )

    def give_back(self, connection: Connection) -> None:
        """Put back one that was not used."""
        if connection in self._connections:
            self.idle.append(connection)

    def remember(self, connection: Connection) -> None:
        self._connections.add(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            if connection in self.idle:
                self.idle.remove(connection)

    def sweep(self) -> None:
        """Expire connections past their deadline; call this every EXPIRY_SECONDS."""
        self.now = self.loop.time()
        for connection in list(self._connections):
            connection.look()
            if connection.deadline < self.now:
                connection.expire()

    def close(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _open(self, address: str) -> Connection:
        connection: Connection
        _, connection = await self.loop.create_connection(self._protocol, address, self.port)
        try:
            await connection.ready
        except BaseException:
            connection.abort()
            raise
        connection.deadline = self.now + IDLE_SECONDS
        return connection

    def _protocol(self) -> Any:
        if self._context is None:
            return protocol_of(Connection)(self)
        kind = TunnelConnection if self.tunnel else TlsConnection
        return protocol_of(kind)(self, self._context)

    async def _candidates(self) -> list[str]:
        """Return all addresses in rotation, dead ones last."""
        async with self._resolving:
            if self.loop.time() >= self._resolved_at + RESOLVE_SECONDS:
                await self._resolve()
        self._turn += 1
        turn, now = self._turn % max(len(self._addresses), 1), self.loop.time()
        in_turn = self._addresses[turn:] + self._addresses[:turn]
        return sorted(in_turn, key=lambda address: self._dead_until.get(address, 0.0) > now)

    async def _resolve(self) -> None:
        """Resolve the name; if that fails, keep the addresses already known, if any."""
        try:
            found = await self.loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as problem:
            if not self._addresses:
                reason = f"cannot resolve {self.host}: {problem}"
                raise Rejected(None, reason, passing=True) from problem
        else:
            self._addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        self._resolved_at = self.loop.time()


@functools.cache
def protocol_of(kind: type[Connection]) -> Any:
    """The same class for asyncio, which is imported late."""
    return type(kind.__name__, (kind, asyncio.BufferedProtocol), {})


def tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Verify chain and host name against the bundle that boto3 would use.

    Python 3.13 is strict about the form of certificates, boto3 is not; both lanes must agree.
    """
    context = ssl.create_default_context(cafile=ca_bundle)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


# ======================================================================================
# Fast lane: botocore's PutObject, repeated
# ======================================================================================
#
# botocore decides what a request looks like. It builds and signs one PutObject, which a handler
# intercepts before it is sent; the signed request is taken apart into a RequestTemplate. The gate
# opens only if our signer computes the same signature from the same parts.
#
# A put takes an idle connection (or opens one), writes, and awaits one future. A PUT is idempotent,
# so it is repeated once: on a new connection if the idle one turns out to be closed, with the
# store's time if the clock is wrong. Everything else is Rejected and left to the caller.

DEFAULT_PORTS = {"http": 80, "https": 443}
PROBE_KEY = ".pfu-template"
PROBE_BODY = b"pfu"
CREDENTIALS_SECONDS = 5.0
CLOCK_SKEW_SECONDS = 300.0
FORBIDDEN = 403
CLOCK_WITNESSES = 2  # answers in a row that contradict a clock that the store has accepted
CLOCK_SURE = 10  # requests taken with a corrected clock before the user is told
OWN_HEADERS = frozenset(
    (
        *("authorization", "connection", "content-length", "expect", "host", "user-agent"),
        *("amz-sdk-invocation-id", "amz-sdk-request", CHECKSUM_HEADER),
        *("x-amz-content-sha256", "x-amz-date", "x-amz-security-token", "x-amzn-trace-id"),
    )
)
is_body_digest = re.compile(r"content-md5|x-amz-checksum-(?!sha256$).*").fullmatch
is_authorization = re.compile(
    rf"{ALGORITHM} Credential=(?P<access_key>.+)/[0-9]{{8}}/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, SignedHeaders=(?P<names>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
).fullmatch


class GateClosed(NamedTuple):
    """Why the fast lane cannot be used; the safe lane does all the work."""

    reason: str


class Intercepted(Exception):
    """Raised instead of sending a request."""


def capture_template(
    client: Any,
    bucket: str,
    arguments: dict[str, Any],
    credentials_source: Callable[[], Credentials],
) -> RequestTemplate | GateClosed:
    """Have botocore build a PutObject with these arguments, and open the gate if it is plain.

    Sends nothing. The client should have made a call before, so that it knows the bucket's region.
    `credentials_source` must return the credentials that the client signs with.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    reason = bucket_refusal(bucket) or client_refusal(client)
    if reason:
        return GateClosed(reason)
    try:
        captured = capture_put(client, bucket, arguments)
    except (BotoCoreError, ClientError, ValueError) as problem:
        return GateClosed(f"botocore cannot build the request: {problem}")
    url = urllib.parse.urlsplit(captured.url)
    headers = {name.lower(): text_of(value) for name, value in captured.headers.items()}
    if reason := request_refusal(captured.method, url, headers):
        return GateClosed(reason)
    template = template_of(client, url, headers)
    reason = signing_refusal(template, headers, credentials_source())
    return GateClosed(reason) if reason else template


def capture_put(client: Any, bucket: str, arguments: dict[str, Any]) -> Any:
    """botocore's request for a PutObject."""

    def intercept(request: Any, **_: Any) -> None:
        raise Intercepted(request)

    no_md5 = checksum_of(hashlib.sha256(PROBE_BODY).hexdigest(), not has_checksum_settings())
    events = client.meta.events
    events.register_first("before-send.s3.PutObject", intercept)
    try:
        client.put_object(Bucket=bucket, Key=PROBE_KEY, Body=PROBE_BODY, **{**no_md5, **arguments})
    except Intercepted as caught:
        return caught.args[0]
    finally:
        events.unregister("before-send.s3.PutObject", intercept)


def text_of(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def bucket_refusal(bucket: str) -> str | None:
    if bucket.endswith(("--x-s3", "--xa-s3")):
        return "the bucket is S3 Express"
    if bucket.startswith("arn:") and bucket.endswith(".mrap"):
        return "the bucket is a multi-region access point"
    if bucket.startswith("arn:") and ":s3-outposts:" in bucket:
        return "the bucket is on Outposts"
    return None


def client_refusal(client: Any) -> str | None:
    url = client.meta.endpoint_url
    settings = client.meta.config.proxies_config or {}
    proxy = proxy_of(client.meta.config, url) or ""
    if re.match("https:", proxy, re.IGNORECASE) or settings.get("proxy_use_forwarding_for_https"):
        return f"the proxy for {url} is reached by https"
    if client.meta.config.client_cert:
        return "a client certificate is configured"
    if url.startswith("https:") and not client._endpoint.http_session._verify:
        return "certificate verification is off"
    return None


def proxy_of(config: Any, url: str) -> str | None:
    """As botocore.endpoint.EndpointCreator decides; without a ``config``, by the environment."""
    from botocore.utils import get_environ_proxies

    given = config and config.proxies
    proxies = get_environ_proxies(url) if given is None else given
    proxy: str | None = proxies.get(urllib.parse.urlsplit(url).scheme)
    return proxy


def request_refusal(
    method: str, url: urllib.parse.SplitResult, headers: Mapping[str, str]
) -> str | None:
    if ".s3-accelerate." in f".{url.hostname}":
        return "the endpoint is S3 Transfer Acceleration"
    if "x-amz-trailer" in headers or "aws-chunked" in headers.get("content-encoding", ""):
        return "the client sends checksum trailers (request_checksum_calculation)"
    for name in headers:
        if is_body_digest(name):
            return f"the client sends a checksum of the body as {name}"
    signed = is_authorization(headers.get("authorization", ""))
    if not signed:
        return f"the requests are not signed with {ALGORITHM}"
    if signed["service"] != SERVICE or "x-amz-s3session-token" in headers:
        return f"the requests are signed for {signed['service']}, not {SERVICE}"
    if method != "PUT" or url.query:
        return "the request is not a plain PUT"
    return None


def signing_refusal(
    template: RequestTemplate, headers: Mapping[str, str], credentials: Credentials
) -> str | None:
    """Write the same request as the fast lane does, and compare."""
    signed = is_authorization(headers["authorization"])
    if not signed or signed["access_key"] != credentials.access_key:
        return "botocore signs with different credentials"
    sums = tuple(name for name in headers if name == CHECKSUM_HEADER)
    own = Headers(sums, tuple(headers[name] for name in sums))
    try:
        second = calendar.timegm(time.strptime(headers["x-amz-date"], TIMESTAMP))
        writer = HeadWriter(template, credentials, lambda: second)
        digest = headers["x-amz-content-sha256"]
        head = writer.head(PROBE_KEY, own, len(PROBE_BODY), digest).decode("ascii")
    except (KeyError, ValueError):
        head = ""
    is_same = f"\r\nAuthorization: {headers['authorization']}\r\n" in head
    return None if is_same else "botocore signs differently"


def template_of(
    client: Any, url: urllib.parse.SplitResult, headers: Mapping[str, str]
) -> RequestTemplate:
    from botocore.httpsession import get_cert_path

    signed = is_authorization(headers["authorization"])
    assert signed and url.hostname
    static = tuple(sorted((n, v) for n, v in headers.items() if n not in OWN_HEADERS))
    known = header_names(client, "UploadPart")
    return RequestTemplate(
        scheme=url.scheme,
        host=url.netloc.lower().removesuffix(f":{DEFAULT_PORTS[url.scheme]}"),
        address=(url.hostname, url.port or DEFAULT_PORTS[url.scheme]),
        path_prefix=url.path[: -len(f"/{PROBE_KEY}")],
        headers=static,
        part_headers=tuple((n, v) for n, v in static if n in known),
        region=signed["region"],
        service=signed["service"],
        user_agent=headers.get("user-agent", "pfu"),
        ca_bundle=get_cert_path(client._endpoint.http_session._verify),
        proxy=proxy_for(client.meta.config, client.meta.endpoint_url),
    )


def proxy_for(config: Any, url: str) -> Proxy | None:
    """The proxy that botocore would use for a URL, and the headers it would send to it."""
    from botocore.httpsession import ProxyConfiguration

    proxy = proxy_of(config, url)
    if not proxy:
        return None
    known = ProxyConfiguration({"http": proxy})
    place = known.proxy_url_for("http:")
    parts = urllib.parse.urlsplit(place)
    headers = tuple(known.proxy_headers_for(place).items())
    return Proxy((parts.hostname or "", parts.port or DEFAULT_PORTS["http"]), headers)


def header_names(client: Any, operation: str) -> frozenset[str]:
    """Return the headers that an operation has in botocore's model, in lower case."""
    members = client.meta.service_model.operation_model(operation).input_shape.members.values()
    names = (
        m.serialization["name"] for m in members if m.serialization.get("location") == "header"
    )
    return frozenset(name.lower() for name in names)


class StoreClock:
    """The store's time: this machine's, corrected once the store's answers show that it is wrong.

    A correction counts from the first request taken with it; until then, whatever is taken or
    refused in spite of it takes it back, for a Date may be that of a proxy with a wrong clock.
    One answer is enough until the store has accepted the clock. From then on a single node may be
    wrong, so several in a row have to agree, with nothing taken in between.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, notes: deque[str] | None = None
    ) -> None:
        """``notes``: for the user, who should know of a clock that is wrong."""
        self.offset = 0.0  # seconds by which the store's clock is ahead
        self._notes = deque() if notes is None else notes
        self._clock = clock
        self._taken = 0  # since the clock was corrected; a node with a wrong one takes few
        self._skews: list[float] = []  # seen since something was taken with the current offset
        self._accepted: float | None = None  # the offset with which something was last taken

    def now(self) -> float:
        """The store's time, in seconds since the epoch."""
        return self.at(self.offset)

    def at(self, offset: float) -> float:
        """The same by an ``offset``, which may no longer be the present one."""
        return self._clock() + offset

    def took(self, offset: float) -> None:
        """Something signed with this offset was taken."""
        if offset != self.offset:
            if self._accepted == self.offset:
                return
            self._turn_to(offset)
        self._accepted = offset
        self._skews.clear()
        self._taken += 1
        if self._taken == CLOCK_SURE and abs(offset) > CLOCK_SKEW_SECONDS:
            told = f"{abs(offset) / 60:.0f} min {'behind' if offset > 0 else 'ahead of'}"
            self._notes.append(f"this machine's clock is {told} the store's: correct it")

    def corrects(self, status: int | None, date: str | None, offset: float) -> bool:
        """Whether a request signed with ``offset`` is worth another try, with a better one.

        ``status`` and ``date`` are those of the answer.
        """
        if status != FORBIDDEN or date is None:
            return False
        told = seconds_of_date(date)
        skew = 0.0 if told is None else told - self._clock()
        if offset != self.offset:
            return True
        if abs(skew - offset) > CLOCK_SKEW_SECONDS:
            self._skews.append(skew)
            agree = [seen for seen in self._skews if abs(seen - skew) < CLOCK_SKEW_SECONDS]
            if len(agree) >= (CLOCK_WITNESSES if self._accepted == offset else 1):
                self._turn_to(skew)
        elif self._accepted != offset:
            self._turn_to(self._accepted or 0.0)
        return self.offset != offset

    def _turn_to(self, offset: float) -> None:
        self.offset = offset
        self._skews.clear()
        self._taken = 0


class FastLane:
    """Puts objects with as little CPU as possible. One per process, on one event loop.

    open(), then put() from as many coroutines as the limiter allows, then close().
    `credentials_source` may block, so it is called in a thread; it raises FatalError if it has no
    credentials.
    """

    def __init__(
        self,
        template: RequestTemplate,
        credentials_source: Callable[[], Credentials],
        store_clock: StoreClock | None = None,
        traffic: Traffic | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._looks: set[asyncio.Task[Any]] = set()
        self._store_clock = store_clock or StoreClock()
        self._traffic = traffic or Traffic()
        self._stall_seconds = min(STALL_SECONDS, max(patience, LEAST_STALL_SECONDS))
        self._template = template
        self._credentials_source = credentials_source

    async def open(self) -> None:
        """Call this on the loop that put() will run on."""
        loop = asyncio.get_running_loop()
        self._credentials = await loop.run_in_executor(None, self._credentials_source)
        self._writer = HeadWriter(self._template, self._credentials, self._store_clock.now)
        is_tls = self._template.scheme == "https"
        context = tls_context(self._template.ca_bundle) if is_tls else None
        self._pool = ConnectionPool(self._template, context, self._traffic.pacer)
        self._pool.stall_seconds = self._stall_seconds
        self._tasks = [loop.create_task(self._sweep()), loop.create_task(self._refresh())]

    async def close(self) -> None:
        """Close all connections, busy or not."""
        tasks = {*self._tasks, *self._looks}  # threads are waiting for look()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pool.close()
        await asyncio.sleep(0)

    async def put(
        self,
        key: str,
        headers: Headers,
        body: Body,
        sha256_hex: str,
        query: str = "",
        *,
        checksum: bool = False,
        posted: Posted | None = None,
    ) -> str:
        """Return the ETag, with its quotes. Raises Rejected. The body must not change meanwhile.

        `query` is percent-encoded, as `partNumber=3&uploadId=...`. `posted` is a first try, by
        post(), that failed.
        """
        way = key, headers, len(body), sha256_hex, query
        head = functools.partial(self._writer.head, *way, checksum=checksum)
        check = functools.partial(check_answer, sha256=sha256_hex)
        return (await self._ask(head, body, sha256_hex, check, posted)).etag

    def post(
        self, key: str, headers: Headers, body: bytes, posted: Posted, *, checksum: bool = False
    ) -> bool:
        """Send a small object and return at once. False: nothing was sent, use put()."""
        pool = self._pool
        if not pool.idle or pool.pacer.rate:
            return False
        try:
            head = self._writer.head(key, headers, len(body), posted.sha256, checksum=checksum)
        except ValueError:
            return False
        self._traffic.fast_requests += 1
        posted.offset = self._store_clock.offset
        connection = pool.idle.pop()
        connection.arrived = None
        check = functools.partial(check_answer, sha256=posted.sha256)
        connection.exchange(head, body, posted, check)
        return True

    async def look(self, key: str, headers: Headers) -> Mapping[str, str]:
        """Return the headers of the answer to HEAD, names in lower case; none without an object.

        Raises Rejected for anything better left to boto3.
        """
        way = key, headers, 0, EMPTY_SHA256
        head = functools.partial(self._writer.head, *way, method="HEAD")
        looking: Any = asyncio.current_task()
        self._looks.add(looking)
        try:
            return (await self._ask(head, b"", EMPTY_SHA256, check_look)).fields
        finally:
            self._looks.discard(looking)

    async def _ask(
        self,
        head: Callable[[], bytes],
        body: Body,
        sha256_hex: str,
        check: Check,
        posted: Posted | None = None,
    ) -> Answer:
        offset = 0.0 if posted is None else posted.offset

        async def sent(is_new: bool = False) -> Answer:
            nonlocal offset
            idle = self._pool.idle
            connection = idle.pop() if idle and not is_new else await self._pool.connect()
            offset = self._store_clock.offset
            try:
                signed = head()
            except ValueError as problem:
                self._pool.give_back(connection)
                raise Rejected(None, str(problem)) from problem
            return await self._send(connection, signed, body, sha256_hex, check)

        try:
            if posted and posted.problem:
                raise posted.problem
            answer = await sent()
        except ConnectionStale:
            try:
                answer = await sent(is_new=True)
            except Rejected as rejected:
                rejected.resent = True
                raise
        except Rejected as rejected:
            if not self._store_clock.corrects(rejected.status, rejected.date, offset):
                raise
            try:
                answer = await sent()
            except Rejected as again:
                if self._store_clock.corrects(again.status, again.date, offset):
                    raise rejected from again  # so the clock was not why
                raise
        self._store_clock.took(offset)
        return answer

    async def _send(
        self, connection: Connection, head: bytes, body: Body, sha256_hex: str, check: Check
    ) -> Answer:
        self._traffic.fast_requests += 1
        is_large = len(body) > ONE_WRITE
        connection.arrived = (
            functools.partial(self._traffic.arrived, sha256_hex) if is_large else None
        )
        waiter: asyncio.Future[Answer] = self._pool.loop.create_future()
        connection.exchange(head, body, waiter, check)
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.abort()
            raise

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self._pool.sweep()

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CREDENTIALS_SECONDS)
            try:
                self.use(await loop.run_in_executor(None, self._credentials_source))
            except Exception:  # noqa: BLE001, S112  the old ones are used until refused
                continue

    def use(self, credentials: Credentials) -> None:
        """Sign with these from now on. Call this on the loop."""
        if credentials != self._credentials:
            self._credentials = credentials
            self._writer.use(credentials)


def seconds_of_date(date: str) -> float | None:
    """Seconds since the epoch of a Date header; None if it is not a date."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


# ======================================================================================
# Uploaders: one file and its metadata to one provider
# ======================================================================================


class Receipt(NamedTuple):
    """A store's acknowledgement."""

    etag: str
    sha256: str = ""  # only if the uploader hashed what it sent; otherwise the engine did
    fast: bool = False  # it went through the fast lane


class Upload(NamedTuple):
    """One object to be stored. ``body`` is None if the file is too large for memory."""

    key: str
    source: SourceFile
    body: bytes | None
    sha256: str  # hex, of the body
    metadata: Mapping[str, str]
    content_type: str
    part_size: int  # bytes per part of a large file

    @property
    def status(self) -> os.stat_result:
        """The fstat result of the opened file."""
        return self.source.status

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.source.size

    @property
    def facts(self) -> Facts:
        """Of the opened file, with the size of the object."""
        return Facts.of(self.status)._replace(file_size=self.size)

    @property
    def path(self) -> str:
        """Of the file."""
        return self.source.path

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """The bytes in parts of equal size: (number from 1, bytes). Raises SourceError."""
        if self.body is not None:
            yield 1, self.body
            return
        size = part_size_for(self.size, self.part_size)
        for number, offset in enumerate(range(0, self.size, size), start=1):
            yield number, self.source.read(offset, min(size, self.size - offset))


def part_size_for(size: int, wanted: int, most: int = MAX_PARTS) -> int:
    """Bytes per part: ``wanted``, or more if that would take over ``most`` parts."""
    return max(wanted, MIN_PART_SIZE, -(-size // most))


def combined(algorithm: str, digests: Sequence[bytes]) -> str:
    """The digest of an object in parts, as S3 composes it: hash of the parts' hashes, then -N."""
    whole = hashlib.new(algorithm, b"".join(digests), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(digests)}"


class Form(NamedTuple):
    """How a digest is built: of the whole, or hash of the parts' hashes, then -N."""

    algorithm: str  # name in hashlib
    part_size: int  # bytes; 0: of the whole


class RunningDigest:
    """A digest of data that arrives piece by piece."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._left = form.part_size or sys.maxsize
        self._now = self._new()
        self._parts: list[bytes] = []

    def _new(self) -> Any:
        return hashlib.new(self._form.algorithm, usedforsecurity=False)

    def update(self, piece: memoryview) -> None:
        """Take in the next bytes."""
        while piece:
            if not self._left:
                self._parts.append(self._now.digest())
                self._now, self._left = self._new(), self._form.part_size
            self._now.update(piece[: self._left])
            taken = min(self._left, len(piece))
            self._left -= taken
            piece = piece[taken:]

    def text(self) -> str:
        """In hex, as S3 writes it."""
        if not self._form.part_size:
            return str(self._now.hexdigest())
        return combined(self._form.algorithm, [*self._parts, self._now.digest()])


WHOLE_SHA256 = Form("sha256", 0)


def digests_of(source: SourceFile, forms: Iterable[Form]) -> dict[Form, str]:
    """Digests of a file's bytes, all from a single read. Raises SourceError."""
    running = {form: RunningDigest(form) for form in forms}
    for offset in range(0, source.size, HASH_BYTES):
        piece = memoryview(source.read(offset, min(HASH_BYTES, source.size - offset)))
        for digest in running.values():
            digest.update(piece)
    return {form: digest.text() for form, digest in running.items()}


# Part sizes of other tools and stores: rclone 5 MiB, aws 8 MiB, s5cmd 50 MiB ...
COMMON_PART_SIZES = tuple(
    n * MIB for n in (8, 5, 16, 50, 64, 10, 15, 20, 25, 32, 100, 128, 200, 256, 500, 512, 1024)
)
MD5_DIGITS = 32
is_md5_etag = re.compile(r"[0-9a-f]{32}(?:-[1-9][0-9]{0,4})?").fullmatch


def forms_of(digest: str, size: int, *likely: int) -> list[tuple[Form, str]]:
    """Possible forms of ``digest``, for ``size`` bytes, and itself; ``likely`` are part sizes."""
    whole, dash, count = digest.partition("-")
    algorithm = "md5" if len(whole) == MD5_DIGITS else "sha256"
    if not dash:
        return [(Form(algorithm, 0), digest)]
    candidates = dict.fromkeys((*likely, *COMMON_PART_SIZES))
    sizes = (s for s in candidates if s and max(1, -(-size // s)) == int(count))
    return [(Form(algorithm, part_size), digest) for part_size in sizes]


def known_forms(sha256: str, etag: str, size: int, *likely: int) -> list[tuple[Form, str]]:
    """By what the bytes can be compared with what was stored: the first digest that has a form."""
    told = sha256, etag if is_md5_etag(etag) else ""
    forms = (forms_of(digest, size, *likely) for digest in told if digest)
    return next(filter(None, forms), [])


class Stored(NamedTuple):
    """What the store has of a file according to the ledger."""

    facts: Facts
    etag: str
    sha256: str  # empty: unknown
    part_size: int  # bytes of the parts that sha256 was computed from; 0: unknown, or none
    is_stale: bool  # its metadata is older than this


class StoredPart(NamedTuple):
    """A part acknowledged by a store."""

    number: int  # from 1
    size: int  # bytes
    etag: str
    sha256: str = ""  # hex


class Part(NamedTuple):
    """A part to be stored. ``body`` may only be sent until the call returns."""

    path: str  # of the file it belongs to
    key: str
    upload_id: str
    number: int  # from 1
    body: Body
    sha256: str  # hex, of the body


MAX_FURTHEST = 10_000  # bodies whose furthest position is remembered


class Traffic:
    """Counts of what an uploader sent. add() may be called from threads.

    ``fast_requests``, ``fast_files`` and ``meter`` belong to the event loop. ``pacer`` is asked
    before bytes are sent. ``notes`` are for the user, and are sent with the next report.
    """

    def __init__(self) -> None:
        self.requests = self.retries = self.throttled = 0
        self.fast_requests = self.fast_files = 0
        self.meter = Meter()
        self.pacer = Pacer()
        self.notes: deque[str] = deque()
        self.beats = 0
        self.moved = 0  # bytes of large bodies that arrived for the first time
        self.wants_shared = False  # what Uploader.adopt() took over is refused
        self._furthest: dict[str, int] = {}
        self._lock = threading.Lock()

    def beat(self) -> None:
        """There is progress: bytes were read or sent. Whatever is silent for long is given up."""
        self.beats += 1

    def arrived(self, sha256: str, count: int) -> None:
        """This many bytes of a large body have arrived, in this or an earlier try."""
        with self._lock:
            before = self._furthest.pop(sha256, 0)
            self.moved += max(count - before, 0)
            self._furthest[sha256] = max(count, before)
            if len(self._furthest) > MAX_FURTHEST:
                del self._furthest[next(iter(self._furthest))]

    def add(self, *, requests: int = 0, retries: int = 0, throttled: int = 0) -> None:
        """Count what the safe lane sent."""
        with self._lock:
            self.requests += requests
            self.retries += retries
            self.throttled += throttled


NO_FAST_LANE = "this provider has none"
IMPOSSIBLE_KEY = ".pfu-nobody-has-stored-this-"
DROPS_METADATA = "this store drops metadata: times, modes and owners are not kept"
GRACE_TRIES, GRACE_SECONDS = 6, 0.5  # for an acknowledged object to appear


def unsupported(operation: str, subject: str) -> UnsupportedError:
    """The error of a method that a provider does not have."""
    return UnsupportedError(operation, subject, "not supported by this provider")


class Uploader(ABC):
    """A provider: stores one file at a time. Subclasses need put(); the rest has defaults.

    The parent process calls resolve(); prepare() is called once, in a separate process if the
    system can fork, and keeps what it finds out in attributes. Every process that uploads calls
    open(), then enter_loop() on its event loop, then send() there, which calls put() in threads;
    at the end leave_loop() and close(). The object may be pickled between processes, without the
    attributes in `process_state`.

    One that sets `takes_parts` accepts a large object in parts, in any order, from several
    processes: it has all methods from begin() to fingerprint(). One that sets `shows_objects` can
    tell what it has below the prefix, from list_objects() to read_back(): then what was stored is
    checked, and may be verified or removed here. All of these may block, except send_part(), and
    raise TransferError as put() does; UploadGoneError if the store no longer knows an upload, or a
    part of it.

    After an exception the store may or may not have the object; it is asked to store it again.
    Storing twice must be harmless: the last one stored wins.
    """

    destination: str = ""  # for the user: scheme://container/prefix
    endpoint: str = ""  # if it is not the provider's own
    prefix: str = ""  # starts every key; empty, or with a trailing slash
    takes_parts: ClassVar[bool] = False
    shows_objects: ClassVar[bool] = False
    fast_lane_off: str | None = NO_FAST_LANE  # why there is no fast lane
    first_root: str = ""  # ROOT, if its ledger is new: prepare() should look for objects of it
    patience: float = PATIENCE_SECONDS  # for requests made outside an engine: a listing
    process_state: ClassVar[frozenset[str]] = frozenset({"traffic"})  # attributes not to pickle

    def __init__(self) -> None:
        self.traffic = Traffic()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self.process_state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.traffic = Traffic()

    def resolve(self) -> None:  # noqa: B027
        """Determine the destination if it was not given. Raises UsageError."""

    def prepare(self) -> list[str]:
        """Before the first byte: does the store exist, and is it private? Raises PfuError if not.

        Returns notes for the user about what could not be determined.
        """
        return []

    def shared(self, *, again: bool = False) -> Any:
        """What every process needs but only one may request: renewed credentials.

        Called after prepare(), every few seconds in the process that prepared; None: there is
        nothing to share. ``again``: a process says that what it has is refused. May block.
        """
        return None

    def adopt(self, shared: Any) -> None:  # noqa: B027
        """Take over what shared() returned elsewhere. Called on the loop."""

    def open(self, connections: int) -> None:  # noqa: B027
        """Create clients for this many parallel requests, in the process that will use them."""

    async def enter_loop(self) -> None:  # noqa: B027
        """The same for everything bound to the running event loop."""

    async def leave_loop(self) -> None:  # noqa: B027
        """Release what enter_loop() created."""

    def close(self) -> None:  # noqa: B027
        """Release what open() created."""

    def request_cost(self, requests: int) -> float | None:
        """The approximate cost of this many storing requests in USD; None: unknown."""
        return None

    def answers(self) -> bool:
        """Whether the store answers a plain request. Asked if a single file fails repeatedly."""
        return False

    def refuses_all(self) -> bool:
        """Whether a plain request gets the same code as a FatalError; asked before a stop."""
        return True

    @abstractmethod
    def put(self, upload: Upload) -> Receipt:
        """Store one object; return once the store has acknowledged all its bytes.

        Called from many threads at once. Asks the store once, and raises its answer: after a
        RetryableError (or SlowDownError) the run sends it again for as long as it is patient; a
        KeyRefusedError concerns this key; a FatalError all of them; any other exception is a
        refusal, which stops the run if everything is refused.
        """

    def renew(self, upload: Upload, etag: str) -> Receipt:
        """Update the stored object's metadata to that of ``upload``; its bytes are the same.

        ``etag`` is that of the object when it was last stored. May block. Raises TransferError;
        UploadGoneError if the object has other bytes; UnsupportedError, as here, if they must be
        sent.
        """
        raise unsupported("update metadata of", upload.key)

    async def send(
        self, upload: Upload, threads: ThreadPoolExecutor, posted: Posted | None = None
    ) -> Receipt:
        """put() for an event loop. A provider that needs no threads for it overrides this.

        ``posted``: a first try by post(), which failed.
        """
        return await asyncio.get_running_loop().run_in_executor(threads, self.put, upload)

    def post(self, upload: Upload, ended: Callable[[Posted, Receipt | None], None]) -> bool:
        """Send a small object at once and return; False if it would have to wait for anything.

        Later, on the event loop, ``ended`` is given the receipt; or None, and then the Posted goes
        to send().
        """
        return False

    # -- large files, in parts

    def begin(self, upload: Upload) -> str:
        """Start an object that will come in parts. Returns the id of the multipart upload."""
        raise unsupported("start upload of", upload.key)

    def put_part(self, part: Part) -> Receipt:
        """Store one part; the last one stored under its number wins."""
        raise unsupported("upload a part of", part.key)

    async def send_part(self, part: Part, threads: ThreadPoolExecutor) -> Receipt:
        """put_part() for an event loop."""
        return await asyncio.get_running_loop().run_in_executor(threads, self.put_part, part)

    def list_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """The parts of an upload that the store has."""
        raise unsupported("list parts of", key)

    def complete(self, upload: Upload, upload_id: str, parts: Sequence[StoredPart]) -> Receipt:
        """Assemble the object from all its parts, by number; check that the store has it."""
        raise unsupported("complete", upload.key)

    def is_complete(
        self, upload: Upload, upload_id: str, parts: Sequence[StoredPart]
    ) -> Receipt | None:
        """The receipt if the object exists, made by this upload from these parts."""
        return None

    def abort(self, key: str, upload_id: str) -> None:
        """Abort an upload and discard its parts. A missing one is not an error."""
        raise unsupported("abort upload of", key)

    def fingerprint(self, upload: Upload) -> str:
        """Hashes of an object's headers: of all but its metadata, a slash, of its metadata.

        An unfinished upload with another first half is useless.
        """
        return "/"

    # -- what the store has

    def list_objects(self, threads: ThreadPoolExecutor) -> Iterator[list[Listed]]:
        """All objects below the prefix, in pages, in any order."""
        raise unsupported("list", self.destination)

    def inspect(self, key: str) -> Inspected | None:
        """The store's description of an object; None if there is none."""
        raise unsupported("check", key)

    def read_back(self, key: str) -> str:
        """SHA-256 in hex of the bytes of an object, read completely."""
        raise unsupported("read back", key)

    def prove(self, found: Found) -> list[str]:
        """Check that this is a store: it has what it accepted, and nothing else.

        Returns notes for the user. Raises FatalError if it is not.
        """
        try:
            stored = self.inspect(found.key)
            for _ in range(GRACE_TRIES):
                if stored is None:
                    time.sleep(GRACE_SECONDS)
                    stored = self.inspect(found.key)
            if stored is None:
                return self.explain_loss(found.key)
            if self.inspect(f"{self.prefix}{IMPOSSIBLE_KEY}{os.urandom(16).hex()}"):
                raise self.unproven("it claims to have an object that was never uploaded")
        except DeniedError as error:
            return [f"cannot check what was stored: {error.told(error.operation)}"]
        if stored.size != found.file_size:
            cause = f"it accepted {found.file_size} bytes of {found.key} but has {stored.size}"
            raise self.unproven(cause)
        return [DROPS_METADATA] * (not stored.is_of(found))

    def explain_loss(self, key: str) -> list[str]:
        """Notes on an object that was accepted and is missing. Raises FatalError if unexplained."""
        raise self.unproven(f"it accepted {key} but does not have it")

    def kept_as(self, key: str, size: int, since: float) -> str:
        """The name under which the store keeps what it accepted; empty if unknown.

        ``since``: when the run began, seconds since the epoch.
        """
        return ""

    def unproven(self, cause: str) -> FatalError:
        """The error for an endpoint that is not a store."""
        return FatalError("use", self.destination, cause, "is that URL an S3 server?")


# -- S3
#
# S3Uploader stores objects, S3Bucket knows where, and what is there. Whatever a process learns or
# opens has an owner, which is made anew in each process: S3Session (boto3's clients, credentials),
# S3Lane (the fast lane), StoreTerms (what the store wants of requests), BucketCheck, NoOverwrite,
# SelfCopy.


class Retention(NamedTuple):
    """How long an object may be neither overwritten nor deleted."""

    text: str  # as the user wrote it
    until: float  # seconds since the epoch

    @property
    def least(self) -> float:
        """The earliest end that an object may show: an upload may have begun nights before."""
        return 0.0 if self.text.endswith("d") else self.until - 1


ENCRYPTIONS = "AES256", "aws:kms"
LOCK_MODES = "GOVERNANCE", "COMPLIANCE"


@dataclass(frozen=True)
class S3Options:
    """How to reach a bucket and what to ask of it. None: boto3's default."""

    endpoint_url: str | None = option(None, "S3-compatible store to use instead of AWS", "URL")
    region: str | None = option(None, "default: from the AWS settings, else us-east-1", "NAME")
    profile: str | None = option(None, "profile in the AWS configuration files", "NAME")
    create_bucket: bool = option(False, "create the bucket, private, if missing")
    allow_public: bool = option(False, "upload even if the bucket is public")
    expected_bucket_owner: str | None = option(None, "account ID that must own the bucket", "ID")
    storage_class: str | None = option(None, "e.g. STANDARD_IA or DEEP_ARCHIVE", "CLASS")
    sse: str | None = option(None, "server-side encryption", choices=ENCRYPTIONS)
    sse_kms_key_id: str | None = option(None, "KMS key for --sse aws:kms", "KEY")
    cache_control: str | None = option(None, "Cache-Control header, e.g. max-age=3600", "TEXT")
    tags: tuple[tuple[str, str], ...] = option(
        (), "tag every object, up to 10 tags", "K=V", name="tag"
    )
    object_lock_mode: str | None = option(
        None, "lock every object; with --retain", choices=LOCK_MODES
    )
    retain: Retention | None = option(
        None, "how long, e.g. 30d, or until when, e.g. 2027-01-31", "TIME|DATE"
    )
    legal_hold: bool = option(False, "put a legal hold on every object")
    requester_pays: bool = option(False, "accept charges of a requester-pays bucket")
    no_overwrite: bool = option(False, "skip files whose key is in the store already")

    def __post_init__(self) -> None:
        """Raises UsageError."""
        check_fields(self, S3_FAULTS)
        if self.endpoint_url:
            check_endpoint(self.endpoint_url)

    def put_arguments(self) -> dict[str, str]:
        """Arguments of every object, in boto3's terms."""
        arguments = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.sse_kms_key_id,
            "CacheControl": self.cache_control,
            "Tagging": urllib.parse.urlencode(self.tags, quote_via=urllib.parse.quote),
            "ObjectLockMode": self.object_lock_mode,
            "ObjectLockRetainUntilDate": self.retain and iso_time(self.retain.until),
            "ObjectLockLegalHoldStatus": "ON" if self.legal_hold else None,
        }
        return {**self.access(), **{name: value for name, value in arguments.items() if value}}

    @property
    def locks(self) -> bool:
        """Whether objects are to be locked."""
        return bool(self.object_lock_mode or self.legal_hold)

    def owner(self) -> dict[str, str]:
        """Arguments of every call, in boto3's terms."""
        owner = self.expected_bucket_owner
        return {"ExpectedBucketOwner": owner} if owner else {}

    def access(self) -> dict[str, str]:
        """Arguments of every call about objects."""
        payer = {"RequestPayer": "requester"} if self.requester_pays else {}
        return {**self.owner(), **payer}


NO_HEADER = "contains characters not allowed in a header"
S3_FAULTS: Faults = {
    f"--storage-class {NO_HEADER}": lambda o: not is_printable(o.storage_class or ""),
    "--sse must be AES256 or aws:kms": lambda o: o.sse not in (None, *ENCRYPTIONS),
    f"--sse-kms-key-id {NO_HEADER}": lambda o: not is_printable(o.sse_kms_key_id or ""),
    "--sse-kms-key-id requires --sse aws:kms": lambda o: o.sse_kms_key_id and o.sse != "aws:kms",
    "--cache-control is not a valid header value": lambda o: (
        not is_printable(o.cache_control or "")
    ),
    "--tag must be K=V": lambda o: not all(is_tag(*tag) for tag in o.tags),
    f"--tag can be given at most {MAX_TAGS} times": lambda o: len(o.tags) > MAX_TAGS,
    "--tag has the same key twice": lambda o: len(dict(o.tags)) < len(o.tags),
    "--object-lock-mode must be GOVERNANCE or COMPLIANCE": lambda o: (
        o.object_lock_mode not in (None, *LOCK_MODES)
    ),
    "--object-lock-mode requires --retain": lambda o: o.object_lock_mode and not o.retain,
    "--retain requires --object-lock-mode": lambda o: o.retain and not o.object_lock_mode,
    "--retain is in the past": lambda o: o.retain and o.retain.until <= time.time(),
    "--expected-bucket-owner is not an account ID": lambda o: (
        not re.fullmatch("[0-9A-Za-z]*", o.expected_bucket_owner or "")
    ),
}


def is_tag(name: str, value: str) -> bool:
    """Within S3's limits ("Categorizing your storage using tags")."""
    is_free = not name.lower().startswith("aws:")
    has_room = 0 < len(name) <= 128 and len(value) <= 256
    return is_free and has_room and f"{name}{value}".isprintable()


# USD for 1,000 PUT requests in us-east-1 (https://aws.amazon.com/s3/pricing/)
REQUEST_PRICES: Mapping[str, float] = {
    "STANDARD": 0.005,
    "INTELLIGENT_TIERING": 0.005,
    "STANDARD_IA": 0.01,
    "ONEZONE_IA": 0.01,
    "GLACIER_IR": 0.02,
    "GLACIER": 0.03,
    "DEEP_ARCHIVE": 0.05,
}
PUBLIC_GRANTEES = frozenset(
    f"http://acs.amazonaws.com/groups/global/{group}"
    for group in ("AllUsers", "AuthenticatedUsers")
)
ALL_BLOCKS = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]|arn:[\w:/.-]+", re.ASCII | re.I)
ANY_BUCKET = re.compile(  # other stores have tenants and so on
    r"[^/\s?#%\x00-\x1f\x7f]{1,255}|arn:[\w:/.-]+"
)
DESTINATION_HINT = "use s3://BUCKET or s3://BUCKET/PREFIX"
DESTINATION = re.compile(
    r"s3://(?P<bucket>arn:[^/]*:accesspoint/[^/]+|[^/]*)(?:/(?P<prefix>.*))?", re.DOTALL
)
ENDPOINT = re.compile(  # scheme, name or address, port, path
    r"https?://(?:(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\[[0-9A-Fa-f:.]+(?:%\w+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/[!\"$->A-~]*)?",
    re.ASCII,
)
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
ENDPOINTS_SINCE = 1, 28  # of boto3: it finds them in the environment and in profiles
NO_HEADERS = Headers((), ())
CHECKSUM_MODE = Headers(("x-amz-checksum-mode",), ("ENABLED",))
NO_MORE_CHECKSUMS = {  # than pfu's own
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
METADATA_SERVICE = "http://169.254.169.254"
CREDENTIAL_PROCESS_SECONDS = 60.0  # for a credential_process to end
SHELL = "/bin/sh"
METADATA_SECONDS = 5  # for one of its answers
SLOW_METADATA_SERVICE = {
    "metadata_service_timeout": METADATA_SECONDS,
    "metadata_service_num_attempts": 3,
}
SESSION_CREDENTIALS = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"
RENEWAL_SECONDS = 10.0  # between two reloads of refused credentials
CONFIGURATION_HINT = "check the AWS configuration, including any credential_process"
NO_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; --sandbox needs neither"
)


HEAD_ATTEMPTS = 3  # for an answer that may be cut off


class Terms(NamedTuple):
    """What requests depend on, besides their contents; it may change during a run."""

    checksums: bool = True  # until the store refuses one
    md5: bool = False  # until the store asks for one
    renewals: int = 0  # of the credentials


class StoreTerms:
    """The terms on which the store takes requests, as far as this process has found out."""

    def __init__(self, notes: deque[str]) -> None:
        self.now = self.acknowledged = Terms()
        self._notes = notes
        self._took_checksum = False  # with an object or a part
        self._tried_without: set[str] = set()  # a checksum, by operation
        self._trying_without = threading.RLock()
        self._changing = threading.Lock()

    def acknowledge(self, terms: Terms) -> None:
        """The store has taken an object or a part on these terms."""
        self.acknowledged = terms
        self._took_checksum |= terms.checksums

    def change(self, *, renewed: bool = False, **changed: bool) -> None:
        """Ask on other terms from now on; ``renewed``: with other credentials."""
        with self._changing:
            renewals = self.now.renewals + renewed
            self.now = self.now._replace(renewals=renewals, **changed)

    def with_checksum(self, what: str, call: Callable[[bool], T], *, wanted: bool = True) -> T:
        """call(True), to send a checksum; call(False) if that is what the store refuses.

        Whether it does is tried once per run, not per file.
        """
        checksum, md5 = wanted and self.now.checksums, self.now.md5
        try:
            answer = call(checksum)
        except TransferError as refused:
            if not md5 and self._wants_md5(refused):
                self.change(md5=True)
                return self.with_checksum(what, call, wanted=wanted)
            if not checksum or not may_concern_checksum(refused):
                raise
            return self._try_without(what, call, refused)
        self._took_checksum |= checksum
        return answer

    def _try_without(self, what: str, call: Callable[[bool], T], refused: TransferError) -> T:
        with self._trying_without:  # the others wait for the result
            if not self.now.checksums:
                return call(False)
            if what in self._tried_without:
                raise refused
            self._tried_without.add(what)
            if isinstance(refused, FatalError):  # from one node, while others take it?
                if self._took_checksum:
                    raise refused
                with contextlib.suppress(TransferError):
                    return call(True)
            try:
                answer = call(False)
            except TransferError:
                raise refused from None
            self.change(checksums=False)
        self._notes.append(f"this store refuses {CHECKSUM_HEADER}: {refused.cause}")
        return answer

    def _wants_md5(self, refused: TransferError) -> bool:
        """Whether the store requires Content-MD5, as older ones do with Object Lock."""
        return "content-md5" in refused.cause.lower() and kind_of_error(refused) is Kind.REFUSED


class S3Session:
    """What a process asks the store with: boto3's session and clients, and the credentials.

    Credentials that cannot change are read once, and all processes have them. Others are renewed
    by the keeper, the process that prepared; the rest sign with what it shares. Where that process
    has ended, each renews what it found.
    """

    def __init__(self, s3: S3Bucket) -> None:
        self.store_clock = StoreClock(notes=s3.traffic.notes)
        self.is_keeper = False
        self.connections = 10
        self._s3 = s3
        self._session: Any = None
        self._metadata_service_is_slow = False
        self._clients: dict[float, Any] = {}  # by timeout in seconds
        self._renewed_at = -RENEWAL_SECONDS
        self._lock = threading.Lock()

    @property
    def boto3(self) -> Any:
        """boto3's session. Raises UsageError."""
        import boto3  # 0.1 s and 20 MB, to be avoided if there is nothing to upload
        from botocore.exceptions import BotoCoreError

        if self._session is None:
            learn_urls()
            options = self._s3.options
            shared = None if self.is_keeper else self._s3.shared_credentials
            given = dict(zip(SESSION_CREDENTIALS, shared or ()))  # then it need not look for any
            try:
                self._session = boto3.Session(
                    profile_name=options.profile, region_name=options.region, **given
                )
                if self._metadata_service_is_slow:
                    for name, value in SLOW_METADATA_SERVICE.items():
                        self._session._session.set_config_variable(name, value)
                make_patient(self._session)
                self._session.events.register("before-sign", check_signer)
            except BotoCoreError as error:
                raise UsageError("read AWS configuration", cause=str(error)) from error
        return self._session

    def client(self, service: str, read_seconds: float = 0, traffic: Traffic | None = None) -> Any:
        """A new client of boto3, counted in ``traffic``. Raises UsageError, or TransferError."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        patience = max(self._s3.patience, LEAST_STALL_SECONDS)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_seconds or min(READ_SECONDS, patience),
            max_pool_connections=self.connections,
            retries={"mode": "standard", "total_max_attempts": 1},  # retries are up to the engine
            s3={"payload_signing_enabled": True},
            user_agent_extra=f"pfu/{__version__}",
            **(NO_MORE_CHECKSUMS if has_checksum_settings() else {}),
        )
        session = self.boto3
        check_sent("the region", session.region_name or "", ("AWS_DEFAULT_REGION",))
        try:
            client = session.client(
                service,
                region_name=session.region_name or "us-east-1",
                endpoint_url=self._s3.options.endpoint_url,
                config=config,
            )
            self._adapt(client, service, traffic or Traffic())
            return client
        except BotoCoreError as error:
            problem = client_error("set up", service, error)
            if kind_of_error(problem) is not Kind.REFUSED:
                raise problem from error
            raise UsageError("set up", service, str(error), "check the options") from error
        except PfuError:
            raise
        except Exception as error:  # whatever a credential_process does; it may reveal secrets
            cause = os_cause(error) if isinstance(error, OSError) else type(error).__name__
            where = getattr(error, "filename", None)
            cause = f"{where}: {cause}" if where else cause
            raise UsageError("set up", service, cause, CONFIGURATION_HINT) from error

    def _adapt(self, client: Any, service: str, traffic: Traffic) -> None:
        from botocore.handlers import validate_bucket_name

        Guard(client, service, self.store_clock, traffic)
        events = client.meta.events
        if self._s3.options.no_overwrite:
            for operation in CONDITIONAL:  # not as an argument: boto3 knows it since 1.35 only
                events.register(f"before-call.s3.{operation}", add_condition)
        if self._s3.endpoint:  # only AWS has the names that botocore insists on
            events.unregister("before-parameter-build.s3", validate_bucket_name)

    def credentials(self) -> Credentials:
        """The current credentials. May block to renew them. Raises FatalError.

        If they cannot change, boto3 is asked once, and no worker has to import it.
        """
        s3 = self._s3
        known = s3.fixed_credentials or (None if self.is_keeper else s3.shared_credentials)
        if known is not None:
            known.check()
            return known
        way = "read credentials for", s3.destination
        with translated(*way), configured(*way):
            from botocore import credentials

            found = self.boto3.get_credentials()
            if found is None:
                kind, cause = self._why_there_are_none()
                raise kind(*way, cause, NO_CREDENTIALS_HINT)
            frozen = found.get_frozen_credentials()
            current = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
            current.check()
            if type(found) is credentials.Credentials:
                s3.fixed_credentials = current
            return current

    def _why_there_are_none(self) -> tuple[type[TransferError], str]:
        """If there is a metadata service, it may answer next time; botocore asks it once.

        From then on it gets more time.
        """
        told = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA_SERVICE
        url = urllib.parse.urlsplit(told)
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
            with contextlib.suppress(OSError):
                socket.create_connection((url.hostname or "", url.port or 80), 1.0).close()
                self._session, self._metadata_service_is_slow = None, True
                return RetryableError, "the metadata service returned none"
        return FatalError, "Unable to locate credentials"

    def keep(self) -> None:
        """This process prepares, and renews the credentials from now on."""
        self.is_keeper = True
        credentials = self.credentials()
        self._s3.shared_credentials = None if self._s3.fixed_credentials else credentials

    def share(self, *, again: bool) -> Credentials | None:
        """See Uploader.shared()."""
        if self._s3.shared_credentials is None:
            return None
        self._s3.has_keeper = True
        if again:
            self._session = None
        self._s3.shared_credentials = self.credentials()
        return self._s3.shared_credentials

    def adopt(self, shared: Credentials) -> None:
        """See Uploader.adopt()."""
        with self._lock:
            self._s3.shared_credentials, self._session = shared, None
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._clients.clear()
        self._s3.terms.change(renewed=True)

    @contextlib.contextmanager
    def calling(self, operation: str, subject: str, seconds: float = 0) -> Iterator[Any]:
        """The safe lane's client, for one call; its errors are raised as TransferError."""
        seconds = seconds or min(SLOW_LINE_SECONDS, max(self._s3.patience, LEAST_STALL_SECONDS))
        client, terms = self._safe_client(seconds), self._s3.terms.now
        try:
            with translated(operation, subject):
                yield client
        except FatalError as error:
            if error.code not in CREDENTIAL_CODES or not self._renew(client):
                raise
            hint = "the credentials have been reloaded"
            raise RetryableError(operation, subject, error.cause, hint) from error
        except RetryableError as error:
            if error.dropped:
                client.close()  # the idle connections: they may be dead too
            raise
        self._s3.terms.acknowledged = terms

    def _safe_client(self, seconds: float) -> Any:
        """One per timeout, created on demand: it costs 40 ms and 10 MB."""
        with self._lock:
            if seconds not in self._clients:
                traffic = self._s3.traffic
                self._clients[seconds] = self.client("s3", seconds, traffic)
            return self._clients[seconds]

    def _renew(self, refused: Any) -> bool:
        """Reload the credentials from where they are kept. Returns whether they have changed.

        If new ones are refused too, before anything was acknowledged, there is no third attempt.
        """
        s3 = self._s3
        with self._lock:
            if refused not in self._clients.values():
                return True  # another thread has done it
            is_early = time.monotonic() < self._renewed_at + RENEWAL_SECONDS
            waits = s3.has_keeper and not self.is_keeper  # until that sends some, changed or not
            if s3.terms.now.renewals > s3.terms.acknowledged.renewals or (is_early and not waits):
                return False
            if not is_early:
                self._renewed_at, s3.traffic.wants_shared = time.monotonic(), waits
            if waits:
                return True
            old = self.credentials()
            before = self._session, s3.fixed_credentials, s3.shared_credentials
            self._session = s3.fixed_credentials = s3.shared_credentials = None
            try:
                new = self.credentials()
            except PfuError:
                new = old
            if new == old:
                self._session, s3.fixed_credentials, s3.shared_credentials = before
                return False
            self._begin_anew()
            return True

    def close(self) -> None:
        """Close the connections of all clients."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


class BucketCheck:
    """Finds or creates the bucket, before the first byte, and checks that it is as it should be."""

    def __init__(self, s3: S3Bucket) -> None:
        self._s3 = s3
        self._is_plain = False  # whether an http:// endpoint speaks TLS was checked
        self._is_ours = False  # whether this run may have created it; answers can get lost

    def run(self, client: Any) -> list[str]:
        """Notes for the user. Raises PfuError."""
        self._client = client
        if not self._find():
            self._create()
        if self._is_ours:
            return self._block_public_access()
        notes = self._check_private()
        if self._s3.options.locks:
            notes += self._check_lockable()
        if self._s3.first_root:
            notes += self._look_around()
        return notes

    def _ask(self, operation: str, method: str, **more: Any) -> Any:
        with translated(operation, self._s3.bucket):
            return getattr(self._client, method)(Bucket=self._s3.bucket, **more)

    def _find(self) -> bool:
        """Whether it exists. A refusal counts as yes: PutObject may still be allowed."""
        try:
            return self._exists()
        except RetryableError as error:
            url = urllib.parse.urlsplit(self._client.meta.endpoint_url)
            may_be, self._is_plain = not self._is_plain and error.code in ("", "HtmlAnswer"), True
            if may_be and url.scheme == "http" and speaks_tls(url.hostname or "", url.port or 80):
                told = "this port speaks TLS", "use https://"
                raise UsageError("find bucket", self._s3.bucket, *told) from error
            raise

    def _exists(self) -> bool:
        s3, options = self._s3, self._s3.options
        try:
            self._ask("find bucket", "head_bucket", **options.owner())
        except TransferError as error:
            if error.status == 404 and (s3.is_default or options.create_bucket):
                return False
            if error.status == 404:
                hint = "check the name, or pass --create-bucket"
                raise UsageError("find bucket", s3.bucket, "no such bucket", hint) from error
            if error.status not in (400, FORBIDDEN):
                raise
            self._check_credentials()
        return True

    def _check_credentials(self) -> None:
        """HeadBucket's answer has no body: find out if the credentials are wrong, or denied."""
        try:
            self._ask("find bucket", "list_objects_v2", MaxKeys=0, **self._s3.options.access())
        except DeniedError as error:
            if self._s3.is_default:
                cause = "it exists, but belongs to another account or access is denied"
                hint = "specify a bucket"
                raise UsageError("use bucket", self._s3.bucket, cause, hint) from error

    def _look_around(self) -> list[str]:
        """Report objects that look like files of ROOT; nothing if listing is not allowed."""
        prefix, access = self._s3.prefix, self._s3.options.access()
        try:
            page = self._ask("list", "list_objects_v2", Prefix=prefix, **access)
        except TransferError:
            return []
        folder = base_of(self._s3.first_root)
        keys = (item["Key"][len(prefix) :] for item in page.get("Contents", ()))
        if not any(key and os.path.lexists(f"{folder}/{key}") for key in keys):
            return []
        hint = (
            "specify the ledger that has them with --db, or run --verify, which adopts those that "
            "match the local files, so they are not uploaded again"
        )
        return [f"{self._s3.destination} has objects that are not in this ledger: {hint}"]

    def _create(self) -> None:
        """Create it, unless another run was faster.

        Stores other than AWS may not support ownership controls.
        """
        options, is_aws = self._s3.options, not self._s3.endpoint
        told: dict[str, Any] = {"ObjectOwnership": "BucketOwnerEnforced"} if is_aws else {}
        if options.locks:
            told["ObjectLockEnabledForBucket"] = True
        region = self._client.meta.region_name
        if region not in ("us-east-1", "aws-global"):
            told["CreateBucketConfiguration"] = {"LocationConstraint": region}
        was_tried, self._is_ours = self._is_ours, True
        try:
            self._ask("create bucket", "create_bucket", **told)
        except TransferError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
            self._is_ours = was_tried

    def _block_public_access(self) -> list[str]:
        """Make it as private as the store allows.

        Some refuse every object sent without an ACL if BlockPublicAcls is set (RADOS gateway);
        ignoring ACLs is enough.
        """
        blocks = {**ALL_BLOCKS, "BlockPublicAcls": not self._s3.endpoint}
        told = {"PublicAccessBlockConfiguration": blocks, **self._s3.options.owner()}
        try:
            self._ask("block public access to bucket", "put_public_access_block", **told)
        except TransferError as error:
            is_denied = error.status == FORBIDDEN
            if not error.status or is_passing(error.status) or (is_denied and self._is_ours):
                raise
            cause = error.cause if is_denied else "this store does not support it"
            return [f"bucket {self._s3.bucket}: public access is not blocked: {cause}"]
        return []

    def _was_left_open(self, verdict: Privacy) -> bool:
        """Whether it is one that a run created, and was killed before it was private: empty."""
        if verdict.unblocked and (self._s3.is_default or self._s3.options.create_bucket):
            with contextlib.suppress(DeniedError):
                page = self._ask("list", "list_objects_v2", MaxKeys=1, **self._s3.options.access())
                return not page.get("Contents")
        return False

    def _check_lockable(self) -> list[str]:
        """Raises UsageError if the bucket has no Object Lock."""
        is_on, why_unknown = told_of_lock(self._is_lockable)
        if why_unknown:
            way = f"bucket {self._s3.bucket}"
            return [f"{way}: cannot tell whether it has Object Lock: {why_unknown}"]
        if not is_on:
            hint = "it can only be enabled for the whole bucket"
            raise UsageError("lock objects in", self._s3.bucket, "it has no Object Lock", hint)
        return []

    def _is_lockable(self) -> bool:
        question = "read Object Lock of", "get_object_lock_configuration"
        told = self._ask(*question, **self._s3.options.owner())
        return bool(told.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _check_private(self) -> list[str]:
        bucket, options = self._s3.bucket, self._s3.options
        verdict = privacy(self._client, bucket, options.owner())
        if verdict.public and not options.allow_public:
            hint = "make it private, or pass --allow-public if the files may be public"
            raise UsageError("use bucket", bucket, f"it is public: {verdict.public}", hint)
        if verdict.public:
            return [f"bucket {bucket} is public: {verdict.public}"]
        if verdict.unknown:
            return [f"bucket {bucket}: cannot tell whether it is private: {verdict.unknown}"]
        return self._block_public_access() if self._was_left_open(verdict) else []


def told_of_lock(ask: Callable[[], bool]) -> tuple[bool, str]:
    """The answer to a question about Object Lock, and why it is not known."""
    try:
        return ask(), ""
    except (RetryableError, FatalError):
        raise
    except TransferError as error:
        return False, error.cause if error.status == FORBIDDEN else ""


class S3Lane:
    """The fast lane of a process. What it is refused is asked for once more by boto3."""

    def __init__(self, s3: S3Bucket) -> None:
        self._s3 = s3
        self._lane: FastLane | None = None
        self._renewals = 0  # of the credentials that it signs with
        self._refusals = self._failures_in_a_row = 0
        self._is_asking_boto3 = False

    async def open(self, template: RequestTemplate) -> None:
        """On the running event loop."""
        s3 = self._s3
        clock, traffic, patience = s3.session.store_clock, s3.traffic, s3.patience
        lane = FastLane(template, s3.session.credentials, clock, traffic, patience)
        await lane.open()
        self._lane, self._loop = lane, asyncio.get_running_loop()

    async def close(self) -> None:
        """Close its connections."""
        lane, self._lane = self._lane, None
        if lane is not None:
            await lane.close()

    def ready(self) -> FastLane | None:
        """It, signing with the latest credentials, if it may be used."""
        if self._lane is None or self._s3.fast_lane_off:
            return None
        if self._renewals != self._s3.terms.now.renewals:
            self._renewals = self._s3.terms.now.renewals
            self._lane.use(self._s3.session.credentials())
        return self._lane

    def acknowledge(self, terms: Terms) -> None:
        """It works, on these terms."""
        self._refusals = self._failures_in_a_row = 0
        self._s3.terms.acknowledge(terms)

    async def ask(
        self,
        put: Awaitable[str],
        way: str,
        by_boto3: Callable[[], Awaitable[Receipt]],
        terms: Terms,
    ) -> Receipt:
        """The answer to ``put``; or to boto3, for its message and redirects, if that is refused."""
        try:
            etag = await put
        except Rejected as rejected:
            if rejected.status == PRECONDITION_FAILED and self._s3.options.no_overwrite:
                raise
            self._weigh(rejected, way)
            try:
                receipt = await by_boto3()
            finally:
                self._is_asking_boto3 = False
            self._count_refusal(rejected, terms)
            return receipt
        self.acknowledge(terms)
        return Receipt(etag, fast=True)

    def _weigh(self, rejected: Rejected, way: str) -> None:
        """Raises RetryableError for temporary failures, unless boto3 should be tried.

        It is tried, one file at a time, once the fast lane alone may be what fails.
        """
        if rejected.by_proxy:
            raise refused_by_proxy("upload", way, str(rejected))
        is_busy = rejected.status in SLOW_DOWN_STATUSES
        self._s3.traffic.add(throttled=int(is_busy))
        if not rejected.passing and not is_passing(rejected.status or 0):
            return
        self._failures_in_a_row += 1
        if is_busy or self._is_asking_boto3 or self._failures_in_a_row <= LANE_DOUBT:
            kind = SlowDownError if is_busy else RetryableError
            problem = kind("upload", way, str(rejected))
            problem.dropped = rejected.dropped
            raise problem from rejected
        self._is_asking_boto3 = True

    def _count_refusal(self, rejected: Rejected, terms: Terms) -> None:
        """Give it up if it is repeatedly refused what boto3 is not."""
        if terms != self._s3.terms.now:
            return  # that was why
        self._refusals += 1
        if self._refusals >= MAX_REFUSALS:
            self._s3.fast_lane_off = f"abandoned during the run: {rejected}"

    def look(self, key: str) -> Mapping[str, str] | None:
        """FastLane.look() for a thread; None: there is no object. Raises Rejected."""
        if self._lane is None:
            raise Rejected(None, "the fast lane is closed")
        return asyncio.run_coroutine_threadsafe(self._look(key), self._loop).result()

    async def _look(self, key: str) -> Mapping[str, str] | None:
        lane, terms = self.ready(), self._s3.terms.now
        if lane is None:
            raise Rejected(None, "the fast lane is closed")
        fields = await lane.look(key, CHECKSUM_MODE)
        self._s3.terms.acknowledged = terms
        return fields or None


class S3Bucket(Uploader):
    """A bucket of S3, or of an S3-compatible store: how it is reached, and what it has."""

    shows_objects = True
    process_state: ClassVar[frozenset[str]] = Uploader.process_state | {
        *("terms", "session", "lane", "bucket_check")
    }

    def __init__(self, destination: str | None = None, options: S3Options | None = None) -> None:
        """``destination``: s3://bucket[/prefix]; None: the default bucket of the caller's account.

        Raises UsageError.
        """
        super().__init__()
        self.options = options or S3Options()
        self.endpoint = self.options.endpoint_url or ""
        self.is_default = destination is None
        self.bucket = ""
        self.template: RequestTemplate | None = None  # of the fast lane
        self.fixed_credentials: Credentials | None = None
        self.shared_credentials: Credentials | None = None  # what the keeper found
        self.has_keeper = False  # who renews them, for all processes
        if destination is not None:
            self.bucket, self.prefix = parse_destination(destination)
            self._name_destination()
        self._begin_process()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin_process()

    def _begin_process(self) -> None:
        self.terms = StoreTerms(self.traffic.notes)
        self.session = S3Session(self)
        self.lane = S3Lane(self)
        self._have_etags = False  # answers to HEAD, as far as known
        self._asked_why: Terms | None = None  # for which the reason of a 403 was requested
        self.bucket_check = BucketCheck(self)

    def _name_destination(self) -> None:
        self.destination = f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    # -- names and arguments of requests

    def url(self, key: str) -> str:
        """Of an object, for the user."""
        return f"s3://{self.bucket}/{key}"

    def way(self, file: Upload | Part) -> str:
        """Of a file, for the user."""
        part = f"part {file.number} of " if isinstance(file, Part) else ""
        return f"{part}{file.path} to {self.url(file.key)}"

    def described(self, upload: Upload) -> dict[str, Any]:
        """Arguments of PutObject and CreateMultipartUpload for an object."""
        return {
            "Bucket": self.bucket,
            "Key": upload.key,
            "ContentType": upload.content_type,
            "Metadata": upload.metadata,
            **self.options.put_arguments(),
        }

    def of_object(self, key: str) -> dict[str, Any]:
        """Arguments of calls for a stored object."""
        return {"Bucket": self.bucket, "Key": key, **self.options.access()}

    def of_upload(self, key: str, upload_id: str) -> dict[str, Any]:
        """Arguments of calls for a multipart upload."""
        return {**self.of_object(key), "UploadId": UploadHandle.read(upload_id).upload_id}

    def call(self, operation: str, method: str, key: str, **more: Any) -> Any:
        """boto3's answer about a stored object. Raises TransferError."""
        with self.session.calling(operation, self.url(key)) as client:
            return getattr(client, method)(**self.of_object(key), **more)

    # -- in the parent, once

    def request_cost(self, requests: int) -> float | None:
        """From the AWS price list."""
        price = REQUEST_PRICES.get(self.options.storage_class or "STANDARD")
        return None if self.endpoint or price is None else requests * price / 1000

    def resolve(self) -> None:
        """The endpoint, and the default bucket's name from the caller's account and region.

        Raises PfuError.
        """
        if importlib.util.find_spec("boto3") is None:
            hint = "pip install boto3, or apt install python3-boto3"
            raise UsageError("import boto3", "", "not installed", hint)
        self._find_endpoint()
        owner = self.options.expected_bucket_owner
        if owner and not self.endpoint and not re.fullmatch("[0-9]{12}", owner):
            raise UsageError(
                "--expected-bucket-owner is not an AWS account ID: those have 12 digits"
            )
        if not self.is_default or self.bucket:
            if not self.endpoint and not BUCKET_NAME.fullmatch(self.bucket):
                told = "3 to 63 letters, digits, dots and hyphens"
                cause = f"not a valid bucket name: {told}"
                raise UsageError("read destination", self.destination, cause, DESTINATION_HINT)
            return
        with translated("find the account for the default bucket", ""):
            sts = self.session.client("sts")
            account = sts.get_caller_identity()["Account"]
        self.options = dataclasses.replace(self.options, expected_bucket_owner=account)
        self.bucket = f"pfu-{account}-{sts.meta.region_name}"
        self._name_destination()

    def _find_endpoint(self) -> None:
        for name in ENDPOINT_VARIABLES:
            if not self.endpoint and os.environ.get(name):
                check_endpoint(os.environ[name])
        if not self.endpoint and endpoint_is_configured():
            host = self.session.client("s3").meta.endpoint_url
            check_endpoint(host)
            self.endpoint = "" if ".amazonaws.com" in host else host
            self._heed_settings()

    def _heed_settings(self) -> None:
        """boto3 before 1.28 knows no endpoint but what it is passed, and would go to AWS."""
        import boto3

        is_older = tuple(map(int, boto3.__version__.split(".")[:2])) < ENDPOINTS_SINCE
        is_ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        if is_older and not is_ignored:
            told = [os.environ.get(name) for name in ENDPOINT_VARIABLES]
            told.append(self.session.boto3._session.get_scoped_config().get("endpoint_url"))
            self.endpoint = next(filter(None, told), "")
            if self.endpoint:
                check_endpoint(self.endpoint)
            self.options = dataclasses.replace(self.options, endpoint_url=self.endpoint or None)

    def prepare(self) -> list[str]:
        """Find or create the bucket, and check that it is private."""
        self.session.keep()
        client = self.session.client("s3")
        notes = self.bucket_check.run(client)
        self.open_gate(client)
        url = urllib.parse.urlsplit(client.meta.endpoint_url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            notes.append(f"http://{url.netloc} is not encrypted: files can be read in transit")
        return notes

    def open_gate(self, client: Any) -> None:
        """Decide whether there is a fast lane."""
        with translated("read credentials for", self.destination):
            captured = capture_template(
                client, self.bucket, self.options.put_arguments(), self.session.credentials
            )
        if isinstance(captured, GateClosed):
            self.fast_lane_off = captured.reason
        else:
            self.template, self.fast_lane_off = captured, None

    def shared(self, *, again: bool = False) -> Credentials | None:
        """Credentials that are renewed: by a role, a metadata service, a process."""
        return self.session.share(again=again)

    def adopt(self, shared: Credentials) -> None:
        """Sign with these from now on."""
        self.session.adopt(shared)

    # -- in every process that uploads

    def open(self, connections: int) -> None:
        """The safe lane's client is created on demand."""
        self.session.connections = connections

    def close(self) -> None:
        """Close the client's connections."""
        self.session.close()

    async def enter_loop(self) -> None:
        """Open the fast lane, if the gate is open."""
        if self.template is not None:
            await self.lane.open(self.template)

    async def leave_loop(self) -> None:
        """Close the fast lane's connections."""
        await self.lane.close()

    def plain_answer(self) -> TransferError | None:
        """The error, if any, of ListObjectsV2: it tells bad credentials from a lack of permission.

        HEAD has no body to do so.
        """
        try:
            self._list_page(self.prefix, MaxKeys=0)
        except TransferError as error:
            return error
        return None

    def answers(self) -> bool:
        """Whatever it says."""
        return not isinstance(self.plain_answer(), RetryableError)

    def refuses_all(self) -> bool:
        """Unless it lists, or does not answer."""
        answer = self.plain_answer()
        if isinstance(answer, RetryableError):  # the credentials may have been reloaded
            answer = self.plain_answer()
        return answer is not None and not isinstance(answer, RetryableError)

    # -- listing and inspection

    def list_objects(self, threads: ThreadPoolExecutor) -> Iterator[list[Listed]]:
        """ListObjectsV2, of all prefixes one level down in parallel.

        The next page of each prefix is requested while the last one is processed.
        """
        asked: dict[Future[Any], Iterator[Mapping[str, Any]]] = {}

        def ask(pages: Iterator[Mapping[str, Any]]) -> None:
            asked[threads.submit(next, pages, None)] = pages

        def answered() -> Iterator[list[Listed]]:
            for future in wait_for_futures(asked, return_when=FIRST_COMPLETED)[0]:
                pages, page = asked.pop(future), future.result()
                if page is not None:
                    ask(pages)
                    yield listed_in(page)

        for page in self._list_pages(self.prefix, Delimiter="/"):
            yield listed_in(page)
            for below in page.get("CommonPrefixes", []):
                while len(asked) >= LISTED_PREFIXES:
                    yield from answered()
                ask(self._list_pages(below["Prefix"]))
        while asked:
            yield from answered()

    def _list_pages(self, prefix: str, **more: str) -> Iterator[Mapping[str, Any]]:
        token: dict[str, str] = {}
        while True:
            ask = functools.partial(self._list_page, prefix, **more, **token)
            page = patiently(ask, self.patience)
            yield page
            if not page.get("IsTruncated"):
                return
            before, token = token, {"ContinuationToken": page["NextContinuationToken"]}
            if token == before:
                raise OddAnswerError("list", self.url(prefix), "each page continues as the last")

    def _list_page(self, prefix: str, **more: Any) -> Mapping[str, Any]:
        with self.session.calling("list", self.url(prefix)) as client:
            page: Mapping[str, Any] = client.list_objects_v2(
                Bucket=self.bucket, Prefix=prefix, **more, **self.options.access()
            )
            check_listed(page)
            return page

    def look(self, key: str) -> Inspected | None:
        """By one HeadObject: all but the size of the parts."""
        head = self._whole_head(key, ChecksumMode="ENABLED")
        if head is None:
            return None
        start, options = "x-amz-meta-", self.options
        told = head.get("x-amz-object-lock-mode"), head.get("x-amz-object-lock-legal-hold") == "ON"
        wanted = options.object_lock_mode, options.legal_hold
        return Inspected(
            int(head["content-length"]),
            bare_etag(head.get("etag")),
            hex_of_checksum(head.get(CHECKSUM_HEADER, "")),
            {name[len(start) :]: head[name] for name in head if name.startswith(start)},
            int(seconds_of_date(head.get("last-modified", "")) or 0) * 10**9,
            lacks_lock=any(wish and not lock for wish, lock in zip(wanted, told)),
        )

    def look_if_allowed(self, key: str) -> Inspected | None:
        """None also for a role that may not ask."""
        with contextlib.suppress(DeniedError):
            return self.look(key)
        return None

    def inspect(self, key: str) -> Inspected | None:
        """By another one for an object in parts: how large is the first? Some ignore partNumber."""
        stored = self.look(key)
        if stored is None or not ("-" in stored.sha256 or "-" in stored.etag):
            return stored
        first = self._whole_head(key, PartNumber=1) or {}
        size = int(first.get("content-length", 0))
        is_told = first.get("x-amz-mp-parts-count", "").strip("0") or size != stored.size
        return stored._replace(part_size=size if is_told else 0)

    def _whole_head(self, key: str, **more: Any) -> Mapping[str, str] | None:
        """An answer with a size is believed; one that may be truncated is asked for again.

        botocore takes an answer that is cut off within its headers for a complete one. Some stores
        send no ETag here: that is believed if none ever came.
        """
        for left in reversed(range(HEAD_ATTEMPTS)):
            try:
                head = self._head(key, **more)
            except OddAnswerError:
                if not left:
                    raise
                continue
            if head is None:
                return None
            has_size, has_etag = "content-length" in head, bool(whole_etag(head.get("etag")))
            if has_size and has_etag:
                self._have_etags = True
                return head
        if self._have_etags or not (has_size or has_etag):
            raise RetryableError("check", key, "the response was cut off: no ETag")
        if not has_size:
            raise DeniedError("check", key, "the store does not report its size")
        return head

    def _head(self, key: str, **more: Any) -> Mapping[str, str] | None:
        """The headers of HeadObject's answer, names in lower case; by the fast lane if it can."""
        terms = self.terms.now
        if "PartNumber" not in more:
            with contextlib.suppress(Rejected):
                return self.lane.look(key)
        try:
            answer = self.call("check", "head_object", key, **more)
            headers: Mapping[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
            return headers
        except TransferError as error:
            if error.status == 404:
                return None
            if error.status == FORBIDDEN and self._asked_why != terms:
                why = self.plain_answer()
                if self.terms.now != terms:
                    why = RetryableError("check", key, "the credentials have been reloaded")
                is_mangled = why and why.code == "SignatureDoesNotMatch"  # maybe by a proxy
                if why and not is_mangled and not isinstance(why, DeniedError):  # the credentials
                    raise why from error
                self._asked_why = terms
            raise

    def prove(self, found: Found) -> list[str]:
        """Also that the object is locked, if it should be."""
        notes = super().prove(found)
        if not self.options.locks:
            return notes
        is_locked, why_unknown = told_of_lock(functools.partial(self._is_locked, found.key))
        if why_unknown:
            return [*notes, f"cannot tell whether objects are locked: {why_unknown}"]
        if not is_locked:
            raise FatalError("lock", found.key, "the store accepted it and has not locked it so")
        return notes

    def _is_locked(self, key: str) -> bool:
        """Whether an object has the retention and the hold that it was sent with."""
        options, ask = self.options, functools.partial(self.call, "read the lock of")
        if options.retain:
            told = ask("get_object_retention", key).get("Retention", {})
            until = told.get("RetainUntilDate")
            is_long = until is not None and until.timestamp() >= options.retain.least
            if told.get("Mode") != options.object_lock_mode or not is_long:
                return False
        held = options.legal_hold and ask("get_object_legal_hold", key)
        return not held or held.get("LegalHold", {}).get("Status") == "ON"

    def explain_loss(self, key: str) -> list[str]:
        """For a store that answers GET as S3 does: something deletes objects immediately."""
        try:
            self.call("check", "get_object", key)
        except RetryableError:
            raise
        except TransferError as error:
            if error.code == "NoSuchKey":
                return [f"something deletes objects immediately: {key} was accepted, then gone"]
        return super().explain_loss(key)

    def kept_as(self, key: str, size: int, since: float) -> str:
        """ListObjectsV2, one page, of what starts like the key up to its first odd character."""
        odd = is_odd(key)
        page = self._list_page(key[: odd.start()] if odd else key)
        listed = page.get("Contents", [])
        if key in [stored["Key"] for stored in listed]:
            return key
        if page.get("IsTruncated"):
            return ""
        others = (
            stored["Key"]
            for stored in listed
            if stored["Size"] == size
            and "LastModified" in stored
            and stored["LastModified"].timestamp() > since - CLOCK_SKEW_SECONDS
            and plain_parts(stored["Key"]) & plain_parts(key)
        )
        return next(others, "")

    def read_back(self, key: str) -> str:
        """GetObject."""
        with self.session.calling("read back", self.url(key)) as client:
            return digest_of(client.get_object(**self.of_object(key))["Body"], self.traffic.beat)


class NoOverwrite:
    """--no-overwrite: what the store has stays, by its own condition, If-None-Match.

    That it heeds it must be shown once in each process, before anything is left to it.
    """

    def __init__(self, s3: S3Uploader) -> None:
        self.is_due = s3.options.no_overwrite  # it has yet to be shown
        self._s3 = s3
        self._proving = threading.Lock()
        self._problem: FatalError | None = None

    def prove(self, upload: Upload) -> Receipt:
        """Store the first object of this process twice: the second time must be refused.

        Raises FatalError if the store ignores the condition: it would overwrite anything.
        """
        with self._proving:
            if not self.is_due:
                return self._s3.put(upload)
            if self._problem:
                raise self._problem
            self.check_free(upload)
            receipt: Receipt | None = None
            try:
                receipt = self._s3.put(upload)
                self._s3.put(upload)
                cause = "the store ignores If-None-Match"
            except KeptError:
                self.is_due = False
                if receipt:
                    return receipt
                raise
            except UnsupportedError as error:
                cause = f"the store refuses If-None-Match: {error.cause}"
            hint = "then --no-overwrite cannot be kept: leave it out, or choose another prefix"
            self._problem = FatalError("use", self._s3.destination, cause, hint)
            raise self._problem

    def check_free(self, upload: Upload) -> None:
        """Raises KeptError if the store has an object of this name; nothing if that is secret."""
        if self._s3.options.no_overwrite and self._s3.look_if_allowed(upload.key):
            raise self.kept(upload)

    @contextlib.contextmanager
    def heeded(self, upload: Upload) -> Iterator[None]:
        """Raises KeptError for 412."""
        try:
            yield
        except TransferError as error:
            if error.status != PRECONDITION_FAILED or not self._s3.options.no_overwrite:
                raise
            raise self.kept(upload) from error

    def kept(self, upload: Upload, *, resent: bool = False) -> KeptError:
        """What the store has already: is it this file? Raises TransferError."""
        error = KeptError("upload", self._s3.way(upload), "the store has an object of this name")
        error.upload, error.resent = upload, resent
        stored = self._s3.look_if_allowed(upload.key)
        if stored and upload.body is not None:
            md5 = hashlib.md5(upload.body, usedforsecurity=False).hexdigest()
            error.same = stored.shows(upload, (upload.sha256, md5))
            error.etag = stored.etag
        return error


class SelfCopy:
    """New metadata for a large object: it is copied onto itself, with everything stated again.

    Some stores acknowledge that and keep the old metadata, or store something else.
    """

    def __init__(self, s3: S3Uploader) -> None:
        self._s3 = s3
        self._denied: list[TransferError] = []  # in a row

    def run(self, upload: Upload, etag: str) -> Receipt:
        """See Uploader.renew()."""
        if self._s3.options.no_overwrite:
            raise UnsupportedError("update metadata of", upload.key, "--no-overwrite")
        if len(self._denied) >= MAX_DENIED_COPIES:
            raise self._denied[-1]
        try:
            copied = self._checked(upload, etag)
        except (RetryableError, FatalError, UploadGoneError):
            raise
        except TransferError as error:
            self._denied.append(error)
            raise
        self._denied.clear()
        return Receipt(copied)

    def _checked(self, upload: Upload, etag: str) -> str:
        """The ETag of the copy, from HEAD: Swift answers with another one, rclone with none.

        A store that takes the request for a PutObject now has an empty object: it is sent again.
        """
        way, told, lost = ("update metadata of", self._s3.url(upload.key)), "", None
        try:
            told = self._copied(upload, etag)
        except RetryableError as error:
            lost = error
        stored = self._s3.look_if_allowed(upload.key)
        if stored is None and not told:
            raise lost or UploadGoneError(*way, "the store may not have copied it")
        if stored is None:
            return told
        if stored.size != upload.size:
            raise UploadGoneError(*way, "the store did not copy it")
        if not stored.metadata:
            self._s3.traffic.notes.append(DROPS_METADATA)  # there is none to update
        elif not stored.has(upload.metadata):
            raise lost or UnsupportedError(*way, "the store kept the old metadata")
        return stored.etag or told

    def _copied(self, upload: Upload, etag: str) -> str:
        """The ETag of the copy, as answered.

        Some stores report another ETag each time; or a copy was made, and its answer lost. With
        neither metadata nor a digest, nothing shows that it is another object.
        """
        try:
            return self._copy(upload, etag)
        except UploadGoneError as gone:
            stored = self._s3.inspect(upload.key) if gone.status == PRECONDITION_FAILED else None
            if stored is None or stored.size != upload.size:
                raise
            if stored.metadata or stored.digests:
                digests = digests_of(upload.source, {form for form, _ in stored.forms()})
                if not stored.proves(upload.size, digests.values()):
                    raise
        return stored.etag if stored.has(upload.metadata) else self._copy(upload, stored.etag)

    def _copy(self, upload: Upload, etag: str) -> str:
        """Raises UploadGoneError if the object is not the one that the ledger knows."""
        s3, owner = self._s3, self._s3.options.expected_bucket_owner
        source = {
            "CopySource": {"Bucket": s3.bucket, "Key": upload.key},
            **({"CopySourceIfMatch": f'"{etag}"'} if etag else {}),
            **({"ExpectedSourceBucketOwner": owner} if owner else {}),
        }
        try:
            if upload.size > MAX_PART_SIZE:
                return self._copy_parts(upload, source)
            tagging = {"TaggingDirective": "REPLACE"} if s3.options.tags else {}
            with s3.session.calling("update metadata of", s3.url(upload.key)) as client:
                answer = client.copy_object(
                    **s3.described(upload), **source, MetadataDirective="REPLACE", **tagging
                )
        except TransferError as error:
            if error.status not in (404, PRECONDITION_FAILED):
                raise
            gone = UploadGoneError("update metadata of", s3.url(upload.key), error.cause)
            gone.status = error.status
            raise gone from error
        return bare_etag(answer.get("CopyObjectResult", {}).get("ETag"))

    def _copy_parts(self, upload: Upload, source: Mapping[str, Any]) -> str:
        s3, size = self._s3, part_size_for(upload.size, COPIED_PART_SIZE)
        upload_id = s3.create(upload, upload.metadata)
        try:
            parts: list[Mapping[str, Any]] = []
            for number, offset in enumerate(range(0, upload.size, size), start=1):
                last = min(offset + size, upload.size) - 1
                with s3.session.calling("copy a part of", s3.url(upload.key)) as client:
                    answer = client.upload_part_copy(
                        **s3.of_upload(upload.key, upload_id),
                        **source,
                        PartNumber=number,
                        CopySourceRange=f"bytes={offset}-{last}",
                    )
                    etag = etag_of(answer.get("CopyPartResult", {}))
                parts.append({"PartNumber": number, "ETag": etag})
                s3.traffic.beat()
            return s3.assemble(upload, upload_id, parts)
        except BaseException:
            with contextlib.suppress(TransferError):
                s3.abort(upload.key, upload_id)
            raise


class S3Uploader(S3Bucket):
    """Stores objects in a bucket.

    Safe lane: boto3's own calls, in threads. Fast lane: the PutObject that botocore would have
    sent, if the gate allows it; what it does not understand goes to the safe lane.
    """

    takes_parts = True
    process_state: ClassVar[frozenset[str]] = S3Bucket.process_state | {"no_overwrite", "self_copy"}

    def _begin_process(self) -> None:
        super()._begin_process()
        self.no_overwrite = NoOverwrite(self)
        self.self_copy = SelfCopy(self)

    async def send(
        self, upload: Upload, threads: ThreadPoolExecutor, posted: Posted | None = None
    ) -> Receipt:
        """By the fast lane if that is open and the body is in memory, else by the safe lane."""
        lane, in_thread = self.lane.ready(), asyncio.get_running_loop().run_in_executor
        if self.no_overwrite.is_due and upload.body is not None:
            return await in_thread(threads, self.no_overwrite.prove, upload)
        if lane is None or upload.body is None:
            return await super().send(upload, threads)
        terms = posted.terms if posted else self.terms.now
        put = lane.put(
            *(upload.key, self._headers(upload, terms), upload.body, upload.sha256),
            checksum=terms.checksums,
            posted=posted,
        )
        by_boto3 = functools.partial(super().send, upload, threads)
        try:
            receipt = await self.lane.ask(put, self.way(upload), by_boto3, terms)
        except Rejected as rejected:
            look = functools.partial(self.no_overwrite.kept, upload, resent=rejected.resent)
            raise await in_thread(threads, look) from rejected
        self.traffic.fast_files += receipt.fast
        return receipt

    def post(self, upload: Upload, ended: Callable[[Posted, Receipt | None], None]) -> bool:
        """By the fast lane, if it has a connection that is idle."""
        lane, terms = self.lane.ready(), self.terms.now
        if lane is None or upload.body is None or self.no_overwrite.is_due:
            return False

        def answered(posted: Posted, answer: Answer | None) -> None:
            if answer is None:
                ended(posted, None)
                return
            self.session.store_clock.took(posted.offset)
            self.lane.acknowledge(terms)
            self.traffic.fast_files += 1
            ended(posted, Receipt(answer.etag, fast=True))

        posted = Posted(upload.sha256, terms, answered)
        headers = self._headers(upload, terms)
        return lane.post(upload.key, headers, upload.body, posted, checksum=terms.checksums)

    def _headers(self, upload: Upload, terms: Terms) -> Headers:
        """What varies from one object to the next, for the fast lane."""
        names, values = tuple(upload.metadata), (upload.content_type, *upload.metadata.values())
        sums = md5_of(upload.body or b"", terms)
        return Headers(header_names_of(names, terms.md5), (*values, *sums))

    async def send_part(self, part: Part, threads: ThreadPoolExecutor) -> Receipt:
        """By the fast lane if that is open, else by the safe lane."""
        lane, terms = self.lane.ready(), self.terms.now
        if lane is None:
            return await super().send_part(part, threads)
        handle = UploadHandle.read(part.upload_id)
        upload_id = urllib.parse.quote(handle.upload_id, safe="")
        query = f"partNumber={part.number}&uploadId={upload_id}"
        headers = NO_HEADERS
        if terms.md5 and not isinstance(part.body, FileBody):
            headers = Headers(("content-md5",), md5_of(part.body, terms))
        checksum = handle.checksum and terms.checksums
        put = lane.put(part.key, headers, part.body, part.sha256, query, checksum=checksum)
        by_boto3 = functools.partial(super().send_part, part, threads)
        return await self.lane.ask(put, self.way(part), by_boto3, terms)

    # -- by boto3

    def put(self, upload: Upload) -> Receipt:
        """One PutObject: the body is in memory, larger files are sent in parts."""
        assert upload.body is not None
        body, told = memoryview(upload.body), self.described(upload)
        with self.no_overwrite.heeded(upload):
            return self._store("put_object", self.way(upload), told, body, upload.sha256)

    def put_part(self, part: Part) -> Receipt:
        """UploadPart."""
        told = {"PartNumber": part.number, **self.of_upload(part.key, part.upload_id)}
        way, wanted = self.way(part), UploadHandle.read(part.upload_id).checksum
        try:
            return self._store("upload_part", way, told, part.body, part.sha256, checksum=wanted)
        except DeniedError as error:
            if part.number > 1 and is_about_count(error.cause):
                cause = error.operation, error.subject, error.cause
                raise TooManyPartsError(*cause, TOO_MANY_PARTS_HINT) from error
            raise

    def _store(
        self,
        method: str,
        way: str,
        told: Mapping[str, Any],
        body: Body,
        sha256: str,
        *,
        checksum: bool = True,
    ) -> Receipt:
        def send(with_checksum: bool) -> Receipt:
            md5 = dict(zip(("ContentMD5",), md5_of(body, self.terms.now)))
            sums = {**checksum_of(sha256, with_checksum), **md5}
            drain = min(SLOW_LINE_SECONDS, max(READ_SECONDS, self.patience)) * (len(body) > MIB)
            with self.session.calling("upload", way, drain) as client:
                answer = getattr(client, method)(Body=PartBody(body, sha256), **told, **sums)
                return Receipt(etag_of(answer, sha256))

        return self.terms.with_checksum(method, send, wanted=checksum)

    def fingerprint(self, upload: Upload) -> str:
        """Hashes of the arguments of CreateMultipartUpload."""
        told = {**self.described(upload), "Metadata": {}}, upload.metadata
        if self.options.retain:  # the same wish is another date every night
            told[0]["ObjectLockRetainUntilDate"] = self.options.retain.text
        texts = (json.dumps(half, sort_keys=True).encode() for half in told)
        return "/".join(hashlib.sha256(text).hexdigest() for text in texts)

    def begin(self, upload: Upload) -> str:
        """CreateMultipartUpload. Returns an UploadHandle, as text."""
        self.no_overwrite.check_free(upload)
        mark = os.urandom(16).hex()[:UPLOAD_MARK_DIGITS]
        metadata = {**upload.metadata, UPLOAD_MARK: mark}

        def create(checksum: bool) -> UploadHandle:
            algorithm = {"ChecksumAlgorithm": "SHA256"} if checksum else {}
            return UploadHandle(self.create(upload, metadata, **algorithm), checksum, mark)

        return str(self.terms.with_checksum("begin", create))

    def create(self, upload: Upload, metadata: Mapping[str, str], **more: str) -> str:
        """S3's id of a new multipart upload."""
        told = {**self.described(upload), "Metadata": metadata, **more}
        with self.session.calling("start upload of", self.way(upload)) as client:
            upload_id = str(client.create_multipart_upload(**told).get("UploadId", ""))
            if not upload_id:
                raise RetryableError("read response", upload.key, "it has no upload ID")
            return upload_id

    def list_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """ListParts, to the end."""
        with self.session.calling("list parts of", self.url(key)) as client:
            pages = client.get_paginator("list_parts")
            return [
                StoredPart(
                    part["PartNumber"],
                    part["Size"],
                    bare_etag(part["ETag"]),
                    hex_of_checksum(part.get("ChecksumSHA256", "")),
                )
                for page in pages.paginate(**self.of_upload(key, upload_id))
                for part in page.get("Parts", [])
            ]

    def complete(self, upload: Upload, upload_id: str, parts: Sequence[StoredPart]) -> Receipt:
        """CompleteMultipartUpload, then a check of the object.

        If the answer is lost, the object decides, by the mark of this upload: the same bytes may be
        there from before, in another class. If the upload no longer exists, a digest will do.
        """

        def end(checksum: bool) -> str:
            named: list[Mapping[str, Any]] = [
                {"PartNumber": p.number, "ETag": p.etag, **checksum_of(p.sha256, checksum)}
                for p in parts
            ]
            return self.assemble(upload, upload_id, named)

        wanted = UploadHandle.read(upload_id).checksum
        try:
            with self.no_overwrite.heeded(upload):
                self.no_overwrite.check_free(upload)
                etag = self.terms.with_checksum("complete", end, wanted=wanted)
        except (UploadGoneError, RetryableError, KeptError) as error:
            by_digest = not isinstance(error, RetryableError)
            receipt = self.is_complete(upload, upload_id, parts, by_digest=by_digest)
            if receipt is None:
                raise
            with contextlib.suppress(TransferError):  # the same bytes may be there from before
                self.abort(upload.key, upload_id)
            return receipt
        self._check_stored(upload)
        return Receipt(etag, combined_sha256(parts))

    def assemble(self, upload: Upload, upload_id: str, parts: list[Mapping[str, Any]]) -> str:
        """CompleteMultipartUpload. Returns the ETag."""
        way, seconds = self.way(upload), COMPLETE_SECONDS
        with self.session.calling("complete", way, seconds) as client:
            answer = client.complete_multipart_upload(
                **self.of_upload(upload.key, upload_id), MultipartUpload={"Parts": parts}
            )
            return etag_of(answer)

    def _check_stored(self, upload: Upload) -> None:
        """Raises TransferError if the object is not as it should be.

        A refusal does not count: PutObject is permission enough.
        """
        try:
            stored = self.look(upload.key)
        except DeniedError:
            return
        way = "complete", self.way(upload)
        if stored is None and not self.endpoint:
            raise RetryableError(*way, "the store acknowledged it but does not have it")
        if stored is None:  # S3 is consistent; other stores may not be
            self.traffic.notes.append(NOT_FOUND_NOTE)
        elif stored.size != upload.size:
            raise TransferError(*way, "the store acknowledged it but has something else")
        elif not stored.has(upload.metadata):
            self.traffic.notes.append(DROPS_METADATA)

    def is_complete(
        self,
        upload: Upload,
        upload_id: str,
        parts: Sequence[StoredPart],
        *,
        by_digest: bool = True,
    ) -> Receipt | None:
        """By HeadObject: the mark that the upload was started with, or the digest of its bytes."""
        stored = self.look_if_allowed(upload.key)  # if not, it is sent again
        mark, sha256 = UploadHandle.read(upload_id).mark, combined_sha256(parts)
        digests = (sha256, combined_etag(parts)) if by_digest else ()
        if stored and stored.shows(upload, digests, mark):
            return Receipt(stored.etag, sha256)
        return None

    def abort(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload. An unknown upload is already gone."""
        calling = self.session.calling("abort upload of", self.url(key))
        with calling as client, contextlib.suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(**self.of_upload(key, upload_id))

    def renew(self, upload: Upload, etag: str) -> Receipt:
        """CopyObject onto itself, with everything stated again; by parts above 5 GiB."""
        return self.self_copy.run(upload, etag)


# Names known to be altered by some store, one kind for each.
ODD_IN_KEYS = {
    "backslash": r"\\",
    "control": r"[\0-\x1f\x7f]",
    "letter": r"[^\0-\x7f]",
    "edge": r"(?:(?<=/)|^)[. ]|[. ](?=/|$)",
}
is_odd = re.compile("|".join(ODD_IN_KEYS.values())).search


def odd_kinds(key: str) -> frozenset[str]:
    """The kinds of oddities in a key."""
    if not is_odd(key):
        return frozenset()
    return frozenset(kind for kind, odd in ODD_IN_KEYS.items() if re.search(odd, key))


def plain_parts(key: str) -> frozenset[str]:
    """What no store alters, with letters taken apart into base and accents, and without."""
    forms = key, unicodedata.normalize("NFD", key)
    return frozenset(re.sub(r"[^0-9A-Za-z]", "", form) for form in forms)


PRECONDITION_FAILED = 412
MAX_DENIED_COPIES = 3  # in a row, after which no more are requested
COPIED_PART_SIZE = GIB  # parts of an object that is copied onto itself
is_about_count = re.compile(
    "part.?number|too.?many.?parts|number of parts|maximum.*parts", re.IGNORECASE
).search
TOO_MANY_PARTS_HINT = "this store allows fewer parts: pass a larger --part-size"
NOT_FOUND_NOTE = (
    "large objects could not be checked: the store acknowledged them but does not find them"
)
CHECKSUM_MARK = "#sha256"  # S3's own ids do not contain this character
UPLOAD_MARK, UPLOAD_MARK_DIGITS = "pfu-upload", 16  # in metadata, tells one upload from another
HANDLE = re.compile(rf"(.*?)({CHECKSUM_MARK})?(?:#([0-9a-f]{{{UPLOAD_MARK_DIGITS}}}))?", re.DOTALL)


class UploadHandle(NamedTuple):
    """An upload id as kept in the ledger: S3's, and what the upload was started with."""

    upload_id: str
    checksum: bool  # its parts have one
    mark: str = ""  # in the metadata of the object that it makes

    def __str__(self) -> str:
        ends = CHECKSUM_MARK * self.checksum, f"#{self.mark}" if self.mark else ""
        return f"{self.upload_id}{''.join(ends)}"

    @classmethod
    def read(cls, text: str) -> UploadHandle:
        """The inverse of str()."""
        upload_id, checksum, mark = HANDLE.fullmatch(text).groups()  # type: ignore[union-attr]
        return cls(upload_id, bool(checksum), mark or "")


def checksum_of(sha256: str, wanted: bool) -> dict[str, str]:
    """The argument of boto3's calls, and the key of a part, for a digest."""
    return {"ChecksumSHA256": base64_of(sha256)} if wanted else {}


def md5_of(body: Body, terms: Terms) -> tuple[str, ...]:
    """Content-MD5, if the store has asked for it."""
    if not terms.md5:
        return ()
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, len(body), HASH_BYTES):
        piece = body[start : start + HASH_BYTES]
        digest.update(piece.read() if isinstance(piece, FileBody) else piece)
    return (base64_of(digest.hexdigest()),)


def may_concern_checksum(error: TransferError) -> bool:
    """Whether the request might succeed without its checksum. Some stores blame the signature."""
    if error.status in (FORBIDDEN, PRECONDITION_FAILED) or isinstance(error, FatalError):
        return error.code == "SignatureDoesNotMatch"
    return kind_of_error(error) is Kind.REFUSED


LISTED_PREFIXES = 16  # listed in parallel


def check_listed(page: Mapping[str, Any]) -> None:
    """Raises KeyError, or ValueError, for what a page of a listing lacks, or cannot be."""
    for stored in page.get("Contents", []):
        _, size = operator.itemgetter("Key", "Size")(stored)
        if not 0 <= size <= MAX_INTEGER:
            raise ValueError(f"an object of {size} bytes")
    if page.get("IsTruncated") and "NextContinuationToken" not in page:
        raise ValueError("no NextContinuationToken: it is that of ListObjects, not ListObjectsV2")


def listed_in(page: Mapping[str, Any]) -> list[Listed]:
    """The objects on a page of a listing."""
    return [
        Listed(stored["Key"], stored["Size"], bare_etag(stored.get("ETag")))
        for stored in page.get("Contents", [])
    ]


def hex_of_checksum(text: str) -> str:
    """``x-amz-checksum-sha256`` as kept in the ledger; with the number of parts, if any.

    Empty if it is none.
    """
    match = re.fullmatch(r"([0-9A-Za-z+/]{43}=)(-[1-9][0-9]{0,4})?", text)
    return base64.b64decode(match[1]).hex() + (match[2] or "") if match else ""


def digest_of(body: Any, beat: Callable[[], None]) -> str:
    """SHA-256 in hex of the contents of a stream."""
    digest = hashlib.sha256()
    while piece := body.read(HASH_BYTES):
        beat()
        digest.update(piece)
    return digest.hexdigest()


class PartBody(io.RawIOBase):
    """A body as botocore reads it: to hash it, then from its start again to send it."""

    def __init__(self, body: Body, sha256: str) -> None:
        super().__init__()
        self._body = body
        self._sha256 = sha256
        self._position = 0
        self.traffic: Traffic | None = None  # set while it is sent, not while it is hashed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Only the three modes of seek()."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._body)}
        self._position = base[whence] + offset
        self.traffic = None
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = self._body[self._position : self._position + len(buffer)]
        if self.traffic:
            time.sleep(self.traffic.pacer.delay(len(piece), time.monotonic()))
            self.traffic.arrived(self._sha256, self._position)
        buffer[: len(piece)] = piece.read() if isinstance(piece, FileBody) else piece
        self._position += len(piece)
        return len(piece)


def combined_etag(parts: Sequence[StoredPart]) -> str:
    """The ETag of an object in parts, if those of the parts are MD5 digests; else empty."""
    if not all(re.fullmatch("[0-9a-f]{32}", part.etag) for part in parts):
        return ""
    return combined("md5", [bytes.fromhex(part.etag) for part in parts])


def combined_sha256(parts: Iterable[StoredPart]) -> str:
    """The digest of an object in parts, as the ledger keeps it."""
    return combined("sha256", [bytes.fromhex(part.sha256) for part in parts])


def etag_of(answer: Mapping[str, Any], sha256: str = "") -> str:
    """The ETag of an acknowledgement, without quotes. Raises RetryableError if there is none.

    botocore takes an answer that is cut off within its headers for a success: half an ETag counts
    as none. A digest in the answer has to be right.
    """
    if sha256 and answer.get("ChecksumSHA256", base64_of(sha256)) != base64_of(sha256):
        raise RetryableError("read response", "", OTHER_DIGEST)
    etag = whole_etag(answer.get("ETag"))
    if not etag:
        raise RetryableError("read response", "", "it was cut off: no ETag")
    return etag


def whole_etag(told: str | None) -> str:
    """An ETag without quotes; empty if there is none, or half of one."""
    told = (told or "").removeprefix("W/")
    return told.strip('"') if told.startswith('"') == told.endswith('"') else ""


def parse_destination(text: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket[/prefix]``. Raises UsageError."""
    match = DESTINATION.fullmatch(text)
    if re.search("[\ud800-\udfff]", text):
        raise UsageError("read destination", text, "it is not UTF-8", "S3 keys are UTF-8")
    if not match or not ANY_BUCKET.fullmatch(match["bucket"]):
        cause = "no bucket name" if match else "it does not start with s3://"
        raise UsageError("read destination", text, cause, DESTINATION_HINT)
    bucket, prefix = match["bucket"], match["prefix"] or ""
    prefix = prefix.rstrip("/")
    return bucket, f"{prefix}/" if prefix else ""


def check_endpoint(url: str) -> None:
    """Raises UsageError, without repeating a possible password."""
    MASK.learn_url(url)
    if "@" in url:
        hint = "put credentials in the environment or the AWS configuration"
        raise UsageError("the endpoint URL contains a user name or password", hint=hint)
    match, hint = ENDPOINT.fullmatch(url), "see --endpoint-url"
    if not match:
        raise UsageError("the endpoint is not an http:// or https:// URL", hint=hint)
    if not 0 < int(match["port"] or 443) < 1 << 16:
        raise UsageError(f"the endpoint's port {match['port']} is not one: 1 to 65535", hint=hint)
    if len(urllib.parse.urlsplit(url).hostname or "") > 253:  # DNS has no longer ones
        raise UsageError("the endpoint's host has over 253 characters", hint=hint)


TLS_PROBE_SECONDS = 2.0


def learn_urls() -> None:
    """The passwords in all known URLs: proxies, endpoints, arguments."""
    names = [name for name in os.environ if re.search("proxy$|endpoint", name, re.IGNORECASE)]
    given = re.findall(r"https?://\S+", "\n".join(sys.argv))
    for url in (*map(os.environ.__getitem__, names), *given):
        MASK.learn_url(url)


PROXY = re.compile(
    r"(?:https?:)?(?://)?(?:[^/?#\s\[\]]*@)?(?:\[[0-9a-fA-F:.]+\]|[^/?#@:\s\[\]]+)"
    r"(?::(?P<port>\d+)?)?(?:[/?#][^@\s]*)?"
)
PROXY_URL_HINT = "use http://USER:PASSWORD@HOST:PORT, with %2F for / and %23 for # in the password"


def check_proxy(config: Any, url: str) -> None:
    """Raises UsageError if requests to ``url`` use an invalid proxy, and masks its URL."""
    proxy = proxy_of(config, url) or ""
    MASK.learn_url(proxy)
    match, scheme = PROXY.fullmatch(proxy), re.match(r"(?!https?:)([a-z0-9+.-]+)://", proxy, re.I)
    is_plain = urllib.parse.unquote(proxy).isascii()
    if not proxy or (match and not scheme and is_plain and int(match["port"] or 1) < 1 << 16):
        return
    name = f"{urllib.parse.urlsplit(url).scheme}_proxy"
    names = [known for known in (name, name.upper()) if os.environ.get(known)]
    cause = f"{scheme[1]} proxies are not supported" if scheme else "not a URL"
    raise UsageError("read", names[0] if names else "the proxy URL", cause, PROXY_URL_HINT)


def speaks_tls(host: str, port: int) -> bool:
    """Whether a handshake succeeds, whatever the certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), TLS_PROBE_SECONDS) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except (OSError, ValueError):
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether traffic to ``host`` stays on this machine, whatever its name."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def endpoint_is_configured() -> bool:
    """Whether boto3 may find an endpoint in the environment or in its configuration file."""
    if any(os.environ.get(name) for name in ENDPOINT_VARIABLES):
        return True
    path = os.path.expanduser(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
    try:
        return b"endpoint_url" in content_of(path)
    except OSError:
        return False


@functools.lru_cache(maxsize=64)
def header_names_of(metadata_names: tuple[str, ...], md5: bool = False) -> tuple[str, ...]:
    """The names of the headers that describe an object, in the order of their values."""
    names = ("content-type", *(f"x-amz-meta-{name}" for name in metadata_names))
    return (*names, "content-md5") if md5 else names


NOT_XML = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:0*(?:[0-8]|1[124-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));",
    re.IGNORECASE,
)


HALF_AN_ANSWER, HTML = "InternalError: the response was cut off", "HtmlAnswer: not an object store"
HTML_BODY = re.compile(rb"\s*<(?:!doctype\s+)?html", re.IGNORECASE)  # some stores call XML that
ERROR_BODY = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<Error[\s/>]")  # in a 200 that is none
TOO_LARGE = 413  # sent by proxies about a body, in HTML, and final


def has_checksum_settings() -> bool:
    """Whether this botocore has them; one before 1.36 adds an MD5 to a PUT without a checksum."""
    from botocore.config import Config

    return NO_MORE_CHECKSUMS.keys() <= getattr(Config, "OPTION_DEFAULTS", NO_MORE_CHECKSUMS).keys()


CONDITIONAL = "PutObject", "CompleteMultipartUpload"


def add_condition(params: dict[str, Any], **_: Any) -> None:
    """Have the store refuse to overwrite an object, with 412."""
    params["headers"]["If-None-Match"] = "*"


class Guard:
    """All that a boto3 client sends and receives passes through here.

    Requests are counted, signed with the store's time, and their bodies paced. An answer is read
    whole, within bounds and strictly before botocore sees it.
    """

    def __init__(self, client: Any, service: str, clock: StoreClock, traffic: Traffic) -> None:
        """Raises UsageError for an invalid proxy."""
        url = client.meta.endpoint_url
        check_proxy(client.meta.config, url)
        self._by_proxy = url.startswith("http:") and bool(proxy_of(client.meta.config, url))
        self._clock, self._traffic = clock, traffic
        self._session = session = client._endpoint.http_session
        make = session._get_ssl_context
        session._get_ssl_context = lambda: loaded_once(make())  # of a proxy
        loaded_once(session._manager.connection_pool_kw["ssl_context"])
        signer = client._request_signer
        signer.get_auth_instance = functools.partial(self._signing, signer.get_auth_instance)
        client.meta.events.register_last(f"before-send.{service}", self._send)
        client.meta.events.register_first(f"needs-retry.{service}", self._again)

    def _signing(self, make: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        auth = make(*arguments, **named)
        prepare: Any = getattr(auth, "_modify_request_before_signing", None)

        def prepare_in_time(request: Any) -> None:
            offset = request.context["clock_offset"] = self._clock.offset  # others may change it
            if offset:
                request.context["timestamp"] = timestamp_of(self._clock.at(offset))
            prepare(request)

        if prepare:
            auth._modify_request_before_signing = prepare_in_time
        return auth

    def _send(self, request: Any, event_name: str, **_: Any) -> Any:
        """botocore's handler of before-send: the answer.

        The body is sent immediately: a server that ignores ``Expect`` would cost a second a file.
        Some servers close a connection after an answer without saying so: of two requests in a row
        the second would always fail.
        """
        from botocore.exceptions import ConnectionClosedError

        request.headers.pop("Expect", None)
        self._traffic.add(requests=1)
        if isinstance(request.body, PartBody):
            request.body.traffic = self._traffic
        operation, streams = event_name.rpartition(".")[2], request.stream_output
        try:
            answer = sent_within_bounds(self._session.send, request)
        except ConnectionClosedError:
            if not operation.startswith(("Get", "Head", "List")):
                raise
            self._session.close()  # the idle connections: they may be dead too
            request.stream_output = streams
            answer = sent_within_bounds(self._session.send, request)
        if problem := self._problem(operation, request, answer, streams):
            code, message = problem.split(": ")
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            answer.status_code, answer._content = 500, text
        elif answer._content and answer.status_code < 300 and ERROR_BODY.match(answer._content):
            answer.status_code = 500
        self._traffic.add(throttled=int(answer.status_code in SLOW_DOWN_STATUSES))
        return answer

    def _problem(self, operation: str, request: Any, answer: Any, streams: bool) -> str:
        """What is said instead of an answer that is none; empty if it is one.

        An answer that is cut off within its headers has no body: it is not an empty listing. Nor is
        HTML an answer, whatever its status: a proxy, a portal, a console. Both may pass, unless the
        proxy that all requests go through refuses them.
        """
        status, content, told = answer.status_code, answer._content or b"", answer.headers.get
        is_good, is_html = status in (200, 206), HTML_BODY.match(content) is not None
        if request.method == "HEAD" and not (is_good and operation == "HeadObject"):
            is_empty = told("content-length", "0") == "0"
            is_html = "html" in told("content-type", "").lower() and not is_empty
        if status == 407 or (self._by_proxy and is_html and status == FORBIDDEN):
            return f"{PROXY_REFUSES}: the proxy says {status}"
        if is_html and status != TOO_LARGE:
            return HTML
        if is_good and streams:
            return "" if told("content-length") or told("transfer-encoding") else HALF_AN_ANSWER
        is_due = request.method in ("GET", "POST") or "x-amz-copy-source" in request.headers
        return HALF_AN_ANSWER if is_good and is_due and not content.strip() else ""

    def _again(
        self, response: Any, operation: Any, request_dict: Any, attempts: int, **_: Any
    ) -> float | None:
        """botocore's handler of needs-retry: 0 if another time is worth another try."""
        if response is None:
            return None
        (answer, told), context = response, request_dict["context"]
        if operation.name == "HeadBucket" and "x-amz-bucket-region" not in answer.headers:
            # botocore follows a redirect with HeadBucket; one of HeadBucket would never end
            context.setdefault("s3_redirect", {})["redirected"] = True
        offset = context.get("clock_offset")
        if offset is None:
            return None
        if 200 <= answer.status_code < 300:
            self._clock.took(offset)
        is_skewed = told.get("Error", {}).get("Code") == "RequestTimeTooSkewed"  # 400, of some
        status, date = answer.status_code, answer.headers.get("date")
        is_better = self._clock.corrects(FORBIDDEN if is_skewed else status, date, offset)
        return 0 if is_better and attempts <= 2 else None


def sent_within_bounds(send: Callable[[Any], Any], request: Any) -> Any:
    """The answer to a request, its content read; not that of an object, which is streamed."""
    from botocore.exceptions import ResponseStreamingError
    from botocore.response import StreamingBody

    streams, request.stream_output = request.stream_output, True
    answer, content = send(request), b""
    if streams and answer.status_code < 300:
        return answer
    for piece in StreamingBody(answer.raw, None).iter_chunks(MAX_LINE):
        content += piece
        if len(content) > MAX_SAFE_ANSWER:
            answer.raw.close()
            raise ResponseStreamingError(error="it is too long")
    # S3 repeats keys in its answers, even those with characters that XML cannot have.
    answer._content = NOT_XML.sub(b"?", content)
    return answer


def loaded_once(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have a context read each certificate file once only, before its first handshake.

    urllib3 has it read them for each new connection, while other threads use it, which OpenSSL
    does not allow: the program may crash (openssl#24480, boto/botocore#3164).
    """
    lock, done = threading.Lock(), []

    def once(load: Callable[..., None], *arguments: Any, **named: Any) -> None:
        with lock:
            if (load, arguments, named) not in done:
                load(*arguments, **named)
                done.append((load, arguments, named))

    for name in ("load_verify_locations", "load_cert_chain"):
        setattr(context, name, functools.partial(once, getattr(context, name)))
    return context


def check_signer(request_signer: Any, region_name: str | None = None, **_: Any) -> None:
    """botocore's handler of before-sign: check and mask credentials and region."""
    check_sent("the region", region_name or "", ("AWS_DEFAULT_REGION", "AWS_REGION"))
    found = request_signer._credentials
    if found is not None:
        with configured("renew credentials"):
            frozen = found.get_frozen_credentials()
        Credentials(frozen.access_key, frozen.secret_key, frozen.token).check()


class CredentialProcess:
    """A credential_process as started by botocore, but with a time limit, and no leftovers.

    Its children end with it, and all of them end with this process, even if that is killed: a
    shell next to it notices by a pipe that the other end is gone. On a terminal it may have to ask
    for something, so there it gets no session of its own, and its children are left alone.
    """

    GUARD = (  # device for its input, sign of what to kill, command
        'exec 3<&0 <"$0"; (read x <&3 || kill -9 "$1$$") >/dev/null 2>&1 & '
        'exec 3<&-; shift; exec "$@"'
    )

    def __init__(self, command: Sequence[str], **streams: Any) -> None:
        reading, self._lifeline = os.pipe()
        device, sign = ("/dev/tty", "") if has_terminal() else (os.devnull, "-")
        if os.path.exists(SHELL) and shutil.which(command[0]):
            command = [SHELL, "-c", self.GUARD, device, sign, *command]
        try:
            self._process = subprocess.Popen(
                command, stdin=reading, start_new_session=bool(sign), **streams
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(reading)
        self._victim = int(f"{sign}{self._process.pid}")

    @property
    def returncode(self) -> int:
        """Of the process, once it has ended."""
        return self._process.returncode

    def communicate(self) -> tuple[bytes, bytes]:
        """Its output on both streams. Raises FatalError."""
        deadline = time.monotonic() + CREDENTIAL_PROCESS_SECONDS
        try:
            with self._process:
                try:
                    told = self._read(deadline)
                    self._process.wait(max(0.0, deadline - time.monotonic()))
                finally:
                    with contextlib.suppress(OSError):
                        os.kill(self._victim, signal.SIGKILL)
        except subprocess.TimeoutExpired as error:
            cause = f"it did not finish within {CREDENTIAL_PROCESS_SECONDS:.0f} s"
            raise FatalError("run credential_process", cause=cause) from error
        finally:
            with contextlib.suppress(OSError):  # it ended with the others
                os.write(self._lifeline, b"\n")
            os.close(self._lifeline)
        return told

    def _read(self, deadline: float) -> tuple[bytes, bytes]:
        told: dict[Any, bytes] = {self._process.stdout: b"", self._process.stderr: b""}
        with selectors.DefaultSelector() as selector:
            for pipe in told:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired("credential_process", 0)
                for key, _ in ready:
                    piece = os.read(key.fd, MAX_LINE)
                    told[key.fileobj] += piece
                    if not piece:
                        selector.unregister(key.fileobj)
                if sum(map(len, told.values())) > MAX_LINE:
                    raise FatalError("run credential_process", cause="it printed too much")
        out, err = told.values()
        return out, err


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    try:
        open("/dev/tty", "rb").close()
    except OSError:
        return False
    return True


def make_patient(session: Any) -> None:
    """Give a container's credential service some time, and ask for an MFA code once.

    A credential_process gets a limit. A code works once, and is only asked for on a terminal.
    """
    from botocore.credentials import ProcessProvider
    from botocore.httpsession import URLLib3Session

    asked: list[str] = []

    def ask(prompt: str) -> str:
        import getpass

        if asked or not has_terminal():  # else it is read from standard input, and echoed
            raise EOFError
        asked.append(prompt)
        return getpass.getpass(prompt)

    chain = session._session.get_component("credential_provider")
    for provider in chain.providers:
        if hasattr(provider, "_prompter"):
            provider._prompter = ask
        if hasattr(provider, "_popen"):
            provider._popen = CredentialProcess
        if builder := getattr(provider, "_profile_provider_builder", None):
            builder._create_process_provider = functools.partial(
                ProcessProvider,
                load_config=lambda: session._session.full_config,
                popen=CredentialProcess,
            )
        fetcher: Any = getattr(provider, "_fetcher", None)
        if hasattr(fetcher, "RETRY_ATTEMPTS"):  # a container's
            fetcher._session = patient = URLLib3Session(timeout=METADATA_SECONDS)
            patient.send = functools.partial(sent_within_bounds, patient.send)


@contextlib.contextmanager
def configured(operation: str, subject: str = "") -> Iterator[None]:
    """Raises FatalError, which repeats nothing, for what an odd credential_process prints."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FatalError(operation, subject, type(error).__name__, CONFIGURATION_HINT) from error


@contextlib.contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """Raise errors of boto3 as TransferError, or UsageError for lack of credentials."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        code = shortened(str(details.get("Code") or ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = code or str(status)
        cause = f"{said}: {details.get('Message') or ''}".rstrip(": ")
        hint = REDIRECT_HINT if status in REDIRECTS else ERROR_HINTS.get(said, "")
        problem = classify(code, status)(operation, subject, cause, hint)
        problem.code, problem.status = code, status
        raise problem from error
    except ResponseParserError as error:
        hint = "is --endpoint-url an S3 server?"
        raise RetryableError(operation, subject, "not an S3 response", hint) from error
    except (BotoCoreError, Boto3Error, HTTPError) as error:
        raise client_error(operation, subject, error) from error
    except (EOFError, io.UnsupportedOperation) as error:
        cause = "the profile needs an MFA code, which can be entered once, on a terminal"
        raise FatalError(operation, subject, cause) from error
    except OSError as error:  # such as a missing credential_process
        cause = f"{error.filename}: {os_cause(error)}" if error.filename else os_cause(error)
        raise FatalError(operation, subject, cause, CONFIGURATION_HINT) from error
    except KeyError as error:
        raise OddAnswerError(operation, subject, f"the response lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        cause = f"the response makes no sense: {error}"
        raise OddAnswerError(operation, subject, cause) from error


def client_error(operation: str, subject: str, error: Exception) -> TransferError:
    """For botocore's errors before or without an answer."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return FatalError(operation, subject, str(error), NO_CREDENTIALS_HINT)
    if isinstance(error, (exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError)):
        return RetryableError(operation, subject, str(error), NO_CREDENTIALS_HINT)
    if isinstance(error, exceptions.SSLError) and (hint := tls_hint(str(error))):
        problem = FatalError(operation, subject, str(error), hint)
        problem.code = "TLS"
        return problem
    inner = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, exceptions.ProxyConnectionError):
        return proxy_error(operation, subject, str(inner))
    passing = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError
    if isinstance(error, (*passing, HTTPError)):  # urllib3's own: TLS that breaks within a body
        lost = RetryableError(operation, subject, str(error), network_hint(error))
        lost.dropped = not isinstance(error, exceptions.EndpointConnectionError)
        return lost
    return TransferError(operation, subject, str(error))


def network_hint(error: Exception) -> str:
    """What to check if the store cannot be reached, or answers in no way that it could."""
    url = str(getattr(error, "kwargs", {}).get("endpoint_url") or "")
    return PROXY_HINT if proxy_of(None, url) else "check the network and the endpoint"


def proxy_error(operation: str, subject: str, cause: str) -> TransferError:
    """What urllib3 says of a proxy: it is away, or it has said no."""
    said = re.search(r"Tunnel connection failed: ((\d+)[^'\"]*)", cause)
    if said and not is_passing(int(said[2])):
        return refused_by_proxy(operation, subject, f"the proxy says {said[1].strip()}")
    cause = f"the proxy says {said[1].strip()}" if said else "cannot connect to the proxy"
    away = RetryableError(operation, subject, cause, PROXY_HINT)
    away.dropped = said is not None
    return away


def refused_by_proxy(operation: str, subject: str, cause: str) -> FatalError:
    """A proxy lets nothing through: it is not the store that speaks."""
    problem = FatalError(operation, subject, cause, PROXY_HINT)
    problem.code = PROXY_REFUSES
    return problem


TLS_HINTS = {  # what OpenSSL, Python or urllib3 say -> what to do; the first that is found
    "WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER_FAILURE|record layer": (
        "this port does not speak TLS: should the endpoint start with http://?"
    ),
    r"\[Errno (?:2|13|20|21)\]|NO_CERTIFICATE_OR_CRL_FOUND": (
        "check AWS_CA_BUNDLE, or ca_bundle in the AWS configuration: a file in PEM format"
    ),
    "alert (?:certificate required|bad certificate)": (
        "it asks for a client certificate, which pfu cannot present"
    ),
    "certificate (?:has expired|is not yet valid)": (
        "check the store's certificate and this machine's clock"
    ),
    "hostname|mismatch": "the certificate is for another host: use its name in the endpoint",
    "certificate": "the certificate is not trusted; set AWS_CA_BUNDLE to your CA file",
}


def tls_hint(problem: str) -> str:
    """What to do about a handshake that would fail again; empty if it might not."""
    found = (hint for said, hint in TLS_HINTS.items() if re.search(said, problem, re.IGNORECASE))
    return next(found, "")


PRIVACY_SECONDS = 1.0  # in which a passing refusal to tell is asked again


class Privacy(NamedTuple):
    """Whether strangers can read a bucket: why they can, and what could not be determined."""

    public: str = ""
    unknown: str = ""
    unblocked: bool = False  # nothing keeps it from being made public


def privacy(client: Any, bucket: str, owner: Mapping[str, str]) -> Privacy:
    """Ask for public access blocks, policy status, ownership and ACL, until it is clear."""

    def ask(method: str, *path: str) -> tuple[Any, str]:
        """What the answer has at that path, None for no such setting; and why it is unknown."""
        operation = client.meta.method_to_api_mapping[method]

        def once() -> Any:
            with translated("ask for", operation):
                return getattr(client, method)(Bucket=bucket, **owner)

        try:
            return functools.reduce(operator.getitem, path, patiently(once, PRIVACY_SECONDS)), ""
        except KeyError as error:
            return None, f"the response lacks {error}"
        except TransferError as error:
            if error.code.startswith("NoSuch") or error.code == "OwnershipControlsNotFoundError":
                return None, ""
            said = f"{operation} returned {error.code or error.status}"
            return None, said if error.status else error.cause

    blocks, unknown = ask("get_public_access_block", "PublicAccessBlockConfiguration")
    unknowns, unblocked = {unknown: None}, not unknown and not any((blocks or {}).values())
    if not (blocks and blocks.get("RestrictPublicBuckets")):
        is_public, unknown = ask("get_bucket_policy_status", "PolicyStatus", "IsPublic")
        unknowns[unknown] = None
        if is_public:
            return Privacy("its policy is public")
    if not (blocks and blocks.get("IgnorePublicAcls")):
        rules, _ = ask("get_bucket_ownership_controls", "OwnershipControls", "Rules")
        if not any(rule.get("ObjectOwnership") == "BucketOwnerEnforced" for rule in rules or ()):
            grants, unknown = ask("get_bucket_acl", "Grants")
            unknowns[unknown] = None
            if any(
                grant.get("Grantee", {}).get("URI") in PUBLIC_GRANTEES for grant in grants or ()
            ):
                return Privacy("its ACL is public")
    return Privacy("", ", ".join(filter(None, unknowns)), unblocked)


# ======================================================================================
# Engines: pages in, outcomes out
# ======================================================================================
#
# A task carries itself out: it sends bytes, or asks the store for something. A Transfer has it try
# again, for as long as the failure policy says. A large file is several tasks: one begins its
# upload, one sends each part, one completes it; the batch run decides what follows from an outcome.
#
# A PageRunner runs on an event loop, with as many slots as requests may be in flight; each takes
# one task after another, without a barrier between pages. Mode concurrent is one runner, in the
# thread that also writes the ledger: two would fight over the GIL at every system call. Mode
# parallel is one runner in each of several processes. Each is a ProcessPoolExecutor of one: if a
# worker dies, that breaks only its own pool, and the Engine, which knows its tasks, redoes them.
# They read each other's figures in shared memory: so one limiter serves all, and a stop is seen.


class Begun(NamedTuple):
    """A multipart upload has begun, or can be resumed."""

    id: str
    upload_id: str
    fingerprint: str
    part_size: int
    parts: tuple[StoredPart, ...]  # those that need not be sent again
    snapshot: Facts
    racy: int

    @property
    def part_count(self) -> int:
        """How many parts the file has; an empty one has one, which is empty."""
        return max(1, -(-self.snapshot.file_size // self.part_size))


class PartDone(NamedTuple):
    """A part is in the store."""

    id: str
    part: StoredPart
    fast: bool  # it went through the fast lane


class Answered(NamedTuple):
    """A question to the store has its answer."""

    id: str
    answer: str = ""  # of Uploader.kept_as(), or of a RemoveTask


AnyOutcome = Union[Outcome, Begun, PartDone, Answered]


class Report(NamedTuple):
    """A runner's answer to a page: what became of tasks of this page and earlier ones."""

    outcomes: list[AnyOutcome]
    has_room: bool  # for another page
    fast_lane_off: str | None = None  # why it is off, or was given up
    notes: tuple[str, ...] = ()  # for the user
    trouble: str = ""  # the last passing answer
    wants_shared: bool = False  # see Traffic


@dataclass(frozen=True)
class EngineOptions:
    """How an engine works; the same in every process."""

    threshold: int = DEFAULT_THRESHOLD  # bytes; files above it go up in parts
    part_size: int = DEFAULT_PART_SIZE  # bytes per part, at least
    is_part_size_given: bool = False  # by the user: unfinished uploads with another are not resumed
    memory: int = DEFAULT_MEMORY  # bytes of bodies in flight in one process
    root: Root | None = None  # None: files are opened by their paths, wherever they lead
    content_types: tuple[tuple[Glob, str], ...] = ()  # the last one that matches decides
    nice: int = 19
    renew_by_upload: bool = False  # send the file if its metadata cannot be renewed otherwise
    ignore_ctime: bool = False  # of a file being read: it changes by itself here
    ignore_inode: bool = False
    removes: bool = False  # files here that the store has
    remove_linked_files: bool = False  # as well as those with one hard link
    threads: int = THREADS  # at most, per process

    def content_type(self, file: Task) -> str:
        """The media type of a file: by these rules, else by its extension."""
        if stat.S_ISDIR(int(file.permissions or "0", 8)):
            return DIRECTORY_TYPE
        if self.content_types and self.root:
            path = file.path[len(os.path.join(self.root.path, "")) :]
            for glob, kind in reversed(self.content_types):
                if glob.matches(path, is_directory=False):
                    return kind
        return content_type(file.path)


class Gauges:
    """Figures that one runner and the parent share, without locks: each has one writer."""

    # probes: how many requests at a time while the store is away, else 0. others: send only files
    # on trial. all_taken: by all runners. left: files of the run not done yet
    FROM_PARENT = ("stopping", "limit", "cut_at", "rate", "probes", "others", "all_taken", "left")
    FROM_RUNNER = (  # all but the first only grow
        *("in_flight", "taken", "moved", "answered", "passing"),
        *("files", "bytes", "requests", "retries", "throttled", "fast_files", "beats"),
        *("work", "completions", "busy", "drops"),
    )
    INDEX: ClassVar[Mapping[str, int]] = {
        name: index for index, name in enumerate((*FROM_PARENT, *FROM_RUNNER))
    }

    def __init__(self, *, is_shared: bool = False) -> None:
        """``is_shared``: the runner is in another process."""
        self._values: Any = array.array("d", [0.0] * len(self.INDEX))
        if is_shared:
            self._values = multiprocessing.RawArray("d", len(self.INDEX))

    def __getitem__(self, name: str) -> float:
        return float(self._values[self.INDEX[name]])

    def __setitem__(self, name: str, value: float) -> None:
        self._values[self.INDEX[name]] = value


class ByteBudget:
    """Limits the bytes in memory. First come, first served; a single body is always let in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._spare: list[bytearray] = []

    def take(self, size: int) -> bool:
        """Take ``size`` bytes, if they fit now and nobody is waiting."""
        if self._queue or not self._fits(size):
            return False
        self._grant(size)
        return True

    def _grant(self, size: int) -> None:
        """Spare buffers count as memory too, except the one that the ``size`` bytes will use."""
        self._used += size
        while self._spare:
            last = len(self._spare[-1])
            kept = sum(map(len, self._spare)) - (last if last >= size else 0)
            if self._used + kept <= self._limit:
                break
            self._spare.pop(0)

    def buffer(self, size: int) -> bytearray:
        """A buffer of at least ``size`` bytes, a spare one if possible. Take the bytes first."""
        if self._spare and len(self._spare[-1]) >= size:
            return self._spare.pop()
        self._spare.clear()
        return bytearray(size)

    def keep(self, buffer: bytearray) -> None:
        """Take a buffer back, to be reused as long as there is room for it."""
        self._spare.append(buffer)

    async def wait_for(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and take them."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        await turn

    def give_back(self, size: int) -> None:
        """Give ``size`` bytes back."""
        self._used -= size
        while self._queue and self._fits(self._queue[0][0]):
            waiting, turn = self._queue.popleft()
            self._grant(waiting)
            if not turn.done():
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._limit


class ReadingPlace:
    """Decides where files are read: on the event loop, or in threads once that stalls it.

    A file in the page cache is read in 10 us, and a thread would cost 40 us more; a file on a cold
    disk or on NFS may take 5 ms, in which the loop could have sent hundreds. So reads begin on the
    loop, move to threads once they average over SLOW_READ, and are tried on the loop again after a
    number of reads that doubles each time they are still slow.
    """

    def __init__(self) -> None:
        self._average = 0.0
        self.in_threads = 0  # this many of the next files
        self._pause = INLINE_PROBE
        self._on_loop = 0  # reads there, since the last in threads

    def is_loop(self, size: int) -> bool:
        """Whether to read the next file, of ``size`` bytes, on the loop."""
        if size > INLINE_BYTES:
            return False
        if self.in_threads:
            self.in_threads -= 1
        return not self.in_threads

    def took(self, seconds: float) -> None:
        """Record how long a read on the loop took."""
        self._average += READ_WEIGHT * (min(seconds, LONGEST_READ) - self._average)
        self._on_loop += 1
        if self._average > SLOW_READ:
            self._average = 0.6 * SLOW_READ  # one more slow read is enough
            self.in_threads, self._on_loop = self._pause, 0
            self._pause *= 2
        elif self._on_loop >= self._pause:
            self._pause = INLINE_PROBE


class Threads(ThreadPoolExecutor):
    """A pool that makes do with the threads it has if the system grants no more.

    If it grants none, submit() raises FatalError.
    """

    def submit(self, function: Any, /, *arguments: Any, **more: Any) -> Future[Any]:
        """What would end the program, as sys.exit() in a provider, is an error like others."""
        return super().submit(self._contained, function, *arguments, **more)

    @staticmethod
    def _contained(function: Callable[..., T], *arguments: Any, **more: Any) -> T:
        try:
            return function(*arguments, **more)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(repr(error)) from error

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                hint = "raise the process limit: ulimit -u"
                raise FatalError("start thread", "", str(error), hint) from error


class PageRunner:
    """Uploads pages on an event loop of its own."""

    def __init__(self, uploader: Uploader, options: EngineOptions, gauges: Gauges) -> None:
        self.uploader = uploader
        self.options = options
        self.gauges = gauges
        self.tree = Tree(None)
        self.threads = Threads(options.threads, thread_name_prefix="pfu-thread")
        self.in_flight = 0  # requests
        self._files = self._bytes = 0
        self.budget = ByteBudget(options.memory)
        self._reading = ReadingPlace()
        self._outcomes: list[AnyOutcome] = []
        self._refused: dict[str, Outcome] = {}  # outcome of a refused part, by upload id
        self._is_awaited = False  # an outcome has a follow-up, or the parent decides what has
        self._waiting_bytes = 0
        self._busy = 0
        self._limit = 0
        self._is_calm = False  # no file is to be held back
        self._slots: set[asyncio.Task[None]] = set()
        self._reporting: asyncio.Future[None] | None = None
        self._more = True
        self._watching: asyncio.Task[None] | None = None
        self._trouble = ""
        self._early_reports = EARLY_REPORTS
        self._long = 0  # requests in progress that may take minutes

    # -- what an engine uses

    async def exchange(self, page: Sequence[AnyTask], more: bool, shared: Any = None) -> Report:
        """Take in a page; report when there is room for another one, or after REPORT_SECONDS.

        A step of a large file is reported at once: it has a follow-up, and what is not in the
        ledger is lost if the program is killed. ``more``: another page is ready. If not, report
        when all is done.
        """
        if shared is not None:
            self.uploader.adopt(shared)
        if self._watching is None:
            await self._open()
        self.gate.unreported = 0
        for task in page:
            self._waiting_bytes += task.size
            if self.gauges["others"] or is_urgent(task):  # ahead of the queue
                transfer = self._take(task)
                transfer.is_chosen = True
                self._start(self._do(transfer))
            else:
                self._waiting.put_nowait(task)
        self._more = more
        self._look_at_gauges()
        if not self._is_reportable():
            self._reporting = self._loop.create_future()
            self._early_reports -= 1  # the sooner the store is proven, the better
            is_early = self._early_reports > 0
            seconds = REPORT_SECONDS if more and not is_early else IDLE_REPORT_SECONDS
            timer = self._loop.call_later(seconds, self._report)
            await self._reporting
            timer.cancel()
        outcomes, self._outcomes = self._outcomes, []
        self._is_awaited = False
        self._show_gauges()
        lane_off, traffic = self.uploader.fast_lane_off, self.uploader.traffic
        notes = tuple(traffic.notes.popleft() for _ in range(len(traffic.notes)))
        wants, traffic.wants_shared = traffic.wants_shared, False
        return Report(outcomes, self._has_room(), lane_off, notes, self._trouble, wants)

    async def close(self) -> None:
        """Close connections and threads; what is in flight is abandoned."""
        self._limit = -1
        tasks = {*self._slots, *([self._watching] if self._watching else [])}
        for _ in range(CANCEL_ATTEMPTS):
            for task in tasks:
                task.cancel()
            if tasks:
                tasks = (await asyncio.wait(tasks, timeout=1))[1]
        await self.uploader.leave_loop()
        self.threads.shutdown(wait=False)
        self.uploader.close()
        if not self._busy:  # else an abandoned thread may still read there
            self.tree.close()

    # -- within

    async def _open(self) -> None:
        self.tree = Tree(self.options.root)
        self.tree.settles = self.options.removes
        self._loop = asyncio.get_running_loop()
        # for names and credentials: what waits in the other threads may wait for these
        self._loop.set_default_executor(Threads(2, thread_name_prefix="pfu-name"))
        self.gate = Gate(self.gauges)
        self._waiting: asyncio.Queue[AnyTask] = asyncio.Queue()
        self.uploader.open(self.options.threads)
        await self.uploader.enter_loop()
        self._watching = asyncio.ensure_future(self._watch())

    def _is_reportable(self) -> bool:
        if self._is_awaited:
            return True
        return self._has_room() if self._more else self._waiting.qsize() + self._busy == 0

    def _has_room(self) -> bool:
        return self._waiting.qsize() < PAGE_ROWS and self._waiting_bytes < PAGE_BYTES

    def _report(self) -> None:
        if self._reporting is not None and not self._reporting.done():
            self._reporting.set_result(None)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._show_gauges()
            self._look_at_gauges()

    def _show_gauges(self) -> None:
        traffic, meter, gauges = self.uploader.traffic, self.uploader.traffic.meter, self.gauges
        traffic.beats += self._long > 0
        gauges["files"], gauges["bytes"] = self._files, self._bytes
        gauges["in_flight"] = self.in_flight
        gauges["requests"] = traffic.requests + traffic.fast_requests
        gauges["beats"] = traffic.beats + traffic.pacer.turns
        gauges["answered"], gauges["taken"] = self.gate.answered, self.gate.taken
        for name in ("retries", "throttled", "fast_files", "moved"):
            gauges[name] = getattr(traffic, name)
        for name in Tally._fields:
            gauges[name] = getattr(meter, name)

    def _look_at_gauges(self) -> None:
        """Do as the parent says: limits, rate, stop."""
        self.uploader.traffic.meter.cut_at = self.gauges["cut_at"]
        pacer = self.uploader.traffic.pacer
        if pacer.rate != self.gauges["rate"]:
            pacer.turn_to(self.gauges["rate"], time.monotonic())
        self._limit = int(self.gauges["limit"])
        is_kept_back = self.gauges["stopping"] or self.gauges["probes"] or self.gauges["others"]
        self._is_calm = not is_kept_back and not self.gauges["rate"]
        while len(self._slots) < self._limit:
            self._start(self._slot())
        self.gate.look()
        if self.gauges["stopping"] or self.gauges["others"]:
            self._release_waiting()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        slot = asyncio.ensure_future(work)
        self._slots.add(slot)
        slot.add_done_callback(self._slots.discard)

    def _release_waiting(self) -> None:
        while not self._waiting.empty():
            task = self._waiting.get_nowait()
            self._waiting_bytes -= task.size
            self._outcomes.append(Outcome(task.id, OutcomeKind.RELEASED))
        if self._outcomes or self.gauges["stopping"]:
            self._report()

    async def _slot(self) -> None:
        while len(self._slots) <= self._limit:
            transfer = self._take(await self._waiting.get())
            is_plain = self.is_plain(transfer) and not self.gate.is_closed
            left = await Chain(self).run(transfer) if is_plain else transfer
            if left:
                await self._do(left)

    def _take(self, task: AnyTask) -> Transfer:
        self._busy += 1
        self._waiting_bytes -= task.size
        return Transfer(task, self)

    def next_transfer(self) -> Transfer | None:
        """The next one for a slot; None if nothing is waiting or the slot should end."""
        if self._waiting.empty() or len(self._slots) > self._limit:
            return None
        return self._take(self._waiting.get_nowait())

    def is_plain(self, transfer: Transfer) -> bool:
        """Whether a Chain may take it."""
        task = transfer.task
        is_new = type(task) is Task and task.stored is None and task.size <= INLINE_BYTES
        return is_new and self._is_calm and not self._reading.in_threads

    async def _do(self, transfer: Transfer) -> None:
        task = transfer.task
        for _ in range(LOOK_WAITS if is_urgent(task) else 0):  # a slot ends to make room
            if self.in_flight < self._limit:
                break
            await asyncio.sleep(LOOK_SECONDS)
        size = transfer.memory
        if not self.budget.take(size):
            await self.budget.wait_for(size)
        upload_id = task.upload_id if isinstance(task, PartTask) else ""
        try:
            refused = self._refused.get(upload_id)  # another part was; this one would be too
            outcome = refused._replace(id=task.id) if refused else await transfer.run()
        except MemoryError:
            outcome = Outcome(task.id, OutcomeKind.FATAL, OUT_OF_MEMORY, 1)
        except Exception as error:  # noqa: BLE001  no file may end a slot
            outcome = Outcome(task.id, OutcomeKind.FAILED, internal_error(error), 1)
        self.budget.give_back(size)
        if isinstance(outcome, Outcome) and outcome.kind is OutcomeKind.REFUSED:
            if upload_id:
                self._refused[upload_id] = outcome
            self.gate.answered += 1
            self.gate.unreported += 1
        self._is_awaited |= type(task) is not Task or self.gate.is_closed
        self.note(outcome)

    def note(self, outcome: AnyOutcome) -> None:
        """One task is done."""
        self._busy -= 1
        self._files += type(outcome) is Outcome and outcome.kind in SENT_WHOLE
        self._outcomes.append(outcome)
        if self._reporting is not None and self._is_reportable():
            self._report()

    # -- what a Transfer needs

    async def read(self, function: Callable[[], T], size: int) -> T:
        """Call a function that reads ``size`` bytes, here or in a thread."""
        if not self._reading.is_loop(size):
            return await self.in_thread(function)
        return self.read_here(function)

    def read_here(self, function: Callable[[], T]) -> T:
        """Call a function that reads, and time it."""
        began = time.monotonic()
        try:
            return function()
        finally:
            self._reading.took(time.monotonic() - began)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks."""
        return await self._loop.run_in_executor(self.threads, function)

    async def ask(self, function: Callable[[], T], *, is_long: bool = False) -> T:
        """Call, in a thread, a function that waits for the store; for minutes if ``is_long``."""
        self._long += is_long
        try:
            return await self._answered(self.in_thread(function))
        finally:
            self._long -= is_long

    async def send(
        self, acknowledged: Awaitable[Receipt], size: int, posted: Posted | None = None
    ) -> Receipt:
        """Await the receipt for ``size`` bytes; ``posted`` was a first try that failed."""
        began = posted.began if posted else time.monotonic()
        try:
            receipt = await self._answered(acknowledged)
        except RetryableError as error:
            if error.dropped:
                self.uploader.traffic.meter.dropped(began, time.monotonic())
            raise
        if receipt is None:
            raise TransferError("upload", cause="the provider returned no Receipt")
        self.took(size, began)
        return receipt

    def took(self, size: int, began: float) -> None:
        """The store has a file or part that it did not have."""
        self.uploader.traffic.meter.completed(size, began, time.monotonic())
        self.gate.taken += 1
        self._bytes += size

    async def _answered(self, answer: Awaitable[T]) -> T:
        """Await an answer. A provider's own exceptions become TransferError: the file fails."""
        self.in_flight += 1
        try:
            told = await answer
        except (PfuError, MemoryError):
            raise
        except Exception as error:
            if type(self.uploader).__module__ == __name__:
                raise
            cause = f"{type(error).__name__}: {error}"
            raise TransferError("upload", cause=cause) from error
        finally:
            self.in_flight -= 1
        self.gate.answered += 1
        return told

    def hear(self, error: RetryableError) -> None:
        """One more passing answer."""
        self.gauges["passing"] += 1
        self._trouble = error.told(error.operation)


class Gate:
    """Decides who may send while the store is away, or refuses one file after another.

    Away: a few, as probes. Refusing: only files that the parent has chosen; a runner that has seen
    ROW refusals closes its gate until it has reported them.
    """

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self._probing: set[Transfer] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._stopped = asyncio.Event()
        self.unreported = 0  # refusals
        self.answered = self.taken = 0  # requests answered; files and parts stored
        self.is_condemned = False  # credentials or bucket are no good
        self._asking = asyncio.Lock()
        self._votes: dict[str, Counter[str]] = {}  # tasks that got a code of this kind
        self._good_until = 0.0
        self._all_taken = 0.0

    @property
    def is_away(self) -> bool:
        return self._gauges["probes"] > 0

    @property
    def is_closed(self) -> bool:
        """Whether only chosen files may send."""
        return self.unreported >= ROW or self._gauges["others"] > 0

    def look(self) -> None:
        """Act on the gauges; called many times a second."""
        if self._gauges["all_taken"] != self._all_taken:
            self._all_taken = self._gauges["all_taken"]
            self._votes.clear()
        if self._gauges["stopping"]:
            self._stopped.set()
        room = len(self._waiting)
        if self.is_away and not self._stopped.is_set():
            room = min(room, int(self._gauges["probes"]) - len(self._probing))
        for _ in range(room):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    async def enter(self, transfer: Transfer) -> bool:
        """Wait for a turn to send. False: the parent wants the task back."""
        while not (self._gauges["stopping"] or self.is_condemned):
            is_full = self.is_away and len(self._probing - {transfer}) >= self._gauges["probes"]
            if not is_full and (transfer.is_chosen or not self.is_closed):
                if self.is_away:
                    self._probing.add(transfer)
                return True
            self._probing.discard(transfer)
            if self._gauges["others"]:
                break
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        return False

    def leave(self, transfer: Transfer) -> None:
        """It has its final answer."""
        self._probing.discard(transfer)

    async def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, or until the run stops."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def condemns(self, task_id: str, code: str, ask: Callable[[], Awaitable[bool]]) -> bool:
        """Whether a code about credentials or bucket applies to all files.

        The store is asked, once enough have got this code with nothing taken since.
        """
        async with self._asking:  # the others wait for the answer
            votes = self._votes.setdefault(code, Counter())
            votes[task_id] += 1
            at_once = min(self._gauges["left"] or FATAL_KEYS, max(self._gauges["limit"], 1))
            is_enough = len(votes) >= min(FATAL_KEYS, at_once) and sum(votes.values()) >= FATAL_KEYS
            if is_enough and not self.is_condemned and time.monotonic() >= self._good_until:
                self.is_condemned = await ask()
                self._good_until = time.monotonic() + FATAL_SECONDS
            return self.is_condemned

    def is_common(self, code: str) -> bool:
        """Whether it is all that the store says, which cannot be one bad node of many."""
        return sum(self._votes.get(code, {}).values()) >= ROW


class Transfer:
    """Has one task carried out, with retries where the policy says so.

    Tasks are of two kinds: some send() bytes, the others ask() the store, in a thread.
    """

    is_chosen = False  # it goes ahead of the queue
    begun: tuple[Upload, Posted | None] | None = None  # by a Chain
    attempts = 0
    readings = 0  # that found it changed
    kind = OutcomeKind.UPLOADED  # or RENEWED, if its bytes are known to be the same
    sent = False  # the store may have something that the ledger does not know of
    own = 0  # failed tries while others were taken
    others = -1.0  # how many had been taken at the last try

    def __init__(self, task: AnyTask, runner: PageRunner) -> None:
        self.task = task
        self.runner, self.uploader = runner, runner.uploader
        self.options = runner.options
        self.began = self.own_since = time.monotonic()

    @property
    def memory(self) -> int:
        """Bytes that it will hold in memory."""
        size = self.task.size
        if isinstance(self.task, PartTask):
            return size if size <= self.options.memory else HASH_BYTES
        return min(size, self.options.threshold)

    async def run(self) -> AnyOutcome:
        """Never raises for a problem of this task alone."""
        gate: Gate = self.runner.gate
        try:
            while self.begun or await gate.enter(self):
                self.attempts += 1
                try:
                    return await self._try()
                except PfuError as error:
                    outcome = await self._weigh(error)
                if outcome:
                    return outcome
            return Outcome(self.task.id, OutcomeKind.RELEASED, "", self.attempts, sent=self.sent)
        finally:
            gate.leave(self)

    async def _try(self) -> AnyOutcome:
        """A store may send white space while it completes an object: that has a time limit."""
        task = self.task
        if isinstance(task, (Task, PartTask)):
            return await task.send(self)
        is_long = isinstance(task, CompleteTask)
        asking = self.runner.ask(functools.partial(task.ask, self), is_long=is_long)
        try:
            outcome = await asyncio.wait_for(asking, COMPLETE_SECONDS if is_long else None)
        except asyncio.TimeoutError as error:
            cause = f"no answer in {COMPLETE_SECONDS} s"
            raise RetryableError("complete", file_of(task).path, cause) from error
        if isinstance(outcome, Outcome) and outcome.kind in SENT_WHOLE:
            self.runner.gate.taken += 1
        return outcome

    async def _weigh(self, error: PfuError) -> Outcome | None:
        """The outcome of a failed try; None: try again."""
        if isinstance(error, RetryableError):
            return await self._wait_out(error)
        if isinstance(error, FatalError):
            return await self._doubt(error)
        if isinstance(error, KeptError):
            return self._kept(error)
        if isinstance(error, VanishedError):
            return self._vanished(error)
        if isinstance(error, LeasedError) and time.monotonic() - self.began < LEASE_SECONDS:
            await self.runner.gate.pause(min(1.0, full_jitter(self.attempts)))
            return None
        if isinstance(error, ChangedError) and type(self.task) is Task:
            self.readings += 1
            last = self._failed(OutcomeKind.FAILED, error)
            return last if self.readings >= READ_ATTEMPTS else None
        refused = OutcomeKind.FAILED if kind_of_error(error) is Kind.OWN else OutcomeKind.REFUSED
        return self._failed(OF_LARGE_FILES.get(type(error), refused), error)

    async def _wait_out(self, error: RetryableError) -> Outcome | None:
        """Patience is per run; a file that keeps failing while others succeed fails alone."""
        runner, now = self.runner, time.monotonic()
        runner.hear(error)
        others, self.others = self.others, runner.gauges["all_taken"]
        if runner.gate.is_away or isinstance(error, SlowDownError):
            self.own = 0
        elif others != self.others:  # the store has taken something meanwhile
            self.own_since = self.own_since if self.own else now
            self.own += 1
        is_due = self.own >= OWN_TRIES and now - self.own_since >= OWN_SECONDS
        if is_due or await self._fails_alone(now):
            return self._failed(OutcomeKind.UNSENT, error)
        self.uploader.traffic.add(retries=1)
        seconds = full_jitter(self.attempts)
        await runner.gate.pause(min(seconds, PROBE_SECONDS) if runner.gate.is_away else seconds)
        return None

    async def _fails_alone(self, now: float) -> bool:
        """With no other file to compare with, a plain request shows if only the file fails."""
        is_due = self.attempts >= OWN_TRIES and now - self.began >= OWN_SECONDS
        is_alone = self.runner.gauges["left"] == 1
        if not is_due or not is_alone or not self.runner.gate.is_away:
            return False
        return await self.runner.in_thread(self.uploader.answers)

    async def _doubt(self, error: FatalError) -> Outcome | None:
        """A code about credentials or bucket is believed only once several files get it."""
        gate, uploader = self.runner.gate, self.uploader
        if not error.code:
            return self._failed(OutcomeKind.FATAL, error)
        refuses = uploader.refuses_all
        if error.code == PROXY_REFUSES:  # it is not from the store
            refuses = lambda: uploader.refuses_all() or not uploader.answers()  # noqa: E731
        ask = functools.partial(self.runner.in_thread, refuses)
        if await gate.condemns(self.task.id, error.code, ask):
            return self._failed(OutcomeKind.FATAL, error)
        self.own += 1
        if self.own >= OWN_TRIES or gate.is_common(error.code):
            return self._failed(OutcomeKind.REFUSED, error)
        await gate.pause(min(full_jitter(self.attempts), 1.0))
        return None

    def _kept(self, error: KeptError) -> Outcome:
        """If it is this very file, an earlier try may have stored it: its answer was lost."""
        self.runner.gate.answered += 1
        self.runner.gate.taken += 1  # as far as patience is concerned
        kind = OutcomeKind.UNCHANGED if error.same else OutcomeKind.KEPT
        if error.same and (error.resent or self.attempts > 1):
            kind = OutcomeKind.UPLOADED
        return self.outcome(error.upload, kind, Receipt(error.etag), sent=error.same)

    def _vanished(self, error: SourceError) -> Outcome:
        """A file may vanish from the tree; if ROOT itself is gone, that is fatal."""
        try:
            if self.options.root:
                self.options.root.check_is_there()
        except FatalError as gone:
            return self._failed(OutcomeKind.FATAL, gone)
        return self._failed(OutcomeKind.VANISHED, error)

    def _failed(self, kind: OutcomeKind, error: PfuError) -> Outcome:
        key = file_of(self.task).key
        return Outcome(
            self.task.id,
            kind,
            str(error),
            self.attempts,
            sent=self.sent,
            cause=error.told(error.operation).replace(key, "KEY"),
            status=error.status if isinstance(error, TransferError) else 0,
            seconds=time.monotonic() - self.began,
        )

    # -- what tasks need

    def open(self, path: str, permissions: str = "0") -> SourceFile:
        """What the scan saw there."""
        return open_source(self.runner.tree, path, permissions, self.uploader.traffic.beat)

    def open_again(self, path: str, snapshot: Facts) -> SourceFile:
        """Raises ChangedError if the file's size or modification time has changed.

        If only its ctime has, the bytes are compared when all parts are sent.
        """
        source = self.open(path)
        if Facts.of(source.status)[:2] != snapshot[:2]:
            source.close()
            raise ChangedError("read", path, CHANGES)
        return source

    def check_read(self, source: SourceFile, read_again: Callable[[], T], before: T) -> None:
        """Raises ChangedError if the file has other bytes than those read before."""
        if self.options.ignore_ctime:
            source.has_moved()
        else:
            source.check_unchanged(read_again, before)

    def describe(self, file: Task, source: SourceFile, body: bytes | None) -> Upload:
        """The object to be stored."""
        return Upload(
            file.key,
            source,
            body,
            "" if body is None else hashlib.sha256(body).hexdigest(),
            object_metadata(source.status, source.size),
            self.options.content_type(file),
            self.options.part_size,
        )

    def settle(self, upload: Upload, stored: Stored | None) -> Outcome | None:
        """The outcome for a file whose bytes the store may have already; None: send them.

        If the store refuses to renew the metadata of a large object, it stays as it is: new
        metadata are not worth sending all bytes.
        """
        self.kind = OutcomeKind.UPLOADED
        digest = self._digest_of_same(upload, stored) if stored else None
        if stored is None or digest is None:
            return None
        known, receipt = upload._replace(sha256=digest), Receipt(stored.etag)
        same = self.outcome(known, OutcomeKind.UNCHANGED, receipt, part_size=stored.part_size)
        changed = what_changed(upload.facts, stored.facts, self.options)
        if changed in SAME_METADATA and not stored.is_stale:
            return same
        if upload.body is not None:
            self.kind = OutcomeKind.RENEWED
            return None  # resending a small object takes one request, no extra permission
        self.sent = True  # unless the store says that it did nothing
        try:
            renewed = self._renewed(known, same, is_old=True)
        except UploadGoneError:
            return None
        if not renewed.stale:
            return renewed._replace(kind=OutcomeKind.RENEWED)
        self.sent = False
        return None if self.options.renew_by_upload else renewed

    def _digest_of_same(self, upload: Upload, stored: Stored) -> str | None:
        """The file's digest if the store has these bytes already, else None.

        If no comparable digest is known, the modification time decides.
        """
        source, size = upload.source, upload.size
        if stored.is_stale and stored.facts == upload.facts:
            return stored.sha256
        likely = stored.part_size, part_size_for(size, upload.part_size)
        forms = known_forms(stored.sha256, stored.etag, size, *likely)
        if not forms:
            self.uploader.traffic.notes.append(NOT_COMPARED_NOTE)
            same_time = stored.facts.last_modified == upload.facts.last_modified
            return (stored.sha256 or upload.sha256) if same_time else None
        if upload.body is not None and forms[0][0] == WHOLE_SHA256:
            return upload.sha256 if upload.sha256 == stored.sha256 else None
        found = digests_of(source, {form for form, _ in forms})
        self.check_read(source, lambda: digests_of(source, found), found)
        for form, digest in forms:
            if found[form] == digest:
                return stored.sha256 or upload.sha256 or digest_in_parts(source, form.part_size)
        return None

    def _renewed(self, upload: Upload, done: Outcome, *, is_old: bool = False) -> Outcome:
        """``done``, with the object's metadata renewed; or stale, if the store refuses that.

        ``is_old``: it was stored by an earlier run. Raises UploadGoneError if it is no more.
        """
        try:
            receipt = self.uploader.renew(upload, done.etag)
        except TransferError as error:
            is_another = isinstance(error, UploadGoneError) and is_old
            if is_another or isinstance(error, (RetryableError, FatalError)):
                raise
            return done._replace(stale=True, error=error.cause)
        return done._replace(etag=receipt.etag.strip('"'), sha256=receipt.sha256 or done.sha256)

    def finished(
        self,
        upload: Upload,
        receipt: Receipt,
        *,
        is_as_told: bool = True,
        racy: int | None = None,
        part_size: int = 0,
    ) -> Outcome:
        """The outcome of a large file that is stored. ``is_as_told``: with today's metadata."""
        done = self.outcome(upload, OutcomeKind.UPLOADED, receipt, racy, part_size=part_size)
        return done if is_as_told else self._renewed(upload, done)

    def outcome(
        self,
        upload: Upload,
        kind: OutcomeKind,
        receipt: Receipt,
        racy: int | None = None,
        *,
        sent: bool = False,
        part_size: int = 0,
    ) -> Outcome:
        """The outcome of a file as it was read."""
        return Outcome(
            self.task.id,
            kind,
            "",
            self.attempts,
            upload.size,
            *facts_of(upload.status)[1:],
            int(upload.source.racy) if racy is None else racy,
            receipt.etag.strip('"'),
            receipt.sha256 or upload.sha256,
            int(time.time()),
            part_size,
            sent=sent,
            seconds=time.monotonic() - self.began,
        )


CHANGES = "it changed while being read"
OF_LARGE_FILES = {  # what a refusal means for the whole file
    ChangedError: OutcomeKind.CHANGED,
    UploadGoneError: OutcomeKind.GONE,
    TooManyPartsError: OutcomeKind.CRAMPED,
}


class Chain:
    """Sends small files one after another by Uploader.post(), with no coroutine in between.

    When the answer to a file comes in, the next one is read and sent. Anything out of the ordinary
    ends the chain, and its file goes the normal way: one place decides on failures.
    """

    __slots__ = ("_over", "_runner", "_size", "_transfer", "_upload")

    def __init__(self, runner: PageRunner) -> None:
        self._runner = runner

    async def run(self, transfer: Transfer) -> Transfer | None:
        """Begin with this file. Returns what is left for the slot to do the normal way, if any."""
        self._over: asyncio.Future[Transfer | None] = asyncio.get_running_loop().create_future()
        self._begin(transfer)
        return await self._over

    def _begin(self, transfer: Transfer) -> None:
        runner, task = self._runner, transfer.task
        assert isinstance(task, Task)
        self._transfer, self._size = transfer, task.size
        if not runner.budget.take(self._size):
            self._over.set_result(transfer)
            return
        runner.in_flight += 1
        try:
            self._upload, _ = runner.read_here(functools.partial(task.read, transfer))
            if runner.uploader.post(self._upload, self._ended):
                return
            transfer.begun = self._upload, None
        except Exception:  # noqa: BLE001, S110  it recurs, and is reported, the normal way
            pass
        self._land()
        self._over.set_result(transfer)

    def _land(self) -> None:
        self._runner.in_flight -= 1
        self._runner.budget.give_back(self._size)

    def _ended(self, posted: Posted, receipt: Receipt | None) -> None:
        runner, transfer = self._runner, self._transfer
        if self._over.done():
            return  # the slot was cancelled
        self._land()
        if receipt is None:
            transfer.begun = self._upload, posted
            self._over.set_result(transfer)
            return
        transfer.attempts = 1
        runner.gate.answered += 1
        runner.took(self._upload.size, posted.began)
        runner.note(transfer.outcome(self._upload, transfer.kind, receipt, sent=True))
        following = runner.next_transfer()
        if following and runner.is_plain(following):
            self._begin(following)
        else:
            self._over.set_result(following)


class Task(NamedTuple):
    """One file to upload, as the parent sends it to a runner."""

    id: str
    path: str
    key: str
    size: int  # bytes, as scanned
    permissions: str  # as scanned, or as stored
    stored: Stored | None = None  # what the store has, if of this size: only what differs is sent

    async def send(self, transfer: Transfer) -> Outcome:
        """Read, hash and send it."""
        runner = transfer.runner
        settled: Outcome | None = None
        posted: Posted | None = None
        if transfer.begun:
            (upload, posted), transfer.begun = transfer.begun, None
        else:
            upload, settled = await runner.read(functools.partial(self.read, transfer), self.size)
        try:
            if settled:
                return settled
            if upload.body is None and runner.uploader.takes_parts:
                return Outcome(self.id, OutcomeKind.LARGE)
            transfer.sent = True
            first_try = filter(None, [posted])  # only a provider with post() knows of it
            acknowledged = runner.uploader.send(upload, runner.threads, *first_try)
            receipt = await runner.send(acknowledged, upload.size, posted)
            if upload.body is not None:
                return transfer.outcome(upload, transfer.kind, receipt, sent=True)
            ending = functools.partial(self._end, transfer, upload, receipt)
            return await runner.in_thread(ending)
        finally:
            upload.source.close()

    def read(self, transfer: Transfer) -> tuple[Upload, Outcome | None]:
        """Open, read and hash. A large file is only opened, and hashed if that may save sending."""
        source = transfer.open(self.path, self.permissions)
        try:
            body = None
            if source.size <= transfer.options.threshold:
                body = source.read_all()
                transfer.check_read(source, source.read_all, body)
            else:
                source.check_end()
            upload = transfer.describe(self, source, body)
            has_sent = transfer.sent and body is not None  # then the ledger is no judge any more
            known = None if has_sent else self.stored
            settled = transfer.settle(upload, known) if known else None
        except BaseException:
            source.close()
            raise
        if body is not None:
            source.close()
        return upload, settled

    def _end(self, transfer: Transfer, upload: Upload, receipt: Receipt) -> Outcome:
        """A large file that was sent whole: did it change meanwhile? Raises ChangedError."""
        source, size = upload.source, part_size_for(upload.size, upload.part_size)
        sha256 = receipt.sha256 or digest_in_parts(source, size)
        transfer.check_read(source, lambda: digest_in_parts(source, size), sha256)
        return transfer.finished(upload, Receipt(receipt.etag, sha256), part_size=size)


class BeginTask(NamedTuple):
    """A large file: its upload is to be begun, or resumed where an earlier one got to."""

    id: str
    file: Task
    known: UploadModel | None  # an earlier upload, as the ledger has it
    parts: tuple[StoredPart, ...]  # its parts that were acknowledged
    anew: bool  # do not resume the earlier one
    most_parts: int  # that the store accepts, as far as is known
    size: int = 0

    def ask(self, transfer: Transfer) -> AnyOutcome:
        """The Begun; or the outcome, if the store turns out to have the object."""
        with contextlib.closing(transfer.open(self.file.path)) as source:
            if source.size > MAX_OBJECT_SIZE:
                raise SourceError("upload", source.path, too_large(self.file.key, source.size))
            source.check_end()
            upload = transfer.describe(self.file, source, None)
            settled = transfer.settle(upload, self.file.stored)
            return settled or self._go_on(transfer, upload) or self._begin_anew(transfer, upload)

    def _go_on(self, transfer: Transfer, upload: Upload) -> AnyOutcome | None:
        """Resume or finish the earlier upload; None: there is none, or none that can be used."""
        known, uploader, options = self.known, transfer.uploader, transfer.options
        if known is None or self.anew:
            return None
        wanted = part_size_for(upload.size, options.part_size)
        if options.is_part_size_given and known.part_size != wanted:
            return None
        told = uploader.fingerprint(upload)
        is_like = known.fingerprint.partition("/")[0] == told.partition("/")[0]
        if not is_like or not 0 < -(-upload.size // max(known.part_size, 1)) <= MAX_PARTS:
            return None
        parts = self.parts
        now = Facts.of(upload.status)
        try:
            stored = uploader.list_parts(upload.key, known.upload_id)
            there = {part[:3]: part.sha256 for part in stored}
            parts = tuple(p for p in parts if there.get(p[:3], "no") in ("", p.sha256))
        except DeniedError:
            pass  # PutObject must be enough; the store checks the parts at completion
        except UploadGoneError:
            return self._completed(transfer, upload, known, is_as_told=known.fingerprint == told)
        if (known.inode, known.changed_at) != (now.inode, now.changed_at):
            parts = same_parts(upload.source, parts, known.part_size)
            if upload.source.has_moved():
                now = now._replace(inode=-1)  # then all is compared again on completion
        racy = known.racy | upload.source.racy
        size = known.part_size
        return Begun(self.id, known.upload_id, known.fingerprint, size, parts, now, racy)

    def _completed(
        self, transfer: Transfer, upload: Upload, known: UploadModel, *, is_as_told: bool
    ) -> Outcome | None:
        """The outcome of an upload that was completed, though its answer was lost."""
        told = upload if is_as_told else upload._replace(metadata={})
        receipt = transfer.uploader.is_complete(told, known.upload_id, self.parts)
        if receipt is None:
            return self._found(transfer, upload)
        size = known.part_size
        same = same_parts(upload.source, self.parts, size)
        if len(same) < max(1, -(-upload.size // size)):
            return None  # it was made of other bytes
        racy = known.racy | upload.source.racy
        return transfer.finished(upload, receipt, is_as_told=is_as_told, racy=racy, part_size=size)

    def _found(self, transfer: Transfer, upload: Upload) -> Outcome | None:
        """The outcome if a digest proves that the object has the file's bytes, else None."""
        try:
            stored = transfer.uploader.inspect(upload.key)
        except DeniedError:
            return None
        if stored is None or stored.size != upload.size or not stored.forms():
            return None
        digests = digests_of(upload.source, {form for form, _ in stored.forms()} | {WHOLE_SHA256})
        if not stored.proves(upload.size, digests.values()):
            return None
        receipt = Receipt(stored.etag, digests[WHOLE_SHA256])
        return transfer.finished(upload, receipt, is_as_told=stored.has(upload.metadata))

    def _begin_anew(self, transfer: Transfer, upload: Upload) -> Begun:
        known, uploader = self.known, transfer.uploader
        if known is not None:
            abort_if_allowed(uploader, upload.key, known.upload_id)
        size = part_size_for(upload.size, transfer.options.part_size, self.most_parts)
        upload_id, told = uploader.begin(upload), uploader.fingerprint(upload)
        now, racy = Facts.of(upload.status), int(upload.source.racy)
        return Begun(self.id, upload_id, told, size, (), now, racy)


LEFT_HINT = "a lifecycle rule that aborts incomplete uploads will remove it"


def abort_if_allowed(uploader: Uploader, key: str, upload_id: str) -> None:
    """A store that refuses to abort an upload does not stop the upload of a file."""
    try:
        uploader.abort(key, upload_id)
    except (RetryableError, FatalError):
        raise
    except TransferError as error:
        told = f"an unfinished upload may remain: {error} ({LEFT_HINT})"
        uploader.traffic.notes.append(told)


class PartTask(NamedTuple):
    """One part of a large file."""

    id: str
    path: str
    key: str
    upload_id: str
    number: int  # from 1
    offset: int  # bytes
    size: int  # bytes
    snapshot: Facts  # of the file when its upload began

    async def send(self, transfer: Transfer) -> PartDone:
        """Read, hash and send it, if the file is as it was."""
        source, runner = transfer.open_again(self.path, self.snapshot), transfer.runner
        fits = transfer.memory == self.size
        buffer = runner.budget.buffer(self.size) if fits else None
        try:
            reading = functools.partial(read_part, source, self.offset, self.size, buffer)
            body, sha256 = await runner.in_thread(reading)
            source.has_moved()
            part = Part(self.path, self.key, self.upload_id, self.number, body, sha256)
            acknowledged = transfer.uploader.send_part(part, runner.threads)
            receipt = await runner.send(acknowledged, self.size)
        finally:
            source.close()
            if buffer is not None:
                runner.budget.keep(buffer)
        stored = StoredPart(self.number, self.size, receipt.etag.strip('"'), sha256)
        return PartDone(self.id, stored, receipt.fast)


class CompleteTask(NamedTuple):
    """A large file whose parts are all in the store, which is to assemble them."""

    id: str
    file: Task
    begun: Begun
    parts: tuple[StoredPart, ...]  # by number
    size: int = 0

    def ask(self, transfer: Transfer) -> Outcome:
        """The outcome, if the file is as it was."""
        uploader, begun = transfer.uploader, self.begun
        with contextlib.closing(transfer.open_again(self.file.path, begun.snapshot)) as source:
            self._compare_again(source, transfer.options)
            upload = transfer.describe(self.file, source, None)
            is_as_told = begun.fingerprint == uploader.fingerprint(upload)
            told = upload if is_as_told else upload._replace(metadata={})
            transfer.sent = True
            receipt = uploader.complete(told, begun.upload_id, self.parts)
            racy, size = begun.racy, begun.part_size
            return transfer.finished(
                upload, receipt, is_as_told=is_as_told, racy=racy, part_size=size
            )

    def _compare_again(self, source: SourceFile, options: EngineOptions) -> None:
        """Compare the bytes if ctime or inode changed since the start. Raises ChangedError."""
        source.check_end()
        if Facts.of(source.status) == self.begun.snapshot or options.ignore_ctime:
            return
        if len(same_parts(source, self.parts, self.begun.part_size)) < len(self.parts):
            raise ChangedError("read", source.path, CHANGES)
        source.has_moved()


class Question(NamedTuple):
    """What the store is asked, or told, besides the upload of a file."""

    id: str
    key: str
    put_to: Callable[[Uploader], str | None]  # asks it
    is_urgent: bool = False  # about what was sent: it goes before everything else
    size: int = 0

    def ask(self, transfer: Transfer) -> Answered:
        """Its answer."""
        return Answered(self.id, self.put_to(transfer.uploader) or "")


def prove(found: Found, uploader: Uploader) -> None:
    """Raises FatalError if what was stored is not there, or not as it should be."""
    uploader.traffic.notes.extend(uploader.prove(found))


class RemoveTask(NamedTuple):
    """A file that the ledger has as stored: is it, and is it still the same? Then remove it."""

    id: str
    key: str
    found: Found  # as it was read
    etag: str
    sha256: str
    kind: OutcomeKind  # what its transfer came to
    bytes_sent: int  # by it
    stale: int | None  # FileModel.stale, if it is not removed
    size: int = 0

    def ask(self, transfer: Transfer) -> Answered:
        """Why it is still here; empty: it is not."""
        uploader = transfer.uploader
        try:
            stored = uploader.inspect(self.key)
            if stored is None and self.kind in SENT_WHOLE:  # listings and HEAD may lag
                time.sleep(LAG_SECONDS)
                stored = uploader.inspect(self.key)
        except DeniedError as error:
            return Answered(self.id, f"the store does not say what it has: {error.cause}")
        reason = self._doubt(stored)
        if stored and not reason and not self._is_of_these_bytes(transfer, stored):
            reason = REPLACED
        if not reason and is_odd(self.key):  # a store may have one object for two such keys
            kept_as = uploader.kept_as(self.key, self.found.file_size, 0.0)
            reason = "" if kept_as == self.key else "the store may keep it under another name"
        unlike = functools.partial(self._what_is_unlike, transfer.options)
        try:
            reason = reason or transfer.runner.tree.remove(self.found.path, unlike)
        except OSError as error:
            reason = os_cause(error)
        return Answered(self.id, reason)

    def _doubt(self, stored: Inspected | None) -> str:
        """Why the object does not show that it is this file; empty if it does."""
        if stored is None:
            return LOST
        if stored.size != self.found.file_size:
            return REPLACED
        if not stored.is_of(self.found):
            return "the store does not show its size, time and permissions"
        if stored.lacks_lock:
            return "the store does not show its lock (s3:GetObjectRetention, s3:GetObjectLegalHold)"
        return ""

    def _is_of_these_bytes(self, transfer: Transfer, stored: Inspected) -> bool:
        """By what it was acknowledged with; a store may report another ETag or digest later."""
        told = {self.etag, self.sha256} - {""}
        if told & {stored.etag, stored.sha256}:
            return True
        forms = {form for form, _ in stored.forms()}
        found = self.found
        with contextlib.closing(transfer.open(found.path, found.permissions)) as source:
            return bool(stored.proves(source.size, digests_of(source, forms).values()))

    def _what_is_unlike(self, options: EngineOptions, status: os.stat_result) -> str:
        """Why the file that is there must stay; empty if it is the one that was read."""
        if what_changed(Facts.of(status), self.found, options):
            return HAS_CHANGED
        if status.st_nlink > 1 and not options.remove_linked_files:
            return HAS_LINKS
        return ""


LAG_SECONDS = 2  # until a store shows an object that it has just taken
LOST = "the store does not have it any more"
REPLACED = "the store has another object under its key"
TOO_YOUNG = "it was modified less than 2 s before it was read"
HAS_CHANGED = "it has changed since it was read"
HAS_LINKS = "it has more than one hard link"
AS_IT_SHOULD_BE = frozenset((TOO_YOUNG, HAS_CHANGED, HAS_LINKS))  # reasons not to remove a file


AnyTask = Union[Task, BeginTask, PartTask, CompleteTask, RemoveTask, Question]
LOOK_WAITS, LOOK_SECONDS = 200, 0.005  # for fewer requests in flight than the limit


def is_urgent(task: AnyTask) -> bool:
    """Whether it goes before everything else."""
    return type(task) is Question and task.is_urgent


def file_of(task: AnyTask) -> Any:
    """What has the key of a task's file."""
    return getattr(task, "file", task)


def read_part(
    source: SourceFile, offset: int, size: int, buffer: bytearray | None
) -> tuple[Body, str]:
    """A part's bytes, and their SHA-256 in hex; without a buffer they stay in the file."""
    view = memoryview(buffer if buffer is not None else bytearray(HASH_BYTES))
    digest = hashlib.sha256()
    for start in range(0, size, HASH_BYTES):
        piece = view[start : min(start + HASH_BYTES, size)]
        if buffer is None:
            piece = view[: min(HASH_BYTES, size - start)]
        source.read_into(piece, offset + start)
        digest.update(piece)
    if buffer is None:
        return FileBody(source, offset, size), digest.hexdigest()
    return view[:size], digest.hexdigest()


def digest_in_parts(source: SourceFile, part_size: int) -> str:
    """A file's SHA-256, composed of that of its parts."""
    form = Form("sha256", part_size)
    return digests_of(source, [form])[form]


def same_parts(
    source: SourceFile, parts: Sequence[StoredPart], part_size: int
) -> tuple[StoredPart, ...]:
    """Those of ``parts`` whose bytes match the file's. Raises SourceError."""
    same = []
    for part in parts:
        offset = (part.number - 1) * part_size
        size = min(part_size, source.size - offset)
        if size == part.size and read_part(source, offset, size, None)[1] == part.sha256:
            same.append(part)
    return tuple(same)


NOT_COMPARED_NOTE = (
    "some files have neither a known hash nor an MD5 ETag: they were compared by size and time"
)


WORKERS_HINT = "--mode concurrent needs no workers"


class Runner(ABC):
    """A PageRunner as the engine sees it, in this process or another one.

    What submit() returns is an asyncio.Task in this process, a Future of the pool elsewhere.
    """

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges
        self.in_flight: dict[str, AnyTask] = {}
        self.shared: Any = None  # for Uploader.adopt(), with the next page
        self._buried: Counter[str] = Counter()  # figures of workers that died

    def submit(self, page: Sequence[AnyTask], more: bool) -> Any:
        """Hand in a page; the result is the report."""
        self.in_flight.update((task.id, task) for task in page)
        shared, self.shared = self.shared, None
        return self._exchange(page, more, shared)

    def figure(self, name: str) -> float:
        """One of the runner's gauges, summed over restarts."""
        return self._buried[name] + self.gauges[name]

    def bury(self) -> None:
        """Keep the figures of a worker that died."""
        for name in Gauges.FROM_RUNNER:
            self._buried[name] += self.gauges[name]  # type: ignore[assignment]
            self.gauges[name] = 0
        del self._buried["in_flight"]

    @abstractmethod
    def wait(self, futures: Iterable[Any], seconds: float) -> Iterable[Any]:
        """Those that are done, of any runners of this kind; waits up to ``seconds`` for one."""

    @abstractmethod
    def _exchange(self, page: Sequence[AnyTask], more: bool, shared: Any) -> Any: ...

    def check_start(self) -> None:  # noqa: B027
        """Raises FatalError if it does not start."""

    @abstractmethod
    def close(self, *, kill: bool) -> None:
        """End; with ``kill`` at once, busy or not."""


LOOP_DESCRIPTORS = 8  # a loop that cannot get them complains when it is discarded


class LocalRunner(Runner):
    """A PageRunner in this thread: its loop runs while the engine waits."""

    def __init__(self, uploader: Uploader, options: EngineOptions) -> None:
        super().__init__(Gauges())
        self._runner = PageRunner(uploader, options, self.gauges)
        if asyncio._get_running_loop():
            cause, hint = "this thread runs one already", "call run() in a thread of its own"
            raise FatalError("start event loop", "", cause, hint)
        if cause := why_no_descriptors(LOOP_DESCRIPTORS):
            raise FatalError("start event loop", "", cause)
        self._loop = asyncio.new_event_loop()
        self._exchanging: asyncio.Task[Report] | None = None

    def _exchange(self, page: Sequence[AnyTask], more: bool, shared: Any) -> asyncio.Task[Report]:
        self._exchanging = self._loop.create_task(self._runner.exchange(page, more, shared))
        return self._exchanging

    def wait(self, futures: Iterable[Any], seconds: float) -> Iterable[Any]:
        return self._loop.run_until_complete(asyncio.wait(futures, timeout=seconds))[0]

    def close(self, *, kill: bool) -> None:
        self._loop.run_until_complete(self._runner.close())
        if self._exchanging and self._exchanging.cancel():
            self._loop.run_until_complete(asyncio.wait([self._exchanging]))
        self._loop.close()


# With `python -c` the working directory is first on sys.path, as "". Code that others put there
# must not run, so this goes before the rest; sys itself is built in.
FORGET_CWD = "import sys; sys.path[:] = filter(None, sys.path); "


@contextlib.contextmanager
def _starting_processes() -> Iterator[None]:
    """Keep processes started by multiprocessing from importing from the working directory.

    They are started by ``python -c`` and get this process's sys.path, but the code that sets it is
    imported before that. Python's own flags need 3.11 (-P), or shut out PYTHONPATH as well (-I).

    Python 3.12 and later warn at a fork of any other thread; start_method() says which are safe.
    Those of the pools of other workers are, too: they hold nothing that the child uses.
    """
    util: Any = importlib.import_module("multiprocessing.util")
    launch = util.spawnv_passfds

    def launch_without(path: Any, arguments: Sequence[str], *others: Any) -> Any:
        code = arguments.index("-c") + 1
        cleaned = [*arguments[:code], FORGET_CWD + arguments[code], *arguments[code + 1 :]]
        return launch(path, cleaned, *others)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        util.spawnv_passfds = launch_without
        try:
            yield
        finally:
            util.spawnv_passfds = launch


class WorkerRunner(Runner):
    """A PageRunner in a process of its own."""

    def __init__(self, uploader: Uploader, options: EngineOptions, method: str) -> None:
        super().__init__(Gauges(is_shared=True))
        self._uploader = uploader
        self._options = options
        self._start(method)

    def _start(self, method: str) -> None:
        """Raises FatalError if the system has no process left."""
        self._began = time.monotonic()
        others = set(multiprocessing.active_children())
        try:
            with _starting_processes(), contextlib.ExitStack() as failing:
                self._pool = concurrent.futures.process.ProcessPoolExecutor(
                    1,
                    mp_context=multiprocessing.get_context(method),
                    initializer=_start_worker,
                    initargs=(self._uploader, self._options, self.gauges, os.getpid()),
                )
                failing.callback(self._pool.shutdown, wait=False)
                self._hello = self._pool.submit(os.getpid)
                failing.pop_all()
        except (OSError, RuntimeError) as error:
            raise FatalError("start worker", "", str(error), WORKERS_HINT) from error
        self._processes = set(multiprocessing.active_children()) - others

    def _exchange(self, page: Sequence[AnyTask], more: bool, shared: Any) -> Future[Report]:
        try:
            return self._pool.submit(_exchange_in_worker, page, more, shared)
        except BrokenExecutor as error:
            died: Future[Report] = Future()
            died.set_exception(error)
            return died

    def wait(self, futures: Iterable[Any], seconds: float) -> Iterable[Any]:
        return wait_for_futures(futures, seconds, FIRST_COMPLETED)[0]

    @property
    def has_started(self) -> bool:
        """Whether it was ever ready for pages."""
        return self._hello.done() and self._hello.exception() is None

    def check_start(self) -> None:
        if not self._hello.done() and time.monotonic() - self._began > START_SECONDS:
            raise FatalError("start worker", "", "no response", WORKERS_HINT)

    def restart(self) -> None:
        """Start again after a death. Raises FatalError if that fails."""
        self._pool.shutdown(wait=False)
        self._start(start_method())

    def close(self, *, kill: bool) -> None:
        if kill:
            for process in self._processes:
                process.kill()
                process.join(KILL_SECONDS)
        self._pool.shutdown(wait=not kill)


_worker: tuple[PageRunner, asyncio.AbstractEventLoop]  # of a worker process


def _start_worker(uploader: Uploader, options: EngineOptions, gauges: Gauges, parent: int) -> None:
    """In the child. Its loop keeps running while no page is being exchanged."""
    global _worker
    with _belonging_to(parent):
        open_streams()
        lower_priority(options.nice)
        spare_collector()
        spare_addresses()
        _worker = PageRunner(uploader, options, gauges), asyncio.new_event_loop()
        _worker[0].threads.submit(int)  # one thread, before other processes take the last ones
        threading.Thread(target=_worker[1].run_forever, name="pfu-loop", daemon=True).start()


def _exchange_in_worker(page: Sequence[AnyTask], more: bool, shared: Any) -> Report:
    runner, loop = _worker
    try:
        return asyncio.run_coroutine_threadsafe(runner.exchange(page, more, shared), loop).result()
    except PfuError:
        raise
    except Exception as error:  # noqa: BLE001  its place, if not itself, would not reach the parent
        raise InternalError(internal_error(error)) from None


@contextlib.contextmanager
def _belonging_to(parent: int) -> Iterator[None]:
    """A child ends with its parent, which handles the signals to stop.

    If threads or memory run out, it ends without a traceback: the parent notices.
    """
    try:
        threading.Thread(target=_end_with, args=(parent,), name="pfu-parent", daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        yield
    except (RuntimeError, MemoryError, FatalError):
        os._exit(ExitCode.STOPPED)


def _end_with(parent: int) -> None:
    """End this process, busy or not, when ``parent`` has ended."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(ExitCode.STOPPED)


def spare_collector() -> None:
    """Keep the cycle collector off objects that live as long as the process, and run it less."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@contextlib.contextmanager
def spared_collector() -> Iterator[None]:
    """The same for a time, unless the program that runs the job has done so already."""
    if gc.get_freeze_count():
        yield
        return
    thresholds = gc.get_threshold()
    spare_collector()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def start_method() -> str:
    """How workers start: fork where it is safe (they share the parent's memory), else spawn.

    A fork copies locks as they are: one that another thread holds is never released in the
    child. So it is safe only if there is no other thread than the watchdog, which holds none.
    """
    others = {t.name for t in threading.enumerate() if t is not threading.current_thread()}
    alone = sys.platform == "linux" and others <= {WATCHDOG}
    method = os.environ.get("PFU_START_METHOD") or ("fork" if alone else "spawn")
    if method not in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        raise UsageError("invalid PFU_START_METHOD", hint="use fork or spawn")
    return method


def lower_priority(nice: int) -> None:
    """Lower the priority to ``nice``, 0 to 19, unless it is that low already.

    Linux schedules each session as a group (sched(7), "The autogroup feature"): a nice value
    counts only within its session. If pfu leads one, as a cron job may, the session's priority is
    lowered as well.
    """
    if nice <= os.nice(0):
        return
    os.nice(nice - os.nice(0))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
            file.write(str(nice))  # not every kernel has it


def spare_addresses() -> None:
    """If RLIMIT_AS is set, keep glibc's malloc(3) from taking 64 MiB of it per thread."""
    if soft_limit(resource.RLIMIT_AS) < UNLIMITED:
        with contextlib.suppress(ImportError, AttributeError, OSError):  # another libc
            import ctypes

            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class Preparation:
    """Runs Uploader.prepare() in the background: in a child process, or in a thread.

    A process takes no time from the scan, and its imports are gone when it ends; but where it
    cannot be forked it costs 0.1 s more, so there it is a thread.
    """

    def __init__(self, uploader: Uploader, patience: float = FIRST_SECONDS) -> None:
        """``patience``: seconds that the store may take until its first answer."""
        self._uploader = uploader
        self.trouble = ""  # why it takes so long
        forks = start_method() == "fork"
        start: Any = multiprocessing.get_context("fork").Process if forks else threading.Thread
        parent = os.getpid() if forks else 0
        try:  # what answers shares one end, so that reading never hits end of file
            self._answer, self._answering = multiprocessing.Pipe()
            args = uploader, patience, self._answering, parent
            self._beside = start(target=_prepare, args=args, daemon=True)
            with _starting_processes():
                self._beside.start()
        except (OSError, RuntimeError) as error:
            raise FatalError("start process", "", str(error)) from error
        self._told: Any = None
        self._is_keeping = False

    def is_done(self, seconds: float) -> bool:
        """Whether result() is ready; waits up to ``seconds`` for it."""
        while self._told is None and self._answer.poll(seconds):
            told = self._answer.recv()
            if not isinstance(told, str):
                self._told = told
                return True
            self.trouble, seconds = told, 0.0
        return self._told is not None or not self._beside.is_alive()

    def result(self) -> list[str]:
        """The notes of prepare(); the uploader is as prepare() left it. Raises PfuError."""
        self.is_done(0.0)
        self._is_keeping = bool(self._told and self._told[3])
        if not self._is_keeping:
            self._beside.join()  # no thread may hold an OpenSSL lock at a fork
        if not self._told:  # the process was killed, or cannot send what it found
            return self._uploader.prepare()
        notes: list[str]
        state, notes, error, _ = self._told
        if error is not None:
            raise error
        if state is not None:
            self._uploader.__setstate__(state)
        return notes

    def news(self, *, again: bool) -> Any:
        """What Uploader.shared() returns now, if that is new; ``again``: have it called again."""
        if not self._is_keeping:
            return None
        with contextlib.suppress(OSError, EOFError):
            if again:
                self._answer.send(None)
            if self._answer.poll():
                return self._answer.recv()
        return None

    def close(self) -> None:
        """Stop waiting for it; a process is killed."""
        if isinstance(self._beside, multiprocessing.process.BaseProcess):
            self._beside.kill()
            self._beside.join()
        if not self._beside.is_alive():
            self._answer.close()
            self._answering.close()


def _prepare(uploader: Uploader, patience: float, answering: Any, parent: int) -> None:
    """Tells, through a pipe, what it waits for, and what came of it; and what is new, when asked.

    ``parent``: of the process that this one was made for; 0: it is a thread.
    """
    with _belonging_to(parent) if parent else contextlib.nullcontext():
        notes: list[str] = []
        problem: PfuError | None = None
        try:
            notes = patiently(uploader.prepare, patience, lambda e: answering.send(str(e)))
        except PfuError as error:
            problem = error
        except Exception as error:  # noqa: BLE001  reported by the run, not by a traceback
            problem = FatalError("prepare", uploader.destination, internal_error(error))
        shared = uploader.shared() if parent and not problem else None
        state = uploader.__getstate__() if parent else None
        try:
            answering.send((state, notes, problem, shared is not None))
        except Exception:  # noqa: BLE001  not picklable: the parent prepares by itself
            with contextlib.suppress(OSError):  # nobody is waiting for it any more
                answering.send(())
            return
        while shared is not None:
            again, before = answering.poll(CREDENTIALS_SECONDS), shared
            if again:
                answering.recv()
            with contextlib.suppress(PfuError):  # the old ones are used until refused
                shared = uploader.shared(again=again)
            if again or shared != before:
                answering.send(shared)


RECALL_SECONDS = 0.3  # for files waiting in the runners to come back


class Engine:
    """Feeds runners with pages and yields what they report; controls how much is in flight."""

    def __init__(
        self,
        runners: Sequence[Runner],
        limiter: Limiter,
        rate: Callable[[], float],
        clock: RunClock,
    ) -> None:
        """``rate``: bytes a second that may be sent now, all runners together; 0: no limit."""
        self.runners = runners
        self.clock = clock
        self.row = RefusedRow()
        self.files_left = 0  # of the run, as far as is known
        self.tries_others = False  # nothing else may be sent
        self.wants_shared = False  # see Traffic
        self._recalled_at = 0.0
        self.deaths = 0
        self.fast_lane_off: str | None = None
        self.notes: list[str] = []  # for the user
        self._limiter = limiter
        self._rate = rate
        self._absorbed = Tally(0, 0, 0, 0)
        self._was_away = self._is_stopping = False
        self._failed_starts = 0  # in a row
        self._deaths_of: Counter[str] = Counter()
        self._redo: list[AnyTask] = []  # came back without a result; they go first
        self._sent: set[str] = set()  # ids of those of which the store may have something
        self._share_limit()
        self._steer(len(runners))

    def upload(self, work: WorkList, tick: Callable[[], bool]) -> Iterator[list[AnyOutcome]]:
        """Yield outcomes, report by report, until ``work`` has no more and all is done.

        It may have nothing now, and something after outcomes have been yielded. ``tick`` is called
        several times a second; once it returns True, no more pages are taken, and what is in flight
        has STOP_SECONDS to finish.
        """
        self._work = work
        waiting: dict[Any, Runner] = {}
        deadline = float("inf")
        while time.monotonic() < deadline:
            for runner in self.runners:
                if runner not in waiting.values():
                    self._feed(runner, waiting)
            if not waiting and not (self.tries_others and self.files_left):
                return
            if not waiting:
                time.sleep(TICK_SECONDS)
            done = self.runners[0].wait(waiting, TICK_SECONDS) if waiting else ()
            for runner in self.runners:
                runner.check_start()
            self._steer(len(waiting))
            if tick() and not self._is_stopping:
                deadline = time.monotonic() + STOP_SECONDS
                self._stop()
            for future in done:
                runner = waiting.pop(future)
                outcomes, has_room = self._collect(runner, future)
                self._weigh(outcomes)
                if not has_room and not self.tries_others:
                    urgent = work.take_following(()) if runner is self.runners[0] else []
                    waiting[runner.submit(urgent, True)] = runner
                yield outcomes
            if self._is_stopping:
                yield self._give_back()

    def _feed(self, runner: Runner, waiting: dict[Any, Runner]) -> None:
        is_first = runner is self.runners[0]
        if self._is_stopping:
            page: Sequence[AnyTask] = []
        elif self.tries_others:
            page = self._choose() if is_first else []
        else:
            page = self._take_redo() or self._work.next_page(is_first)
        if page or runner.in_flight:
            waiting[runner.submit(page, bool(page))] = runner

    def _give_back(self) -> list[AnyOutcome]:
        ids = [task.id for task in self._take_redo()]
        return [Outcome(name, OutcomeKind.RELEASED, sent=name in self._sent) for name in ids]

    def _take_redo(self) -> list[AnyTask]:
        redo, self._redo = self._redo, []
        return redo

    def _weigh(self, outcomes: Sequence[AnyOutcome]) -> None:
        """Find out whether the store refuses the whole run."""
        for outcome in outcomes:
            file_id = file_id_of(outcome.id)
            kind = outcome.kind if isinstance(outcome, Outcome) else None
            if isinstance(outcome, PartDone) or kind is OutcomeKind.UPLOADED:
                self.row.taken()
            elif isinstance(outcome, Outcome) and kind is OutcomeKind.REFUSED:
                self.row.refused(file_id, outcome.cause)
            elif isinstance(outcome, (Outcome, Answered)):
                self.row.on_trial.discard(file_id)
        if self.row.is_full and not self.tries_others:
            self._recalled_at = time.monotonic() + RECALL_SECONDS
        self.tries_others = self.row.is_full and not self._is_stopping
        for runner in self.runners:
            runner.gauges["others"] = float(self.tries_others)

    def _choose(self) -> list[AnyTask]:
        """Files to try, once the runners have returned what was waiting; then their follow-ups."""
        row, free = self.row, set(self.row.directories)
        chosen: list[AnyTask] = []
        follows = self._work.take_following(row.on_trial)
        if row.on_trial or follows:
            return follows
        if row.room <= 0 or time.monotonic() < self._recalled_at:
            return []
        for task in self._redo:
            if len(chosen) < row.room and directory_of(task.id) not in free:
                free.add(directory_of(task.id))
                chosen.append(task)
        self._redo = [task for task in self._redo if task not in chosen]
        if len(chosen) < row.room:
            chosen += self._work.take_others(row.room - len(chosen), free)
        if not chosen and any(runner.in_flight for runner in self.runners):
            return []  # a slow runner may yet return files from other directories
        row.try_others({file_id_of(task.id) for task in chosen})
        return chosen

    def share(self, shared: Any) -> None:
        """Pass this to Uploader.adopt(), in every process."""
        for runner in self.runners:
            runner.shared = shared

    def _steer(self, working: int) -> None:
        """Pass what was done to the limiter, and what applies to all to the runners."""
        now, clock = time.monotonic(), self.clock
        taken = self.total("taken")
        moved, answered, passing = map(self.total, ("moved", "answered", "passing"))
        clock.absorb(Signs(taken + moved, answered, passing), now)
        is_away = clock.is_away(now)
        self._teach(now, is_away)
        rate = self._rate() / max(working, 1)
        for runner in self.runners:
            gauges = runner.gauges
            gauges["rate"] = rate
            gauges["probes"] = is_away * max(1, PROBES // len(self.runners))
            gauges["all_taken"], gauges["left"] = taken, self.files_left
        self._share_limit()

    def _teach(self, now: float, is_away: bool) -> None:
        """The limiter ignores times in which nothing was taken."""
        tally = Tally._make(map(self.total, Tally._fields))
        if is_away:
            self._absorbed = tally
        elif self.clock.since is None:
            if self._was_away:
                self._limiter.begin_again(now)
            before, self._absorbed = self._absorbed, tally
            self._limiter.absorb(Tally(*(a - b for a, b in zip(tally, before))), now)
        self._was_away = is_away

    def _share_limit(self) -> None:
        share, rest = divmod(self._limiter.limit, len(self.runners))
        for number, runner in enumerate(self.runners):
            runner.gauges["limit"] = max(1, share + (number < rest))
            runner.gauges["cut_at"] = self._limiter.cut_at

    def _stop(self) -> None:
        self._is_stopping, self.tries_others = True, False
        for runner in self.runners:
            runner.gauges["stopping"] = 1

    def _collect(self, runner: Runner, future: Any) -> tuple[list[AnyOutcome], bool]:
        try:
            report: Report = future.result()
        except BrokenExecutor:
            assert isinstance(runner, WorkerRunner)
            return self._bury(runner), True
        ended = []
        for outcome in report.outcomes:
            task = runner.in_flight.pop(outcome.id)
            if isinstance(outcome, Outcome) and outcome.kind not in STORED:
                self._sent.update([task.id] * outcome.sent)
                outcome = outcome._replace(sent=task.id in self._sent)
            if isinstance(outcome, Outcome) and outcome.kind is OutcomeKind.RELEASED:
                self._redo.append(task)
            else:
                ended.append(outcome)
        self.fast_lane_off = self.fast_lane_off or report.fast_lane_off
        self.notes += report.notes
        self.clock.cause = report.trouble or self.clock.cause
        self.wants_shared |= report.wants_shared
        return ended, report.has_room

    def _bury(self, runner: WorkerRunner) -> list[AnyOutcome]:
        """After a death: restart the worker and redo its files; after WORKER_DEATHS one fails.

        Raises FatalError if workers cannot even start.
        """
        lost, runner.in_flight = list(runner.in_flight.values()), {}
        self._sent.update(task.id for task in lost if isinstance(task, (Task, CompleteTask)))
        self.row.lost(file_id_of(task.id) for task in lost)
        self._failed_starts = 0 if runner.has_started else self._failed_starts + 1
        if runner.has_started:
            self._deaths_of.update(task.id for task in lost)
        elif self._failed_starts >= WORKER_DEATHS:
            cause = f"{WORKER_DEATHS} of them died at startup"
            raise FatalError("start worker", "", cause, WORKERS_HINT)
        self.deaths += 1
        hopeless = [task for task in lost if self._deaths_of[task.id] >= WORKER_DEATHS]
        self._redo += [task for task in lost if self._deaths_of[task.id] < WORKER_DEATHS]
        runner.bury()
        runner.restart()
        cause = f"the worker process died {WORKER_DEATHS} times with this file in flight"
        failed = (Outcome(task.id, OutcomeKind.FAILED, cause, 1) for task in hopeless)
        return [outcome._replace(sent=outcome.id in self._sent) for outcome in failed]

    def waits_for(self) -> str:
        """What is in flight, in words for the user."""
        tasks = [task for runner in self.runners for task in list(runner.in_flight.values())]
        keys = {file_of(task).key for task in tasks}
        first = f", including {min(keys)}" if keys else ""
        return f"{count_of(len(keys), 'file')} in flight{first}"

    @property
    def limit(self) -> int:
        """How many requests may be in flight now, all runners together."""
        return self._limiter.limit

    def total(self, name: str) -> float:
        """The sum of one gauge over all runners."""
        return sum(runner.figure(name) for runner in self.runners)

    def close(self) -> None:
        """End all runners; those that have files in flight are killed."""
        for runner in self.runners:
            runner.close(kill=bool(runner.in_flight))


# ======================================================================================
# Batch run: one upload session from the scan to the summary
# ======================================================================================
#
# BatchJobModel is the session, and its row in the ledger. Comparison walks over ROOT and finds what
# needs work; Sending feeds an engine with it. What comes next, and what follows from an outcome, is
# decided by WorkList: with LargeFiles for files in parts, Doubts for successes that the store must
# confirm, and Removals for files that are no longer needed here. Accounts counts each file once.


class Timetable(NamedTuple):
    """A bandwidth that depends on the time of the week, as in rclone's --bwlimit."""

    turns: tuple[tuple[int, int], ...]  # minute since Monday 00:00, bytes per second; in order

    def rate(self, now: float) -> int:
        """Bytes per second at ``now``, seconds since the epoch, by local time; 0: no limit."""
        local = time.localtime(now)
        minute = (local.tm_wday * 24 + local.tm_hour) * 60 + local.tm_min
        past = [rate for begins, rate in self.turns if begins <= minute]
        return past[-1] if past else self.turns[-1][1]


MODES = "parallel", "concurrent"
MOST_WORKERS, MOST_REQUESTS, LOWEST_PRIORITY, LEAST_RATE = 256, 4096, 19, KIB


@dataclass(frozen=True)
class RunOptions:
    """The settings of a run. All defaults are those of the command line.

    Times are in seconds, sizes in bytes, rates in bytes per second; 0 or None: no limit, or
    automatic. Limits apply to all processes together.
    """

    mode: str = option(MODES[0], "several processes (default) or one event loop", choices=MODES)
    workers: int = option(
        0, "processes (default: one per core, up to 8)", "N", within=(1, MOST_WORKERS)
    )
    concurrency: int = option(
        0, "parallel requests (default: auto)", "N", within=(1, MOST_REQUESTS)
    )
    part_size: int = option(
        0, "split larger files into parts of SIZE (default: files over 16M, parts of 8M)", "SIZE"
    )
    max_memory: int = option(
        DEFAULT_MEMORY, "buffer memory, at most a quarter of the RAM (default: 128M)", "SIZE"
    )
    bwlimit: int | Timetable = option(
        0, "bytes per second, e.g. 20M, or by time: '08:00,1M 18:00,off' (default: none)", "RATE"
    )
    max_duration: float = option(0.0, "stop after TIME", "TIME")
    patience: float | None = option(
        None, "give up after the store has been unavailable this long (default: 5m)", "TIME"
    )
    nice: int = option(19, "niceness (default: 19)", "N", within=(0, LOWEST_PRIORITY))
    force: bool = option(False, "upload all files, unchanged ones too")
    checksum: bool = option(False, "detect changes by hash, not just size and times")
    ignore_ctime: bool = option(False, "do not check ctime for changes")
    ignore_inode: bool = option(False, "do not check inode numbers for changes")
    remove_source_files: bool = option(
        False, "remove each file once the store shows it, see README"
    )
    remove_linked_files: bool = option(False, "remove those with more than one hard link too")
    renew_by_upload: bool = option(
        False, "upload large files again if their metadata cannot be updated by a copy"
    )
    root_as: str | None = option(None, "PATH of ROOT in the ledger, for snapshots", "PATH")
    keep_history: float = option(
        KEPT_HISTORY, "keep records of old runs and deleted files this long (default: 90d)", "TIME"
    )
    scan: ScanOptions = field(default_factory=ScanOptions)
    content_types: tuple[tuple[Glob, str], ...] = option(
        (),
        "Content-Type of matching files (default: guessed from the name)",
        "GLOB=TYPE",
        name="content-type",
    )

    def __post_init__(self) -> None:
        """Raises UsageError."""
        check_fields(self, RUN_FAULTS)

    @property
    def reads_all(self) -> bool:
        """Whether files that look unchanged are hashed; no file is removed unread."""
        return self.checksum or self.remove_source_files

    def rate(self) -> int:
        """Bytes per second that may be sent now, all processes together; 0: no limit."""
        limit = self.bwlimit
        return limit.rate(time.time()) if isinstance(limit, Timetable) else limit

    @property
    def rates(self) -> list[int]:
        """All the limits on bandwidth, whenever they apply."""
        limit = self.bwlimit
        return [rate for _, rate in limit.turns] if isinstance(limit, Timetable) else [limit]

    def processes(self) -> int:
        """The number of uploading processes; at most one per request."""
        if self.mode == "concurrent":
            return 1
        processes = self.workers or min(usable_processors(), MAX_WORKERS)
        return min(processes, self.concurrency) if self.concurrency else processes

    def engine(self) -> EngineOptions:
        """The share of one process; at least two parts fit into its memory."""
        memory = min(self.max_memory, memory_of_machine() // 4) // self.processes()
        addresses = soft_limit(resource.RLIMIT_AS)
        memory = max(min(memory, addresses // 4) - CLIENT_MEMORY, 2 * MIN_PART_SIZE)
        threads = (addresses - LEAST_ADDRESSES - memory) // THREAD_ADDRESSES
        return EngineOptions(
            threshold=min(self.part_size or DEFAULT_THRESHOLD, memory // 2),
            part_size=min(self.part_size or DEFAULT_PART_SIZE, memory // 2),
            is_part_size_given=self.part_size > 0,
            memory=memory,
            content_types=self.content_types,
            nice=self.nice,
            renew_by_upload=self.renew_by_upload,
            ignore_ctime=self.ignore_ctime,
            ignore_inode=self.ignore_inode,
            removes=self.remove_source_files,
            remove_linked_files=self.remove_linked_files,
            threads=min(THREADS, max(2, threads)),
        )

    def fitted(self) -> tuple[RunOptions, str]:
        """These options fitted to the available memory and processes; and what was changed.

        Raises UsageError if there is not enough for a single process.
        """
        wanted, memory = self.processes(), memory_of_machine()
        addresses, tasks = soft_limit(resource.RLIMIT_AS), room_for_tasks()
        for found, least, unit, where in (
            (memory, LEAST_MEMORY, bytes_text, "of memory (machine or cgroup)"),
            (addresses, LEAST_ADDRESSES, bytes_text, "of address space (ulimit -v)"),
            (tasks, LEAST_TASKS, str, "more processes or threads (ulimit -u or cgroup)"),
        ):
            if found < least:
                cause = f"only {unit(found)} {where} available, {unit(least)} needed"
                raise UsageError("start", "", cause)
        rooms = {
            "memory": memory // WORKER_MEMORY - 1,
            "processes (ulimit -u or cgroup)": (tasks - LEAST_TASKS) // WORKER_TASKS,
        }
        room, scarce = min(zip(rooms.values(), rooms))
        if self.mode == "concurrent" or wanted <= room:
            return self, ""
        told = f"not enough {scarce} for {count_of(wanted, 'worker')}"
        if room < 2:
            return self.alone(told)
        return dataclasses.replace(self, workers=room), f"{told}: using {room}"

    def alone(self, cause: str) -> tuple[RunOptions, str]:
        """These options for one process; and the same in words."""
        options = dataclasses.replace(self, mode="concurrent", workers=0)
        return options, f"{cause}: using mode concurrent"

    def limiter(self, has_fast_lane: bool) -> Limiter:
        """The limiter of the run. Fixed by ``concurrency``, or if threads do all the work."""
        possible = descriptor_limit() * self.processes()
        wanted = self.concurrency or (0 if has_fast_lane else SAFE_CONCURRENCY * self.processes())
        if wanted:
            fixed = min(wanted, possible)
            return Limiter(time.monotonic(), fixed, fixed, fixed)
        return Limiter(time.monotonic(), highest=min(HIGHEST_LIMIT, possible))


RUN_FAULTS: Faults = {
    f"--mode must be one of {', '.join(MODES)}": lambda o: o.mode not in MODES,
    "--part-size must be between 5 MiB and 5 GiB": lambda o: (
        o.part_size and not is_within(o.part_size, MIN_PART_SIZE, MAX_PART_SIZE)
    ),
    "--max-memory must be at least 10M: two parts must fit": lambda o: (
        not is_within(o.max_memory, 2 * MIN_PART_SIZE, MAX_INTEGER)
    ),
    "--bwlimit is less than 1K per second": lambda o: any(
        rate and not is_within(rate, LEAST_RATE, MAX_INTEGER) for rate in o.rates
    ),
    "--max-duration must not be negative": lambda o: not o.max_duration >= 0,
    "--patience must not be negative": lambda o: o.patience is not None and not o.patience >= 0,
    "--keep-history must not be negative": lambda o: not o.keep_history >= 0,
    "--remove-source-files cannot be combined with --follow-symlinks: no target of a link is"
    " removed": lambda o: o.remove_source_files and o.scan.follow_symlinks,
    "--remove-linked-files requires --remove-source-files": lambda o: (
        o.remove_linked_files and not o.remove_source_files
    ),
}


CGROUP_LIMITS = (
    "/sys/fs/cgroup{}/memory.max",
    "/sys/fs/cgroup{}/memory.high",
    "/sys/fs/cgroup/memory{}/memory.limit_in_bytes",
)
CGROUP_TASKS = "/sys/fs/cgroup{}/pids.{}", "/sys/fs/cgroup/pids{}/pids.{}"
UNLIMITED = 1 << 62


@functools.lru_cache(maxsize=1)
def memory_of_machine() -> int:
    """Bytes of memory available to this process: the machine's, or its cgroup's if less."""
    limits = [UNLIMITED]
    with contextlib.suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _cgroups():
        for pattern in CGROUP_LIMITS:
            with contextlib.suppress(ValueError, OSError):
                limits.append(int(content_of(pattern.format(path))))
    return min(limit for limit in limits if limit > 0)


def soft_limit(kind: int) -> int:
    """A limit of setrlimit(2)."""
    limit = resource.getrlimit(kind)[0]
    return UNLIMITED if limit == resource.RLIM_INFINITY else min(limit, UNLIMITED)


def what_workers_lack() -> str:
    """Semaphores and shared memory, where there is no /dev/shm; empty if nothing is missing.

    Seen: AWS Lambda, containers, builds of Python without semaphores.
    """
    try:
        with _starting_processes():
            multiprocessing.get_context(start_method()).Lock()
            multiprocessing.RawArray("d", 1)
    except (ImportError, OSError) as error:
        cause = os_cause(error) if isinstance(error, OSError) else "Python was built without"
        return f"no semaphores or no shared memory for workers (is /dev/shm there?): {cause}"
    return ""


def room_for_tasks() -> int:
    """Processes and threads that may still be started. The limit is per user."""
    rooms = [UNLIMITED]
    for path, pattern in itertools.product(_cgroups(), CGROUP_TASKS):
        with contextlib.suppress(ValueError, OSError):
            most, now = (int(content_of(pattern.format(path, end))) for end in ("max", "current"))
            rooms.append(most - now)
    limit = soft_limit(resource.RLIMIT_NPROC)
    if limit < MANY_TASKS and os.getuid():  # root is not limited
        rooms.append(limit - _tasks_of(os.getuid()))
    return max(0, min(rooms))


def _tasks_of(user: int) -> int:
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        with contextlib.suppress(OSError):  # it has ended
            count += os.stat(f"/proc/{pid}").st_uid == user and len(os.listdir(f"/proc/{pid}/task"))
    return count


def _cgroups() -> set[str]:
    """The cgroups of this process and all their parents; in a container this may be the root."""
    found = {""}
    with contextlib.suppress(OSError):
        for line in os.fsdecode(content_of("/proc/self/cgroup")).splitlines():
            path = line.split(":", 2)[2].rstrip("/")
            while path:
                found.add(path)
                path = path.rpartition("/")[0]
    return found


def usable_processors() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class Result:
    """How an action ended; the fields are the keys of its --json."""

    version: str = __version__
    status: str = "could not start"
    error: str | None = None  # why it stopped early
    exit_code: int = ExitCode.CANNOT_START


@dataclass
class Summary(Result):
    """What a run did. Always: seen = uploaded + unchanged + skipped + failed + pending."""

    batch_id: str = ""
    mode: str = ""
    root: str = ""
    destination: str = ""
    seen: int = 0
    uploaded: int = 0
    renewed: int = 0  # of these, files that only had their metadata updated
    compared: int = 0  # of a dry run's pending files, those sent only if their bytes differ
    unchanged: int = 0
    removed: int = 0  # files here, because the store has them
    skipped: int = 0
    failed: int = 0
    pending: int = 0
    bytes_uploaded: int = 0
    bytes_pending: int = 0  # of the files that are; of a dry run: what would go
    elapsed_seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all processes
    peak_memory_bytes: int = 0  # of all processes together, at the highest measurement
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    request_cost_usd: float | None = None  # approximate, of a dry run; null: unknown
    fast_lane: int = 0  # files sent through it
    fast_lane_off: str | None = None  # why not all were, or null
    skipped_by_reason: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        """One more file was skipped."""
        self.skipped += 1
        self.skipped_by_reason[reason] = self.skipped_by_reason.get(reason, 0) + 1


class Progress(NamedTuple):
    """The progress of an upload, all processes together. Only resent data is counted twice."""

    files: int  # acknowledged by the store
    bytes: int  # the same, including those of unfinished files
    settled_files: int  # pending files that need not be sent: they are unchanged, or gone
    settled_bytes: int  # of these files
    failed: int  # files so far; some are retried once at the end
    in_flight: int  # requests waiting for an answer
    limit: int  # the current one on requests in flight
    throttled: int  # requests
    stopping: bool  # whether nothing new is started any more
    away: str  # how long and why the store has been unavailable; empty if it is not
    files_to_upload: int  # pending at the start
    bytes_to_upload: int  # the same, without what the store already has as parts


def refused_text(row: RefusedRow) -> str:
    """One line about a store that refuses everything."""
    causes = "; ".join(f"{count} x {cause}" for cause, count in row.codes.most_common(3))
    return f"the store refused {len(row)} files in a row, from other directories too: {causes}"


class FailureGroups:
    """Reports failures as they happen: the first of each cause immediately, then counts."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._counts: Counter[str] = Counter()
        self._paths: dict[str, list[str]] = {}
        self._due: dict[str, int] = {}

    def add(self, path: str, cause: str) -> None:
        """One more file has failed."""
        if cause not in self._counts and len(self._counts) >= TOLD_CAUSES:
            cause = "for other reasons, see the ledger"
        self._counts[cause] += 1
        count, paths = self._counts[cause], self._paths.setdefault(cause, [])
        if count == 1:
            self._observer.problem(f"failed: {path}: {cause}")
        elif len(paths) < TOLD_PATHS:
            paths.append(path)
        if count == self._due.setdefault(cause, COUNTED_STEP):
            self._due[cause] *= COUNTED_STEP
            self._observer.problem(f"failed: {count:,} files so far: {cause}")

    def close(self) -> None:
        """Report the final counts."""
        for cause, paths in self._paths.items():
            if paths:
                more = self._counts[cause] - 1
                named = ", ".join(paths) + ", ..." * (more > len(paths))
                told = f"failed: {count_of(more, 'more file')}: {cause}: {named}"
                self._observer.problem(told)
        self._counts.clear()
        self._paths.clear()


class FileEnd(NamedTuple):
    """How a file ended. What was uploaded is recorded in the ledger by then."""

    path: str
    key: str
    outcome: str  # see ENDS, or "failed"
    bytes: int  # size of the file
    seconds: float  # since its transfer began
    etag: str | None
    sha256: str | None  # hex; of an object in N parts: hash of the parts' hashes, then -N
    reason: str  # of a failure, or of metadata that are not up to date

    @classmethod
    def of(cls, file: FileModel, outcome: Outcome) -> FileEnd:
        """``outcome`` was applied to ``file``."""
        told = ENDS.get(outcome.kind, "failed")
        reason = "" if outcome.kind in SKIPPED else outcome.cause or outcome.error
        ends = file.file_path, file.object_key, told, file.file_size
        return cls(*ends, round(outcome.seconds, 6), file.etag, file.sha256, reason)

    @classmethod
    def planned(cls, change: Change) -> FileEnd:
        """A file that needs work, or that fails without any."""
        found, told, reason = change.found, "pending", change.reason
        if found.problem:
            told, reason = "failed", found.problem
        elif change.keeps_hash:
            reason += "; compared first, only its metadata is updated if the contents are the same"
        return cls(found.path, found.key, told, found.file_size, 0.0, None, None, reason)


ENDS = {
    OutcomeKind.UPLOADED: "uploaded",
    OutcomeKind.RENEWED: "metadata updated",
    OutcomeKind.UNCHANGED: "unchanged",
    OutcomeKind.VANISHED: "vanished",
    OutcomeKind.KEPT: "kept",
}


class Observer:
    """Receives the events of a run. All methods may be overridden; none must be."""

    wants_files = False  # whether ended() is called

    def ended(self, end: FileEnd) -> None:
        """A file that needed work has ended; in a dry run: this file needs work."""

    def note(self, text: str) -> None:
        """Something a user may want to know."""

    def problem(self, text: str) -> None:
        """Something that went wrong."""

    def detail(self, text: str) -> None:
        """Something that few want to know."""

    def made_ledger(self, path: str) -> None:
        """There was no ledger yet; this one is made."""

    def busy(self, what: str, text: str) -> None:
        """What the run is doing, while it uploads nothing yet; called several times a second.

        ``what``: scanning, listing (--verify only), checking (the destination), or waiting (for
        it to answer). Checking begins when the scan is done.
        """

    def progress(self, progress: Progress) -> None:
        """The progress of the upload; called several times a second."""

    def stuck(self, reason: str) -> None:
        """The run does not end although it was stopped: it is stuck in a system call.

        Called once, in its own thread. Nothing that was recorded is lost if the process ends.
        """


MOST_LISTINGS = 4  # of names, in one run


class Doubts:
    """Holds successes back until the store has answered what they raise.

    The first object is looked up to see whether this is a store, see Uploader.prove(): the first
    that is not empty; if there is none, or none for long, the first one. Then, of each kind of odd
    key, the first one: a store that keeps `a\\b` as `a/b` has one object for two files. If the
    answer is inconclusive the next one is looked up, up to MOST_LISTINGS per run.
    """

    def __init__(self, uploader: Uploader, since: float) -> None:
        self.lost: set[str] = set()  # keys that were sent and have overwritten others
        self.held: list[tuple[Outcome, FileModel]] = []
        self._since = since
        is_silent = not uploader.shows_objects
        self._is_proven = self._is_proving = is_silent
        self._known = dict.fromkeys(ODD_IN_KEYS if is_silent else (), "")  # or what a key became
        self._asked: dict[str, tuple[str, frozenset[str]]] = {}  # key and kinds, by task
        self._looked_for: set[str] = set()  # keys
        self._tasks: list[AnyTask] = []

    def problem(self, key: str) -> str | None:
        """Why a file with this key cannot be in the store; None: not known yet."""
        kinds = odd_kinds(key)
        if not kinds:
            return ""
        example = next(filter(None, map(self._known.get, kinds)), "")
        if example:
            return f"{KEPT_OTHERWISE}, as it did {example}"
        return None if kinds - self._known.keys() else ""

    def sift(
        self, outcomes: Sequence[AnyOutcome], taken: Mapping[str, FileModel]
    ) -> list[AnyOutcome]:
        """The outcomes that may be processed now."""
        rest: list[AnyOutcome] = []
        for outcome in outcomes:
            if isinstance(outcome, Outcome) and outcome.kind is OutcomeKind.UPLOADED:
                rest += self._weigh(outcome, taken[file_id_of(outcome.id)])
            elif outcome.id.endswith(("/proof", "/name")):
                held, self.held = self.held, []
                self._heed(outcome)
                for success, file in held:
                    rest += self._weigh(success, file)
            else:
                rest.append(outcome)
        return rest

    def _weigh(self, success: Outcome, file: FileModel) -> Sequence[Outcome]:
        problem = self.problem(file.object_key) if self._is_proven else None
        if problem:
            self.lost.add(file.object_key)
            return (as_kept_otherwise(success._replace(sent=True), problem),)
        if problem is not None:
            return (success,)
        self.held.append((success, file))
        if self._is_proven:
            self._look_up(success, file)
        return ()

    def _look_up(self, success: Outcome, file: FileModel) -> None:
        """Find out how the store keeps such names, unless that is under way."""
        key = file.object_key
        asked = {kind for _, kinds in self._asked.values() for kind in kinds}
        open_kinds = odd_kinds(key) - self._known.keys()
        if not open_kinds & asked and key not in self._looked_for:
            self._looked_for.add(key)
            task_id = f"{file.id}/name"
            self._asked[task_id] = key, open_kinds
            ask = operator.methodcaller("kept_as", key, success.file_size, self._since)
            self._tasks.append(Question(task_id, key, ask, is_urgent=True))

    def tasks(self, *, is_end: bool = False) -> list[AnyTask]:
        """What to look up; ``is_end``: nothing else is left."""
        tasks, self._tasks = self._tasks, []
        if not self._is_proving and self.held:
            empty = self.held[0] if is_end or len(self.held) >= PAGE_ROWS else None
            first = next((held for held in self.held if held[0].file_size), empty)
            if first:
                self._is_proving = True
                success, file = first
                found = Found(file.id, file.file_path, file.object_key, *facts(success))
                ask = functools.partial(prove, found)
                tasks.append(Question(f"{file.id}/proof", found.key, ask, is_urgent=True))
        return tasks

    def _heed(self, answer: AnyOutcome) -> None:
        """A store that cannot be asked is trusted; one that gives a wrong answer is not."""
        if isinstance(answer, Outcome) and answer.kind in GIVEN_BACK:
            return
        if answer.id.endswith("/proof"):
            self._is_proven = True
            return
        key, kinds = self._asked.pop(answer.id)
        kept_as = answer.answer if isinstance(answer, Answered) else ""
        if kept_as == key:
            self._known.update(dict.fromkeys(kinds, ""))
        elif kept_as:
            altered = kinds - odd_kinds(kept_as) or kinds
            self._known.update(dict.fromkeys(altered, f"{key} ({kept_as})"))
        if not isinstance(answer, Answered) or len(self._looked_for) >= MOST_LISTINGS:
            self.believe()

    def believe(self) -> list[AnyOutcome]:
        """Release everything held that nothing speaks against, to be sifted again."""
        self._known = {**dict.fromkeys(ODD_IN_KEYS, ""), **self._known}
        held, self.held = self.held, []
        return [success for success, _ in held]


def as_kept_otherwise(outcome: Outcome, problem: str) -> Outcome:
    """The corresponding failure."""
    return outcome._replace(kind=OutcomeKind.FAILED, error=problem, cause=KEPT_OTHERWISE)


@dataclass
class LargeFile:
    """A file that is being uploaded in parts."""

    file: FileModel
    known: UploadModel | None  # what the ledger knows of it
    begun: Begun | None = None
    parts: Iterator[PartTask] = field(default_factory=lambda: iter(()))  # not handed out yet
    missing: int = 0  # parts that are not in the store
    unsent: int = 0  # bytes of these
    in_flight: int = 0  # tasks
    problem: Outcome | None = None
    restarts: int = 0
    is_fast: bool = True  # no part went through the safe lane
    opened_at: float = field(default_factory=time.monotonic)

    def parts_without(self, stored: Collection[int]) -> Iterator[PartTask]:
        """The parts that are not stored, in order; whoever takes one has it in flight."""
        file, begun = self.file, self.begun
        assert begun is not None
        for number in range(1, begun.part_count + 1):
            if number not in stored:
                offset = (number - 1) * begun.part_size
                size = min(begun.part_size, begun.snapshot.file_size - offset)
                self.in_flight += 1
                self.unsent -= size
                yield PartTask(
                    part_id(file.id, number),
                    file.file_path,
                    file.object_key,
                    begun.upload_id,
                    number,
                    offset,
                    size,
                    begun.snapshot,
                )


RESTARTS = {OutcomeKind.CHANGED: READ_ATTEMPTS - 1, OutcomeKind.GONE: 1, OutcomeKind.CRAMPED: 1}
STALE_STATUSES = frozenset(
    (400, 404, 409, 412, 501)
)  # not 403 or 507: a new upload would get them too


class Removals:
    """Files that are to be removed here, each once the store shows it and it is still the same."""

    def __init__(self, job: BatchJobModel) -> None:
        self.kept: Counter[str] = Counter()  # files, by the reason why they are still here
        self._ledger = job.ledger
        self._accounts = job.accounts
        self.is_wanted = job.options.remove_source_files
        self._read_files = job.options.scan.read_files
        self._waiting: deque[RemoveTask] = deque()
        self._begun: dict[str, RemoveTask] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, file: FileModel, outcome: Outcome) -> None:
        """A file that the store has; ``outcome`` was applied to it."""
        if not stat.S_ISREG(int(file.permissions, 8)):
            return
        found = Found.of(file)
        what = f"{file.id}/remove", file.object_key, found, file.etag or "", file.sha256 or ""
        task = RemoveTask(*what, outcome.kind, outcome.bytes_sent, file.stale)
        is_read = any(is_same_file(file.file_path, path) for path in self._read_files)
        if file.racy or is_read:
            self._conclude(task, TOO_YOUNG if file.racy else "this run reads it")
        else:
            self._waiting.append(task)

    def take(self) -> list[AnyTask]:
        """A page of tasks."""
        page = [self._waiting.popleft() for _ in range(min(len(self), PAGE_ROWS))]
        self._begun.update((task.id, task) for task in page)
        if page:
            self._ledger.mark_moved([(MOVED, task.found.id) for task in page])
        return [*page]

    def end(self, outcome: AnyOutcome) -> None:
        """What became of a file."""
        task, reason = self._begun.pop(outcome.id), None
        if isinstance(outcome, Answered):
            reason = outcome.answer
        elif isinstance(outcome, Outcome) and outcome.kind not in GIVEN_BACK:
            reason = outcome.cause or outcome.error
        if reason != "":
            self._ledger.mark_moved([(task.stale, task.found.id)])
        if reason is not None:
            self._conclude(task, reason)

    def _conclude(self, task: RemoveTask, reason: str) -> None:
        """``reason``: why the file is still here; empty if it is not."""
        found, told = task.found, "not removed"
        if not reason:
            told = "removed"
            self._accounts.summary.removed += 1
        elif reason in (LOST, REPLACED):
            told = "failed"
            self._ledger.record_lost([(found.id, reason)])
            self._accounts.lose(task, reason)
        else:
            self.kept[reason] += 1
        ends = found.path, found.key, told, found.file_size, 0.0, task.etag, task.sha256
        self._accounts.end(FileEnd(*ends, reason))


class WorkList:
    """Decides what to do next, and what follows from each outcome.

    Pending files come from the ledger page by page, smallest first. Files in progress go before new
    ones, so few large files are open at a time.
    """

    def __init__(self, job: BatchJobModel, files: int, *, whole: bool) -> None:
        """``files``: how many are pending; ``whole``: the scan saw everything."""
        ledger = job.ledger
        self.removals = Removals(job)
        self._ledger = ledger
        self._job = job
        self._accounts = job.accounts
        self._files = files
        self._page_share = 2 * job.options.processes()
        self._doubts = Doubts(job.uploader, job.created_at)
        self._prefix = job.uploader.prefix
        root = ledger.renamed[0] or job.root_dir
        self._below_root = root.rstrip("/") + "/"
        self._threshold = threshold_of(job.uploader, job.options)
        self._ended: list[Outcome] = []  # of files that need not be sent
        self._later: deque[FileModel] = deque()  # temporary failures: retried once at the end
        self._was_tried: set[str] = set()  # of those, and of those handed out of turn
        self._taken: dict[str, FileModel] = {}
        self._pending = self._pending_pages()
        self._ready: deque[AnyTask] = deque()
        self.large = LargeFiles(job, self._ready, self._was_tried, whole=whole)

    def next_page(self, is_first: bool) -> list[AnyTask]:
        """What can be done now; empty if something in progress must end first, or all is done.

        Work for boto3 goes to the first runner only: its client takes 30 MB.
        """
        if len(self.removals) >= PAGE_ROWS:
            return self.removals.take()
        page = self._take_ready() if is_first else []
        page += self.large.take_parts(self._page_share)
        if not page:
            page = self._take_pending()
        if not page and is_first:
            page = self._take_ready() or self.large.take_left_over()
        if not page and is_first:
            is_end = len(self._taken) == len(self._doubts.held)
            page = self._doubts.tasks(is_end=is_end) or self._take_later()
        return page or self.removals.take()

    def take_others(self, count: int, directories: set[str]) -> list[AnyTask]:
        """Files of other directories than these: see RefusedRow."""
        page = self._ledger.begin_elsewhere(self._job.id, count, directories, self._taken)
        self._was_tried.update(file.id for file in page)
        return [*self._tasks_of(self._with_a_name(page)), *self._take_ready()]

    def take_following(self, files: Collection[str]) -> list[AnyTask]:
        """The further tasks of these files, and whatever looks at what was sent."""
        ready = [task for task in self._ready if is_urgent(task) or file_id_of(task.id) in files]
        for task in ready:
            self._ready.remove(task)
        return [*ready, *self.large.next_parts(files)]

    @property
    def left(self) -> int:
        """Files that are not finished."""
        return max(self._files, 0) + len(self._taken)

    def take_back(self, outcomes: Sequence[AnyOutcome]) -> None:
        """Write outcomes to the ledger, and count them."""
        outcomes = self._doubts.sift(outcomes, self._taken)
        self._ready.extend(self._doubts.tasks())
        ended, self._ended = self._ended, []
        if outcomes or ended:
            with self._ledger.together():
                ended += [end for end in map(self._follow, outcomes) if end]
                self._record(ended)
                self._ledger.lose_objects(self._job, self._doubts.lost)

    def last(self, is_stopping: Callable[[], bool]) -> Iterator[list[AnyOutcome]]:
        """The outcomes left to process when nothing is in progress any more."""
        yield [] if is_stopping() else self._doubts.believe()

    # -- out

    def _take_ready(self) -> list[AnyTask]:
        return [self._ready.popleft() for _ in range(min(len(self._ready), PAGE_ROWS))]

    def _take_pending(self) -> list[AnyTask]:
        if len(self.large) >= MAX_OPEN_UPLOADS:
            return []
        return self._tasks_of(next(self._pending, []))

    def _pending_pages(self) -> Iterator[list[FileModel]]:
        """Pages get smaller towards the end, so that all processes finish together."""
        for turn in range(len(TURNS)):
            position = (-1, "")
            while page := self._begin_page(position, turn):
                position = page[-1].file_size, page[-1].id
                page = [file for file in page if file.id not in self._was_tried]
                if page := self._with_a_name(page):
                    yield page

    def _begin_page(self, position: tuple[int, str], turn: int) -> list[FileModel]:
        rows = max(20, min(PAGE_ROWS, self._files // self._page_share))
        return self._ledger.begin_page(self._job.id, position, rows, PAGE_BYTES, turn)

    def _with_a_name(self, page: Iterable[FileModel]) -> list[FileModel]:
        """Those of a page that would overwrite no object of another file; the others fail."""
        fine: list[FileModel] = []
        for file in page:
            problem = self._doubts.problem(file.object_key)
            if not problem and file.error and file.error.startswith(KEPT_OTHERWISE):
                problem = file.error  # of an earlier run
            if problem:
                self._files -= 1
                self._taken[file.id] = file
                self._ended.append(as_kept_otherwise(Outcome(file.id, OutcomeKind.FAILED), problem))
            else:
                fine.append(file)
        return fine

    def _tasks_of(self, page: Sequence[FileModel]) -> list[AnyTask]:
        """Tasks of small files; large ones are prepared."""
        self._files -= len(page)
        for file in page:
            self._check(file)
        self._taken.update((file.id, file) for file in page)
        large = [file for file in page if file.file_size > self._threshold]
        small = [file for file in page if file.file_size <= self._threshold]
        self._ledger.doubt_hashes(small)
        if large:
            with self._ledger.together():
                self._ready.extend(map(self.large.open, large))
        return list(map(task_of, small))

    def _check(self, row: FileModel) -> None:
        """Raises LedgerError for a row whose file or key is outside this run."""
        path, key = f"{row.file_path}/", row.object_key
        is_below = path.startswith(self._below_root) and "/../" not in path
        if not is_below or not key.startswith(self._prefix):
            cause = f"it maps {row.file_path} to {key}, which is outside this run"
            raise LedgerError("read ledger", self._ledger.path, cause, MOVE_AWAY)

    def _take_later(self) -> list[AnyTask]:
        """Temporary failures, once more."""
        again, self._later = self._later, deque()
        return self._tasks_of(again) or self._take_ready()

    # -- back

    def _follow(self, outcome: AnyOutcome) -> Outcome | None:
        """Process an outcome. Returns that of a finished file."""
        file_id, _, step = outcome.id.partition("/")
        if step == "remove":
            self.removals.end(outcome)
            return None
        end = self.large.follow(outcome) if step else outcome
        if not isinstance(end, Outcome):
            return None
        if end.kind is OutcomeKind.LARGE:
            self._ready.append(self.large.open(self._taken[file_id]))
            return None
        if end.kind is OutcomeKind.UNSENT and file_id not in self._was_tried:
            self._was_tried.add(file_id)
            self._later.append(self._taken.pop(file_id))
            self._files += 1
            return None
        if not step and file_id in self.large.begun_before and end.kind in STORED:
            self.large.abort(self.large.begun_before[file_id])
        return end

    def _record(self, ended: Sequence[Outcome]) -> None:
        files: list[FileModel] = []
        gone: list[FileModel] = []
        for outcome in ended:
            file, kind = self._taken.pop(outcome.id), outcome.kind
            if kind is OutcomeKind.VANISHED:
                gone.append(file)
            else:
                if kind is OutcomeKind.UPLOADED and (file.sha256 or file.etag):
                    self._accounts.differed += 1
                file.apply(outcome)
                files.append(file)
            self._accounts.add(file, outcome)
            if self.removals.is_wanted and kind in STORED:
                self.removals.add(file, outcome)
        self._ledger.record(files, gone)


class LargeFiles:
    """Uploads in parts: each is begun, its parts are handed out in order, then it is completed.

    What the store has acknowledged is kept for the next try and the next run, unless the file is
    gone, or in the store in another way.
    """

    def __init__(
        self, job: BatchJobModel, ready: deque[AnyTask], was_tried: Collection[str], *, whole: bool
    ) -> None:
        """``ready``: takes tasks for boto3; ``was_tried``: files that this run has tried."""
        takes_parts = job.uploader.takes_parts
        self.resumed_bytes = 0  # that need not be sent, since this was last set to 0
        self.failed_abort = ""  # why an unwanted upload could not be aborted
        self._ledger = job.ledger
        self._job = job
        self._ready = ready
        self._was_tried = was_tried
        self._has_begun_anew = False  # an upload of an earlier run that was refused
        self._most_parts = MAX_PARTS  # until the store turns out to allow fewer
        self._aborting: set[str] = set()
        self._large: dict[str, LargeFile] = {}
        self._left_over = job.ledger.left_over_uploads(job) if takes_parts and whole else iter(())
        begun = job.ledger.unfinished_uploads() if takes_parts else ()
        self.begun_before = {upload.id: upload for upload in begun}

    def __len__(self) -> int:
        return len(self._large)

    # -- out

    def take_parts(self, share: int) -> list[AnyTask]:
        """Like other pages, pages of parts get smaller towards the end."""
        page: list[AnyTask] = []
        size = min(PAGE_BYTES, sum(large.unsent for large in self._large.values()) // share)
        for part in itertools.chain.from_iterable(large.parts for large in self._large.values()):
            page.append(part)
            size -= part.size
            if size <= 0:
                break
        return page

    def next_parts(self, files: Collection[str]) -> list[AnyTask]:
        """One part of each of these files that has one."""
        parts = (next(self._large[name].parts, None) for name in files if name in self._large)
        return [part for part in parts if part]

    def take_left_over(self) -> list[AnyTask]:
        """Aborts uploads of earlier runs that are no longer wanted."""
        return list(itertools.islice(self._abort_tasks(self._left_over), MAX_OPEN_UPLOADS))

    # -- back

    def follow(self, outcome: AnyOutcome) -> Outcome | None:
        """Process the outcome of a step. Returns that of a finished file."""
        file_id, _, step = outcome.id.partition("/")
        if step == "abort":
            self._end_abort(file_id, outcome)
            return None
        large = self._large[file_id]
        large.in_flight -= 1
        if isinstance(outcome, Begun):
            self._take_begun(large, outcome)
        elif isinstance(outcome, PartDone):
            self._ledger.save(PartModel(outcome.id, *outcome.part))
            large.missing -= 1
            large.is_fast &= outcome.fast
        elif isinstance(outcome, Outcome):
            if outcome.kind in STORED:
                return self._end(large, outcome)
            large.problem = large.problem or outcome
            if outcome.kind is OutcomeKind.CRAMPED:
                self._most_parts = min(self._most_parts, int(step) - 1)
            large.parts, large.unsent = iter(()), 0
        if large.problem:
            return None if large.in_flight else self._give_up(large, large.problem)
        if not large.missing:
            self._complete(large)
        return None

    def _end_abort(self, file_id: str, outcome: AnyOutcome) -> None:
        if isinstance(outcome, Answered):
            self._ledger.forget_upload(file_id)
        elif isinstance(outcome, Outcome) and outcome.error:
            self.failed_abort = outcome.error

    def open(self, file: FileModel) -> BeginTask:
        """A large file is next."""
        large = LargeFile(file, self._ledger.unfinished_upload(file.id))
        self._large[file.id] = large
        if large.known and file.id not in self._was_tried:
            self._ledger.count_headway(large.known)
        return self._begin(large)

    def _begin(self, large: LargeFile, *, anew: bool = False) -> BeginTask:
        file, known = large.file, large.known
        stored = stored_parts(self._ledger.parts(file.id)) if known else ()
        large.in_flight += 1
        name, most_parts = f"{file.id}/begin", self._most_parts
        return BeginTask(name, task_of(file), known, stored, anew, most_parts)

    def _upload_row(self, large: LargeFile, begun: Begun) -> UploadModel:
        return UploadModel(
            id=large.file.id,
            upload_id=begun.upload_id,
            created_at=int(time.time()),
            batch_id=self._job.id,
            destination=self._job.destination,
            endpoint=self._job.endpoint,
            object_key=large.file.object_key,
            part_size=begun.part_size,
            inode=begun.snapshot.inode,
            changed_at=begun.snapshot.changed_at or 0,
            racy=begun.racy,
            fingerprint=begun.fingerprint,
            most_bytes=large.known.most_bytes if large.known else 0,
            idle_runs=large.known.idle_runs if large.known else 0,
        )

    def _take_begun(self, large: LargeFile, begun: Begun) -> None:
        known, file_id = large.known, large.file.id
        if known and known.upload_id == begun.upload_id:
            before = {part.number for part in self._ledger.parts(file_id)}
            self._ledger.forget_parts(file_id, before - {part.number for part in begun.parts})
        else:
            large.known = self._upload_row(large, begun)
            self._ledger.save_upload(large.known)
            self._ledger.doubt_hashes([large.file])
        large.begun = begun
        stored = {part.number for part in begun.parts}
        large.missing = begun.part_count - len(stored)
        resumed = sum(part.size for part in begun.parts)
        self.resumed_bytes += resumed
        large.unsent = begun.snapshot.file_size - resumed
        large.parts = large.parts_without(stored)

    def _complete(self, large: LargeFile) -> None:
        begun, file_id = large.begun, large.file.id
        assert begun is not None
        large.in_flight += 1
        parts = stored_parts(self._ledger.parts(file_id))
        self._ready.append(CompleteTask(f"{file_id}/complete", task_of(large.file), begun, parts))

    def _end(self, large: LargeFile, outcome: Outcome) -> Outcome:
        """The parts in the store are kept for the next run, unless the file needs them no more."""
        kind, file_id = outcome.kind, large.file.id
        del self._large[file_id]
        if kind is OutcomeKind.UPLOADED:
            self._ledger.forget_upload(file_id)
            self._job.summary.fast_lane += large.is_fast and large.begun is not None
        elif large.known and (kind in STORED or kind in SKIPPED):
            self.abort(large.known)
        return outcome._replace(id=file_id, seconds=time.monotonic() - large.opened_at)

    def _give_up(self, large: LargeFile, problem: Outcome) -> Outcome | None:
        """A large file cannot be uploaded as it was started: start over, or give up."""
        kind = problem.kind
        if large.restarts < RESTARTS.get(kind, 0) or self._is_stale(large, problem):
            large.restarts += 1
            large.problem = None
            self._ready.append(self._begin(large, anew=kind is not OutcomeKind.CHANGED))
            return None
        if kind in RESTARTS:
            problem = problem._replace(kind=OutcomeKind.FAILED)
        return self._end(large, problem)

    def _is_stale(self, large: LargeFile, problem: Outcome) -> bool:
        """Whether an upload resumed from an earlier run is refused; at most once a run."""
        is_refused = problem.kind is OutcomeKind.REFUSED and problem.status in STALE_STATUSES
        is_old = bool(large.begun and large.known and large.known.batch_id != self._job.id)
        is_stale = is_refused and is_old and not self._has_begun_anew
        self._has_begun_anew |= is_stale
        return is_stale

    def abort(self, upload: UploadModel) -> None:
        """It is no longer wanted."""
        self._ready.extend(self._abort_tasks([upload]))

    def _abort_tasks(self, uploads: Iterable[UploadModel]) -> Iterator[Question]:
        """No task for uploads whose abort has already been requested."""
        for upload in uploads:
            if upload.id not in self._aborting:
                self._aborting.add(upload.id)
                key = upload.object_key
                abort = operator.methodcaller("abort", key, upload.upload_id)
                yield Question(f"{upload.id}/abort", key, abort)


def threshold_of(uploader: Uploader, options: RunOptions) -> int:
    """Bytes; larger files go up in parts."""
    return options.engine().threshold if uploader.takes_parts else sys.maxsize


def task_of(file: FileModel) -> Task:
    """What a runner must know about a file."""
    return Task(
        file.id,
        file.file_path,
        file.object_key,
        file.file_size,
        file.permissions,
        stored_of(file),
    )


def stored_of(file: FileModel) -> Stored | None:
    """What the store has of a file according to the ledger, if its digest is known."""
    if not file.sha256 and not file.etag:
        return None
    known, is_stale = Facts._make(facts(file)), file.stale in (OUTDATED, SPARED)
    if file.racy and known.changed_at is not None:
        known = known._replace(changed_at=NEVER)  # its ctime proves nothing
    return Stored(known, file.etag or "", file.sha256 or "", file.part_size or 0, is_stale)


VERIFY_MODE = "verify"  # BatchJob.mode of a verification


COUNTS = "seen", "uploaded", "unchanged", "skipped", "failed", "pending", "bytes_uploaded"


class Stop(NamedTuple):
    """Why a run ends early."""

    exit_code: ExitCode
    reason: str


class Accounts:
    """Counts files: each that is seen is uploaded, unchanged, skipped, failed, or pending."""

    def __init__(self, summary: Summary, observer: Observer) -> None:
        self.summary = summary
        self.groups = FailureGroups(observer)
        self._observer = observer
        self._ended: list[FileEnd] = []
        self.settled_files = self.settled_bytes = 0  # pending ones that need not be sent
        self.differed = 0  # files whose bytes were compared and differed
        self.stale = 0  # files whose metadata the store would not update
        self.refusal = ""  # why

    @contextlib.contextmanager
    def recorded(self, ledger: Ledger) -> Iterator[None]:
        """One transaction: what the ledger does not take does not count."""
        summary = self.summary
        before = {**vars(summary), "skipped_by_reason": {**summary.skipped_by_reason}}
        try:
            with ledger.together():
                yield
        except BaseException:
            vars(summary).update(before)
            raise

    def add(self, file: FileModel, outcome: Outcome) -> None:
        """A file has ended; ``outcome`` was applied to it."""
        kind, size = outcome.kind, outcome.file_size
        if kind in STORED:
            self._count_stored(kind, outcome.bytes_sent)
        elif kind in SKIPPED:
            self.summary.skip(SKIPPED[kind])
        elif kind not in GIVEN_BACK:
            self.fail(file.file_path, outcome.cause or outcome.error)
        if kind is OutcomeKind.UNCHANGED or kind in SKIPPED:
            self.settled_files += 1
            self.settled_bytes += size
        if outcome.stale:
            self.stale += 1
            self.refusal = self.refusal or outcome.error
        if self._observer.wants_files and kind not in GIVEN_BACK:
            self._ended.append(FileEnd.of(file, outcome))

    def end(self, end: FileEnd) -> None:
        """To be told to the observer, once the ledger knows it."""
        if self._observer.wants_files:
            self._ended.append(end)

    def tell(self) -> None:
        """The ledger knows it."""
        ended, self._ended = self._ended, []
        for end in ended:
            self._observer.ended(end)

    def _count_stored(self, kind: OutcomeKind, sent: int, files: int = 1) -> None:
        self.summary.uploaded += files * (kind in SENT_WHOLE)
        self.summary.renewed += files * (kind is OutcomeKind.RENEWED)
        self.summary.unchanged += files * (kind is OutcomeKind.UNCHANGED)
        self.summary.bytes_uploaded += sent

    def lose(self, task: RemoveTask, reason: str) -> None:
        """A file was counted as stored, and the store does not show it."""
        self._count_stored(task.kind, -task.bytes_sent, -1)
        self.fail(task.found.path, reason)

    def fail(self, path: str, cause: str) -> None:
        """A file has failed."""
        self.summary.failed += 1
        self.groups.add(path, cause)

    def balance(self) -> None:
        """All other files are pending."""
        told = self.summary
        told.pending = told.seen - told.uploaded - told.unchanged - told.skipped - told.failed


class BatchJobModel(BatchJobRow):
    """One upload session: scans a directory into the ledger and uploads it, page by page."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        uploader: Uploader,
        db: str | os.PathLike[str] = "pfu.db",
        options: RunOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        """A session that uploads ``root`` with ``uploader`` and keeps its ledger in ``db``.

        Nothing is accessed before run() or dry_run(). Raises UsageError.
        """
        self.uploader = uploader
        self.options = options or RunOptions()
        self.observer = observer or Observer()
        self.db = absolute(db)
        self._began = time.monotonic()
        self.stopped: Stop | None = None
        self.source = absolute(root)
        self.place = DestinationModel(None, "", "")
        self.is_taken_over = False  # from another ROOT
        self.summary = Summary(mode=self.options.mode)
        self.accounts = Accounts(self.summary, self.observer)
        self.memory = MemoryGauge()
        self.comparison: Comparison | None = None
        self.preparation: Preparation | None = None
        self._sending = Sending(self)
        super().__init__(
            id=os.urandom(16).hex(),
            status=JobStatus.CREATED,
            created_at=int(time.time()),
            root_dir=absolute(self.options.root_as or root),
            destination="",
            mode=self.options.mode,
        )

    # -- for callers

    def run(self) -> Summary:
        """Scan, upload, and return the summary.

        Raises PfuError if the run cannot start; a run that has started always returns a summary,
        with ``exit_code`` and, if it stopped early, ``error``.
        """
        spare_addresses()
        self.change_options(*self.options.fitted())
        with self._session():
            self._run()
        return self.summary

    def change_options(self, options: RunOptions, told: str) -> None:
        """Limit a run to what the machine has room for; ``told`` says why."""
        self.options = options
        self.mode = self.summary.mode = options.mode
        if told:
            self.note(told)

    def dry_run(self) -> Summary:
        """Scan, compare and report to the observer what would be done; write nothing anywhere."""
        self._find_ends()
        with contextlib.closing(Ledger(self.db, read_only=True)) as self.ledger:
            self.ledger.fold()
            self._find_place()
            self.compare().plan()
        summary = self.summary
        summary.status = "dry run"
        summary.exit_code = ExitCode.INCOMPLETE if summary.failed else ExitCode.OK
        if self.stopped:
            summary.exit_code, summary.error = self.stopped
        self._measure()
        return summary

    def verify(self) -> Verdict:
        """Compare the store with the ledger and the tree; differing files become pending.

        With the option ``checksum`` the bytes of each object are checked too. Raises PfuError.
        """
        with self._session():
            return Verification(self).run()

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.STOPPED) -> None:
        """Accept no further work; finish or drop what is in flight. Safe in a signal handler."""
        if self.stopped is None:
            self.stopped = Stop(exit_code, shortened(reason))

    @contextlib.contextmanager
    def _session(self) -> Iterator[None]:
        """Find both ends, lock the ledger, tidy up after the last run, and start the watchdog.

        Raises PfuError.
        """
        self._find_ends()
        lower_priority(self.options.nice)
        with contextlib.ExitStack() as closing:
            self._lock = LedgerLock(self.db)
            closing.callback(self._lock.close)
            closing.enter_context(self._watched())
            self.ledger = Ledger(self.db)
            closing.callback(self.ledger.close)
            if self.ledger.is_new:
                self.observer.made_ledger(self.db)
            self.ledger.fold()
            self.ledger.interrupt_unfinished_jobs()
            self._find_place()
            self.ledger.save_destination(self.place)
            yield

    def _find_place(self) -> None:
        """What the ledger knows of the destination. Raises UsageError if another ROOT has it."""
        self.place = place = self.ledger.destination(self)
        if self.source != self.root_dir:
            self.ledger.renamed = self.source.rstrip("/"), self.root_dir.rstrip("/")
        if self.endpoint == SANDBOX_ENDPOINT and place.id and not self.ledger.read_only:
            self.ledger.forget_files(place)
        is_known = self.ledger.has_uploads(place)
        is_new = not is_known and not self.ledger.has_files(place)
        self.uploader.first_root = self.root_dir if is_new and not self.options.scan.shard else ""
        if is_known and place.root_dir and base_of(place.root_dir) != base_of(self.root_dir):
            self._take_over(place.root_dir)
        place.root_dir = self.root_dir

    def _take_over(self, known_root: str) -> None:
        """The files there are those of another ROOT: is it the same one?"""
        old, new = base_of(known_root), base_of(self.source)
        self.is_taken_over = not os.path.exists(old) or is_same_file(old, new)
        if not self.is_taken_over:
            hint = (
                f"choose another --db, or pass --root-as {shlex.quote(known_root)} if both are one"
            )
            cause = f"this ledger has {self.destination} as a copy of {known_root}"
            raise UsageError("use root", self.root_dir, cause, hint)
        self.note(f"{known_root} is now {self.root_dir}: files are compared, not uploaded again")

    # -- the watchdog

    def _watched(self) -> Watchdog:
        return Watchdog(
            self._movement,
            lambda: self.stop(self._silence(WATCH_SECONDS), ExitCode.INCOMPLETE),
            lambda: self.observer.stuck(self._silence(WATCH_SECONDS + GIVE_UP_SECONDS)),
        )

    def _movement(self) -> tuple[float, ...]:
        """Changes as long as there is any progress."""
        summary, traffic, engine = self.summary, self.uploader.traffic, self._sending.engine
        beats = self.comparison.scan.beats if self.comparison else 0
        sent = tuple(map(engine.total, Gauges.FROM_RUNNER)) if engine else ()
        counts = summary.seen, summary.uploaded, summary.unchanged, summary.skipped
        return (self.status, beats, *counts, traffic.requests, traffic.beats, *sent)

    def _silence(self, seconds: float) -> str:
        return f"no progress for {seconds:.0f} s: waiting for {self._waits_for()}"

    def _waits_for(self) -> str:
        scan = self.comparison and self.comparison.scan
        if self.mode == VERIFY_MODE and scan is None:
            return f"the store to list {self.destination}"
        if self.status == JobStatus.SCANNING:
            return f"the file system, at {scan.where if scan else self.root_dir}"
        return self._sending.waits_for() or f"the ledger, {self.db}"

    # -- the session, step by step

    def prepare(self) -> Preparation:
        """Prepare the destination, once, while the scan goes on."""
        if self.preparation is None:
            self.preparation = Preparation(self.uploader, self.first_patience())
        return self.preparation

    @property
    def patience(self) -> float:
        """Seconds that the store may be unavailable."""
        told = self.options.patience
        return PATIENCE_SECONDS if told is None else told

    def first_patience(self) -> float:
        """Before its first answer: a mistyped URL must not cost minutes, a job at boot may wait."""
        is_known = self.options.patience is not None or self.ledger.has_uploads(self.place)
        return self.patience if is_known else FIRST_SECONDS

    def _find_ends(self) -> None:
        """Check that ROOT can be read, and resolve the destination."""
        try:
            mode = os.stat(self.source).st_mode
        except OSError as error:
            raise UsageError("read root", self.source, os_cause(error)) from error
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            cause = f"it is a {kind_of(mode)}"
            raise UsageError("read root", self.root_dir, cause, "specify a directory or a file")
        if self.options.remove_source_files and not self.uploader.shows_objects:
            raise UsageError("remove source files", "", "this provider cannot show its objects")
        descriptor_limit()  # the walk keeps one directory open per level
        self.uploader.patience = self.patience
        self._resolve()
        self.destination, self.endpoint = self.uploader.destination, self.uploader.endpoint
        self.summary.batch_id, self.summary.root = self.id, self.root_dir
        self.summary.destination = self.destination

    def _resolve(self) -> None:
        """In another thread, so that this one can react to a stop."""
        thread = ThreadPoolExecutor(1)
        try:
            answer = thread.submit(self.uploader.resolve)
        except RuntimeError:  # no further thread is possible
            self.uploader.resolve()
            return
        try:
            self.wait_for(answer)
        finally:
            thread.shutdown(wait=answer.done())  # forking is not safe while other threads run

    def wait_for(self, answer: Future[T]) -> T:
        """The answer. Raises StoppedError if the run is stopped first."""
        while not wait_for_futures((answer,), TICK_SECONDS).done:
            self.heed_stop()
        return answer.result()

    def heed_stop(self) -> None:
        """Raises StoppedError if the run has been stopped."""
        if self.is_stopping() and self.stopped:
            raise StoppedError("stopped", "", self.stopped.reason)

    def _run(self) -> None:
        try:
            self.save(JobStatus.SCANNING)
            comparison = self._take_in_tree()
            self.save(JobStatus.UPLOADING)
            self._sending.upload_all(comparison)
        except LedgerError as error:
            code = ExitCode.INCOMPLETE if self._sending.has_sent else error.exit_code
            self.stopped = Stop(code, str(error))
        except StoppedError:
            pass  # it is known why
        except PfuError as error:
            self.stopped = Stop(error.exit_code, str(error))
        except Exception as error:  # noqa: BLE001  any error goes to the ledger and one line
            self.stopped = Stop(ExitCode.INCOMPLETE, internal_error(error))
        if self.preparation:
            self.preparation.close()
        try:
            self._finish()
        except LedgerError as error:
            self.stopped = self.stopped or Stop(ExitCode.INCOMPLETE, str(error))
            self._conclude()

    def save(self, status: JobStatus) -> None:
        """Write a new status to the ledger."""
        self.move_to(status)
        self.ledger.save(self)

    def _take_in_tree(self) -> Comparison:
        """Scan ROOT into the ledger."""
        comparison = self.compare()
        for many in batches(comparison.changes(), SCAN_COMMIT):
            with self.ledger.together():
                for few in batches(many, SCAN_BATCH):
                    self.prepare()
                    self.ledger.take_in(few, self.id, self.created_at, self.place)
                self.write_counts()
            self.accounts.tell()
        comparison.count_skipped()
        self.write_counts()
        if not self.stopped:
            comparison.find_root()
            comparison.refuse_empty(self.summary.seen)
            comparison.sweep()
        return comparison

    def compare(self) -> Comparison:
        """Begin to scan ROOT."""
        self.comparison = Comparison(self)
        return self.comparison

    def note(self, note: str) -> None:
        """Show a note once."""
        if note not in self.summary.notes:
            self.summary.notes.append(note)
            self.observer.note(note)

    def warn(self, note: str) -> None:
        """Show a note even if notes are not wanted."""
        self.summary.notes.append(note)
        self.observer.problem(note)

    def is_stopping(self) -> bool:
        """Whether nothing new is to be started: after a signal, or at the time limit."""
        limit = self.options.max_duration
        if limit and time.monotonic() - self._began > limit:
            self.stop(f"time limit of {limit:g} s reached")
        return self.stopped is not None

    # -- the end

    def _finish(self) -> None:
        """Count, check the counts, and close the run in the ledger."""
        self._name_idle()
        self.accounts.groups.close()
        ledger, summary = self.ledger, self.summary
        ledger.fold()
        summary.failed, failures = ledger.failures(self.id, REPORTED_FAILURES)
        summary.failures = [{"path": path, "reason": reason} for path, reason in failures]
        pending, summary.bytes_pending = ledger.pending(self.id)
        self._conclude()
        if pending != summary.pending and not self.stopped:
            self.observer.problem(
                f"internal error: {summary.pending} files are unaccounted for, "
                f"the ledger has {pending} pending"
            )
        self.finished_at, self.error = int(time.time()), summary.error
        self.write_counts()

    def _name_idle(self) -> None:
        """Large files without progress in several runs are failures, if this run had a chance."""
        if self.stopped and self.stopped.exit_code != ExitCode.STOPPED:
            return
        for file, upload, stored in list(self.ledger.idle_files(self.id)):
            cause = (
                f"no progress in {upload.idle_runs + 1} runs: "
                f"{bytes_text(stored)} of {bytes_text(file.file_size)} are stored "
                "(give it more time, or upload a snapshot if it keeps changing)"
            )
            file.fail(f"upload: {cause}", 0)
            self.ledger.record([file])
            self.accounts.fail(file.file_path, cause)

    def write_counts(self) -> None:
        """For --status, also during the run."""
        self._lock.check_in_place()
        self.ledger.check_in_place()
        self.accounts.balance()
        for name in COUNTS:
            setattr(self, name, getattr(self.summary, name))
        self.ledger.save(self)

    def _conclude(self) -> None:
        """How the run ended, for the ledger and in the summary."""
        self.accounts.balance()
        summary = self.summary
        is_incomplete = bool(summary.failed or summary.pending)
        end = JobStatus.COMPLETE_WITH_FAILURES if is_incomplete else JobStatus.COMPLETE
        summary.exit_code = ExitCode.INCOMPLETE if is_incomplete else ExitCode.OK
        if self.stopped:
            (code, summary.error), end = self.stopped, JobStatus.INTERRUPTED
            has_started = code == ExitCode.CANNOT_START and summary.uploaded
            has_failed = summary.failed or self._sending.is_told_away
            is_more = has_started or (code == ExitCode.STOPPED and has_failed)
            summary.exit_code = ExitCode.INCOMPLETE if is_more else code
        if self.status < JobStatus.COMPLETE:
            self.move_to(end)
        summary.status = end.text
        self._measure()

    def _measure(self) -> None:
        self.summary.elapsed_seconds = round(time.monotonic() - self._began, 3)
        self.summary.cpu_seconds = round(cpu_seconds(), 3)
        self.memory.look(force=True)
        self.summary.peak_memory_bytes = self.memory.peak


class Comparison:
    """The tree compared with the ledger: a scan, and what needs work of what it finds."""

    def __init__(self, job: BatchJobModel) -> None:
        identity = f"{job.endpoint} {job.destination}"
        self.scan = Scan(job.source, identity, job.uploader.prefix, job.options.scan, job.db)
        self.scan.heed_stop = job.heed_stop
        self.moved = 0  # files to be read only because of their ctime or inode
        self.root: Root | None = None
        self._job, self._options, self._ledger = job, job.options, job.ledger
        self._summary, self._accounts = job.summary, job.accounts
        uploader = job.uploader
        self._spares = isinstance(uploader, S3Uploader) and uploader.options.no_overwrite
        due = job.place.swept_at + min(SWEEP_SECONDS, job.options.keep_history)
        is_early = job.place.swept_at <= job.created_at < due  # not if the clock was ahead then
        is_due = not is_early or job.options.scan.shard  # a share cannot stand for others
        is_swept = is_due and not job.ledger.read_only
        self._seen = Counter[int]() if is_swept else None  # a bit for each row, ROWS_SEEN together

    @property
    def is_whole(self) -> bool:
        """Whether the scan saw all files of this ROOT and destination."""
        return self.scan.is_whole and not self.scan.is_single

    def find_root(self) -> Root:
        """Raises FatalError if it is no longer there."""
        scan, source = self.scan, self._job.source
        is_link = scan.is_single and os.path.islink(source)
        folder = os.path.dirname(source) if scan.is_single else source
        self.root = Root(folder, scan.root_place, self._options.scan.follow_symlinks or is_link)
        self.root.check_is_there()
        return self.root

    def refuse_empty(self, files: int) -> None:
        """Raises UsageError if ROOT has become empty."""
        options = self._options
        may_be_empty = self.scan.elsewhere or options.scan.name_lists or options.remove_source_files
        if not files and not may_be_empty and self._ledger.has_uploads(self._job.place):
            cause = "it is empty, but earlier runs uploaded files from it"
            raise UsageError("read root", self._job.root_dir, cause, "is it mounted?")

    def sweep(self) -> None:
        """If the scan saw all: mark files that are gone, and forget those gone for long."""
        job, seen, shard = self._job, self._seen, self._options.scan.shard
        if self.is_whole:
            self._ledger.forget_vanished(job, job.place)
        if not self.is_whole or seen is None:
            return
        cut = len(os.path.join(job.source, ""))

        def is_missing(row: int, path: str) -> bool:
            is_seen = seen[row // ROWS_SEEN] >> row % ROWS_SEEN & 1
            return not is_seen and (shard is None or shard.has(os.fsencode(path[cut:])))

        forgotten = job.created_at - self._options.keep_history
        self._ledger.sweep(job, job.place, is_missing, forgotten)
        job.place.swept_at = job.created_at
        self._ledger.save_destination(job.place)

    def changes(self) -> Iterator[Change]:
        """What needs work, as the scan finds it; a stop ends the scan."""
        found = batches(self.scan, SCAN_BATCH)
        going_on = itertools.takewhile(lambda _: not self._job.is_stopping(), found)
        return itertools.chain.from_iterable(map(self._compare, going_on))

    def _compare(self, batch: Sequence[Found]) -> list[Change]:
        """Those of a batch that need work; the others are counted."""
        known: Mapping[str, Any] = self._ledger.known([found.id for found in batch])
        looks_closer = self._options.force or self._options.reads_all or self._job.is_taken_over
        suspects = [
            found
            for found in batch
            if (row := known.get(found.id)) is None
            or row[FACTS_KNOWN] != found[FACTS_FOUND]
            or row[STATE_KNOWN] != AS_STORED
            or looks_closer
            or found.problem
        ]
        self._summary.seen += len(batch)
        ids = [found.id for found in suspects if found.id in known]
        rows = self._ledger.stored(ids, as_they_are=True) if ids else {}
        changes = self._judge((found, rows.get(found.id)) for found in suspects)
        self._job.memory.look()
        self._summary.unchanged += len(batch) - len(suspects)
        if self._seen is not None:
            for *_, number in known.values():
                self._seen[number // ROWS_SEEN] |= 1 << number % ROWS_SEEN
        self._job.observer.busy("scanning", f"{count_of(self._summary.seen, 'file')} seen")
        return changes

    def _judge(self, suspects: Iterable[tuple[Found, FileModel | None]]) -> list[Change]:
        changes, again = [], []
        for found, known in suspects:
            change = compare(found, known, self._options, taken_over=self._job.is_taken_over)
            if change is None:
                self._summary.unchanged += 1
                if known and known.missing_since is not None:
                    again.append(found.id)
            elif change.reason == MOVED_AWAY or (change.reason == NOT_OVERWRITTEN and self._spares):
                reason = change.reason if found.problem else SKIPPED[OutcomeKind.KEPT]
                self._summary.skip(reason)
            else:
                changes.append(change)
                self.moved += change.reason in MOVED_ALONE
                if found.problem:
                    self._fail(change)
                if change.reason == OLDER_LEDGER:
                    self._job.note(OLDER_LEDGER_NOTE)
        if again and not self._ledger.read_only:
            self._ledger.seen_again(again)
        return changes

    def _fail(self, change: Change) -> None:
        if self._ledger.read_only:  # a dry run reports it elsewhere
            self._summary.failed += 1
            return
        self._accounts.fail(change.found.path, change.found.problem)
        self._accounts.end(FileEnd.planned(change))

    def plan(self) -> None:
        """Tell the observer what a run would do, and count it."""
        job, options, summary, removable = self._job, self._options.engine(), self._summary, 0
        threshold = threshold_of(job.uploader, self._options)
        for change in self.changes():
            if job.observer.wants_files:
                job.observer.ended(FileEnd.planned(change))
            if not change.found.problem:
                size = change.found.file_size
                summary.compared += change.keeps_hash
                summary.bytes_pending += size
                summary.requests += 1
                if size > threshold:  # its parts, the first and the last
                    summary.requests += 1 + -(-size // part_size_for(size, options.part_size))
                removable += stat.S_ISREG(int(change.found.permissions, 8))
        if removable and self._options.remove_source_files:
            told = f"up to {count_of(removable, 'file')} would be removed here"
            job.note(f"{told}, each once the store shows it")
        self.count_skipped()
        self._accounts.balance()
        if not job.stopped:
            self.refuse_empty(summary.seen)
        summary.request_cost_usd = job.uploader.request_cost(summary.requests)

    def count_skipped(self) -> None:
        """Files that the scan left out."""
        skipped, summary = self.scan.skipped, self._summary
        summary.skipped_by_reason = dict(Counter(summary.skipped_by_reason) + skipped)
        summary.skipped += sum(skipped.values())
        summary.seen += sum(skipped.values())


class Sending:
    """The upload of what is pending: an engine, its work list, and what is told meanwhile."""

    def __init__(self, job: BatchJobModel) -> None:
        self.engine: Engine | None = None  # while it works
        self.has_sent = False
        self.is_told_away = 0.0  # seconds that the store has been away, if that was told
        self._job = job
        self._files = self._bytes = 0  # to upload
        self._is_preparing = False

    def waits_for(self) -> str:
        """What has to happen next, in words; empty: nothing here."""
        if self.engine:
            return self.engine.waits_for()
        return f"the store to answer about {self._job.destination}" if self._is_preparing else ""

    def upload_all(self, comparison: Comparison) -> None:
        """Upload all that is pending. Raises PfuError."""
        job = self._job
        files, size = job.ledger.pending(job.id)
        has_left_over = comparison.is_whole and any(job.ledger.left_over_uploads(job))
        if job.is_stopping() or not (files or has_left_over):
            return
        self._files, self._bytes = files, size
        waiting = f"{count_of(files, 'file')} to upload, {bytes_text(size)}"
        job.observer.detail(waiting)
        job.observer.busy("checking", f"the destination; {waiting}")
        if not self._is_prepared():
            return
        with spared_collector(), contextlib.closing(self._make_engine(comparison)) as engine:
            self.engine = engine
            try:
                self._upload_pending(engine, comparison, files)
            finally:
                self._tick(engine)
                self._count_traffic(engine)
        self.engine = None
        if engine.deaths:
            job.warn(f"{engine.deaths} worker process(es) died and were replaced")

    def _is_prepared(self) -> bool:
        """Wait for the destination; False: stopped meanwhile."""
        job, preparation = self._job, self._job.prepare()
        self._is_preparing, began = True, time.monotonic()
        while not preparation.is_done(TICK_SECONDS):
            if preparation.trouble:
                away = time.monotonic() - began
                self._tell_away(away, f"{away:.0f} s: {preparation.trouble}")
                told = f"for the store (Ctrl-C to stop): {preparation.trouble}"
                job.observer.busy("waiting", told)
            if job.is_stopping():
                return False
        notes = preparation.result()
        self._tell_away(0.0, "")
        for note in notes:
            job.note(note)
        self._is_preparing = False
        return True

    def _make_engine(self, comparison: Comparison) -> Engine:
        job = self._job
        if job.options.mode == "parallel" and (lack := what_workers_lack()):
            job.change_options(*job.options.alone(lack))
        limiter = job.options.limiter(job.uploader.fast_lane_off is None)
        options = dataclasses.replace(job.options.engine(), root=comparison.root)
        limits = limiter, job.options.rate, RunClock(job.patience)
        if job.options.mode == "concurrent":
            return Engine([LocalRunner(job.uploader, options)], *limits)
        method = start_method()
        for module in LATE_MODULES:
            importlib.import_module(module)  # which forked workers share
        with contextlib.ExitStack() as started:
            runners: list[Runner] = []
            for _ in range(job.options.processes()):
                runner = WorkerRunner(job.uploader, options, method)
                started.callback(runner.close, kill=True)
                runners.append(runner)
            engine = Engine(runners, *limits)
            started.pop_all()
        return engine

    def _upload_pending(self, engine: Engine, comparison: Comparison, files: int) -> None:
        job = self._job
        work = WorkList(job, files, whole=comparison.is_whole)
        engine.files_left = files
        uploading = engine.upload(work, lambda: self._tick(engine))
        for outcomes in itertools.chain(uploading, work.last(job.is_stopping)):
            with job.accounts.recorded(job.ledger):
                work.take_back(outcomes)
                job.write_counts()
            for end in outcomes:  # also of a part, whose file is not finished
                if isinstance(end, Outcome) and end.kind is OutcomeKind.FATAL:
                    job.stop(end.error, ExitCode.CANNOT_START)
            job.accounts.tell()
            engine.files_left = work.left
            if resumed := work.large.resumed_bytes:
                self._bytes = max(0, self._bytes - resumed)
                job.observer.detail(f"{bytes_text(resumed)} already stored as parts")
                work.large.resumed_bytes = 0
            for note in engine.notes:
                job.note(note)
            engine.notes.clear()
        self._tell_of(work, comparison)

    def _tell_of(self, work: WorkList, comparison: Comparison) -> None:
        """What was not done, and how to save time in the next run."""
        job, accounts = self._job, self._job.accounts
        for reason, count in work.removals.kept.most_common(TOLD_CAUSES):
            tell = job.note if reason in AS_IT_SHOULD_BE else job.warn
            tell(f"{count_of(count, 'file')} not removed: {printable(reason)}")
        if accounts.stale:
            hint = "--renew-by-upload uploads these files again"
            objects = count_of(accounts.stale, "object")
            job.note(f"outdated metadata remains on {objects}: {accounts.refusal} ({hint})")
        if comparison.moved >= MANY_MOVED and not accounts.differed:
            job.note(
                f"{comparison.moved:,} files were read again for a new ctime or inode number, but "
                "none had changed: if this happens every time, pass --ignore-ctime or "
                "--ignore-inode"
            )
        if work.large.failed_abort:
            hint = "the next run or --cleanup will try again"
            job.note(f"an unfinished upload may remain: {work.large.failed_abort} ({hint})")

    def _tick(self, engine: Engine) -> bool:
        job, now, clock = self._job, time.monotonic(), engine.clock
        job.memory.look()
        self._share_news(engine)
        away = f"{clock.shows(now):.0f} s: {clock.cause}" if clock.is_away(now) else ""
        if clock.is_over(now):
            job.stop(f"the store has been unavailable for {away}", ExitCode.INCOMPLETE)
        elif engine.row.is_lost and engine.files_left:
            job.stop(refused_text(engine.row), ExitCode.INCOMPLETE)
        self._tell_away(clock.shows(now), away)
        stopping = job.is_stopping()
        job.observer.progress(self._progress(engine, stopping, away))
        return stopping

    def _share_news(self, engine: Engine) -> None:
        preparation = self._job.preparation
        again, engine.wants_shared = engine.wants_shared, False
        if preparation and (news := preparation.news(again=again)) is not None:
            engine.share(news)

    def _tell_away(self, seconds: float, away: str) -> None:
        """Report it once, and when it is over."""
        before, is_due = self.is_told_away, away and seconds >= TELL_SECONDS
        self.is_told_away = seconds if is_due else 0.0
        if is_due and not before:
            self._job.observer.note(f"the store has been unavailable for {away}")
        elif before and not away:
            self._job.observer.note(f"the store is back after {before:.0f} s")

    def _progress(self, engine: Engine, stopping: bool, away: str) -> Progress:
        return Progress(
            files=int(engine.total("files")),
            bytes=int(engine.total("bytes")),
            settled_files=self._job.accounts.settled_files,
            settled_bytes=self._job.accounts.settled_bytes,
            failed=self._job.summary.failed,
            in_flight=int(engine.total("in_flight")),
            limit=engine.limit,
            throttled=int(engine.total("throttled")),
            stopping=stopping,
            away=away,
            files_to_upload=self._files,
            bytes_to_upload=self._bytes,
        )

    def _count_traffic(self, engine: Engine) -> None:
        summary = self._job.summary
        self.has_sent = engine.total("taken") > 0
        for name in ("requests", "retries", "throttled"):
            setattr(summary, name, int(engine.total(name)))
        summary.fast_lane += int(engine.total("fast_files"))
        summary.fast_lane_off = engine.fast_lane_off or self._job.uploader.fast_lane_off


def compare(
    found: Found, known: FileModel | None, options: RunOptions, *, taken_over: bool = False
) -> Change | None:
    """Why a file needs work, or None if the store has it in this form."""
    if found.problem:
        is_stored = known and known.status == FileStatus.SUCCESS and known.stale != SPARED
        if found.problem != NOT_THERE or not known or not is_stored:
            return Change(found, "cannot be uploaded")
        return Change(found, MOVED_AWAY if known.stale == MOVED else "not there", keeps_hash=True)
    if known is None:
        return Change(found, "new")
    if options.force:
        return Change(found, "forced")
    if found.file_size != known.file_size:
        return Change(found, SIZE_CHANGED, late=known.late if known.late > 1 else 0)
    is_readable = known.racy in (0, 1) and is_mode(str(known.permissions or ""))
    reason = REASONS_TO_LOOK.get(known.status, DAMAGED) if is_readable else DAMAGED
    keeps_hash = known.is_hashed and reason != DAMAGED
    if taken_over:
        reason = "recorded under another ROOT"
    elif not reason:
        reason = (
            (RACY if known.racy else None)
            or what_changed(found, known, options)
            or ("to be hashed" if options.reads_all else None)
            or (STALE_REASONS.get(known.stale, DAMAGED) if known.stale else None)
        )
    return Change(found, reason, keeps_hash, known.late) if reason else None


NOT_OVERWRITTEN = "another object was in the store"
MOVED_AWAY = "removed here by an earlier run"
STALE_REASONS = {
    OUTDATED: "stored metadata is outdated",
    SPARED: NOT_OVERWRITTEN,
    MOVED: "an earlier run removed it, and it is back",
}
MANY_MOVED = 1000  # files read again in vain, before the options against it are named
OLDER_LEDGER_NOTE = (
    "the ledger is from an older pfu: every file is compared once, and not uploaded again"
)
DAMAGED = "its row in the ledger is damaged"
UNFINISHED_BEFORE = "not finished by an earlier run"
REASONS_TO_LOOK: Mapping[int, str | None] = {
    FileStatus.SUCCESS: None,
    FileStatus.FAILED: FAILED_BEFORE,
    FileStatus.PENDING: UNFINISHED_BEFORE,
    FileStatus.IN_PROGRESS: UNFINISHED_BEFORE,
}
RACY = "modified while or just before being read"
is_mode = re.compile("(0[0-7]{1,7})?").fullmatch  # as in FileStat.permissions


def absolute(path: str | os.PathLike[str]) -> str:
    """``path`` made absolute. Raises UsageError."""
    try:
        return os.path.abspath(os.fspath(path))
    except OSError as error:
        cause = f"no working directory: {os_cause(error)}"
        raise UsageError("find", os.fspath(path), cause, "cd to an existing one") from error


def base_of(root: str) -> str:
    """The directory that keys are relative to; for a single file, its parent."""
    return os.path.dirname(root) if os.path.isfile(root) else root


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths lead to the same file or directory."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` elements; the last may be shorter."""
    iterator = iter(things)
    while True:
        batch = list(itertools.islice(iterator, size))
        if not batch:
            return
        yield batch


def cpu_seconds() -> float:
    """CPU time of this process and of all its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


WATCHDOG = "pfu-watchdog"


class Watchdog:
    """Notices when nothing moves any more: stops the run, and aborts it if it does not end.

    A thread that looks once a second and holds no lock, so it does no harm at a fork. Time during
    which the whole process was suspended does not count.
    """

    TICK = 1.0  # seconds

    def __init__(
        self,
        movement: Callable[[], object],
        stop: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        """``movement``: changes as long as there is any progress."""
        self._movement = movement
        self._steps = iter(((WATCH_SECONDS, stop), (GIVE_UP_SECONDS, give_up)))
        self._is_over = False

    def __enter__(self) -> Watchdog:
        with contextlib.suppress(RuntimeError):  # no thread left: no watchdog
            threading.Thread(target=self._watch, name=WATCHDOG, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True

    def _watch(self) -> None:
        for seconds, act in self._steps:
            self._wait_until_still(seconds)
            if self._is_over:
                return
            act()

    def _wait_until_still(self, seconds: float) -> None:
        """Return when nothing has moved for this long, or the run is over."""
        before, still, looked = self._movement(), 0.0, time.monotonic()
        while still < seconds and not self._is_over:
            time.sleep(self.TICK)
            now, moved = time.monotonic(), self._movement()
            still = 0.0 if moved != before else still + min(now - looked, 2 * self.TICK)
            before, looked = moved, now


class MemoryGauge:
    """The peak memory of this process and its children: PSS where the system reports it."""

    SECONDS = 1.0  # between two measurements: each costs about a millisecond per process

    def __init__(self) -> None:
        self.peak = 0
        self._next = time.monotonic() + self.SECONDS

    def look(self, *, force: bool = False) -> None:
        """Measure, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + self.SECONDS
        self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        pids = [os.getpid()]
        if "multiprocessing" in sys.modules:
            pids += [p.pid for p in multiprocessing.active_children() if p.pid]
        try:
            return sum(map(proportional_set_size, pids))
        except OSError:
            return _peak_resident_set()


def proportional_set_size(pid: int) -> int:
    """Bytes used by a process; shared pages are divided among their users (Linux)."""
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return sum(int(line.split()[1]) * KIB for line in file if line.startswith(b"Pss:"))


def _peak_resident_set() -> int:
    unit = 1 if sys.platform == "darwin" else KIB
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) * unit


# ======================================================================================
# Verification: the store compared with the ledger and the tree
# ======================================================================================
#
# The store is listed once, 1,000 keys per request, prefixes in parallel, into a temporary table on
# disk. Then the tree is walked, and each file is looked up in the ledger and in the listing: memory
# stays flat. What differs becomes pending, so that the next run repairs it. A file that the ledger
# does not know is adopted if its object has the metadata of this very file, or its bytes: so a lost
# ledger is rebuilt.
#
# Comparing bytes means comparing three: the file, the ledger, the store. The file is read once, for
# all digests that the other two may have.


@dataclass
class Verdict(Result):
    """The result of --verify."""

    root: str = ""
    destination: str = ""
    checked: int = 0  # files in the tree
    objects: int = 0  # below the prefix
    verified: int = 0  # files that are in the store in their current form
    adopted: int = 0  # of these, files that the ledger did not know
    differing: int = 0
    extra: int = 0  # objects without a local file
    extra_known: int = 0  # of these, objects of deleted files, known to the ledger
    skipped: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    differences: list[dict[str, str]] = field(default_factory=list)  # the first ones
    extra_keys: list[str] = field(default_factory=list)  # the first ones
    bytes_read_back: int = 0  # of objects for which the store reports nothing to compare
    elapsed_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Checked(NamedTuple):
    """The result of comparing the bytes of a file."""

    reason: str = ""  # why the store does not have it in this form
    adopted: FileModel | None = None  # the row of a file that the ledger did not know
    read_back: int = 0  # bytes


class Verification:
    """Compares a job's root with the ledger and with the store.

    With its option ``checksum``, also the bytes of each object, not only what a listing shows.
    """

    def __init__(self, job: BatchJobModel) -> None:
        """Raises UsageError if the provider cannot list its objects."""
        if not job.uploader.shows_objects:
            raise UsageError("verify", job.destination, "this provider cannot list its objects")
        self.verdict = Verdict(root=job.root_dir, destination=job.destination)
        self._job = job
        self._uploader = job.uploader
        self._ledger = job.ledger
        self._checksum = job.options.checksum
        self._threads = Threads(SAFE_CONCURRENCY, thread_name_prefix="pfu-verify")
        self._unchecked_in_a_row = 0
        self._missed = 0  # objects that the listing did not show
        self._shown: set[bool] = set()  # kinds of ETags that the store repeats: of parts, or not
        self._tree: Tree | None = None
        self._answers = 0  # of the store, about single objects
        self._silent_since = 0.0  # the first failure since an answer; 0: none
        self._counted_at = -REPORT_SECONDS  # when the counts were last written to the ledger

    def run(self) -> Verdict:
        """List, walk, compare. Raises PfuError."""
        job = self._job
        job.mode = VERIFY_MODE
        job.save(JobStatus.SCANNING)
        try:
            self._verify()
        except PfuError as error:
            job.stop(str(error), error.exit_code)
            with contextlib.suppress(LedgerError):
                self._conclude()
            raise
        self._conclude()
        return self.verdict

    def _verify(self) -> None:
        verdict, began = self.verdict, time.monotonic()
        self._uploader.open(SAFE_CONCURRENCY)
        try:
            with contextlib.suppress(StoppedError):
                self._take_listing()
                self._compare_all(self._job.compare())
                for batch in batches(self._ledger.moved(self._job.place), SCAN_BATCH):
                    self._job.heed_stop()
                    self._compare(batch, is_here=False)
                verdict.extra, verdict.extra_keys = self._ledger.not_found(REPORTED_FAILURES)
                if verdict.extra:
                    verdict.extra_known = self._ledger.went_away(self._job.place)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._uploader.close()
            if self._tree and not self._job.is_stopping():  # otherwise threads may be reading
                self._tree.close()
        verdict.elapsed_seconds = round(time.monotonic() - began, 3)

    def _conclude(self) -> None:
        """It gets a row in BatchJob, so that adopted files have a run."""
        job, verdict, end = self._job, self.verdict, JobStatus.COMPLETE
        verdict.notes = job.summary.notes
        verdict.status, verdict.exit_code = "verified", ExitCode.OK
        if verdict.differing:
            end = JobStatus.COMPLETE_WITH_FAILURES
            verdict.status, verdict.exit_code = "differs", ExitCode.INCOMPLETE
        if job.stopped:
            end, verdict.status = JobStatus.INTERRUPTED, "interrupted"
            verdict.exit_code, verdict.error = job.stopped
        job.error, job.finished_at = verdict.error, int(time.time())
        job.move_to(JobStatus.UPLOADING)
        job.move_to(end)
        self._save_counts()

    def _save_counts(self) -> None:
        """For --status, while the verification goes on too."""
        job, verdict = self._job, self.verdict
        job.seen, job.unchanged, job.failed = verdict.checked, verdict.verified, verdict.differing
        self._ledger.save(job)

    def _take_listing(self) -> None:
        self._ledger.begin_listing()
        pages = self._uploader.list_objects(self._threads)
        while (page := self._job.wait_for(self._threads.submit(next, pages, None))) is not None:
            self._ledger.add_listed(page)
            self._uploader.traffic.beat()  # not every provider counts its requests
            self.verdict.objects += len(page)
            listed = f"{count_of(self.verdict.objects, 'object')} in the store"
            self._job.observer.busy("listing", listed)

    def _compare_all(self, tree: Comparison) -> None:
        scan, scan.keys_elsewhere = tree.scan, []
        for batch in batches(scan, SCAN_BATCH):
            self._job.heed_stop()
            if self._tree is None:
                self._tree = Tree(tree.find_root())
            self._compare(batch)
            self._take_others(scan.keys_elsewhere)
            self._job.observer.busy("scanning", f"{count_of(self.verdict.checked, 'file')} seen")
            if time.monotonic() - self._counted_at > REPORT_SECONDS:
                self._save_counts()
                self._counted_at = time.monotonic()
        self._take_others(scan.keys_elsewhere)
        self.verdict.skipped = sum(scan.skipped.values())
        tree.refuse_empty(self.verdict.checked + self.verdict.skipped)

    def _take_others(self, keys: list[str]) -> None:
        """Objects that belong to other shares of the tree."""
        self._ledger.mark_found(keys)
        keys.clear()

    def _compare(self, batch: Sequence[Found], *, is_here: bool = True) -> None:
        """``is_here``: they were found in the tree. Others pfu removed once the store had them."""
        rows = self._ledger.stored([found.id for found in batch])
        listed = self._ledger.listed([found.key for found in batch])
        reasons: dict[str, str] = {}
        closer: list[tuple[Found, FileModel | None]] = []
        for found in batch:
            row, object_ = rows.get(found.id), listed.get(found.key)
            reason = reasons[found.id] = difference(found, row, object_, self._job.options)
            if row and object_ and row.etag and row.etag == object_.etag:
                self._shown.add("-" in row.etag)
            if self._is_in_question(found, row, reason, listed):
                closer.append((found, row))
        adopted = []
        asked = [self._threads.submit(self._check, found, row, is_here) for found, row in closer]
        for (found, _), checked in zip(closer, map(self._job.wait_for, asked)):
            reasons[found.id] = checked.reason
            self.verdict.bytes_read_back += checked.read_back
            self._weigh(checked.reason)
            if checked.adopted:
                adopted.append(checked.adopted)
        self._ledger.adopt(adopted)
        self.verdict.adopted += len(adopted)
        self._count(batch, reasons, is_here=is_here)

    def _is_in_question(
        self, found: Found, row: FileModel | None, reason: str, listed: Collection[str]
    ) -> bool:
        """Whether the listing is not enough: it proves that an object exists, not that none does,
        nor how large it is, where the store encrypts or compresses.

        (s3rver leaves out prefixes.) Missing objects are looked up one by one, MAX_MISSED times.
        """
        if found.problem:
            return False
        is_missed = found.key not in listed and (reason == MISSING or row is None)
        if is_missed:
            self._missed += 1
            return self._missed <= MAX_MISSED
        if row is None or reason in (OTHER_ETAG, OTHER_SIZE):
            return True
        return not reason and self._is_suspect(found, row)

    def _is_suspect(self, found: Found, row: FileModel | None) -> bool:
        """Whether its bytes are to be read: it may have been replaced with the same time."""
        return self._checksum or bool(row and what_changed(found, row, self._job.options))

    def _check(self, found: Found, row: FileModel | None, is_here: bool) -> Checked:
        try:
            stored = self._patiently(self._uploader.inspect, found.key)
            if stored is None:
                return Checked(NOT_UPLOADED if row is None else MISSING)
            if stored.size != found.file_size:
                return Checked(NOT_UPLOADED if row is None else OTHER_SIZE)
            return self._check_bytes(found, row, stored, is_here)
        except FatalError:
            raise
        except (TransferError, SourceError) as error:
            return Checked(f"{UNCHECKED}: {error.cause}")

    def _patiently(self, ask: Callable[..., T], *arguments: Any) -> T:
        """Patience is per run: one file alone has it only while no other gets an answer."""
        tries, began, patience = itertools.count(1), time.monotonic(), self._job.patience
        others = self._answers

        def tell(error: RetryableError) -> None:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            is_due = next(tries) >= OWN_TRIES and now - began >= OWN_SECONDS
            if now - self._silent_since >= patience or (is_due and self._answers != others):
                raise error

        answer = patiently(functools.partial(ask, *arguments), patience, tell)
        self._answers, self._silent_since = self._answers + 1, 0.0
        return answer

    def _check_bytes(
        self, found: Found, row: FileModel | None, stored: Inspected, is_here: bool
    ) -> Checked:
        """Does the store have these bytes? Both answers need a proof.

        The ledger's ETag is one, of the object; without ``checksum`` the object's metadata are
        another, for a file that the ledger does not know. All else is proven by digests: of the
        file, or what the ledger knows of one that was removed.
        """
        size, known = found.file_size, list[tuple[Form, str]]()
        if row:
            likely = row.part_size or 0, part_size_for(size, DEFAULT_PART_SIZE)
            known = known_forms(row.sha256 or "", row.etag or "", size, *likely)
        is_ours = stored.is_of(found)
        is_known = bool(row.etag and row.etag == stored.etag) if row else is_ours
        proof: bool | None = (is_known and not self._checksum) or None
        digests, read_back = dict(known), 0
        is_suspect = self._is_suspect(found, row)
        if is_here and (is_suspect or not proof):
            digests = self._digests(found, {form for form, _ in (*known, *stored.forms())})
            if is_suspect and known and all(digests[form] != digest for form, digest in known):
                return Checked(CHANGED_SINCE)
        if proof is None:
            proof = stored.proves(size, digests.values())
            if not is_here and digests.keys().isdisjoint(stored.sha256_forms):
                proof = proof or None  # the ledger may know another kind of digest
        if proof is None and self._checksum and WHOLE_SHA256 in digests:
            whole = self._patiently(self._uploader.read_back, found.key)
            proof, read_back = whole == digests[WHOLE_SHA256], stored.size
        if proof is None and row:
            is_like = is_ours or (is_here and not stored.metadata)  # some stores drop them
            proof = is_known or (is_like and self._is_all_there_is(row))
        elif proof is None:
            self._job.note(NOTHING_TOLD_NOTE)
        if proof:
            adopted = None if row else adopted_row(found, stored, digests, self._job)
            return Checked("", adopted, read_back)
        if row is None:
            return Checked(OTHER_BYTES if is_ours else NOT_UPLOADED, None, read_back)
        return Checked(OTHER_BYTES if self._checksum else OTHER_ETAG, None, read_back)

    def _is_all_there_is(self, row: FileModel) -> bool:
        """Whether size and metadata must do: another ETag proves nothing in this store."""
        if ("-" in (row.etag or "")) in self._shown:
            return False
        self._job.note(NOT_SHOWN_NOTE + "; --checksum reads them back" * (not self._checksum))
        return True

    def _digests(self, found: Found, forms: Collection[Form]) -> dict[Form, str]:
        """Digests of a file's current bytes. Raises SourceError."""
        assert self._tree is not None
        beat = self._uploader.traffic.beat
        with contextlib.closing(
            open_source(self._tree, found.path, found.permissions, beat)
        ) as source:
            digests = digests_of(source, {*forms, WHOLE_SHA256})
            source.check_unchanged(lambda: digests_of(source, digests), digests)
        return digests

    def _weigh(self, reason: str) -> None:
        """Stop if further questions are pointless."""
        self._unchecked_in_a_row += 1
        if not reason.startswith(UNCHECKED):
            self._unchecked_in_a_row = 0
        if self._unchecked_in_a_row >= MAX_UNCHECKED:
            cause = f"{MAX_UNCHECKED} files in a row {reason}"
            raise TransferError("verify", self._job.destination, cause)

    def _count(self, batch: Sequence[Found], reasons: Mapping[str, str], *, is_here: bool) -> None:
        verdict = self.verdict
        verdict.checked += len(batch)
        self._job.summary.seen += len(batch)  # which the watchdog looks at
        doubtful, changed = [], []
        for found in batch:
            reason = reasons[found.id]
            if not reason:
                verdict.verified += 1
                continue
            verdict.differing += 1
            if reason.startswith(UNCHECKED):
                kind = UNCHECKED
            elif is_here:
                kind = reason
            else:
                kind = reason = NOT_IN_STORE
            verdict.by_reason[kind] = verdict.by_reason.get(kind, 0) + 1
            if kind == CHANGED_SINCE:
                changed.append(found.id)
            elif not found.problem and kind not in (NOT_UPLOADED, NOT_IN_STORE, UNCHECKED):
                doubtful.append(found.id)
            if len(verdict.differences) < REPORTED_FAILURES:
                told = {"path": found.path, "key": found.key, "reason": reason}
                verdict.differences.append(told)
        self._ledger.doubt(doubtful, changed)
        self._ledger.mark_found([found.key for found in batch])


NOT_UPLOADED = "not uploaded"
NOT_IN_STORE = "removed here, missing or changed in the store"
UNCHECKED = "cannot be checked"
MAX_UNCHECKED = 100  # files in a row that cannot be checked, before a verification stops
CHANGED_SINCE = "changed since it was uploaded"
OTHER_BYTES = "the store has other bytes"
OTHER_SIZE = "the store has another size"
OTHER_ETAG = "the store has another ETag"
MISSING = "missing in the store"
MAX_MISSED = 1000  # objects missing in a listing that are looked up; then it is trusted
NOTHING_TOLD_NOTE = (
    "some objects have neither metadata nor a digest to identify them: "
    "--verify --checksum reads them back and adopts those that match the local files"
)
NOT_SHOWN_NOTE = (
    "this store reports other ETags than it returned on upload: some objects could only be matched "
    "by size and metadata"
)


def adopted_row(
    found: Found, stored: Inspected, digests: Mapping[Form, str], job: BatchJobModel
) -> FileModel:
    """The row of a file that is in the store but not in the ledger."""
    sha256 = stored.clear_sha256 or digests.get(WHOLE_SHA256, "")
    owner = {name: stored.metadata.get(name, "") for name in ("uid", "gid")}
    told = {name: int(n) for name, n in owner.items() if n.isdigit() and len(n) < 11}
    known = dict(zip(Facts._fields, facts(found)))
    return FileModel(
        id=found.id,
        created_at=int(time.time()),
        file_path=found.path,
        status=FileStatus.SUCCESS,
        batch_id=job.id,
        object_key=found.key,
        etag=stored.etag or None,
        sha256=sha256 or None,
        uploaded_at=stored.stored_at // 10**9,
        racy=int(abs(stored.stored_at - found.last_modified) < RACY_NS),
        part_size=stored.part_size if "-" in sha256 else None,
        stale=None if stored.is_of(found) else OUTDATED,
        destination_id=job.place.id,
        **{**known, **told},
    )


def difference(
    found: Found, row: FileModel | None, listed: Listed | None, options: RunOptions
) -> str:
    """Why a file is not in the store in this form; empty if it is, according to a listing."""
    if found.problem:
        return found.problem
    if row is None or row.status != FileStatus.SUCCESS:
        return NOT_UPLOADED
    is_stale = row.stale not in (None, MOVED)
    if is_stale or what_changed(found, row, options) not in SAME_METADATA:
        return CHANGED_SINCE
    if listed is None:
        return MISSING
    if listed.size != found.file_size:
        return OTHER_SIZE
    if listed.etag != row.etag:
        return OTHER_ETAG
    return ""


# ======================================================================================
# Sandbox: moto's S3 server in a separate process
# ======================================================================================

SANDBOX_SERVER = """
import sys, threading
try:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server
except ImportError:
    sys.exit(print("moto is not installed"))

class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_request(self, *args): pass

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()  # ends when the program that started this one ends, however it ends
"""
SANDBOX_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "sandbox",
    "AWS_SECRET_ACCESS_KEY": "sandbox-secret",  # masked in all output, so not a common word
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
}
SANDBOX_SECONDS = 60  # for the server to end
SANDBOX_SHOWN = 5  # objects shown individually


class Sandbox:
    """An S3 server on a free loopback port, for as long as the context lasts.

    It needs no account and keeps its objects in memory. It always ends with this process.
    """

    def __init__(self) -> None:
        """Raises UsageError if moto is not installed."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORGET_CWD + SANDBOX_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port.isdecimal():
            self.__exit__()
            cause = port or "its server ended immediately"
            raise UsageError("start sandbox", "", cause, "pip install 'moto[s3]' flask flask-cors")
        self.endpoint_url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Sandbox:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(SANDBOX_ENVIRONMENT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=SANDBOX_SECONDS)

    def contents(self, uploader: S3Uploader) -> Iterator[str]:
        """Lines that show what the server holds: totals, and some keys with their metadata."""
        client, bucket = uploader.session.client("s3"), uploader.bucket
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        files = size = 0
        shown: list[str] = []
        for stored in itertools.chain.from_iterable(page.get("Contents", []) for page in pages):
            files, size = files + 1, size + stored["Size"]
            shown += [stored["Key"]] if files <= SANDBOX_SHOWN else []
        yield f"The sandbox holds {count_of(files, 'object')}, {bytes_text(size)}, for example:"
        for key in shown:
            head = client.head_object(Bucket=bucket, Key=key)
            yield f"  {key}  {head['ContentLength']} bytes  {head['ContentType']}"
            yield "    " + " ".join(f"{k}={v}" for k, v in sorted(head["Metadata"].items()))


# ======================================================================================
# Progress: the live view, the summary, the JSON
# ======================================================================================
#
# On a terminal, standard error has a block of a few lines at the bottom: short texts, one after the
# other, wrapped to the width that the terminal has now. Between two drawings the cursor rests on
# its first character, so that "erase below" removes it, however the terminal has wrapped or cut its
# lines since: its height in rows is never needed. Line wrapping is off while the block is drawn:
# the resize of a terminal is noticed only later. Other output goes where the block was, with the
# block redrawn below it.
#
# A terminal that cannot erase (TERM is dumb, or not set) gets no block: problems, notes and the
# summary are printed as to a pipe. Colours are for terminals only, and off where NO_COLOR is set
# (https://no-color.org).

DRAW_SECONDS = 0.1  # between two drawings
RATE_SECONDS = 10.0  # window of a rate: on a slow line, a part may take as long
RATE_STEP = 0.5  # seconds between two readings of a rate; faster would be unreadable
SETTLE_SECONDS = 2.0  # before a time left is shown
LONGEST_LEFT = 30 * 86_400  # seconds; nothing longer is shown
STANDARD_ERROR = 2

SGR: Mapping[str, str] = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


def bytes_text(size: float) -> str:
    """``size`` bytes, human-readable."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(seconds: float) -> str:
    """``seconds``, human-readable."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def time_text(seconds: int) -> str:
    """A local time; an impossible one is shown as it is."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def plural(number: int, noun: str) -> str:
    """``file`` for 1, else ``files``."""
    return noun if number == 1 else f"{noun}s"


def count_of(number: int, noun: str) -> str:
    """``1 file``, ``1,234 files``."""
    return f"{number:,} {plural(number, noun)}"


class MaskedStream(io.TextIOWrapper):
    """Standard error, for what others write to it: tracebacks, warnings of libraries."""

    def write(self, text: str) -> int:
        """Returns the number of characters."""
        super().write(MASK.hide(text))
        return len(text)


class LineFile:
    """Lines for --log-file or --events, appended to a file readable only by its owner.

    Whether it is writable is checked at the start. A later error stops nothing: it is returned
    once, and nothing is written from then on.
    """

    def __init__(self, what: str, path: str, largest: int = 0) -> None:
        """``path``: ``-`` is standard output; ``largest``: bytes before it is rotated; 0: never.

        Raises UsageError.
        """
        self._what, self._largest = what, largest
        self._path = "standard output" if path == "-" else absolute(path)
        self._unwritten = b""
        self._fd: int | None = os.dup(sys.stdout.fileno()) if path == "-" else self._open()

    def _open(self) -> int:
        try:
            fd = open_own(self._path, os.O_APPEND)
        except LedgerError as error:
            raise UsageError(f"open {self._what}", self._path, error.cause) from error
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a run was killed amid a line
            self._unwritten = b"\n" + self._unwritten
        return fd

    def write(self, line: str, *, at_once: bool = True) -> str:
        """Write one line, or keep it until there are more. Returns why that failed, once."""
        if self._fd is None:
            return ""
        self._unwritten += MASK.hide(line).encode("utf-8", "backslashreplace") + b"\n"
        if not at_once and len(self._unwritten) < KEPT_LINES:
            return ""
        try:
            if self._largest:
                self._fd = self._rotated(self._fd)
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten) :]
            return ""
        except (OSError, UsageError) as error:
            os.close(self._fd)
            self._fd = None
            cause = os_cause(error) if isinstance(error, OSError) else error.cause
            return f"cannot write {self._what} to {self._path}: {cause}"

    def _rotated(self, fd: int) -> int:
        """The file to write to: this one, or a new one if it is full."""
        size = os.fstat(fd).st_size
        if not size or size + len(self._unwritten) <= self._largest:
            return fd
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, LOG_FILES + 1))]
        for newer, older in zip(names[-2::-1], names[:0:-1]):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        new = self._open()
        os.close(fd)
        return new


EVENT_SECONDS, KEPT_LINES = 1.0, 8 * KIB  # between two reports of progress; bytes


def can_erase(stream: IO[str]) -> bool:
    """Whether ``stream`` is a terminal on which lines can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def has_colours(stream: IO[str]) -> bool:
    """Whether ``stream`` should be coloured."""
    return can_erase(stream) and not os.environ.get("NO_COLOR")


class Span(NamedTuple):
    """Text in one style, named as in SGR."""

    text: str
    style: str = ""


Line = Union[str, Sequence[Span]]


def painted(line: Line, colours: bool) -> str:
    """A line as it is written: made printable here, and with escape sequences if it may."""
    shown = []
    for text, style in [Span(line)] if isinstance(line, str) else line:
        text = printable(text)
        shown.append(f"\x1b[{SGR[style]}m{text}\x1b[0m" if text and style and colours else text)
    return "".join(shown)


def flowing(spans: Iterable[Span], columns: int) -> list[list[Span]]:
    """Lines of spans, two spaces apart; one that does not fit begins the next line."""
    lines: list[list[Span]] = []
    room = 0
    for text, style in spans:
        text = printable(text)
        room -= len(text) + 2
        if room < 0:
            room = columns - len(text)
            lines.append([Span(text[:columns], style)])
        else:
            lines[-1] += [Span("  "), Span(text, style)]
    return lines


class LiveBlock:
    """A few lines at the bottom of a terminal on standard error."""

    ERASE_BELOW = "\x1b[J"
    ERASE = "\r \x1b[J\r\x1b[K"  # erase from this line on; tmux would keep what is erased from 0, 0
    CUT, WRAP = "\x1b[?7l", "\x1b[?7h"  # what happens to text beyond the last column

    def __init__(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._colours = has_colours(sys.stderr)
        self._spans: Sequence[Span] = ()
        self._shown = ""
        self._size = (0, 0)
        self._next = 0.0

    def show(self, spans: Iterable[Span]) -> None:
        """Draw these, unless the last drawing was a moment ago and began with the same."""
        if self._is_wanted:
            now, before = time.monotonic(), self._spans[:1]
            self._spans = [*spans]
            if self._spans[:1] != before or now >= self._next:
                self._next = now + DRAW_SECONDS
                self.draw()

    def draw(self) -> None:
        """Redraw the last ones, as far as they fit, if this program is in the foreground."""
        if not self._spans or not self._is_in_foreground():
            return
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(STANDARD_ERROR)
            if size != self._size:
                self.hide()
                self._size = size
            columns, rows = (size.columns or 80) - 1, size.lines or 24
            lines = flowing(self._spans, columns)[: max(rows - 1, 1)]
            text = "\x1b[K\n".join(painted(line, self._colours) for line in lines)
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            text = f"\r{text}{self.ERASE_BELOW}{up}\r"
            if text != self._shown:
                self._shown = text
                self._write(f"{self.CUT}{text}{self.WRAP}")

    def hide(self) -> None:
        """Leave the terminal as if there was no block, until the next drawing."""
        if self._shown:
            self._shown = ""
            self._write(self.ERASE)

    def end(self) -> None:
        """Remove it, until there is something else to show."""
        self._spans = ()
        self.hide()

    def _is_in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(STANDARD_ERROR) == os.getpgrp()
        except OSError:  # it controls other processes, or none
            return True

    def _write(self, text: str) -> None:
        """Bypasses sys.stderr, which a signal handler may have interrupted."""
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, text.encode("ascii", "replace"))


def rate_text(rate: float, unit: str) -> str:
    """``13,400 files/s``, ``0.4 files/s``, seven characters wide before the unit."""
    return f"{rate:>7,.1f} {unit}/s" if 0 < rate < 10 else f"{rate:>7,.0f} {unit}/s"


class UploadView:
    """What is shown of an upload in progress, with rates over the last RATE_SECONDS.

    The time left follows the work as the limiter sees it: small files go first, so bytes alone
    would show too little. Numbers keep their width, so that the lines stand still.
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, tuple[int, int, int]]] = deque()

    def spans(self, progress: Progress, now: float) -> Iterator[Span]:
        """The state, counts, rates, and trouble if there is any."""
        all_files, all_bytes = progress.files_to_upload, progress.bytes_to_upload
        files = min(progress.files + progress.settled_files, all_files)
        size = min(progress.bytes + progress.settled_bytes, all_bytes)
        work, whole = size + files * REQUEST_WORK, max(all_bytes + all_files * REQUEST_WORK, 1)
        seconds, *rates = self._rates((files, progress.bytes, work), now)
        yield Span("stopping " if progress.stopping else "uploading", "bold")
        yield Span(f"{100 * work // whole:>3} %")
        yield Span(f"{files:>{len(f'{all_files:,}')},} / {count_of(all_files, 'file')}")
        yield Span(f"{bytes_text(size):>10} / {bytes_text(all_bytes)}")
        yield Span(rate_text(rates[0], "files"))
        yield Span(f"{bytes_text(rates[1]):>10}/s")
        yield Span(f"{progress.in_flight:>3,} in flight")
        left = (whole - work) / rates[2] if rates[2] and seconds >= SETTLE_SECONDS else 0.0
        if 0 < left < LONGEST_LEFT and not progress.stopping:
            yield Span(f"{duration_text(left) if left >= 60 else f'{left:.0f} s'} left")
        if progress.failed:
            yield Span(f"{progress.failed:,} failed", "red")
        if progress.throttled:
            yield Span(f"{progress.throttled:,} throttled", "yellow")
        if progress.away:
            yield Span(f"the store has been unavailable for {progress.away}", "yellow")

    def _rates(self, counts: tuple[int, int, int], now: float) -> list[float]:
        """The seconds that they are taken over, and what each of the counts has grown a second."""
        readings = self._readings
        if not readings or now - readings[-1][0] >= RATE_STEP:
            readings.append((now, counts))
        while readings[0][0] < now - RATE_SECONDS and len(readings) > 1:
            readings.popleft()
        (since, first), (until, last) = readings[0], readings[-1]
        seconds = until - since
        return [seconds, *(max(b - a, 0) / max(seconds, 1.0) for a, b in zip(first, last))]


class Console(Observer):
    """Messages on standard error: a live view on a terminal, problems everywhere."""

    def __init__(self, *, quiet: bool, verbose: bool, live: bool, lists: bool) -> None:
        """``lists``: the files of a dry run, on standard output."""
        self.last_words: Callable[[str], None] = lambda reason: None  # when the run is aborted
        self.log: LineFile | None = None
        self.events: LineFile | None = None
        self.block = LiveBlock(live and not quiet)
        self._quiet, self._verbose, self._lists = quiet, verbose, lists
        self._view = UploadView()
        self._colours = has_colours(sys.stdout)
        self._next_progress = 0.0

    def note(self, text: str) -> None:
        self.record(f"note: {text}")
        if not self._quiet:
            self._print(f"pfu: note: {text}")

    def problem(self, text: str) -> None:
        self.record(text)
        self._print(f"pfu: {text}")

    def detail(self, text: str) -> None:
        """Shown by --verbose only."""
        if self._verbose:
            self.problem(text)

    def record(self, text: str) -> None:
        """A line for the log only."""
        if self.log:
            now = time.strftime("%Y-%m-%d %H:%M:%S%z")
            self._complain(self.log.write(f"{now} {printable(text)}"))

    def event(self, kind: str, told: Mapping[str, Any]) -> None:
        """A line for --events."""
        if self.events:
            line = json_text({"event": kind, "time": round(time.time(), 3), **told})
            self._complain(self.events.write(line, at_once=kind != "file"))

    def _complain(self, problem: str) -> None:
        if problem:
            self.problem(problem)

    @property
    def wants_files(self) -> bool:  # type: ignore[override]
        """Whether there is anything to tell of each file."""
        return self._verbose or self._lists or self.events is not None

    def ended(self, end: FileEnd) -> None:
        self.event("file", end._asdict())
        if self._lists:
            self.say(f"{end.path}  {bytes_text(end.bytes)}  {end.reason}")
            return
        reason = f": {end.reason}" if end.reason else ""
        self.detail(f"{end.outcome}: {end.path}{reason}")

    def made_ledger(self, path: str) -> None:
        """Who looks on may see that it is the wrong place; cron's mail is not about it."""
        told = f"new ledger: {path}"
        if sys.stderr.isatty():
            self.note(told)
        else:
            self.record(f"note: {told}")

    def busy(self, what: str, text: str) -> None:
        self.block.show([Span(what, "bold"), Span(text)])

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if self.events and now >= self._next_progress:
            self._next_progress = now + EVENT_SECONDS
            self.event("progress", progress._asdict())
        self.block.show(self._view.spans(progress, now))

    def stuck(self, reason: str) -> None:
        self.block.end()
        self.problem(f"aborted: {reason}")
        self.last_words(reason)
        leave(ExitCode.INCOMPLETE)

    def _print(self, text: str) -> None:
        """Nobody may be able to read it; that does not stop an upload."""
        self.block.hide()
        with contextlib.suppress(OSError):
            print(printable(text), file=sys.stderr, flush=True)
        self.block.draw()

    def say(self, *lines: Line) -> None:
        """Requested output, on standard output."""
        if lines:
            self._put("\n".join(painted(line, self._colours) for line in lines))

    def say_json(self, told: Any) -> None:
        """The same, for --json."""
        self._put(MASK.hide(json_text(told)))

    def _put(self, text: str) -> None:
        """A closed pipe is not an error."""
        self.block.hide()
        try:
            print(text, flush=True)
        except OSError as error:
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                self.problem(f"cannot write to standard output: {os_cause(error)}")


def leave(code: int) -> None:
    """Exit immediately: a thread that waits for a store must not delay it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def silence(stream: IO[str]) -> None:
    """Discard what is written to ``stream`` from now on, and when it is closed."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Count(NamedTuple):
    """A number, what it counts, and details."""

    number: int
    of: str
    more: str = ""
    style: str = ""


def json_text(told: Any) -> str:
    """What ``--json`` prints, on one line."""
    return json.dumps(with_short_texts(told))


def with_short_texts(told: Any) -> Any:
    """The same, with all texts in it shortened."""
    if isinstance(told, str):
        return shortened(told)
    if isinstance(told, dict):
        return {name: with_short_texts(value) for name, value in told.items()}
    return list(map(with_short_texts, told)) if isinstance(told, list) else told


def count_lines(*counts: Count) -> Iterator[Line]:
    """Counts, one per line: the first two, and of the others those that are not 0."""
    shown = [*counts[:2], *(count for count in counts[2:] if count.number)]
    width = max(len(f"{count.number:,}") for count in shown)
    room = max(len(count.of) for count in shown)
    for number, of, more, style in shown:
        rest = f"{' ' * (room - len(of))}   {more}".rstrip()
        yield Span("  "), Span(f"{number:>{width},} {of}", style), Span(rest)


STATUS_STYLES: Mapping[int, str] = {ExitCode.OK: "green", ExitCode.INCOMPLETE: "yellow"}

NEXT: Mapping[int, str] = {
    ExitCode.INCOMPLETE: "fix the errors above and rerun; pfu resumes from here",
    ExitCode.CANNOT_START: "fix the error above and rerun",
    ExitCode.STOPPED: "rerun to resume where this run stopped",
}


def status_line(result: Summary | Verdict, joint: str) -> Line:
    """The first line of a summary."""
    style = STATUS_STYLES.get(result.exit_code, "red")
    return Span(result.status, style), Span(f": {result.root} {joint} {result.destination}")


def summary_lines(summary: Summary) -> Iterator[Line]:
    """The end of a run, for the user."""
    size = bytes_text(summary.bytes_uploaded) if summary.uploaded else ""
    yield status_line(summary, "to")
    yield from count_lines(
        Count(summary.seen, f"{plural(summary.seen, 'file')} seen"),
        Count(summary.uploaded, "uploaded", size),
        Count(summary.renewed, "of which metadata only"),
        Count(summary.removed, "removed here"),
        Count(summary.unchanged, "unchanged"),
        Count(summary.skipped, "skipped", skipped_text(summary)),
        Count(summary.failed, "failed", "listed above; all are in the ledger", "red"),
        Count(summary.pending, "pending", "not started, or interrupted", "yellow"),
    )
    yield from cost_lines(summary)
    if summary.exit_code in NEXT:
        yield Span("next", "bold"), Span(f": {NEXT[summary.exit_code]}")


def skipped_text(summary: Summary) -> str:
    """Why files were skipped."""
    return ", ".join(f"{reason}: {n:,}" for reason, n in summary.skipped_by_reason.items())


def cost_lines(summary: Summary) -> Iterator[Line]:
    """Time, memory and requests, and why they were not less."""
    seconds = max(summary.elapsed_seconds, 0.001)
    spent = [duration_text(summary.elapsed_seconds)]
    if summary.uploaded:
        spent.append(rate_text(summary.uploaded / seconds, "files").strip())
        spent.append(f"{bytes_text(summary.bytes_uploaded / seconds)}/s")
    yield f"  {', '.join(spent)}"
    used = [
        f"{summary.cpu_seconds:.1f} s of CPU",
        f"{bytes_text(summary.peak_memory_bytes)} of memory",
        count_of(summary.requests, "request") if summary.requests else "",
        f"{summary.retries:,} retried" if summary.retries else "",
        f"{summary.throttled:,} throttled" if summary.throttled else "",
    ]
    yield f"  {', '.join(filter(None, used))}"
    has_one = summary.fast_lane_off != NO_FAST_LANE
    if has_one and summary.fast_lane < summary.uploaded - summary.renewed:
        why = summary.fast_lane_off or "the rest went through boto3"
        yield f"  {summary.fast_lane:,} of {summary.uploaded:,} by the fast lane: {why}"


def plan_lines(summary: Summary) -> Iterator[Line]:
    """The end of a dry run, for the user."""
    price = summary.request_cost_usd
    cost = "" if price is None else f"about {max(price, 0.01):.2f} USD (us-east-1)"
    to_compare = "uploaded only if the contents differ"
    yield status_line(summary, "to")
    yield from count_lines(
        Count(summary.seen, f"{plural(summary.seen, 'file')} seen"),
        Count(summary.pending, "would be uploaded", bytes_text(summary.bytes_pending)),
        Count(summary.requests, plural(summary.requests, "request"), cost),
        Count(summary.compared, "of which to be compared", to_compare),
        Count(summary.unchanged, "unchanged"),
        Count(summary.skipped, "skipped", skipped_text(summary)),
        Count(summary.failed, "cannot be uploaded", style="red"),
    )


def verdict_lines(verdict: Verdict, *, quiet: bool) -> Iterator[Line]:
    """The result of --verify, for the user."""
    yield from (f"{told['reason']}: {told['path']}" for told in verdict.differences)
    more = verdict.differing - len(verdict.differences)
    if more > 0:
        yield f"and {count_of(more, 'more file')} that differ"
    yield from (f"no local file: {key}" for key in verdict.extra_keys)
    if quiet:
        return
    unchecked, lost = (verdict.by_reason.get(name, 0) for name in (UNCHECKED, NOT_IN_STORE))
    differing = verdict.differing - unchecked - lost
    known, never = verdict.extra_known, verdict.extra - verdict.extra_known
    extra = f"left alone; of deleted files: {known:,}, not in the ledger: {never:,}"
    no_digest = "the store reports no digest for them"
    yield status_line(verdict, "and")
    yield from count_lines(
        Count(verdict.checked, f"{plural(verdict.checked, 'file')} compared"),
        Count(verdict.verified, "match the store"),
        Count(verdict.adopted, "of which new to the ledger"),
        Count(differing, "differ", "pending: the next run uploads them", "red"),
        Count(lost, NOT_IN_STORE, "", "red"),
        Count(unchecked, UNCHECKED, "left as is", "red"),
        Count(verdict.skipped, "skipped"),
        Count(verdict.objects, f"{plural(verdict.objects, 'object')} listed"),
        Count(verdict.extra, "without a local file", extra, "yellow"),
        Count(verdict.bytes_read_back, "bytes read back", no_digest),
    )
    yield f"  {duration_text(verdict.elapsed_seconds)}"


METRICS: Mapping[str, tuple[str, str]] = {  # a field of Summary, or a time; what it is
    "last_run_timestamp_seconds": ("now", "When the last run ended."),
    "last_success_timestamp_seconds": (
        "last_success",
        "When a run last ended with everything in the store; 0: never.",
    ),
    "run_duration_seconds": ("elapsed_seconds", "Duration of the last run."),
    "run_exit_code": ("exit_code", "Exit code of the last run; 0: everything is in the store."),
    "run_files": ("seen", "Files seen by the last run."),
    "run_uploaded_files": ("uploaded", "Files it uploaded."),
    "run_uploaded_bytes": ("bytes_uploaded", "Bytes it uploaded."),
    "run_unchanged_files": ("unchanged", "Files already in the store."),
    "run_skipped_files": ("skipped", "Files it skipped."),
    "run_failed_files": ("failed", "Files it failed to upload."),
    "run_pending_files": ("pending", "Files left for the next run."),
    "run_throttled_requests": ("throttled", "Requests throttled by the store."),
    "run_cpu_seconds": ("cpu_seconds", "CPU time of all processes."),
    "run_peak_memory_bytes": ("peak_memory_bytes", "Peak memory of all processes."),
}


METRICS_BEGIN = b"# HELP pfu_"


def metrics_text(summary: Summary, db: str, now: float, last_success: float) -> str:
    """For node_exporter's textfile collector; times in seconds since the epoch."""
    figures = {**vars(summary), "now": now, "last_success": last_success}
    labels = f'root="{label_text(absolute(summary.root))}",db="{label_text(db)}"'
    return "".join(
        f"# HELP pfu_{name} {says}\n# TYPE pfu_{name} gauge\n"
        f"pfu_{name}{{{labels}}} {figures[figure]:.15g}\n"
        for name, (figure, says) in METRICS.items()
    )


def label_text(text: str) -> str:
    """As required of a label's value in Prometheus (text format, version 0.0.4)."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


def write_metrics(path: str, summary: Summary, db: str) -> None:
    """Replace the file atomically; ``db`` tells jobs apart. Raises UsageError."""
    now = time.time()
    try:
        last_success = now if summary.exit_code == ExitCode.OK else last_success_in(path)
        new = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # left by another run, or by somebody else
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(metrics_text(summary, db, now, last_success))
        os.replace(new, path)
    except OSError as error:
        raise UsageError("write metrics", path, os_cause(error)) from error


def last_success_in(path: str) -> float:
    """What an earlier run wrote; 0.0 if there was none."""
    if not os.path.isfile(path) or os.path.islink(path):
        return 0.0
    text = read_given("read metrics", path).decode("utf-8", "replace")
    found = re.search(r"^pfu_last_success_timestamp_seconds\{.*\} ([0-9]+.*)$", text, re.MULTILINE)
    with contextlib.suppress(ValueError):
        return float(found[1]) if found else 0.0
    return 0.0


def jobs_text(jobs: Iterable[BatchJobRow]) -> Iterator[str]:
    """The last runs, one line each, with the reason below if a run stopped early."""
    for job in jobs:
        what = ""
        counts = (
            f"{job.uploaded:,} uploaded ({bytes_text(job.bytes_uploaded)}), "
            f"{job.unchanged:,} unchanged, {job.skipped:,} skipped, {job.failed:,} failed, "
            f"{job.pending:,} pending"
        )
        if job.mode == VERIFY_MODE:
            what = "verification "
            counts = f"{job.seen:,} files, {job.unchanged:,} match, {job.failed:,} differ"
        head = f"{time_text(job.created_at)}  {what}{JobStatus(job.status).text}"
        yield f"{head}: {job.root_dir} to {job.destination}: {counts}"
        if job.error:
            yield f"    {job.error}"


# ======================================================================================
# Command line
# ======================================================================================

# Every option is declared once: by option(), as a field of S3Options, ScanOptions or RunOptions,
# or in COMMAND_OPTIONS, if only the command line has it. make_parser() adds them in the order of
# GROUPS; PARSERS reads their values. The environment is parsed first, as if it stood before the
# arguments. What options must not be together is in the tables *_FAULTS.

SIZE_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": KIB * GIB}
TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
SHOWN_JOBS = 10

EPILOG = """\
examples:
  python pfu.py samples --sandbox                    try it out, no account needed
  python pfu.py /srv/data s3://bucket/backup         upload new and changed files
  python pfu.py /srv/data s3://bucket --dry-run      show what would be uploaded, and why

Every option can also be set in the environment: PFU_BWLIMIT=20M for --bwlimit 20M, PFU_QUIET=1
for --quiet, PFU_EXCLUDE='*.tmp *.bak' for two --exclude. The command line takes precedence.

exit status: 0 everything is in the store, 1 something is not (failed, refused, store unavailable),
2 could not start, 3 another run is using the ledger, 4 stopped by a signal or a time limit
"""


class Parser(argparse.ArgumentParser):
    """Prints errors on one line, and exits with 2 like argparse.

    Every option can also be set in the environment: --max-duration by PFU_MAX_DURATION. Options
    without a value take 1 or 0, repeatable ones take words separated as in a shell.
    """

    origin = ""  # where the arguments being parsed come from
    wanted: Collection[str] = ()  # arguments, and those of FORMS in the environment

    def error(self, message: str) -> Any:
        hint, meant = "see --help", re.search(r"unrecognized arguments: (-*)(\S*)", message)
        names = [name[2:] for name in self._option_string_actions]
        if meant and not meant[1]:
            hint = "one ROOT, a directory or a file, then one destination"
        elif meant and (near := difflib.get_close_matches(meant[2], names)):
            hint = f"did you mean --{near[0]}?"
        with contextlib.suppress(OSError):
            text = f"{printable(f'{self.origin}{message}')} ({hint})"
            print(f"pfu: {text}", file=sys.stderr, flush=True)
            if "--json" in self.wanted and "--status" not in self.wanted:
                kinds = {"--verify": Verdict, "--cleanup": CleanupResult}
                kind = next((kinds[name] for name in kinds if name in self.wanted), Summary)
                print(MASK.hide(json_text(vars(kind(error=text)))), flush=True)
        sys.exit(ExitCode.CANNOT_START)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Python before 3.13 takes ``--option=--`` for an option with no value."""
        options, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if getattr(options, action.dest, None) == [] and action.default != []:
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return options, rest

    def parse_all(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
        """Parse the environment, then the arguments, which take precedence."""
        told: list[str] = []
        on = {name for name, of in FORMS.items() if SWITCHES.get(environment.get(of, "").lower())}
        self.wanted = on.union(arguments)
        for action in self._actions:
            name, given = variable_of(action), environment.get(variable_of(action), "")
            if name in NEVER_EMPTY and name in environment and not given.strip():
                self.error(f"{name}: the value is empty")
            if given and action.option_strings and action.dest not in ("help", "version"):
                self.origin = f"{name}: "
                words = self._words(action, given)
                self.parse_args(words)  # errors name the variable
                told += words
        self.origin = ""
        cut = list(arguments).index("--") if "--" in arguments else len(arguments)
        options = self.parse_intermixed_args([*told, *arguments[:cut]])
        self._take_places(options, arguments[cut + 1 :])
        for place in ("root", "destination"):
            if getattr(options, place) == "":
                self.error(f"argument {place.upper()}: the value is empty")
        options.unknown_variables = self._unknown(environment)
        options.root = options.root or environment.get("PFU_ROOT")
        options.destination = options.destination or environment.get("PFU_DESTINATION") or None
        return options

    def _take_places(self, options: argparse.Namespace, words: Sequence[str]) -> None:
        """What stands after ``--``: ROOT and the destination, whatever they begin with."""
        free = [name for name in ("root", "destination") if getattr(options, name) is None]
        if len(words) > len(free):
            self.error(f"too many arguments after --: {shlex.join(words[len(free) :])}")
        for name, word in zip(free, words):
            setattr(options, name, word)

    def _unknown(self, environment: Mapping[str, str]) -> list[str]:
        """Variables that look like an option but are not: probably misspelt."""
        known = OTHER_VARIABLES.union(map(variable_of, self._actions))
        return [
            name
            for name in sorted(environment)
            if name.startswith("PFU_") and name not in known and not name.startswith("PFU_TEST_")
        ]

    def _words(self, action: argparse.Action, given: str) -> list[str]:
        option = action.option_strings[-1]
        if action.nargs == 0:
            if given.lower() not in SWITCHES:
                self.error(f"invalid value {given!r}: use 1 or 0")
            return [option] * SWITCHES[given.lower()]
        if not isinstance(action.default, list):
            return [f"{option}={given}"]
        try:
            return [f"{option}={word}" for word in shlex.split(given)]
        except ValueError as error:
            self.error(f"{error}")
            raise


FORMS = {f"--{name}": f"PFU_{name.upper()}" for name in ("json", "status", "verify", "cleanup")}
NEVER_EMPTY = frozenset(("PFU_FILES_FROM", "PFU_FILES_FROM0", "PFU_EVENTS"))
# of scripts.sh, and for developers of pfu
OTHER_VARIABLES = frozenset(("PFU_HOME", "PFU_VENV", "PFU_PYTHON", "PFU_START_METHOD"))
SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def variable_of(action: argparse.Action) -> str:
    """The environment variable for an option."""
    name = action.option_strings[-1].lstrip("-") if action.option_strings else action.dest
    return f"PFU_{name.replace('-', '_').upper()}"


def parse_size(text: str) -> int:
    """Bytes of ``512``, ``20M``, ``1.5GiB``: units of 1,024. Raises ArgumentTypeError."""
    match = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.I
    )
    if not match:
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: use e.g. 16M or 1.5GiB")
    size = float(match[1]) * SIZE_UNITS[match[2].upper()]
    return int(max(size, float(size > 0)))  # 0 means no limit, so less than a byte becomes 1


DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def parse_bandwidth(text: str) -> int | Timetable:
    """``20M``, ``off``, or a timetable: ``08:00,1M Sat-08:00,off``. Raises ArgumentTypeError.

    Of two entries for one time that with a day counts.
    """
    if "," not in text:
        return 0 if text == "off" else parse_size(text)
    daily: dict[int, int] = {}
    turns: dict[int, int] = {}
    for word in text.split():
        match = re.fullmatch(r"(?:([A-Za-z]{3})-)?([01]?[0-9]|2[0-3]):([0-5][0-9]),(.+)", word)
        day = match and match[1] and match[1].capitalize()
        if not match or (day and day not in DAYS):
            cause = "is not [DAY-]HH:MM,RATE, e.g. 08:00,1M or Sat-08:00,off"
            raise argparse.ArgumentTypeError(f"{word!r} {cause}")
        rate = 0 if match[4] == "off" else parse_size(match[4])
        alike = turns if day else daily
        for number in [DAYS.index(day)] if day else range(len(DAYS)):
            begins = (number * 24 + int(match[2])) * 60 + int(match[3])
            if begins in alike:
                raise argparse.ArgumentTypeError(f"{word!r} is at the time of another")
            alike[begins] = rate
    return Timetable(tuple(sorted({**daily, **turns}.items())))


def parse_time(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``15m``, ``2h``, ``1d``. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([smhd]?)", text.strip(), re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: use e.g. 90s, 15m, 2h or 7d")
    return float(match[1]) * TIME_UNITS[match[2]]


def parse_retention(text: str) -> Retention:
    """``30d`` from now on, or a date or time in UTC. Raises ArgumentTypeError.

    Whole days: who writes 30 means no seconds, and such a lock cannot be taken back.
    """
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"):
        with contextlib.suppress(ValueError):
            return Retention(text, float(calendar.timegm(time.strptime(text, form))))
    if not re.fullmatch("[0-9]{1,5}d", text):
        told = f"invalid retention {text!r}: use e.g. 30d or 2027-01-31"
        raise argparse.ArgumentTypeError(told)
    return Retention(text, time.time() + parse_time(text))


def in_range(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {low} and {high}")
        return int(text)

    return parse


def parse_glob(text: str) -> Glob:
    """Raises ArgumentTypeError."""
    try:
        return Glob.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def parse_name(text: str) -> str:
    """The name of a file, not a path. Raises ArgumentTypeError."""
    if text in ("", ".", "..") or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    return text


def parse_text(text: str) -> str:
    """Raises ArgumentTypeError: a variable may be empty in a script."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def parse_file(text: str) -> str:
    """The path of a file. Raises ArgumentTypeError."""
    if text == "-":
        raise argparse.ArgumentTypeError("- is no file here: write ./- for one of that name")
    return parse_text(text)


def parse_content_type(text: str) -> tuple[Glob, str]:
    """``GLOB=TYPE``. Raises ArgumentTypeError."""
    glob, _, kind = text.rpartition("=")
    if not re.fullmatch(r"[!-~]+/[!-~]+(;[ -~]+)?", kind) or not glob:
        raise argparse.ArgumentTypeError(f"{text!r} is not GLOB=TYPE, e.g. '*.log=text/plain'")
    return parse_glob(glob), kind


def parse_tag(text: str) -> tuple[str, str]:
    """``K=V``. Raises ArgumentTypeError."""
    name, equals, value = text.partition("=")
    if not equals or not is_tag(name, value):
        shown = text if len(text) < 80 else text[:80] + "..."
        told = "use K=V; a key has 1 to 128 characters, a value at most 256, all printable"
        raise argparse.ArgumentTypeError(f"invalid tag {shown!r}: {told}")
    return name, value


# of array jobs: the index, the lowest one, their number, the step between two
ARRAY_JOBS = (
    (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_STEP",
    ),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "", "AWS_BATCH_JOB_ARRAY_SIZE", ""),
    ("JOB_COMPLETION_INDEX", "", "", ""),  # Kubernetes does not say how many there are
)


def parse_shard(text: str) -> Shard:
    """``K/N``, ``auto`` or ``auto/N``. Raises ArgumentTypeError."""
    number, _, total = text.partition("/")
    problem = "use K/N, or auto/N in an array job"
    if number == "auto":
        number, counted = array_share()
        total = total or counted
        if not number:
            names = ", ".join(names[0] for names in ARRAY_JOBS)
            problem = f"not in an array job (none of {names} is set)"
        elif not total:
            problem = "nothing tells how many there are: write auto/N"
    if all(re.fullmatch(r"[1-9][0-9]{0,5}", part) for part in (number, total)):
        if int(number) <= int(total):
            return Shard(int(number), int(total))
        problem = f"{number} is more than {total}"
    raise argparse.ArgumentTypeError(f"invalid share {text!r}: {problem}")


def array_share() -> tuple[str, str]:
    """The number of this job in its array, from 1, and how many there are; empty if not told."""
    told = os.environ.get
    for index, least, count, step in ARRAY_JOBS:
        numbers = [told(index, ""), told(least, "0"), told(step, "1")]
        if all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
            position = (int(numbers[0]) - int(numbers[1])) // max(int(numbers[2]), 1)
            return str(position + 1), told(count, "")
    return "", ""


# how what follows an option is read: by its metavar, or by its name; else by parse_text()
PARSERS: Mapping[str, Callable[[str], Any]] = {
    "FILE": parse_file,
    "SIZE": parse_size,
    "TIME": parse_time,
    "RATE": parse_bandwidth,
    "TIME|DATE": parse_retention,
    "GLOB=TYPE": parse_content_type,
    "K=V": parse_tag,
    "K/N": parse_shard,
    "include": lambda text: Rule(True, parse_glob(text)),
    "exclude": lambda text: Rule(False, parse_glob(text)),
    "exclude-if-present": parse_name,
    **dict.fromkeys(("files-from", "files-from0", "events"), parse_text),  # - is a stream
}
# of the command line alone, each with its name in the namespace
COMMAND_OPTIONS: Sequence[tuple[str, Option]] = (
    ("sandbox", Option(False, "upload to a local S3 server that is discarded after the run")),
    ("provider", Option(None, "your own Uploader class, see docs/library.md", "MODULE:CLASS")),
    ("rules", Option((), "upload matching files; .gitignore syntax", "GLOB", "include")),
    ("rules", Option((), "skip matching files; the last match wins", "GLOB", "exclude")),
    (
        "rules",
        Option((), "read exclude patterns from FILE, as from a .gitignore", "FILE", "exclude-from"),
    ),
    ("db", Option(None, "ledger (default: pfu.db, with --shard pfu.K-of-N.db)", "FILE")),
    ("status", Option(False, "show the last runs in the ledger")),
    ("verify", Option(False, "check the store against the ledger and the files")),
    ("cleanup", Option(False, "abort unfinished uploads of large files")),
    ("dry_run", Option(False, "show what would be uploaded or cleaned up, and why")),
    ("json", Option(False, "print the result as one JSON object")),
    ("log_file", Option(None, "also log messages to FILE (self-rotating)", "FILE")),
    ("events", Option(None, "append JSON lines to FILE (-: stdout)", "FILE")),
    ("metrics_file", Option(None, "write Prometheus metrics of the upload", "FILE")),
    ("quiet", Option(False, "print problems only")),
    ("verbose", Option(False, "print a line for each file, and more details")),
)
# all options, in the order of --help
GROUPS: Mapping[str, str] = {
    "destination": "endpoint-url region profile sandbox create-bucket allow-public"
    " expected-bucket-owner no-overwrite requester-pays provider",
    "stored objects": "storage-class sse sse-kms-key-id content-type cache-control tag",
    "object lock": "object-lock-mode retain legal-hold",
    "file selection": "include exclude exclude-from exclude-if-present exclude-caches files-from"
    " files-from0 min-age max-age min-size max-size follow-symlinks links directory-markers"
    " one-file-system shard root-as ignore-ctime ignore-inode remove-source-files"
    " remove-linked-files force checksum renew-by-upload",
    "transfer and ledger": "mode db keep-history workers concurrency part-size max-memory bwlimit"
    " max-duration patience nice",
    "instead of uploading": "status verify cleanup dry-run",
    "output": "json log-file events metrics-file quiet verbose",
}


def make_parser() -> Parser:
    """The options, by group."""
    parser = Parser(
        prog="pfu.py",
        usage="pfu.py ROOT [s3://BUCKET[/PREFIX]] [OPTIONS]",
        description="Upload a directory tree to a private S3 bucket, in parallel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # what is added to a group costs no formatter, and no import of shutil
    )
    places = parser.add_argument_group("positional arguments")
    places.add_argument("root", metavar="ROOT", nargs="?", help="directory or file to upload")
    places.add_argument(
        "destination",
        metavar="s3://BUCKET[/PREFIX]",
        nargs="?",
        help="where to upload it (default: $PFU_DESTINATION, else your own private bucket)",
    )
    general = parser.add_argument_group("options")
    general.add_argument("-h", "--help", action="help", help="show this help message and exit")
    fields = (options_of(kind).items() for kind in (S3Options, ScanOptions, RunOptions))
    declared = {
        about.name_of(name): (name, about)
        for name, about in itertools.chain(COMMAND_OPTIONS, *fields)
    }
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            add_option(group, name, *declared[name])
    group.add_argument("--version", action="version", version=f"pfu {__version__}")
    return parser


def add_option(group: argparse._ArgumentGroup, name: str, dest: str, about: Option) -> None:
    """Add an option to a group of the parser."""
    more: dict[str, Any] = {"action": "store_true"}
    if about.default is not False:
        parse = in_range(*about.within) if about.within else PARSERS.get(about.metavar or "")
        parse = PARSERS.get(name, parse or parse_text)
        is_list = isinstance(about.default, tuple)
        more = {"action": "append", "default": []} if is_list else {"default": about.default}
        more.update(metavar=about.metavar, choices=about.choices, type=parse)
    group.add_argument(f"--{name}", dest=dest, help=about.help, **more)


COMMAND_FAULTS: Faults = {
    "ROOT is a directory or a file here, and comes before the destination": lambda o: (
        o.root and o.root.startswith("s3://") and not os.path.exists(o.root)
    ),
    "--status, --verify and --cleanup exclude each other": lambda o: (
        o.status + o.verify + o.cleanup > 1
    ),
    "--status cannot be combined with --dry-run": lambda o: o.status and o.dry_run,
    "--sandbox starts empty: there is nothing for --verify or --cleanup": lambda o: (
        o.sandbox and (o.cleanup or o.verify)
    ),
    "--verify cannot be combined with --dry-run": lambda o: o.verify and o.dry_run,
    "--verify cannot be combined with a list of files: it compares the whole tree": lambda o: (
        o.verify and (o.files_from or o.files_from0)
    ),
    "--sandbox uses its own endpoint and credentials, not --endpoint-url or --profile": lambda o: (
        o.sandbox and (o.endpoint_url or o.profile)
    ),
    "--remove-source-files cannot be combined with --sandbox, which keeps nothing": lambda o: (
        o.remove_source_files and o.sandbox
    ),
    "--remove-source-files cannot be combined with --verify": lambda o: (
        o.remove_source_files and o.verify
    ),
    "--events - cannot be combined with --json: both print to standard output": lambda o: (
        o.events == "-" and o.json
    ),
    "--events applies to uploads, not to --status, --verify or --cleanup": lambda o: (
        o.events and (o.verify or o.cleanup or o.status)
    ),
    "--quiet cannot be combined with --verbose": lambda o: o.quiet and o.verbose,
    "--workers must be 1 with --mode concurrent": lambda o: (
        o.mode == "concurrent" and o.workers > 1
    ),
    "--sandbox has no Object Lock, and takes no --object-lock-mode or --retain": lambda o: (
        o.object_lock_mode and o.sandbox
    ),
}


ACTS = frozenset(("--sandbox", "--status", "--verify", "--cleanup", "--dry-run"))


def options_in_force(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[argparse.Namespace, UsageError | None]:
    """The options, and what is wrong with them: it names the variables that are.

    The command line takes precedence: a variable that an argument excludes is ignored, but for
    those of ACTS, without which more would be sent than was meant.
    """
    parser, known = make_parser(), {**environment}
    variables = {action.option_strings[-1]: variable_of(action) for action in parser._actions[2:]}
    typed = {word.partition("=")[0] for word in arguments}
    while True:
        options = parser.parse_all(arguments, known)
        try:
            check_options(options)
        except UsageError as fault:
            named = set(re.findall("--[a-z0-9-]+[a-z0-9]", fault.operation)) & variables.keys()
            causes = {name: variables[name] for name in named - typed if variables[name] in known}
            is_moot = causes and named & typed and "less than" not in fault.operation
            if is_moot and not ACTS & causes.keys():
                known = {name: known[name] for name in known.keys() - causes.values()}
                typed |= causes.keys()  # what requires one of them is moot, too
                continue
            for name, cause in causes.items():
                fault.operation = re.sub(rf"{name}\b(?!-)", cause, fault.operation)
            return options, fault
        return options, None


def check_options(options: argparse.Namespace) -> None:
    """What the parser cannot check. Raises UsageError."""
    if not options.root and not options.status and not options.cleanup:
        hint = "usage: pfu.py ROOT [s3://BUCKET[/PREFIX]], see --help"
        raise UsageError("ROOT is missing", hint=hint)
    check_faults(options, COMMAND_FAULTS)
    ScanOptions(**{**chosen(options, ScanOptions), "rules": ()})
    RunOptions(**chosen(options, RunOptions))
    s3_names = {name: about.name_of(name) for name, about in options_of(S3Options).items()}
    for name, told in {**s3_names, "sandbox": "sandbox", "cleanup": "cleanup"}.items():
        if options.provider and getattr(options, name):
            raise UsageError(f"--{told} applies to S3 only, not to --provider", hint="see --help")
    s3_options(options)


def check_own_files(options: argparse.Namespace) -> None:
    """What pfu writes goes into different files. Raises UsageError, before any is opened."""
    named = {
        "--log-file": options.log_file,
        "--metrics-file": options.metrics_file,
        "--events": options.events,
    }
    files = {name: path for name, path in named.items() if path and path != "-"}
    metrics, options.metrics_file = options.metrics_file, None  # which a refusal would be told in
    ends = LEDGER_SUFFIXES if files else ()
    taken = {os.path.realpath(absolute(options.db) + end): "the ledger" for end in ends}
    for name, path in files.items():
        for end in ("", ".new") if name == "--metrics-file" else ("",):
            place = os.path.realpath(absolute(path) + end)
            if place in taken:
                raise UsageError(f"{name} names the same file as {taken[place]}")
            taken[place] = name
    check_metrics_file(metrics)
    options.metrics_file = metrics


def check_metrics_file(path: str | None) -> None:
    """Raises UsageError if it cannot be written, or replaces what is no metrics file of pfu."""
    if path:
        folder = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path) or not os.access(folder, os.W_OK):
            hint = "choose a file in an existing, writable directory"
            raise UsageError("write metrics", path, "it is not writable", hint)
        if not is_replaceable(path):
            hint = "choose another file, or remove it"
            raise UsageError("write metrics", path, "it is there, and holds no such metrics", hint)


def is_replaceable(path: str) -> bool:
    """Whether nothing is lost by another file in its place: nothing of /dev, no other content."""
    if re.match("/(dev|proc)/(?!shm/)", os.path.realpath(os.path.dirname(path)) + "/"):
        return False
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return True  # planted: what it leads to stays as it is
        with open(path, "rb") as file:
            return file.read(len(METRICS_BEGIN)) in (b"", METRICS_BEGIN)
    except OSError as error:
        return isinstance(error, FileNotFoundError)


def chosen(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The options that are fields of ``kind``; lists as tuples."""
    names = {f.name for f in dataclasses.fields(kind)} & set(vars(options))
    values = {name: getattr(options, name) for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def s3_options(options: argparse.Namespace) -> S3Options:
    """The options for the bucket."""
    return S3Options(**chosen(options, S3Options))


def run_options(options: argparse.Namespace) -> RunOptions:
    """The options for the run. Raises UsageError."""
    rules = [
        rule
        for given in options.rules
        for rule in ([given] if isinstance(given, Rule) else rules_of_file(given))
    ]
    events = "" if options.events == "-" else options.events
    own = tuple(filter(None, (options.log_file, options.metrics_file, events)))
    patterns = (given for given in options.rules if isinstance(given, str))
    lists = tuple(map(absolute, (*patterns, *options.files_from, *options.files_from0)))
    scan = {**chosen(options, ScanOptions), "rules": tuple(rules), "own_files": own}
    scan["read_files"] = lists
    return RunOptions(scan=ScanOptions(**scan), **chosen(options, RunOptions))


def verify(options: argparse.Namespace, console: Console) -> ExitCode:
    """--verify: compare, and report what differs."""
    job = job_of(options, console, None)
    with stopping_on_signals(job, console):
        verdict = job.verify()
    return conclude(options, console, verdict, verdict_lines(verdict, quiet=options.quiet))


def existing_ledger(options: argparse.Namespace) -> str:
    """Its path. Raises UsageError."""
    if not os.path.exists(options.db):
        raise UsageError("read ledger", options.db, "it does not exist", "specify one with --db")
    return absolute(options.db)


def show_status(options: argparse.Namespace, console: Console) -> ExitCode:
    """--status: the last runs."""
    jobs = last_jobs(existing_ledger(options))
    if options.json:
        console.say_json([job.told() for job in jobs])
    else:
        console.say(*(jobs_text(jobs) if jobs else ["no runs in the ledger"]))
    return ExitCode.OK


def last_jobs(path: str) -> list[BatchJobRow]:
    """The newest runs of a ledger; a killed one is shown as the next run will record it.

    A run is dead if it had not ended when nobody held the ledger, and still has not ended.
    """
    with contextlib.closing(Ledger(path, read_only=True)) as ledger:
        jobs = ledger.last_jobs(SHOWN_JOBS)
        running = {job.id for job in jobs if job.status < JobStatus.COMPLETE}
        if running and not LedgerLock.is_held(path):
            jobs = ledger.last_jobs(SHOWN_JOBS)
            for job in jobs:
                if job.id in running and job.status < JobStatus.COMPLETE:
                    job.move_to(JobStatus.INTERRUPTED)
                    job.error = KILLED
    return jobs


def clean_up(options: argparse.Namespace, console: Console) -> ExitCode:
    """--cleanup: abort unfinished uploads of this ledger, wherever they are."""
    path = existing_ledger(options)
    with contextlib.ExitStack() as closing:
        if not options.dry_run:
            closing.callback(LedgerLock(path).close)
        ledger = Ledger(path, read_only=options.dry_run)
        closing.callback(ledger.close)
        cleanup = Cleanup(ledger, s3_options(options))
        for line in cleanup.run(dry_run=options.dry_run):
            console.record(line)
            if not options.json and not options.quiet:
                console.say(line)
    for problem in cleanup.result.problems:
        console.problem(problem)
    return conclude(options, console, cleanup.result)


DEFAULT_BUCKET = re.compile(r"s3://pfu-(?P<account>[0-9]{12})-[a-z0-9-]+(?:/|\Z)")


@dataclass
class CleanupResult(Result):
    """What --cleanup did."""

    aborted: int = 0
    bytes: int = 0  # that these uploads hold
    uploads: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Cleanup:
    """Aborts all unfinished uploads that a ledger knows of, at any destination."""

    def __init__(self, ledger: Ledger, options: S3Options) -> None:
        self.result = CleanupResult()
        self._ledger = ledger
        self._options = options
        self._uploaders: dict[tuple[str, str], S3Uploader] = {}

    def run(self, *, dry_run: bool) -> Iterator[str]:
        """Yield a line for each upload, and a total."""
        result = self.result
        for upload in self._ledger.unfinished_uploads():
            stored = sum(part.part_size for part in self._ledger.parts(upload.id))
            if not dry_run and not self._abort(upload):
                continue
            result.aborted, result.bytes = result.aborted + 1, result.bytes + stored
            place = {"destination": upload.destination, "key": upload.object_key}
            of_s3 = UploadHandle.read(upload.upload_id).upload_id if upload.upload_id else None
            result.uploads.append({**place, "upload_id": of_s3, "bytes": stored})
            yield f"{upload.object_key} of {upload.destination}  {bytes_text(stored)}"
        what = "would be aborted" if dry_run else "aborted"
        yield f"{count_of(result.aborted, 'unfinished upload')} {what}, {bytes_text(result.bytes)}"
        end = JobStatus.COMPLETE_WITH_FAILURES if result.problems else JobStatus.COMPLETE
        result.status = "dry run" if dry_run else end.text
        result.exit_code = ExitCode.INCOMPLETE if result.problems else ExitCode.OK

    def _abort(self, upload: UploadModel) -> bool:
        """Whether it is gone now, or was in a sandbox, which is gone."""
        try:
            if upload.endpoint != SANDBOX_ENDPOINT:
                self._uploader_of(upload).abort(upload.object_key, upload.upload_id)
        except PfuError as error:
            self.result.problems.append(str(error))
            return False
        self._ledger.forget_upload(upload.id)
        return True

    def _uploader_of(self, upload: UploadModel) -> S3Uploader:
        place = upload.destination, upload.endpoint
        if place not in self._uploaders:
            endpoint = self._options.endpoint_url or upload.endpoint or None
            options = dataclasses.replace(self._options, endpoint_url=endpoint)
            default = DEFAULT_BUCKET.match(upload.destination)
            if default and not options.expected_bucket_owner:
                options = dataclasses.replace(options, expected_bucket_owner=default["account"])
            uploader = S3Uploader(upload.destination, options)
            uploader.resolve()
            self._uploaders[place] = uploader
        if self._uploaders[place].endpoint != upload.endpoint:
            cause = (
                f"it was started at {upload.endpoint or 'AWS'}, but another endpoint is configured"
            )
            raise UsageError("abort upload of", upload.object_key, cause)
        return self._uploaders[place]


def job_of(options: argparse.Namespace, console: Console, sandbox: Sandbox | None) -> BatchJobModel:
    """The session for the command line."""
    uploader: Uploader
    if options.provider:
        uploader = provider_of(options.provider, options.destination)
    else:
        uploader = S3Uploader(options.destination, s3_options(options))
    if sandbox:
        uploader.endpoint = SANDBOX_ENDPOINT
    return BatchJobModel(options.root, uploader, options.db, run_options(options), console)


def provider_of(text: str, destination: str | None) -> Uploader:
    """One of the class ``MODULE:CLASS``; modules in the working directory are found too.

    Raises UsageError, or the PfuError that it raises.
    """
    module, colon, name = text.partition(":")
    if not colon or not name:
        raise UsageError("load provider", text, "not MODULE:CLASS")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, Uploader):
            return found(destination)  # type: ignore[call-arg]
    except PfuError:
        raise
    except (Exception, SystemExit) as error:  # whatever it does
        cause = f"{type(error).__name__}: {error}"
        raise UsageError("load provider", text, cause) from error
    raise UsageError("load provider", text, "not an Uploader subclass", "see docs/library.md")


def upload(options: argparse.Namespace, console: Console, sandbox: Sandbox | None) -> ExitCode:
    """Upload, or do a dry run; print the summary."""
    job = job_of(options, console, sandbox)
    begins = {"version": __version__, "batch_id": job.id, "mode": job.mode}
    console.event("start", {**begins, "root": job.root_dir, "dry_run": options.dry_run})
    with stopping_on_signals(job, console):
        summary = job.dry_run() if options.dry_run else job.run()
    lines = plan_lines(summary) if options.dry_run else summary_lines(summary)
    if sandbox and not options.dry_run:
        assert isinstance(job.uploader, S3Uploader)
        lines = itertools.chain(lines, sandbox.contents(job.uploader))
    nothing_began = summary.exit_code == ExitCode.CANNOT_START and not summary.uploaded
    if options.quiet or options.events == "-" or nothing_began:
        lines = iter(())
    return conclude(options, console, summary, lines)


def conclude(
    options: argparse.Namespace, console: Console, result: Result, lines: Iterable[Line] = ()
) -> ExitCode:
    """Tell how it ended; ``lines`` are for people."""
    console.block.end()
    if result.error:
        console.problem(f"stopped: {result.error}")
    tell_programs(options, console, result)
    if not options.json:
        console.say(*lines)
    return ExitCode(result.exit_code)


LOGGED_COUNTS = (
    *("seen", "uploaded", "unchanged", "checked", "verified", "adopted", "differing", "extra"),
    *("skipped", "failed", "pending", "bytes_uploaded", "aborted"),
)


def tell_programs(options: argparse.Namespace, console: Console, result: Result) -> None:
    """Log, metrics, events, JSON."""
    told = dataclasses.asdict(result)
    for different in told.get("differences", ()):
        console.record(f"{different['reason']}: {different['path']}")
    counts = ", ".join(f"{told[name]:,} {name}" for name in LOGGED_COUNTS if name in told)
    console.record(f"{result.status}: {counts}, exit code {result.exit_code:d}")
    if isinstance(result, Summary):
        if options.metrics_file and not options.dry_run:
            try:
                write_metrics(options.metrics_file, result, absolute(options.db))
            except UsageError as error:
                console.problem(str(error))
        console.event("end", told)
    if options.json:
        console.say_json(told)


@contextlib.contextmanager
def stopping_on_signals(job: BatchJobModel, console: Console) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP stops the run cleanly, a second SIGINT immediately.

    Signals that the caller ignores (nohup) stay ignored.
    """
    interrupts = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            console.block.end()
            with contextlib.suppress(OSError):  # not sys.stderr, which this may have interrupted
                os.write(STANDARD_ERROR, b"pfu: stopped immediately; the next run resumes\n")
            os._exit(ExitCode.STOPPED)
        job.stop(f"{signal.Signals(number).name} received")

    def suspend(number: int, frame: Any) -> None:
        console.block.hide()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, suspend)

    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            handler = suspend if number == signal.SIGTSTP else handle
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def run_command(options: argparse.Namespace, console: Console) -> ExitCode:
    """Run the command line. Raises PfuError."""
    for name in options.unknown_variables:
        console.note(f"environment variable {name} is not an option and is ignored")
    console.record(f"pfu {__version__}: {shlex.join(sys.argv[1:])}")
    if options.status:
        return show_status(options, console)
    if options.cleanup:
        return clean_up(options, console)
    if options.verify:
        return verify(options, console)
    if options.sandbox:
        with Sandbox() as sandbox:
            options.endpoint_url = sandbox.endpoint_url
            options.create_bucket = True
            return upload(options, console, sandbox)
    return upload(options, console, None)


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """The program. Returns the exit code; prints one line if it fails."""
    open_streams()
    learn_urls()
    arguments = sys.argv[1:] if arguments is None else arguments
    options, fault = options_in_force(arguments, os.environ)
    share = options.shard
    options.db = options.db or (f"pfu.{share.number}-of-{share.total}.db" if share else "pfu.db")
    live = can_erase(sys.stderr) and not options.json
    lists = options.dry_run and not (options.quiet or options.json or options.events == "-")
    console = Console(quiet=options.quiet, verbose=options.verbose, live=live, lists=lists)

    console.last_words = functools.partial(give_up, options, console)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        check_own_files(options)
        if options.log_file:
            console.log = LineFile("log", options.log_file, LOG_BYTES)
        if options.events:
            console.events = LineFile("events", options.events)
        if fault:
            raise fault
        return run_command(options, console)
    except PfuError as error:
        code, reason = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, reason = ExitCode.STOPPED, "interrupted"
    except Exception as error:  # noqa: BLE001  one line instead of a traceback
        code, reason = ExitCode.CANNOT_START, internal_error(error)
    console.block.end()
    console.problem(reason)
    give_up(options, console, reason, code)
    return code


def give_up(
    options: argparse.Namespace,
    console: Console,
    reason: str,
    code: ExitCode = ExitCode.INCOMPLETE,
) -> None:
    """Tell programs what a person was told: nothing was done, or it was broken off."""
    end: dict[str, Any] = {"error": reason, "exit_code": code}
    root = options.root_as or options.root or ""
    ends: dict[str, Any] = {"root": root and absolute(root)}
    ends["destination"] = options.destination or ""
    if options.verify:
        tell_programs(options, console, Verdict(**end, **ends))
    elif options.cleanup:
        tell_programs(options, console, CleanupResult(**end, problems=[reason]))
    elif not options.status:
        tell_programs(options, console, Summary(mode=options.mode, **end, **ends))


def open_streams() -> None:
    """Make sure that output never fails: in any encoding, even if a stream is closed.

    The descriptor of a closed one is occupied: no file of pfu gets its number.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    plain = sys.__stderr__
    if plain is sys.stderr and type(plain) is io.TextIOWrapper:
        sys.stderr = MaskedStream(
            plain.buffer, plain.encoding, "backslashreplace", write_through=True
        )


def command() -> None:
    """The `pfu` command of an installation: the program, in its own process.

    File names are bytes, and keys are UTF-8, whatever the locale: under any other encoding Python
    is restarted in its UTF-8 mode (PEP 540).
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for workers too
        os.execv(sys.executable, [sys.executable, *sys.argv])
    leave(main())


if __name__ == "__main__":
    command()
