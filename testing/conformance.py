"""What every provider has to do: tests for a provider's author, in whatever folder his are."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import pfu
from testing.place import BOTH_MODES, BUCKET, MIB, Place
from testing.server import S3Server


class Conformance:
    """What holds for every Uploader, in both modes; subclasses say how to make and inspect one.

    Each test has a place of its own: `place.root` is the tree that goes up, `place.path` the folder
    that it lies in, with a name that no other test of the process has.
    """

    def uploader(self, place: Place) -> pfu.Uploader:
        """A new one each time, for a destination where no other test stores."""
        raise NotImplementedError

    def stored(self, place: Place) -> dict[str, bytes | None]:
        """All that is at this destination: key, without the uploader's prefix -> bytes."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        """Comes along, so that a subclass needs no conftest.py and no plug-in."""
        with S3Server(buckets=[BUCKET]) as server:
            yield Place(tmp_path, server)

    def job(self, place: Place, mode: str) -> pfu.BatchJobModel:
        options = pfu.RunOptions(mode=mode, workers=2 if mode == "parallel" else 0, nice=0)
        options = dataclasses.replace(options, part_size=5 * MIB)
        return pfu.BatchJobModel(place.root, self.uploader(place), place.path / "l.db", options)

    @BOTH_MODES
    def test_stores_files_of_all_sizes(self, place: Place, mode: str) -> None:
        for size in (0, 1, 5 * MIB, 5 * MIB + 1):
            place.file(f"dir/f{size}", b"z" * size)
        summary = self.job(place, mode).run()
        assert (summary.exit_code, summary.uploaded) == (0, 4), summary
        assert self.stored(place) == place.local()
        assert self.job(place, mode).run().unchanged == 4

    @BOTH_MODES
    def test_stores_again_what_it_has(self, place: Place, mode: str) -> None:
        place.file("f", b"old")
        self.job(place, mode).run()
        place.file("f", b"newer")
        assert self.job(place, mode).run().uploaded == 1
        assert self.stored(place) == {"f": b"newer"}

    def test_can_be_sent_to_another_process(self, place: Place) -> None:
        uploader = self.uploader(place)
        uploader.open(2)
        copy = pickle.loads(pickle.dumps(uploader))
        assert (copy.destination, copy.prefix) == (uploader.destination, uploader.prefix)
        uploader.close()
