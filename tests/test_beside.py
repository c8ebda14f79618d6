"""Files beside the run: what others planted there is neither obeyed nor destroyed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from testing.faults import Action, Fault
from testing.place import BOTH_MODES, BUCKET, Place, puts_of, sitecustomize
from testing.protocol import Request

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534


def plant_fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def plant_hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def plant_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def plant_device(path: Path, victim: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


def plant_foreign(path: Path, victim: Path) -> None:
    path.touch(0o600)
    os.chown(path, NOBODY, NOBODY)


def plant_open(path: Path, victim: Path) -> None:
    path.touch()
    path.chmod(0o666)


PLANTED = [
    pytest.param(plant_fifo, "it is not a regular file"),
    pytest.param(plant_hard_link, "it has more than one hard link"),
    pytest.param(plant_link, "it is a symbolic link"),
    pytest.param(plant_device, "it is not a regular file", marks=NEEDS_ROOT),
    pytest.param(plant_foreign, "it is owned by another user (65534)", marks=NEEDS_ROOT),
    pytest.param(plant_open, "it is writable by other users"),
]


def is_quiet(place: Place) -> bool:
    """Whether nothing was asked of the store that changes it."""
    return not any(puts_of(place.server).values())


@pytest.fixture
def victim(place: Place) -> Iterator[Path]:
    """What a planted link leads to: it stays as it is."""
    path = place.path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


class TestPlanted:
    """What lies there before the run."""

    @pytest.mark.parametrize("name", ["pfu.db", "pfu.db.lock", "pfu.db-wal", "pfu.log"])
    @pytest.mark.parametrize(("plant", "says"), PLANTED)
    def test_what_pfu_keeps_is_a_plain_file_of_its_own(
        self,
        place: Place,
        victim: Path,
        plant: Callable[[Path, Path], None],
        says: str,
        name: str,
    ) -> None:
        place.file("f")
        plant(place.path / name, victim)
        run = place.run("--mode", "concurrent", "--log-file", "pfu.log")
        assert run.code == 2
        assert f"/{name}: {says}" in run.err
        assert len(run.err.splitlines()) == 1
        assert is_quiet(place)
        (place.path / name).unlink()
        assert place.run("--mode", "concurrent", "--log-file", "pfu.log").code == 0

    @pytest.mark.parametrize("name", ["m.prom", "m.prom.new"])
    @pytest.mark.parametrize(("plant", "says"), PLANTED[:4])
    def test_metrics_take_the_place_of_what_lies_there(
        self,
        place: Place,
        victim: Path,
        plant: Callable[[Path, Path], None],
        says: str,
        name: str,
    ) -> None:
        place.file("f")
        plant(place.path / name, victim)
        assert place.run("--mode", "concurrent", "--metrics-file", "m.prom").code == 0
        assert "pfu_run_exit_code" in (place.path / "m.prom").read_text()
        assert not (place.path / "m.prom").is_symlink()

    @pytest.mark.parametrize(("plant", "says"), PLANTED[:5:4])
    def test_a_ledger_is_not_asked_either_for_a_verification_or_a_cleanup(
        self, place: Place, plant: Callable[[Path, Path], None], says: str
    ) -> None:
        place.file("f")
        plant(place.path / "pfu.db", place.path)
        for arguments in (["--verify"], ["--cleanup"]):
            to = None if "--cleanup" in arguments else f"s3://{BUCKET}/p"
            run = place.run(*arguments, to=to)
            assert (run.code, says in run.err) == (2, True), run.err

    @pytest.mark.parametrize(
        ("sql", "says"),
        [
            (
                "CREATE TRIGGER t AFTER INSERT ON FileStat BEGIN UPDATE FileStat SET "
                "file_path = '/etc/passwd', object_key = 'else/where'; END",
                "it contains trigger t, which pfu did not create",
            ),
            ("CREATE VIEW v AS SELECT 1", "it contains view v, which pfu did not create"),
            ("CREATE TABLE other (x)", "it contains table other, which pfu did not create"),
            ("CREATE INDEX i ON FileStat(etag)", "it contains index i, which pfu did not create"),
            (
                "ALTER TABLE FileStat ADD x",
                "it contains column FileStat.x, which pfu did not create",
            ),
        ],
    )
    def test_a_schema_that_is_not_pfus_is_refused(self, place: Place, sql: str, says: str) -> None:
        place.file("f")
        assert place.run("--mode", "concurrent").code == 0
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
            db.execute(sql)
            db.commit()
        place.file("g")
        run = place.run("--mode", "concurrent")
        assert (run.code, says in run.err) == (2, True), run.err
        assert set(place.stored()) == {"f"}

    @BOTH_MODES
    @pytest.mark.parametrize(
        "row",
        [
            "object_key = 'else/where'",
            "file_path = '/etc/passwd'",
            "file_path = replace(file_path, '/f', '/../../secret')",
        ],
    )
    def test_a_row_leads_neither_out_of_root_nor_out_of_the_prefix(
        self, place: Place, row: str, mode: str
    ) -> None:
        place.file("f", b"new")
        (place.path / "secret").write_bytes(b"secret")
        place.server.deny.add("PutObject")
        assert place.run("--mode", mode).code == 1
        place.server.deny.clear()
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
            db.execute(f"UPDATE FileStat SET {row}, id = 'other'")
            db.commit()
        run = place.run("--mode", mode)
        assert set(place.server.objects(BUCKET)) <= {"p/f"}
        assert "Traceback" not in run.err
        assert all(stored.body == b"new" for stored in place.server.objects(BUCKET).values())

    def test_stat_tables_of_sqlite_are_no_strangers(self, place: Place) -> None:
        place.file("f")
        assert place.run("--mode", "concurrent").code == 0
        with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db:
            db.execute("ANALYZE")
            db.commit()
        assert place.run("--mode", "concurrent", "--json").json["unchanged"] == 1


class TestGiven:
    """What an option names to be read."""

    def test_a_pipe_and_a_link_are_read(self, place: Place) -> None:
        place.file("secret")
        place.file("f")
        (place.path / "real").write_text("secret\n")
        (place.path / "link").symlink_to("real")
        assert place.run("--mode", "concurrent", "--exclude-from", "link").code == 0
        assert set(place.stored()) == {"f"}
        os.mkfifo(place.path / "pipe")
        feeder = threading.Thread(target=(place.path / "pipe").write_text, args=("secret\n",))
        feeder.start()
        run = place.run("--mode", "concurrent", "--exclude-from", "pipe", "--json")
        feeder.join()
        assert (run.code, set(place.stored())) == (0, {"f"})

    @pytest.mark.parametrize(
        ("plant", "says"),
        [
            (plant_fifo, "no data from the pipe"),
            pytest.param(plant_device, "neither a regular file nor a pipe", marks=NEEDS_ROOT),
            pytest.param(plant_foreign, "it is owned by another user", marks=NEEDS_ROOT),
            (lambda path, _: path.write_bytes(b"x\n" * (9 << 20)), "it is larger than 16.0 MiB"),
        ],
    )
    def test_what_cannot_be_read_to_its_end_is_said(
        self, place: Place, plant: Callable[[Path, Path], None], says: str
    ) -> None:
        place.file("f")
        plant(place.path / "given", place.path)
        run = place.run("--mode", "concurrent", "--exclude-from", "given")
        assert (run.code, says in run.err, is_quiet(place)) == (2, True, True), run.err


class OnceProven(Fault):
    """Counts requests from the store's proof on: until then nothing counts as sent."""

    is_proven = False

    def _concerns(self, request: Request) -> bool:
        self.is_proven |= request.operation == "HeadObject"
        return self.is_proven and super()._concerns(request)


class TestUnderWay:
    """What happens to them while files go up."""

    @BOTH_MODES
    @pytest.mark.parametrize("gone", ["pfu.db", "pfu.db.lock", "folder", "replaced"])
    def test_a_ledger_that_goes_away_is_said(self, place: Place, mode: str, gone: str) -> None:
        place.files(300)
        folder = place.path / "ledger"
        folder.mkdir()

        def remove() -> None:
            if gone == "folder":
                shutil.rmtree(folder)
            elif gone == "replaced":
                shutil.copy(folder / "pfu.db", folder / "other")
                (folder / "other").rename(folder / "pfu.db")
            else:
                (folder / gone).unlink()

        action = Action("call", function=remove)
        place.server.faults.append(OnceProven(action, "PutObject", times=1, after=20))
        arguments = "--mode", mode, "--db", folder / "pfu.db", "--concurrency", 2
        run = place.run(*arguments, "--json")
        assert run.code == 1, run.err
        assert "it was removed or replaced during the run" in run.json["error"]

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
    def test_a_terminal_that_closes_stops_the_run(self, place: Place, number: int) -> None:
        place.files(200)
        place.server.faults.append(Fault(Action("slow", seconds=0.05), "PutObject"))
        arguments = "--mode", "parallel", "--concurrency", 2, "--metrics-file", "m.prom", "--json"
        process = place.start(*arguments, leads="session")
        assert place.server.wait_for("PutObject", 5, 60)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, f"{signal.Signals(number).name} received" in err) == (4, True)
        assert "exit_code" in (place.path / "m.prom").read_text()

    @pytest.mark.parametrize("module", ["argparse", "sqlite3"])
    def test_an_interrupt_while_it_is_loaded_is_no_traceback(
        self, place: Place, module: str
    ) -> None:
        sitecustomize(
            place,
            "import os, signal, sys",
            "class Finder:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name == {module!r}:",
            "            os.kill(os.getpid(), signal.SIGINT)",
            "sys.meta_path.insert(0, Finder())",
        )
        process = subprocess.run(
            place.command("--mode", "concurrent"),
            cwd=place.path,
            env=place.environment,
            capture_output=True,
        )
        assert (process.returncode, process.stderr) == (-signal.SIGINT, b"")

    @pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
    def test_a_signal_that_the_caller_ignores_stays_ignored(self, place: Place, name: str) -> None:
        place.files(60)
        place.server.faults.append(Fault(Action("slow", seconds=0.02), "PutObject"))
        ignore = f"import os, signal, sys; signal.signal(signal.{name}, signal.SIG_IGN); "
        command = place.command("--mode", "concurrent", "--concurrency", 1, "--json")
        code = ignore + "os.execv(sys.executable, sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command],
            cwd=place.path,
            env=place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert place.server.wait_for("PutObject", 5, 60)
        for _ in range(3):
            process.send_signal(getattr(signal, name))
            time.sleep(0.05)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert len(place.stored()) == 60


LATIN = ["en_US.ISO-8859-1", "C", "POSIX", "nowhere.EUC-JP"]


class TestLocale:
    """Names are bytes: a key depends on nothing else."""

    @pytest.mark.parametrize("locale", LATIN)
    def test_keys_are_the_same_under_any_locale(self, place: Place, locale: str) -> None:
        place.file("\u00fc")
        place.file(b"latin-\xe9")
        assert place.run("--mode", "concurrent").code == 0
        keys = set(place.stored())
        place.environment.update(LC_ALL=locale, PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
        run = place.run("--mode", "parallel", "--json")
        assert (run.code, run.json["unchanged"]) == (0, 2), run.err
        assert set(place.stored()) == keys == {"\u00fc", "latin-\u201bE9"}
