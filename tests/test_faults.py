"""Every fault, in both modes, in both lanes, small and large. testing/tables.py lists them.

testing/trials.py says what is looked at after each run.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import dataclasses
import errno
import functools
import os
import random
import re
import resource
import signal
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.certificates import make_certificate, make_self_signed
from testing.faults import HONEST, Action, Fault
from testing.fixtures import server_context
from testing.jobs import assert_all_is_there
from testing.place import BUCKET, KIB, Place, Run, children_of, is_alive, wait_until
from testing.protocol import STATUS
from testing.tables import (
    FROM_THE_START,
    LASTING,
    LEDGERS,
    PASSING,
    READING,
    REFUSED,
    UNDER_WAY,
    Reads,
    give_each_file_a_fault,
    no_process,
)
from testing.trials import (
    EVEN,
    EVERY_WAY,
    FAST_SMALL,
    LARGE,
    ODD,
    PARALLEL,
    TWO,
    WAYS,
    Moment,
    Patch,
    TenSeconds,
    Trial,
    Way,
    assert_recovers,
    assert_said,
    hurry,
    trial_of,
)

# ======================================================================================
# Answers of the store, those that pass and those that last
# ======================================================================================


@pytest.fixture
def hurried(no_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def trial(request: Any, tmp_path: Path, hurried: None) -> Iterator[Trial]:
    with trial_of(tmp_path, request.param) as trial:
        yield trial


@pytest.fixture
def trials(tmp_path: Path, hurried: None) -> Iterator[list[Trial]]:
    """All ways side by side, for faults that are waited for."""
    with contextlib.ExitStack() as closing:
        yield [closing.enter_context(trial_of(tmp_path / "-".join(way), way)) for way in WAYS]


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Trial]]:
    """Every file and every part is answered 503, while other tests go on."""
    with contextlib.ExitStack() as closing:
        monkeypatch = closing.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        hurry(monkeypatch)
        monkeypatch.setattr(pfu, "full_jitter", lambda attempt: random.uniform(0, 1))
        trials = [
            closing.enter_context(trial_of(tmp_path_factory.mktemp("-".join(way)), way))
            for way in EVEN
        ]
        for trial in trials:
            trial.tree()
            trial.server.faults.append(TenSeconds(Action("error", 503, "SlowDown")))
            trial.launch("--patience", "60s")
        monkeypatch.undo()
        yield trials


class TestAnswers:
    """Answers of the store, those that pass and those that last."""

    @pytest.mark.usefixtures("storms")
    @EVERY_WAY
    def test_faults_that_pass_cost_no_file(self, trial: Trial) -> None:
        give_each_file_a_fault(trial, PASSING, times=6)
        summary = assert_said(trial.run(), 0)
        assert summary["uploaded"] == len(trial.server.faults)
        assert [fault for fault in trial.server.faults if not fault.applied] == []
        assert trial.first_lanes() == {trial.way.lane}
        assert_recovers(trial)

    @EVERY_WAY
    def test_what_is_refused_costs_its_file_alone(self, trial: Trial) -> None:
        trial.file("smallest", b"is the first")
        give_each_file_a_fault(trial, {name: action for name, (action, _) in REFUSED.items()}, None)
        summary = assert_said(trial.run(), 1)
        failures = {
            os.path.relpath(f["path"], trial.root): f["reason"] for f in summary["failures"]
        }
        assert set(trial.local()) - set(failures) == {"smallest"}
        for path, reason in failures.items():
            assert re.search(REFUSED[os.path.basename(path)][1], reason)
        assert trial.first_lanes() == {trial.way.lane}
        assert_recovers(trial)

    @pytest.mark.parametrize(
        "trial, name",
        [(way, name) for way in TWO for name in LASTING],
        ids=["-".join((name, *way)) for way in TWO for name in LASTING],
        indirect=["trial"],
    )
    def test_what_passes_and_lasts_is_a_store_that_is_away(self, trial: Trial, name: str) -> None:
        action, says = LASTING[name]
        trial.tree()
        trial.patch("full_jitter", lambda attempt: 0.2)
        trial.server.faults.append(Fault(action, trial.operation, after=3))
        summary = assert_said(trial.run("--patience", "2s"), 1)
        assert (summary["failed"], summary["pending"] > 0) == (0, True)
        assert re.search(
            f"the store has been unavailable for . s: upload: .*({says})", summary["error"]
        )
        assert_recovers(trial)


# ======================================================================================
# What ends or breaks while files go up
# ======================================================================================


class TestUnderWay:
    """What ends or breaks while files go up."""

    @pytest.mark.parametrize(
        "trial, breaks, code, says",
        [(way, breaks, code, says) for _, breaks, ways, code, says in UNDER_WAY for way in ways],
        ids=["-".join((row[0], *way)) for row in UNDER_WAY for way in row[2]],
        indirect=["trial"],
    )
    def test_what_breaks_under_way(
        self, trial: Trial, breaks: Callable[[Trial], None], code: int, says: str
    ) -> None:
        trial.tree()
        breaks(trial)
        run = trial.run("--concurrency", 2)
        trial.mend()
        began = run.json["uploaded"] > 0
        summary = assert_said(run, 1 if code == 2 and began else code, says)
        assert summary["uploaded"] < len(trial.local()) or not code
        assert trial.first_lanes() == {trial.way.lane}
        assert_recovers(trial)


# ======================================================================================
# Certificates, which neither lane accepts
# ======================================================================================


@pytest.fixture(scope="module")
def bad_certificates(certificates: Path) -> Path:
    """One that has expired, and one of an authority that nobody knows."""
    make_certificate(certificates, "expired", "127.0.0.1", ended=True)
    make_self_signed(certificates, "stranger", "127.0.0.1")
    return certificates


@contextlib.contextmanager
def tls_trial(path: Path, certificates: Path, way: Way) -> Iterator[tuple[Trial, ssl.SSLContext]]:
    """A trial over TLS, and the server's context: no session outlives its connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "address.pem", certificates / "address.key")
    context.num_tickets = 0
    with trial_of(path, way, context) as trial:
        trial.environment["AWS_CA_BUNDLE"] = str(certificates / "ca.pem")
        trial.tree()
        trial.server.faults.append(Fault(Action("close_after")))
        yield trial, context


@contextlib.contextmanager
def asking_for_certificates(certificates: Path) -> Iterator[str]:
    """The URL of a server that wants one of each client, and says so when it gets none."""
    context = server_context(certificates, "address")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates / "ca.pem")

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with plain, contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(plain, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


CERTIFICATES = [("expired", EVEN), ("stranger", ODD), ("other", EVEN[1:3])]  # for another host
TLS_HINTS = {
    "expired": "(check the store's certificate and this machine's clock)",
    "stranger": "(the certificate is not trusted; set AWS_CA_BUNDLE to your CA file)",
    "other": "(the certificate is for another host: use its name in the endpoint)",
}


class TestCertificates:
    """Certificates, which neither lane accepts."""

    @pytest.mark.parametrize(
        "name, way",
        [(name, way) for name, ways in CERTIFICATES for way in ways],
        ids=["-".join((name, *way)) for name, ways in CERTIFICATES for way in ways],
    )
    def test_a_certificate_that_goes_bad_is_not_accepted(
        self, tmp_path: Path, bad_certificates: Path, hurried: None, name: str, way: Way
    ) -> None:
        bad = server_context(bad_certificates, name)
        with tls_trial(tmp_path, bad_certificates, way) as (trial, context):
            seen: list[int] = []

            def exchange_certificate() -> None:
                seen.append(len(trial.server.log))
                context.sni_callback = lambda connection, *_: setattr(connection, "context", bad)

            trial.in_the_middle(exchange_certificate)
            run = trial.run("--concurrency", 2)
            assert_said(run, 1 if run.json["uploaded"] else 2, TLS_HINTS[name])
            assert len(trial.server.log) - seen[0] <= 4  # those that had their connection
            assert trial.first_lanes() == {way.lane}
            context.sni_callback = None
            assert_recovers(trial)

    @pytest.mark.parametrize("name", ["expired", "stranger", "other"])
    @pytest.mark.parametrize("way", TWO, ids="-".join)
    def test_a_bad_certificate_is_not_accepted(
        self, tmp_path: Path, bad_certificates: Path, hurried: None, name: str, way: Way
    ) -> None:
        with tls_trial(tmp_path, bad_certificates, way) as (trial, context):
            bad = server_context(bad_certificates, name)
            context.sni_callback = lambda connection, *_: setattr(connection, "context", bad)
            assert_said(trial.run(), 2, TLS_HINTS[name])
            assert trial.server.log == []
            context.sni_callback = None
            assert_recovers(trial)

    @pytest.mark.parametrize("bundle", ["missing.pem", "", "address.key"])
    def test_a_ca_bundle_that_is_none_is_blamed(
        self, tmp_path: Path, certificates: Path, hurried: None, bundle: str
    ) -> None:
        with tls_trial(tmp_path, certificates, TWO[0]) as (trial, _):
            trial.environment["AWS_CA_BUNDLE"] = str(certificates / bundle)
            assert_said(trial.run(), 2, "(check AWS_CA_BUNDLE, or ca_bundle in the AWS ")

    def test_a_store_that_asks_for_a_certificate_is_no_store_of_a_bad_one(
        self, place: Place, certificates: Path
    ) -> None:
        place.file("f")
        place.environment["AWS_CA_BUNDLE"] = str(certificates / "ca.pem")
        with asking_for_certificates(certificates) as place.endpoint:
            run = place.run()
        assert run.code == 2
        assert run.err.endswith("(it asks for a client certificate, which pfu cannot present)\n")


# ======================================================================================
# What breaks before anything is sent
# ======================================================================================


class TestFromTheStart:
    """What breaks before anything is sent."""

    @pytest.mark.parametrize(
        "trial, breaks, code, says",
        [
            (way, breaks, code, says)
            for _, breaks, ways, code, says in FROM_THE_START
            for way in ways
        ],
        ids=["-".join((row[0], *way)) for row in FROM_THE_START for way in row[2]],
        indirect=["trial"],
    )
    def test_what_breaks_before_anything_is_sent(
        self, trial: Trial, breaks: Callable[[Trial], None], code: int, says: str
    ) -> None:
        if breaks is no_process and os.geteuid():
            pytest.skip("only root can become another user")
        trial.tree()
        patches = list(trial.patches)
        breaks(trial)
        run = trial.run()
        trial.patches = patches
        summary = assert_said(run, code)
        assert re.search(says, str(summary["error"]))
        assert (summary["uploaded"], summary["failed"]) == (0, 0)
        assert_recovers(trial)

    @pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
    def test_a_child_that_can_start_no_thread_says_nothing(self, trial: Trial) -> None:
        """What prepares the run is done by the program itself then; workers are necessary."""
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "pfu-parent":
                raise RuntimeError("can't start new thread")
            start(thread)

        trial.environment["PFU_START_METHOD"] = "fork"
        trial.tree()
        patches = list(trial.patches)
        trial.patches.append(lambda: setattr(threading.Thread, "start", refuse))
        run = trial.run()
        trial.patches = patches
        if trial.way.mode == "concurrent":
            assert_said(run, 0)
        else:
            assert_said(run, 2, "start worker: 3 of them died at startup")
        assert_recovers(trial)


# ======================================================================================
# Files that cannot be read, or shrink
# ======================================================================================


class TestReading:
    """Files that cannot be read, or shrink."""

    @pytest.mark.parametrize(
        "trial, before, reads, code, says",
        [(way, *row[1:3], *row[4:]) for row in READING for way in row[3]],
        ids=["-".join((row[0], *way)) for row in READING for way in row[3]],
        indirect=["trial"],
    )
    def test_what_cannot_be_read_costs_its_file_alone(
        self,
        trial: Trial,
        before: Callable[[Path], None],
        reads: Sequence[str],
        code: int,
        says: str,
    ) -> None:
        trial.tree()
        path = trial.file("unlucky", trial.content())
        patches = list(trial.patches)
        trial.patches.append(Reads(path, before, reads))
        summary = assert_said(trial.run(), code, says)
        assert summary["failed"] == code
        assert [failure["path"] for failure in summary["failures"]] == [str(path)] * code
        assert len(trial.server.objects(BUCKET)) == len(trial.local()) - code
        assert trial.first_lanes() == {trial.way.lane}
        trial.patches = patches
        assert_recovers(trial)

    @pytest.mark.parametrize("trial", LARGE, ids="-".join, indirect=True)
    def test_a_part_that_cannot_be_read_as_it_is_sent(self, trial: Trial, monkeypatch: Any) -> None:
        """It does not fit into memory: it is hashed first, and read again to be sent."""
        engine = pfu.RunOptions.engine
        monkeypatch.setattr(
            pfu.RunOptions, "engine", lambda self: dataclasses.replace(engine(self), memory=KIB)
        )
        trial.tree()
        path = trial.file("unlucky", trial.content())
        sent = pfu.FileBody.read

        def read(body: pfu.FileBody) -> bytes:
            if trial.is_on.value and body._source.path == str(path):
                raise pfu.SourceError("read", str(path), os.strerror(errno.EIO))
            return sent(body)

        monkeypatch.setattr(pfu.FileBody, "read", read)
        trial.turn_on()
        summary = assert_said(trial.run(), 1, "Input/output error")
        assert [failure["path"] for failure in summary["failures"]] == [str(path)]
        assert_recovers(trial)


# ======================================================================================
# A ledger that is damaged, read-only, or on a full disk
# ======================================================================================


class TestLedger:
    """A ledger that is damaged, read-only, or on a full disk."""

    @pytest.mark.parametrize("trial", FAST_SMALL, ids="-".join, indirect=True)
    @pytest.mark.parametrize("damage, says", LEDGERS, ids=[row[0].__name__ for row in LEDGERS])
    def test_a_damaged_ledger_is_told(
        self, trial: Trial, damage: Callable[[Trial], None], says: str
    ) -> None:
        for number in range(120):
            trial.file(f"f{number}", b"content")
        assert_said(trial.run(), 0)
        damage(trial)
        sent = len(trial.server.log)
        assert_said(trial.run(), 2, says)
        assert len(trial.server.log) == sent
        (trial.path / "pfu.db").unlink()
        assert_said(trial.run(), 0)
        assert_all_is_there(trial)

    @pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
    @pytest.mark.parametrize("known", [False, True])
    def test_a_ledger_in_a_folder_that_is_read_only(self, trial: Trial, known: bool) -> None:
        trial.tree()
        if known:
            assert_said(trial.run(), 0)
        folder = trial.path / "ledger"
        folder.mkdir(mode=0o700)

        def drop_all_capabilities() -> None:
            given = struct.pack("Ii", 0x20080522, 0), bytes(24)
            assert os.geteuid() or ctypes.CDLL(None).capset(*given) == 0

        trial.patches.append(drop_all_capabilities)
        if known:
            for path in trial.path.glob("pfu.db*"):
                path.rename(folder / path.name)
        folder.chmod(0o500)
        run = trial.run("--db", folder / "pfu.db")
        assert_said(run, 2, "write a readonly database" if known else "Permission denied")
        folder.chmod(0o700)
        assert trial.run("--db", folder / "pfu.db").code == 0
        assert {k[2:] for k in trial.server.objects(BUCKET)} == set(trial.local())

    @pytest.mark.parametrize("trial", ODD, ids="-".join, indirect=True)
    def test_a_disk_that_is_full_under_the_ledger(self, trial: Trial) -> None:
        trial.tree(24)

        def fill() -> None:
            size = max(path.stat().st_size for path in trial.path.glob("pfu.db*"))
            limit = size, resource.RLIM_INFINITY
            resource.prlimit(trial.pids[0], resource.RLIMIT_FSIZE, limit)

        trial.in_the_middle(fill)
        run = trial.run("--concurrency", 2)
        assert run.code == 1 or not run.json["uploaded"]
        summary = assert_said(run, run.code, "pfu.db: d")
        assert run.code in (1, 2)
        assert "rerun" in summary["error"]
        assert_recovers(trial)


# ======================================================================================
# Processes that are killed or stopped
# ======================================================================================


def run_side_by_side(trials: list[Trial], meanwhile: Patch, *arguments: object) -> dict[Way, Run]:
    for trial in trials:
        trial.tree()
        trial.launch(*arguments)
    meanwhile()
    return {trial.way: trial.end_of(trial.pids[0]) for trial in trials}


def stop_and_continue(
    trials: list[Trial],
    requests: int,
    seconds: float,
    meanwhile: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Stop each run for so many seconds, once the store has got so many requests of it."""
    for trial in trials:
        assert trial.server.wait_for(trial.operation, requests)
        os.killpg(trial.pids[0], signal.SIGSTOP)
    time.sleep(seconds)
    for trial in trials:
        meanwhile(trial)
        os.killpg(trial.pids[0], signal.SIGCONT)


class TestClocks:
    """A clock of this machine that is wrong, by either lane."""

    @EVERY_WAY
    @pytest.mark.parametrize("seconds", [3600.0, -7200.0])
    def test_a_wrong_clock_is_put_right(self, trial: Trial, seconds: float) -> None:
        trial.tree(90)
        trial.server.clock_offset = seconds
        way = "60 min behind" if seconds > 0 else "120 min ahead of"
        told = f"this machine's clock is {way} the store's: correct it"
        assert_said(trial.run("--concurrency", 4), 0, told)
        trial.server.clock_offset = 0.0
        assert_recovers(trial)

    @EVERY_WAY
    def test_a_store_may_say_so_with_400(
        self, trial: Trial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(STATUS, "RequestTimeTooSkewed", 400)
        trial.tree(90)
        trial.server.clock_offset = -7200.0
        assert_said(trial.run("--concurrency", 4), 0, "this machine's clock is 120 min ahead of")
        trial.server.clock_offset = 0.0
        assert_recovers(trial)

    @EVERY_WAY
    def test_a_wrong_date_of_a_proxy_is_not_believed(self, trial: Trial) -> None:
        trial.server.date_offset = 3600.0
        trial.server.faults.append(
            Fault(Action("error", 403, "AccessDenied"), trial.operation, key="f00[0-2]$")
        )
        trial.tree(90)
        run = trial.run("--concurrency", 2)
        assert_said(run, 1, "AccessDenied")
        files = 90 if trial.way.size == "small" else 30
        assert len(trial.server.objects(BUCKET)) >= files - 3, run.err
        assert_recovers(trial)


class TestProcesses:
    """Processes that are killed or stopped."""

    @EVERY_WAY
    def test_a_program_that_is_killed_leaves_no_worker(self, trial: Trial) -> None:
        trial.tree()
        children: list[int] = []

        def kill() -> None:
            children.extend(children_of(trial.pids[0]))
            os.kill(trial.pids[0], signal.SIGKILL)

        trial.in_the_middle(kill)
        trial.server.faults.append(Fault(Action("slow", seconds=0.05), trial.operation))
        run = trial.run("--concurrency", 2)
        assert (run.code, run.err) == (-signal.SIGKILL, "")
        assert len(children) == (2 if trial.way.mode == "parallel" else 0)
        wait_until(lambda: not any(map(is_alive, children)))
        assert_recovers(trial)

    @pytest.mark.parametrize("trial", PARALLEL, ids="-".join, indirect=True)
    def test_a_worker_that_is_killed_is_replaced(self, trial: Trial) -> None:
        trial.environment["PFU_START_METHOD"] = "fork"
        trial.tree()
        trial.in_the_middle(lambda: os.kill(children_of(trial.pids[0])[0], signal.SIGKILL))
        trial.server.faults.append(Fault(Action("slow", seconds=0.02), trial.operation))
        summary = assert_said(trial.run("--concurrency", 4), 0, "1 worker process(es) died")
        assert summary["uploaded"] == len(trial.local())
        assert_recovers(trial)

    @pytest.mark.parametrize("trial", TWO, ids="-".join, indirect=True)
    def test_a_preparation_that_is_killed_is_done_again(self, trial: Trial) -> None:
        trial.tree()
        kill = Moment(HONEST, "HeadBucket")
        kill.begins = lambda: os.kill(children_of(trial.pids[0])[0], signal.SIGKILL)
        trial.server.faults.append(kill)
        assert_said(trial.run(), 0)
        assert kill.applied == 1
        assert_recovers(trial)

    @pytest.mark.parametrize("trial", EVEN, ids="-".join, indirect=True)
    def test_of_two_runs_at_once_one_goes_on(self, trial: Trial) -> None:
        trial.tree()
        trial.server.faults.append(Fault(Action("slow", seconds=0.3), trial.operation, times=8))
        first = trial.launch("--concurrency", 2)
        assert trial.server.wait_for(trial.operation, 1)
        second = trial.run()
        assert (second.code, second.json["exit_code"], second.err.count("\n")) == (3, 3, 1)
        assert f"in use by process {first}, started 20" in second.err
        assert_said(trial.end_of(first), 0)
        assert_recovers(trial)

    def test_processes_that_are_stopped_go_on(self, trials: list[Trial]) -> None:
        """For longer than the store keeps silent before it is given up."""
        for trial in trials:
            trial.server.faults.append(Fault(Action("slow", seconds=0.05), trial.operation))
        stopped = functools.partial(stop_and_continue, trials, 2, 2.0)
        runs = run_side_by_side(trials, stopped, "--concurrency", 2)
        for trial in trials:
            summary = assert_said(runs[trial.way], 0)
            assert summary["uploaded"] == len(trial.local())
            assert summary["elapsed_seconds"] > 2
            assert_recovers(trial)

    def test_the_time_that_processes_are_stopped_is_not_patience(self, trials: list[Trial]) -> None:
        """A virtual machine that is moved, a laptop that sleeps, just as the store hiccups."""
        for trial in trials:
            trial.server.faults.append(Fault(Action("error", 503), trial.operation))

        def stopped() -> None:
            stop_and_continue(trials, 1, 12.0, lambda trial: trial.server.faults.clear())

        runs = run_side_by_side(trials, stopped, "--patience", "10s", "--concurrency", 2)
        for trial in trials:
            assert_said(runs[trial.way], 0)


# ======================================================================================
# What is waited for, all ways side by side
# ======================================================================================


def answer_late(trials: list[Trial], action: Action, answers: int) -> None:
    """Once, for one file. ``answers``: how many the store has begun to it, at least."""
    for trial in trials:
        trial.file("slow", trial.content())
        trial.server.faults.append(Fault(action, trial.operation, "/slow$", times=1))
        for name, value in {"STALL": 2.0, "SLOW_LINE": 2.0, "SWEEP": 0.1}.items():
            trial.patch(f"{name}_SECONDS", value)
    runs = run_side_by_side(trials, lambda: None, "--patience", "60s")
    for trial in trials:
        summary = assert_said(runs[trial.way], 0)
        assert summary["uploaded"] == len(trial.local())
        asked = Counter(
            (r.key, r.query.get("partNumber"))
            for r in trial.server.log
            if r.operation == trial.operation and r.key == "p/slow"
        )
        assert max(asked.values()) >= answers
        assert_recovers(trial)


class TestDigests:
    """What the store says of the bytes that it took."""

    @EVERY_WAY
    @pytest.mark.usefixtures("hurried")
    def test_a_digest_of_other_bytes_is_no_acknowledgement(self, trial: Trial) -> None:
        trial.tree()
        other = {"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}
        fault = Fault(Action("honest", headers=other), trial.operation, times=1)
        trial.server.faults.append(fault)
        summary = assert_said(trial.run(), 0)
        assert (summary["uploaded"], fault.applied) == (len(trial.local()), 1)
        asked = Counter(
            (r.key, r.query.get("partNumber"))
            for r in trial.server.log
            if r.operation == trial.operation
        )
        assert sorted(asked.values())[-2:] == [1, 2]
        assert_all_is_there(trial)


class TestWaiting:
    """What is waited for, all ways side by side."""

    def test_an_answer_that_does_not_come_is_given_up(self, trials: list[Trial]) -> None:
        answer_late(trials, Action("slow", seconds=60), 1)

    def test_an_answer_that_comes_octet_by_octet_is_given_up_by_the_fast_lane(
        self,
        trials: list[Trial],
    ) -> None:
        fast = [trial for trial in trials if trial.way.lane == "fast"]
        answer_late(fast, Action("trickle", seconds=0.02), 2)

    @pytest.mark.usefixtures("hurried")
    def test_ten_seconds_of_slow_down_fail_nothing(self, storms: list[Trial]) -> None:
        for trial in storms:
            summary = assert_said(trial.end_of(trial.pids[0]), 0)
            assert summary["uploaded"] == len(trial.local())
            assert summary["throttled"] == trial.server.faults[0].applied > 10
            assert summary["elapsed_seconds"] > 10
            assert_recovers(trial)
