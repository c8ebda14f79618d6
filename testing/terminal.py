"""A terminal for the program to write to, and what can be seen on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

import pfu
from testing.place import Place, fork_server


class Screen:
    """A terminal with a memory, as far as pfu asks for one: it wraps, scrolls, erases, colours.

    If ``reflows``, lines are wrapped anew when it gets another size; if not, they are cut.
    """

    TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[^\x1b]")
    CUT = re.compile(r"\x1b(\[[?\d;]*)?\Z")

    def __init__(self, columns: int, rows: int, *, reflows: bool = True) -> None:
        self.columns, self.rows, self.reflows = columns, rows, reflows
        self.lines = [""]  # all that there ever were; the screen shows the last ones
        self.is_wrapped = [False]  # whether a line goes on in the next one
        self.x = self.y = 0
        self.wraps = True
        self.styles: set[str] = set()
        self._rest = ""  # of a sequence whose end has not been read yet

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        if cut := self.CUT.search(text):
            text, self._rest = text[: cut.start()], cut[0]
        position = 0
        for token in self.TOKEN.finditer(text):
            assert token.start() == position, text[position:]
            position = token.end()
            if token[2]:
                self._obey(token[1], token[2])
            elif token[0] == "\n":
                self._go_down()
            elif token[0] == "\r":
                self.x = 0
            else:
                self._put(token[0])
        assert position == len(text), text[position:]

    def _obey(self, argument: str, letter: str) -> None:
        if letter == "m":
            self.styles.add(argument)
        elif letter == "A":
            self.y = max(self.y - int(argument or 1), self.top)
        elif argument + letter in ("?7h", "?7l"):
            self.wraps = letter == "h"
        else:
            assert argument + letter in ("J", "K"), argument + letter
            self.lines[self.y] = self.lines[self.y][: self.x]
            self.is_wrapped[self.y] = False
            if letter == "J":
                del self.lines[self.y + 1 :], self.is_wrapped[self.y + 1 :]

    @property
    def top(self) -> int:
        return max(0, len(self.lines) - self.rows)

    def _go_down(self) -> None:
        self.y += 1
        if self.y == len(self.lines):
            self.lines.append("")
            self.is_wrapped.append(False)

    def _put(self, character: str) -> None:
        if self.x == self.columns and self.wraps:
            self.is_wrapped[self.y] = True
            self._go_down()
            self.x = 0
        self.x = min(self.x, self.columns - 1)
        line = self.lines[self.y].ljust(self.x)
        self.lines[self.y] = line[: self.x] + character + line[self.x + 1 :]
        self.x += 1

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        if not self.reflows:
            self.lines = [line[:columns] for line in self.lines]
            return
        old, before = list(zip(self.lines, self.is_wrapped)), self.y
        self.lines, self.is_wrapped, whole, place = [], [], "", 0
        for number, (line, goes_on) in enumerate(old):
            place = len(whole) + self.x if number == before else place
            if number == before:
                self.y = len(self.lines)
            whole += line
            if goes_on:
                continue
            parts = [whole[at : at + columns] for at in range(0, len(whole), columns)] or [""]
            if number == before:
                self.y, self.x = self.y + place // columns, place % columns
            self.lines += parts
            self.is_wrapped += [True] * (len(parts) - 1) + [False]
            whole = ""

    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines[self.top :]).rstrip("\n")

    def history(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


@dataclass
class Seen:
    """What a run showed on a terminal."""

    screen: Screen
    raw: str = ""
    views: list[str] = field(default_factory=list)  # after each piece of output
    out: str = ""
    code: int = -1

    def view(self, pattern: str) -> str:
        """The first view with it."""
        found = next((view for view in self.views if re.search(pattern, view)), None)
        assert found is not None, (pattern, list(dict.fromkeys(self.views)))
        return found

    def take(self, terminal: int) -> None:
        """Show what was written; OSError after the last of it."""
        text = os.read(terminal, 65536).decode()
        self.raw += text
        self.screen.feed(text)
        self.views.append(self.screen.shown())


def nothing_to_do(seen: Seen, process: Any, terminal: int) -> None:
    """Watch only."""


def on_terminal(
    place: Place,
    *arguments: Any,
    columns: int = 80,
    rows: int = 24,
    reflows: bool = True,
    act: Callable[[Seen, Any, int], None] = nothing_to_do,
    environment: Mapping[str, str | None] | None = None,
) -> Seen:
    """A run whose standard error is a terminal; ``act`` is called after each piece of output.

    The ledger is there already, so that nothing is said of it.
    """
    pfu.Ledger(place.path / "pfu.db").close()
    changed = {**place.environment, "TERM": "xterm", "NO_COLOR": None, **(environment or {})}
    terminal, slave = pty.openpty()
    seen = Seen(Screen(columns or 80, rows or 24, reflows=reflows))
    set_size(terminal, columns, rows)
    kept = {name: value for name, value in changed.items() if value is not None}
    command = place.command(*arguments)[2:]
    # A group of its own, as a shell gives it; in an orphaned group SIGTSTP stops nothing.
    process = fork_server().start(command, place.path, kept, leads="group", err=slave)
    os.close(slave)
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 30)[0]:
            seen.take(terminal)
            act(seen, process, terminal)
    os.close(terminal)
    (seen.out,) = process.communicate(timeout=30)
    seen.code = process.wait()
    return seen


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
