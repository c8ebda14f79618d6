"""The store must prove itself, and what it has of large files is kept (sections 4 and 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import BOTH_MODES, BUCKET, MIB, Place
from testing.protocol import Request

HTML = {"content-type": "text/html", "etag": '"abc"'}


class Console(http.server.BaseHTTPRequestHandler):
    """A web console, or a portal: 200 to everything."""

    protocol_version = "HTTP/1.1"
    kind = "text/html"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b"<!doctype html><html>Welcome</html>" if self.kind == "text/html" else b""
        self.send_response(200)
        for name, value in (("Content-Type", self.kind), ("ETag", '"abc"')):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class PlainConsole(Console):
    """The same, but nothing that it says tells."""

    kind = "application/octet-stream"


@contextlib.contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=[Console, PlainConsole])
def console(request: Any) -> Iterator[str]:
    with served(request.param) as endpoint:
        yield endpoint


class TestProof:
    """No success is written before the store has proven itself."""

    @BOTH_MODES
    def test_a_console_is_no_store(self, place: Place, console: str, mode: str) -> None:
        place.files(50)
        place.endpoint = console
        run = place.run("--mode", mode, "--patience", "2s", "--json")
        assert (run.code, run.json["uploaded"], run.json["pending"]) == (2, 0, 50), run.err
        assert "is that URL an S3 server?" in run.err
        assert place.rows("SELECT * FROM FileStat WHERE status=2") == []

    @BOTH_MODES
    def test_it_costs_two_requests_a_run(self, place: Place, mode: str) -> None:
        for number in range(30):
            place.file(f"empty{number:02}", b"")
        place.file("full", b"x")
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["notes"]) == (0, 31, [])
        heads = [r.key for r in place.server.log if r.operation == "HeadObject"]
        assert (len(heads), heads[0]) == (2, "p/full")
        assert place.run("--mode", mode, "--json").json["requests"] == 0

    def test_an_empty_object_proves_it_where_there_is_no_other(self, place: Place) -> None:
        place.file("empty", b"")
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"], place.server.count("HeadObject")) == (0, 1, 2)

    @BOTH_MODES
    def test_a_role_that_may_only_put_is_told_of_once(self, place: Place, mode: str) -> None:
        place.files(40)
        place.server.deny |= {"HeadObject"}
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], len(run.json["notes"])) == (0, 40, 1), run.err
        assert "cannot check what was stored" in run.json["notes"][0]

    def test_answers_that_are_cut_off_are_no_reason_to_do_without(self, place: Place) -> None:
        place.files(5)
        place.server.faults.append(Fault(Action("half_headers"), "HeadObject", times=6))
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"], run.json["notes"]) == (0, 5, []), run.err
        assert place.server.count("HeadObject") == 8

    @BOTH_MODES
    def test_metadata_that_a_store_drops_are_told_of_once(self, place: Place, mode: str) -> None:
        place.files(20)
        place.file("large", os.urandom(6 * MIB))
        bucket = place.server.bucket(BUCKET)
        assert bucket
        put = bucket.put

        def put_without(key: str, stored: Any) -> None:
            kept = {n: v for n, v in stored.headers.items() if not n.startswith("x-amz-meta-")}
            put(key, dataclasses.replace(stored, headers=kept))

        bucket.put = put_without  # type: ignore[method-assign]
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 21), run.err
        assert run.json["notes"] == [pfu.DROPS_METADATA]
        assert place.run("--mode", mode, "--part-size", "5M", "--json").json["unchanged"] == 21

    def test_what_is_taken_away_at_once_is_told(self, place: Place) -> None:
        place.files(5)
        place.server.faults.append(Fault(Action("error", 404, "NoSuchKey"), "HeadObject"))
        place.server.faults.append(Fault(Action("error", 404, "NoSuchKey"), "GetObject"))
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 5), run.err
        assert "deletes objects immediately" in run.json["notes"][0]


class Old(http.server.BaseHTTPRequestHandler):
    """A store that speaks HTTP/1.0, and says nothing of the length of its answers."""

    stored: dict[str, tuple[bytes, dict[str, str]]] = {}  # noqa: RUF012

    def answer(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kept = {n: v for n, v in self.headers.items() if n.lower().startswith("x-amz-meta-")}
        self.stored[self.path] = body, kept
        self.answer(200, {"ETag": '"1"'})

    def do_HEAD(self) -> None:
        if self.path.count("/") == 1:
            self.answer()
        elif self.path in self.stored:
            body, kept = self.stored[self.path]
            self.answer(200, {"Content-Length": str(len(body)), **kept})
        else:
            self.answer(404)

    def do_GET(self) -> None:
        self.answer(501)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@BOTH_MODES
def test_a_store_that_says_no_length_and_no_etag(place: Place, mode: str) -> None:
    Old.stored.clear()
    place.files(40)
    with served(Old) as place.endpoint:
        run = place.run("--mode", mode, "--json")
    assert (run.code, run.json["uploaded"], run.json["retries"]) == (0, 40, 0), run.err
    assert len(Old.stored) == 40


class BeyondTen(Fault):
    """A store that takes ten parts."""

    def _concerns(self, request: Request) -> bool:
        return super()._concerns(request) and int(request.query.get("partNumber", 0)) > 10


class TestLarge:
    """What was acknowledged of a large file is kept."""

    @BOTH_MODES
    @pytest.mark.parametrize(
        "action",
        [Action("error", 507, "InsufficientStorage"), Action("error", 403, "AccessDenied")],
        ids=lambda action: action.code,
    )
    def test_parts_are_kept_when_one_is_refused(
        self, place: Place, mode: str, action: Action
    ) -> None:
        place.file("large", os.urandom(50 * MIB))
        place.server.faults.append(Fault(action, "UploadPart", after=4))
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert (run.code, run.json["failed"]) == (1, 1), run.err
        place.server.faults.clear()
        place.server.clear_log()
        again = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert (again.code, again.json["uploaded"]) == (0, 1), again.err
        assert len([r for r in place.server.log if r.operation == "UploadPart"]) == 6
        assert place.stored() == place.local()
        assert not place.server.uploads(BUCKET)

    @BOTH_MODES
    def test_a_store_that_takes_fewer_parts_gets_larger_ones_once(
        self, place: Place, mode: str
    ) -> None:
        place.file("large", os.urandom(75 * MIB))
        words = "Part number must be an integer between 1 and 10, inclusive"
        place.server.faults.append(BeyondTen(Action("error", 400, "InvalidArgument", words)))
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1), run.err
        assert place.server.count("CreateMultipartUpload") == 2
        assert place.stored() == place.local()

    @BOTH_MODES
    @pytest.mark.parametrize("kind", ["lost_ack", "half_headers"])
    def test_a_complete_whose_answer_is_lost_is_settled_by_head(
        self, place: Place, mode: str, kind: str
    ) -> None:
        place.file("large", os.urandom(11 * MIB))
        place.server.faults.append(Fault(Action(kind), "CompleteMultipartUpload", times=1))
        run = place.run("--mode", mode, "--part-size", "5M", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1), run.err
        assert place.server.count("UploadPart") == 3
        assert place.server.count("CompleteMultipartUpload") == 1
        (stored,) = place.server.objects(BUCKET).values()
        assert len(stored.headers["x-amz-meta-pfu-upload"]) == pfu.UPLOAD_MARK_DIGITS

    def test_one_of_last_night_is_not_taken_for_it(self, place: Place) -> None:
        path = place.file("large", os.urandom(11 * MIB))
        assert place.run("--mode", "concurrent", "--part-size", "5M").code == 0
        path.write_bytes(os.urandom(11 * MIB))
        os.utime(path, (1_600_000_000, 1_600_000_000))
        lost = Fault(Action("error", 504, "GatewayTimeout"), "CompleteMultipartUpload", times=2)
        place.server.faults.append(lost)
        run = place.run("--mode", "concurrent", "--part-size", "5M", "--force", "--json")
        assert (run.code, lost.applied) == (0, 2), run.err
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_parts_that_the_same_bytes_make_superfluous_do_not_stay(
        self, place: Place, mode: str
    ) -> None:
        """HEAD shows them, from before, when Complete has failed, and in another class."""
        place.file("large", os.urandom(11 * MIB))
        arguments = "--mode", mode, "--part-size", "5M"
        assert place.run(*arguments).code == 0
        failed = Fault(Action("error", 503, "InternalError"), "CompleteMultipartUpload", times=1)
        place.server.faults.append(failed)
        run = place.run(*arguments, "--force", "--storage-class", "STANDARD_IA", "--json")
        assert (run.code, run.json["uploaded"], failed.applied) == (0, 1, 1), run.err
        (stored,) = place.server.objects(BUCKET).values()
        assert stored.headers["x-amz-storage-class"] == "STANDARD_IA"
        assert not place.server.uploads(BUCKET)
        assert not place.rows("SELECT id FROM MultipartUpload")

    @pytest.mark.parametrize("text", ["id", "id#sha256", "id#0123456789abcdef", "a#b"])
    def test_what_the_ledger_keeps_of_an_upload(self, text: str) -> None:
        assert str(pfu.UploadHandle.read(text)) == text
        handle = pfu.UploadHandle("x/y==", True, "0123456789abcdef")
        assert pfu.UploadHandle.read(str(handle)) == handle


class TestStatus:
    """--status tells the counts of a run that goes on, and of one that was killed."""

    def test_the_counts_of_a_run_that_was_killed(self, place: Place) -> None:
        place.files(200)
        place.server.faults.append(Fault(Action("slow", seconds=0.5), "PutObject", after=100))
        run = place.start("--mode", "concurrent", "--concurrency", "4")
        assert place.server.wait_for("PutObject", 110, 30)
        told = place.run("--status", "--json", to=None).json[0]
        assert 0 < told["uploaded"] <= 200
        assert told["uploaded"] + told["pending"] + told["failed"] == 200
        run.kill()
        run.communicate()
        after = place.run("--status", "--json", to=None).json[0]
        recorded = place.rows("SELECT file_id FROM Outcome WHERE status=2")
        assert after["uploaded"] == len(recorded) >= told["uploaded"]


@pytest.mark.parametrize("name", ["tenant:bucket", "bkt_", "UPPER"])
def test_other_stores_have_other_names_for_buckets(place: Place, name: str) -> None:
    place.server.add_bucket(name)
    place.file("f")
    run = place.run("--mode", "concurrent", "--json", to=f"s3://{name}/p")
    assert (run.code, run.json["uploaded"]) == (0, 1), run.err
    place.endpoint = ""
    run = place.run("--mode", "concurrent", "--json", to="s3://tenant:bucket/p")
    assert (run.code, "not a valid bucket name" in run.err) == (2, True)


def test_the_proof_waits_for_no_queue(place: Place) -> None:
    """Nor does what was taken wait for the end of a long one."""
    for number in range(1200):
        place.file(f"f{number:04}")
    place.server.faults.append(Fault(Action("slow", seconds=0.2), "PutObject"))
    run = place.start("--mode", "concurrent", "--concurrency", "4")
    assert place.server.wait_for("HeadObject", 2, 20)
    assert place.server.count("PutObject") < 200
    run.kill()
    run.communicate()


ALTERED = {
    "backslash": ("a\\b", "a/b"),
    "control": ("a\tb", "a b"),
    "letter": ("\u00e9t\u00e9", "?t?"),
    "edge": ("ab.", "ab"),
}


class TestSpelling:
    """A store that keeps some names in another way has one object for two files."""

    @BOTH_MODES
    @pytest.mark.parametrize("kind", ALTERED)
    def test_what_is_kept_under_another_name_fails_by_name(
        self, place: Place, mode: str, kind: str
    ) -> None:
        odd, kept = ALTERED[kind]
        place.file(kept, b"its own")
        place.file(odd, b"another's")
        for number in range(30):
            place.file(f"d/{number}/{odd}", b"%d" % number * 100)
            place.file(f"e/{number}", b"plain")
        bucket = place.server.bucket(BUCKET)
        assert bucket
        put = bucket.put
        bucket.put = lambda key, stored: put(key.replace(odd, kept), stored)  # type: ignore[method-assign]
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["failed"], run.json["uploaded"]) == (1, 31, 31), run.err
        assert pfu.KEPT_OTHERWISE in run.err
        assert len([line for line in run.err.splitlines() if "failed: " in line]) <= 4, run.err
        assert place.server.count("ListObjectsV2") <= 2 + 4
        keys = {row["object_key"] for row in place.rows("SELECT * FROM FileStat WHERE status=2")}
        assert keys <= place.stored().keys() | {f"p/{name}" for name in place.stored()}
        for _ in range(2):  # what was overwritten is put right, and stays so
            run = place.run("--mode", mode, "--json")
            assert (run.code, run.json["failed"], run.json["pending"]) == (1, 31, 0), run.err
            stored = place.server.objects(BUCKET)
            assert stored[f"p/{kept}"].body == b"its own"
        assert run.json["requests"] <= 10

    @BOTH_MODES
    def test_a_store_that_keeps_them_is_asked_once_for_each_kind(
        self, place: Place, mode: str
    ) -> None:
        for odd, kept in ALTERED.values():
            for name in (odd, kept):
                for number in range(20):
                    place.file(f"d{number}/{name}", b"%d" % number)
        run = place.run("--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 160), run.err
        assert place.server.count("ListObjectsV2") <= 1 + 4
        assert place.stored() == place.local()
