"""Draw what bench/compare.py measured as one SVG picture, for README.md.

    python bench/compare.py --json result.json
    python bench/chart.py result.json [more.json ...] > bench/comparison.svg

What it shows
- One section a kind of files: small, medium (under 1 MiB) and large, in the order of the results.
  Its workloads have one scale and one unit: files/s and CPU a file, for large files MiB/s and CPU
  a GiB. Every bar starts at zero and ends at the median; a thin line goes from the lowest to the
  highest run. Of a series that is in several of the files, the last one counts.
- Above each column stands what pfu, both modes, reaches against the best other tool of each
  workload, from the worst of these ratios to the best. The first section's make the title. There
  are none where any series of pfu failed.
- A series without a good run is "failed", without a bar. Where only some runs failed, the bar is of
  the others, and the workload's heading says how many are missing.

The same results make the same bytes. The picture follows the reader's light or dark mode and needs
nothing from elsewhere: no font, no script, no custom property that a plain renderer would not know.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.sax.saxutils import escape

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALL_BYTES = 64 * KIB  # files are small up to this mean size,
LARGE_BYTES = MIB  # and large from this
LABEL_LETTERS = 14
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
    """All runs of one tool in one workload; without speed and CPU if none was good."""

    tool: str
    speed: Span | None
    cpu: Span | None
    runs: int
    failed: int
    other_share: float

    @property
    def is_pfu(self) -> bool:
        return self.tool.startswith("pfu")


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
    def units(self) -> tuple[str, str]:
        """What the two columns of bars are in."""
        large = self.kind == "large"
        speed, cpu = ("MiB/s", "CPU s/GiB") if large else ("files/s", "CPU µs/file")
        return f"{speed}, more is better", f"{cpu}, less is better"

    def series(self) -> Iterator[Series]:
        for load in self.workloads:
            yield from load.series


def workloads(results: Iterable[dict[str, Any]]) -> list[Workload]:
    """The results by workload, each in the order in which it first comes."""
    latest = {(it["case"], it["scheme"], it["tool"]): it for it in results}
    found: dict[tuple[str, str, int, int], list[dict[str, Any]]] = {}
    for it in latest.values():
        found.setdefault((it["case"], it["scheme"], it["files"], it["bytes"]), []).append(it)
    return [
        Workload(files, size, scheme, tuple(map(read_series, group)))
        for (_, scheme, files, size), group in found.items()
    ]


def read_series(it: dict[str, Any]) -> Series:
    median, runs = it["median"], it["runs"]
    good = [run for run in runs if run["failure"] is None]
    failed = len(runs) - len(good)
    if not good or not median:
        return Series(it["tool"], None, None, len(runs), failed, 0.0)
    files, size = max(1, it["files"]), max(1, it["bytes"])
    large = size / files >= LARGE_BYTES
    amount, cpu_unit = (size / MIB, size / GIB) if large else (files, files / 1e6)
    speed = spanned(amount / median["wall"], [amount / run["wall"] for run in good])
    cpu = spanned(median["cpu_seconds"] / cpu_unit, [run["cpu"] / cpu_unit for run in good])
    return Series(it["tool"], speed, cpu, len(runs), failed, median.get("other_share", 0.0))


def spanned(median: float, runs: Sequence[float]) -> Span:
    return Span(median, min(runs), max(runs))


def sections(found: Iterable[Workload]) -> list[Section]:
    """Large files are one section, MiB/s being comparable; others are one for each tree."""
    groups: dict[tuple[int, int], list[Workload]] = {}
    for load in found:
        tree = (0, 0) if load.kind == "large" else (load.files, load.bytes)
        groups.setdefault(tree, []).append(load)
    return [Section(tuple(group)) for group in groups.values()]


# ---------------------------------------------------------------------------------------------
# Words and figures
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratios:
    """pfu against the best other tool: from the lowest to the highest of a section."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = ratio(self.low), ratio(self.high)
        return low if low == high else f"{low} to {high}"


def speed_ratios(section: Section) -> Ratios | None:
    found = []
    for load in section.workloads:
        others = [it.speed.median for it in load.series if it.speed and not it.is_pfu]
        own = [it.speed.median for it in load.series if it.speed and it.is_pfu]
        found += [speed / max(others) for speed in own if others]
    return ratios_of(section, found)


def cpu_ratios(section: Section) -> Ratios | None:
    found = []
    for load in section.workloads:
        others = [it.cpu.median for it in load.series if it.cpu and not it.is_pfu]
        own = [it.cpu.median for it in load.series if it.cpu and it.is_pfu]
        found += [cpu / min(others) for cpu in own if others and min(others) > 0]
    return ratios_of(section, found)


def ratios_of(section: Section, found: Sequence[float]) -> Ratios | None:
    if not found or any(it.is_pfu and it.speed is None for it in section.series()):
        return None
    return Ratios(min(found), max(found))


def ratio(number: float) -> str:
    if number >= 10:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"


def share_text(share: float) -> str:
    return "less than half" if share < 0.5 else f"up to {percent(share)} of"


def percent(share: float) -> str:
    """Rounded up: it is said to be the most."""
    return f"{math.ceil(round(100 * share, 9))}\N{NO-BREAK SPACE}%"


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
    return f"{section.kind.capitalize()} files"


def workload_text(section: Section, load: Workload) -> str:
    over = DELAYED.get(load.scheme, load.scheme)
    return over if section.one_tree else f"{tree_text(load)}, {over}"


def failed_text(load: Workload) -> str:
    """Which bars are of fewer runs than were made."""
    partly = [it for it in load.series if it.speed and it.failed]
    return ", ".join(f"{label(it.tool)}: {it.failed} of {it.runs} runs failed" for it in partly)


def label(tool: str) -> str:
    """A tool as it is called beside its bar."""
    text = re.sub(r"^pfu-", "pfu ", tool)
    return text if len(text) <= LABEL_LETTERS else text[: LABEL_LETTERS - 1] + "…"


def title_lines(found: Sequence[Section]) -> list[str]:
    speed, cpu = speed_ratios(found[0]), cpu_ratios(found[0])
    if not speed:
        return ["How fast pfu uploads, and on how much CPU"]
    first = f"{found[0].kind.capitalize()} files: pfu is {speed} times as fast"
    second = "as the best other tool"
    return [first, f"{second}, on {share_text(cpu.high)} the CPU" if cpu else second]


def subtitle_lines(found: Sequence[Section]) -> list[str]:
    """What the title leaves out, the sections where pfu is slower among it."""
    others = [(each.kind.capitalize(), speed_ratios(each)) for each in found[1:]]
    told = [
        f"{kind} files: {speed} times{' (slower)' if speed.high < 1 else ''}."
        for kind, speed in others
        if speed
    ]
    compared = any(speed_ratios(each) for each in found)
    meaning = ["× is pfu, both modes, against the best other tool of each workload."]
    return ([" ".join(told)] if told else []) + (meaning if compared else [])


def findings(section: Section) -> tuple[str, str]:
    """What stands above the column of speed, and above that of CPU."""
    speed, cpu = speed_ratios(section), cpu_ratios(section)
    return f"pfu {speed} ×" if speed else "", f"pfu {cpu} ×" if cpu else ""


def footer_lines(files: Sequence[dict[str, Any]], found: Sequence[Section]) -> list[str]:
    lines = []
    for each in files:
        lines += [machine_text(each), versions_text(each["versions"])]
    lines.append("Bars end at medians of whole runs; thin lines go from the lowest to the highest.")
    return list(dict.fromkeys(lines)) + noise_lines(found)


def machine_text(result: dict[str, Any]) -> str:
    cores, rounds = result["machine"]["cores"], result["rounds"]
    return (
        f"{str(result['date'])[:10]}: {cores} core{'s' * (cores != 1)}"
        f" ({result['machine']['cpu']}) that the server shares,"
        f" {rounds} round{'s' * (rounds != 1)} in turns"
    )


def versions_text(versions: dict[str, Any]) -> str:
    """As pfu 0.1.0, s5cmd 2.3.0: the tools first, then what they ran on."""
    tools = [name for name in versions if name not in ("python", "nginx")]
    found = {}
    for name in [*tools, "python", "nginx"]:
        number = re.search(r"\d+(\.\d+)+", str(versions.get(name, "")))
        if number:
            found[re.sub(r"^pfu-.*", "pfu", name)] = number[0]
    names = {"python": "Python"}
    return ", ".join(f"{names.get(name, name)} {number}" for name, number in found.items())


def noise_lines(found: Sequence[Section]) -> list[str]:
    every = [it for each in found for it in each.series() if it.speed]
    noisy = sum(it.other_share > NOISE for it in every)
    used = f"Other processes used over {percent(NOISE)} of the machine"
    return [f"{used} in {noisy} of {len(every)} rows."] if noisy else []


# ---------------------------------------------------------------------------------------------
# Picture
# ---------------------------------------------------------------------------------------------

WIDTH = 600
SPEED_LEFT, SPEED_WIDTH = 124, 180
CPU_LEFT, CPU_WIDTH = 388, 146
ROW, BAR = 18, 13  # height of a row, and of the bar in it
BASELINE = 14  # of a row's text
LETTERS = {"title": 52, "section": 56, "head": 78, "note": 86}  # that fit a line, in a wide font

STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  fill: #1f2328; font-variant-numeric: tabular-nums }
.title { font-size: 20px; font-weight: 600 }
.section { font-size: 17px; font-weight: 600 }
.head, .note { fill: #59636e }
.note { font-size: 13px }
.finding, .parallel .figure, .concurrent .figure { font-weight: 600 }
.finding { fill: #0757ba }
.failed { font-style: italic }
rect { fill: #c8ced5 }
.parallel rect { fill: #0969da }
.concurrent rect { fill: #80b8f7 }
.range { stroke: #1f2328; stroke-opacity: .75; stroke-width: 1.25 }
.rule { stroke: #d1d9e0 }
"""

DARK_STYLE = """
text { fill: #f0f6fc }
.head, .note { fill: #9198a1 }
rect { fill: #4a525c }
.finding { fill: #58a6ff }
.parallel rect { fill: #388bfd }
.concurrent rect { fill: #1f5499 }
.range { stroke: #f0f6fc }
.rule { stroke: #3d444d }
"""


class Drawing:
    """SVG elements from the top down; `top` is where the next one goes."""

    def __init__(self) -> None:
        self.top = 0
        self.elements: list[str] = []

    def text(self, text: str, left: float, name: str, baseline: float) -> None:
        place = f'x="{number_text(left)}" y="{number_text(self.top + baseline)}"'
        self.elements.append(f'<text class="{name}" {place}>{xml_text(text)}</text>')

    def line(self, text: str, name: str, height: int) -> None:
        """Text over the whole width, in more than one line if it is long."""
        for each in textwrap.wrap(text, LETTERS[name]):
            self.text(each, 0, name, round(height * 0.75))
            self.top += height

    def columns(self, texts: tuple[str, str], name: str) -> None:
        for text, left in zip(texts, (SPEED_LEFT, CPU_LEFT)):
            if text:
                self.text(text, left, name, BASELINE)
        self.top += ROW if any(texts) else 0

    def rule(self) -> None:
        self.elements.append(f'<path class="rule" d="M0 {self.top + 0.5}H{WIDTH}"/>')

    def bar(self, span: Span, left: int, scale: float) -> None:
        """A bar from zero to the median, the range across it, and the figure after both."""
        middle = number_text(self.top + 3 + BAR / 2)
        low, end, high = (left + scale * it for it in (span.low, span.median, span.high))
        place = f'x="{left}" y="{self.top + 3}" height="{BAR}"'
        self.elements.append(f'<rect {place} width="{number_text(end - left)}"/>')
        if span.high > span.low:
            across = f"M{number_text(low)} {middle}H{number_text(high)}"
            self.elements.append(f'<path class="range" d="{across}"/>')
        self.text(figure(span.median), max(end, high) + 6, "figure", BASELINE)

    def series(self, it: Series, speed_scale: float, cpu_scale: float) -> None:
        self.elements.append(f'<g class="{css_class(it.tool)}">')
        self.text(label(it.tool), 0, "tool", BASELINE)
        if it.speed and it.cpu:
            self.bar(it.speed, SPEED_LEFT, speed_scale)
            self.bar(it.cpu, CPU_LEFT, cpu_scale)
        else:
            self.text("failed" if it.runs else "not run", SPEED_LEFT, "failed", BASELINE)
        self.elements.append("</g>")
        self.top += ROW

    def section(self, section: Section) -> None:
        speed_scale = scale_for(SPEED_WIDTH, (it.speed for it in section.series()))
        cpu_scale = scale_for(CPU_WIDTH, (it.cpu for it in section.series()))
        self.section_head(section)
        for load in section.workloads:
            self.top += 6
            failed = failed_text(load)
            heading = workload_text(section, load) + (f" ({failed})" if failed else "")
            self.line(heading, "head", 20)
            for it in load.series:
                self.series(it, speed_scale, cpu_scale)

    def section_head(self, section: Section) -> None:
        self.top += 20
        self.rule()
        self.top += 8
        self.line(section_text(section), "section", 24)
        self.columns(section.units, "head")
        self.columns(findings(section), "finding")


def scale_for(width: float, spans: Iterable[Span | None]) -> float:
    """Pixels for each unit, so that the highest run has all the width."""
    return width / (max((span.high for span in spans if span), default=0) or 1)


def css_class(tool: str) -> str:
    return {"pfu-parallel": "parallel", "pfu-concurrent": "concurrent"}.get(tool, "other")


def number_text(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def xml_text(text: str) -> str:
    return escape(NOT_IN_XML.sub("\ufffd", text))


def described(found: Sequence[Section]) -> str:
    """For those who hear the picture: every section's finding."""
    told = []
    for each in found:
        columns = [": ".join(filter(None, pair)) for pair in zip(each.units, findings(each))]
        told.append(f"{section_text(each)}: {'; '.join(columns)}.")
    return " ".join([*subtitle_lines(found), *told])


def picture(files: Sequence[dict[str, Any]]) -> str:
    """The SVG of all the results."""
    found = sections(workloads(it for each in files for it in each["results"]))
    if not found:
        fail("there are no results to draw")
    drawing = Drawing()
    for text in title_lines(found):
        drawing.line(text, "title", 27)
    for text in subtitle_lines(found):
        drawing.line(text, "head", 21)
    for section in found:
        drawing.section(section)
    drawing.top += 20
    drawing.rule()
    drawing.top += 8
    for text in footer_lines(files, found):
        drawing.line(text, "note", 18)
    return document(drawing, " ".join(title_lines(found)), described(found))


def document(drawing: Drawing, title: str, description: str) -> str:
    height = drawing.top + 4
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    accessible = 'role="img" aria-labelledby="title description"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {accessible}>',
            f'<title id="title">{xml_text(title)}</title>',
            f'<desc id="description">{xml_text(description)}</desc>',
            f"<style>{STYLE}@media (prefers-color-scheme: dark) {{{DARK_STYLE}}}\n</style>",
            *drawing.elements,
            "</svg>\n",
        ]
    )


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


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("results", type=Path, nargs="+", metavar="FILE", help="what it wrote")
    return made


def main() -> int:
    files = [read_result(path) for path in parser().parse_args().results]
    sys.stdout.buffer.write(picture(files).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
