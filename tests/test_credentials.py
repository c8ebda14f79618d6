"""Credentials that end, or are revoked, on the way; and services that are slow to give them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import checksum_lane, s3_job
from testing.place import (
    BOTH_MODES,
    BUCKET,
    MIB,
    PART,
    Place,
    assert_accounts,
    is_alive,
    wait_until,
    without_credentials,
)
from testing.server import ACCESS_KEY, SECRET_KEY


def keep_credentials(place: Place, access_key: str, secret: str) -> None:
    """In a file, as an admin or an agent does who rotates them."""
    folder = place.path / "aws"
    folder.mkdir(exist_ok=True)
    text = f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={secret}\n"
    (folder / "new").write_text(text)
    os.replace(folder / "new", folder / "credentials")


def rotate(place: Place, *, told: bool) -> None:
    """The old ones are worth nothing from now on."""
    place.server.credentials = {"AKIDNEW": ("new-secret", None)}
    if told:
        keep_credentials(place, "AKIDNEW", "new-secret")


def with_credentials_in_a_file(place: Place) -> None:
    keep_credentials(place, ACCESS_KEY, SECRET_KEY)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del place.environment[name]
    place.environment["AWS_SHARED_CREDENTIALS_FILE"] = str(place.path / "aws/credentials")


CREDENTIALS_END = [  # any two of mode, lane, size and what happens meet
    ("concurrent", "fast", "small", True),
    ("concurrent", "fast", "large", False),
    ("concurrent", "safe", "small", False),
    ("concurrent", "safe", "large", True),
    ("parallel", "fast", "small", False),
    ("parallel", "fast", "large", True),
    ("parallel", "safe", "small", True),
    ("parallel", "safe", "large", False),
]


class TestCredentials:
    """Credentials that end on the way."""

    @pytest.mark.parametrize("mode, lane, size, told", CREDENTIALS_END)
    def test_credentials_that_end_are_read_again_once(
        self, place: Place, mode: str, lane: str, size: str, told: bool
    ) -> None:
        with_credentials_in_a_file(place)
        if size == "small":
            place.files(80)
        else:
            place.file("large", os.urandom(16 * MIB))
        checksum_lane(place, lane)
        is_small = size == "small"
        rotation = Action("call", function=lambda: rotate(place, told=told))
        operation = "PutObject" if is_small else "UploadPart"
        fault = Fault(rotation, operation, after=20 if is_small else 1, times=1)
        place.server.faults.insert(0, fault)
        run = place.run("--mode", mode, *PART, "--concurrency", 4, "--json")
        assert fault.applied == 1
        assert_accounts(run.json)
        place.check_ledger_is_honest()
        if told:
            assert (run.code, run.err) == (0, "")
            assert place.stored() == place.local()
            assert run.json["fast_lane"] > 0 or (lane, size) != ("fast", "small")
        else:
            assert run.code == (1 if run.json["uploaded"] else 2)
            assert run.err.splitlines()[-1].startswith("pfu: stopped: ")
            assert "InvalidAccessKeyId" in run.err
            assert (run.json["failed"], run.json["pending"] > 0) == (0, True)
            keep_credentials(place, "AKIDNEW", "new-secret")
            place.server.faults.clear()
            assert place.run("--mode", mode, *PART).code == 0
            assert place.stored() == place.local()
        assert not place.server.uploads(BUCKET)

    @BOTH_MODES
    def test_a_second_pair_that_is_refused_is_the_last(self, place: Place, mode: str) -> None:
        with_credentials_in_a_file(place)
        place.files(60)

        def give_wrong_ones() -> None:
            place.server.credentials = {"AKIDNEW": ("new-secret", None)}
            keep_credentials(place, "AKIDOTHER", "other-secret")

        action = Action("call", function=give_wrong_ones)
        place.server.faults.append(Fault(action, "PutObject", after=20, times=1))
        run = place.run("--mode", mode, "--concurrency", 4, "--json")
        assert run.code == (1 if run.json["uploaded"] else 2), run.err
        assert "InvalidAccessKeyId" in run.err
        assert (run.json["failed"], run.json["pending"] > 0) == (0, True)

    @BOTH_MODES
    def test_a_listing_that_a_proxy_mangles_says_nothing_of_them(
        self, place: Place, mode: str
    ) -> None:
        """It is asked why HEAD is refused; the same keys are good for PUT."""
        place.files(5)
        for operation, code in ("HeadObject", ""), ("ListObjectsV2", "SignatureDoesNotMatch"):
            place.server.faults.append(Fault(Action("error", 403, code), operation))
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 5), run.err
        assert "cannot check what was stored" in run.err

    @BOTH_MODES
    @pytest.mark.parametrize("after", [0, 9])  # before the store has proven itself, or about then
    def test_credentials_that_are_revoked_under_way(
        self, place: Place, mode: str, after: int
    ) -> None:
        place.files(120)
        known = place.server.credentials
        revoke = Action("call", function=lambda: vars(place.server).update(credentials={}))
        place.server.faults.append(Fault(revoke, "PutObject", after=after, times=1))
        run = place.run("--mode", mode, "--concurrency", 4, "--workers", 1, "--json")
        assert run.code == (1 if run.json["uploaded"] else 2), run.err
        assert (run.json["failed"], run.json["failures"]) == (0, [])
        assert run.json["uploaded"] + run.json["pending"] == 120
        assert "InvalidAccessKeyId" in run.err
        assert run.err.count("\n") == 1, run.err
        assert place.check_ledger_is_honest() == run.json["uploaded"]
        place.server.credentials = known
        again = place.run("--mode", mode, "--json")
        assert (again.code, again.json["uploaded"]) == (0, run.json["pending"])
        assert place.stored() == place.local()


# ======================================================================================
# Services that give credentials
# ======================================================================================


class MetadataService(BaseHTTPRequestHandler):
    """EC2's (IMDSv2) and a container's: each answer takes a while, each n-th is 500."""

    seconds = 0.0
    bad_each = 0
    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever asked waits no longer
            super().handle()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        number = sum(self.asked.values())
        time.sleep(self.seconds)
        body = b"TOKEN" if self.command == "PUT" else b"role"
        if self.path.rpartition("/")[2] in ("role", "container"):
            pair = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": ""}
            ends = {"Code": "Success", "Expiration": "2099-01-01T00:00:00Z"}
            body = json.dumps({**pair, **ends}).encode()
        is_bad = self.bad_each and number % self.bad_each == 0
        self.send_response(500 if is_bad else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET


@contextlib.contextmanager
def metadata_service(seconds: float, bad_each: int) -> Iterator[tuple[str, Counter[str]]]:
    asked: Counter[str] = Counter()
    settings = {"seconds": seconds, "bad_each": bad_each, "asked": asked}
    handler = type("Handler", (MetadataService,), settings)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


class TestServices:
    """One process asks, patiently; all others get what it found."""

    @pytest.mark.parametrize(
        "kind, seconds, bad_each",
        [("EC2", 0, 0), ("EC2", 1.3, 0), ("EC2", 0, 3), ("container", 2.3, 0), ("container", 0, 2)],
    )
    def test_a_service_that_is_slow_or_fails_at_times_is_enough(
        self, place: Place, kind: str, seconds: float, bad_each: int
    ) -> None:
        place.files(30)
        with metadata_service(seconds, bad_each) as (url, asked):
            without_credentials(place)
            del place.environment["AWS_EC2_METADATA_DISABLED"]
            if kind == "EC2":
                place.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = url
            else:
                place.environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{url}container"
            run = place.run("--workers", "3", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 30), run.err
        keys = sum(count for path, count in asked.items() if path.endswith(("/role", "/container")))
        assert 1 <= keys <= 3, asked  # not once more in each of four processes

    @BOTH_MODES
    def test_a_code_that_nobody_can_be_asked_for(self, place: Place, mode: str) -> None:
        place.file("f")
        without_credentials(place)
        profile = "[profile p]\nrole_arn=arn:aws:iam::1:role/r\nsource_profile=b\nmfa_serial=m\n"
        keys = "[profile b]\naws_access_key_id=x\naws_secret_access_key=y\n"
        (place.path / "config").write_text(profile + keys)
        place.environment["AWS_CONFIG_FILE"] = str(place.path / "config")
        run = place.run("--mode", mode, "--profile", "p", start_new_session=True)
        assert run.code == 2
        assert "needs an MFA code, which can be entered once, on a terminal" in run.err


# ======================================================================================
# credential_process
# ======================================================================================


def with_process(place: Place, *lines: str) -> Path:
    """A credential_process that tells its pid and that of a child, and then does this."""
    pids = place.path / "pids"
    script = ("sleep 600 & echo $! > pids.new", "echo $$ >> pids.new", "mv pids.new pids", *lines)
    (place.path / "process").write_text("\n".join(script))
    (place.path / "config").write_text(f"[default]\ncredential_process=sh {place.path}/process\n")
    without_credentials(place)
    place.environment["AWS_CONFIG_FILE"] = str(place.path / "config")
    return pids


def living(pids: Path) -> list[int]:
    return [pid for pid in map(int, pids.read_text().split()) if is_alive(pid)]


class TestCredentialProcess:
    """A credential_process has an end, and leaves nothing behind."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    @pytest.mark.parametrize("options", [(), ("--verify",), ("--mode", "concurrent")])
    def test_nothing_is_left_of_it_after_a_stop(
        self, place: Place, number: int, options: tuple[str, ...]
    ) -> None:
        place.file("f")
        pids = with_process(place, "wait")
        run = place.start(*options, leads="session")
        wait_until(pids.exists, 60)
        assert len(living(pids)) == 2
        run.send_signal(number)
        run.communicate(timeout=60)
        assert run.returncode == (-number if number == signal.SIGKILL else 4)
        wait_until(lambda: not living(pids))

    @BOTH_MODES
    def test_one_that_prints_without_end(self, place: Place, mode: str) -> None:
        place.file("f")
        pids = with_process(place, "while :; do echo some-more-words-and-more-words; done")
        run = place.run("--mode", mode, start_new_session=True)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "run credential_process: it printed too much" in run.err
        wait_until(lambda: not living(pids))

    def test_one_that_hangs_is_given_up(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_hand.file("f")
        pids = with_process(at_hand, "wait")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(at_hand.path)
        monkeypatch.setenv("AWS_CONFIG_FILE", at_hand.environment["AWS_CONFIG_FILE"])
        monkeypatch.setenv("PFU_START_METHOD", "fork")
        monkeypatch.setattr(pfu, "CREDENTIAL_PROCESS_SECONDS", 2.0)
        monkeypatch.setattr(pfu, "has_terminal", lambda: False)
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (2, 0)
        assert summary.error == "run credential_process: it did not finish within 2 s"
        wait_until(lambda: not living(pids))

    @BOTH_MODES
    def test_one_that_answers(self, place: Place, mode: str) -> None:
        place.files(5)
        keys = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Version": 1}
        pids = with_process(place, f"echo '{json.dumps(keys)}'", "kill -9 $!")
        run = place.run("--mode", mode, start_new_session=True)
        assert (run.code, run.err) == (0, "")
        assert place.stored() == place.local()
        wait_until(lambda: not living(pids))

    @pytest.mark.parametrize(
        "mode, method", [("concurrent", "fork"), ("parallel", "fork"), ("parallel", "spawn")]
    )
    @pytest.mark.parametrize("gives, after", [(True, 20), (False, 20), (True, 0), (False, 0)])
    def test_what_it_gives_later_reaches_every_worker(
        self, place: Place, mode: str, method: str, gives: bool, after: int
    ) -> None:
        keys = place.path / "keys"

        def give(access_key: str, secret: str) -> None:
            pair = {"AccessKeyId": access_key, "SecretAccessKey": secret, "Version": 1}
            keys.write_text(json.dumps({**pair, "Expiration": "2099-01-01T00:00:00Z"}))

        def change() -> None:
            rotate(place, told=False)
            keys.unlink()
            if gives:
                give("AKIDNEW", "new-secret")

        give(ACCESS_KEY, SECRET_KEY)
        with_process(place, f"cat {keys}", "kill -9 $!")
        place.environment["PFU_START_METHOD"] = method
        place.files(80)
        fault = Fault(Action("call", function=change), "PutObject", after=after, times=1)
        place.server.faults.insert(0, fault)
        run = place.run("--mode", mode, "--concurrency", 4, "--json")
        assert fault.applied == 1
        assert "cannot check" not in run.err
        if gives:
            assert (run.code, run.json["uploaded"]) == (0, 80), run.err
            assert place.stored() == place.local()
        else:
            assert run.code == (1 if run.json["uploaded"] else 2), run.err
            assert "InvalidAccessKeyId" in run.err
            assert "stopped: the store has been" not in run.err
