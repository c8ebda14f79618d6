"""The log and the metrics file, and that they are left out of what is uploaded."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

import pfu
from testing.faults import Action, Fault
from testing.place import Place, metric, wrong_secret

# ======================================================================================
# The log
# ======================================================================================


class TestLog:
    """The log."""

    def test_the_log_has_a_line_for_everything_that_is_said(self, place: Place) -> None:
        place.files(5)
        place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="f00003"))
        log = place.path / "log"
        for _ in range(2):
            assert place.run("--mode", "concurrent", "--quiet", "--log-file", log).code == 1
        lines = log.read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines)
        assert len([line for line in lines if "InvalidRequest" in line]) == 2
        ends = [line for line in lines if "exit code 1" in line]
        assert len(ends) == 2
        assert "5 seen, 4 uploaded" in ends[0]
        assert log.stat().st_mode & 0o777 == 0o600

    def test_the_log_rotates_itself(self, tmp_path: Path) -> None:
        log = pfu.LineFile("log", str(tmp_path / "log"), 1000)
        for number in range(500):
            assert log.write(f"{number} lines so far") == ""
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["log", *(f"log.{n}" for n in range(1, pfu.LOG_FILES + 1))]
        assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
        assert (tmp_path / "log").read_text().endswith("\n499 lines so far\n")
        os.truncate(tmp_path / "log", 0)
        (tmp_path / "log.5").unlink()
        (tmp_path / "log.5").mkdir()
        told = [log.write("x" * 600) for _ in range(4)]
        assert told == ["", f"cannot write log to {tmp_path}/log: Is a directory", "", ""]

    def test_own_files_are_left_out_wherever_they_are(self, place: Place) -> None:
        place.files(3)
        own = ["--log-file", place.root / "pfu.log", "--metrics-file", place.root / "m.prom"]
        for _ in range(2):
            run = place.run("--mode", "concurrent", "--json", "--db", place.root / "l.db", *own)
            assert run.code == 0, run.err
        assert len(place.stored()) == 3
        assert run.json["skipped_by_reason"]["pfu's own ledger"] >= 4

    @pytest.mark.parametrize("kind", ["folder", "link"])
    @pytest.mark.parametrize("option", ["--log-file", "--metrics-file"])
    def test_own_files_that_cannot_be_written(self, place: Place, option: str, kind: str) -> None:
        place.file("f")
        victim = place.path / "victim"
        victim.write_text("precious")
        path = place.path / "there"
        if kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(victim)
        run = place.run("--mode", "concurrent", option, path)
        assert victim.read_text() == "precious"
        if (option, kind) == ("--metrics-file", "link"):  # the link itself is replaced
            assert (run.code, run.err) == (0, "")
        else:
            assert (run.code, run.err.count("\n")) == (2, 1)
            assert str(path) in run.err

    @pytest.mark.parametrize("faulty", [[], ["--quiet", "--verbose"]])
    @pytest.mark.parametrize("kind", ["other", "descriptors", "missing option"])
    def test_metrics_replace_nothing_else(self, place: Place, kind: str, faulty: list[str]) -> None:
        """A swapped option, or what stands for standard output, must not cost a file."""
        place.file("f")
        (place.path / "mine").write_text("precious")
        path = {"other": "mine", "descriptors": "/dev/fd/1", "missing option": "-"}[kind]
        run = place.run("--metrics-file", path, *faulty)
        assert (run.code, run.err.count("\n"), place.stored()) == (2, 1, {}), run.err
        assert ("write metrics" in run.err) == (kind != "missing option")
        assert (place.path / "mine").read_text() == "precious"
        assert sorted(os.listdir(place.path)) == ["mine", "tree"]

    @pytest.mark.parametrize(
        "content", ["", "# HELP pfu_x\npfu_last_success_timestamp_seconds{} 1.2.3\n"]
    )
    def test_metrics_that_say_nothing(self, place: Place, content: str) -> None:
        place.file("f")
        (place.path / "m").write_text(content)
        run = place.run("--metrics-file", "m", to="s3://missing-bucket")
        assert (run.code, "no such bucket" in run.err) == (2, True), run.err
        assert metric((place.path / "m").read_text(), "last_success_timestamp_seconds") == 0

    @pytest.mark.parametrize("option", ["--db", "--log-file", "--exclude-from"])
    def test_a_dash_is_no_file(self, place: Place, option: str) -> None:
        """Only --events and lists of files take standard output or input."""
        place.file("f")
        run = place.run(option, "-")
        assert (run.code, os.listdir(place.path)) == (2, ["tree"])
        assert f"argument {option}: - is no file here: write ./- for one of that name" in run.err

    def test_a_device_is_no_ledger(self, place: Place) -> None:
        place.file("f")
        os.mkfifo(place.path / "pipe")
        for path in ("pipe", "tree"):
            assert place.run("--db", path).code == 2
        assert sorted(os.listdir(place.path)) == ["pipe", "tree"]


# ======================================================================================
# Metrics
# ======================================================================================


class TestMetrics:
    """Metrics."""

    def test_metrics_tell_that_there_is_no_log(self, place: Place) -> None:
        place.file("f")
        metrics = place.path / "m.prom"
        run = place.run("--log-file", place.path / "no" / "x", "--metrics-file", metrics, "--json")
        assert (run.code, run.err.count("\n"), run.json["exit_code"]) == (2, 1, 2), run.err
        assert "pfu_" in metrics.read_text()

    def test_metrics_of_a_success_and_of_a_failure(self, place: Place) -> None:
        place.files(5)
        path = place.path / "pfu.prom"
        arguments = ["--mode", "concurrent", "--metrics-file", path]
        before = time.time()
        assert place.run(*arguments).code == 0
        first = path.read_text()
        assert metric(first, "run_uploaded_files") == 5
        assert metric(first, "run_exit_code") == metric(first, "run_failed_files") == 0
        assert before - 1 < metric(first, "last_success_timestamp_seconds") < time.time() + 1
        assert path.stat().st_mode & 0o777 == 0o644
        place.file("more")
        place.server.faults.append(Fault(Action("error", 400, "InvalidRequest"), key="more"))
        assert place.run(*arguments).code == 1
        place.server.deny.add("PutObject")
        wrong_secret(place)
        assert place.run(*arguments).code == 2
        last = path.read_text()
        assert metric(last, "run_exit_code") == 2
        name = "last_success_timestamp_seconds"
        assert (
            metric(last, name) == metric(first, name) < metric(last, "last_run_timestamp_seconds")
        )
        kinds = re.findall(r"^# TYPE (pfu_\w+) gauge$", last, re.MULTILINE)
        assert kinds == re.findall(r"^(pfu_\w+)\{", last, re.MULTILINE)

    def test_a_run_that_cannot_start_has_the_labels_of_others(self, place: Place) -> None:
        place.file("f")
        metrics, labels = place.path / "metrics", set()
        options = ("--root-as", "/srv/data", "--metrics-file", metrics, "--mode", "concurrent")
        for more, code in (((), 0), (("--db", "nowhere/pfu.db"), 2)):
            run = place.run(*options, *more)
            assert run.code == code, run.err
            labels |= set(re.findall('root="(.*?)"', metrics.read_text()))
        assert labels == {"/srv/data"}
