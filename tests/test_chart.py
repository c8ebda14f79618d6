"""The picture of the benchmark, bench/chart.py: read from matplotlib's artists and from the SVG."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -r requirements-dev.txt")

HOME = Path(__file__).resolve().parent.parent
CHART = HOME / "bench" / "chart.py"
SVG = "{http://www.w3.org/2000/svg}"
SMALL_TREE, LARGE_TREE = (50_000, 230_375_938), (4, 4 << 30)
SMALL_RUNS = {
    "pfu-parallel": (3.0066, 4.2795),
    "pfu-concurrent": (3.7494, 3.3934),
    "s5cmd": (7.8568, 9.6694),
    "rclone": (7.9131, 12.8404),
}
LARGE_RUNS = {"pfu-parallel": (2.5211, 3.8484), "rclone": (4.8481, 8.3446)}


def load_chart() -> Any:
    spec = importlib.util.spec_from_file_location("chart", CHART)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["chart"] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


chart = load_chart()


# ---- results as compare.py writes them -------------------------------------------------------


def measured_series(
    tool: str, wall: float, cpu: float, case: str = "small", scheme: str = "http", **changes: Any
) -> dict[str, Any]:
    """A series of three runs: 4 % around the median."""
    files, size = LARGE_TREE if case == "large" else SMALL_TREE
    spread = (0.96, 1, 1.04)
    return {
        "case": case,
        "scheme": scheme,
        "tool": tool,
        "files": files,
        "bytes": size,
        "runs": [{"wall": wall * it, "cpu": cpu * it, "failure": None} for it in spread],
        "median": {"wall": wall, "cpu_seconds": cpu, "other_share": 0.0},
        **changes,
    }


def failed_series(tool: str, **changes: Any) -> dict[str, Any]:
    run = {"wall": 900.0, "cpu": 1.0, "failure": "exit 1: no route"}
    return measured_series(tool, 1, 1, runs=[run] * 3, median={}, **changes)


def measured_tools(runs: dict[str, tuple[float, float]], **changes: Any) -> list[dict[str, Any]]:
    return [measured_series(tool, wall, cpu, **changes) for tool, (wall, cpu) in runs.items()]


def benchmark_json(series: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-23T00:17:06+00:00",
        "machine": {"cpu": "AMD EPYC", "cores": 2},
        "versions": {
            "python": "Python 3.13.0",
            "nginx": "nginx version: nginx/1.22.1",
            "pfu-parallel": "pfu 0.2.0",
            "s5cmd": "v2.3.0-991c9fb",
        },
        "rounds": 3,
        "results": series,
        **changes,
    }


# ---- what is in a picture --------------------------------------------------------------------


def texts_of(figure: Any) -> list[str]:
    """All words of the picture but those of the rows."""
    return [text.get_text() for text in figure.texts]


def rows_of(figure: Any) -> list[list[str]]:
    """The words of each tool's row: its name, then what stands at the end of its bars."""
    rows: list[list[str]] = []
    for speed, cpu in column_pairs(figure):
        found: dict[float, list[str]] = {}
        for text in (*speed.texts, *cpu.texts):
            found.setdefault(text.get_position()[1], []).append(text.get_text())
        rows += found.values()
    return rows


def column_pairs(figure: Any) -> list[tuple[Any, Any]]:
    return list(zip(figure.axes[::2], figure.axes[1::2]))


def bars_of(figure: Any) -> list[tuple[list[Any], list[Any]]]:
    """For each workload its bars of speed, and those of CPU."""
    return [(list(speed.patches), list(cpu.patches)) for speed, cpu in column_pairs(figure)]


def points(bar: Any) -> Any:
    """Where a bar is on the page: x0, y0, x1, y1."""
    return bar.get_window_extent().extents


def run_chart(folder: Path, *results: Any) -> subprocess.CompletedProcess[bytes]:
    paths = [folder / f"{number}.json" for number in range(len(results))]
    for path, result in zip(paths, results):
        path.write_text(result if isinstance(result, str) else json.dumps(result))
    return subprocess.run([sys.executable, CHART, *paths], capture_output=True)


def svg_of(folder: Path, *results: Any) -> ElementTree.Element:
    done = run_chart(folder, *results)
    assert (done.returncode, done.stderr) == (0, b"")
    return ElementTree.fromstring(done.stdout)


def svg_texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


# ---- the tests -------------------------------------------------------------------------------


class TestWhatIsShown:
    def test_every_figure_and_what_it_was_measured_on(self, tmp_path: Path) -> None:
        results = [
            benchmark_json(measured_tools(SMALL_RUNS)),
            benchmark_json(measured_tools(LARGE_RUNS, case="large")),
        ]
        figure = chart.draw(results)
        rows = [
            ["pfu parallel", "16,630", "86"],
            ["pfu concurrent", "13,335", "68"],
            ["s5cmd", "6,364", "193"],
            ["rclone", "6,319", "257"],
            ["pfu parallel", "1,625", "0.96"],
            ["rclone", "845", "2.09"],
        ]
        assert rows_of(figure) == rows
        words = " ".join(texts_of(figure))
        said = "Small files: pfu is 2.1 to 2.6 times as fast as the best other tool, on 35 to 44"
        assert said in words
        assert "Large files: 1.9 times." in words
        for finding in ("pfu 2.1 to 2.6 ×", "pfu 0.35 to 0.44 ×", "pfu 1.9 ×", "pfu 0.46 ×"):
            assert texts_of(figure).count(finding) == 1
        for unit in ("files/s, more", "CPU µs/file, less", "MiB/s, more", "CPU s/GiB, less"):
            assert f"{unit} is better" in words
        assert "2026-11-23: 2 cores (AMD EPYC)" in words
        assert "3 rounds" in words
        assert words.count("pfu 0.2.0, s5cmd 2.3.0, Python 3.13.0, nginx 1.22.1") == 1
        written = svg_texts(svg_of(tmp_path, *results))
        for text in (*texts_of(figure), *(word for row in rows for word in row)):
            assert text in written

    def test_the_last_of_two_results_of_one_series_counts(self) -> None:
        first, second = (benchmark_json([measured_series("s5cmd", it, 4)]) for it in (5, 4))
        assert rows_of(chart.draw([first, second])) == [["s5cmd", "12,500", "80"]]

    def test_a_slower_pfu_is_called_slower(self) -> None:
        slow = {"pfu-parallel": (20.0, 50.0), "s5cmd": (5.0, 5.0)}
        medium = measured_tools(slow, case="medium", files=600, bytes=600 << 18)
        figure = chart.draw([benchmark_json([*measured_tools(SMALL_RUNS), *medium])])
        assert "Medium files: 0.25 times (slower)." in texts_of(figure)

    def test_doubtful_rows_are_counted(self) -> None:
        series = measured_tools(SMALL_RUNS)
        series[1]["median"]["other_share"] = 0.2
        said = "Other processes used over 10% of the machine in 1 of 4 rows."
        assert said in texts_of(chart.draw([benchmark_json(series)]))


class TestBars:
    def test_they_start_at_zero_and_are_as_long_as_the_figures(self) -> None:
        slow = {"pfu-parallel": (20.0, 50.0), "s5cmd": (5.0, 5.0)}
        series = [*measured_tools(SMALL_RUNS), *measured_tools(slow, scheme="https")]
        figure = chart.draw([benchmark_json(series)])
        speeds, cpus = (
            [points(bar) for load in bars_of(figure) for bar in load[column]] for column in (0, 1)
        )
        runs = [*SMALL_RUNS.values(), *slow.values()]
        assert len(speeds) == len(cpus) == len(runs)
        lengths = [(s[2] - s[0], c[2] - c[0]) for s, c in zip(speeds, cpus)]
        for (wall, cpu), (speed_length, cpu_length) in zip(runs, lengths):
            assert speed_length * wall == pytest.approx(lengths[0][0] * runs[0][0], rel=1e-6)
            assert cpu_length / cpu == pytest.approx(lengths[0][1] / runs[0][1], rel=1e-6)
        for column in (speeds, cpus):
            assert len({round(bar[0], 6) for bar in column}) == 1
        assert all(axes.get_xlim()[0] == 0 for axes in figure.axes)
        assert all(bar.get_x() == 0 for axes in figure.axes for bar in axes.patches)
        assert "pfu 0.25 to 2.6 ×" in texts_of(figure)

    def test_they_are_in_the_file_as_long_as_the_figures(self, tmp_path: Path) -> None:
        svg = svg_of(tmp_path, benchmark_json(measured_tools(SMALL_RUNS)))
        colours = (chart.PARALLEL, chart.CONCURRENT, chart.OTHER, chart.OTHER)
        edges = [
            sorted({float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))})
            for path in svg.iter(f"{SVG}path")
            if any(f"fill: {colour}" in path.get("style", "") for colour in colours)
        ]
        assert len(edges) == 8
        for column in (0, 1):
            bars = edges[4 * column : 4 * column + 4]
            assert len({left for left, _ in bars}) == 1
            shares = [(right - left) / (bars[0][1] - bars[0][0]) for left, right in bars]
            values = [(1 / wall, cpu)[column] for wall, cpu in SMALL_RUNS.values()]
            assert shares == pytest.approx([it / values[0] for it in values], rel=1e-4)

    def test_a_line_goes_from_the_lowest_to_the_highest_run(self) -> None:
        figure = chart.draw([benchmark_json([measured_series("s5cmd", 4, 4)])])
        speed, cpu = ([list(line.get_xdata()) for line in axes.lines] for axes in figure.axes)
        assert speed == [pytest.approx([12_500 / 1.04, 12_500 / 0.96])]
        assert cpu == [pytest.approx([80 * 0.96, 80 * 1.04])]
        assert figure.axes[0].get_xlim()[1] == pytest.approx(12_500 / 0.96)

    def test_no_words_lie_on_others_or_leave_the_page(self) -> None:
        figure = chart.draw([json.loads((HOME / "bench/comparison.json").read_text("utf-8"))])
        figure.draw_without_rendering()
        texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        bars = [bar for axes in figure.axes for bar in (*axes.patches, *axes.lines)]
        boxes = [("a bar", bar.get_window_extent()) for bar in bars]
        boxes += [(text.get_text(), text.get_window_extent()) for text in texts]
        for number, (text, box) in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
            for other, beside in boxes[:number] if text != "a bar" else ():
                shared = min(box.x1, beside.x1) - max(box.x0, beside.x0)
                level = min(box.y1, beside.y1) - max(box.y0, beside.y0)
                assert shared <= 0 or level <= 0.2 * min(box.height, beside.height), (text, other)


class TestTheFile:
    def test_the_same_results_make_the_same_bytes(self, tmp_path: Path) -> None:
        result = benchmark_json(measured_tools(SMALL_RUNS))
        first = run_chart(tmp_path, result).stdout
        assert first == run_chart(tmp_path, result).stdout
        assert len(first) < 30_000
        assert b"dc:date" not in first

    def test_it_follows_dark_mode_and_needs_nothing_from_elsewhere(self, tmp_path: Path) -> None:
        done = run_chart(tmp_path, benchmark_json(measured_tools(SMALL_RUNS)))
        assert b"prefers-color-scheme: dark" in done.stdout
        assert not re.search(rb"<script|<image|href=|url\(|@import|@font-face", done.stdout)
        text = done.stdout.decode()
        shown = set(re.findall(r'style="[^"]*?(?:fill|stroke): (#[0-9a-f]{6})', text))
        assert shown <= set(chart.DARK)
        for light in shown:
            assert f"fill: {chart.DARK[light]} !important" in text

    def test_it_has_a_title_for_those_who_hear_it(self, tmp_path: Path) -> None:
        svg = svg_of(tmp_path, benchmark_json(measured_tools(SMALL_RUNS)))
        assert svg[0].tag == f"{SVG}title"
        assert "times as fast" in (svg[0].text or "")

    def test_odd_names_are_escaped(self, tmp_path: Path) -> None:
        odd = "<b>&\"'\x00\ud800"
        series = measured_series(odd, 3, 3, scheme="</svg>&amp; $x_1$ " * 30)
        done = run_chart(tmp_path, benchmark_json([series], machine={"cpu": odd, "cores": 1}))
        assert done.returncode == 0
        words = svg_texts(ElementTree.fromstring(done.stdout))
        assert words.count("<b>&\"'\ufffd\ufffd") == 1
        assert "16,667" in words and "60" in words
        assert "</svg>&amp; $x_1$ </svg>&amp;" in " ".join(words)
        assert any(odd[:6] in text and "1 core (" in text for text in words)
        assert max(map(len, words)) < 90


class TestWhatIsMissing:
    def test_a_failed_series_has_no_bar_and_no_ratio(self) -> None:
        partly = measured_series("rclone", 4, 4)
        partly["runs"].append({"wall": 0.001, "cpu": 99.0, "failure": "exit 1"})
        never = measured_series("aws", 1, 1, runs=[], median={})
        figure = chart.draw([benchmark_json([failed_series("pfu-parallel"), partly, never])])
        rows = [["pfu parallel", "failed"], ["rclone", "12,500", "80"], ["aws", "not run"]]
        assert rows_of(figure) == rows
        ((speed, cpu),) = bars_of(figure)
        assert [bar.get_width() for bar in speed] == [pytest.approx(12_500)]
        assert [bar.get_width() for bar in cpu] == [pytest.approx(80)]
        words = " ".join(texts_of(figure))
        assert "http (rclone: 1 of 4 runs failed)" in words
        assert "×" not in words

    def test_a_failed_mode_takes_the_ratio_of_the_other_away(self) -> None:
        tools = {name: runs for name, runs in SMALL_RUNS.items() if name != "pfu-parallel"}
        series = [failed_series("pfu-parallel"), *measured_tools(tools)]
        assert "×" not in " ".join(texts_of(chart.draw([benchmark_json(series)])))

    @pytest.mark.parametrize("tool", ["pfu-parallel", "s5cmd"])
    def test_one_tool_is_compared_with_nothing(self, tool: str) -> None:
        figure = chart.draw([benchmark_json([measured_series(tool, 4, 4, scheme="http30")])])
        assert len(rows_of(figure)) == 1
        words = " ".join(texts_of(figure))
        assert "http, 30 ms added to each request" in words
        assert "×" not in words
        assert "times" not in words

    @pytest.mark.parametrize(
        ("result", "said"),
        [
            ({}, "not written by compare.py"),
            ("[", "0.json"),
            (benchmark_json([]), "no results"),
            (benchmark_json([{"case": "small"}]), "cannot draw this: KeyError: 'scheme'"),
            (benchmark_json([measured_series("s5cmd", 0, 0)]), "cannot draw this"),
        ],
        ids=["empty", "no JSON", "no results", "half a series", "no time"],
    )
    def test_what_is_no_result_makes_no_picture(
        self, tmp_path: Path, result: Any, said: str
    ) -> None:
        done = run_chart(tmp_path, result)
        assert (done.returncode, done.stdout) == (1, b"")
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        command = [sys.executable, str(CHART), str(tmp_path / "none.json")]
        done = subprocess.run(command, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)


class TestReadme:
    def test_its_picture_is_there_and_up_to_date(self) -> None:
        result = json.loads((HOME / "bench/comparison.json").read_text("utf-8"))
        figure = chart.draw([result])
        svg = ElementTree.fromstring((HOME / "bench/comparison.svg").read_text("utf-8"))
        rows = [word for row in rows_of(figure) for word in row]
        assert sorted(svg_texts(svg)) == sorted([*texts_of(figure), *rows])
        assert {"pfu parallel", "pfu concurrent", "s5cmd", "rclone"} <= set(rows)
        assert "](bench/comparison.svg)" in (HOME / "README.md").read_text("utf-8")

    def test_its_table_has_the_figures_of_the_picture(self) -> None:
        lines = (HOME / "README.md").read_text("utf-8").splitlines()
        table = [line for line in lines if re.match(r"\| [\d,]+ files? of ", line)]
        read = re.compile(r"([\d,]+) (?:files|MiB)/s, ([\d.,]+) (?:µs|s),")
        told = [cell for line in table for cell in read.findall(line)]
        result = json.loads((HOME / "bench/comparison.json").read_text("utf-8"))
        drawn = []
        for section in chart.sections(result["results"]):
            for load in section.workloads:
                for it in load.series:
                    speed, cpu = (span.median for span in it.spans)
                    seconds = cpu * load.bytes / chart.GIB
                    large = load.kind == "large"
                    drawn.append((f"{speed:,.0f}", f"{seconds:.1f}" if large else f"{cpu:,.0f}"))
        assert len(drawn) == 36
        assert told == drawn
