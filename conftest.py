"""What pytest learns for test_pfu.py and tests/ alike: fixtures, and which cases it runs.

Most tables are run in both modes, many of them by both lanes and with files of both sizes as well.
Without --full each row runs in one of those ways, so chosen that what recurs in a table (a size, a
fault) meets all; and if no file and no -k is given, every second row of a long table runs. The
other cases are deselected, and counted as such. CI runs all.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from testing.place import is_full_run
from testing.trials import MODES, Way

pytest_plugins = ["testing.fixtures"]
Row = tuple[str, ...]  # the test's name, then name and value of each parameter but the way
IS_WHOLE_RUN = "PFU_TEST_WHOLE"
LONG_TABLE = 4  # rows
Ways = tuple[str, ...]  # the mode, or mode, lane and size


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "every row in all its ways, and all inputs of the fuzzers (or PFU_TEST_FULL=1)"
    parser.addoption("--full", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests' modules are imported, and before workers start: both look there."""
    if config.getoption("full"):
        os.environ["PFU_TEST_FULL"] = "1"
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword:
        os.environ[IS_WHOLE_RUN] = "1"


def pytest_report_header() -> str:
    if is_full_run():
        return "all cases"
    rows = "every second row of long tables" if IS_WHOLE_RUN in os.environ else "each row"
    return f"{rows} in one of its ways; --full: all"


@pytest.hookimpl(trylast=True)  # what -k leaves of a row in one way is run in it
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_full_run():
        return
    rows: dict[Row, dict[Ways, list[pytest.Item]]] = {}
    for item in thinned(items) if IS_WHOLE_RUN in os.environ else items:
        row, way = row_and_way(item)
        rows.setdefault(row, {}).setdefault(way, []).append(item)
    kept = {item for row, way in chosen_ways(rows) for item in rows[row][way]}
    if dropped := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item in kept]


def row_and_way(item: pytest.Item) -> tuple[Row, Ways]:
    """Of a case. The lane and the size of a way are a row where there is no other table."""
    row, way = [item.nodeid.partition("[")[0]], [""]
    case: Any = getattr(item, "callspec", None)
    for name, value in case.params.items() if case else ():
        if isinstance(value, Way):
            way = list(value)
        elif name == "mode":
            way = [value]
        else:
            row.append(f"{name}={value!r}")
    if len(row) == 1:
        return (*row, *way[1:]), (way[0],)
    return tuple(row), tuple(way)


def thinned(items: list[pytest.Item]) -> list[pytest.Item]:
    """Without every second row of each long table of runs; of two dimensions as on a chessboard."""
    seen: dict[str, dict[Row, int]] = {}  # the sum of the numbers of its values
    numbers: dict[tuple[str, int], dict[str, int]] = {}
    for item in items:
        test, *values = place_in_table(item)
        of_each = (numbers.setdefault((test, n), {}) for n in range(len(values)))
        total = sum(known.setdefault(v, len(known)) for known, v in zip(of_each, values))
        seen.setdefault(test, {})[tuple(values)] = total
    return [
        item
        for item in items
        for test, *values in [place_in_table(item)]
        if len(seen[test]) < LONG_TABLE
        or "tmp_path" not in getattr(item, "fixturenames", ())
        or seen[test][tuple(values)] % 2 == 0
    ]


def place_in_table(item: pytest.Item) -> Row:
    """The test's name, and what each of its tables gives it; lane and size if there is none."""
    params = dict(getattr(getattr(item, "callspec", None), "params", {}))
    names = [mark.args[0] for mark in item.iter_markers("parametrize")]
    tables = [name.replace(" ", "").split(",") if isinstance(name, str) else name for name in names]
    tables += [[name] for name in params if not any(name in table for table in tables)]
    way = next((value for value in params.values() if isinstance(value, Way)), None)
    given = [
        [repr(params[name]) for name in table if name != "mode" and params[name] is not way]
        for table in tables
    ]
    places = [",".join(values) for values in given if values]
    return (item.nodeid.partition("[")[0], *(places or (way[1:] if way else ())))


def chosen_ways(rows: dict[Row, dict[Ways, Any]]) -> Iterator[tuple[Row, Ways]]:
    """For each row the one of its ways that its parameters have met least often so far."""
    met: Counter[tuple[str, str, str]] = Counter()
    for row, ways in rows.items():
        test = row[0]
        times = {w: sum(met[test, value, part] for value in row for part in w) for w in ways}
        first = MODES[zlib.crc32(test.encode()) % 2]
        way = min(times, key=lambda way: (times[way], way[0] != first))
        met.update((test, value, part) for value in row for part in way)
        yield row, way


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """A worker of pytest-xdist says nothing of them to who prints the summary."""
    for item in items:
        output: Any = getattr(item.config, "workeroutput", {})
        output.setdefault("deselected", []).append(item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if deselected := getattr(node, "workeroutput", {}).get("deselected"):
        reporter = node.config.pluginmanager.get_plugin("terminalreporter")
        reporter.stats["deselected"] = deselected
