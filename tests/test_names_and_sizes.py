"""Object keys, content types, destinations; sizes and parts."""

from __future__ import annotations

import argparse
import os
import random
import resource
import stat
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import (
    BOTH_MODES,
    BUCKET,
    MIB,
    ODD_NAMES,
    Place,
    Run,
    assert_accounts,
    encoded_name,
)

# ======================================================================================
# Keys, content types, destinations
# ======================================================================================


AN_ACCESS_POINT = "arn:aws:s3:us-east-1:123456789012:accesspoint"


class TestNames:
    """Keys, content types, destinations."""

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_names_are_encoded_as_rclone_does(self, name: str | bytes) -> None:
        encoded = pfu.encode_name(os.fsdecode(name))
        assert encoded == encoded_name(os.fsencode(name))
        encoded.encode("utf-8")

    def test_encoded_names_differ_if_the_names_do(self) -> None:
        generator = random.Random(1)
        alphabet = [b"\xff", b"\xe2", b"\x80", b"\x9b", b"F", b"8", "\u201b".encode(), b"a"]
        names = {
            b"".join(generator.choices(alphabet, k=generator.randint(1, 6))) for _ in range(5000)
        }
        assert len({pfu.encode_name(os.fsdecode(name)) for name in names}) == len(names)

    @pytest.mark.parametrize(
        "name, expected",
        [
            ("a.txt", "text/plain"),
            ("A.TXT", "text/plain"),
            ("a.jpg", "image/jpeg"),
            ("a.tar.gz", "application/gzip"),
            ("a.json", "application/json"),
            ("a", "application/octet-stream"),
            (".txt", "application/octet-stream"),
            ("a.b c", "application/octet-stream"),
            ("a.\r\nx-evil: 1", "application/octet-stream"),
        ],
    )
    def test_content_types(self, name: str, expected: str) -> None:
        assert pfu.content_type(name) == expected

    @pytest.mark.parametrize(
        "text, bucket, prefix",
        [
            ("s3://bkt", "bkt", ""),
            ("s3://bkt/a b//c/", "bkt", "a b//c/"),
            ("s3://bkt/new\nline", "bkt", "new\nline/"),
            (f"s3://{AN_ACCESS_POINT}/name/a/b", f"{AN_ACCESS_POINT}/name", "a/b/"),
            (f"s3://{AN_ACCESS_POINT}:name/a", f"{AN_ACCESS_POINT}:name", "a/"),
        ],
    )
    def test_what_a_destination_names(self, text: str, bucket: str, prefix: str) -> None:
        assert pfu.parse_destination(text) == (bucket, prefix)


# ======================================================================================
# Bounds: deep directories, long texts
# ======================================================================================


LEVELS = 1_000  # took 600 MB once, and four times as much with twice as many
LONGEST_LINE = 2_100  # characters, with what stands before a text in its line
TOO_DEEP = "its key is 1026 bytes long, S3 allows 1024; its contents are skipped"


def level(number: int) -> str:
    return f"{number:04}".ljust(255, "n")


def dig(place: Place, top: str = "tree") -> None:
    """Directories in one another, by no path, which would be too long; the last holds a file."""
    (place.path / top).mkdir(exist_ok=True)
    fd = os.open(place.path / top, os.O_RDONLY)
    for name in map(level, range(LEVELS)):
        os.mkdir(name, dir_fd=fd)
        above, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.fixture
def pit(place: Place) -> Iterator[Place]:
    """A place whose tree is too deep. Its directories are taken away again: pytest cannot."""
    dig(place)
    place.file("f")
    yield place
    subprocess.run(["rm", "-rf", place.root, place.path / "outside"], check=True)


def texts_in(told: Any) -> Iterator[str]:
    if isinstance(told, (dict, list)):
        for part in told.values() if isinstance(told, dict) else told:
            yield from texts_in(part)
    elif isinstance(told, str):
        yield told


def assert_is_short(place: Place, run: Run) -> None:
    """Nothing that is told anywhere is longer than anybody reads."""
    log = (place.path / "log").read_text()
    lines = [*run.err.splitlines(), *log.splitlines(), *texts_in(run.json)]
    errors = place.rows("SELECT error FROM FileStat UNION ALL SELECT error FROM BatchJob")
    lines += [row["error"] for row in errors if row["error"]]
    assert max(map(len, lines)) <= LONGEST_LINE


class TestBounds:
    """Bounds: deep directories, long texts."""

    @pytest.mark.parametrize("option", ["--verbose", "--directory-markers", "--links"])
    def test_a_directory_whose_own_key_is_too_long_is_not_entered(
        self, pit: Place, option: str
    ) -> None:
        arguments = ["--mode", "concurrent", "--json", "--log-file", "log", option]
        for uploaded in (1 + 3 * (option == "--directory-markers"), 0):
            run = pit.run(*arguments)
            summary = run.json
            assert (run.code, summary["failed"], summary["uploaded"]) == (1, 1, uploaded), run.err
            (failure,) = summary["failures"]
            path = "/".join(map(level, range(4)))
            assert failure == {"path": f"{pit.root}/{path}", "reason": TOO_DEEP}
            assert summary["peak_memory_bytes"] < 200 * MIB
            assert_is_short(pit, run)
            assert_accounts(summary)
        assert summary["requests"] == 0

    def test_a_deep_directory_behind_a_link_is_not_entered(self, place: Place) -> None:
        dig(place, "outside")
        (place.root / "link").symlink_to("../outside")
        try:
            run = place.run("--mode", "concurrent", "--follow-symlinks", "--json")
        finally:
            subprocess.run(["rm", "-rf", place.path / "outside"], check=True)
        (failure,) = run.json["failures"]
        assert (run.code, run.json["seen"]) == (1, 1), run.err
        assert "S3 allows 1024; its contents are skipped" in failure["reason"]

    def test_a_directory_too_deep_for_the_open_file_limit(self, place: Place) -> None:
        place.file(f"{'d/' * 200}f")
        place.file("f")

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

        run = place.run("--mode", "concurrent", "--json", preexec_fn=limit)
        (failure,) = run.json["failures"]
        assert (run.code, set(place.stored())) == (1, {"f"})
        assert "Too many open files (raise the open file limit: ulimit -n)" in failure["reason"]

    @pytest.mark.parametrize("options", ["--dry-run", "--verify", "--verify --checksum"])
    def test_a_deep_directory_is_one_difference(self, pit: Place, options: str) -> None:
        assert pit.run("--mode", "concurrent").code == 1
        sent = len(pit.server.log)
        run = pit.run(*options.split())
        assert (run.code, run.out.count(TOO_DEEP)) == (1, 1), run.err
        assert max(map(len, run.out.splitlines())) <= LONGEST_LINE
        run = pit.run(*options.split(), "--json")
        assert (run.code, run.json.get("failed", run.json.get("differing"))) == (1, 1)
        operations = {request.operation for request in pit.server.log[sent:]}
        assert operations <= {"ListObjectsV2", "HeadObject"}

    @pytest.mark.parametrize("pattern", ["0003*/", "/0000*/0001*/**", "0000*"])
    def test_a_deep_directory_that_is_excluded_is_no_failure(
        self, pit: Place, pattern: str
    ) -> None:
        run = pit.run("--mode", "concurrent", "--json", "--exclude", pattern)
        assert (run.code, run.json["failed"], set(pit.stored())) == (0, 0, {"f"}), run.err
        assert run.json["skipped_by_reason"] == {"excluded": 1}

    @BOTH_MODES
    @pytest.mark.parametrize("mode_bits", [0o755, 0o2750, 0o1777, 0o4711])
    def test_directories_are_stored_whatever_their_mode(
        self, place: Place, mode: str, mode_bits: int
    ) -> None:
        (place.root / "shared").mkdir()
        (place.root / "shared").chmod(mode_bits)
        run = place.run("--mode", mode, "--json", "--directory-markers")
        assert (run.code, run.json["uploaded"], run.json["skipped"]) == (0, 1, 0)
        stored = place.server.objects(BUCKET)["p/shared/"]
        assert stored.headers["x-amz-meta-mode"] == f"0{stat.S_IFDIR | mode_bits:o}"
        assert stored.headers["content-type"] == "application/x-directory"

    def test_the_longest_key_of_a_directory_is_taken(self, place: Place) -> None:
        above = place.root / level(0) / level(1) / level(2)
        for length in (253, 254):  # with s3://bkt/p/ and the slash at its end: 1,024, 1,025
            (above / ("d" * length)).mkdir(parents=True)
        run = place.run("--mode", "concurrent", "--json", "--directory-markers")
        (failure,) = run.json["failures"]
        assert (run.code, run.json["uploaded"]) == (1, 4), run.err
        assert failure["path"] == str(above / ("d" * 254))
        assert max(map(len, place.stored())) == 1024 - len("p/")

    def test_one_share_tells_of_a_deep_directory(self, pit: Place) -> None:
        runs = [
            pit.run("--mode", "concurrent", "--json", "--shard", f"{number}/3").json
            for number in (1, 2, 3)
        ]
        assert [sum(run[name] for run in runs) for name in ("failed", "uploaded")] == [1, 1]

    def test_no_path_is_told_at_length(self, place: Place) -> None:
        folder = "/".join(["\x01" * 240] * 4)
        for number in range(5):
            place.file(f"{folder}/{number}" + "\x1b" * 200)
        run = place.run("--mode", "concurrent", "--json", "--log-file", "log")
        assert (run.code, run.json["failed"]) == (1, 5), run.err
        assert "[...]" in run.err
        assert_is_short(place, run)

    def test_no_reason_is_told_at_length(self, place: Place) -> None:
        place.files(3)
        message = "why " * 50_000
        place.server.faults.append(Fault(Action("error", 400, "Odd", message), "PutObject"))
        run = place.run("--mode", "concurrent", "--json", "--log-file", "log", "--verbose")
        assert run.code in (1, 2)
        assert "Odd: why why" in run.err
        assert_is_short(place, run)


# ======================================================================================
# Sizes as they are written, and parts
# ======================================================================================


class TestSizes:
    """Sizes as they are written, and parts."""

    @pytest.mark.parametrize(
        "text, size",
        [
            ("0", 0),
            ("512", 512),
            ("16M", 16 * MIB),
            ("1.5GiB", 3 << 29),
            ("2 kb", 2048),
            ("1t", 1 << 40),
        ],
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert pfu.parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "x", "-1", "1X", "1e3", "0x10", "1.2.3M", "\u0661"])
    def test_no_sizes(self, text: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError):
            pfu.parse_size(text)

    @pytest.mark.parametrize(
        "size", [0, 1, 16 * MIB + 1, 160_000 * MIB + 1, 5 << 40, 10_000 * (5 << 30)]
    )
    def test_parts_suffice(self, size: int) -> None:
        part = pfu.part_size_for(size, 16 * MIB)
        assert -(-size // part) <= 10_000
        assert 5 * MIB <= part <= 5 << 30

    def test_too_large_is_said_before_the_first_byte(self) -> None:
        assert not pfu.too_large("k" * 1024, 10_000 * (5 << 30))
        assert "its key is 1025 bytes long" in pfu.too_large("\u00e9" * 512 + "k", 1)
        assert "S3 allows" in pfu.too_large("k", 10_000 * (5 << 30) + 1)
