"""What is said of objects: options of S3, in both lanes."""

from __future__ import annotations

import os

import pytest

from testing.jobs import checksum_lane
from testing.place import BUCKET, MIB, PART, Place

SAID: list[tuple[str, dict[str, str]]] = [
    ("--storage-class GLACIER_IR", {"x-amz-storage-class": "GLACIER_IR"}),
    ("--sse AES256", {"x-amz-server-side-encryption": "AES256"}),
    (
        "--sse aws:kms --sse-kms-key-id key/1",
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "key/1",
        },
    ),
    ("--cache-control max-age=60,public", {"cache-control": "max-age=60,public"}),
    ("--tag team=a+b/c --tag keep=7y", {"x-amz-tagging": "team=a%2Bb%2Fc&keep=7y"}),
    ("--content-type *=text/x-all --content-type *.md=text/a", {"content-type": "text/x-all"}),
    ("--content-type /d/**=image/x", {"content-type": "image/x"}),
]


class TestObjectOptions:
    """Options of S3."""

    @pytest.mark.parametrize("lane", ["fast", "safe"])
    @pytest.mark.parametrize("options, headers", SAID, ids=[s[0] for s in SAID])
    def test_what_is_said_of_objects(
        self, place: Place, lane: str, options: str, headers: dict[str, str]
    ) -> None:
        place.file("d/small.txt", b"x")
        place.file("d/large.bin", os.urandom(5 * MIB + 1))
        checksum_lane(place, lane)
        run = place.run("--mode", "concurrent", *PART, *options.split(), "--json")
        assert run.code == 0, run.err
        assert run.json["fast_lane"] == (2 if lane == "fast" else 0)
        assert len(place.server.objects(BUCKET)) == 2
        for stored in place.server.objects(BUCKET).values():
            assert headers.items() <= stored.headers.items()

    @pytest.mark.parametrize("lane", ["fast", "safe"])
    def test_the_requester_pays_for_every_request_about_objects(
        self, place: Place, lane: str
    ) -> None:
        place.file("small")
        place.file("large", os.urandom(5 * MIB + 1))
        checksum_lane(place, lane)
        assert place.run("--mode", "concurrent", *PART, "--requester-pays").code == 0
        assert place.run("--verify", "--checksum", "--requester-pays").code == 0
        told = {
            request.operation
            for request in place.server.log
            if request.headers.get("x-amz-request-payer") == "requester"
        }
        assert told >= {"PutObject", "UploadPart", "CompleteMultipartUpload", "ListObjectsV2"}
        silent = {request.operation for request in place.server.log} - told
        assert silent == {"HeadBucket", "GetPublicAccessBlock"}
