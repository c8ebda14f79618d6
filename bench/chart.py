"""Draw what bench/compare.py measured as one SVG picture, for README.md.

    pip install -r requirements-dev.txt
    python bench/compare.py --json bench/comparison.json
    python bench/chart.py bench/comparison.json [more.json ...] > bench/comparison.svg

One section for each tree of small or medium files (under 1 MiB), and one for all large files. A
section has one scale and one unit: files/s and CPU a file, for large files MiB/s and CPU a GiB.
Every bar starts at zero and ends at the median; a thin line runs from the lowest to the highest
run. Of a series that is in several of the files, the last one counts.

Above each column stands what pfu, both modes, reaches against the best other tool of each workload:
the lowest and the highest of these ratios. There are none where a series of pfu failed. A series
without a good run is "failed", without a bar; where only some runs failed, the heading says so.

The same results make the same bytes, with one version of matplotlib. The picture follows the
reader's light or dark mode, and needs nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NoReturn

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError:
    sys.exit("chart.py: matplotlib is missing (pip install -r requirements-dev.txt)")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALL_BYTES = 64 * KIB  # files are small up to this mean size,
LARGE_BYTES = MIB  # and large from this
NOISE = 0.1  # as in compare.py: a share of the machine used by others that makes a figure doubtful
DELAYED = {
    "http30": "http, 30 ms added to each request",
    "https30": "https, 30 ms added to each request",
}
NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A median, and the lowest and the highest run."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """All runs of one tool in one workload: speed and CPU, or nothing if none was good."""

    tool: str
    spans: tuple[Span, ...]
    runs: int
    failed: int
    noisy: bool

    @property
    def is_pfu(self) -> bool:
        return self.tool.startswith("pfu")

    @property
    def label(self) -> str:
        return shortened(self.tool.replace("pfu-", "pfu "), 14)


@dataclass(frozen=True)
class Workload:
    """One tree over one scheme."""

    files: int
    bytes: int
    scheme: str
    series: tuple[Series, ...]

    @property
    def mean(self) -> float:
        return self.bytes / max(1, self.files)

    @property
    def kind(self) -> str:
        if self.mean >= LARGE_BYTES:
            return "large"
        return "small" if self.mean <= SMALL_BYTES else "medium"

    def ratios(self, column: int) -> list[float]:
        """Each mode of pfu against the best other tool: most files a second, least CPU."""
        others = [it.spans[column].median for it in self.series if it.spans and not it.is_pfu]
        best = (max, min)[column](others, default=0)
        own = [it.spans[column].median for it in self.series if it.spans and it.is_pfu]
        return [median / best for median in own if best]


@dataclass(frozen=True)
class Section:
    """Workloads that are drawn to one scale."""

    workloads: tuple[Workload, ...]

    @property
    def kind(self) -> str:
        return self.workloads[0].kind

    @property
    def one_tree(self) -> bool:
        return len({(load.files, load.bytes) for load in self.workloads}) == 1

    @property
    def series(self) -> list[Series]:
        return [it for load in self.workloads for it in load.series]

    def scale(self, column: int) -> float:
        """The highest run."""
        return max((it.spans[column].high for it in self.series if it.spans), default=0) or 1

    def ratios(self, column: int) -> list[float]:
        """Those of all workloads, sorted; none where a series of pfu failed."""
        if any(it.is_pfu and not it.spans for it in self.series):
            return []
        return sorted(ratio for load in self.workloads for ratio in load.ratios(column))


def sections(results: Iterable[dict[str, Any]]) -> list[Section]:
    """Large files are one section, MiB/s being comparable; others are one for each tree."""
    latest = {(it["case"], it["scheme"], it["tool"]): it for it in results}
    series: dict[tuple[str, str, int, int], list[Series]] = {}
    for it in latest.values():
        which = (it["case"], it["scheme"], it["files"], it["bytes"])
        series.setdefault(which, []).append(read_series(it))
    groups: dict[tuple[int, int], list[Workload]] = {}
    for (_, scheme, files, size), found in series.items():
        load = Workload(files, size, scheme, tuple(found))
        groups.setdefault((0, 0) if load.kind == "large" else (files, size), []).append(load)
    return [Section(tuple(group)) for group in groups.values()]


def read_series(it: dict[str, Any]) -> Series:
    median, runs = it["median"], it["runs"]
    good = [run for run in runs if run["failure"] is None]
    spans: tuple[Span, ...] = ()
    if good and median:
        files, size = max(1, it["files"]), max(1, it["bytes"])
        large = size / files >= LARGE_BYTES
        amount, cpu_unit = (size / MIB, size / GIB) if large else (files, files / 1e6)
        speeds = [amount / run["wall"] for run in good]
        cpus = [run["cpu"] / cpu_unit for run in good]
        spans = (
            Span(amount / median["wall"], min(speeds), max(speeds)),
            Span(median["cpu_seconds"] / cpu_unit, min(cpus), max(cpus)),
        )
    noisy = median.get("other_share", 0) > NOISE
    return Series(it["tool"], spans, len(runs), len(runs) - len(good), noisy)


# ---------------------------------------------------------------------------------------------
# Words and figures
# ---------------------------------------------------------------------------------------------


def shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"


def ratios_text(ratios: Sequence[float]) -> str:
    """As 1.4 to 3.6: from the lowest to the highest."""
    ends = [f"{it:.1f}" if 1 <= it < 10 else figure(it) for it in (ratios[0], ratios[-1])]
    return " to ".join(dict.fromkeys(ends))


def size_text(number: float) -> str:
    """As 1 GiB or 4.5 KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if number >= unit:
            digits = 1 if number < 10 * unit else 0
            return f"{number / unit:.{digits}f}".replace(".0", "") + f" {name}"
    return f"{number:.0f} bytes"


def tree_text(load: Workload, adjective: str = "") -> str:
    """As 4 files of 1 GiB, or 50,000 small files of about 4.5 KiB."""
    about = "about " if load.mean % KIB else ""
    noun = "file" if load.files == 1 else "files"
    return f"{load.files:,} {adjective}{noun} of {about}{size_text(load.mean)}"


def section_text(section: Section) -> str:
    if section.one_tree:
        return tree_text(section.workloads[0], section.kind + " ")
    return short_text(section, by_number=False)


def short_text(section: Section, by_number: bool) -> str:
    if by_number:
        return f"{section.workloads[0].files:,} {section.kind} files"
    return f"{section.kind.capitalize()} files"


def workload_text(section: Section, load: Workload) -> str:
    over = DELAYED.get(load.scheme, load.scheme)
    text = over if section.one_tree else f"{tree_text(load)}, {over}"
    partly = [it for it in load.series if it.spans and it.failed]
    failed = [f"{it.label}: {it.failed} of {it.runs} runs failed" for it in partly]
    return f"{text} ({', '.join(failed)})" if failed else text


def title_text(found: Sequence[Section]) -> str:
    speed, cpu = found[0].ratios(0), found[0].ratios(1)
    if not speed:
        return "How fast pfu uploads, and on how much CPU"
    kind = found[0].kind.capitalize()
    text = f"{kind} files: pfu is {ratios_text(speed)} times as fast as the best other tool"
    percents = dict.fromkeys(f"{100 * it:.0f}" for it in cpu[:: len(cpu) - 1 or 1])
    return f"{text}, on {' to '.join(percents)}\N{NO-BREAK SPACE}% of the CPU" if cpu else text


def subtitle_texts(found: Sequence[Section]) -> list[str]:
    """What the title leaves out, the sections where pfu is slower among it."""
    kinds = [each.kind for each in found]
    told = [
        f"{short_text(each, kinds.count(each.kind) > 1)}: {ratios_text(speed)} times"
        f"{' (slower)' if speed[-1] < 1 else ''}."
        for each in found[1:]
        if (speed := each.ratios(0))
    ]
    compared = any(each.ratios(0) for each in found)
    meaning = ["× is pfu, both modes, against the best other tool of each workload."]
    return ([" ".join(told)] if told else []) + (meaning if compared else [])


def column_texts(section: Section) -> tuple[list[str], list[str]]:
    """Above the columns of speed and of CPU: their units, and what pfu reaches."""
    large = section.kind == "large"
    speed, cpu = ("MiB/s", "CPU s/GiB") if large else ("files/s", "CPU µs/file")
    units = [f"{speed}, more is better", f"{cpu}, less is better"]
    ratios = [section.ratios(column) for column in (0, 1)]
    return units, [f"pfu {ratios_text(it)} ×" if it else "" for it in ratios]


def footer_texts(files: Sequence[dict[str, Any]], found: Sequence[Section]) -> list[str]:
    texts = [text(each) for each in files for text in (machine_text, versions_text)]
    texts.append("Bars end at medians of whole runs; thin lines go from the lowest to the highest.")
    noisy = [it.noisy for each in found for it in each.series if it.spans]
    used = f"Other processes used over {NOISE:.0%} of the machine in"
    return [*dict.fromkeys(texts), *([f"{used} {sum(noisy)} of {len(noisy)} rows."] * any(noisy))]


def machine_text(result: dict[str, Any]) -> str:
    cores, rounds = result["machine"]["cores"], result["rounds"]
    return (
        f"{str(result['date'])[:10]}: {cores} core{'s' * (cores != 1)}"
        f" ({result['machine']['cpu']}) that the server shares,"
        f" {rounds} round{'s' * (rounds != 1)} in turns"
    )


def versions_text(result: dict[str, Any]) -> str:
    """As pfu 0.2.0, s5cmd 2.3.0: the tools first, then what they ran on."""
    versions, found = result["versions"], {}
    last = ["python", "nginx"]
    for name in [*(name for name in versions if name not in last), *last]:
        number = re.search(r"\d+(\.\d+)+", str(versions.get(name, "")))
        if number:
            found[re.sub(r"^pfu-.*", "pfu", name).replace("python", "Python")] = number[0]
    return ", ".join(f"{name} {number}" for name, number in found.items())


# ---------------------------------------------------------------------------------------------
# Picture
# ---------------------------------------------------------------------------------------------

WIDTH, MARGIN = 400.0, 8.0  # points; a phone shows them at nearly that size
LEFTS, WIDTHS = (96.0, 268.0), (114.0, 80.0)  # of the columns of bars
ROW, BAR = 15.0, 10.5

# Each colour, and what it becomes in dark mode: found in the finished SVG by its light value.
DARK = {
    (BACKGROUND := "#ffffff"): "#0d1117",
    (INK := "#1f2328"): "#f0f6fc",
    (MUTED := "#59636e"): "#9198a1",
    (RULE := "#d1d9e0"): "#3d444d",
    (FINDING := "#0757ba"): "#58a6ff",
    (PARALLEL := "#0969da"): "#388bfd",
    (CONCURRENT := "#80b8f7"): "#1f5499",
    (OTHER := "#c8ced5"): "#4a525c",
}
BARS = {"pfu-parallel": PARALLEL, "pfu-concurrent": CONCURRENT}
FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, "DejaVu Sans", sans-serif'


@dataclass(frozen=True)
class Style:
    """How a line of text looks; so many letters fit it, in a wide font."""

    height: float
    size: float
    letters: int
    color: str = INK
    weight: str = "normal"


TITLE = Style(20, 14, 50, weight="bold")
LEAD = Style(15, 10.5, 70, MUTED)
SECTION = Style(19, 12.5, 52, weight="bold")
HEAD = Style(16, 10.5, 64, MUTED)
FOUND = Style(15, 10.5, 64, FINDING, "bold")
NOTE = Style(13.5, 9.5, 84, MUTED)


class Page:
    """What is drawn from the top down: blocks of a height, placed when all of them are known."""

    def __init__(self) -> None:
        self._blocks: list[tuple[float, Callable[[float], None]]] = []
        self.figure = Figure(facecolor=BACKGROUND)

    def text(self, text: str, style: Style) -> None:
        """Over the whole width, in more than one line if it is long."""
        for line in textwrap.wrap(NOT_IN_XML.sub("\ufffd", text), style.letters):
            self.columns([line], style, [0])

    def columns(self, texts: Sequence[str], style: Style, lefts: Sequence[float] = LEFTS) -> None:
        """Beside each other."""

        def place(top: float) -> None:
            for text, left in zip(texts, lefts):
                x, y = self._fraction(left, top + 0.75 * style.height)
                font = {"fontsize": style.size, "fontweight": style.weight, "color": style.color}
                self.figure.text(x, y, text, parse_math=False, va="baseline", **font)

        if any(texts):
            self._blocks.append((style.height, place))

    def gap(self, height: float, *, rule: bool = False) -> None:
        def place(top: float) -> None:
            if rule:
                (x, y), (end, _) = self._fraction(0, top + 12), self._fraction(WIDTH, 0)
                line = Line2D([x, end], [y, y], color=RULE, linewidth=0.75)
                self.figure.add_artist(line)

        self._blocks.append((height, place))

    def bars(self, section: Section, load: Workload) -> None:
        """One row for each tool: its name, and a bar in each column."""

        def place(top: float) -> None:
            for column in (0, 1):
                self._column(section, load, column, top)

        self._blocks.append((ROW * len(load.series), place))

    def _column(self, section: Section, load: Workload, column: int, top: float) -> None:
        height, rows = ROW * len(load.series), range(len(load.series))
        x, bottom = self._fraction(LEFTS[column], top + height)
        share = (WIDTHS[column] / self._width, height / self._height)
        axes = self.figure.add_axes((x, bottom, *share), frame_on=False)
        axes.set(
            xlim=(0, section.scale(column)), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[]
        )
        gap = section.scale(column) * 5 / WIDTHS[column]
        words = {"va": "center_baseline", "fontsize": 10.5, "clip_on": False, "parse_math": False}
        for row, it in zip(rows, load.series):
            bold = "bold" if it.is_pfu else "normal"
            if column == 0:
                name = NOT_IN_XML.sub("\ufffd", it.label)
                left = -LEFTS[0] * section.scale(0) / WIDTHS[0]
                axes.text(left, row, name, color=INK, gid=f"tool{row}", **words)
            if it.spans:
                span = it.spans[column]
                axes.barh(
                    row, span.median, BAR / ROW, color=BARS.get(it.tool, OTHER), clip_on=False
                )
                if span.high > span.low:
                    line = {"color": INK, "linewidth": 0.9, "solid_capstyle": "butt"}
                    axes.plot([span.low, span.high], [row, row], clip_on=False, **line)
                end = max(span.median, span.high) + gap
                axes.text(end, row, figure(span.median), color=INK, fontweight=bold, **words)
            elif column == 0:
                failed = "failed" if it.runs else "not run"
                axes.text(0, row, failed, color=INK, fontstyle="italic", **words)

    def _fraction(self, left: float, top: float) -> tuple[float, float]:
        """A place on the page, in the figure's own units, which start at its lower left."""
        return (MARGIN + left) / self._width, 1 - (MARGIN + top) / self._height

    def finish(self) -> Figure:
        self._width = WIDTH + 2 * MARGIN
        self._height = sum(height for height, _ in self._blocks) + 2 * MARGIN
        self.figure.set_size_inches(self._width / 72, self._height / 72)
        top = 0.0
        for height, place in self._blocks:
            place(top)
            top += height
        return self.figure


def draw(files: Sequence[dict[str, Any]]) -> Figure:
    """The picture of all the results."""
    found = sections(it for each in files for it in each["results"])
    if not found:
        fail("there are no results to draw")
    page = Page()
    page.figure.set_label(title_text(found))
    page.text(title_text(found), TITLE)
    for text in subtitle_texts(found):
        page.text(text, LEAD)
    for section in found:
        page.gap(18, rule=True)
        page.text(section_text(section), SECTION)
        units, findings = column_texts(section)
        page.columns(units, HEAD)
        page.columns(findings, FOUND)
        for load in section.workloads:
            page.gap(5)
            page.text(workload_text(section, load), HEAD)
            page.bars(section, load)
    page.gap(18, rule=True)
    for text in footer_texts(files, found):
        page.text(text, NOTE)
    return page.finish()


def svg(picture: Figure) -> str:
    """The file: without a date, its text as text, with a style for readers in dark mode."""
    written = io.BytesIO()
    metadata = {"Title": picture.get_label(), "Date": None, "Creator": None}
    settings = {"svg.fonttype": "none", "svg.hashsalt": "pfu", "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):
        picture.savefig(written, format="svg", metadata=metadata, facecolor=BACKGROUND)
    rules = "".join(
        f' [style*="{what}: {light}"] {{ {what}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"text {{ font-family: {FONTS} !important }}\n"
    style += f"@media (prefers-color-scheme: dark) {{\n{rules}}}\n"
    head, opening, rest = written.getvalue().decode().partition("<defs>")
    return f"{head}<style>\n{style}</style>\n{opening}{rest}"


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def fail(message: str) -> NoReturn:
    raise SystemExit(f"chart.py: {message}")


def read_result(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if not isinstance(found, dict) or not {"results", "machine", "versions"} <= set(found):
        fail(f"{path}: not written by compare.py --json")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="what it wrote")
    files = [read_result(path) for path in parser.parse_args().results]
    try:
        drawn = svg(draw(files))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fail(f"cannot draw this: {type(error).__name__}: {error}")
    sys.stdout.buffer.write(drawn.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
