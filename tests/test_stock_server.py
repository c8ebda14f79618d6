"""What a server as it comes may lack: /dev/shm, file locks, bash; and where the ledger lies."""

from __future__ import annotations

import functools
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testing.place import (
    BOTH_MODES,
    BUCKET,
    HERE,
    MIB,
    PART,
    Place,
    Run,
    sitecustomize,
)

NO_SEMAPHORES = (
    "import errno, os, _multiprocessing",
    "class SemLock:",
    "    SEM_VALUE_MAX = 1",
    "    def __init__(*_, **__): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))",
    "_multiprocessing.SemLock = SemLock",
)
NOT_BUILT_IN = ("import _multiprocessing", "del _multiprocessing.SemLock")
NO_SHM = (
    "import os",
    "real = os.statvfs",
    "def statvfs(path):",
    "    return real('/nowhere' if path == '/dev/shm' else path)",
    "os.statvfs = statvfs",
)
LACKS = {
    "no semaphores": (NO_SEMAPHORES, "Function not implemented"),
    "Python without semaphores": (NOT_BUILT_IN, "Python was built without"),
    "no /dev/shm": (NO_SHM, "No such file or directory"),
}
MOUNTS = {
    "read-only": "mount -t tmpfs -o ro none /dev/shm",
    "missing": "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3",
}


@functools.cache
def can_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", " && ".join((MOUNTS["read-only"], MOUNTS["missing"]))]
    with open(os.devnull, "wb") as nowhere:
        try:
            return subprocess.run(command, stderr=nowhere, check=False).returncode == 0
        except OSError:
            return False


class TestNoSharedMemory:
    """Workers need semaphores and shared memory; where there are none, one process does."""

    def check(self, run: Any, place: Place, mode: str, cause: str) -> None:
        assert run.code == 0, run.err
        assert place.stored() == place.local()
        assert run.json["mode"] == "concurrent"
        if mode == "parallel":
            assert (run.err.count("\n"), len(run.json["notes"])) == (1, 1)
            assert run.json["notes"][0] in run.err
            assert f"{cause}: using mode concurrent" in run.err
        else:
            assert (run.err, run.json["notes"]) == ("", [])

    @BOTH_MODES
    @pytest.mark.parametrize("lack", LACKS)
    def test_a_run_goes_on_in_one_process(self, place: Place, lack: str, mode: str) -> None:
        place.files(5)
        place.file("large", os.urandom(6 * MIB))
        lines, cause = LACKS[lack]
        sitecustomize(place, *lines)
        self.check(place.run("--mode", mode, *PART, "--json"), place, mode, cause)
        assert place.run("--verify", "--json").json["verified"] == 6

    @BOTH_MODES
    @pytest.mark.parametrize("how", MOUNTS)
    def test_without_dev_shm_indeed(self, place: Place, how: str, mode: str) -> None:
        if not can_mount():
            pytest.skip("may not mount anything")
        place.files(5)
        command = place.command("--mode", mode, "--json")
        script = f'{MOUNTS[how]} && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *command],
            cwd=place.path,
            env=place.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        cause = {"read-only": "Read-only file system", "missing": "No such file or directory"}[how]
        self.check(Run(done.returncode, done.stdout, done.stderr), place, mode, cause)


@BOTH_MODES
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_module_that_is_compiled_once(place: Place, method: str, mode: str) -> None:
    """As docs/operations.md has it: python3 -m pfu, in its directory."""
    place.files(5)
    place.file("large", os.urandom(6 * MIB))
    folder = place.path / "opt"
    folder.mkdir()
    shutil.copy(HERE / "pfu.py", folder)
    _, _, *arguments = place.command("--mode", mode, *PART, "--db", place.path / "pfu.db")
    environment = {**place.environment, "PFU_START_METHOD": method}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for uploaded in (6, 0):
        done = subprocess.run(
            [sys.executable, "-m", "pfu", *arguments, "--json"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["uploaded"] == uploaded
    assert place.stored() == place.local()
    assert [*folder.glob("__pycache__/pfu.*.pyc")]


@BOTH_MODES
@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks(place: Place, code: str, mode: str) -> None:
    place.file("f")
    told = f"raise OSError(errno.{code}, os.strerror(errno.{code}))"
    sitecustomize(place, "import errno, fcntl, os", f"def lockf(*_): {told}", "fcntl.lockf = lockf")
    run = place.run("--mode", mode)
    assert (run.code, run.err.count("\n"), place.stored()) == (2, 1, {}), run.err
    assert f"lock {place.path}/pfu.db.lock: " in run.err
    assert "that file system has no file locks: use a --db on a local disk" in run.err


# ======================================================================================
# The ledger's place
# ======================================================================================


def on_a_terminal(place: Place, *arguments: Any) -> tuple[int, str]:
    """Exit code, and what standard error shows, of a run that is looked at."""
    ours, theirs = pty.openpty()
    try:
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(
                place.command(*arguments),
                cwd=place.path,
                env={**place.environment, "TERM": "dumb"},
                stdout=nowhere,
                stderr=theirs,
            )
            code = process.wait(60)
        os.write(theirs, b"\n.end\n")
        told = b""
        while b".end" not in told:
            told += os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    return code, told.decode()


class TestPlaceOfTheLedger:
    """A ledger that is made is named; one that may be elsewhere is asked for."""

    def test_a_new_ledger_is_named_on_a_terminal(self, place: Place) -> None:
        place.file("f")
        made = f"pfu: note: new ledger: {place.path}/pfu.db"
        code, told = on_a_terminal(place, "--mode", "concurrent")
        assert (code, told.count(made)) == (0, 1)
        code, told = on_a_terminal(place, "--mode", "concurrent")
        assert (code, made in told) == (0, False)
        code, told = on_a_terminal(place, "--mode", "concurrent", "--quiet", "--db", "b.db")
        assert (code, "ledger" in told) == (0, False)

    def test_cron_sends_no_mail_for_it_but_the_log_has_it(self, place: Place) -> None:
        place.file("f")
        log = place.path / "log"
        run = place.run("--mode", "concurrent", "--log-file", log)
        assert (run.code, run.err) == (0, "")
        assert log.read_text().count(f"note: new ledger: {place.path}/pfu.db\n") == 1

    @BOTH_MODES
    def test_from_another_directory_the_other_ledger_is_asked_for(
        self, place: Place, mode: str
    ) -> None:
        place.files(3)
        assert place.run("--mode", mode).code == 0
        elsewhere = place.path / "elsewhere"
        elsewhere.mkdir()
        place.path = elsewhere
        run = place.run("--mode", mode)
        assert (run.code, run.err.count("\n")) == (0, 1)
        assert f"s3://{BUCKET}/p has objects that are not in this ledger: " in run.err
        assert ("--db" in run.err, "--verify" in run.err) == (True, True)
        place.path = elsewhere.parent
        assert place.run("--mode", mode).err == ""

    def test_a_single_file_is_asked_for_too(self, place: Place) -> None:
        place.file("f")
        for ledger, said in ("a.db", False), ("b.db", True):
            run = place.run(place.root / "f", f"s3://{BUCKET}/p", "--db", ledger, to=None)
            assert (run.code, "not in this ledger" in run.err) == (0, said), run.err

    def test_objects_of_other_jobs_are_no_reason(self, place: Place) -> None:
        place.files(3)
        assert place.run("--mode", "concurrent").code == 0
        other = place.path / "other"
        other.mkdir()
        (other / "its own").write_bytes(b"x")
        run = place.run(other, f"s3://{BUCKET}/p", "--db", "other.db", to=None)
        assert (run.code, run.err) == (0, "")

    def test_where_no_one_may_list_nothing_is_said(self, place: Place) -> None:
        place.files(3)
        assert place.run("--mode", "concurrent").code == 0
        place.server.deny.add("ListObjectsV2")
        run = place.run("--mode", "concurrent", "--db", "other.db")
        assert (run.code, run.err) == (0, "")


# ======================================================================================
# scripts.sh
# ======================================================================================

RUN_NOT_SOURCED = "scripts.sh is to be sourced: . ./scripts.sh\n"


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "busybox sh"])
class TestScripts:
    """scripts.sh in the shells that there are."""

    def shell(self, shell: str, folder: Any, *arguments: Any) -> Any:
        if shutil.which(shell.split()[0]) is None:
            pytest.skip(f"there is no {shell}")
        command = [*shell.split(), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    def test_run_it_says_that_it_is_to_be_sourced(self, shell: str) -> None:
        for name in ("scripts.sh", "./scripts.sh", HERE / "scripts.sh"):
            run = self.shell(shell, HERE, name)
            assert (run.returncode, run.stdout, run.stderr) == (2, "", RUN_NOT_SOURCED)

    def test_it_works_in_its_directory(self, shell: str) -> None:
        run = self.shell(shell, HERE, "-c", '. ./scripts.sh && echo "$PFU_HOME"; type runtest')
        assert (run.returncode, run.stderr) == (0, "")
        assert run.stdout.splitlines()[0] == str(HERE)

    def test_elsewhere_it_finds_its_directory_or_says_that_it_cannot(
        self, shell: str, tmp_path: Path
    ) -> None:
        script = f'. {HERE}/scripts.sh && echo "$PFU_HOME"'
        run = self.shell(shell, tmp_path, "-c", script)
        if run.returncode:
            assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
            assert "cd there first" in run.stderr
        else:
            assert (run.stdout, run.stderr) == (f"{HERE}\n", "")
