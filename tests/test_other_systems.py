"""Other systems: what Linux has and macOS has not."""

from __future__ import annotations

import os

import pytest

from testing.fixtures import IN_NO_ENVIRONMENT
from testing.jobs import PIECE, s3_job
from testing.place import Place

LACKING = ("preadv", "posix_fadvise", "posix_fallocate", "sched_setaffinity", "pidfd_open")


class TestOtherSystems:
    """What others lack."""

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize("size", [10, 3 * PIECE])
    def test_a_run_where_much_is_lacking(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        for name in LACKING:
            monkeypatch.delattr(os, name, raising=False)
        for name in ("a/f", "b/c/f", "f"):
            at_hand.file(name, os.urandom(size))
        (at_hand.root / "link").symlink_to("f")
        summary = s3_job(at_hand, nice=19).run()
        assert (summary.exit_code, summary.uploaded) == (0, 3), summary
        assert at_hand.stored() == at_hand.local()
        assert s3_job(at_hand).run().unchanged == 3
