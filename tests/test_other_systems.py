"""Other systems: what Linux has and others have not."""

from __future__ import annotations

import os
import sys

import pytest

import pfu
from testing.fixtures import IN_NO_ENVIRONMENT
from testing.jobs import PIECE, s3_job
from testing.place import Place

LACKING = ("pread", "preadv", "nice", "getsid", "sysconf")


class TestOtherSystems:
    """What others lack."""

    @IN_NO_ENVIRONMENT
    @pytest.mark.parametrize("size", [10, 3 * PIECE])
    def test_a_run_where_much_is_lacking(
        self, at_hand: Place, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        for name in LACKING:
            monkeypatch.delattr(os, name, raising=False)
        monkeypatch.setattr(pfu, "HAS_PREADV", False)
        monkeypatch.setattr(pfu, "HAS_DIR_FD", False)
        monkeypatch.setattr(pfu, "NO_FOLLOW", 0)
        monkeypatch.setitem(sys.modules, "resource", None)
        for name in ("a/f", "b/c/f", "f"):
            at_hand.file(name, os.urandom(size))
        (at_hand.root / "link").symlink_to("f")
        summary = s3_job(at_hand, nice=19).run()
        assert (summary.exit_code, summary.uploaded) == (0, 3), summary
        assert at_hand.stored() == at_hand.local()
        assert s3_job(at_hand).run().unchanged == 3
