"""Integrity: the store keeps the digest of what it has."""

from __future__ import annotations

import hashlib
import os

import pytest

from testing.faults import Action, Fault
from testing.jobs import ChecksumFault, base64_checksums, checksum_lane
from testing.place import BOTH_MODES, BUCKET, MIB, PART, Place
from testing.protocol import encode64


def checksums_of(place: Place) -> dict[str, str]:
    cut = {"large": (0, 5 * MIB, 10 * MIB)}
    return {
        key: ",".join(
            encode64(
                hashlib.sha256(
                    body[start : start + 5 * MIB] if start or key == "large" else body
                ).digest()
            )
            for start in cut.get(key, (0,))
        )
        for key, body in place.local().items()
    }


class TestChecksums:
    """Checksums that the store keeps."""

    @BOTH_MODES
    @pytest.mark.parametrize("lane", ["fast", "safe"])
    def test_objects_and_parts_are_stored_with_their_sha256(
        self, place: Place, mode: str, lane: str
    ) -> None:
        place.files(12)
        place.file("large", os.urandom(11 * MIB))
        checksum_lane(place, lane)
        run = place.run("--mode", mode, *PART, "--json")
        assert (run.code, run.err, run.json["notes"]) == (0, "", [])
        assert run.json["fast_lane"] == (13 if lane == "fast" else 0)
        assert base64_checksums(place) == checksums_of(place)
        assert all("x-amz-trailer" not in request.headers for request in place.server.log)
        place.check_ledger_is_honest()

    @pytest.mark.parametrize(
        "mode, lane, status, code",
        [
            ("concurrent", "fast", 400, "InvalidArgument"),
            ("concurrent", "safe", 501, "NotImplemented"),
            ("parallel", "fast", 403, "SignatureDoesNotMatch"),
            ("parallel", "safe", 400, "InvalidArgument"),
            ("concurrent", "safe", 400, "SignatureDoesNotMatch"),
            ("parallel", "fast", 501, "NotImplemented"),
        ],
    )
    def test_one_refusal_ends_checksums_for_the_run(
        self, place: Place, mode: str, lane: str, status: int, code: str
    ) -> None:
        place.files(40)
        place.file("large", os.urandom(11 * MIB))
        fault = ChecksumFault(Action("error", status, code, "x-amz-checksum-sha256 is not known"))
        place.server.faults.append(fault)
        checksum_lane(place, lane)
        run = place.run("--mode", mode, *PART, "--json")
        assert (run.code, run.json["uploaded"], run.json["failed"]) == (0, 41, 0), run.err
        assert len(run.json["notes"]) == 1
        assert "this store refuses x-amz-checksum-sha256" in run.json["notes"][0]
        assert fault.applied >= 1
        assert set(base64_checksums(place).values()) <= {"", ",,"}
        assert place.stored() == place.local()
        if lane == "fast":
            assert run.json["fast_lane_off"] is None
        assert not place.server.uploads(BUCKET)

    @pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
    def test_a_store_that_takes_checksums_only_at_first(self, place: Place, operation: str) -> None:
        place.file("large", os.urandom(11 * MIB))
        place.server.faults.append(ChecksumFault(Action("error", 400, "InvalidRequest"), operation))
        run = place.run("--mode", "concurrent", *PART, "--json")
        if operation == "UploadPart":  # a store that was promised digests and gets none refuses
            assert run.code == 1
            assert "InvalidRequest" in run.err
        place.server.faults.clear()
        assert place.run("--mode", "concurrent", *PART).code == 0
        assert place.stored() == place.local()
        assert not place.server.uploads(BUCKET)

    def test_an_upload_that_was_begun_before_the_checksum_was_refused(
        self,
        place: Place,
    ) -> None:
        place.file("large", os.urandom(6 * MIB))
        place.server.faults += [
            Fault(Action("lost_ack"), "CreateMultipartUpload", times=1),
            ChecksumFault(Action("error", 501, "NotImplemented"), "CreateMultipartUpload"),
        ]
        assert place.run("--mode", "concurrent", *PART).code == 0
        assert place.stored() == place.local()
        assert not any(upload.parts for upload in place.server.uploads(BUCKET).values())

    def test_a_refusal_for_another_reason_leaves_checksums_on(self, place: Place) -> None:
        place.files(5)
        place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="f00003"))
        run = place.run("--mode", "concurrent", "--json")
        assert (run.code, run.json["failed"], run.json["notes"]) == (1, 1, [])
        assert all(base64_checksums(place).values())

    def test_what_was_begun_without_checksums_goes_on_without(self, place: Place) -> None:
        place.file("large", os.urandom(16 * MIB))
        place.server.faults += [
            ChecksumFault(Action("error", 501, "NotImplemented"), "CreateMultipartUpload"),
            Fault(Action("error", 403, "AccessDenied"), "UploadPart", after=2),
        ]
        assert place.run("--mode", "concurrent", *PART).code == 1
        begun = set(place.server.uploads(BUCKET))
        place.server.faults.clear()
        assert place.run("--mode", "concurrent", *PART).code == 0
        assert {r.query["uploadId"] for r in place.server.log if "uploadId" in r.query} == begun
        assert place.stored() == place.local()
