"""--verify: the store compared with the ledger and the tree."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import ChecksumFault
from testing.place import BUCKET, MIB, ODD_NAMES, PART, Place, rewrite_in_place
from testing.protocol import encode64
from testing.store import StoredObject


def alter(place: Place, key: str, **changes: Any) -> None:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    bucket.put(f"p/{key}", dataclasses.replace(bucket.objects[f"p/{key}"], **changes))


def lose(place: Place, key: str) -> None:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    bucket.delete(f"p/{key}")


def replace(place: Place, key: str) -> None:
    """Someone else puts other bytes there, of the same size."""
    stored = place.server.objects(BUCKET)[f"p/{key}"]
    body = with_another_start(bytes(stored.body or b""))
    checksum = encode64(hashlib.sha256(body).digest())
    headers = {**stored.headers, "x-amz-checksum-sha256": checksum}
    digests = {"sha256": hashlib.sha256(body).hexdigest(), "etag": hashlib.md5(body).hexdigest()}
    alter(place, key, body=body, headers=headers, **digests)


DAMAGES: dict[str, tuple[Callable[[Place, str], Any], str]] = {
    "d1/f00001": (lose, "missing in the store"),
    "d2/f00002": (lambda place, key: alter(place, key, size=3), "the store has another size"),
    "d3/f00003": (lambda place, key: replace(place, key), "the store has another ETag"),
    "new": (lambda place, key: place.file(key), "not uploaded"),
    "d5/f00005": (
        lambda place, key: place.file(key, b"changed"),
        "changed since it was uploaded",
    ),
}


def put_at_once(place: Place, files: Iterable[Path], like: StoredObject) -> None:
    """Store small files as pfu does; their time and permissions are those of ``like``."""
    bucket = place.server.bucket(BUCKET)
    assert bucket is not None
    for path in files:
        body = path.read_bytes()
        digest = hashlib.sha256(body)
        headers = {**like.headers, "x-amz-checksum-sha256": encode64(digest.digest())}
        digests = digest.hexdigest(), hashlib.md5(body).hexdigest()
        key = f"p/{path.relative_to(place.root)}"
        bucket.put(key, StoredObject(body, len(body), *digests, headers, time.time()))


def put_strangers(place: Place, *names: str) -> list[str]:
    """Objects that no pfu has put there."""
    bucket = place.server.bucket(BUCKET)
    assert bucket is not None
    for name in names:
        bucket.put(f"p/{name}", StoredObject(b"", 0, *2 * ("0" * 32,), {}, time.time()))
    return [f"p/{name}" for name in names]


def with_another_start(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def alter_body(place: Place, key: str) -> None:
    stored = place.server.objects(BUCKET)[f"p/{key}"]
    assert stored.body is not None
    alter(place, key, body=with_another_start(bytes(stored.body)))


def alter_checksum(place: Place, key: str) -> None:
    headers = place.server.objects(BUCKET)[f"p/{key}"].headers
    digest, dash, parts = headers["x-amz-checksum-sha256"].partition("-")
    altered = encode64(with_another_start(base64.b64decode(digest))) + dash + parts
    alter(place, key, headers={**headers, "x-amz-checksum-sha256": altered})


HALF_ANSWERS = ["half_headers", "half_body", "garbage", "error200", "lost_ack"]
LIES = {"HeadObject": {"half_body"}, "GetObject": {"error200"}}  # of the size, of the bytes


class TestVerify:
    """--verify."""

    def test_verify_finds_what_differs_and_the_next_run_mends_it(self, place: Place) -> None:
        place.files(30)
        assert place.run("--mode", "concurrent").code == 0
        for key, (damage, _) in DAMAGES.items():
            damage(place, key)
        run = place.run("--verify", "--json")
        assert (run.code, run.json["differing"], run.json["verified"]) == (1, 5, 26), run.err
        told = {found["key"][2:]: found["reason"] for found in run.json["differences"]}
        assert told == {key: says for key, (_, says) in DAMAGES.items()}
        again = place.run("--verify")
        assert (again.code, "5 differ" in again.out) == (1, True), again.out
        assert place.run("--mode", "concurrent", "--json").json["uploaded"] == 5
        assert place.run("--verify").code == 0
        assert place.stored() == place.local()

    def test_another_etag_of_the_same_bytes_is_no_difference(self, place: Place) -> None:
        place.files(3)
        assert place.run("--mode", "concurrent").code == 0
        alter(place, "d1/f00001", etag="x")  # its checksum is as it was
        run = place.run("--verify", "--json")
        assert (run.code, run.json["verified"]) == (0, 3), run.out

    def test_a_checksum_tells_other_bytes_where_etags_tell_nothing(self, place: Place) -> None:
        place.files(3)
        assert place.run("--mode", "concurrent").code == 0
        replace(place, "d1/f00001")  # with the time and permissions of the file
        for number, key in enumerate(place.stored()):
            alter(place, key, etag=f"x{number}")
        run = place.run("--verify", "--json")
        assert (run.code, run.json["verified"]) == (1, 2), run.out
        assert [found["key"] for found in run.json["differences"]] == ["p/d1/f00001"]

    @pytest.mark.parametrize("option", [(), ("--checksum",)])
    def test_nobody_is_sent_to_an_option_that_is_given(
        self, place: Place, option: tuple[str, ...]
    ) -> None:
        """Of a large file that was removed nothing is known to compare what is read back with."""
        place.file("large", b"x" * (6 * MIB))
        assert place.run(*PART, "--remove-source-files").code == 0
        headers = place.server.objects(BUCKET)["p/large"].headers
        kept = {name: text for name, text in headers.items() if "checksum" not in name}
        alter(place, "large", headers=kept, etag='"x-2"')
        run = place.run("--verify", *option, "--json")
        assert (run.code, run.json["verified"]) == (0, 1), run.out
        assert "could only be matched by size and metadata" in run.json["notes"][0]
        assert ("--checksum reads" in run.json["notes"][0]) == (not option)

    def test_a_size_in_a_listing_is_no_proof(self, place: Place) -> None:
        """Some stores list the size of what they keep, compressed or encrypted."""
        place.files(3)
        assert place.run().code == 0
        place.server.faults.append(
            Fault(Action("honest", altered={"<Size>": "<Size>1"}), "ListObjectsV2")
        )
        run = place.run("--verify", "--json")
        assert (run.code, run.json["differing"]) == (0, 0), run.out
        assert [row["status"] for row in place.rows()] == [2, 2, 2]

    def test_half_a_listing_is_none(self, place: Place) -> None:
        place.files(5)
        assert place.run("--mode", "concurrent").code == 0
        half = Fault(Action("half_headers"), "ListObjectsV2", times=1)
        place.server.faults.append(half)
        run = place.run("--verify", "--json")
        assert (run.code, run.json["verified"], half.applied) == (0, 5, 1), run.err
        half.times = None
        run = place.run("--verify", "--json", "--patience", "2s")
        assert (run.code, "the response was cut off" in run.err) == (2, True)
        assert {row["status"] for row in place.rows()} == {pfu.FileStatus.SUCCESS}

    def test_verify_tells_of_objects_of_no_file_and_leaves_them(self, place: Place) -> None:
        place.files(3)
        assert place.run().code == 0
        (place.root / "d1/f00001").unlink()
        (stranger,) = put_strangers(place, "d1/stranger")
        run = place.run("--verify", "--json")
        assert (run.code, run.json["status"]) == (0, "verified"), run.err
        assert run.json["extra_keys"] == ["p/d1/f00001", stranger]
        assert (run.json["extra"], run.json["extra_known"]) == (2, 1)
        text = place.run("--verify")
        assert text.code == 0
        assert re.search(
            "2 without a local file +left alone; of deleted files: 1, not in the ledger: 1",
            text.out,
        )
        assert len(place.stored()) == 4

    def test_a_lost_ledger_is_made_anew(self, place: Place) -> None:
        place.server.verify_signatures = False  # for speed; all other tests look at them
        place.files(500)
        place.file("large", os.urandom(5 * MIB + 1))
        for name in ODD_NAMES:
            place.file(name, os.fsencode(name))
        assert place.run(*PART).code == 0
        before = {row["id"]: row["etag"] for row in place.rows()}
        for end in ("", "-wal", "-shm"):
            (place.path / f"pfu.db{end}").unlink(missing_ok=True)
        place.files(1_200)
        more = [path for path in place.root.rglob("d?/f*") if int(path.name[1:]) >= 500]
        put_at_once(place, more, place.server.objects(BUCKET)["p/d1/f00001"])
        place.file("d1/f00001", b"changed meanwhile")
        run = place.run("--verify", "--json")
        count = 1_200 + 1 + len(ODD_NAMES)
        assert (run.code, run.json["adopted"], run.json["differing"]) == (1, count - 1, 1)
        after = {row["id"]: row["etag"] for row in place.rows()}
        assert len(after.items() & before.items()) == len(before) - 1
        puts = place.server.count("PutObject")
        run = place.run(*PART, "--json")
        assert (run.json["uploaded"], run.json["unchanged"]) == (1, count - 1)
        assert place.server.count("PutObject") == puts + 1

    @pytest.mark.parametrize("name", ["small", "large"])
    @pytest.mark.parametrize("keeps_checksums", [False, True])
    def test_verify_with_checksum_reads_what_it_cannot_ask(
        self, place: Place, name: str, keeps_checksums: bool
    ) -> None:
        """Where there are no checksums, and the ETag is no MD5, as with KMS."""
        place.file("small", b"content")
        large = os.urandom(11 * MIB)
        place.file("large", large)
        kms: tuple[str, ...] = ()
        if not keeps_checksums:
            place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
            kms = ("--sse", "aws:kms")
        assert place.run(*PART, *kms).code == 0
        clean = place.run("--verify", "--checksum", "--json")
        assert (clean.code, clean.json["verified"]) == (0, 2), clean.out
        assert clean.json["bytes_read_back"] == (0 if keeps_checksums else 7 + len(large))
        (alter_checksum if keeps_checksums else alter_body)(place, name)
        assert place.run("--verify").code == 0
        assert (place.server.count("GetObject") == 0) == keeps_checksums
        run = place.run("--verify", "--checksum", "--json")
        assert run.code == 1
        told = run.json["differences"]
        assert [d["reason"] for d in told] == ["the store has other bytes"]
        assert told[0]["path"].endswith(name)

    def test_verify_with_checksum_believes_etags_that_are_md5(self, place: Place) -> None:
        place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
        place.file("small", b"content")
        place.file("large", os.urandom(11 * MIB))
        assert place.run(*PART).code == 0
        run = place.run("--verify", "--checksum", "--json")
        assert (run.code, run.json["verified"], run.json["bytes_read_back"]) == (0, 2, 0), run.out
        assert place.server.count("GetObject") == 0

    @pytest.mark.parametrize("operation", LIES)
    def test_verify_asks_again(self, unasked: Place, operation: str) -> None:
        kinds = [kind for kind in HALF_ANSWERS if kind not in LIES[operation]]
        faults = [Fault(Action(kind), operation, f"{n}$", 2) for n, kind in enumerate(kinds)]
        unasked.server.faults += faults
        run = unasked.run("--verify", "--checksum", "--json")
        assert (run.code, run.json["verified"]) == (0, pfu.MAX_UNCHECKED), run.out
        assert [fault.applied for fault in faults] == [2] * len(kinds)
        (unasked.path / "pfu.db").unlink()
        for fault in faults:
            fault.applied = 0
        run = unasked.run("--verify", "--json")
        assert (run.code, run.json["adopted"]) == (0, pfu.MAX_UNCHECKED), run.out

    def test_what_cannot_be_checked_is_not_uploaded_again(self, unasked: Place) -> None:
        denied, expired = (Action("error", 403, code) for code in ("AccessDenied", "ExpiredToken"))
        cases = [
            (Fault(denied, "GetObject", "0$"), 1, "cannot be checked"),
            (Fault(Action("half_headers"), "GetObject", "/f00001$"), 1, "the response was cut off"),
            (Fault(denied, "GetObject"), 2, "AccessDenied"),
            (Fault(expired, "GetObject", after=9), 2, "ExpiredToken"),
        ]
        for fault, code, says in cases:
            unasked.server.faults[:] = [fault]
            run = unasked.run("--verify", "--checksum", "--json", "--patience", "2s")
            assert (run.code, says in run.out, run.err.count("\n")) == (code, True, code // 2)
            if code == 1:
                assert run.json["by_reason"] == {"cannot be checked": run.json["differing"]}
                lines = pfu.verdict_lines(pfu.Verdict(**run.json), quiet=False)
                text = "\n".join(pfu.painted(line, False) for line in lines)
                assert re.search("cannot be checked +left as is", text)
                assert "pending" not in text
            assert {row["status"] for row in unasked.rows()} == {pfu.FileStatus.SUCCESS}

    @pytest.mark.parametrize("keeps_checksums", [False, True])
    def test_verify_with_checksum_believes_no_metadata(
        self, place: Place, keeps_checksums: bool
    ) -> None:
        """A ledger that is made anew has not seen the files' bytes."""
        if not keeps_checksums:
            place.server.faults.append(ChecksumFault(Action("error", 501, "NotImplemented")))
        place.file("small", b"hello")
        place.file("same")
        place.file("large", os.urandom(11 * MIB))
        assert place.run(*PART).code == 0
        (place.path / "pfu.db").unlink()
        rewrite_in_place(place.root / "small")
        run = place.run("--verify", "--checksum", "--json")
        assert (run.code, run.json["verified"]) == (1, 2), run.out
        assert [found["reason"] for found in run.json["differences"]] == [
            "the store has other bytes"
        ]
        assert place.run(*PART, "--json").json["uploaded"] == 1
        assert place.stored() == place.local()

    def test_verify_needs_a_store_that_may_be_listed(self, place: Place) -> None:
        place.files(2)
        assert place.run().code == 0
        place.server.deny.add("ListObjectsV2")
        run = place.run("--verify")
        assert (run.code, "AccessDenied" in run.err) == (2, True)
        status = place.run("--status", to=None)
        assert re.search(r"verification interrupted: .*\n    list .*AccessDenied", status.out)
        assert place.run("--json").json["unchanged"] == 2

    @pytest.mark.parametrize("names_count", [False, True])
    def test_a_digest_of_parts_may_lack_their_number(self, names_count: bool) -> None:
        body, size = os.urandom(11), 4
        parts = [hashlib.sha256(body[at : at + size]).digest() for at in range(0, 11, size)]
        composed = hashlib.sha256(b"".join(parts)).hexdigest() + "-3" * names_count
        inspected = pfu.Inspected(11, "0" * 32 + "-3", composed, {}, 0, size)
        digests = {form: "other" for form, _ in inspected.forms()}
        assert inspected.proves(11, digests.values()) is (False if names_count else None)
        digests[pfu.Form("sha256", size)] = f"{composed.partition('-')[0]}-3"
        assert inspected.proves(11, digests.values()) is True
        assert inspected.clear_sha256 == (composed if names_count else "")

    @pytest.mark.parametrize("has_etag", [False, True])
    def test_an_etag_that_heads_never_tell_is_not_waited_for(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, has_etag: bool
    ) -> None:
        at_hand.file("f")
        assert at_hand.run("--mode", "concurrent").code == 0
        options = pfu.S3Options(endpoint_url=at_hand.endpoint)
        uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", options)
        whole = uploader._head
        if has_etag:
            assert uploader.inspect("p/f")

        def without(key: str, **more: Any) -> Any:
            return {k: v for k, v in (whole(key, **more) or {}).items() if k != "etag"}

        monkeypatch.setattr(uploader, "_head", without)
        with contextlib.closing(uploader):
            if has_etag:
                with pytest.raises(pfu.RetryableError, match="the response was cut off"):
                    uploader.inspect("p/f")
            else:
                assert (told := uploader.inspect("p/f")) and (told.size, told.etag) == (1, "")
