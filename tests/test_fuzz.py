"""More than a million odd inputs: answers, options, names, ledgers. testing/fuzz.py makes them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Callable
from urllib.parse import unquote_to_bytes

import pytest

import pfu
from testing.fuzz import (
    COMMAND_LINES,
    COMPOSED_ANSWERS,
    DAMAGED_LEDGERS,
    EARLIER_ID,
    ENDS,
    FED_PREFIXES,
    HEADER_NAMES,
    LONG_ANSWERS,
    METADATA_NAMES,
    MUTATED_ANSWERS,
    NUMBER_PIECES,
    ODD_FILE_NAMES,
    ODD_HEADS,
    ODD_ROWS,
    ODD_RUNS,
    ODD_VALUES,
    OPTION_NUMBERS,
    SENT_NAMES,
    SHARE,
    WRITINGS,
    assert_on_one_line,
    assert_one_request,
    assert_program_copes,
    assert_sane,
    changed_rows,
    command_line,
    composed_answer,
    count_verdicts,
    damaged,
    decoded_name,
    endless,
    head_writer,
    hostile_name,
    is_destination,
    is_endpoint,
    judged_size,
    judged_time,
    judged_workers,
    mutated_answer,
    odd_end,
    odd_rows,
    odd_status,
    option_words,
    pieces,
    put_ledger,
    refusal_of,
    try_ledger,
    verdict_on,
    write_ledger,
)
from testing.lane import parse_head
from testing.place import LONG_AGO, Place
from testing.uploaders import InstantUploader

# ======================================================================================
# Answers
# ======================================================================================


class TestAnswers:
    """Answers."""

    def test_a_million_inputs_are_tried(self) -> None:
        answers = MUTATED_ANSWERS + COMPOSED_ANSWERS + FED_PREFIXES
        options = OPTION_NUMBERS + ENDS + COMMAND_LINES
        assert answers + options + DAMAGED_LEDGERS + ODD_ROWS >= 1_000_000 // SHARE

    @pytest.mark.parametrize("seed", [1, 2])
    def test_no_mutated_answer_is_believed_that_is_not_right(self, seed: int) -> None:
        rng = random.Random(seed)
        said = count_verdicts(mutated_answer(rng) for _ in range(MUTATED_ANSWERS // 2))
        assert sum(said.values()) == MUTATED_ANSWERS // 2
        assert min(said[kind] for kind in ("Answer", "Rejected", "NoneType")) > 2_000 // SHARE, said

    @pytest.mark.parametrize("seed", [3, 4])
    def test_no_composed_answer_is_believed_that_is_not_right(self, seed: int) -> None:
        rng = random.Random(seed)
        said = count_verdicts(composed_answer(rng) for _ in range(COMPOSED_ANSWERS // 2))
        assert sum(said.values()) == COMPOSED_ANSWERS // 2
        assert min(said[kind] for kind in ("Answer", "Rejected", "NoneType")) > 2_000 // SHARE, said

    def test_an_answer_in_pieces_gets_the_verdict_of_the_whole(self) -> None:
        """Nothing, then one verdict that more bytes do not change, unless they follow the end."""
        rng, fed, ended = random.Random(5), 0, Counter[str]()
        while fed < FED_PREFIXES:
            received = (mutated_answer(rng) if rng.random() < 0.7 else composed_answer(rng))[
                :20_000
            ]
            step = 1 + len(received) // 400
            verdicts = [verdict_on(received[:end]) for end in range(0, len(received), step)]
            verdicts.append(verdict_on(received))
            fed += len(verdicts)
            kinds = [type(verdict).__name__ for verdict in verdicts]
            shape = [kind for kind, _ in itertools.groupby(kinds)]
            assert shape[0] == "NoneType", received
            assert shape[1:] in ([], ["Answer"], ["Rejected"], ["Answer", "Rejected"]), received
            kept = [v for v in verdicts if isinstance(v, pfu.Answer) and v.keep_alive]
            assert len(kept) <= 1, received
            ended[" ".join(shape[1:])] += 1
        assert fed >= FED_PREFIXES
        assert len(ended) == 4, ended

    @pytest.mark.parametrize("kind", LONG_ANSWERS)
    def test_an_answer_that_dribbles_in_costs_little(self, kind: str) -> None:
        """All its bytes are looked at each time: what that costs must stay small."""
        received = LONG_ANSWERS[kind]
        began = time.process_time()
        for end in range(0, len(received), 32):
            verdict_on(received[:end])
        assert time.process_time() - began < 5


# ======================================================================================
# Options
# ======================================================================================


class TestOptions:
    """Options."""

    @pytest.mark.parametrize(
        "parse, judge",
        [
            (pfu.parse_size, judged_size),
            (pfu.parse_time, judged_time),
            (pfu.in_range(1, 256), judged_workers),
        ],
        ids=["size", "time", "count"],
    )
    def test_only_numbers_are_taken_for_numbers(
        self, parse: Callable[[str], float], judge: Callable[[str], Fraction | None]
    ) -> None:
        rng, said = random.Random(6), Counter[bool]()
        for _ in range(OPTION_NUMBERS // 3):
            text = pieces(rng, NUMBER_PIECES, 5)
            try:
                number = parse(text)
            except argparse.ArgumentTypeError as error:
                assert pfu.printable(str(error)).isprintable()
                assert judge(text) is None, text
                said[False] += 1
                continue
            exact = judge(text)
            assert exact is not None, text
            assert abs(number - exact) <= (exact != int(exact)) + exact / 2**50, text
            assert (number > 0) == (exact > 0), text
            said[True] += 1
        assert sum(said.values()) == OPTION_NUMBERS // 3
        assert min(said.values()) > 200 // SHARE, said

    def test_only_ends_are_taken_for_ends(self) -> None:
        """A destination, or an endpoint."""
        rng, said = random.Random(8), Counter[str]()
        for _ in range(ENDS):
            text = odd_end(rng)
            try:
                bucket, prefix = pfu.parse_destination(text)
            except pfu.UsageError as error:
                assert str(error).isprintable()
            else:
                assert is_destination(text, bucket, prefix), text
                said["destination"] += 1
            try:
                pfu.check_endpoint(text)
            except pfu.UsageError as error:
                assert str(error).isprintable()
                assert not is_endpoint(text), text
            else:
                assert is_endpoint(text), text
                said["endpoint"] += 1
        assert min(said["destination"], said["endpoint"]) > 500 // SHARE, said

    def test_odd_command_lines_are_refused_in_one_line(self) -> None:
        rng, parser, words = random.Random(9), pfu.make_parser(), option_words()
        said: Counter[bool] = Counter()
        for _ in range(COMMAND_LINES):
            line = command_line(rng, words)
            answer = refusal_of(line, parser)
            said[isinstance(answer, str)] += 1
            if isinstance(answer, argparse.Namespace):
                answer.rules = [rule for rule in answer.rules if isinstance(rule, pfu.Rule)]
                assert_sane(answer)
                continue
            assert answer.startswith("pfu: ") and answer.endswith("\n"), line
            assert answer[:-1].isprintable(), (line, answer)
        assert sum(said.values()) == COMMAND_LINES
        assert min(said.values()) > 2_000 // SHARE, said


# ======================================================================================
# Names and metadata
# ======================================================================================


class TestNames:
    """Names and metadata."""

    @pytest.mark.parametrize("seed", [10, 11])
    def test_no_name_becomes_a_header_or_moves_a_cursor(self, seed: int) -> None:
        rng, writer, tried = random.Random(seed), head_writer(), 0
        metadata: list[tuple[str, ...]] = []
        for _ in range(100):
            told = pfu.object_metadata(odd_status(rng), 1)
            assert tuple(told) == METADATA_NAMES
            metadata.append(tuple(told.values()))
        names: dict[str, bytes] = {}
        for _ in range(ODD_FILE_NAMES // 2):
            name = hostile_name(rng)
            text = os.fsdecode(name)
            key = pfu.encode_name(text)
            assert decoded_name(key) == name
            assert names.setdefault(key, name) == name
            assert_on_one_line(pfu.printable(text))
            assert_on_one_line(str(pfu.SourceError("read", text, text)))
            values = (pfu.content_type(f"/d.d/{text}"), *rng.choice(metadata))
            assert "/" in values[0] and values[0].isascii() and values[0].isprintable()
            head = writer.head(key, pfu.Headers(HEADER_NAMES, values), 7, "0" * 64)
            assert_one_request(head, b"/b/" + key.encode(), values)
            tried += 1
        assert tried == ODD_FILE_NAMES // 2
        assert len(names) > tried // 4

    def test_no_value_becomes_a_header(self) -> None:
        """Whatever is given as key, name or value of a header, or as query: one request or none."""
        rng, writer = random.Random(12), head_writer()
        refused, written = 0, 0
        for _ in range(ODD_HEADS):
            text = hostile_name(rng).decode("utf-8", "surrogateescape")
            place = int(rng.random() * 4)
            names = (*HEADER_NAMES[:-1], text if place == 0 else HEADER_NAMES[-1])
            values = ("text/plain", *("0" for _ in METADATA_NAMES[1:]), text if place == 1 else "1")
            query, key = text if place == 2 else "", text if place == 3 else "k"
            try:
                head = writer.head(key, pfu.Headers(names, values), 0, "0" * 64, query)
            except ValueError:
                refused += 1
                continue
            assert head.count(b"\n") == head.count(b"\r\n") == len(SENT_NAMES) + 2, head
            assert len(parse_head(head)[0].split(" ")) == 3, head
            assert place < 3 or unquote_to_bytes(head.split()[1]) == b"/b/" + key.encode()
            written += 1
        assert refused + written == ODD_HEADS
        assert min(refused, written) > 1_000 // SHARE


# ======================================================================================
# Ledgers
# ======================================================================================


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that do not wait for the disk: these tests open thousands of them."""
    set_up = pfu.Ledger._set_up

    def set_up_unsynced(ledger: pfu.Ledger) -> None:
        set_up(ledger)
        ledger._db.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(pfu.Ledger, "_set_up", set_up_unsynced)


class TestLedgers:
    """Ledgers."""

    @pytest.mark.parametrize("read_only", [True, False])
    def test_a_damaged_ledger_works_or_says_so(
        self, tmp_path: Path, unsynced: None, capsys: pytest.CaptureFixture[str], read_only: bool
    ) -> None:
        rng, path, said = random.Random(13), tmp_path / "l.db", Counter[str]()
        write_ledger(path)
        content = path.read_bytes()
        count = DAMAGED_LEDGERS * 2 // 3 if read_only else DAMAGED_LEDGERS // 3
        for _ in range(count):
            put_ledger(path, damaged(content, rng))
            said.update(try_ledger(path, read_only=read_only))
            if said["tried"] % 8 == 0:
                assert_program_copes(path, rng, capsys)
            said["tried"] += 1
        assert said["tried"] == count
        assert (
            min(said["refused"], said["error"], said["last_jobs"], said["known"]) > count // 20
        ), said

    def test_odd_rows_of_a_ledger_work_or_it_says_so(
        self, tmp_path: Path, unsynced: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rng, path, tried, said = random.Random(14), tmp_path / "l.db", 0, Counter[str]()
        write_ledger(path)
        content = path.read_bytes()
        for table, column, value in odd_rows(rng):
            put_ledger(path, content)
            changed_rows(path, rng, table, column, value)
            try:
                said += try_ledger(path, read_only=True)
                if tried % 8 == 0:
                    assert_program_copes(path, rng, capsys)
                elif tried % 4 == 1:
                    said += try_ledger(path, read_only=False)
            except Exception as error:
                raise AssertionError(f"{table}.{column} = {value}") from error
            tried += 1
        assert tried == ODD_ROWS
        assert said["error"] > ODD_ROWS // 10, said
        assert min(said[name] for name in WRITINGS) > ODD_ROWS // 6, said

    def test_a_run_with_odd_rows_uploads_all_or_says_why_not(
        self, place: Place, unsynced: None
    ) -> None:
        """A row is believed only if it is as pfu writes it; all other files go up again."""
        rng, path, said = random.Random(15), place.path / "l.db", Counter[str]()
        place.files(8)
        settings = pfu.RunOptions(mode="concurrent", nice=0)

        def run() -> pfu.Summary:
            return pfu.BatchJobModel(place.root, InstantUploader(), path, settings).run()

        assert run().uploaded == 8
        content = path.read_bytes()
        cases = [(column, value) for column in pfu.FileModel.columns() for value in ODD_VALUES]
        for column, value in [("status", "99"), ("racy", "7"), *rng.sample(cases, ODD_RUNS - 2)]:
            put_ledger(path, content)
            changed_rows(path, rng, "FileStat", column, value)
            summary = run()
            assert "internal error" not in f"{summary.error} {summary.failures}", (column, value)
            said["stopped" if summary.error else "complete"] += 1
            if not summary.error:
                assert (summary.exit_code, summary.seen, run().unchanged) == (0, 8, 8), (
                    column,
                    value,
                )
        assert sum(said.values()) == ODD_RUNS and said["complete"] > ODD_RUNS // 2, said

    @pytest.mark.parametrize(
        "column, value", [("status", "99"), ("racy", "NULL"), ("status", "'x'")]
    )
    def test_a_row_of_no_known_status_is_not_believed(
        self, place: Place, column: str, value: str
    ) -> None:
        place.file("f")
        settings = pfu.RunOptions(mode="concurrent", nice=0)
        for expected in (1, 1):
            job = pfu.BatchJobModel(place.root, InstantUploader(), place.path / "pfu.db", settings)
            assert job.run().uploaded == expected
            with contextlib.closing(sqlite3.connect(place.path / "pfu.db")) as db, db:
                db.execute(f"UPDATE FileStat SET {column}={value}")

    def test_a_lock_that_is_held_may_name_anybody(self, tmp_path: Path) -> None:
        lock = tmp_path / f"l.db{pfu.LOCK_SUFFIX}"
        lock.write_bytes(b"\xff\x1b[31m\n")
        script = (
            "import fcntl, sys\nfile = open(sys.argv[1], 'r+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
            "print(1, flush=True)\nsys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(lock)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout and holder.stdout.readline()
            with pytest.raises(pfu.LockedError) as caught:
                pfu.LedgerLock(str(tmp_path / "l.db"))
            assert_on_one_line(str(caught.value))
            holder.communicate()

    @pytest.mark.parametrize("text", ["00dc4100", "feff"], ids=["half a pair", "no character"])
    def test_an_upload_that_comes_after_itself_hangs_nothing(
        self, tmp_path: Path, text: str
    ) -> None:
        """What SQLite gives as UTF-8 of a damaged UTF-16 text sorts before the text."""
        path = tmp_path / "l.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA encoding='UTF-16le'")
            for sql in pfu.UploadModel.create_sql():
                db.execute(sql)
            db.execute(f"PRAGMA application_id={pfu.APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={pfu.SCHEMA_VERSION}")
            row = ("u", LONG_AGO, EARLIER_ID, "s3://bkt/p", "", "p/x", 1, 1, 1, 1, "", 0, 0)
            marks = ", ".join("?" * len(row))
            db.execute(f"INSERT INTO MultipartUpload VALUES(CAST(x'{text}' AS TEXT), {marks})", row)
        ledger = pfu.Ledger(path, read_only=True)
        with pytest.raises(pfu.LedgerError, match=r"MultipartUpload\.id"):
            endless(ledger.unfinished_uploads())
        ledger.close()
