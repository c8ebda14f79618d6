"""Real stores: what pfu says is what another client reads back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, cast

import pytest

from testing.peers import entries, needs_peers, peer, restorable
from testing.place import BOTH_MODES, BUCKET, LONG_AGO, MIB, ODD_NAMES, PART, Place
from testing.realstores import STORES, RealStore, Running


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            store,
            id=store.name,
            marks=[
                pytest.mark.xdist_group(store.name),
                pytest.mark.skipif(not store.is_here, reason="PFU_TEST_STORES: it is not there"),
            ],
        )
        for store in STORES
    ],
)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RealStore, Running]]:
    store: RealStore = request.param
    with store.running(tmp_path_factory.mktemp(store.name)) as running:
        yield store, running


class RealPlace(Place):
    """Where pfu is run against a real store, and judged."""

    def __init__(self, path: Path, store: RealStore, running: Running, mode: str) -> None:
        super().__init__(path, cast(Any, running))
        self.store, self.running, self.mode = store, running, mode
        self.client = running.client()
        self.to = f"s3://{BUCKET}/{path.name}"

    def upload(self, *arguments: object, code: int = 0) -> Any:
        run = self.run("--mode", self.mode, "--json", *arguments, to=self.to)
        assert run.code == code, (run.err, run.out)
        assert "internal error: " not in run.err
        return run.json

    def read(self, key: str) -> bytes | None:
        """What another client is given."""
        try:
            answer = self.client.get_object(Bucket=BUCKET, Key=f"{self.path.name}/{key}")
        except self.client.exceptions.NoSuchKey:
            return None
        body: bytes = answer["Body"].read()
        return body

    def judge(self) -> int:
        """What the ledger says of each file is what another client reads; how many are there."""
        local, rows = self.local(), self.rows()
        claimed = {row["object_key"]: row for row in rows if row["status"] == 2}
        for key, content in local.items():
            if f"{self.path.name}/{key}" in claimed:
                assert self.read(key) == content, key
        return sum(f"{self.path.name}/{key}" in claimed for key in local)


@pytest.fixture
def place(tmp_path: Path, real: tuple[RealStore, Running], mode: str) -> RealPlace:
    return RealPlace(tmp_path, *real, mode)


def odd_tree(place: Place) -> None:
    for name in ODD_NAMES:
        place.file(os.path.join(b"d", os.fsencode(name)), os.fsencode(name) * 3)
    place.file("/".join(f"d{number}" for number in range(20)) + "/deep", b"deep")
    place.file("empty", b"")
    place.file("large", os.urandom(16 * MIB))
    for number in range(50):
        place.file(f"f{number}", b"x" * number * 50)


def assert_counts(summary: Any, **wanted: int) -> None:
    """These, and all others are none."""
    names = "uploaded", "unchanged", "renewed", "skipped", "failed", "pending"
    counts = {name: summary[name] for name in names if name in summary}
    assert counts == {**dict.fromkeys(counts, 0), **wanted}, summary


def is_settled(place: RealPlace, files: int) -> bool:
    """Whether so many files are in the ledger as uploaded, or soon will be."""
    with contextlib.suppress(sqlite3.OperationalError):  # not made yet
        settled = place.rows("SELECT 1 FROM FileStat WHERE status = 2")
        return len(settled + place.rows("SELECT 1 FROM Outcome")) >= files
    return False


FILES = 53 + len(ODD_NAMES)
MANY = 600


@BOTH_MODES
class TestStores:
    """One table for all."""

    def test_a_tree_and_back(self, place: RealPlace) -> None:
        odd_tree(place)
        first = place.upload(*PART)
        assert_counts(first, uploaded=FILES)
        assert first["requests"] <= FILES + 25
        assert first["fast_lane"] == FILES
        dropped = [note for note in first["notes"] if "drops metadata" in note]
        assert bool(dropped) != place.store.keeps_metadata
        assert place.judge() == FILES
        again = place.upload(*PART)
        assert_counts(again, unchanged=FILES)
        assert again["requests"] == 0
        for options in ["--verify"], ["--verify", "--checksum"]:
            assert place.upload(*options)["verified"] == FILES

        place.file("f5", b"changed", LONG_AGO + 1)
        (place.root / "f6").unlink()
        (place.root / "f9").chmod(0o600)
        (place.root / "large").chmod(0o600)
        changed = place.upload(*PART)
        assert_counts(changed, uploaded=3, renewed=2, unchanged=FILES - 4)
        assert changed["bytes_uploaded"] == 7 + 450
        assert place.judge() == FILES - 1
        assert place.read("f6") is not None

    def test_a_lost_ledger(self, place: RealPlace) -> None:
        odd_tree(place)
        place.upload(*PART)
        (place.path / "pfu.db").unlink()
        told = place.upload("--verify", code=0 if place.store.keeps_metadata else 1)
        if not place.store.keeps_metadata:
            assert "--verify --checksum reads them back" in told["notes"][0]
            told = place.upload("--verify", "--checksum")
        assert (told["adopted"], told["verified"]) == (FILES, FILES)
        assert place.judge() == FILES
        again = place.upload(*PART)
        renewed = 0 if place.store.keeps_metadata else FILES
        assert_counts(again, unchanged=FILES - renewed, uploaded=renewed, renewed=renewed)
        assert again["bytes_uploaded"] < MIB
        place.file("f7", b"x" * 350, LONG_AGO + 1)
        place.client.put_object(Bucket=BUCKET, Key=f"{place.path.name}/f8", Body=b"y" * 400)
        told = place.upload("--verify", "--checksum", code=1)
        paths = [difference["path"] for difference in told["differences"]]
        assert [os.path.basename(path) for path in sorted(paths)] == ["f7", "f8"]
        place.upload(*PART)
        assert place.read("f8") == b"x" * 400

    @needs_peers
    def test_rclone_restores_it(self, place: RealPlace) -> None:
        if not place.store.lists_all:
            pytest.skip("its listings lack what rclone looks for")
        odd_tree(place)
        place.upload(*PART)
        back = place.path / "back"
        peer(place, "rclone", "copy", "--metadata", f"x:{BUCKET}/{place.path.name}", back)
        wanted = {n: e for n, e in entries(place.root).items() if restorable(n)}
        found = {n: e for n, e in entries(back).items() if restorable(n)}
        assert {n: e.content for n, e in found.items()} == {n: e.content for n, e in wanted.items()}
        assert found == wanted or not place.store.keeps_metadata

    @pytest.mark.parametrize("how", ["killed", "frozen"])
    def test_an_outage(self, place: RealPlace, how: str) -> None:
        running, process = place.running, under_way(place)
        running.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        time.sleep(12 if how == "killed" else 20)
        if how == "killed":
            running.relaunch()
        else:
            running.signal(signal.SIGCONT)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (out, err)
        running.wait()
        summary = json.loads(out)
        assert_counts(summary, uploaded=MANY + 1)
        assert summary["requests"] <= MANY + 150
        assert place.judge() == MANY + 1

    def test_a_store_that_answers_no_more(self, place: RealPlace) -> None:
        """It takes every request and answers none: patience ends the run."""
        process = under_way(place, "--patience", "6s")
        place.running.signal(signal.SIGSTOP, place.store.keeper)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            place.running.signal(signal.SIGCONT, place.store.keeper)
        summary = json.loads(out)
        assert process.returncode == 1, (out, err)
        assert "has been unavailable" in summary["error"]
        assert_counts(summary, uploaded=summary["uploaded"], pending=summary["pending"])
        place.judge()
        assert_counts(
            place.upload(*PART), unchanged=summary["uploaded"], uploaded=summary["pending"]
        )
        assert place.judge() == MANY + 1

    def test_a_store_that_is_full(self, place: RealPlace) -> None:
        """Last, for its other objects count as well."""
        bound = place.store.bound
        if bound is None:
            pytest.skip("it has no quota that can be set")
        place.files(40)
        place.upload()
        for number in range(300):
            place.file(f"d{number % 7}/n{number}", b"new")
        try:
            bound(place.running, 1)
            wait_until(lambda: not takes(place))
            full = place.upload("--patience", "5s", code=1)
        finally:
            bound(place.running, 0)
            wait_until(lambda: takes(place))
        assert full["requests"] < 300
        assert full["pending"] > 200
        assert place.judge() == 40
        assert_counts(place.upload(), uploaded=300, unchanged=40)
        assert place.judge() == 340


def under_way(place: RealPlace, *options: object) -> Any:
    """A run that has uploaded some of its files."""
    if not place.store.is_ours:
        pytest.skip("its processes are not ours")
    place.files(MANY)
    place.file("large", os.urandom(16 * MIB))
    arguments = "--mode", place.mode, "--json", "--concurrency", 2, *PART, *options
    process = place.start(*arguments, to=place.to)
    while process.poll() is None and not is_settled(place, 20):
        time.sleep(0.02)
    return process


def takes(place: RealPlace) -> bool:
    """Whether the store takes an object, as far as another client is told."""
    try:
        place.client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
    except place.client.exceptions.ClientError:
        return False
    return True


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.5)
