"""The place a test runs in: a tree of files, the command line, the ledger, the store.

The program is forked again and again from a process that has imported boto3, where that makes no
difference to what is tested.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import marshal
import os
import py_compile
import re
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

import pytest

from testing.faults import Fault
from testing.protocol import Request
from testing.server import S3Server

KIB, MIB = 1 << 10, 1 << 20
HERE = Path(__file__).resolve().parent.parent
PFU = HERE / "pfu.py"
BUCKET = "bkt"
NEEDS_MOTO = pytest.mark.skipif(find_spec("moto") is None, reason="moto is not installed")
BOTH_MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
LONG_AGO = 1_600_000_000  # no file of this time is racily clean
ODD_NAMES: list[str | bytes] = [
    "plain.txt",
    "with space",
    "new\nline",
    "quote\"'",
    "percent%41",
    "plus+",
    "hash#",
    "question?",
    "amp&equal=",
    "back\\slash",
    "tilde~",
    "caf\u00e9 NFC",
    "cafe\u0301 NFD",
    "\u6771\u4eac",
    "\U0001f600",
    "\u201bquoted",
    "\uff0e",
    "\uff0e\uff0e",
    "full\uff0fslash",
    "\u2400null",
    "-dash",
    "...",
    " lead and trail ",
    "\x1b[31mred",
    "\x7f",
    b"latin-\xe9",
    b"\xff\xfe",
    b"half \xe2\x82",
]


def is_full_run() -> bool:
    """Whether every row runs in both modes, and fuzzers try all their inputs: pytest --full."""
    return bool(os.environ.get("PFU_TEST_FULL"))


@functools.cache
def compiled_program() -> str:
    """pfu.py, compiled once for all tests: that takes a third of the start of a run."""
    folder = tempfile.mkdtemp(prefix="pfu-test")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "pfu.pyc")
    py_compile.compile(str(PFU), path, doraise=True)
    return path


class Started:
    """A program that the fork server has started, as subprocess.Popen has it."""

    def __init__(self, pid: int, connection: socket.socket, *outputs: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection
        self._outputs = outputs
        self._told: tuple[str, ...] = ()

    def __del__(self) -> None:
        self._connection.close()
        for file in self._outputs:
            file.close()

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("pfu", timeout or 0.0)
            (self.returncode,) = struct.unpack("i", self._connection.recv(4))
            self._connection.close()
            for file in self._outputs:
                with file:
                    file.seek(0)
                    self._told += (file.read().decode("utf-8", "surrogateescape"),)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        """Standard output, and standard error unless it went elsewhere."""
        self.wait(timeout)
        return self._told

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Runs the program again and again in processes that need not import anything any more.

    The start of Python and the import of boto3 take two thirds of the time of a short run. All
    else is as after an exec: arguments, environment, working directory, streams, exit code.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pfu-test")
        self._place = os.path.join(self._folder, "socket")
        program = HERE / "testing" / "forkserver.py"
        command = [sys.executable, str(program), compiled_program(), self._place]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        self._process.stdout.readline()
        atexit.register(self.close)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        changes: str = "",
        *,
        leads: str = "",
        err: int | None = None,
    ) -> Started:
        """``changes`` are lines of Python that the program runs first, as its own.

        ``leads``: a new "session" or process "group"; ``err``: where its standard error goes.
        """
        encoded = {os.fsencode(k): os.fsencode(v) for k, v in environment.items()}
        request = marshal.dumps((str(folder), list(arguments), encoded, changes, leads))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._place)
        outputs = [tempfile.TemporaryFile() for _ in range(2 if err is None else 1)]  # noqa: SIM115
        descriptors = [file.fileno() for file in outputs] + ([] if err is None else [err])
        with open(os.devnull, "rb") as nothing:
            socket.send_fds(connection, [request], [nothing.fileno(), *descriptors])
        (pid,) = struct.unpack("i", connection.recv(4))
        return Started(pid, connection, *outputs)


fork_server = functools.cache(ForkServer)


def starts_like_this(environment: Mapping[str, str]) -> bool:
    """Whether Python itself would start in the same way with such an environment."""
    names = re.compile("PYTHON|LC_|LANG|LD_|PATH$|TZ$|PFU_START_METHOD$")
    return all(
        environment.get(name) == os.environ.get(name)
        for name in environment.keys() | os.environ.keys()
        if names.match(name)
    )


class Run(NamedTuple):
    """What a user sees of one run of the program."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Place:
    """A working directory with a tree in it, and the command line run there."""

    def __init__(self, path: Path, server: S3Server) -> None:
        self.path = path
        self.root = path / "tree"
        self.root.mkdir()
        self.server = server
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.environment.pop("PFU_DESTINATION", None)
        self.environment["HOME"] = str(path)
        self.environment.update(server.environment())
        self.endpoint = server.endpoint
        self.changes = ""  # lines of Python that run() has the program run first, as its own

    def file(self, name: str | bytes, content: bytes = b"x", mtime: int = LONG_AGO) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.root), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (mtime, mtime))
        return path

    def files(self, count: int, size: int = 100) -> None:
        for number in range(count):
            self.file(f"d{number % 7}/f{number:05}", b"%d " % number * (size // 6 + number % 5))

    def command(self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p") -> list[str]:
        command = [sys.executable, compiled_program(), *map(str, arguments)]
        if to is not None:
            command[2:2] = [str(self.root), *filter(None, [to])]  # "": the default bucket
        if self.endpoint and "--endpoint-url" not in command:
            command += ["--endpoint-url", self.endpoint]
        return command

    def run_in_shell(self, script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        """A line for bash, in which "$@" is the program with its arguments."""
        return subprocess.run(
            ["bash", "-c", script, "bash", *self.command(*arguments)],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run(self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p", **options: Any) -> Run:
        """``options`` are those of subprocess.run()."""
        command = self.command(*arguments, to=to)
        if not options and starts_like_this(self.environment):
            started = fork_server().start(command[2:], self.path, self.environment, self.changes)
            try:
                out, err = started.communicate(timeout=120)
            finally:
                started.kill()
            assert "Traceback" not in err, err
            return Run(started.wait(), out, err)
        assert not self.changes
        options.setdefault("env", self.environment)
        done = subprocess.run(
            command,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
            **options,
        )
        told = done.stderr.decode("utf-8", "surrogateescape")
        assert "Traceback" not in told, told
        return Run(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), told)

    def start(
        self, *arguments: Any, to: str | None = f"s3://{BUCKET}/p", leads: str = ""
    ) -> Started:
        """``leads``: a new "session" or process "group"."""
        assert starts_like_this(self.environment)
        command = self.command(*arguments, to=to)
        return fork_server().start(command[2:], self.path, self.environment, leads=leads)

    def rows(self, sql: str = "SELECT * FROM FileStat") -> list[dict[str, Any]]:
        """Of the ledger; a run that could not start has made none, or has left it empty."""
        ledger = self.path / "pfu.db"
        if not ledger.exists():
            return []
        with contextlib.closing(sqlite3.connect(ledger)) as db:
            db.row_factory = sqlite3.Row
            has_tables = db.execute("SELECT 1 FROM sqlite_master").fetchone()
            return [dict(row) for row in db.execute(sql)] if has_tables else []

    def local(self) -> dict[str, bytes]:
        """What should be in the store: key below the prefix -> bytes."""
        return {
            key_of(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def stored(self, prefix: str = "p/") -> dict[str, bytes | None]:
        objects = self.server.objects(BUCKET)
        return {key[len(prefix) :]: stored.body for key, stored in objects.items()}

    def check_ledger_is_honest(self, prefix: str = "p/") -> int:
        """Every row that claims success is in the store with the very bytes; returns how many."""
        objects = self.server.objects(BUCKET)
        claimed = self.rows("SELECT * FROM FileStat WHERE status = 2")
        for row in claimed:
            stored = objects[row["object_key"]]
            assert stored.puts >= 1 or stored.parts
            assert stored.size == row["file_size"]
            if stored.body is not None:
                assert row["sha256"] == stored.digest(row["part_size"])
            assert stored.etag.strip('"') == row["etag"]
        return len(claimed)


def key_of(path: Path) -> str:
    """An object key as rclone writes it, told independently of pfu: one byte or rune at a time."""
    return "/".join(map(encoded_name, os.fsencode(path).split(b"/")))


def encoded_name(name: bytes) -> str:
    quote = "\u201b"
    text = name.decode("utf-8", "surrogateescape")
    encoded = ""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            encoded += quote + character.encode("utf-8", "surrogateescape").hex().upper()
        elif character == quote:
            encoded += quote + character
        else:
            encoded += character
    return encoded


def assert_accounts(summary: Mapping[str, Any]) -> None:
    parts = ("uploaded", "unchanged", "skipped", "failed", "pending")
    assert summary["seen"] == sum(summary[part] for part in parts), summary
    assert summary["skipped"] == sum(summary["skipped_by_reason"].values())


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    return state_of(pid) not in ("", "Z")


def state_of(pid: int) -> str:
    """R, S, T, Z and so on, as in proc(5); nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def drop_privilege() -> None:
    """In the child: root obeys permissions from the next exec on."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)


def rewrite_in_place(path: Path) -> None:
    """Other bytes, same size, same time: only a hash tells."""
    status = path.stat()
    path.write_bytes(path.read_bytes().translate(bytes(range(255, -1, -1))))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def temporary_directory(parent: str) -> Iterator[str]:
    path = f"{parent}/pfu-test-{os.getpid()}"
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def without_credentials(place: Place) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del place.environment[name]


def wrong_secret(place: Place) -> None:
    place.environment["AWS_SECRET_ACCESS_KEY"] = "wrong"


def closed_port(place: Place) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"


def nothing(place: Place) -> None:
    """No trouble but the options."""


OPEN = {"ownership": None, "public_access_block": None}
HOW_REFUSED = ["deny", "not_implemented"]
IS_SAFE_LANE = "amz-sdk-invocation-id"  # a header that botocore sends, and the fast lane does not


class LaneFault(Fault):
    """A fault that only the fast lane meets."""

    def _concerns(self, request: Request) -> bool:
        return super()._concerns(request) and IS_SAFE_LANE not in request.headers


def puts_of(server: S3Server) -> dict[str, set[str]]:
    """The keys whose PutObject was acknowledged, by the lane that they came by."""
    lanes: dict[str, set[str]] = {"fast": set(), "safe": set()}
    for request in server.log:
        if request.operation == "PutObject" and request.acknowledged:
            lanes["safe" if IS_SAFE_LANE in request.headers else "fast"].add(request.key)
    return lanes


PART = ("--part-size", "5M")
EDGES = (0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 10 * MIB + 1)


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def without_pauses(place: Place) -> None:
    """Have the program wait for nothing before it tries again."""
    place.changes = "time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))"


def sitecustomize(place: Place, *lines: str) -> None:
    """Have every Python that starts run these lines first."""
    (place.path / "site").mkdir()
    (place.path / "site/sitecustomize.py").write_text("\n".join(lines))
    place.environment["PYTHONPATH"] = str(place.path / "site")


def redirected(place: Place, redirection: str, *arguments: Any) -> Run:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *place.command(*arguments)]
    done = subprocess.run(
        command, cwd=place.path, env=place.environment, capture_output=True, text=True, timeout=30
    )
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


def metric(text: str, name: str) -> float:
    found = re.search(rf"^pfu_{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])
