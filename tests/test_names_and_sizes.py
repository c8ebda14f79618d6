"""Object keys, content types, destinations; sizes and parts."""

from __future__ import annotations

import argparse
import os
import random

import pytest

import pfu
from testing.place import MIB, ODD_NAMES, encoded_name

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
        assert "its key has 1025 bytes" in pfu.too_large("\u00e9" * 512 + "k", 1)
        assert "S3 takes" in pfu.too_large("k", 10_000 * (5 << 30) + 1)
