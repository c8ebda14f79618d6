#!/usr/bin/env python3
"""Make a tree of sample files to try pfu on: `python samplegen.py 3`.

DEPTH counts levels: 1 is ROOT and its files, 2 adds ROOT's subdirectories and their files, and
so on.  The seed and a file's path decide its size and bytes, so the same options make the same
tree on every machine and every Python, and a deeper tree holds the shallower one.  Sizes are
log-uniform: as many files lie between 1 and 2 KiB as between 512 KiB and 1 MiB.  No two files are
alike and none compresses well, yet a MiB costs one hash: it is a header that hashes seed, path
and position, then a stretch of one pseudo-random block, cut where the header says.

From Python: `generate(SampleTree(root=path, depth=2))` makes a tree, `planned_files` says what is
in one without making it, and `content` gives the bytes of a file.

Exit codes: 0 made, 1 could not write, 2 refused (usage), 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

__all__ = ["Made", "SampleTree", "content", "generate", "planned_files"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SMALLEST = 512
LARGEST = 1 * MIB
FLAT_LARGEST = 8 * KIB  # a flat directory is for many small files: a million are then 2.6 GiB
SIZE_LIMIT = 1 * GIB
DEPTH_LIMIT = 100  # keeps the longest path well under PATH_MAX, 4,096 bytes
FLAT_LIMIT = 1_000_000
TREE_LIMIT = 10_000_000  # files and directories together
PIECE_BYTES = 1 * MIB
HEADER_BYTES = 32
SUFFIXES = ("bin", "jpg", "txt")  # three, so that content types differ within a directory of three


# ==================================================================================================
# What a tree holds
# ==================================================================================================


class TreeError(ValueError):
    """A tree that cannot be asked for; the message is one line that says why."""


@dataclass(frozen=True)
class SampleTree:
    """What to make; raises TreeError if that makes no sense.

    Sizes are in bytes.  `flat` files go into one more directory, ROOT/flat; with `depth` 0 there
    is nothing else.
    """

    root: str | os.PathLike[str] = "samples"
    depth: int = 3
    files: int = 3
    dirs: int = 3
    smallest: int = SMALLEST
    largest: int = LARGEST
    flat: int = 0
    flat_largest: int = FLAT_LARGEST
    seed: int = 1

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_sizes(self)
        directories = self.directories()
        files = directories * self.files if self.depth else 0
        if directories + files + self.flat > TREE_LIMIT:
            raise TreeError(
                f"{self.depth} levels of {self.dirs} directories with {self.files} files each are "
                f"more than {TREE_LIMIT:,} files and directories"
            )

    def directories(self) -> int:
        """How many directories the levels have, ROOT included."""
        return sum(self.dirs**level for level in range(self.depth))


def _check_numbers(tree: SampleTree) -> None:
    ranges = (
        ("DEPTH", tree.depth, 0, DEPTH_LIMIT),
        ("--files", tree.files, 0, TREE_LIMIT),
        ("--dirs", tree.dirs, 1, TREE_LIMIT),
        ("--flat", tree.flat, 0, FLAT_LIMIT),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise TreeError(f"{name} must be {low:,} to {high:,}, not {value:,}")
    if not tree.depth and not tree.flat:
        raise TreeError("nothing to make: give DEPTH (1 or more), --flat N, or both")


def _check_sizes(tree: SampleTree) -> None:
    for name, value in (("--min-size", tree.smallest), ("--max-size", tree.largest)):
        if not 0 <= value <= SIZE_LIMIT:
            raise TreeError(f"{name} must be 0 to 1G, not {value:,} bytes")
    sizes = [tree.largest] * (tree.depth > 0) + [tree.flat_largest] * (tree.flat > 0)
    if tree.smallest > min(sizes):
        raise TreeError(
            f"--min-size, {human(tree.smallest)}, is above --max-size, {human(min(sizes))}"
        )


def planned_directories(tree: SampleTree, above: str = "", level: int = 1) -> Iterator[str]:
    """Each directory of the levels as a path relative to ROOT; "" is ROOT, parents come first."""
    if level <= tree.depth:
        yield above
    if level < tree.depth:
        for number in range(1, tree.dirs + 1):
            yield from planned_directories(tree, f"{above}dir-{number}/", level + 1)


def planned_files(tree: SampleTree) -> Iterator[tuple[str, int]]:
    """Each file of the tree: its path relative to ROOT, and its size in bytes."""
    for directory in planned_directories(tree):
        for name in _names(tree.files):
            path = directory + name
            yield path, _size(tree.seed, path, tree.smallest, tree.largest)
    for name in _names(tree.flat):
        path = "flat/" + name
        yield path, _size(tree.seed, path, tree.smallest, tree.flat_largest)


def _names(count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        yield f"sample-{number:04d}.{SUFFIXES[number % len(SUFFIXES)]}"


# ==================================================================================================
# Sizes: log-uniform, in whole numbers, so that no platform's math library can change one
# ==================================================================================================
# A size stands at a position on a scale of octaves, 2**32 steps to each, straight within the
# octave: 2**n * (1 + f) stands at (n + f) * 2**32.  To draw a position evenly is to draw every
# octave equally often.  Sizes are moved up by one, so that 0 has a place.


def _size(seed: int, path: str, smallest: int, largest: int) -> int:
    low, end = _position(smallest + 1), _position(largest + 2)
    draw = int.from_bytes(_digest(seed, path, -1)[:8], "big")
    return _at(low + (draw * (end - low) >> 64)) - 1


def _position(number: int) -> int:
    octave = number.bit_length() - 1
    return (octave << 32) + ((number - (1 << octave)) << 32 >> octave)


def _at(position: int) -> int:
    octave, fraction = position >> 32, position & 0xFFFFFFFF
    return (1 << octave) + (fraction << octave >> 32)


# ==================================================================================================
# Contents
# ==================================================================================================


def content(seed: int, path: str, size: int) -> Iterator[memoryview]:
    """The bytes of a file in pieces of at most 1 MiB; `path` is relative to ROOT."""
    block = _block(seed)
    for position in range(0, size, PIECE_BYTES):
        left = min(size - position, PIECE_BYTES)
        header = _digest(seed, path, position)
        yield memoryview(header)[:left]
        if left > HEADER_BYTES:
            start = int.from_bytes(header[:8], "big") % PIECE_BYTES
            yield block[start : start + left - HEADER_BYTES]


def _digest(seed: int, path: str, position: int) -> bytes:
    text = f"{seed}/{position}/{path}"
    return hashlib.blake2b(text.encode(), digest_size=HEADER_BYTES).digest()


@functools.lru_cache(maxsize=1)
def _block(seed: int) -> memoryview:
    return memoryview(hashlib.shake_128(str(seed).encode()).digest(2 * PIECE_BYTES))


# ==================================================================================================
# Making it
# ==================================================================================================


class Made(NamedTuple):
    """What `generate` made; `size` is the sum of all file sizes in bytes."""

    files: int
    directories: int
    size: int


def generate(tree: SampleTree) -> Made:
    """Write the tree; files of the same name are overwritten, anything else below ROOT is left.

    Raises OSError where something cannot be written; ENOSPC before the first byte if the disk
    is too small.
    """
    root = os.path.abspath(tree.root)
    _check_space(tree, root)
    directories = _make_directories(tree, root)
    files = total = 0
    for path, size in planned_files(tree):
        _write(f"{root}/{path}", content(tree.seed, path, size))
        files += 1
        total += size
    return Made(files, directories, total)


def _write(path: str, pieces: Iterator[memoryview]) -> None:
    try:
        with open(path, "wb") as stream:
            stream.writelines(pieces)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _make_directories(tree: SampleTree, root: str) -> int:
    made = 0
    for directory in planned_directories(tree):
        os.makedirs(f"{root}/{directory}", exist_ok=True)
        made += 1
    if tree.flat:
        os.makedirs(f"{root}/flat", exist_ok=True)
        made += 1 if tree.depth else 2
    return made


def _check_space(tree: SampleTree, root: str) -> None:
    above = Path(root)
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    most = tree.directories() * tree.files * tree.largest + tree.flat * tree.flat_largest
    if most <= free:
        return
    needed = sum(size - _present(f"{root}/{path}") for path, size in planned_files(tree))
    if needed > free:
        reason = f"the tree needs {human(needed)} more, {human(free)} are free"
        raise OSError(errno.ENOSPC, reason, os.fspath(tree.root))


def _present(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


# ==================================================================================================
# Command line
# ==================================================================================================


def size_in_bytes(text: str) -> int:
    """512, 512K, 1MiB, 1g: K, M and G are powers of 1024, with or without B or iB."""
    match = re.fullmatch(r"([0-9]{1,18})(?:([KMG])(?:i?B)?|B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (512, 64K, 1MiB, 1G)")
    return int(match[1]) * {"": 1, "K": KIB, "M": MIB, "G": GIB}[(match[2] or "").upper()]


def human(size: float) -> str:
    """A size as a person reads it: 512 bytes, 5.3 MiB."""
    if size < KIB:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size /= KIB
        if size < KIB:
            return f"{size:.1f} {unit}"
    return f"{size / KIB:,.1f} TiB"


EPILOG = """\
SIZE is 512, 64K, 1MiB, 1G: K, M and G are powers of 1024; the limit is 1G.  ROOT may exist: files
that the tree has are overwritten, all others stay, so over a larger tree a smaller one leaves the
rest of the larger one in place.  Remove ROOT to start afresh."""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def command_line() -> OneLineParser:
    parser = OneLineParser(
        prog="samplegen.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a tree of sample files of varied sizes.",
        epilog=EPILOG,
    )
    levels = parser.add_argument_group("levels")
    add = levels.add_argument
    add("depth", type=int, nargs="?", metavar="DEPTH", help="levels; 1 is ROOT's files only")
    add("--files", type=int, default=3, metavar="N", help="files in each directory (3)")
    add("--dirs", type=int, default=3, metavar="N", help="subdirectories in each directory (3)")
    flat = parser.add_argument_group("one flat directory, with or without levels")
    add = flat.add_argument
    add("--flat", type=int, default=0, metavar="N", help="N files, up to a million, in ROOT/flat")
    both = parser.add_argument_group("both")
    add = both.add_argument
    add("--root", default="samples", help="where to make it (samples)")
    add("--min-size", type=size_in_bytes, metavar="SIZE", help="smallest file (512, or MAX/8)")
    add("--max-size", type=size_in_bytes, metavar="SIZE", help="largest file (1M; in flat 8K)")
    add("--seed", type=int, default=1, metavar="N", help="another seed, another tree (1)")
    return parser


def requested_tree(options: argparse.Namespace) -> SampleTree:
    """The tree that the options ask for; raises TreeError."""
    if options.depth is not None and not 1 <= options.depth <= DEPTH_LIMIT:
        raise TreeError(f"DEPTH must be 1 to {DEPTH_LIMIT}, not {options.depth}")
    if not options.root:
        raise TreeError("--root is empty")
    if os.path.lexists(options.root) and not os.path.isdir(options.root):
        raise TreeError(f"{_printable(options.root)} is there and is no directory")
    smallest: int | None = options.min_size
    largest: int | None = options.max_size
    if smallest is None:
        smallest = SMALLEST if largest is None else min(SMALLEST, largest // 8)
    return SampleTree(
        root=options.root,
        depth=options.depth or 0,
        files=options.files,
        dirs=options.dirs,
        smallest=smallest,
        largest=LARGEST if largest is None else largest,
        flat=options.flat,
        flat_largest=FLAT_LARGEST if largest is None else largest,
        seed=options.seed,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = command_line()
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        made = generate(requested_tree(options))
        print(_report(made, options.root, time.monotonic() - started), flush=True)
    except TreeError as error:
        parser.error(str(error))
    except OSError as error:
        path = _printable(error.filename or "to standard output")
        print(f"{parser.prog}: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, the tree is not complete", file=sys.stderr)
        return 130
    return 0


def _report(made: Made, root: str, seconds: float) -> str:
    files = "1 file" if made.files == 1 else f"{made.files:,} files"
    directories = "1 directory" if made.directories == 1 else f"{made.directories:,} directories"
    return (
        f"{files} in {directories}, {human(made.size)} ({made.size:,} bytes), "
        f"made in {seconds:.1f} s: {_printable(os.path.abspath(root))}"
    )


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
