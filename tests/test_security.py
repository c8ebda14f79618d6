"""ROOT is not left, no planted link is followed, no secret is told, the least policy suffices."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, ClassVar
from urllib.parse import quote, unquote

import boto3
import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import PIECE, ChecksumFault, open_below, replace_root, s3_job, stall
from testing.place import (
    BOTH_MODES,
    BUCKET,
    HERE,
    LONG_AGO,
    MIB,
    NEEDS_MOTO,
    OPEN,
    PART,
    Place,
    Run,
    children_of,
    without_credentials,
)

# ======================================================================================
# ROOT is not left, nothing planted is followed
# ======================================================================================


def secret_folder(place: Place) -> Path:
    folder = place.path / "secret"
    folder.mkdir()
    (folder / "f").write_bytes(b"not for the world")
    return folder


class Swapper(pfu.Observer):
    """Puts something else in the place of a path once the scan is over."""

    def __init__(self, swap: Callable[[], object]) -> None:
        self.swap = swap

    def busy(self, what: str, text: str) -> None:
        if what == "checking":
            self.swap()


def swap_for_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("was"))
    path.symlink_to(target)


def remove_root(place: Place) -> None:
    shutil.rmtree(place.root)


class TestRoot:
    """ROOT is not left, nothing planted is followed."""

    @BOTH_MODES
    @pytest.mark.parametrize("level", ["a", "a/b", "a/b/f"])
    @pytest.mark.parametrize("size", [10, 3 * PIECE])
    def test_no_link_that_is_swapped_in_leads_out_of_root(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, mode: str, level: str, size: int
    ) -> None:
        monkeypatch.setenv("PFU_START_METHOD", "fork")
        for name in ("a/b/f", "c/f"):
            at_hand.file(name, b"x" * size)
        outside = at_hand.path / "outside"
        shutil.copytree(at_hand.root / "a", outside)
        secret = b"s" * size
        (outside / "b/f").write_bytes(secret)
        (outside / "f").write_bytes(secret)
        path = at_hand.root / level
        target = outside / level[2:] if level != "a" else outside
        summary = s3_job(at_hand, Swapper(lambda: swap_for_link(path, target)), mode=mode).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary
        assert summary.skipped_by_reason == {"vanished": 1}
        assert at_hand.stored() == {"c/f": b"x" * size}
        assert secret not in at_hand.stored().values()

    def test_links_are_followed_where_that_was_asked_for(self, place: Place) -> None:
        folder = secret_folder(place)
        (place.root / "link").symlink_to(folder)
        assert place.run("--mode", "concurrent", "--follow-symlinks").code == 0
        assert place.stored() == {"link/f": b"not for the world"}

    def test_a_single_file_may_be_named_by_a_link(self, place: Place) -> None:
        file = secret_folder(place) / "f"
        shutil.rmtree(place.root)
        place.root.symlink_to(file)
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1), run.err
        assert place.stored() == {"tree": b"not for the world"}

    def test_a_folder_that_was_replaced_meanwhile_is_read_as_it_is_now(
        self, at_hand: Place
    ) -> None:
        for name in ("d/a", "d/b"):
            at_hand.file(name, name.encode() * 10)
        tree = pfu.Tree(pfu.Root(str(at_hand.root), pfu._place(str(at_hand.root))))
        os.close(tree.open(str(at_hand.root / "d/a")))
        (at_hand.root / "d").rename(at_hand.path / "old")
        (at_hand.path / "old/b").unlink()
        at_hand.file("d/b", b"new")
        fd = tree.open(str(at_hand.root / "d/b"))
        assert os.read(fd, 10) == b"new"
        os.close(fd)
        tree.close()

    def test_the_tree_keeps_few_directories_open(self, at_hand: Place) -> None:
        names = [f"{a}/{b}/{c}/f" for a in "xyz" for b in range(10) for c in range(10)]
        for name in names:
            at_hand.file(name, name.encode())
        tree = pfu.Tree(pfu.Root(str(at_hand.root), pfu._place(str(at_hand.root))))
        for name in random.Random(1).sample(names * 3, 900):
            fd = tree.open(str(at_hand.root / name))
            assert os.read(fd, 100) == name.encode()
            os.close(fd)
        assert 0 < len(open_below(at_hand.root)) <= pfu.KEPT_DIRECTORIES + 1
        tree.close()
        assert open_below(at_hand.root) == []

    @BOTH_MODES
    @pytest.mark.parametrize("trouble", [remove_root, replace_root])
    @pytest.mark.parametrize("size", [10, 3 * PIECE])
    def test_a_root_that_goes_away_is_no_finished_run(
        self,
        at_hand: Place,
        monkeypatch: pytest.MonkeyPatch,
        mode: str,
        trouble: Callable[[Place], None],
        size: int,
    ) -> None:
        monkeypatch.setenv("PFU_START_METHOD", "fork")
        for number in range(5):
            at_hand.file(f"d{number}/f", b"x" * size)
        summary = s3_job(at_hand, Swapper(lambda: trouble(at_hand)), mode=mode).run()
        assert (summary.exit_code, summary.uploaded, summary.failed) == (2, 0, 0), summary
        assert "read root" in str(summary.error)
        assert "is it mounted?" in str(summary.error)
        assert (summary.pending, summary.skipped) == (5, 0)
        assert len(at_hand.rows()) == 5

    def test_a_root_that_goes_away_while_it_is_scanned(self, at_hand: Place) -> None:
        at_hand.files(20)
        observer = pfu.Observer()
        observer.busy = lambda what, text: at_hand.root.exists() and replace_root(at_hand)  # type: ignore
        job = s3_job(at_hand, observer)
        observer.busy = lambda what, text: Path(job.root_dir).rename(at_hand.path / "gone")  # type: ignore
        summary = job.run()
        assert summary.exit_code == 2
        assert "is it mounted?" in str(summary.error)


# ======================================================================================
# Nothing from the working directory is run
# ======================================================================================


PLANTED = (
    *("multiprocessing", "random", "boto3", "pickle", "threading", "socket", "signal", "moto"),
    *("io", "os", "re", "concurrent", "asyncio", "sitecustomize", "werkzeug", "readline"),
)


def plant_modules(place: Place) -> Path:
    """In the working directory; each tells, in the file that is returned, who imported it."""
    told = place.path / "imported"
    for name in PLANTED:
        line = f"{name} by {{open('/proc/self/cmdline').read()!r}}"
        (place.path / f"{name}.py").write_text(f"open({str(told)!r}, 'a').write(f{line!r})\n")
    return told


class TestWorkingDirectory:
    """Nothing from the working directory is run."""

    @BOTH_MODES
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_no_module_of_the_working_directory_is_imported(
        self, place: Place, mode: str, method: str
    ) -> None:
        place.files(3)
        place.file("large", os.urandom(6 * MIB))
        told = plant_modules(place)
        place.environment["PFU_START_METHOD"] = method
        run = place.run(*PART, "--mode", mode, "--json")
        assert not told.exists(), told.read_text()
        assert (run.code, run.json["uploaded"], run.err) == (0, 4, "")
        assert place.stored() == place.local()

    def test_none_is_by_a_worker_that_replaces_another(self, place: Place) -> None:
        place.file("large", os.urandom(16 * MIB))
        told = plant_modules(place)
        place.server.faults.append(Fault(Action("slow", seconds=0.3), operation="UploadPart"))
        run = place.start(*PART, "--workers", "2", "--json")
        assert place.server.wait_for("UploadPart", 1, 60)
        for child in children_of(run.pid):
            os.kill(child, signal.SIGKILL)
        place.server.faults.clear()
        out, err = run.communicate(timeout=60)
        assert not told.exists(), told.read_text()
        assert (run.returncode, "died and were replaced" in err) == (0, True), err
        assert json.loads(out)["uploaded"] == 1

    @NEEDS_MOTO
    @BOTH_MODES
    def test_none_is_by_the_sandbox(self, place: Place, mode: str) -> None:
        place.files(3)
        told = plant_modules(place)
        place.endpoint = ""
        run = place.run("--sandbox", "--mode", mode, "--json")
        assert not told.exists(), told.read_text()
        assert (run.code, run.json["uploaded"]) == (0, 3), run.err


# ======================================================================================
# Nothing secret is told
# ======================================================================================


class TestSecrets:
    """Nothing secret is told."""

    @pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal", ".lock"])
    def test_no_link_is_followed_where_the_ledger_lies(self, place: Place, end: str) -> None:
        place.file("f")
        victim = place.path / "victim"
        victim.write_bytes(b"precious")
        (place.path / f"pfu.db{end}").symlink_to(victim)
        run = place.run("--mode", "concurrent")
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "it is a symbolic link (remove it, or choose another --db)" in run.err
        assert victim.read_bytes() == b"precious"

    def test_the_files_of_the_ledger_are_for_their_owner_alone(self, place: Place) -> None:
        place.files(30)
        os.umask(os.umask(0))
        place.server.faults.append(Fault(Action("slow", seconds=1), "PutObject"))
        run = place.start("--mode", "concurrent")
        assert place.server.wait_for("HeadBucket", 1)
        time.sleep(0.3)
        modes = {path.name: path.stat().st_mode & 0o777 for path in place.path.glob("pfu.db*")}
        run.communicate(timeout=60)
        assert set(modes) == {"pfu.db", "pfu.db-wal", "pfu.db-shm", "pfu.db.lock"}
        assert set(modes.values()) == {0o600}

    def test_a_store_without_encryption_is_warned_about(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_hand.file("f")
        monkeypatch.setattr(pfu, "is_loopback", lambda host: host != "127.0.0.1")
        summary = s3_job(at_hand).run()
        assert [note for note in summary.notes if "is not encrypted" in note]
        monkeypatch.undo()

    @pytest.mark.parametrize(
        "host, is_here",
        [
            ("127.0.0.1", True),
            ("127.8.8.8", True),
            ("::1", True),
            ("localhost", True),
            ("10.0.0.1", False),
            ("0.0.0.0", False),
            ("nowhere.invalid", False),
        ],
    )
    def test_what_is_loopback(self, host: str, is_here: bool) -> None:
        assert pfu.is_loopback(host) == is_here

    def test_a_store_cannot_command_the_terminal(self, place: Place) -> None:
        place.files(3)
        text = "\x1b]0;owned\x07 \u202e \x9b31m"
        place.server.faults.append(Fault(Action("error", 400, "InvalidRequest", text)))
        run = place.run("--mode", "concurrent", "--verbose")
        assert run.code in (1, 2)
        assert not [c for c in run.err + run.out if not c.isprintable() and c != "\n"]

    def test_credentials_are_not_shown_in_any_error(self) -> None:
        credentials = pfu.Credentials("AKID", "very-secret", "token-secret")
        shown = f"{credentials} {credentials!r} {pfu.internal_error(KeyError(credentials))}"
        assert "secret" not in shown


def all_text(place: Place, run: Run) -> str:
    """All that a run leaves behind for a reader, JSON's escapes undone."""
    files = [*place.path.glob("pfu.db*"), *place.path.glob("log*"), *place.path.glob("metrics*")]
    text = run.out + run.err + "".join(path.read_bytes().decode("latin-1") for path in files)
    return text + re.sub(r"\\\\(.)", r"\\1", text)


EVERYWHERE = ("--json", "--log-file", "log", "--metrics-file", "metrics")
SECRET, TOKEN = 'very"secret/key+1', "very%2Fsecret=token=="


class TestMask:
    """What is secret comes out as ***, whatever the way."""

    @BOTH_MODES
    def test_a_store_that_repeats_secrets_does_not_get_them_told(
        self, place: Place, mode: str
    ) -> None:
        place.file("f")
        place.server.credentials = {"AKID": (SECRET, TOKEN)}
        place.environment.update(place.server.environment())
        forms = [form for s in (SECRET, TOKEN) for form in (s, quote(s, safe=""), unquote(s))]
        message = " and ".join((*forms, quote(SECRET).lower()))
        error = Action("error", 400, "InvalidRequest", message)
        place.server.faults.append(Fault(error, "PutObject"))
        run = place.run("--mode", mode, *EVERYWHERE)
        assert (run.code, "InvalidRequest: *** and ***" in run.err) == (1, True), run.err
        assert "***" in place.rows()[0]["error"]
        assert not re.search("very.{1,3}secret", all_text(place, run), re.IGNORECASE)

    @pytest.mark.parametrize(
        "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
    )
    @pytest.mark.parametrize("wrong", ["very-secret\n", "very-secret\r\nX-Y: z", "very-secr\xe9t"])
    def test_credentials_that_cannot_be_sent_are_named_not_told(
        self, place: Place, name: str, wrong: str
    ) -> None:
        place.file("f")
        place.environment[name] = wrong
        run = place.run("--mode", "concurrent", *EVERYWHERE)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert f"read {name}: it " in run.err
        assert "very-secr" not in all_text(place, run)
        assert place.server.count() == 0

    def test_so_are_those_of_a_file_and_the_region(self, place: Place) -> None:
        place.file("f")
        place.environment["AWS_DEFAULT_REGION"] = "us-east-1\n"
        run = place.run("--mode", "concurrent", *EVERYWHERE)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "read AWS_DEFAULT_REGION: it starts or ends with white space" in run.err
        assert "Signature" not in all_text(place, run)
        place.environment["AWS_DEFAULT_REGION"] = "us-east-1"
        without_credentials(place)
        keys = "aws_access_key_id=AKID\naws_secret_access_key=very-secret"
        (place.path / "credentials").write_text(f"[default]\n{keys}\naws_session_token=t\x01oken")
        place.environment["AWS_SHARED_CREDENTIALS_FILE"] = str(place.path / "credentials")
        run = place.run("--verify", *EVERYWHERE)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert (
            "read the session token: it contains a character that is not allowed in a header"
            in run.err
        )

    @pytest.mark.parametrize(
        "proxy, says",
        [
            ("http://user:pass/word-secret@127.0.0.1:1", "not a URL"),
            ("http://user:pass#word-secret@127.0.0.1:1", "not a URL"),
            ("http://user:pass?word-secret@127.0.0.1:1", "not a URL"),
            ("http://user:word-secret@127.0.0.1:99999", "not a URL"),
            ("http://user:word-secret\n@127.0.0.1:1", "not a URL"),
            ("socks5://user:word-secret@127.0.0.1:1", "socks5 proxies are not supported"),
        ],
    )
    def test_a_proxy_that_cannot_be_one_is_named_not_told(
        self, place: Place, proxy: str, says: str
    ) -> None:
        place.file("f")
        place.environment["HTTP_PROXY"] = proxy
        run = place.run("--mode", "concurrent", *EVERYWHERE)
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert f"read HTTP_PROXY: {says} (use http://" in run.err
        assert "word-secret" not in all_text(place, run)

    @pytest.mark.parametrize(
        "proxy",
        [
            "user:p%C3%A4ss",
            "http://127.0.0.1:1",
            "https://[::1]:3128/",
            "http://u:p@ss%2F@host:1",
            "host:80",
            "//host",
            "",
        ],
    )
    def test_proxies_that_can_be(self, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
        monkeypatch.setattr(pfu, "proxy_of", lambda config, url: proxy)
        if proxy.startswith("user"):
            with pytest.raises(pfu.UsageError, match="not a URL"):
                pfu.check_proxy(None, "http://store")
        else:
            pfu.check_proxy(None, "http://store")

    def test_a_proxy_that_repeats_the_password_does_not_get_it_told(self, place: Place) -> None:
        place.file("f")
        told = (
            "cGVyOndvcmQtc2VjcmV0 word-secret"  # the end of the former is that of per:word-secret
        )
        with closing_server(f"HTTP/1.1 407 {told}\r\nX: {told}\r\n\r\n{told}".encode()) as url:
            place.environment["HTTP_PROXY"] = url.replace("//", "//per:word-secret@")
            run = place.run("--mode", "concurrent", "--patience", "1s", *EVERYWHERE)
        assert run.code in (1, 2), run.err
        assert not re.search("word-secret|cGVyOndvcmQtc2VjcmV0", all_text(place, run))

    def test_a_traceback_has_no_secret_either(self) -> None:
        lines = (
            "import pfu",
            "pfu.open_streams()",
            "pfu.MASK.learn('very-secret-key')",
            "raise ValueError('very-' + 'secret-key')",
        )
        command = [sys.executable, "-c", "\n".join(lines)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        assert "ValueError: ***\n" in done.stderr

    def test_short_words_are_hidden_whole_only(self) -> None:
        mask = pfu.Mask()
        mask.learn("rong", "x", "", None)
        assert mask.hide("wrong x (rong)") == "wrong x (***)"


# ======================================================================================
# What a store says has a bound
# ======================================================================================


class Babbler(socketserver.BaseRequestHandler):
    """Answers each request with a beginning, then with the same octets, up to a limit."""

    beginning, more = b"", b""
    most = 0
    sent: ClassVar[list[int]] = []

    def handle(self) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            if self.request.recv(1 << 16):
                self.request.sendall(self.beginning)
            while sent < self.most:
                self.request.sendall(self.more)
                sent += len(self.more)
        self.sent.append(sent)


@contextlib.contextmanager
def closing_server(
    beginning: bytes, more: bytes = b"", most: int = 0, sent: list[int] | None = None
) -> Iterator[str]:
    settings: dict[str, Any] = {"beginning": beginning, "more": more, "most": most}
    settings["sent"] = [] if sent is None else sent
    handler = type("Handler", (Babbler,), settings)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestBounds:
    """What a store says has a bound."""

    @pytest.mark.parametrize(
        "beginning",
        [
            "HTTP/1.1 200 OK\r\n\r\n<x>",
            "HTTP/1.1 400 Bad Request\r\n\r\n<x>",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    )
    def test_an_endless_answer_is_a_broken_one(self, place: Place, beginning: str) -> None:
        place.file("f")
        sent: list[int] = []
        with closing_server(beginning.encode(), b"0" * MIB, 64 * MIB, sent) as place.endpoint:
            run = place.run("--verify", "--json", "--patience", "1s")
        assert run.code in (1, 2), run.err
        assert "internal error" not in run.err
        assert 0 < max(sent) < 40 * MIB, sent  # what the kernel holds is not read

    @BOTH_MODES
    @pytest.mark.parametrize("what", ["code", "message"])
    def test_a_message_is_cut(self, place: Place, mode: str, what: str) -> None:
        place.file("f")
        words = {"code": "InvalidRequest", "message": "no", what: "m" * 3 * MIB}
        error = Action("error", 400, words["code"], words["message"])
        place.server.faults.append(Fault(error, "PutObject"))
        run = place.run("--mode", mode, *EVERYWHERE)
        assert run.code == 1
        assert 2_000 < len(run.err) < 10_000
        assert len(place.rows()[0]["error"]) < 3_000
        assert len(all_text(place, run)) < 1 * MIB

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_to_itself_has_an_end(self, place: Place, status: int) -> None:
        place.file("f")
        headers = {"location": f"{place.endpoint}/{BUCKET}"}
        place.server.faults.append(Fault(Action("error", status, "Redirect", headers=headers)))
        run = place.run("--mode", "concurrent")
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert "redirected: check --region and --endpoint-url" in run.err
        assert place.server.count() <= 3


# ======================================================================================
# The policy in docs/permissions.md
# ======================================================================================


IAM_ACTIONS = {
    **dict.fromkeys(
        ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
        "s3:PutObject",
    ),
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    **dict.fromkeys(("HeadBucket", "ListObjectsV2"), "s3:ListBucket"),
    **dict.fromkeys(("HeadObject", "GetObject"), "s3:GetObject"),
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "GetBucketPolicyStatus": "s3:GetBucketPolicyStatus",
    "GetBucketOwnershipControls": "s3:GetBucketOwnershipControls",
    "GetBucketAcl": "s3:GetBucketAcl",
}


def documented_policy() -> dict[str, Any]:
    text = (HERE / "docs/permissions.md").read_text("utf-8")
    policy: dict[str, Any] = json.loads(
        next(block for block in re.findall(r"```json\n(.*?)```", text, re.S) if "Action" in block)
    )
    return policy


class EnforcingStore:
    """moto's S3 and IAM, which let nobody do what no policy allows."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", pfu.SANDBOX_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.address = ("127.0.0.1", int(port))

    def client(self, service: str) -> Any:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def user_with(self, policy: Mapping[str, Any]) -> dict[str, str]:
        """A bucket, and the environment of a user who may do just this."""
        bucket = "my-bucket"
        self.client("s3").create_bucket(Bucket=bucket)
        self.client("s3").put_public_access_block(
            Bucket=bucket, PublicAccessBlockConfiguration=pfu.ALL_BLOCKS
        )
        iam = self.client("iam")
        iam.create_user(UserName="u")
        key = iam.create_access_key(UserName="u")["AccessKey"]
        iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(policy))
        connection = http.client.HTTPConnection(*self.address)
        connection.request("POST", "/moto-api/reset-auth", "0", {"Content-Type": "text/plain"})
        assert connection.getresponse().status == 200
        names = ("AccessKeyId", "SecretAccessKey")
        return dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), map(key.get, names)))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class TestPolicy:
    """The policy in docs/permissions.md."""

    def test_the_policy_in_the_readme_is_just_what_is_used(self, place: Place) -> None:
        vars(place.server.bucket(BUCKET)).update(OPEN)
        place.files(3)
        large = place.file("large", os.urandom(11 * MIB))
        place.server.faults.append(
            Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=1)
        )
        assert place.run("--mode", "concurrent", *PART).code == 1
        place.server.faults.clear()
        place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
        os.utime(large, (LONG_AGO, LONG_AGO))  # refused with checksums: begun anew, and aborted
        assert place.run("--mode", "concurrent", *PART).code == 0
        assert place.run("--verify", "--checksum").code == 0
        place.file("large", os.urandom(6 * MIB))
        place.server.faults.append(stall(1))
        run = place.start("--mode", "concurrent", *PART)
        assert place.server.wait_for("CreateMultipartUpload", 3)
        time.sleep(0.5)
        run.kill()
        run.communicate()
        place.server.faults.clear()
        assert place.run("--mode", "concurrent", *PART).code == 0
        named = {
            action
            for statement in documented_policy()["Statement"]
            for action in statement["Action"]
        }
        assert {IAM_ACTIONS[request.operation] for request in place.server.log} == named

    @pytest.mark.parametrize("statements", [1, 3])
    def test_the_policy_in_the_readme_is_enough_where_it_is_enforced(
        self, place: Place, statements: int
    ) -> None:
        policy = documented_policy()
        policy["Statement"] = policy["Statement"][:statements]
        place.file("small")
        place.file("large", os.urandom(6 * MIB))
        store = EnforcingStore()
        try:
            place.environment.update(store.user_with(policy))
            place.endpoint = store.endpoint
            run = place.run("--mode", "concurrent", *PART, to="s3://my-bucket/backup")
            assert (run.code, "cannot tell" in run.err) == (0, statements == 1), run.err
            verified = place.run("--verify", "--checksum", to="s3://my-bucket/backup")
            if sys.version_info >= (
                3,
                10,
            ):  # moto for 3.9 takes the signature of a listing for wrong
                assert verified.code == (2 if statements == 1 else 0), verified.err
            other = place.run("--mode", "concurrent", "--db", "x.db", to="s3://my-bucket/other")
            assert (other.code, "AccessDenied" in other.err) == (1, True)
        finally:
            store.close()
