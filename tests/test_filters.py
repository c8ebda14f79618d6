"""What is taken: filters by pattern, age and size; shares of a tree."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence

import pytest

import pfu
from testing.place import Place, assert_accounts, drop_privilege

# ======================================================================================
# Filters
# ======================================================================================


TREE = (
    *("a.txt", "b.log", "keep.log", "logs/x.log", "logs/y.txt", "logs/deep/z.log"),
    *("src/main.c", "src/main.o", "src/lib/util.o", "src/lib/util.c", "tmp/t", "x[1].txt"),
    *("docs/a/b/c.md", "docs/c.md", "c.md", "[odd]", "sp ace.txt", "#hash", "!bang"),
)
PATTERNS = [
    ["*.log"],
    ["*.log", "!keep.log"],
    ["/a.txt"],
    ["logs"],
    ["logs/"],
    ["logs/*", "!logs/deep"],
    ["logs/**"],
    ["**/c.md"],
    ["docs/**/c.md"],
    ["docs/*/c.md"],
    ["src/**/*.o", "!src/lib/util.o"],
    ["*.[co]"],
    ["*.[!c]"],
    ["?.txt"],
    [r"x\[1\].txt"],
    ["x[[]1].txt"],
    [r"\#hash", r"\!bang"],
    ["**"],
    ["*", "!*.txt"],
    ["/*", "!/src", "/src/*", "!/src/lib"],
    ["sp*"],
    ["[odd]"],
    ["a.txt/"],
    ["lib/"],
    ["src/lib"],
    ["*a*.t*t"],
    ["s*c/*i*/u*l.*"],
    ["**/a/**/c.md"],
    ["*/**/*/c.md"],
    ["d*s/**/b/**/*.md"],
    ["**/*o*/**/*z*o*"],
]


def taken_by_git(place: Place, lines: Sequence[str]) -> set[str]:
    """What git would not ignore: the judge of .gitignore's format."""
    (place.root / ".gitignore").write_text("\n".join(lines))
    command = ["git", "-c", "core.excludesFile=/dev/null", "ls-files", "-z", "--others"]
    subprocess.run(["git", "init", "-q"], cwd=place.root, check=True)
    told = subprocess.run(
        [*command, "--exclude-per-directory=.gitignore"],
        cwd=place.root,
        capture_output=True,
        check=True,
    ).stdout
    shutil.rmtree(place.root / ".git")
    (place.root / ".gitignore").unlink()
    return {os.fsdecode(name) for name in told.split(b"\0") if name} - {".gitignore"}


def scanned(place: Place, options: pfu.ScanOptions) -> set[str]:
    found = pfu.Scan(str(place.root), "to", "", options)
    return {entry.key for entry in found}


HOSTILE: list[tuple[str, str, str]] = [  # a pattern, a name that it all but matches, one it does
    ("*a" * 8 + "*b", "a" * 255, "a" * 254 + "b"),
    ("**/a/" * 8 + "**/b", "a/" * 120 + "c", "a/" * 120 + "b"),
    ("/" + "*a*/*b*/" * 8 + "x", f"{'a' * 30}/{'b' * 30}/" * 8 + "y", f"{'a' * 9}/{'b' * 9}/" * 8),
    ("*?a[ab]" * 8 + "x", "ab" * 127, "ab" * 80 + "x"),
]


FILTERS: list[tuple[str, set[str]]] = [
    ("--exclude *.log", {*TREE} - {"b.log", "keep.log", "logs/x.log", "logs/deep/z.log"}),
    (
        "--exclude *.log --include keep.log",
        {*TREE} - {"b.log", "logs/x.log", "logs/deep/z.log"},
    ),
    ("--include *.c", {"src/main.c", "src/lib/util.c"}),
    ("--include docs/", {"docs/a/b/c.md", "docs/c.md"}),
    ("--include src --exclude *.o", {"src/main.c", "src/lib/util.c"}),
    ("--include *.c --exclude lib", {"src/main.c"}),
    ("--exclude /* --include /a.txt", {"a.txt"}),
    ("--exclude-from patterns --include tmp", {*TREE} - {"c.md", "docs/c.md", "docs/a/b/c.md"}),
]
LIMITS: list[tuple[str, set[str], str]] = [
    ("--min-age 1d", {"old", "big"}, "newer than --min-age"),
    ("--max-age 1d", {"new"}, "older than --max-age"),
    ("--min-size 1K", {"big"}, "below --min-size"),
    ("--max-size 1K", {"old", "new"}, "above --max-size"),
    ("--max-size 0", set(), "above --max-size"),
]
WRONG_FILTERS = [
    ("--exclude [z-a]", "bad character range"),
    ("--exclude []*", "unterminated character set"),
    ("--exclude /", "the pattern is empty"),
    ("--exclude-from nowhere", "nowhere: No such file or directory"),
    ("--min-size 2K --max-size 1K", "--max-size is less than --min-size"),
    ("--min-age 2d --max-age 1d", "--max-age is less than --min-age"),
    ("--links --follow-symlinks", "--links cannot be combined with --follow-symlinks"),
    ("--shard 3/2", "invalid share '3/2': 3 is more than 2"),
    ("--shard auto", "SLURM_ARRAY_TASK_ID, AWS_BATCH_JOB_ARRAY_INDEX, JOB_COMPLETION_INDEX is set"),
    (
        "--shard auto/8",
        "invalid share 'auto/8': not in an array job (none of SLURM_ARRAY_TASK_ID, ",
    ),
    ("--shard 0/2", "invalid share '0/2'"),
    ("--tag novalue", "invalid tag 'novalue': use K=V"),
    ("--tag a=1 --tag a=2", "--tag has the same key twice"),
    (" ".join(f"--tag k{n}=v" for n in range(11)), "--tag can be given at most 10 times"),
    ("--max-memory 1", "--max-memory must be at least 10M: two parts must fit"),
    ("--expected-bucket-owner abc", "--expected-bucket-owner is not an AWS account ID"),
    ("--expected-bucket-owner 1234-5678", "--expected-bucket-owner is not an account ID"),
    ("-- a b c", "too many arguments after --: a b c"),
    ("--content-type *.x", "is not GLOB=TYPE"),
    ("--content-type *.x=text", "is not GLOB=TYPE"),
    ("--bwlimit 10", "--bwlimit is less than 1K per second"),
    ("--bwlimit 08:00,10", "--bwlimit is less than 1K per second"),
    ("--bwlimit 24:00,1M", "'24:00,1M' is not [DAY-]HH:MM,RATE"),
    ("--bwlimit Xyz-08:00,1M", "'Xyz-08:00,1M' is not [DAY-]HH:MM,RATE"),
    ("--bwlimit 08:00,1X", "invalid size '1X'"),
    ("--bwlimit 08:00,", "'08:00,' is not [DAY-]HH:MM,RATE"),
    ("--provider nothing", "not MODULE:CLASS"),
    ("--provider nothing:Here", "No module named 'nothing'"),
    ("--provider json:dumps", "not an Uploader subclass"),
    (
        "--provider json:dumps --storage-class X",
        "--storage-class applies to S3 only, not to --provider",
    ),
]


class TestFilters:
    """Filters."""

    @pytest.mark.skipif(not shutil.which("git"), reason="git is the judge")
    @pytest.mark.parametrize("lines", PATTERNS, ids=[" ".join(lines) for lines in PATTERNS])
    def test_patterns_mean_what_they_mean_to_git(self, place: Place, lines: list[str]) -> None:
        for name in TREE:
            place.file(name)
        patterns = place.path / "patterns"
        patterns.write_text("# comment\n\n" + "\n".join(lines))
        rules = tuple(pfu.rules_of_file(str(patterns)))
        assert scanned(place, pfu.ScanOptions(rules=rules)) == taken_by_git(place, lines)

    @pytest.mark.skipif(not shutil.which("git"), reason="git is the judge")
    @pytest.mark.parametrize("seed", range(3))
    def test_stars_mean_what_they_mean_to_git(self, place: Place, seed: int) -> None:
        generator = random.Random(seed)
        names = ["".join(generator.choices("ab", k=generator.randint(1, 5))) for _ in range(9)]
        for _ in range(60):
            place.file("/".join([*generator.choices(names, k=generator.randint(0, 4)), "f.a"]))
        for _ in range(12):
            steps = ["*a*", "a*b*", "*b", "*a*b*a*", "?*a", "[!a]*b*", "**", "**", "*", "f*.*a"]
            line = "/".join(generator.choices(steps, k=generator.randint(1, 5)))
            rules = (pfu.Rule(False, pfu.Glob.of(line)),)
            assert scanned(place, pfu.ScanOptions(rules=rules)) == taken_by_git(place, [line]), line

    @pytest.mark.parametrize("pattern, odd, plain", HOSTILE, ids=["stars", "steps", "both", "sets"])
    def test_no_name_holds_up_a_pattern(
        self, place: Place, pattern: str, odd: str, plain: str
    ) -> None:
        place.file(odd)
        place.file(plain + "x" if plain.endswith("/") else plain)
        command = place.command("--mode", "concurrent", "--exclude", pattern)
        done = subprocess.run(
            command, cwd=place.path, env=place.environment, capture_output=True, timeout=60
        )
        assert (done.returncode, set(place.stored())) == (0, {odd}), done.stderr

    def test_no_line_holds_up_a_file_of_patterns(self, place: Place) -> None:
        for name in ("a", "b"):
            place.file(name)
        (place.path / "patterns").write_text(" " * 500_000 + "x\na   \n")
        command = place.command("--mode", "concurrent", "--exclude-from", "patterns")
        done = subprocess.run(
            command, cwd=place.path, env=place.environment, capture_output=True, timeout=60
        )
        assert (done.returncode, set(place.stored())) == (0, {"b"}), done.stderr

    @pytest.mark.parametrize("options, taken", FILTERS, ids=[f[0] for f in FILTERS])
    def test_filters_in_their_order(self, place: Place, options: str, taken: set[str]) -> None:
        for name in TREE:
            place.file(name)
        (place.path / "patterns").write_text("tmp\n*.md\n")
        run = place.run("--mode", "concurrent", "--json", *options.split())
        assert run.code == 0, run.err
        assert set(place.stored()) == taken
        assert run.json["skipped_by_reason"]["excluded"] > 0
        assert_accounts(run.json)

    def test_an_excluded_directory_is_never_opened(self, place: Place) -> None:
        place.file("closed/f")
        place.file("f")
        (place.root / "closed").chmod(0)
        try:
            run = place.run("--mode", "concurrent", "--json", preexec_fn=drop_privilege)
            assert (run.code, run.json["failed"]) == (1, 1)
            run = place.run(
                "--mode", "concurrent", "--json", "--exclude", "closed", preexec_fn=drop_privilege
            )
        finally:
            (place.root / "closed").chmod(0o755)
        assert (run.code, run.json["skipped_by_reason"]) == (0, {"excluded": 1})

    @pytest.mark.parametrize("options, taken, reason", LIMITS, ids=[f[0] for f in LIMITS])
    def test_limits_of_age_and_size(
        self, place: Place, options: str, taken: set[str], reason: str
    ) -> None:
        place.file("old")
        place.file("big", b"x" * 5000)
        place.file("new", mtime=int(time.time()))
        run = place.run("--mode", "concurrent", "--json", *options.split())
        assert (run.code, set(place.stored())) == (0, taken)
        assert run.json["skipped_by_reason"] == {reason: 3 - len(taken)}
        assert_accounts(run.json)

    def test_filters_hold_for_a_single_file(self, place: Place) -> None:
        shutil.rmtree(place.root)
        place.root.write_bytes(b"x")
        run = place.run("--mode", "concurrent", "--json", "--exclude", "tree")
        assert (run.code, run.json["skipped"], place.stored()) == (0, 1, {})

    @pytest.mark.parametrize("options, says", WRONG_FILTERS, ids=[f[0] for f in WRONG_FILTERS])
    def test_options_that_make_no_sense(self, place: Place, options: str, says: str) -> None:
        place.endpoint = ""
        place.file("f")
        run = place.run(*options.split())
        assert (run.code, run.err.count("\n")) == (2, 1), run.err
        assert says in run.err


# ======================================================================================
# Shares: --shard
# ======================================================================================


ARRAYS: list[tuple[str, dict[str, str], pfu.Shard]] = [
    ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, pfu.Shard(4, 8)),
    (
        "auto",
        {
            "SLURM_ARRAY_TASK_ID": "14",
            "SLURM_ARRAY_TASK_MIN": "10",
            "SLURM_ARRAY_TASK_STEP": "2",
            "SLURM_ARRAY_TASK_COUNT": "5",
        },
        pfu.Shard(3, 5),
    ),
    (
        "auto",
        {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "4"},
        pfu.Shard(1, 4),
    ),
    ("auto/6", {"JOB_COMPLETION_INDEX": "5"}, pfu.Shard(6, 6)),
]


class TestShares:
    """Shares: --shard."""

    @pytest.mark.parametrize("shards", [1, 2, 5])
    def test_shares_of_a_tree_make_the_whole(self, place: Place, shards: int) -> None:
        place.files(60)
        keys: list[set[str]] = []
        for number in range(1, shards + 1):
            run = place.run("--mode", "concurrent", "--shard", f"{number}/{shards}", "--json")
            assert run.code == 0, run.err
            before: set[str] = set().union(*keys)
            keys.append(set(place.stored()) - before)
            assert len(keys[-1]) == run.json["seen"] == run.json["uploaded"]
            assert (place.path / f"pfu.{number}-of-{shards}.db").exists()
        assert set().union(*keys) == set(place.local())
        assert place.server.count("PutObject") == 60
        assert min(map(len, keys)) > 0

    def test_a_share_is_verified_alone(self, place: Place) -> None:
        place.files(20)
        place.root.joinpath("link").symlink_to("d1")
        arguments = ["--mode", "concurrent", "--links", "--directory-markers", "--shard"]
        for share in ("1/2", "2/2"):
            assert place.run(*arguments, share).code == 0
        checked = 0
        for share in ("1/2", "2/2"):
            run = place.run(*arguments, share, "--verify", "--json")
            assert (run.code, run.json["extra"], run.json["objects"]) == (0, 0, 28), run.out
            checked += run.json["checked"]
        assert checked == 28
        (place.root / "d1/f00001").unlink()
        known = 0
        for share in ("1/2", "2/2"):
            assert place.run(*arguments, share).code == 0  # the directory has another time
            run = place.run(*arguments, share, "--verify", "--json")
            told = run.json["status"], run.json["extra_keys"]
            assert (run.code, *told) == (0, "verified", ["p/d1/f00001"])
            known += run.json["extra_known"]
        assert known == 1  # to the ledger of its share

    def test_a_share_that_has_become_empty_is_no_empty_root(self, place: Place) -> None:
        names = [f"f{number}" for number in range(20)]
        own = [name for name in names if pfu.Shard(1, 2).has(name.encode())]
        arguments = ["--mode", "concurrent", "--shard", "1/2", "--json"]
        for name in names:
            place.file(name)
        assert place.run(*arguments).json["uploaded"] == len(own)
        for name in own:
            (place.root / name).unlink()
        assert (place.run(*arguments).code, len(place.local())) == (0, 20 - len(own))
        for path in place.root.iterdir():
            path.unlink()
        run = place.run(*arguments)
        assert (run.code, "is it mounted?" in run.err) == (2, True)

    @pytest.mark.parametrize("shards", [1, 3])
    def test_a_single_file_has_one_share(self, place: Place, shards: int) -> None:
        path = str(place.file("only"))
        for number in range(1, shards + 1):
            command = place.command("--mode", "concurrent", "--shard", f"{number}/{shards}")
            command[command.index(str(place.root))] = path
            done = subprocess.run(command, cwd=place.path, env=place.environment, check=False)
            assert done.returncode == 0
        assert place.server.count("PutObject") == 1
        assert set(place.stored()) == {"only"}

    def test_ledgers_of_all_shares_are_left_out(self, place: Place) -> None:
        place.files(10)
        arguments = ["--mode", "concurrent", "--json", "--shard"]
        for number in (1, 2, 1, 2):
            command = place.command(*arguments, f"{number}/2")
            done = subprocess.run(
                command, cwd=place.root, env=place.environment, capture_output=True
            )
            assert done.returncode == 0, done.stderr
        assert set(place.stored()) == set(place.local()) - {
            path.name for path in place.root.glob("pfu.*")
        }

    @pytest.mark.parametrize("text, told, shard", ARRAYS)
    def test_a_job_of_an_array_knows_its_share(
        self, monkeypatch: pytest.MonkeyPatch, text: str, told: dict[str, str], shard: pfu.Shard
    ) -> None:
        for names in pfu.ARRAY_JOBS:
            for name in filter(None, names):
                monkeypatch.delenv(name, raising=False)
        with pytest.raises(argparse.ArgumentTypeError):
            pfu.parse_shard(text)
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        assert pfu.parse_shard(text) == shard
