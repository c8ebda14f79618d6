"""What is said in several places of the project is the same in all of them."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pfu
from conftest import Row, chosen_ways, thinned
from testing.trials import EVEN, MODES, WAYS, Way

HOME = Path(__file__).resolve().parent.parent


def text_of(name: str) -> str:
    return (HOME / name).read_text("utf-8")


def requirements(name: str) -> dict[str, str]:
    """Each package and the versions of it that are asked for."""
    lines = [line.partition("#")[0].strip() for line in text_of(name).splitlines()]
    matches = [re.fullmatch(r"([\w.-]+(?:\[\w+\])?)(.*)", line) for line in lines if line]
    return {match[1]: match[2] for match in matches if match}


class TestToolsOfCiAndPreCommit:
    @pytest.mark.parametrize("tool", ["ruff", "mypy"])
    def test_they_are_of_the_same_version(self, tool: str) -> None:
        wanted = requirements("requirements-dev.txt")[tool]
        assert re.fullmatch(r"==[\d.]+", wanted)
        found = re.findall(rf'"{tool}([=<>][^"]*)"', text_of(".pre-commit-config.yaml"))
        assert found
        assert set(found) == {wanted}

    def test_mypy_sees_the_same_pytest(self) -> None:
        wanted = requirements("requirements-dev.txt")["pytest"]
        assert f'"pytest{wanted}"' in text_of(".pre-commit-config.yaml")

    def test_ci_installs_the_versions_of_the_file(self) -> None:
        text = text_of(".ci/run")
        assert 'new_venv tools "${newest#* }" -r requirements-dev.txt' in text
        assert not re.search(r"\b(ruff|mypy|matplotlib)[=<>]", text)

    def test_mypy_checks_the_same_files(self) -> None:
        programs = re.search(r"^PROGRAMS=\((.*)\)$", text_of(".ci/run"), re.MULTILINE)
        assert programs
        assert f"entry: mypy {programs[1]}\n" in text_of(".pre-commit-config.yaml")


class TestNames:
    def test_none_is_defined_twice(self) -> None:
        """The first of two constants would have the value of the other."""
        names: list[str] = []
        for statement in ast.parse(text_of("pfu.py")).body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                names.append(statement.name)
            elif isinstance(statement, ast.Assign):
                nodes = itertools.chain.from_iterable(map(ast.walk, statement.targets))
                names += [node.id for node in nodes if isinstance(node, ast.Name)]
        assert [name for name, count in Counter(names).items() if count > 1] == []


class TestPackage:
    def test_it_needs_what_pfu_needs(self) -> None:
        text = text_of("pyproject.toml")
        boto3 = "boto3" + requirements("requirements.txt")["boto3"]
        assert f'dependencies = ["{boto3}"]' in text
        assert 'requires-python = ">=3.9"' in text
        header = text_of("pfu.py").partition("# ///\n")[0]
        assert f'# dependencies = ["{boto3}"]' in header
        assert '# requires-python = ">=3.9"' in header

    def test_its_sandbox_needs_what_the_sandbox_needs(self) -> None:
        wanted = requirements("requirements.txt")
        names = ("moto[s3]", "flask", "flask-cors")
        listed = ", ".join(f'"{name}{wanted[name]}"' for name in names)
        assert f"sandbox = [{listed}]" in text_of("pyproject.toml")

    def test_its_command_is_there(self) -> None:
        assert 'pfu = "pfu:command"' in text_of("pyproject.toml")
        assert callable(pfu.command)

    def test_its_version_is_in_the_changelog(self) -> None:
        text = text_of("CHANGELOG.md")
        assert f"## [{pfu.__version__}]" in text or f"Version {pfu.__version__}.\n" in text


class TestCases:
    """Which cases run without --full."""

    @pytest.mark.parametrize("sizes, kinds", [(1, 2), (2, 1), (2, 2), (3, 2), (2, 3), (3, 5)])
    def test_what_recurs_in_a_table_meets_both_modes(self, sizes: int, kinds: int) -> None:
        table = itertools.product(range(sizes), range(kinds))
        rows: dict[Row, Any] = {
            ("test", f"size={size}", f"kind={kind}"): dict.fromkeys((mode,) for mode in MODES)
            for size, kind in table
        }
        chosen = dict(chosen_ways(rows))
        assert chosen.keys() == rows.keys()
        for value, times in Counter(itertools.chain(*rows)).items():
            counts = Counter(way for row, way in chosen.items() if value in row)
            assert sum(counts.values()) == times
            assert len(counts) == min(times, 2), (value, chosen)
        assert abs(len(rows) - 2 * Counter(chosen.values())[MODES[0],]) <= 1

    @pytest.mark.parametrize("ways", [EVEN, WAYS])
    def test_a_table_meets_every_mode_lane_and_size(self, ways: list[Way]) -> None:
        rows: dict[Row, Any] = {("test", f"fault={n}"): dict.fromkeys(ways) for n in range(8)}
        met = Counter(part for _, way in chosen_ways(rows) for part in way)
        assert set(met.values()) == {4}, met

    def test_a_row_of_one_way_keeps_it(self) -> None:
        rows: dict[Row, Any] = {
            ("test", f"row={number}"): {("parallel",): []} for number in range(3)
        }
        assert [way for _, way in chosen_ways(rows)] == [("parallel",)] * 3

    @pytest.mark.parametrize(
        "tables, kept",
        [
            ({"n": "012"}, ["0", "1", "2"]),
            ({"n": "012345"}, ["0", "2", "4"]),
            ({"x": "01", "y": "01"}, ["00", "11"]),
            ({"x": "01", "y": "012"}, ["00", "02", "11"]),
            ({"x,y": ["00", "11", "22", "33"]}, ["00", "22"]),
            ({"x": "01", "mode": "cp", "y": "01"}, ["0c0", "1c1", "0p0", "1p1"]),
        ],
    )
    def test_of_a_long_table_every_second_row_runs(
        self, tables: dict[str, Any], kept: list[str]
    ) -> None:
        names = ",".join(tables).split(",")
        items: list[Any] = [
            SimpleNamespace(
                nodeid="test[x]",
                fixturenames=["tmp_path"],
                callspec=SimpleNamespace(params=dict(zip(names, "".join(values)))),
                iter_markers=lambda _: [SimpleNamespace(args=[name]) for name in tables],
            )
            for values in itertools.product(*tables.values())
        ]
        left: list[Any] = thinned(items)
        assert sorted("".join(item.callspec.params.values()) for item in left) == sorted(kept)
