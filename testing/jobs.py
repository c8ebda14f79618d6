"""Runs in this process: jobs to the place's server, how they end, what has to be there after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import BUCKET, KIB, LONG_AGO, MIB, PART, LaneFault, Place, rewrite_in_place
from testing.protocol import Request
from testing.server import S3Server
from testing.store import StoredUpload
from testing.uploaders import FolderUploader


def run_within(place: Place, **options: Any) -> pfu.Summary:
    """A run in this process, with a provider that needs no network."""
    settings = pfu.RunOptions(mode="concurrent", nice=0, part_size=5 * MIB, **options)
    uploader = FolderUploader(place.path / "store")
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings).run()


def puts_of_parts(server: S3Server, after: int = 0) -> list[tuple[str, str]]:
    """Key and number of each part that was acknowledged, in order, after so many requests."""
    return [
        (request.key, request.query["partNumber"])
        for request in server.log[after:]
        if request.operation == "UploadPart" and request.acknowledged
    ]


def run_broken_off(place: Place, parts: int, *arguments: str) -> int:
    """A run that ends once so many parts were acknowledged. Returns how many requests it made."""
    denied = Fault(Action("error", 403, "AccessDenied"), operation="UploadPart", after=parts)
    place.server.faults.append(denied)
    run = place.run(*PART, "--concurrency", "1", *arguments)
    assert run.code == 1, run.err
    place.server.faults.clear()
    return len(place.server.log)


def run_in_process(place: Place, observer: pfu.Observer | None = None) -> pfu.Summary:
    """A run to the server, in this process."""
    os.environ.update(place.server.environment())
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", pfu.S3Options(endpoint_url=place.endpoint))
    options = pfu.RunOptions(mode="concurrent", nice=0, part_size=5 * MIB, concurrency=1)
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", options, observer).run()


class ChecksumFault(Fault):
    """A store that does not know checksums."""

    def _concerns(self, request: Request) -> bool:
        names = {"x-amz-checksum-sha256", "x-amz-checksum-algorithm"}
        has_one = names & request.headers.keys() or b"ChecksumSHA256" in request.body
        return bool(has_one) and super()._concerns(request)


class AsksForMd5(Fault):
    """A bucket with Object Lock, of an older store."""

    def _concerns(self, request: Request) -> bool:
        return "content-md5" not in request.headers and super()._concerns(request)


WANTS_MD5 = Action(
    "error",
    400,
    "InvalidRequest",
    "Content-MD5 HTTP header is required for Put Object requests with Object Lock",
)


def checksum_lane(place: Place, lane: str) -> None:
    if lane == "safe":
        place.server.faults.append(LaneFault(Action("error", 500)))


def base64_checksums(place: Place) -> dict[str, str]:
    """By key below the prefix; of an object in parts what its parts came with."""
    objects = place.server.objects(BUCKET).items()
    return {
        key[2:]: ",".join(part.checksum for part in stored.parts)
        or stored.headers.get("x-amz-checksum-sha256", "")
        for key, stored in objects
    }


LEAST_PART = 5 * MIB
PIECE = 512 * KIB
IN_PARTS = ("--part-size", "5M", "--json")


def stall(after: int, operation: str = "UploadPart", key: str | None = None) -> Fault:
    """Lets so many requests pass and answers no further one."""
    return Fault(Action("slow", seconds=60), operation, key, after=after)


def s3_job(
    place: Place, observer: pfu.Observer | None = None, storage_class: str = "", **options: Any
) -> pfu.BatchJobModel:
    """A run in this process, to the place's own server."""
    s3 = pfu.S3Options(endpoint_url=place.endpoint, storage_class=storage_class or None)
    settings = pfu.RunOptions(**{"mode": "concurrent", "nice": 0, "part_size": PIECE, **options})
    uploader = pfu.S3Uploader(f"s3://{BUCKET}/p", s3)
    return pfu.BatchJobModel(place.root, uploader, place.path / "pfu.db", settings, observer)


SENDING = {
    *("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("AbortMultipartUpload", "CopyObject", "UploadPartCopy", "GetObject"),
}


def visit(place: Place, *arguments: Any, code: int = 0, **options: Any) -> tuple[Any, Counter[str]]:
    """A run: what it says in JSON, and how often it asked the store to take or give something."""
    before = len(place.server.log)
    run = place.run(*arguments, "--json", **options)
    assert run.code == code, (run.err, run.out)
    operations = (request.operation for request in place.server.log[before:])
    return run.json, Counter(operation for operation in operations if operation in SENDING)


def recorded(place: Place) -> int:
    return len(place.rows("SELECT id FROM Part"))


class Killed(BaseException):
    """Ends a run as SIGKILL would: it writes nothing more."""


class Witness(pfu.Observer):
    """Keeps what it is told; ends the run when it is to."""

    def __init__(self, is_to_end: Callable[[], bool] = lambda: False) -> None:
        self.is_to_end = is_to_end
        self.deadline = time.monotonic() + 30
        self.sizes: list[int] = []
        self.sizes_to_upload: list[int] = []

    def progress(self, progress: pfu.Progress) -> None:
        self.sizes.append(progress.bytes)
        self.sizes_to_upload.append(progress.bytes_to_upload)
        assert time.monotonic() < self.deadline
        if self.is_to_end():
            raise Killed


def killed(
    place: Place, parts: int, *faults: Fault, **options: Any
) -> Counter[tuple[str, str, int]]:
    """Have a run killed once so many parts are recorded; returns the parts acknowledged."""
    place.server.faults += faults or [stall(parts)]
    with pytest.raises(Killed):
        s3_job(place, Witness(lambda: recorded(place) >= parts), **options).run()
    place.server.faults.clear()
    before: Counter[tuple[str, str, int]] | None = None
    while before != (acknowledged := place.server.part_acknowledgements(BUCKET)):
        before = acknowledged
        time.sleep(0.05)  # the server is still busy with what it got
    return acknowledged


def assert_all_is_there(place: Place, *failed: str) -> None:
    """The store has the very files with their metadata, and nothing else unfinished is left.

    But for uploads without parts: the answer with their id was lost, or nobody lived to read it.
    """
    objects = {key[2:]: stored for key, stored in place.server.objects(BUCKET).items()}
    local = {key: hashlib.sha256(body).hexdigest() for key, body in place.local().items()}
    for name in failed:
        del local[name]
    assert {key: stored.sha256 for key, stored in objects.items()} == local
    rows = place.rows("SELECT * FROM FileStat WHERE status = 2")
    assert len(rows) == len(local) == len(place.rows()) - len(failed)
    for row in rows:
        stored, status = objects[row["object_key"][2:]], os.stat(pfu.python_path(row["file_path"]))
        assert row["etag"] == stored.etag
        assert row["sha256"] == stored.digest(row["part_size"])
        assert row["stale"] is None
        assert (row["uid"], row["gid"]) == (status.st_uid, status.st_gid)
        assert stored.headers["x-amz-meta-uid"] == str(status.st_uid)
        assert stored.headers["x-amz-meta-gid"] == str(status.st_gid)
        assert stored.headers["x-amz-meta-file-size"] == str(status.st_size)
        assert stored.headers["x-amz-meta-file-mtime"] == f"{status.st_mtime_ns}ns"
        assert stored.headers["x-amz-meta-mode"] == f"0{status.st_mode:o}"
    kept = {f"p/{name}" for name in failed}  # what the store has of these is kept
    left = [upload for upload in place.server.uploads(BUCKET).values() if upload.key not in kept]
    assert not any(upload.parts for upload in left)
    rows = place.rows("SELECT id FROM MultipartUpload")
    assert len(rows) <= len(kept)


def touched(place: Place) -> None:
    os.utime(place.root / "large", (LONG_AGO + 1, LONG_AGO + 1))


def shrunk(place: Place) -> None:
    place.file("large", b"small")


def rewritten(place: Place) -> None:
    rewrite_in_place(place.root / "large")


def upload_of(place: Place) -> StoredUpload:
    bucket = place.server.bucket(BUCKET)
    assert bucket
    (upload,) = bucket.uploads.values()
    return upload


def vanished(place: Place) -> None:
    (place.root / "large").unlink()


def aborted(place: Place) -> None:
    vars(place.server.bucket(BUCKET))["uploads"].clear()


def no_list(place: Place) -> None:
    place.server.deny.add("ListParts")


BOTH_LANES = pytest.mark.parametrize("lane", ["fast", "safe"])


def known_uploads(place: Place) -> set[str]:
    rows = place.rows("SELECT upload_id FROM MultipartUpload")
    return {pfu.UploadHandle.read(row["upload_id"]).upload_id for row in rows}


def job_within(place: Place, observer: pfu.Observer | None = None, **options: Any) -> Any:
    """A run in this process, with a provider that needs no network."""
    settings = pfu.RunOptions(**{"mode": "concurrent", "nice": 0, **options})
    uploader = FolderUploader(place.path / "store")
    return pfu.BatchJobModel(place.root, uploader, place.path / "l.db", settings, observer)


def open_below(directory: Path) -> list[str]:
    """What this process holds open of it."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if Path(name).is_relative_to(directory)]


def replace_root(place: Place) -> None:
    place.root.rename(place.path / "was")
    place.root.mkdir()
