"""Large files: parts, faults of parts, sizes at every edge, changes under way."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.jobs import (
    BOTH_LANES,
    IN_PARTS,
    LEAST_PART,
    PIECE,
    Killed,
    Witness,
    assert_all_is_there,
    known_uploads,
    puts_of_parts,
    recorded,
    rewritten,
    run_in_process,
    s3_job,
    shrunk,
    stall,
    touched,
    vanished,
)
from testing.place import (
    BOTH_MODES,
    BUCKET,
    EDGES,
    HOW_REFUSED,
    MIB,
    NEEDS_MOTO,
    PART,
    LaneFault,
    Place,
    assert_accounts,
    rewrite_in_place,
    without_pauses,
)

# ======================================================================================
# Parts
# ======================================================================================


PART_FAULTS = [Action("error", 404, "NoSuchUpload")]


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def overwrite(path: Path) -> None:
    """Other bytes, without being shorter for a moment."""
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


class TestParts:
    """Parts."""

    @pytest.mark.parametrize(
        "mode, lane", [("concurrent", "fast"), ("parallel", "fast"), ("concurrent", "safe")]
    )
    @pytest.mark.parametrize("action", PART_FAULTS, ids=[f"{a.kind} {a.code}" for a in PART_FAULTS])
    def test_faults_of_parts(self, place: Place, mode: str, lane: str, action: Action) -> None:
        place.file("large", os.urandom(11 * MIB))
        if lane == "safe":
            place.server.faults.append(LaneFault(Action("error", 500), operation="UploadPart"))
        place.server.faults.append(Fault(action, operation="UploadPart", times=2))
        run = place.run(
            *PART, "--mode", mode, "--workers", 2 if mode == "parallel" else 1, "--json"
        )
        assert (run.code, run.json["uploaded"]) == (0, 1), run.err
        if lane == "safe":
            assert run.json["fast_lane"] == 0
        assert place.stored() == place.local()
        assert not place.server.uploads(BUCKET)

    @NEEDS_MOTO
    @BOTH_MODES
    def test_motos_server_takes_sizes_at_every_edge(self, place: Place, mode: str) -> None:
        for size in EDGES:
            place.file(f"f{size}", os.urandom(size))
        place.endpoint = ""
        run = place.run(*PART, "--sandbox", "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, len(EDGES)), run.err

    @BOTH_MODES
    def test_sizes_at_every_edge(self, place: Place, mode: str) -> None:
        for size in EDGES:
            place.file(f"f{size}", os.urandom(size))
        sparse = place.file("sparse", b"")
        os.truncate(sparse, 12 * MIB)
        run = place.run(*PART, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"], run.json["fast_lane"]) == (0, 8, 8)
        assert place.stored() == place.local()
        assert place.run(*PART, "--mode", mode, "--json").json["unchanged"] == 8

    def test_a_file_that_grows_large_under_way_goes_up_in_parts(self, place: Place) -> None:
        path = place.file("growing", b"small")
        grow = Action("call", function=lambda: rewrite(path, b"g" * (11 * MIB)))
        place.file("first", b"x")
        place.server.faults.append(Fault(grow, operation="PutObject", key="first"))
        run = place.run(*PART, "--mode", "concurrent", "--concurrency", "1", "--json")
        assert (run.code, run.json["uploaded"]) == (0, 2), run.err
        assert place.stored() == place.local()

    @BOTH_MODES
    def test_a_touch_under_way_sends_no_part_twice(self, place: Place, mode: str) -> None:
        path = place.file("touched", os.urandom(11 * MIB))
        touch = Action("call", function=lambda: os.utime(path, (5, 5)))
        place.server.faults.append(Fault(touch, operation="UploadPart", times=1))
        run = place.run(*PART, "--mode", mode, "--json")
        assert (run.code, run.json["uploaded"]) == (0, 1), run.err
        (stored,) = place.server.objects(BUCKET).values()
        assert stored.headers["x-amz-meta-file-mtime"] == "5000000000ns"
        assert sorted(puts_of_parts(place.server)) == [("p/touched", n) for n in "123"]
        assert place.server.count("CreateMultipartUpload") == 1
        assert place.server.count("CopyObject") == 1
        assert_all_is_there(place)


# ======================================================================================
# Faults
# ======================================================================================


def aborting(place: Place, key: str) -> Action:
    """Someone else aborts the upload of a key."""

    def abort() -> None:
        uploads = vars(place.server.bucket(BUCKET))["uploads"]
        for upload_id in [i for i, upload in uploads.items() if upload.key == key]:
            del uploads[upload_id]

    return Action("call", function=abort)


NO_PART = Action("error", 400, "InvalidPart")
NOT_KNOWN = Action("error", 501, "NotImplemented")
NO_KEY = Action("error", 404, "NoSuchKey")
FORBIDDEN = Action("error", 403, "AccessDenied")


class TestFaults:
    """Faults."""

    def test_faults_of_the_end(self, place: Place) -> None:
        without_pauses(place)
        other = {
            "content-length": "7",
            "etag": '"7"',
            "last-modified": "Sat, 21 Nov 2026 12:00:00 GMT",
        }
        wrong = Action("error", 200, headers=other)
        faults = {
            "error": ("CompleteMultipartUpload", Action("error200"), 2),
            "lost": ("CompleteMultipartUpload", Action("lost_ack"), 1),
            "denied": ("HeadObject", Action("error", 403), None),
            "absent": ("HeadObject", Action("error", 404), None),
            "absent too": ("HeadObject", Action("error", 404), None),
            "wrong": ("HeadObject", wrong, None),
        }
        place.file("smallest", b"proves the store")
        for name, (operation, action, times) in faults.items():
            place.file(name, os.urandom(LEAST_PART + 1))
            place.server.faults.append(Fault(action, operation, f"/{name}$", times))
        run = place.run("--mode", "parallel", *IN_PARTS)
        assert (run.code, run.json["uploaded"]) == (1, 6)
        assert all(fault.applied for fault in place.server.faults)
        note = (
            "large objects could not be checked: the store acknowledged them but does not find them"
        )
        assert run.json["notes"] == [note]
        (failure,) = run.json["failures"]
        assert failure["path"] == str(place.root / "wrong")
        assert failure["reason"].endswith("the store acknowledged it but has something else")
        assert not place.server.uploads(BUCKET)
        assert place.rows("SELECT count(*) n FROM MultipartUpload") == [{"n": 1}]

    @BOTH_LANES
    def test_an_upload_that_is_aborted_under_way_is_begun_anew(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, lane: str
    ) -> None:
        if lane == "safe":
            monkeypatch.setattr(pfu, "client_refusal", lambda client: "the test says so")
        at_hand.file("large", os.urandom(5 * PIECE))
        at_hand.server.faults.append(Fault(aborting(at_hand, "p/large"), "UploadPart", times=1))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1), summary.failures
        assert at_hand.server.faults[0].applied == 1
        assert at_hand.server.count("CreateMultipartUpload") == 2
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize("how", HOW_REFUSED)
    def test_put_object_is_permission_enough_to_complete(self, at_hand: Place, how: str) -> None:
        at_hand.file("large", os.urandom(PIECE + 1))
        refused: set[str] = getattr(at_hand.server, how)
        refused |= {"HeadObject", "ListParts"}
        at_hand.server.faults.append(Fault(Action("lost_ack"), "CompleteMultipartUpload", times=1))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (0, 1)
        assert [note.partition(":")[0] for note in summary.notes] == [
            "cannot check what was stored"
        ]
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize("kind", ["lost_ack", "half_headers", "half_body", "garbage"])
    def test_an_upload_that_was_begun_without_a_word_costs_no_part(
        self, at_hand: Place, kind: str
    ) -> None:
        at_hand.file("large", os.urandom(PIECE + 1))
        at_hand.server.faults.append(Fault(Action(kind), "CreateMultipartUpload", times=1))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded, summary.notes) == (0, 1, [])
        assert_all_is_there(at_hand)

    @pytest.mark.parametrize(
        "refusal", [NO_PART, NOT_KNOWN, NO_KEY, FORBIDDEN], ids=lambda a: a.code
    )
    def test_what_cannot_be_aborted_is_told_and_stops_nothing(
        self, at_hand: Place, refusal: Action
    ) -> None:
        """What was begun with another storage class cannot be completed as it should be."""
        for name in ("changed", "gone"):
            at_hand.file(name, os.urandom(3 * PIECE))
        with pytest.raises(Killed):
            at_hand.server.faults.append(stall(1))
            begun = "SELECT 1 FROM MultipartUpload"
            s3_job(at_hand, Witness(lambda: len(at_hand.rows(begun)) == 2)).run()
        at_hand.server.faults.clear()
        first = {upload.key: upload.upload_id for upload in at_hand.server.uploads(BUCKET).values()}
        assert {"p/changed", "p/gone"} == set(first)
        rewrite_in_place(at_hand.root / "changed")
        (at_hand.root / "gone").unlink()
        at_hand.server.faults.append(Fault(refusal, "AbortMultipartUpload"))
        summary = s3_job(at_hand, storage_class="STANDARD_IA").run()
        assert (summary.exit_code, summary.failures) == (0, [])
        assert at_hand.stored() == at_hand.local()
        told = [note for note in summary.notes if "an unfinished upload may remain: abort" in note]
        assert {key for key in first if any(f"/{key}:" in note for note in told)} == set(first)
        assert known_uploads(at_hand) == {
            first["p/gone"]
        }  # the other one's row is that of the new one
        at_hand.server.faults.clear()
        assert s3_job(at_hand).run().exit_code == 0
        assert first["p/gone"] not in at_hand.server.uploads(BUCKET)


# ======================================================================================
# Edges, and files that do not hold still
# ======================================================================================


class TestEdges:
    """Edges, and files that do not hold still."""

    @pytest.mark.parametrize(
        "size, wanted, expected",
        [
            (0, 1, LEAST_PART),
            (1, LEAST_PART, LEAST_PART),
            (10_000 * LEAST_PART, LEAST_PART, LEAST_PART),
            (10_000 * LEAST_PART + 1, LEAST_PART, LEAST_PART + 1),
            (10_000 * LEAST_PART + 10_000, LEAST_PART, LEAST_PART + 1),
            (10_000 * LEAST_PART + 10_001, LEAST_PART, LEAST_PART + 2),
            (1 << 40, 8 * MIB, -(-(1 << 40) // 10_000)),
            (10_000 * 5 * pfu.GIB - 10_000, LEAST_PART, 5 * pfu.GIB - 1),
            (10_000 * 5 * pfu.GIB - 9_999, LEAST_PART, 5 * pfu.GIB),
            (10_000 * 5 * pfu.GIB, LEAST_PART, 5 * pfu.GIB),
            (1, 5 * pfu.GIB, 5 * pfu.GIB),
        ],
    )
    def test_ten_thousand_parts_suffice(self, size: int, wanted: int, expected: int) -> None:
        assert pfu.part_size_for(size, wanted) == expected
        assert pfu.MAX_OBJECT_SIZE == 10_000 * 5 * pfu.GIB

    def test_a_file_that_no_store_can_hold_is_refused(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pfu, "MAX_OBJECT_SIZE", 2 * PIECE)
        at_hand.file("fits", bytes(2 * PIECE))
        at_hand.file("too large", bytes(2 * PIECE + 1))
        later = at_hand.file("too large later", bytes(PIECE + 1))
        grow = Action("call", function=lambda: os.truncate(later, 3 * PIECE))
        at_hand.server.faults.append(Fault(grow, "HeadBucket"))
        summary = s3_job(at_hand).run()
        assert (summary.exit_code, summary.uploaded) == (1, 1)
        reasons = {failure["path"]: failure["reason"] for failure in summary.failures}
        assert list(map(os.path.basename, sorted(reasons))) == ["too large", "too large later"]
        assert all(f"bytes long, S3 allows {2 * PIECE}" in reason for reason in reasons.values())
        keys = {r.key for r in at_hand.server.log if pfu.IMPOSSIBLE_KEY not in r.key}
        assert keys == {"", "p/fits"}

    def test_files_that_change_between_scan_and_read(self, place: Place) -> None:
        grows, shrinks, empties, vanishes, becomes_fifo = (
            place.file(name, os.urandom(size))
            for name, size in (
                ("grows", 100),
                ("shrinks", 11 * MIB),
                ("empties", 11 * MIB),
                ("vanishes", 11 * MIB),
                ("becomes a FIFO", 11 * MIB),
            )
        )

        def change() -> None:
            grows.write_bytes(os.urandom(11 * MIB))
            shrinks.write_bytes(os.urandom(LEAST_PART + 1))
            empties.write_bytes(b"")
            vanishes.unlink()
            becomes_fifo.unlink()
            os.mkfifo(becomes_fifo)

        place.server.faults.append(Fault(Action("call", function=change), "HeadBucket", times=1))
        run = place.run("--mode", "concurrent", *IN_PARTS)
        assert (run.code, run.err, run.json["uploaded"]) == (0, "", 3)
        assert run.json["skipped_by_reason"] == {"vanished": 2}
        assert_accounts(run.json)
        assert_all_is_there(place)
        assert len(place.server.objects(BUCKET)["p/grows"].parts) == 3
        puts = [request.key for request in place.server.log if request.operation == "PutObject"]
        assert "p/grows" not in puts

    def test_files_that_change_while_their_parts_go_up(self, place: Place) -> None:
        """Where only times move no part goes twice; bytes that move each time fail the file."""
        names = ("touched", "rewritten", "grows", "vanishes", "touchy", "restless")
        paths = {name: place.file(name, os.urandom(LEAST_PART + 1)) for name in names}
        changes: dict[str, Callable[[], Any]] = {
            "touched": lambda: os.utime(paths["touched"]),
            "rewritten": lambda: rewrite_in_place(paths["rewritten"]),
            "grows": lambda: paths["grows"].write_bytes(os.urandom(11 * MIB)),
            "vanishes": paths["vanishes"].unlink,
        }
        for name, change in changes.items():
            once = Action("call", function=change)
            place.server.faults.append(Fault(once, "UploadPart", f"/{name}$", times=1))
        restless: dict[str, Callable[[], Any]] = {
            "touchy": lambda: os.utime(paths["touchy"]),
            "restless": lambda: overwrite(paths["restless"]),
        }
        for name, change in restless.items():
            always = Action("call", function=change)
            place.server.faults.append(Fault(always, "UploadPart", f"/{name}$"))
        run = place.run("--mode", "parallel", *IN_PARTS)
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (1, 4, 1)
        assert run.json["skipped_by_reason"] == {"vanished": 1}
        assert_accounts(run.json)
        (failure,) = run.json["failures"]
        assert failure["reason"] == f"read {paths['restless']}: it changed while being read"
        begun = Counter(r.key for r in place.server.log if r.operation == "CreateMultipartUpload")
        assert begun == {f"p/{name}": 1 for name in names}
        sent = Counter(key[2:] for key, _ in puts_of_parts(place.server))
        assert (sent["touched"], sent["touchy"]) == (2, 2)
        assert 2 < sent["rewritten"] <= 4
        assert 3 < sent["grows"] <= 5
        assert 2 < sent["restless"] <= 2 * 2 * pfu.READ_ATTEMPTS
        assert_all_is_there(place, "restless")
        place.server.faults.clear()
        again = place.run("--mode", "parallel", *IN_PARTS)
        assert (again.code, again.json["uploaded"], again.json["unchanged"]) == (0, 1, 4)
        assert_all_is_there(place)

    @pytest.mark.parametrize(
        "operation, change, sent, copies",
        [
            ("CreateMultipartUpload", touched, 3, 1),
            ("CreateMultipartUpload", rewritten, 3, 0),
            ("CreateMultipartUpload", shrunk, 1, 1),
            ("CreateMultipartUpload", vanished, 0, 0),
            ("CompleteMultipartUpload", touched, 3, 1),
            ("CompleteMultipartUpload", rewritten, 6, 0),
            ("CompleteMultipartUpload", shrunk, 3, 0),
        ],
    )
    def test_a_file_that_changes_while_the_store_answers(
        self,
        at_hand: Place,
        operation: str,
        change: Callable[[Place], None],
        sent: int,
        copies: int,
    ) -> None:
        at_hand.file("other")
        at_hand.file("large", os.urandom(3 * PIECE))
        once = Action("call", function=lambda: change(at_hand))
        at_hand.server.faults.append(Fault(once, operation, times=1))
        for _ in range(2):
            assert s3_job(at_hand).run().exit_code == 0
        assert_all_is_there(at_hand)
        assert at_hand.server.acknowledged("UploadPart") == sent
        assert at_hand.server.count("CopyObject") == copies


# ======================================================================================
# Progress within one file
# ======================================================================================


class TestProgress:
    """Progress within one file."""

    def test_progress_moves_within_one_file(self, place: Place) -> None:
        place.file("large", os.urandom(20 * MIB))
        place.server.faults.append(
            Fault(Action("slow", seconds=0.2), operation="UploadPart", times=None)
        )
        seen = set()

        class Watcher(pfu.Observer):
            def progress(self, progress: pfu.Progress) -> None:
                seen.add(progress.bytes)

        assert run_in_process(place, Watcher()).exit_code == 0
        assert {5 * MIB, 10 * MIB, 20 * MIB} <= seen

    def test_progress_within_one_large_file(self, at_hand: Place) -> None:
        at_hand.file("large", os.urandom(4 * PIECE))
        at_hand.server.faults.append(stall(2))
        first, second = Witness(lambda: recorded(at_hand) == 2), Witness()
        with pytest.raises(Killed):
            s3_job(at_hand, first).run()
        assert [size for size in first.sizes if 0 < size < 4 * PIECE]
        assert set(first.sizes_to_upload) == {4 * PIECE}
        at_hand.server.faults[:] = [Fault(Action("slow", seconds=0.1), "UploadPart")]
        assert s3_job(at_hand, second, concurrency=1).run().exit_code == 0
        assert second.sizes_to_upload[-1] == 2 * PIECE
        assert second.sizes == sorted(second.sizes)
        assert set(second.sizes) == {0, PIECE, 2 * PIECE}
