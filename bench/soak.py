"""Soak: pfu runs for minutes or hours against a store that misbehaves, and is believed nothing.

    python bench/soak.py --minutes 30 [--seed N] [--json FILE] [--pfu FILE] [--work DIR]

How it works. The S3 server of testing/, which verifies every signature and payload digest, runs
in a process of its own and is told of faults through a pipe. A round changes the tree at random,
sets random faults, starts pfu.py with random options, goes on changing the tree, and kills, stops
or signals pfu, or one of its workers, at a random moment, or leaves it alone.

Every run has a log, events and metrics, the environment and priority of a job of cron, and tells
its end in JSON or in words.

After every run, however it ended: no process of it is left; each row of the ledger that claims
success is in the store with this size, digest, ETag, time and permissions; nothing that lies
outside the tree was ever stored. After a run that ended by itself: exit code, JSON and the
ledger's BatchJob agree, the files add up, and nothing but clear lines was said. Events, log,
metrics and words tell the same, each file once, and what the events call stored is stored.

Every few rounds the store behaves and the tree holds still. Then one run must end with 0, and
store, ledger and tree are compared file by file: nothing is lost, no upload with a part is left
unfinished (but where the store refused to abort it), a further run makes no request at all, and
--verify finds no difference. Now and then the ledger is deleted, and --verify must make it anew.

All choices come from one seed. What a round does depends on the seed and its number alone, its
moments on the machine. At the first violation the round, its options and faults are printed, the
ledger and the tree are kept, and the exit code is 1. Needs Linux, and what the tests need.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import secrets
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pfu  # noqa: E402
from testing.faults import Action, Fault  # noqa: E402
from testing.place import ODD_NAMES, children_of, is_alive, key_of  # noqa: E402
from testing.server import SECRET_KEY, S3Server  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
BUCKET, PREFIX = "soak", "p/"
MOST_FILES, MOST_BYTES, MOST_LARGE = 400, 300 * MIB, 10
RUN_SECONDS = 420.0  # a run that takes longer hangs: pfu's own watchdog ends it after 330
STOP_SECONDS = 12.0  # README.md promises ten; this machine may be busy
DEAF_SECONDS = 1.5  # a run that is told to stop may be at its very end, and not say so
ORPHAN_SECONDS = 5.0
QUIET_SECONDS = 2.2  # pfu does not believe a file that was modified within two seconds


class Violation(Exception):
    """Something that pfu promises did not hold."""


def demand(holds: object, text: str) -> None:
    if not holds:
        raise Violation(text)


def weights(text: str) -> dict[str, int]:
    """Names, each with how likely it is."""
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2])))


def drawn(rng: random.Random, weighted: dict[str, int]) -> str:
    return rng.choices(list(weighted), list(weighted.values()))[0]


# ---------------------------------------------------------------------------------------------
# The store, in a process of its own
# ---------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """An object, without its bytes."""

    size: int
    sha256: str
    etag: str
    mtime: str
    permissions: str
    owner: tuple[str, ...]  # user and group
    part_sizes: tuple[int, ...]


class Service:
    """What can be asked of the server's process: the methods, by their names."""

    def __init__(self, server: S3Server) -> None:
        self.server = server

    def misbehave(self, faults: list[Fault]) -> None:
        self.server.faults[:] = faults

    def calm(self) -> list[int]:
        """How often each fault was applied; there are none any more."""
        applied = [fault.applied for fault in self.server.faults]
        self.server.faults.clear()
        bucket = self.server.bucket(BUCKET)
        assert bucket is not None
        bucket.part_acknowledgements.clear()
        if self.server.crashes:
            raise RuntimeError(self.server.crashes[0])
        return applied

    def count(self, operation: str | None) -> int:
        return self.server.count(operation)

    def uploads(self) -> list[tuple[str, str]]:
        """Key and id of those that are unfinished, and hold bytes."""
        return [(u.key, u.upload_id) for u in self.server.uploads(BUCKET).values() if u.parts]

    def refused(self) -> set[str]:
        """Keys whose uploads the store did not let be aborted, since all was compared."""
        return {
            request.key
            for request in self.server.log
            if request.operation == "AbortMultipartUpload"
            and (400 <= request.status < 500 or request.status == 501)
        }

    def history(self, keys: set[str]) -> list[str]:
        """What was asked about them since all was compared."""
        return [
            f"{request.operation} {request.key or request.query.get('prefix', '')} "
            f"{request.query.get('uploadId', '')} {request.status} {request.acknowledged}"
            for request in self.server.log
            if {request.key, request.query.get("prefix", "")} & keys
        ]

    def forget(self, uploads: list[tuple[str, str]]) -> None:
        """As a lifecycle rule would, and all that was asked."""
        bucket = self.server.bucket(BUCKET)
        assert bucket is not None
        for _, upload_id in uploads:
            bucket.uploads.pop(upload_id, None)
        self.server.clear_log()

    def objects(self) -> dict[str, Stored]:
        return {
            key: Stored(
                stored.size,
                stored.sha256,
                stored.etag,
                stored.headers.get("x-amz-meta-file-mtime", ""),
                stored.headers.get("x-amz-meta-file-permissions", ""),
                tuple(stored.headers.get(f"x-amz-meta-{name}", "") for name in ("uid", "gid")),
                tuple(part.size for part in stored.parts),
            )
            for key, stored in self.server.objects(BUCKET).items()
        }

    def delete(self, keys: list[str]) -> None:
        bucket = self.server.bucket(BUCKET)
        assert bucket is not None
        for key in keys:
            bucket.delete(key)


def serve(pipe: Any, seed: int) -> None:
    """The server's process: answers what is asked until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with S3Server(buckets=[BUCKET], keep_bodies=False, seed=seed) as server:
        pipe.send((server.endpoint, server.environment()))
        service = Service(server)
        with contextlib.suppress(EOFError):
            while True:
                name, arguments = pipe.recv()
                try:
                    pipe.send(getattr(service, name)(*arguments))
                except RuntimeError as error:
                    pipe.send(error)


class Store:
    """This end of the pipe."""

    def __init__(self, seed: int) -> None:
        self._pipe, far_end = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(far_end, seed), daemon=True)
        self._process.start()
        far_end.close()
        self.endpoint, self.environment = self._pipe.recv()

    def ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


# ---------------------------------------------------------------------------------------------
# The tree, and what happens to it
# ---------------------------------------------------------------------------------------------

NAMES = [f"f{number:02}" for number in range(60)] + [os.fsdecode(name) for name in ODD_NAMES]
DIRECTORIES = ["a", "b", "c", "dir with space", "\u00e9t\u00e9", os.fsdecode(b"d\xff")]
COMMON_TIME = 1_600_000_000 * 10**9  # nanoseconds
OWNERS = (0, 0, 1, 1000)
MODES = (0o600, 0o640, 0o644, 0o664, 0o755)


class Expected(NamedTuple):
    """A regular file as the store and the ledger should have it."""

    path: str
    size: int
    mtime: int  # nanoseconds
    permissions: str
    uid: int
    gid: int


class Tree:
    """A directory that changes. Only one thread at a time may change it."""

    CHANGES = weights(
        "add 8 add_large 4 rewrite 6 rewrite_in_size 4 touch 3 chmod 3 truncate 2 grow 3 delete 4"
        " rename 4 rename_directory 1 link 1 link_directory 1 fifo 1 remove_others 1"
        " replace_unseen 4 edit_unseen 4 restore 2 hard_link 3 waver 4"
    )
    if os.geteuid() == 0:
        CHANGES["chown"] = 3

    def __init__(self, root: Path, outside: Path) -> None:
        self.root, self.outside = str(root), outside
        self.changes: Counter[str] = Counter()
        self.ever: set[str] = set()  # keys of all files that there were
        self.changed_at = 0.0
        root.mkdir()
        outside.mkdir()

    def change(self, rng: random.Random) -> None:
        """One change. What cannot be, as a file in the place of a directory, is left."""
        name = drawn(rng, self.CHANGES)
        files = self.files()
        if name.startswith("add") and not self._has_room(files):
            name = "delete"
        elif len(files) < rng.randrange(MOST_FILES):
            name = rng.choice((name, "add"))
        with contextlib.suppress(OSError, IndexError):
            getattr(self, f"_{name}")(rng, files)
            self.changes[name] += 1
        self.ever.update(map(self.key, self.files()))
        self.changed_at = time.monotonic()

    def files(self) -> list[str]:
        return sorted(path for path, mode in self._entries(self.root) if stat.S_ISREG(mode))

    def expected(self) -> dict[str, Expected]:
        """What should be in the store, by keys."""
        found = {}
        for path in self.files():
            status = os.lstat(path)
            attributes = status.st_size, status.st_mtime_ns, f"0{status.st_mode:o}"
            owner = status.st_uid, status.st_gid
            found[self.key(path)] = Expected(path, *attributes, *owner)
        return found

    def key(self, path: str) -> str:
        return PREFIX + key_of(Path(os.path.relpath(path, self.root)))

    def _entries(self, directory: str) -> Iterator[tuple[str, int]]:
        """Everything below, with its mode; links are not followed."""
        with os.scandir(directory) as entries:
            for entry in list(entries):
                mode = entry.stat(follow_symlinks=False).st_mode
                yield entry.path, mode
                if stat.S_ISDIR(mode):
                    yield from self._entries(entry.path)

    def _has_room(self, files: list[str]) -> bool:
        sizes = list(map(os.path.getsize, files))
        large = sum(size > 5 * MIB for size in sizes)
        return len(files) < MOST_FILES and sum(sizes) < MOST_BYTES and large < MOST_LARGE

    def _directories(self) -> list[str]:
        return sorted(path for path, mode in self._entries(self.root) if stat.S_ISDIR(mode))

    def _place(self, rng: random.Random) -> str:
        """A path for a file, in a directory that is there or is made."""
        directory = rng.choice([self.root, *self._directories()])
        if rng.random() < 0.15 and directory.count("/") - self.root.count("/") < 4:
            directory = os.path.join(directory, rng.choice(DIRECTORIES))
            os.makedirs(directory, exist_ok=True)
        return os.path.join(directory, rng.choice(NAMES))

    def _write(self, path: str, body: bytes, rng: random.Random) -> None:
        """In place, or beside it and renamed: so what is no file is replaced, never opened."""
        is_file = os.path.isfile(path) and not os.path.islink(path)
        written = path if rng.random() < 0.5 and is_file else f"{path}~"
        self.ever.update((self.key(path), self.key(written)))
        with open(written, "wb") as file:
            file.write(body)
        os.replace(written, path)

    def _chosen(self, rng: random.Random, files: list[str]) -> str:
        """A large file more often than there are such."""
        large = [path for path in files if os.path.getsize(path) > 5 * MIB]
        return rng.choice(large if large and rng.random() < 0.2 else files)

    def _add(self, rng: random.Random, _: list[str]) -> None:
        sizes = (0, rng.randint(100, 8 * KIB), rng.randint(100, 256 * KIB), rng.randint(1, 4 * MIB))
        size = rng.choices(sizes, (5, 70, 22, 3))[0]
        self._write(self._place(rng), rng.randbytes(size), rng)

    def _add_large(self, rng: random.Random, _: list[str]) -> None:
        self._write(self._place(rng), rng.randbytes(rng.randint(5 * MIB, 30 * MIB)), rng)

    def _rewrite(self, rng: random.Random, files: list[str]) -> None:
        self._write(self._chosen(rng, files), rng.randbytes(rng.randint(100, 64 * KIB)), rng)

    def _rewrite_in_size(self, rng: random.Random, files: list[str]) -> None:
        path = self._chosen(rng, files)
        self._write(path, rng.randbytes(os.path.getsize(path)), rng)

    def _touch(self, rng: random.Random, files: list[str]) -> None:
        ago = rng.choice((0, 0, 10**9, 10**16, 10**18, -(10**14)))
        mtime = rng.choice((time.time_ns() - ago, COMMON_TIME))
        os.utime(self._chosen(rng, files), ns=(mtime, mtime))

    def _chmod(self, rng: random.Random, files: list[str]) -> None:
        os.chmod(self._chosen(rng, files), rng.choice(MODES))

    def _chown(self, rng: random.Random, files: list[str]) -> None:
        os.chown(self._chosen(rng, files), rng.choice(OWNERS), rng.choice(OWNERS))

    def _replace_unseen(self, rng: random.Random, files: list[str]) -> None:
        """Other bytes are moved over a file: only its inode and ctime tell."""
        path = self._chosen(rng, files)
        self._prepare(path, rng.randbytes(os.path.getsize(path)))

    def _restore(self, rng: random.Random, files: list[str]) -> None:
        """The same bytes are, as from a backup."""
        path = self._chosen(rng, files)
        with open(path, "rb") as file:
            self._prepare(path, file.read())

    def _prepare(self, path: str, body: bytes) -> None:
        status, other = os.stat(path), self.outside / "prepared"
        other.write_bytes(body)
        other.chmod(status.st_mode)
        if os.geteuid() == 0:
            os.chown(other, status.st_uid, status.st_gid)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)

    def _edit_unseen(self, rng: random.Random, files: list[str]) -> None:
        """Bytes change in place, then the time is put back: only the ctime tells."""
        path = self._chosen(rng, files)
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(rng.randrange(max(1, status.st_size)))
            file.write(rng.randbytes(rng.randint(0, status.st_size - file.tell())))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _hard_link(self, rng: random.Random, files: list[str]) -> None:
        """Two names in the tree for one inode, or one outside, as a snapshot makes it."""
        path = self._chosen(rng, files)
        if rng.random() < 0.5:
            os.link(path, self._place(rng))
        else:
            os.link(path, os.path.join(tempfile.mkdtemp(dir=self.outside), "snapshot"))

    def _waver(self, rng: random.Random, files: list[str]) -> None:
        """ctimes move, and nothing else."""
        for path in rng.sample(files, min(len(files), 20)):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            os.chmod(path, mode ^ 0o40)
            os.chmod(path, mode)

    def _truncate(self, rng: random.Random, files: list[str]) -> None:
        path = self._chosen(rng, files)
        os.truncate(path, rng.randrange(os.path.getsize(path) + 1))

    def _grow(self, rng: random.Random, files: list[str]) -> None:
        size = rng.choices((rng.randint(1, 64 * KIB), rng.randint(MIB, 7 * MIB)), (5, 1))[0]
        with open(self._chosen(rng, files), "ab") as file:
            file.write(rng.randbytes(size))

    def _delete(self, rng: random.Random, files: list[str]) -> None:
        os.unlink(self._chosen(rng, files))

    def _rename(self, rng: random.Random, files: list[str]) -> None:
        os.rename(self._chosen(rng, files), self._place(rng))

    def _rename_directory(self, rng: random.Random, _: list[str]) -> None:
        directories = self._directories()
        parent = rng.choice([self.root, *directories])
        os.rename(rng.choice(directories), os.path.join(parent, rng.choice(DIRECTORIES)))

    def _link(self, rng: random.Random, files: list[str]) -> None:
        target = rng.choice((*files[:5], "nowhere", str(self._outside_file("linked"))))
        os.symlink(target, self._place(rng))

    def _link_directory(self, rng: random.Random, _: list[str]) -> None:
        """A directory gives way to a link to one outside, where the names are the same."""
        directory = rng.choice(self._directories())
        names = os.listdir(directory)
        target = Path(tempfile.mkdtemp(dir=self.outside))
        for name in names:
            self._outside_file(os.path.join(target.name, name))
        gone = tempfile.mkdtemp(dir=self.outside)
        os.rename(directory, gone)
        os.symlink(target, directory)
        shutil.rmtree(gone)

    def _outside_file(self, name: str) -> Path:
        path = self.outside / name
        if not path.exists():
            path.write_bytes(b"this is not in the tree")
        return path

    def _fifo(self, rng: random.Random, _: list[str]) -> None:
        os.mkfifo(self._place(rng))

    def _remove_others(self, rng: random.Random, _: list[str]) -> None:
        """Links and FIFOs go, so that they do not fill the tree."""
        for path, mode in list(self._entries(self.root)):
            if stat.S_ISLNK(mode) or stat.S_ISFIFO(mode):
                os.unlink(path)


OUTSIDE_SHA256 = hashlib.sha256(b"this is not in the tree").hexdigest()


class Changing(threading.Thread):
    """Changes the tree beside a run. All planned changes are done, the last ones afterwards."""

    def __init__(self, tree: Tree, rng: random.Random, changes: int) -> None:
        super().__init__(daemon=True)
        self._tree, self._rng, self._changes = tree, rng, changes
        self._over = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self._changes):
                self._over.wait(self._rng.expovariate(20))
                self._tree.change(self._rng)
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    def end(self) -> None:
        self._over.set()
        self.join()
        if self._failure:
            raise self._failure


def digest_like(path: str, part_sizes: Sequence[int]) -> str:
    """The SHA-256 of a file as the store would have it in such parts; hex."""
    with open(path, "rb") as file:
        if not part_sizes:
            return hashlib.sha256(file.read()).hexdigest()
        digests = [hashlib.sha256(file.read(size)).digest() for size in part_sizes]
    return f"{hashlib.sha256(b''.join(digests)).hexdigest()}-{len(digests)}"


# ---------------------------------------------------------------------------------------------
# Plans: what a round will do
# ---------------------------------------------------------------------------------------------

PASSING = (
    *(Action("error"), Action("error", 503, "SlowDown"), Action("error", 400, "BadDigest")),
    *(Action("early_error", 503, "SlowDown"), Action("early_error"), Action("error200")),
    *(Action("reset_before_body"), Action("reset_within_body"), Action("reset_after_body")),
    *(Action("lost_ack"), Action("lost_ack"), Action("close_after"), Action("garbage")),
    *(Action("half_headers"), Action("half_body"), Action("slow", seconds=0.4)),
    Action("call", function=functools.partial(time.sleep, 0.05)),
)
REFUSING = (
    *(Action("error", 403, "AccessDenied"), Action("error", 400, "InvalidRequest")),
    *(Action("error", 404, "NoSuchUpload"), Action("error", 400, "InvalidPart")),
    *(Action("error", 501, "NotImplemented"), Action("error", 404, "NoSuchKey")),
)
FATAL = (
    *(Action("error", 403, "InvalidAccessKeyId"), Action("error", 400, "ExpiredToken")),
    *(Action("error", 404, "NoSuchBucket"), Action("redirect", 301, region="eu-west-1")),
)
OPERATIONS = weights(
    "PutObject 6 UploadPart 4 CreateMultipartUpload 3 CompleteMultipartUpload 4 HeadObject 1"
    " CopyObject 3 AbortMultipartUpload 3 ListParts 2 HeadBucket 1 any 1"
)
OUTAGES = (
    *(Action("reset_before_body"), Action("reset_before_body"), Action("lost_ack")),
    *(Action("error", 503, "ServiceUnavailable"), Action("error", 520, ""), Action("garbage")),
    *(Action("error", 408, "RequestTimeout"), Action("error", 500, "InternalError")),
)
REFUSALS = (
    *(Action("error", 507, "InsufficientStorage"), Action("error", 403, "AccessDenied")),
    *(Action("error", 400, "InvalidStorageClass"), Action("error", 403, "QuotaExceeded")),
)
OLD_DATE = {"date": "Fri, 27 Nov 2020 20:00:00 GMT"}
WRONG_CLOCK = Action("error", 403, "RequestTimeTooSkewed", headers=OLD_DATE)
DISTURBANCES = weights(
    "none 6 kill 8 kill-worker 4 term 2 interrupt 2 interrupt-twice 1"
    " pause 1 pause-all 1 pause-worker 1"
)
WRITING = (
    *("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"),
    "CopyObject",
)
MOMENTS = (None, *WRITING)


@dataclass
class Spell(Fault):
    """A fault that all requests meet, from one of them on, for so many seconds."""

    seconds: float = 1.0
    began: float | None = None

    def matches(self, request: Any, generator: random.Random) -> bool:
        if self.began is None or time.monotonic() < self.began + self.seconds:
            is_met = super().matches(request, generator)
            if is_met and self.began is None:
                self.began = time.monotonic()
            return is_met
        return False


def drawn_faults(rng: random.Random) -> list[Fault]:
    """Few kinds of fault at a time; each is rare or ends, so that runs are short."""
    faults: list[Fault] = []
    if rng.random() < 0.2:  # the store goes away
        seconds = rng.choice((0.5, 1, 3, 7))
        faults.append(Spell(rng.choice(OUTAGES), after=rng.choice((0, 5, 30)), seconds=seconds))
    if rng.random() < 0.1:  # it takes nothing for a while
        operation = rng.choice(("PutObject", "UploadPart", "CreateMultipartUpload"))
        after, seconds = rng.choice((0, 5, 30)), rng.choice((0.5, 2))
        faults.append(Spell(rng.choice(REFUSALS), operation, after=after, seconds=seconds))
    if rng.random() < 0.1:  # the clock of one node of several is wrong
        faults.append(Fault(WRONG_CLOCK, probability=rng.choice((0.05, 0.25))))
    for _ in range(rng.choice((0, 1, 2, 3, 5))):
        kinds = rng.choices((PASSING, REFUSING, FATAL), (14, 3, 1))[0]
        operation = drawn(rng, OPERATIONS)
        fault = Fault(rng.choice(kinds), None if operation == "any" else operation)
        if fault.action.code == "NoSuchUpload" and operation in ("AbortMultipartUpload", "any"):
            fault.operation = "UploadPart"  # an upload that cannot be aborted is not gone: no lies
        fault.times, fault.after = rng.choice((1, 2, 5, 10)), rng.choice((0, 0, 1, 5))
        fault.probability = rng.choice((0.05, 0.2, 0.5, 1.0))
        faults.append(fault)
    if rng.random() < 0.1:  # a connection that never ends its answer, where pfu must not wait
        faults.append(Fault(Action("endless", seconds=0.05), "PutObject", times=1))
    if rng.random() < 0.1:
        storm = Action("error", 503, "SlowDown")
        faults.append(Fault(storm, times=rng.randint(5, 25), probability=0.5))
    if rng.random() < 0.7:
        slow = Action("slow", seconds=rng.choice((0.02, 0.1, 0.2)))
        faults.append(Fault(slow, probability=0.5))
    return faults


def drawn_options(rng: random.Random, mode: str) -> list[str]:
    options = ["--mode", mode, "--part-size", rng.choice((*["5M"] * 19, "6M"))]
    options += ["--patience", rng.choice(("2s", "5s", "20s"))]
    if mode == "parallel" and rng.random() < 0.7:
        options += ["--workers", str(rng.randint(1, 4))]
    optional = (
        (0.3, "--concurrency", ("1", "2", "8", "64")),
        (0.2, "--bwlimit", ("10M", "40M", "200M")),
        (0.1, "--max-duration", ("1s", "2s", "4s")),
        (0.1, "--max-memory", ("16M", "64M")),
        (0.1, "--checksum", ()),
        (0.1, "--ignore-inode", ()),
        (0.1, "--renew-by-upload", ()),
        (0.2, "--keep-history", ("0", "1s", "1d")),
        (0.03, "--force", ()),
        (0.6, "--nice", ("0",)),
    )
    for probability, name, values in optional:
        if rng.random() < probability:
            options += [name, rng.choice(values)] if values else [name]
    return options


@dataclass
class Plan:
    """A run that is to be made, and what is to happen to it.

    The disturbance comes after ``number`` requests of ``operation``, or after ``seconds``; if
    those do not come, two seconds later.
    """

    mode: str
    options: list[str]
    faults: list[Fault] = field(default_factory=list)
    changes: int = 0  # of the tree, beside the run
    disturbance: str = "none"
    operation: str | None = None
    number: int = 0
    seconds: float = 0
    hurried: bool = False  # killed, it is followed by another run at once

    @classmethod
    def drawn(cls, rng: random.Random) -> Plan:
        mode = rng.choice(("parallel", "concurrent"))
        return cls(
            mode,
            drawn_options(rng, mode),
            drawn_faults(rng),
            rng.choice((0, 5, 20, 40)),
            drawn(rng, DISTURBANCES),
            rng.choice(MOMENTS),
            rng.choice((1, 1, 2, 4, 10, 25)),
            rng.choice((0, rng.uniform(0, 0.5), rng.uniform(0, 2))),
            rng.random() < 0.5,
        )

    @classmethod
    def calm(cls, rng: random.Random) -> Plan:
        mode = rng.choice(("parallel", "concurrent"))
        return cls(mode, ["--mode", mode, "--part-size", "5M", "--nice", "0"])

    def __str__(self) -> str:
        told = dataclasses.asdict(self)
        for fault in self.faults:
            action = fault.action
            told.setdefault("fault", []).append(
                f"{fault.operation or 'any'}: {action.kind} {action.status} {action.code} "
                f"times={fault.times} after={fault.after} probability={fault.probability} "
                f"applied={fault.applied}"
            )
        del told["faults"]
        return "\n".join(f"  {name}: {value}" for name, value in told.items())


# ---------------------------------------------------------------------------------------------
# One run, and what happens to it
# ---------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """A run that is over."""

    plan: Plan
    code: int  # negative: the signal that killed it
    out: str
    err: str
    disturbed: str  # what happened to it indeed
    events: list[dict[str, Any]]  # of --events
    log: list[str]

    @property
    def summary(self) -> dict[str, Any]:
        """What --json said, or the last event in its place."""
        if "--json" not in self.plan.options:
            demand(self.events and self.events[-1]["event"] == "end", "there is no last event")
            return {k: v for k, v in self.events[-1].items() if k not in ("event", "time")}
        try:
            told = json.loads(self.out)
        except ValueError:
            raise Violation(f"exit {self.code}, and standard output is no JSON") from None
        demand(isinstance(told, dict), "standard output is no object")
        return dict(told)


class Session:
    """A pfu that runs in a session of its own."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.command, self.directory = command, directory
        with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.began = time.monotonic()

    def is_over(self) -> bool:
        demand(time.monotonic() - self.began < RUN_SECONDS, f"it hangs ({RUN_SECONDS:g} s)")
        return self.process.poll() is not None

    def has_handlers(self) -> bool:
        """Whether it would see a SIGTERM: before that, it is but an interpreter."""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.pid}/status").read_text()
            caught = re.search(r"^SigCgt:\s*(\w+)$", text, re.MULTILINE)
            return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
        return False

    def signal(self, number: int, pid: int | None = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.pid, number)

    def workers(self) -> list[int]:
        with contextlib.suppress(OSError):
            return children_of(self.pid)
        return []

    def members(self) -> list[int]:
        """All living processes of the session."""
        found = []
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                if path.name.isdigit():
                    fields = (path / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.pid and is_alive(int(path.name)):
                        found.append(int(path.name))
        return found

    def kill_all(self) -> None:
        for pid in self.members():
            self.signal(signal.SIGKILL, pid)
        self.process.wait()

    def said(self, name: str) -> str:
        return (self.directory / name).read_bytes().decode("utf-8", "surrogateescape")


class Disturbing:
    """Does to a run what its plan says, at the moment that it says."""

    def __init__(self, session: Session, plan: Plan, store: Store) -> None:
        self.session, self.plan, self.store = session, plan, store
        self._at_begin = store.ask("count", plan.operation)

    def run(self) -> str:
        """Wait for the moment, and disturb. Returns what was done."""
        action, _, target = self.plan.disturbance.partition("-")
        if action == "none" or not self._await_moment() or not getattr(self, f"_{action}")(target):
            return "none"
        return self.plan.disturbance

    def _await_moment(self) -> bool:
        session, plan = self.session, self.plan
        handled_at = 0.0
        while not session.is_over():
            if not handled_at and session.has_handlers():
                handled_at = time.monotonic()
            waited = time.monotonic() - handled_at if handled_at else 0
            requests = self.store.ask("count", plan.operation) - self._at_begin
            is_time = waited >= plan.seconds + (2 if plan.operation else 0)
            if handled_at and (is_time or (plan.operation and requests >= plan.number)):
                return session.has_handlers()
            time.sleep(0.004)
        return False

    def _worker(self) -> int | None:
        workers = self.session.workers()
        return workers[self.plan.number % len(workers)] if workers else None

    def _kill(self, target: str) -> bool:
        pid = self._worker() if target else self.session.pid
        if pid is not None:
            self.session.signal(signal.SIGKILL, pid)
        return pid is not None

    def _term(self, _: str) -> bool:
        self.session.signal(signal.SIGTERM)
        self._await_end("SIGTERM", STOP_SECONDS)
        return True

    def _interrupt(self, twice: str) -> bool:
        self.session.signal(signal.SIGINT)
        if twice:
            time.sleep(0.3)
            self.session.signal(signal.SIGINT)
        self._await_end("SIGINT", 3 if twice else STOP_SECONDS)
        return True

    def _pause(self, target: str) -> bool:
        session, worker = self.session, self._worker()
        pids = {"": [session.pid], "worker": [worker] if worker else []}.get(target)
        pids = session.members() if pids is None else pids
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                session.signal(number, pid)
            time.sleep(1 if number == signal.SIGSTOP else 0)
        return bool(pids)

    def _await_end(self, name: str, seconds: float) -> None:
        began = time.monotonic()
        while not self.session.is_over():
            demand(time.monotonic() < began + seconds, f"it runs {seconds:g} s after {name}")
            time.sleep(0.01)
        code, waited = self.session.process.returncode, time.monotonic() - began
        told = f"it goes on for {waited:.1f} s after {name}, and ends with {code}"
        demand(code not in (0, 1) or waited < DEAF_SECONDS, told)


# ---------------------------------------------------------------------------------------------
# The ledger, read without touching it
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the ledger with all outcomes folded, as the next run would find it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="copy-") as name:
        copy = Path(name, path.name)
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        ledger = pfu.Ledger(copy)
        ledger.fold()
        ledger.close()
        with contextlib.closing(sqlite3.connect(copy)) as db:
            db.row_factory = sqlite3.Row
            verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
            demand(verdict == "ok", f"the ledger is damaged: {verdict}")
            yield db


def digest_of(row: sqlite3.Row, stored: Stored) -> str | None:
    """The digest of a row as the store tells it.

    A row that --verify made knows nothing of parts; once its file was read and found to be the
    same, it has the digest of the whole.
    """
    digest: str | None = row["sha256"]
    if digest and pfu.is_sha256(digest) and len(stored.part_sizes) == 1:
        return f"{hashlib.sha256(bytes.fromhex(digest)).hexdigest()}-1"
    return digest


def lie_of(row: sqlite3.Row, stored: Stored | None) -> str:
    """What a row that claims success says, and the store does not; nothing if they agree.

    Of a file that was not uploaded but taken in by --verify, no digest need be known. A row that
    is stale says that the metadata in the store are older.
    """
    if stored is None:
        return "not in the store"
    pairs = {
        "size": (row["file_size"], stored.size),
        "ETag": (row["etag"], stored.etag),
        "SHA-256": (digest_of(row, stored), stored.sha256 if row["attempts"] else row["sha256"]),
        "modification time": (f"{row['last_modified']}ns", stored.mtime),
        "permissions": (row["permissions"], stored.permissions),
        "owner": ((str(row["uid"]), str(row["gid"])), stored.owner),
    }
    if row["stale"]:
        pairs = {name: pairs[name] for name in ("size", "ETag", "SHA-256")}
    lies = [f"{name} {told} is {real}" for name, (told, real) in pairs.items() if told != real]
    return ", ".join(lies)


# ---------------------------------------------------------------------------------------------
# The soak
# ---------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What happened. The last two are what the soak is about."""

    minutes: float = 0
    seed: int = 0
    rounds: int = 0
    runs: int = 0
    settled: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    hurried_runs: int = 0
    ledgers_made_anew: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    files_uploaded: int = 0  # as far as runs could tell
    bytes_uploaded: int = 0
    requests: int = 0
    rows_checked: int = 0
    files_checked: int = 0
    refused_uploads: int = 0  # left, because the store refused to abort them
    peak_memory_mib: int = 0  # of the soak
    outside_files: int = 0  # stored through a directory that gave way to a link
    lost_files: int = 0
    ledger_lies: int = 0

    def lines(self) -> Iterator[str]:
        for name, value in vars(self).items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {n}" for k, n in sorted(value.items()))
            yield f"{name.replace('_', ' '):18} {value}"


class Soak:
    """The rounds, and what must hold after each."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.rng = random.Random(options.seed)
        self.store = Store(options.seed)
        self.tree = Tree(work / "tree", work / "outside")
        self.tally = Tally(seed=options.seed)
        self.plan = Plan("", [])
        self.part_sizes = {"5M"}  # of runs since all was compared
        self.outside: set[str] = set()  # keys of objects with bytes from outside the tree
        self.session: Session | None = None
        self.command: list[str] = []
        self.environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}  # as of cron
        self.environment.update(self.store.environment, HOME=str(work))
        self.ledger = work / "pfu.db"
        self.success = 0.0  # the time of the last one in the metrics

    def run(self) -> None:
        """Rounds until the time is over. Raises Violation."""
        began = time.monotonic()
        try:
            for number in itertools.count(1):
                self.tally.rounds = number
                self.round(random.Random(self.rng.getrandbits(64)))
                if number % self.options.settle == 0:
                    self.settle()
                self.tally.minutes = round((time.monotonic() - began) / 60, 2)
                if self.tally.minutes >= self.options.minutes:
                    break
            if number % self.options.settle:
                self.settle()
        finally:
            if self.session:
                self.session.kill_all()
            self.tally.changes = self.tree.changes
            self.tally.requests = self.store.ask("count", None)
            self.tally.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KIB
            self.store.close()

    def round(self, rng: random.Random) -> None:
        plan, next_plan = Plan.drawn(rng), Plan.drawn(rng)
        changing = random.Random(rng.getrandbits(64))
        for _ in range(300 if self.tally.rounds == 1 else rng.choice((5, 30, 80))):
            self.tree.change(changing)
        ended = self.perform(plan, changing)
        if ended.code == -signal.SIGKILL and plan.hurried:
            self.tally.hurried_runs += 1
            ended = self.perform(next_plan, changing)
        self.check_run(ended)
        if rng.random() < 0.15:
            self.verify_in_trouble(rng)

    def verify_in_trouble(self, rng: random.Random) -> None:
        """It may find, and fail, whatever it will: the ledger stays honest."""
        ended = self.perform(Plan.drawn(rng), rng, "--verify")
        self.check_processes()
        self.check_words(ended)
        codes = (0, 1, 2, 4, -signal.SIGKILL, -signal.SIGTERM)
        demand(ended.code in codes, f"--verify ends with {ended.code}")
        self.check_ledger()

    # -- runs

    def perform(self, plan: Plan, rng: random.Random, *more: str) -> Ended:
        """Make a run, and all that the plan says."""
        self.plan = plan
        self.part_sizes.update(size for size in plan.options if size in ("5M", "6M"))
        self.store.ask("misbehave", self._with_endpoint(plan.faults))
        place = [self.tree.root, f"s3://{BUCKET}/{PREFIX}", "--endpoint-url", self.store.endpoint]
        program = [sys.executable, str(self.options.pfu)]
        if rng.random() < 0.5 or more:
            plan.options.append("--json")
        telling = ["--log-file", "pfu.log", "--metrics-file", "pfu.prom"]
        telling += [] if more else ["--events", "pfu.events"]
        for name in ("pfu.log", "pfu.events"):
            (self.work / name).unlink(missing_ok=True)
        self.command = [*program, *place, *telling, *plan.options, *more]
        changing = Changing(self.tree, rng, plan.changes)
        self.session = Session(self.command, self.work, self.environment)
        changing.start()
        try:
            disturbed = Disturbing(self.session, plan, self.store).run()
            while not self.session.is_over():
                time.sleep(0.01)
        finally:
            changing.end()
            for fault, applied in zip(plan.faults, self.store.ask("calm")):
                fault.applied = applied
        return self._ended(self.session, plan, disturbed)

    def _with_endpoint(self, faults: list[Fault]) -> list[Fault]:
        for fault in faults:
            if fault.action.kind == "redirect":
                fault.action = dataclasses.replace(fault.action, endpoint=self.store.endpoint)
        return faults

    def _ended(self, session: Session, plan: Plan, disturbed: str) -> Ended:
        code = session.process.returncode
        tally = self.tally
        tally.runs += 1
        tally.exit_codes[code] += 1
        tally.disturbances[disturbed] += 1
        for fault in plan.faults:
            action = fault.action
            named = action.code if action.kind in ("error", "early_error") else ""
            tally.faults[f"{action.kind} {named}".strip()] += fault.applied
        if self.options.verbose:
            seconds = time.monotonic() - session.began
            print(f"{tally.rounds:5} {seconds:6.1f} s  exit {code:3}  {disturbed}", flush=True)
        events = []
        for line in self.lines_of("pfu.events"):
            try:
                events.append(json.loads(line))
            except ValueError:
                demand(code < 0 and not line.endswith("}"), f"an event is no JSON: {line[:200]!r}")
        out, err = session.said("out"), session.said("err")
        return Ended(plan, code, out, err, disturbed, events, self.lines_of("pfu.log"))

    def lines_of(self, name: str) -> list[str]:
        try:
            return (self.work / name).read_text("utf-8", "surrogateescape").splitlines()
        except FileNotFoundError:
            return []

    # -- after every run

    def check_run(self, ended: Ended) -> None:
        self.check_processes()
        self.check_words(ended)
        if ended.code >= 0 and ended.disturbed != "interrupt-twice":
            self.check_summary(ended)
            self.check_told(ended)
        else:
            self.check_death(ended)
        self.check_ledger()

    def check_processes(self) -> None:
        assert self.session is not None
        deadline = time.monotonic() + ORPHAN_SECONDS
        while members := self.session.members():
            text = f"processes {members} live on {ORPHAN_SECONDS:g} s after the end of their run"
            demand(time.monotonic() < deadline, text)
            time.sleep(0.05)

    def check_words(self, ended: Ended) -> None:
        for told in ("Traceback", "internal error", "Exception ignored"):
            demand(told not in ended.err, f"{told!r} is said")
        demand(SECRET_KEY not in ended.err + ended.out, "the secret key is said")
        secret = SECRET_KEY.encode()
        for path in self.work.glob("pfu.db*"):
            demand(secret not in path.read_bytes(), f"the secret key is in {path.name}")

    def check_death(self, ended: Ended) -> None:
        """It died because it was told to, and of nothing else."""
        if ended.disturbed == "interrupt-twice":
            demand(ended.code in (0, 1, 2, 4), f"exit {ended.code} after two interrupts")
        elif ended.code == -signal.SIGTERM and ended.disturbed == "term":
            with opened_copy(self.ledger) as db:  # it came when the run was over already
                status = db.execute("SELECT status FROM BatchJob ORDER BY rowid").fetchall()[-1][0]
            demand(status >= pfu.JobStatus.COMPLETE, "SIGTERM killed it under way")
        else:
            killed = ended.code == -signal.SIGKILL and ended.disturbed == "kill"
            demand(killed, f"it ended with {ended.code} after {ended.disturbed!r}")

    def check_summary(self, ended: Ended) -> None:
        told, code = ended.summary, ended.code
        parts = [told[name] for name in ("uploaded", "unchanged", "skipped", "failed", "pending")]
        demand(told["seen"] == sum(parts), "the files do not add up")
        demand(told["exit_code"] == code, f"exit {code}, and JSON says {told['exit_code']}")
        undone = told["failed"] + told["pending"]
        may_stop = (
            ended.disturbed != "none" or ended.plan.faults or "--max-duration" in ended.plan.options
        )
        rules = {
            0: not undone and not told["error"],
            1: undone or told["error"],
            2: told["error"] and ended.plan.faults and not told["uploaded"],
            4: told["error"] and may_stop and not told["failed"],
        }
        demand(rules.get(code), f"exit {code} with {undone} undone and error {told['error']!r}")
        self.tally.files_uploaded += told["uploaded"]
        self.tally.bytes_uploaded += told["bytes_uploaded"]
        if told["batch_id"]:
            self.check_job(told)

    def check_told(self, ended: Ended) -> None:
        """Events, log, metrics and words tell the same as the summary, and nothing twice."""
        told, kinds = ended.summary, [event["event"] for event in ended.events]
        demand(kinds[-1:] == ["end"] and kinds.count("end") == 1, f"events end with {kinds[-3:]}")
        demand(kinds.count("start") <= 1 and "start" not in kinds[1:], "start is not first")
        end = {k: v for k, v in ended.events[-1].items() if k not in ("event", "time")}
        demand(end == told, f"events and JSON differ: {end}, {told}")
        files = [event for event in ended.events if event["event"] == "file"]
        paths = Counter(event["path"] for event in files)
        demand(max(paths.values(), default=1) == 1, f"events twice: {paths.most_common(3)}")
        counts = Counter(event["outcome"] for event in files)
        sent = counts["uploaded"] + counts["metadata updated"]
        of_events = sent, counts["metadata updated"], counts["failed"]
        of_json = tuple(told[name] for name in ("uploaded", "renewed", "failed"))
        demand(of_events == of_json, f"uploaded, renewed, failed: {of_events}, JSON: {of_json}")
        self.check_lines(ended)
        self.check_metrics(told)

    def check_lines(self, ended: Ended) -> None:
        """What a person is told."""
        told = ended.summary
        lines = ended.err.splitlines()
        twice = [line for line, times in Counter(lines).items() if times > 1]
        demand(not twice, f"said twice: {twice}")
        strange = [line for line in lines if not line.startswith(("pfu: ", "  "))]
        demand(not strange, f"said on standard error: {strange[:3]}")
        wanted = [line.partition("pfu: ")[2] for line in lines if line.startswith("pfu: ")]
        logged = [line.partition(" ")[2].partition(" ")[2] for line in ended.log]
        missing = [line for line in wanted if line not in logged]
        demand(not missing, f"said, and not in the log: {missing[:3]}")
        ends = [line for line in logged if line.endswith(f", exit code {ended.code}")]
        demand(len(ends) == 1 and logged[-1:] == ends, f"the log ends with {logged[-2:]}")
        for name in ("seen", "uploaded", "unchanged", "skipped", "failed", "pending"):
            demand(f"{told[name]:,} {name}" in ends[0], f"{name} is not in {ends[0]}")
        if "--json" not in ended.plan.options and ended.code != 2:
            for name in ("uploaded", "skipped", "failed", "pending"):
                found = re.search(rf"^ +([\d,]+) {name}\b", ended.out, re.MULTILINE)
                number = int(found[1].replace(",", "")) if found else 0
                demand(number == told[name], f"{name} {number} of {told[name]} in {ended.out}")
        if told["error"]:
            demand(told["error"] in ended.err, f"not on standard error: {told['error']}")
        if ended.code == 1:
            demand(lines, "exit 1, and nothing is said on standard error")

    def check_metrics(self, told: dict[str, Any]) -> None:
        figures = {}
        for line in self.lines_of("pfu.prom"):
            if match := re.fullmatch(r"pfu_(\w+)\{.*\} (\S+)", line):
                figures[match[1]] = float(match[2])
        pairs = {"files": "seen", "exit_code": "exit_code", "uploaded_bytes": "bytes_uploaded"}
        names = ("uploaded", "unchanged", "skipped", "failed", "pending")
        pairs |= {f"{name}_files": name for name in names}
        for metric, name in pairs.items():
            found = figures.get(f"run_{metric}")
            demand(found == told[name], f"metric {metric} is {found}, and {name} {told[name]}")
        success, last = (figures[f"last_{n}_timestamp_seconds"] for n in ("success", "run"))
        demand((success == last) == (told["exit_code"] == 0), "last_success is not the last one")
        demand(success == last or success == self.success, "last_success has moved")
        self.success = success

    def check_job(self, told: dict[str, Any]) -> None:
        with opened_copy(self.ledger) as db:
            row = db.execute("SELECT * FROM BatchJob WHERE id=?", (told["batch_id"],)).fetchone()
            busy = db.execute("SELECT count(*) FROM FileStat WHERE status=1").fetchone()[0]
        demand(row, "the ledger does not know the run")
        names = ("seen", "uploaded", "unchanged", "skipped", "failed", "pending", "bytes_uploaded")
        differing = [name for name in names if row[name] != told[name]]
        demand(not differing, f"JSON and BatchJob differ: {differing}")
        demand(row["status"] >= pfu.JobStatus.COMPLETE, "the run is over, and BatchJob not")
        demand(not busy or told["error"], f"{busy} rows are left in progress")

    def check_ledger(self) -> None:
        """Nothing is claimed that was not acknowledged."""
        objects: dict[str, Stored] = self.store.ask("objects")
        with opened_copy(self.ledger) as db:
            rows = db.execute("SELECT * FROM FileStat WHERE status=2").fetchall()
        lies = [
            f"{row['object_key']!r}: {lie}"
            for row in rows
            if (lie := lie_of(row, objects.get(row["object_key"])))
        ]
        self.tally.rows_checked += len(rows)
        self.tally.ledger_lies += len(lies)
        demand(not lies, "the ledger lies:\n  " + "\n  ".join(lies[:10]))
        strange = {key for key, stored in objects.items() if stored.sha256 == OUTSIDE_SHA256}
        self.tally.outside_files += len(strange - self.outside)
        self.outside = strange
        told = f"bytes from outside the tree were stored: {sorted(strange)[:10]}"
        demand(self.options.allow_outside or not strange, told)
        unknown = sorted(objects.keys() - self.tree.ever)
        demand(not unknown, f"objects of files that never were: {unknown[:10]}")

    # -- when all is quiet

    def settle(self) -> None:
        """Store, ledger and tree agree after one good run, and the next one knows it."""
        time.sleep(max(0, self.tree.changed_at + QUIET_SECONDS - time.monotonic()))
        rng = self.rng
        ended = self.perform(Plan.calm(rng), rng)
        self.check_run(ended)
        demand(ended.code == 0, f"exit {ended.code} though nothing is wrong")
        expected = self.tree.expected()
        self.check_store(expected)
        self.check_rows(expected)
        if self.part_sizes == {"5M"}:
            self.check_further_run(WRITING)
        else:  # the digest of a large file depends on them, and it may be hashed once more
            self.check_further_run(())
        self.check_further_run((None,))
        self.check_verification(expected, adopted=0)
        if rng.random() < 0.25:
            self.lose_ledger(expected)
        self.forget_uploads()
        self.forget_vanished(expected)
        self.tally.settled += 1
        self.part_sizes = {"5M"}

    def check_further_run(self, never: Sequence[str | None]) -> None:
        """It ends with 0, without requests that are ``never`` to be made; None is all."""
        before = sum(self.store.ask("count", operation) for operation in never)
        ended = self.perform(Plan.calm(self.rng), self.rng)
        self.check_run(ended)
        demand(ended.code == 0, f"a further run ends with {ended.code}")
        requests = sum(self.store.ask("count", operation) for operation in never) - before
        demand(not requests, f"a further run makes {requests} of the requests {never}")
        self.check_store(self.tree.expected())

    def check_store(self, expected: dict[str, Expected]) -> None:
        objects: dict[str, Stored] = self.store.ask("objects")
        wrong = []
        for key, file in expected.items():
            stored = objects.get(key)
            told = stored and (stored.size, stored.mtime, stored.permissions, stored.owner)
            owner = str(file.uid), str(file.gid)
            if told != (file.size, f"{file.mtime}ns", file.permissions, owner):
                wrong.append(f"{key!r}: {file} is stored as {stored}")
            elif stored and digest_like(file.path, stored.part_sizes) != stored.sha256:
                wrong.append(f"{key!r}: other bytes are stored")
        self.tally.files_checked += len(expected)
        self.tally.lost_files += len(wrong)
        demand(not wrong, "files are not in the store:\n  " + "\n  ".join(wrong[:10]))
        refused = self.store.ask("refused")
        left = {key for key, _ in self.store.ask("uploads")} - refused
        history = self.store.ask("history", left) if left else []
        demand(not left, "\n  ".join((f"unfinished uploads are left: {sorted(left)}", *history)))

    def check_rows(self, expected: dict[str, Expected]) -> None:
        with opened_copy(self.ledger) as db:
            rows = db.execute("SELECT * FROM FileStat").fetchall()
            left = db.execute("SELECT * FROM MultipartUpload").fetchall()
            parts = db.execute("SELECT * FROM Part").fetchall()
        told = {row["object_key"]: row for row in rows}
        demand(len(told) == len(rows), "a key has several rows")
        unfinished = [row["object_key"] for row in rows if row["status"] != 2]
        demand(not unfinished, f"rows are not finished: {unfinished[:10]}")
        demand(not left and not parts, f"{len(left)} uploads, {len(parts)} parts in the ledger")
        for key, file in expected.items():
            demand(key in told, f"the ledger does not know {key!r}")
            row = told[key]
            names = ("file_size", "last_modified", "permissions", "uid", "gid")
            known = tuple(row[name] for name in names)
            demand(known == file[1:], f"the ledger has {key!r} as {known}, it is {file[1:]}")
            demand(not row["stale"], f"the metadata of {key!r} are stale, though none was refused")

    def check_verification(self, expected: dict[str, Expected], adopted: int) -> None:
        """--verify finds what is known to be there, and nothing to complain of."""
        ended = self.perform(Plan("", []), self.rng, "--verify")
        told, extra = ended.summary, self.store.ask("objects").keys() - expected.keys()
        self.check_processes()
        self.check_words(ended)
        names = ("checked", "verified", "differing", "extra", "adopted")
        found = tuple(told[name] for name in names)
        wanted = (len(expected), len(expected), 0, len(extra), adopted)
        demand(found == wanted, f"--verify finds {found}, not {wanted}: {told['differences']}")
        demand(ended.code == 0, f"--verify ends with {ended.code}")
        demand(told["extra_known"] <= told["extra"], "more files went away than there are objects")
        self.check_ledger()

    def lose_ledger(self, expected: dict[str, Expected]) -> None:
        """--verify makes it anew."""
        for path in self.work.glob("pfu.db*"):
            path.unlink()
        self.check_verification(expected, adopted=len(expected))
        self.check_rows(expected)
        self.tally.ledgers_made_anew += 1

    def forget_uploads(self) -> None:
        """Those that could not be found or aborted, as all others are gone."""
        uploads = self.store.ask("uploads")
        self.tally.refused_uploads += len(uploads)
        self.store.ask("forget", uploads)

    def forget_vanished(self, expected: dict[str, Expected]) -> None:
        """So that neither store nor ledger nor this program grows for ever."""
        gone = sorted(self.store.ask("objects").keys() - expected.keys())
        if len(gone) > MOST_FILES:
            self.store.ask("delete", gone)
            with contextlib.closing(sqlite3.connect(self.ledger)) as db, db:
                db.executemany("DELETE FROM FileStat WHERE object_key=?", [(k,) for k in gone])
            self.tree.ever = set(expected)
        for path in self.tree.outside.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    # -- what went wrong

    def report(self, violation: BaseException) -> str:
        """All that is known of it."""
        err = self.session.said("err") if self.session else ""
        out = self.session.said("out") if self.session else ""
        return "\n".join(
            (
                f"VIOLATION in round {self.tally.rounds}, seed {self.options.seed}: {violation}",
                f"{self.plan}",
                f"  command: {shlex.join(self.command)}",
                f"  standard output: {out.strip()[:2000]!r}",
                f"  standard error: {err.strip()[-2000:]!r}",
                f"  kept: {self.work}",
            )
        )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--minutes", type=float, default=30, help="rounds begin within this time (default 30)")
    add("--seed", type=int, help="of all random choices (default: another each time)")
    add("--settle", type=int, default=3, metavar="N", help="all is compared every N rounds")
    add("--json", type=Path, metavar="FILE", help="write the results there as well")
    add("--pfu", type=Path, default=HERE.parent / "pfu.py", metavar="FILE", help="pfu.py")
    add("--allow-outside", action="store_true", help="count bytes from outside, and go on")
    add("--verbose", action="store_true", help="a line for each run")
    add("--work", type=Path, metavar="DIR", help="the tree and the ledger live below it")
    return made


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    options.pfu = options.pfu.resolve()
    if options.seed is None:
        options.seed = secrets.randbelow(1 << 32)
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=options.work)).resolve()
    print(f"seed {options.seed}, in {work}", flush=True)
    soak = Soak(options, work)
    code = 0
    try:
        soak.run()
    except Violation as violation:
        code = 1
        print(soak.report(violation))
    except KeyboardInterrupt:
        code = 130
    print("\n".join(soak.tally.lines()))
    if options.json:
        told = {**vars(soak.tally), "exit_code": code}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if code != 1:
        shutil.rmtree(work)
    return code


if __name__ == "__main__":
    sys.exit(main())
