"""What the fuzzers are made of: inputs, and slow judges that take one step after the other.

More than a million inputs by `pytest --full`, else an eighth of them, the same in every run. What
comes from outside is either taken for what it is, strictly, or refused in pfu's own words: answers
of a store, ledgers, options, names.

An answer is judged by judged() too, which is slow and takes one step after the other: both must
accept the same ones, with the same ETag. A ledger must work or raise LedgerError.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import pickle
import random
import sqlite3
import stat
import string
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable
from urllib.parse import unquote_to_bytes

import pytest

import pfu
from testing.lane import (
    CLEAN,
    KEYS,
    answer_text,
    http_client_agrees,
    odd_case,
    parse_head,
    template_for,
)
from testing.place import KIB, LONG_AGO, MIB, is_full_run

SHARE = 1 if is_full_run() else 8
MUTATED_ANSWERS = 330_000 // SHARE
COMPOSED_ANSWERS = 170_000 // SHARE
FED_PREFIXES = 400_000 // SHARE
OPTION_NUMBERS = 60_000 // SHARE
ENDS = 60_000 // SHARE
COMMAND_LINES = 10_000 // SHARE
DAMAGED_LEDGERS = 2_400 // SHARE
ODD_ROWS = 2_300 // SHARE
ODD_RUNS = 24
ODD_FILE_NAMES = 100_000 // SHARE
ODD_HEADS = 20_000 // SHARE
Mutator = Callable[[bytes, random.Random], bytes]


# ---------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------


TOKEN = frozenset(b"!#$%&'*+.^_`|~-" + string.ascii_letters.encode() + string.digits.encode())
CONTROLS = frozenset(range(32)) - {9} | {127}
SINGLE = (
    *(b"content-length", b"transfer-encoding", b"content-encoding", b"content-type"),
    *(b"etag", b"connection", b"retry-after", b"date"),
)
LONGEST_HEAD, LONGEST_BODY, MOST_CHUNKS = 16 * KIB, 64 * KIB, 64


def judged(received: bytes) -> str | None:
    """The ETag of an answer whose head is strictly right, if nothing follows it; else None."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank or len(head) + 4 > LONGEST_HEAD:
        return None
    status, *lines = head.split(b"\r\n")
    fields = judged_fields(lines)
    if status[:8] not in (b"HTTP/1.0", b"HTTP/1.1"):
        return None
    if status[8:] != b" 200" and not status[8:].startswith(b" 200 "):
        return None
    if CONTROLS & set(status) or fields is None or b"content-encoding" in fields:
        return None
    content = judged_body(fields, body) or b""
    if b"<Error" in body + content or b"html" in fields.get(b"content-type", b"").lower():
        return None
    etag = fields.get(b"etag", b"").removeprefix(b"W/")  # a proxy's
    return etag.decode("latin-1") if etag.strip(b'"') else None


def lives_on(received: bytes) -> bool:
    """Whether the body is all that its head promises, and no more; the connection may be used."""
    head, _, body = received.partition(b"\r\n\r\n")
    fields = judged_fields(head.split(b"\r\n")[1:])
    return fields is not None and judged_body(fields, body) is not None


def judged_fields(lines: Sequence[bytes]) -> dict[bytes, bytes] | None:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or set(name) - TOKEN or CONTROLS & set(value):
            return None
        if name.lower() in SINGLE and name.lower() in fields:
            return None
        fields[name.lower()] = value.strip(b" \t")
    return fields


def judged_body(fields: Mapping[bytes, bytes], body: bytes) -> bytes | None:
    length, encoding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if len(body) > LONGEST_BODY or (length is None) == (encoding is None):
        return None
    if length is not None:
        is_number = set(length) <= set(b"0123456789") and 1 <= len(length) <= 9
        return body if is_number and int(length) == len(body) else None
    return judged_chunks(body) if encoding is not None and encoding.lower() == b"chunked" else None


def judged_chunks(rest: bytes) -> bytes | None:
    """No trailers, no long extensions, and no more chunks than anybody sends."""
    content = b""
    for _ in range(MOST_CHUNKS):
        line, _, rest = rest.partition(b"\r\n")
        number, _, extension = line.partition(b";")
        size, padding = number.rstrip(b" \t"), len(number) - len(number.rstrip(b" \t"))
        if not 1 <= len(size) <= 6 or set(size.lower()) - set(b"0123456789abcdef"):
            return None
        if CONTROLS & set(extension) or any(byte > 126 for byte in extension):
            return None
        if padding > 8 or len(extension) > 240 or rest[int(size, 16) :][:2] != b"\r\n":
            return None
        content += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
        if not int(size, 16):
            return None if rest else content
    return None


VALID_ANSWERS = [
    CLEAN,
    answer_text("x-amz-id-2: abc=", "Date: x", "ETag: x", "Server: S", "Content-Length: 0"),
    answer_text('ETag: W/"1-2"', "Connection: close", "Content-Length: 7", body=b"<Yes/>\n"),
    answer_text('etag:"\xe4"', "TRANSFER-ENCODING:chunked", body=b"0\r\n\r\n"),
    answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
    answer_text(
        *('ETag: "e"', "Transfer-Encoding:\tChunked", "X: ;"),
        body=b"00A \t;a=b\r\n\r\n\r\n<Error\r\n0;z\r\n\r\n".replace(b"<Error", b"<Erro."),
    ),
    answer_text("ETag: x", "Content-Length: 00010", body=b"\r\n\r\n\0\xff\r\n<E"),
    answer_text("Content-Length: 0", "ETag: x", status="HTTP/1.1 200"),
]
OTHER_ANSWERS = [
    *VALID_ANSWERS,
    answer_text(status="HTTP/1.1 100 Continue"),
    answer_text("Retry-After: 1", "Content-Length: 0", status="HTTP/1.1 503 Slow Down"),
    answer_text("ETag: x", "Content-Length: 12", body=b"<Error>..</E"),
    answer_text("ETag: x", "Transfer-Encoding: chunked", body=b"1;x\r\na\r\n0\r\nETag: t\r\n\r\n"),
    b"HTTP/1.0 200 OK\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 200 OK\nETag: x\nContent-Length: 0\n\n",
]
PIECES = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"),
    *(b"\0", b" ", b"\t", b":", b";", b"\x7f", b"\x0b"),
    *(b"0", b"-", b"+", b"0x", b",", b"_", b"9" * 20, b"\x80", b"\xff", b"\xc2\xb2"),
    *(b"<Error>", b"\r\nETag: y", b"\r\nContent-Length: 0", b"\r\nContent-Length: 1"),
    *(b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Encoding: gzip", b"\r\n folded", b"\r\n\t:"),
    *(b"0\r\n\r\n", b"1\r\na\r\n", b"0\r\nT: t\r\n\r\n", b";e=" + b"x" * 300, b" " * 20),
    *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n", CLEAN, b"X: " + b"y" * 17_000),
]


def with_flipped_bit(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    return b"%s%c%s" % (text[:at], text[at] ^ 1 << int(rng.random() * 8), text[at + 1 :])


def with_piece(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * (len(text) + 1))
    return text[:at] + PIECES[int(rng.random() * len(PIECES))] + text[at:]


def with_replaced_byte(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    piece = PIECES[int(rng.random() * 20)]
    return text[:at] + piece + text[at + len(piece) :]


def without_some(text: bytes, rng: random.Random) -> bytes:
    at = int(rng.random() * len(text))
    return text[:at] + text[at + 1 + int(rng.random() * 8) :]


def with_some_twice(text: bytes, rng: random.Random) -> bytes:
    start = int(rng.random() * len(text))
    end = start + int(rng.random() * 40)
    return text[:end] + text[start:]


def truncated(text: bytes, rng: random.Random) -> bytes:
    return text[: int(rng.random() * len(text))]


def spliced(text: bytes, rng: random.Random) -> bytes:
    other = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    return text[: int(rng.random() * len(text))] + other[int(rng.random() * len(other)) :]


def pipelined(text: bytes, rng: random.Random) -> bytes:
    other = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    return text + other if rng.random() < 0.5 else other + text


def unchanged(text: bytes, rng: random.Random) -> bytes:
    return text


MUTATORS: list[Mutator] = [
    *(with_flipped_bit, with_flipped_bit, with_piece, with_piece, with_replaced_byte),
    *(without_some, with_some_twice, truncated, spliced, pipelined, unchanged),
]


def mutated_answer(rng: random.Random) -> bytes:
    text = OTHER_ANSWERS[int(rng.random() * len(OTHER_ANSWERS))]
    for _ in range(1 + int(rng.random() * 2.5)):
        text = MUTATORS[int(rng.random() * len(MUTATORS))](text, rng) or b"H"
    return text


LENGTHS = [
    *("0", "1", "2", "3", "00", "003", "65536", "65537", "999999999", "9" * 10, "9" * 5000),
    *("-1", "-0", "+0", "+3", "0x0", "0x3", "3.0", "3e0", "3 ", " 3", "3,3", "3, 3", "3;3", "3 3"),
    *("", "\u00b3", "3\x00", "3_0", "NaN", "\u0663"),
]
STATUS_LINES = [
    *["HTTP/1.1 200 OK"] * 12,
    *("HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 \xe4", "HTTP/1.1 200\tOK", "HTTP/1.1  200 OK"),
    *("HTTP/1.0 200 OK", "HTTP/2 200", "http/1.1 200 OK", "HTTP/1.1 201 Created", "HTTP/1.1 2000"),
    *("HTTP/1.1 020 OK", "HTTP/1.1 +20 OK", "HTTP/1.1 304 Not Modified", "HTTP/1.1 200 \x00", ""),
    *(" HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r", "HTTP/1.1 200 OK\n", "HTTP/1.1 503 Slow Down"),
]
HEADER_LINES = [
    *['ETag: "e"', "ETag: x", "etag:\tx "] * 6,
    *("Content-Length: 3", "Transfer-Encoding: chunked", "Content-Length: 0") * 6,
    *("Date: x", "Connection: close", "Server: S", "X: \xe4", "X:", "Retry-After: 1", "X: y"),
    *('ETag: ""', "ETag:", "ETag: \t", "ETag : x"),
    *(" ETag: x", "E\xe4Tag: x", "X-ETag: x", 'ETag: "'),
    *("ETag", "ETag=x", "ETag: \x01", "ETag: \x7f", "ETag: x\ry", "ETag: x\ny", "\tfolded", ": x"),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding:"),
    *("Transfer-Encoding: xchunked", "Transfer-Encoding: identity", "Transfer-Encoding: CHUNKED\t"),
    *("Content-Encoding: gzip", "Content-Encoding:", "Content-Length : 3", "Content_Length: 3"),
    *(f"Content-Length: {length}" for length in LENGTHS),
    "X: " + "y" * 9_000,
]
BODIES = [
    *[b"", b"abc", b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"] * 4,
    *(b"3;a=b\r\nabc\r\n0;c\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n\r\n" + CLEAN, CLEAN, b"\r\n"),
    *(b"3\nabc\n0\n\n", b"3\r\nabcd\r\n0\r\n\r\n"),
    *(b"3\r\nab\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
    *(b"+3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b" 3\r\nabc\r\n0\r\n\r\n"),
    *(b"3 \r\nabc\r\n0\t\r\n\r\n", b"3\r\nabc\r\n"),
    *(b"3\r\nabc\r\n0\r\n", b"fffffff\r\n", b"10001\r\n"),
    b"00003\r\nabc\r\n000000\r\n\r\n",
    *(b"0000003\r\nabc\r\n0\r\n\r\n", b"3;\x00\r\nabc\r\n0\r\n\r\n"),
    *(b"3;" + b"x" * size + b"\r\nabc\r\n0\r\n\r\n" for size in (240, 241, 300)),
    *(b"3" + b" " * size + b"\r\nabc\r\n0\r\n\r\n" for size in (8, 9, 300)),
    *(b"1\r\nx\r\n" * size + b"0\r\n\r\n" for size in (63, 64, 2_000)),
    *(b"x" * size for size in (65536, 65537)),
    *(b"<Error>", b"7\r\n<Error>\r\n0\r\n\r\n"),
    *(b"3\r\n<Er\r\n3\r\nror\r\n0\r\n\r\n", b"<error", b"\0"),
]
LINE_ENDS = ["\r\n", "\n", "\r", "\r\r\n", "\n\r", "\r\n ", "\x0b\r\n", "\r\n\x00"]
RIGHT_BODIES: list[tuple[str, bytes]] = [
    ("Content-Length: 0", b""),
    ("content-length:3", b"abc"),
    ("Content-Length:\t03 ", b"\r\n\0"),
    ("Transfer-Encoding: chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ("X: y\r\nTransfer-Encoding: Chunked", b"3;a=b\r\nabc\r\n0;c\r\n\r\n"),
]


def composed_answer(rng: random.Random) -> bytes:
    """A right one, in which up to two things are replaced by others, which may be right too."""
    choice = rng.choice
    length, body = choice(RIGHT_BODIES)
    status, lines, end = STATUS_LINES[0], [choice(HEADER_LINES[:3]), length], "\r\n"
    for _ in range(int(rng.random() * 3)):
        oddity = int(rng.random() * 10)
        if oddity == 0:
            status = choice(STATUS_LINES)
        elif oddity < 4:
            lines.insert(int(rng.random() * 3), choice(HEADER_LINES))
        elif oddity < 6:
            lines[int(rng.random() * 2)] = choice(HEADER_LINES)
        elif oddity < 9:
            body = choice(BODIES)
        else:
            end = choice(LINE_ENDS)
    return end.join([status, *lines, "", ""]).encode("latin-1", "replace") + body


def verdict_on(received: bytes, *, is_last: bool = False) -> pfu.Answer | pfu.Rejected | None:
    """What check_answer() says; any exception but its own is let through."""
    try:
        return pfu.check_answer(received, is_last=is_last)
    except pfu.Rejected as rejected:
        return rejected


def count_verdicts(answers: Iterator[bytes]) -> Counter[str]:
    """What check_answer() says of each, which has to be what judged() says."""
    said: Counter[str] = Counter()
    for received in answers:
        verdict = verdict_on(received, is_last=True)
        etag = verdict.etag if isinstance(verdict, pfu.Answer) else None
        assert etag == judged(received), received
        is_kept = isinstance(verdict, pfu.Answer) and verdict.keep_alive
        assert lives_on(received) or not is_kept, received
        said[type(verdict).__name__] += 1
        if (
            isinstance(verdict, pfu.Answer)
            and said["Answer"] % 16 == 0
            and is_kept
            and received.isascii()
        ):
            http_client_agrees(received, verdict)
    return said


LONG_HEAD = b"HTTP/1.1 200 OK\r\nETag: e\r\n" + b"a:\r\n" * 4_000
CHUNKED = b"HTTP/1.1 200 OK\r\nETag: e\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG_ANSWERS = {
    "head": LONG_HEAD + b"a:" + b"y" * KIB,
    "spaces": b"HTTP/1.1 200 OK\r\nX:" + b" " * 17 * KIB,
    "head and body": LONG_HEAD + b"Content-Length: 65536\r\n\r\n" + b"x" * 65_535,
    "body": answer_text("ETag: e", "Content-Length: 65536", body=b"x" * 65_535),
    "blank lines": answer_text("ETag: e", "Content-Length: 65536", body=b"\r\n" * 32_767),
    "chunk": CHUNKED + b"10000\r\n" + b"x" * 65_000,
    "chunks": CHUNKED + b"1\r\nx\r\n" * 10_900,
    "few chunks": CHUNKED + b"400;" + b"e" * 30 + b"\r\n" + (b"x" * 1024 + b"\r\n400\r\n") * 63,
    "extension": CHUNKED + b"1;" + b"e" * 65_000,
    "digits": answer_text("Content-Length: " + "9" * 16_000, "ETag: e"),
}


# ---------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------


ODD_STRINGS = [
    *("", " ", "\0", "\n", "\t", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u2028", "\u202e", "\ufeff"),
    *("\ud800", "\udcff", "\u0663", "\u00b2", "\uff11", "\u212a", "\u017f", "\u0131", "\u0130"),
    *("%", "%s", "{}", "$(x)", "`x`", ";", "|", "&"),
    *("*", "~", "'", '"', "\\", "..", "/", "//", "@"),
    *("-", "--", "-1", "+1", "0x10", "1e3", "1_0", "nan", "inf", "9" * 16, "9" * 400, "x" * 2_000),
]
NUMBER_PIECES = [
    *(*string.digits, ".", "1.5", "16", "512", "999999999", "0" * 15),
    *(*"KMGTkmgtiBbsd", "iB", "MiB", "kb", " ", "-", "+", "e", "x", "_", ",", *ODD_STRINGS[:21]),
]
SIZES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def pieces(rng: random.Random, of: Sequence[str], most: int) -> str:
    return "".join(of[int(rng.random() * len(of))] for _ in range(int(rng.random() * (most + 1))))


def judged_number(text: str) -> Fraction | None:
    whole, dot, rest = text.rstrip(" \t\n\r\f\v").partition(".")
    for digits in (whole, rest) if dot else (whole,):
        if not 1 <= len(digits) <= 15 or set(digits) - set(string.digits):
            return None
    return Fraction(f"{whole}.{rest or 0}")


def judged_size(text: str) -> Fraction | None:
    text = text.strip()
    if not text.isascii():
        return None
    text = text.lower()
    text = text[:-2] if text.endswith("ib") else text[:-1] if text.endswith("b") else text
    unit = text[-1:] if text[-1:] in SIZES else ""
    number = judged_number(text[: len(text) - len(unit)])
    return None if number is None else number * 2 ** SIZES[unit]


def judged_time(text: str) -> Fraction | None:
    text = text.strip()
    unit = text[-1:] if text[-1:] in SECONDS else ""
    number = judged_number(text[: len(text) - len(unit)])
    return None if number is None else number * SECONDS[unit]


def judged_workers(text: str) -> Fraction | None:
    is_number = 1 <= len(text) <= 9 and not set(text) - set(string.digits)
    return Fraction(text) if is_number and 1 <= int(text) <= 256 else None


END_PIECES = [
    *("s3://", "s3:/", "S3://", "bkt", "my-bucket", "a.b", "A_b", "x", "/", "//", "/p/q", "/p q\n"),
    *("arn:", "arn:aws:s3:eu-central-1:1:accesspoint/", "arn:aws:s3:::b", ":accesspoint", "1" * 64),
    *("http://", "https://", "ftp://", "host", "127.0.0.1"),
    *("[::1]", "[::1%e]", "[", "]", ":", "::1"),
    *(":80", ":0", ":65535", ":65536", ":99999", ":x", "?q", "#f", "user@", "u:p@", "/%0d%0a", "."),
    *ODD_STRINGS,
]
LETTERS_AND_DIGITS = frozenset(string.ascii_letters + string.digits)
HEX_DIGITS = frozenset(string.hexdigits)


def odd_end(rng: random.Random) -> str:
    begins = ("s3://", "s3://bkt", "s3://bkt/", "http://", "https://host", "http://127.0.0.1:", "")
    return rng.choice(begins) + pieces(rng, END_PIECES, 4)


def is_destination(text: str, bucket: str, prefix: str) -> bool:
    """Other stores than AWS have buckets of nearly any name."""
    is_arn = bucket[:4] == "arn:" and all(c.isalnum() or c in "._-:/" for c in bucket)
    is_name = 1 <= len(bucket) <= 255 and not any(
        c.isspace() or c < " " or c in "/?#%\x7f" for c in bucket
    )
    return (
        f"s3://{bucket}/{prefix}".rstrip("/") == text.rstrip("/")
        and (is_arn or is_name)
        and (not prefix or (prefix.endswith("/") and not prefix.endswith("//")) or prefix == "/")
        and not any("\ud800" <= character <= "\udfff" for character in text)
    )


def is_endpoint(url: str) -> bool:
    """By hand: scheme, host, port, path, all of them ASCII that is seen."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    host, colon, port = authority, "", ""
    if not authority.endswith("]") and ":" in authority:
        host, colon, port = authority.rpartition(":")
    if scheme not in ("http", "https") or set(path) - set(SEEN) or set("?#@") & set(url):
        return False
    if colon and (set(port) - set(string.digits) or not 1 <= len(port) <= 5):
        return False
    return is_host(host) and (not colon or 0 < int(port) < 65536)


def is_host(host: str) -> bool:
    if host.startswith("["):
        address, _, zone = host[1:-1].partition("%")
        is_address = bool(address) and set(address) <= HEX_DIGITS | set(":.")
        return host.endswith("]") and is_address and (zone.isalnum() or "%" not in host)
    labels = host[: -1 if host.endswith(".") else None].split(".")
    allowed = LETTERS_AND_DIGITS | set("_-")
    return all(0 < len(label) <= 63 and set(label) <= allowed for label in labels)


SEEN = "".join(map(chr, range(33, 127)))


def option_words() -> list[str]:
    """All options of the program, as its own parser has them, and what may follow them."""
    actions = pfu.make_parser()._actions
    names = [name for action in actions for name in action.option_strings]
    choices = [choice for action in actions for choice in action.choices or ()]
    return sorted(names) * 2 + choices + ["tree", "s3://bkt/p", "8M", "5M", "2", "1", "90s", "K1"]


def command_line(rng: random.Random, words: Sequence[str]) -> list[str]:
    line = ["tree"] if rng.random() < 0.8 else []
    for _ in range(int(rng.random() * 5)):
        kind = rng.random()
        word = words[int(rng.random() * len(words))]
        if kind > 0.9:
            word = ODD_STRINGS[int(rng.random() * len(ODD_STRINGS))]
        elif kind > 0.8 and word.startswith("--"):  # argparse of 3.9 stumbles over -h=
            word += "=" * (rng.random() < 0.7) + pieces(rng, ODD_STRINGS, 1)
        line.append(word)
    return line


def refusal_of(line: list[str], parser: argparse.ArgumentParser) -> str | argparse.Namespace:
    """The options, or what pfu says of them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = parser.parse_args(line)
        pfu.check_options(options)
    except SystemExit as end:
        assert end.code == 2 or {"-h", "--help", "--version"} & set(line), line
        return said.getvalue() if end.code else "pfu: help\n"
    except pfu.UsageError as error:
        return f"pfu: {error}\n"
    return options


def assert_sane(options: argparse.Namespace) -> None:
    """Nothing was let through that contradicts itself, or that no run can do."""
    run, s3 = pfu.run_options(options), pfu.s3_options(options)
    assert options.root or options.status or options.cleanup
    assert options.status + options.cleanup + options.verify <= 1
    assert not (options.dry_run and (options.status or options.verify))
    assert not (options.sandbox and (s3.endpoint_url or s3.profile or options.verify))
    assert not (options.quiet and options.verbose)
    assert run.mode in ("parallel", "concurrent") and 0 <= run.nice <= 19
    assert 0 <= run.workers <= 256 and 0 <= run.concurrency <= 4096
    assert run.mode == "parallel" or run.workers <= 1
    assert run.part_size == 0 or 5 * MIB <= run.part_size <= 5 << 30
    assert min(run.max_memory, *run.rates, run.max_duration) >= 0
    assert run.engine().part_size >= 5 * MIB and run.processes() >= 1
    assert not s3.endpoint_url or is_endpoint(s3.endpoint_url)
    assert not s3.sse_kms_key_id or s3.sse == "aws:kms"
    for text in s3.put_arguments().values():
        assert text.isascii() and text.isprintable(), text


# ---------------------------------------------------------------------------
# Names and metadata
# ---------------------------------------------------------------------------


HOSTILE_PIECES: list[bytes] = [
    *(b"\r\n", b"\n", b"\r", b"\x1b[31m", b"\x1b]0;t\x07", b"\x7f", b"\x08", b"\t", b" ", b"\x0b"),
    *(b"\r\nHost: x\r\n\r\n", b" HTTP/1.1\r\n", b"?x", b"#x", b"%0d%0a", b"%", b"%s", b"&", b"+"),
    *(c.encode() for c in "\x80\x85\x9b\u200b\u200e\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\xad"),
    *(c.encode() for c in "\u201b\u2400\uff0e\uff0f\xe4\u6771\U0001f600\U000e0041\ufffe\ue000"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"),
    *(b"\xe2\x80", b"\xf4\x90\x80\x80", b"\xed\xb3\xbf"),
    *("\u201bFF".encode(), "\u201b\u201bFF".encode()),
    *("\u201bff".encode(), b"a", b"FF", b".", b".."),
    *(b".txt", b".html", b".gz", b".tar.gz", b".svgz"),
    *(b".\r\n", b".\xe4", b".json\n", b"." + b"x" * 17),
]


def hostile_name(rng: random.Random) -> bytes:
    """Any bytes but NUL and slash."""
    if rng.random() < 0.3:
        name = bytes(1 + int(rng.random() * 255) for _ in range(int(rng.random() * 12)))
    else:
        name = b"".join(rng.choice(HOSTILE_PIECES) for _ in range(1 + int(rng.random() * 5)))
    return name.replace(b"/", b"") or b"a"


def decoded_name(key: str) -> bytes:
    """What rclone makes of a part of a key: the inverse of its encoding of names, told anew."""
    name, at = b"", 0
    while at < len(key):
        if key[at] != "\u201b":
            name, at = name + key[at].encode(), at + 1
        elif len(key) > at + 2 and not set(key[at + 1 : at + 3]) - set("0123456789ABCDEF"):
            name, at = name + bytes.fromhex(key[at + 1 : at + 3]), at + 3
        else:
            name, at = name + key[at + 1].encode(), at + 2
    return name


UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))  # Unicode's general categories
METADATA_NAMES = (
    *("file-size", "file-mtime", "file-permissions", "file-owner", "file-group"),
    *("mtime", "mode", "uid", "gid"),
)
HEADER_NAMES = ("content-type", *(f"x-amz-meta-{name}" for name in METADATA_NAMES))
SENT_NAMES = frozenset(
    [
        *(*HEADER_NAMES, "host", "user-agent", "authorization", "content-length"),
        *("x-amz-date", "x-amz-content-sha256"),
    ]
)


def assert_on_one_line(text: str) -> None:
    assert text.isprintable(), ascii(text)
    if not text.isascii():
        assert not UNSEEN & set(map(unicodedata.category, text)), ascii(text)


def assert_one_request(head: bytes, path: bytes, values: Sequence[str]) -> None:
    """One request line for ``path``, exactly the headers that belong to it, and no line more."""
    assert set(head) <= set(range(32, 127)) | {10, 13}
    lines = len(SENT_NAMES) + 2
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == lines, head
    first, sent = parse_head(head)
    method, target, version = first.split(" ")
    assert (method, version) == ("PUT", "HTTP/1.1")
    assert unquote_to_bytes(target) == path and not set(target) & set("?#"), head
    assert sent.keys() == SENT_NAMES, head
    assert [sent[name] for name in HEADER_NAMES] == list(values)


def odd_status(rng: random.Random) -> os.stat_result:
    """What fstat may say of a file: any owner, mode, size and time."""
    numbers = [rng.getrandbits(1 + int(rng.random() * 32)) for _ in range(10)]
    numbers[0] = stat.S_IFREG | numbers[0] & 0o7777
    times = {"st_mtime_ns": rng.getrandbits(70) - (1 << 69)}
    return os.stat_result(numbers, times)


def head_writer() -> pfu.HeadWriter:
    case = {**odd_case(random.Random(1)), "static": (), "prefix": "/b"}
    return pfu.HeadWriter(template_for(case), KEYS, lambda: 1_700_000_000.0)


# ---------------------------------------------------------------------------
# Ledgers
# ---------------------------------------------------------------------------


FILE_IDS = [f"{number:032x}" for number in range(60)]
BATCH_ID, EARLIER_ID = "b" * 32, "a" * 32
ODD_VALUES = [
    *("NULL", "-1", "0", "1", "2", "3", "7", "99", "1.5", "9e999", "-9e999", "''", "'x'", "'a/b'"),
    *(str((1 << 63) - 1), str(-(1 << 63)), "253402300800", "x''", "x'00ff'", "x'e0'", "char(0)"),
    *("CAST(x'ff41' AS TEXT)", "CAST(x'eda080' AS TEXT)", "char(27)||'[31m'", "char(10)||'pfu: x'"),
    *("char(0x202e)", "hex(zeroblob(9000))", "'s3://'", "'http://x:y'", "zeroblob(100)"),
]


def write_ledger(path: Path) -> None:
    """One of every kind: files of every status, runs, uploads, parts, outcomes not folded."""
    ledger = pfu.Ledger(path)
    ledger.save_destination(DESTINATION)
    place = ("s3://bkt/p", "http://127.0.0.1:9")
    for batch_id, status in ((EARLIER_ID, 5), (BATCH_ID, 2)):
        ledger.save_job(
            pfu.BatchJobRow(
                *(batch_id, pfu.JobStatus(status), LONG_AGO, "/tree", "s3://bkt/p", "parallel"),
                endpoint=place[1],
                error="killed",
            )
        )
    with ledger.together():
        for number, file_id in enumerate(FILE_IDS):
            ledger._db.execute(
                pfu.FileModel.insert_sql(),
                (
                    *(file_id, LONG_AGO, number * 1000, number, "0100644", f"/tree/{number}"),
                    *(number % 4, BATCH_ID, f"p/{number}", "e", "0" * 64, 1, "cannot read: x"),
                    *(LONG_AGO, number, number % 2, LONG_AGO, 1, 2, 5 * MIB, number % 3 or None),
                    *(DESTINATION.id, (LONG_AGO, None)[number % 2]),
                ),
            )
    for n, file_id in enumerate(FILE_IDS[:8]):
        ledger.save_upload(pfu.UploadModel(file_id, "u", LONG_AGO, EARLIER_ID, *place, f"p/{n}"))
    ledger.record_parts(
        pfu.PartModel(pfu.part_id(file_id, number), number, 5 * MIB, "e", "0" * 64)
        for file_id in FILE_IDS[:8]
        for number in (1, 2, 3)
    )
    ledger.record([file_row(file_id) for file_id in FILE_IDS[30:40]])
    ledger.close()


def file_row(file_id: str) -> pfu.FileModel:
    status = pfu.FileStatus.SUCCESS
    fixed = (file_id, 1, 2, 3, "0100644", "/tree/x", status, BATCH_ID, "p/x")
    return pfu.FileModel(*fixed, etag="e", sha256="0" * 64)


DESTINATION = pfu.DestinationModel(1, "http://127.0.0.1:9", "s3://bkt/p", "/tree")
JOB = pfu.BatchJobRow(
    *(BATCH_ID, pfu.JobStatus.UPLOADING, LONG_AGO, "/tree", "s3://bkt/p", "parallel"),
    endpoint="http://127.0.0.1:9",
)
READINGS: dict[str, Callable[[pfu.Ledger], Any]] = {
    "last_jobs": lambda ledger: list(pfu.jobs_text(ledger.last_jobs(10))),
    "known": lambda ledger: ledger.known(FILE_IDS),
    "stored": lambda ledger: ledger.stored(FILE_IDS),
    "destination": lambda ledger: ledger.destination(JOB),
    "has_uploads": lambda ledger: ledger.has_uploads(DESTINATION),
    "pending": lambda ledger: ledger.pending(BATCH_ID),
    "failures": lambda ledger: list(map(failure_text, ledger.failures(BATCH_ID, 100)[1])),
    "unfinished_uploads": lambda ledger: endless(ledger.unfinished_uploads()),
    "left_over_uploads": lambda ledger: endless(ledger.left_over_uploads(JOB)),
    "unfinished_upload": lambda ledger: list(map(ledger.unfinished_upload, FILE_IDS[:8])),
    "parts": lambda ledger: [pfu.combined_sha256(stored_parts(ledger, i)) for i in FILE_IDS[:8]],
}
WRITINGS: dict[str, Callable[[pfu.Ledger], Any]] = {
    "fold": lambda ledger: ledger.fold(),
    "interrupt": lambda ledger: ledger.interrupt_unfinished_jobs(),
    "begin_page": lambda ledger: all_pages(ledger),
    "release": lambda ledger: ledger.release_in_progress(BATCH_ID),
    "save_destination": lambda ledger: ledger.save_destination(DESTINATION),
    "seen_again": lambda ledger: ledger.seen_again(FILE_IDS[:9]),
    "sweep": lambda ledger: ledger.sweep(JOB, DESTINATION, lambda row, path: bool(row % 2), 9.0),
    "forget": lambda ledger: ledger.forget_files(DESTINATION),
    "save_job": lambda ledger: ledger.save_job(JOB),
}


def failure_text(failure: tuple[str, str]) -> str:
    return f"{pfu.printable(failure[0])}: {pfu.printable(failure[1])}"


def endless(uploads: Iterator[pfu.UploadModel]) -> list[pfu.UploadModel]:
    found = list(itertools.islice(uploads, 1_000))
    assert len(found) < 1_000
    for upload in found:
        assert f"{upload.object_key} of {upload.destination}".encode("utf-8", "surrogateescape")
        pfu.bytes_text(upload.part_size)
    return found


def stored_parts(ledger: pfu.Ledger, file_id: str) -> list[pfu.StoredPart]:
    parts = [pfu.StoredPart(p.number, p.part_size, p.etag, p.sha256) for p in ledger.parts(file_id)]
    assert sum(part.size + part.number for part in parts) >= 0 or parts
    return parts


def all_pages(ledger: pfu.Ledger) -> None:
    """As a run takes them, so that the tasks are made too."""
    after, pages = (-1, ""), 0
    while page := ledger.begin_page(BATCH_ID, after, 20, 1 << 40):
        after, pages = (page[-1].file_size, page[-1].id), pages + 1
        assert pages < 1_000
        for task in map(pfu.task_of, page):
            assert pickle.loads(pickle.dumps(task)) == task
            assert len(os.fsencode(task.path) + task.key.encode()) + task.size >= task.size
        ledger.record(page)


def try_ledger(path: Path, *, read_only: bool) -> Counter[str]:
    """Read, and write unless ``read_only``, all that can be; count what worked."""
    said: Counter[str] = Counter()
    began = time.monotonic()
    try:
        ledger = pfu.Ledger(path, read_only=read_only)
    except pfu.LedgerError as error:
        assert_on_one_line(str(error))
        return Counter(refused=1)
    for name, use in (READINGS if read_only else {**READINGS, **WRITINGS}).items():
        try:
            use(ledger)
            said[name] += 1
        except pfu.LedgerError as error:
            assert_on_one_line(str(error))
            said["error"] += 1
    ledger.close()
    assert time.monotonic() - began < 20
    return said


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A ledger file after a disk, or somebody, was at it."""
    text, size = bytearray(content), len(content)
    for _ in range(1 + int(rng.random() * 3)):
        kind, at = int(rng.random() * 8), int(rng.random() * size)
        page = at - at % 4096
        if kind < 2:
            text[at] ^= 1 << int(rng.random() * 8)
        elif kind == 2:
            text[at : at + 64] = bytes(len(text[at : at + 64]))
        elif kind == 3:
            text[page : page + 12] = bytes(int(rng.random() * 256) for _ in range(12))
        elif kind == 4:
            other = int(rng.random() * size) // 4096 * 4096
            text[page : page + 4096] = text[other : other + 4096]
        elif kind == 5:
            text[int(rng.random() * 100)] = rng.choice((0, 1, 2, 3, 4, 64, 255))  # the header
        elif kind == 6:
            text[page + 8 : page + 40] = text[page + 8 : page + 40][::-1]  # places of the rows
        elif rng.random() < 0.3:
            del text[at:]
            size = max(1, len(text))
            text = text or bytearray(b"S")
    return bytes(text)


def put_ledger(path: Path, content: bytes) -> None:
    """A new file: to overwrite one may take the time of a disk."""
    for end in pfu.LEDGER_SUFFIXES:
        Path(f"{path}{end}").unlink(missing_ok=True)
    path.write_bytes(content)


def changed_rows(path: Path, rng: random.Random, table: str, column: str, value: str) -> None:
    """As somebody may have written them by SQL; some may be refused, as ids differ."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        where = rng.choice(["", "WHERE rowid % 2", "WHERE rowid=2"])
        db.execute(f"UPDATE OR IGNORE {table} SET {column}={value} {where}")


def odd_rows(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Every column with every odd value."""
    models: list[type[pfu.BaseModel]]
    models = [pfu.FileModel, pfu.BatchJobRow, pfu.UploadModel, pfu.PartModel, pfu.OutcomeRow]
    columns = [(model.table, column) for model in models for column in model.columns()]
    cases = [(*place, value) for place in columns for value in ODD_VALUES]
    rng.shuffle(cases)
    assert len(cases) // SHARE <= ODD_ROWS
    return itertools.islice(itertools.cycle(cases), ODD_ROWS)


def assert_program_copes(
    path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    """--status and --cleanup --dry-run: what they say, or one line of why not."""
    action = rng.choice([["--status"], ["--cleanup", "--dry-run"]])
    code = pfu.main([*action, *rng.choice([[], ["--json"]]), "--db", str(path)])
    out, err = capsys.readouterr()
    assert "internal error" not in err and "Traceback" not in err, err
    assert (code, err.count("\n")) in ((0, 0), (2, 1)), err
    for line in (out + err).splitlines():
        assert_on_one_line(line)
