"""What is taken by name: lists of files, and directories marked as not worth a copy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import pfu
from testing.place import Place, Run, assert_accounts

MODES = pytest.mark.parametrize("mode", ["concurrent", "parallel"])
TREE = (
    *("a.txt", "b.log", "logs/x.log", "logs/deep/z.log", "src/main.c", "src-old/main.c"),
    *("sp ace.txt", "#hash", "-dash", "'quote", "new\nline"),
)


def listed(place: Place, *arguments: Any, told: bytes) -> Run:
    (place.path / "list").write_bytes(told)
    return place.run("--files-from", "list", "--json", *arguments)


def failures(run: Run, place: Place) -> dict[str, str]:
    """Reasons by path below ROOT."""
    cut = len(f"{place.root}/")
    return {failed["path"][cut:]: failed["reason"] for failed in run.json["failures"]}


@pytest.fixture
def tree(place: Place) -> Place:
    for name in TREE:
        place.file(name, name.encode())
    return place


TAKEN: list[tuple[bytes, str, set[str]]] = [
    (b"a.txt\nlogs/x.log\n", "", {"a.txt", "logs/x.log"}),
    (b"a.txt", "", {"a.txt"}),
    (b"", "", set()),
    (b"\n\n", "", set()),
    (b"./a.txt\n.//logs/./x.log\na.txt\n", "", {"a.txt", "logs/x.log"}),
    (b"\xef\xbb\xbfa.txt\n", "", {"a.txt"}),
    (b"#hash\n-dash\n'quote\nsp ace.txt\n", "", {"#hash", "-dash", "'quote", "sp ace.txt"}),
    (b"src/main.c\nsrc-old/main.c\nsrc/main.c\n", "", {"src/main.c", "src-old/main.c"}),
    (b"a.txt\nb.log\nlogs/x.log\n", "--exclude *.log", {"a.txt"}),
    (b"a.txt\nlogs/x.log\nlogs/deep/z.log\n", "--exclude logs/", {"a.txt"}),
    (b"a.txt\nlogs\n.\nlogs/deep/\n", "", {"a.txt"}),
    (b"logs\na.txt\n", "--directory-markers", {"a.txt", "logs/"}),
]
REFUSED: list[tuple[bytes, dict[str, str]]] = [
    (b"nowhere\n", {"nowhere": "No such file"}),
    (b"logs/nowhere\nno/where\n", {"logs/nowhere": "No such file", "no/where": "No such file"}),
    (b"../outside\n", {"../outside": "may lead out of ROOT"}),
    (b"logs/../../outside\n", {"logs/../../outside": "may lead out of ROOT"}),
    (b"/etc/hostname\n", {"/etc/hostname": "it is absolute"}),
    (b"a.txt/b\n", {"a.txt/b": "a.txt is not a directory"}),
    (b"out/secret\n", {"out/secret": "out is not a directory but a symbolic link"}),
    (b"b.log\r\n", {"b.log\r": "the list has Windows line ends"}),
    (b"x" * 300 + b"\n", {"x" * 300: "File name too long"}),
]
WRONG: list[tuple[bytes, str, str]] = [
    (b"a.txt\0b.log\0", "--files-from list", "if each path ends with a NUL, pass it as"),
    ("a.txt\n".encode("utf-16"), "--files-from list", "it is UTF-16 (save it as UTF-8)"),
    (b"x" * 70_000, "--files-from list", "it has a path of more than 65,536 bytes"),
    (b"", "--files-from nowhere", "nowhere: No such file or directory"),
    (b"", "--files-from tree", "tree: Is a directory"),
    (b"", "--files-from list --files-from0 list", "cannot be combined with --files-from"),
    (b"", "--files-from list --verify", "cannot be combined with a list of files"),
    (b"", "--exclude-if-present a/b", "'a/b' is not the name of a file"),
    (b"", "--exclude-if-present ..", "'..' is not the name of a file"),
]


class TestFilesFrom:
    """--files-from, --files-from0."""

    @pytest.mark.parametrize("told, options, names", TAKEN)
    def test_what_is_listed_is_taken(
        self, tree: Place, told: bytes, options: str, names: set[str]
    ) -> None:
        run = listed(tree, "--mode", "concurrent", *options.split(), told=told)
        assert (run.code, set(tree.stored())) == (0, names), run.err
        assert_accounts(run.json)

    @MODES
    def test_every_name_there_is(self, tree: Place, mode: str) -> None:
        names = b"".join(name.encode() + b"\0" for name in TREE)
        (tree.path / "list").write_bytes(names)
        run = tree.run("--files-from0", "list", "--mode", mode)
        assert (run.code, tree.stored()) == (0, tree.local()), run.err

    @pytest.mark.parametrize("told, reasons", REFUSED, ids=[str(row[0][:20]) for row in REFUSED])
    def test_what_is_not_there_fails_by_name(
        self, tree: Place, told: bytes, reasons: Mapping[str, str]
    ) -> None:
        (tree.path / "secrets").mkdir()
        (tree.path / "secrets/secret").write_text("s")
        (tree.path / "outside").write_text("s")
        (tree.root / "out").symlink_to(tree.path / "secrets")
        run = listed(tree, "--mode", "concurrent", told=told + b"a.txt\n")
        assert (run.code, set(tree.stored())) == (1, {"a.txt"}), run.err
        assert_accounts(run.json)
        told_reasons = failures(run, tree)
        cut = {name.lstrip("/") if name.startswith("/") else name for name in told_reasons}
        assert len(cut) == len(reasons)
        for (_, reason), expected in zip(sorted(told_reasons.items()), [*reasons.values()]):
            assert expected in reason

    @pytest.mark.parametrize("told, options, says", WRONG, ids=[row[2][:20] for row in WRONG])
    def test_bad_input_is_one_line(self, tree: Place, told: bytes, options: str, says: str) -> None:
        (tree.path / "list").write_bytes(told)
        run = tree.run(*options.split(), "--mode", "concurrent")
        assert run.code == 2 and says in run.err and len(run.err.splitlines()) == 1, run.err
        assert not tree.stored()

    def test_rows_of_other_files_are_left_alone(self, tree: Place) -> None:
        assert tree.run().code == 0
        before = {row["object_key"]: row for row in tree.rows()}
        (tree.root / "b.log").unlink()
        tree.file("a.txt", b"other")
        run = listed(tree, "--keep-history", "0", told=b"a.txt\n")
        after = {row["object_key"]: row for row in tree.rows()}
        assert (run.code, run.json["uploaded"], run.json["seen"]) == (0, 1, 1)
        assert before.keys() == after.keys()
        assert [key for key in before if before[key] != after[key]] == ["p/a.txt"]

    def test_an_empty_list_is_no_empty_tree(self, tree: Place) -> None:
        assert tree.run().code == 0
        assert listed(tree, told=b"").code == 0

    def test_a_single_file_has_no_list(self, tree: Place) -> None:
        (tree.path / "list").write_bytes(b"a.txt\n")
        command = [str(tree.root / "a.txt"), "s3://bkt/p", "--files-from", "list"]
        run = tree.run(*command, to=None)
        assert run.code == 2 and "it is not a directory" in run.err

    def test_links_are_followed_if_that_is_asked_for(self, tree: Place) -> None:
        (tree.path / "more").mkdir()
        (tree.path / "more/m").write_text("m")
        (tree.root / "out").symlink_to(tree.path / "more")
        run = listed(tree, "--follow-symlinks", told=b"out/m\n")
        assert (run.code, set(tree.stored())) == (0, {"out/m"}), run.err

    def test_a_stored_link(self, tree: Place) -> None:
        (tree.root / "to").symlink_to("a.txt")
        assert listed(tree, "--links", told=b"to\n").code == 0
        assert set(tree.stored()) == {"to.rclonelink"}
        assert listed(tree, told=b"to\n").json["skipped_by_reason"] == {"symbolic link": 1}

    @MODES
    def test_standard_input(self, tree: Place, mode: str) -> None:
        command = tree.command("--files-from", "-", "--mode", mode)
        done = subprocess.run(
            command, cwd=tree.path, env=tree.environment, input=b"a.txt\nb.log\n", timeout=60
        )
        assert (done.returncode, set(tree.stored())) == (0, {"a.txt", "b.log"})

    def test_a_silent_standard_input_can_be_stopped(self, tree: Place) -> None:
        command = tree.command("--files-from", "-", "--mode", "concurrent")
        with subprocess.Popen(
            command,
            cwd=tree.path,
            env=tree.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as started:
            while not (tree.path / "pfu.db").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            started.send_signal(signal.SIGTERM)
            assert started.wait(10) == 4
            assert started.stderr and "SIGTERM received" in started.stderr.read()

    def test_a_named_pipe(self, tree: Place) -> None:
        os.mkfifo(tree.path / "pipe")
        writer = "import time; f = open('pipe', 'w'); time.sleep(0.3); f.write('a.txt\\n')"
        with subprocess.Popen([sys.executable, "-c", writer], cwd=tree.path):
            run = tree.run("--files-from", "pipe")
        assert (run.code, set(tree.stored())) == (0, {"a.txt"}), run.err

    @pytest.mark.parametrize("option", ["--files-from", "--files-from0", "--exclude-from"])
    def test_a_name_that_is_empty(self, tree: Place, option: str) -> None:
        """A variable that a script has not set must not mean the whole tree."""
        run = tree.run(option, "", "--remove-source-files")
        assert (run.code, tree.stored()) == (2, {}) and set(tree.local()) == set(TREE)
        assert f"argument {option}: the value is empty" in run.err

    @pytest.mark.parametrize("value", ["", " "])
    def test_a_variable_that_is_empty(self, tree: Place, value: str) -> None:
        tree.environment["PFU_FILES_FROM"] = value
        run = tree.run("--remove-source-files")
        assert (run.code, tree.stored()) == (2, {}) and set(tree.local()) == set(TREE)
        assert "PFU_FILES_FROM: the value is empty" in run.err

    def test_a_library_gives_a_sequence(self) -> None:
        with pytest.raises(pfu.UsageError, match="must be a sequence of paths"):
            pfu.ScanOptions(files_from="list")

    def test_an_absolute_path_is_no_file_of_root(self, tree: Place) -> None:
        assert tree.run().code == 0
        run = listed(tree, told=b"/a.txt\n")
        assert (run.code, run.json["failed"]) == (1, 1)
        again = tree.run("--json")
        assert (again.code, again.json["uploaded"]) == (0, 0), again.err

    def test_several_lists(self, tree: Place) -> None:
        for name in ("a.txt", "b.log"):
            (tree.path / f"list-{name}").write_text(name)
        lists = [f"--files-from=list-{name}" for name in ("a.txt", "b.log")]
        assert (tree.run(*lists).code, set(tree.stored())) == (0, {"a.txt", "b.log"})

    def test_a_name_that_begins_with_a_byte_order_mark(self, tree: Place) -> None:
        mark = b"\xef\xbb\xbf"
        tree.file(mark + b"a.txt", b"marked")
        (tree.path / "list").write_bytes(mark + b"a.txt\0")
        run = tree.run("--files-from0", "list")
        assert (run.code, tree.stored()) == (0, {"\ufeffa.txt": b"marked"}), run.err

    @MODES
    def test_a_standard_input_that_is_closed(self, tree: Place, mode: str) -> None:
        done = tree.run_in_shell('exec "$@" <&-', "--files-from", "-", "--mode", mode)
        assert (done.returncode, tree.stored()) == (2, {}), done.stderr
        assert "standard input is closed" in done.stderr

    @pytest.mark.parametrize("option, end", [("--files-from", r"\n"), ("--files-from0", r"\0")])
    def test_an_endless_list_can_be_stopped(self, tree: Place, option: str, end: str) -> None:
        script = rf"""yes a | tr '\n' '{end}' | "$@"; exit ${{PIPESTATUS[2]}}"""
        arguments = option, "-", "--max-duration", "1s", "--mode", "concurrent"
        done = tree.run_in_shell(script, *arguments)
        assert done.returncode == 4 and "time limit of 1 s reached" in done.stderr, done.stderr

    def test_a_list_that_comes_late_is_no_hang(self, tree: Place) -> None:
        tree.changes = "WATCH_SECONDS = 4; Watchdog.TICK = 0.1"
        os.mkfifo(tree.path / "pipe")
        writer = "import time; f = open('pipe', 'w'); time.sleep(6); f.write('a.txt\\n')"
        with subprocess.Popen([sys.executable, "-c", writer], cwd=tree.path):
            run = tree.run("--files-from", "pipe")
        assert (run.code, set(tree.stored())) == (0, {"a.txt"}), run.err

    def test_many_names_are_sorted_and_told_once(self, place: Place) -> None:
        place.files(800, size=10)
        names = [str(path.relative_to(place.root)) for path in place.root.rglob("f*")]
        run = listed(place, told="\n".join([*names, *reversed(names)]).encode())
        assert (run.code, run.json["uploaded"], run.json["seen"]) == (0, 800, 800)

    def test_a_dry_run_says_what_would_be_sent(self, tree: Place) -> None:
        run = listed(tree, "--dry-run", told=b"a.txt\nnowhere\n")
        assert (run.code, run.json["pending"], run.json["failed"]) == (1, 1, 1)


class TestMarked:
    """--exclude-if-present, --exclude-caches."""

    SIGNATURE = pfu.CACHE_SIGNATURE

    @MODES
    @pytest.mark.parametrize(
        "options, skipped",
        [
            ("", set()),
            ("--exclude-if-present .nobackup", {"a"}),
            ("--exclude-if-present .nobackup --exclude-if-present .skip", {"a", "deep/b"}),
            ("--exclude-caches", {"cache"}),
        ],
    )
    def test_marked_directories_are_skipped(
        self, place: Place, options: str, skipped: set[str], mode: str
    ) -> None:
        for name in ("f", "a/.nobackup", "a/f", "a/below/f", "deep/b/f", "deep/f", "no/f"):
            place.file(name)
        (place.root / "deep/b/.skip").mkdir()
        place.file("cache/CACHEDIR.TAG", self.SIGNATURE + b"\n# by a test\n")
        place.file("cache/f")
        place.file("no/CACHEDIR.TAG", b"not the signature")
        run = place.run(*options.split(), "--mode", mode, "--json")
        below = tuple(f"{name}/" for name in skipped)
        left = {name: body for name, body in place.local().items() if not name.startswith(below)}
        assert (run.code, place.stored()) == (0, left), run.err
        assert run.json["skipped"] == len(skipped)
        assert_accounts(run.json)

    def test_a_mark_in_root_itself_is_no_order(self, place: Place) -> None:
        place.file(".nobackup")
        place.file("CACHEDIR.TAG", self.SIGNATURE)
        run = place.run("--exclude-if-present", ".nobackup", "--exclude-caches")
        assert (run.code, place.stored()) == (0, place.local())

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_a_cache_tag_is_a_regular_file(self, place: Place, kind: str) -> None:
        place.file("c/f")
        tag, real = place.root / "c/CACHEDIR.TAG", place.path / "tag"
        real.write_bytes(self.SIGNATURE)
        {"link": lambda: tag.symlink_to(real), "fifo": lambda: os.mkfifo(tag)}.get(
            kind, tag.mkdir
        )()
        run = place.run("--exclude-caches")
        assert (run.code, set(place.stored())) == (0, {"c/f"})

    def test_a_listed_file_in_one_is_skipped(self, place: Place) -> None:
        place.file("a/.nobackup")
        place.file("a/b/f")
        place.file("f")
        run = listed(place, "--exclude-if-present", ".nobackup", told=b"a/b/f\nf\n")
        assert (run.code, set(place.stored())) == (0, {"f"})
        assert run.json["skipped_by_reason"] == {"directory with .nobackup": 1}


def test_paths_are_cleaned() -> None:
    table = {b"a": b"a", b"./a//b/": b"a/b", b".": b"", b"": b"", b"//a": b"/a", b"a/.": b"a"}
    assert {told: pfu.cleaned_path(told) for told in table} == table


def test_lines_may_be_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo/three\n\nfour")
    for size in range(3, 9):
        monkeypatch.setattr(pfu, "LIST_PIECE", size)
        told = pfu.listed_paths(str(path), b"\n", lambda: None)
        assert [*told] == [b"one", b"two/three", b"four"]
