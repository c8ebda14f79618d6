"""What pytest learns for test_pfu.py and tests/ alike: fixtures, and which cases it runs.

Most tables are run in both modes, and that is half of the work. Without --full each row runs in one
of them, so chosen that what recurs in a table (a size, a fault) meets both; the other cases are
deselected, and counted as such. CI runs all.
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
Row = tuple[str, ...]  # the test's name, then name and value of each parameter but the mode


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "every row in both modes, and all inputs of the fuzzers (or PFU_TEST_FULL=1)"
    parser.addoption("--full", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests' modules are imported, some of which ask for it."""
    if config.getoption("full"):
        os.environ["PFU_TEST_FULL"] = "1"


def pytest_report_header() -> str:
    return "all cases" if is_full_run() else "each row in one of its modes; --full: in both"


@pytest.hookimpl(trylast=True)  # what -k leaves of a row in one mode is run in it
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_full_run():
        return
    rows: dict[Row, dict[str, list[pytest.Item]]] = {}
    for item in items:
        mode, row = mode_and_row(item)
        rows.setdefault(row, {}).setdefault(mode, []).append(item)
    kept = {item for row, mode in chosen_modes(rows) for item in rows[row][mode]}
    if dropped := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item in kept]


def mode_and_row(item: pytest.Item) -> tuple[str, Row]:
    """Of a case. The lane and the size of a way are a row only where there is no other table."""
    mode, row = "", [item.nodeid.partition("[")[0]]
    way: list[str] = []
    case: Any = getattr(item, "callspec", None)
    for name, value in case.params.items() if case else ():
        if isinstance(value, Way):
            mode, *way = value
        elif name == "mode":
            mode = value
        else:
            row.append(f"{name}={value!r}")
    return mode, (*row, *(way if len(row) == 1 else ()))


def chosen_modes(rows: dict[Row, dict[str, Any]]) -> Iterator[tuple[Row, str]]:
    """For each row the one of its modes that its parameters have met less often so far."""
    met: Counter[tuple[str, str, str]] = Counter()
    for row, modes in rows.items():
        test = row[0]
        times = {mode: sum(met[test, value, mode] for value in row) for mode in modes}
        first = MODES[zlib.crc32(test.encode()) % 2]
        mode = min(times, key=lambda mode: (times[mode], mode != first))
        met.update((test, value, mode) for value in row)
        yield row, mode


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
