"""As a library: options that make no sense, and what a caller gets."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import pfu
from testing.jobs import run_within, s3_job
from testing.place import BUCKET, Place, closed_port

NONSENSE: list[tuple[type, dict[str, Any], str]] = [
    (pfu.RunOptions, {"mode": "nonsense"}, "--mode must be one of parallel, concurrent"),
    (pfu.RunOptions, {"workers": -3}, "--workers must be between 1 and 256"),
    (pfu.RunOptions, {"workers": 2.5}, "--workers must be between 1 and 256"),
    (pfu.RunOptions, {"concurrency": -1}, "--concurrency must be between 1 and 4096"),
    (pfu.RunOptions, {"concurrency": "8"}, "--concurrency must be between 1 and 4096"),
    (pfu.RunOptions, {"part_size": 1}, "--part-size must be between 5 MiB and 5 GiB"),
    (pfu.RunOptions, {"max_memory": 0}, "--max-memory must be at least 10M"),
    (pfu.RunOptions, {"bwlimit": -1}, "--bwlimit is less than 1K per second"),
    (pfu.RunOptions, {"max_duration": -1.0}, "--max-duration must not be negative"),
    (pfu.RunOptions, {"max_duration": float("nan")}, "--max-duration must not be negative"),
    (pfu.RunOptions, {"patience": "5m"}, "--patience must not be negative"),
    (pfu.RunOptions, {"nice": 99}, "--nice must be between 0 and 19"),
    (pfu.RunOptions, {"keep_history": -1.0}, "--keep-history must not be negative"),
    (pfu.ScanOptions, {"min_age": -1.0}, "--min-age must not be negative"),
    (pfu.ScanOptions, {"max_age": 1.0, "min_age": 2.0}, "--max-age is less than --min-age"),
    (pfu.ScanOptions, {"min_size": -1}, "--min-size must not be negative"),
    (pfu.ScanOptions, {"max_size": -2}, "--max-size is less than --min-size"),
    (pfu.ScanOptions, {"links": True, "follow_symlinks": True}, "--links cannot be combined"),
    (pfu.ScanOptions, {"shard": pfu.Shard(3, 2)}, "--shard does not exist"),
    (pfu.S3Options, {"endpoint_url": "nonsense"}, "the endpoint is not an http:// or https:// URL"),
    (pfu.S3Options, {"sse": "rot13"}, "--sse must be AES256 or aws:kms"),
    (pfu.S3Options, {"sse_kms_key_id": "k"}, "--sse-kms-key-id requires --sse aws:kms"),
    (pfu.S3Options, {"storage_class": "a\nb"}, "--storage-class contains characters not allowed"),
    (pfu.S3Options, {"cache_control": "\u20ac"}, "--cache-control is not a valid header value"),
    (pfu.S3Options, {"tags": (("", "v"),)}, "--tag must be K=V"),
    (pfu.S3Options, {"tags": (("k", "1"), ("k", "2"))}, "--tag has the same key twice"),
    (pfu.S3Options, {"tags": "k=v"}, "--tag must be K=V"),
    (
        pfu.S3Options,
        {"expected_bucket_owner": "a-b"},
        "--expected-bucket-owner is not an account ID",
    ),
]


class TestLibrary:
    """What a program gets that calls pfu."""

    @pytest.mark.parametrize("kind, fields, says", NONSENSE)
    def test_options_that_make_no_sense(
        self, kind: type, fields: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(pfu.PfuError) as caught:
            kind(**fields)
        assert str(caught.value).startswith(says)
        assert caught.value.exit_code == pfu.ExitCode.CANNOT_START

    def test_the_command_line_has_all_that_is_declared(self) -> None:
        """And messages about options name those that there are."""
        declared = [about.name_of(name) for name, about in pfu.COMMAND_OPTIONS]
        for kind in (pfu.S3Options, pfu.ScanOptions, pfu.RunOptions):
            declared += [about.name_of(name) for name, about in pfu.options_of(kind).items()]
        listed = " ".join(pfu.GROUPS.values()).split()
        assert sorted(listed) == sorted(declared)
        for faults in (pfu.S3_FAULTS, pfu.SCAN_FAULTS, pfu.RUN_FAULTS, pfu.COMMAND_FAULTS):
            for told in faults:
                assert set(re.findall(r"--([a-z0-9-]+)", told)) <= set(listed), told

    def test_a_run_whose_store_is_down_says_so(self, at_hand: Place) -> None:
        at_hand.file("f")
        closed_port(at_hand)
        summary = s3_job(at_hand, patience=0.0).run()
        assert (summary.exit_code, summary.status) == (2, "interrupted")
        assert str(summary.error).startswith(f"find bucket {BUCKET}: Could not connect")
        with pytest.raises(pfu.PfuError) as caught:
            pfu.BatchJobModel(at_hand.root / "none", pfu.S3Uploader(f"s3://{BUCKET}")).run()
        assert caught.value.exit_code == 2

    def test_a_run_within_a_coroutine(self, place: Place) -> None:
        """It would block the loop; it needs one of its own."""
        place.files(3)

        async def block() -> pfu.Summary:
            return run_within(place)

        async def wait() -> pfu.Summary:
            return await asyncio.get_running_loop().run_in_executor(None, run_within, place)

        summary = asyncio.run(block())
        assert (summary.exit_code, summary.pending, summary.failed) == (2, 3, 0)
        told = "start event loop: this thread runs one already (call run() in a thread of its own)"
        assert summary.error == told
        summary = asyncio.run(wait())
        assert (summary.exit_code, summary.uploaded) == (0, 3)

    def test_a_provider_without_a_fast_lane_is_not_said_to_have_none(self, place: Place) -> None:
        place.files(3)
        summary = run_within(place)
        assert (summary.exit_code, summary.uploaded) == (0, 3)
        assert "fast lane" not in str(list(pfu.summary_lines(summary)))
