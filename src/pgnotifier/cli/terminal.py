"""How the command line writes: plain text in pipes, colours and a live line on a terminal (guarantee 14).

`rich` draws where it is installed (extra `demo`); without it, with NO_COLOR and with TERM=dumb, no escape sequence
is written at all. Everything but `printable` runs on the main thread.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Part = tuple[str, str]  # a text, and a key of STYLES or ""
Line = Sequence[Part]

STYLES = {
    "dim": "dim",
    "channel": "bold cyan",
    "heading": "bold",
    "ok": "bold green",
    "warning": "bold yellow",
    "failed": "bold red",
}


def printable(text: str) -> str:
    """Return `text` on one line, with control characters as escapes, so that no payload can command a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Terminal:
    """Standard output and standard error, each a terminal to draw on or a plain stream."""

    def __init__(self, *, json: bool = False) -> None:
        """Set up both streams. `json`: standard output is UTF-8 in any locale; lone surrogates are JSON escapes."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
        if json and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        self.interactive: bool = _isatty(sys.stdout)
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)
        # A standard output that goes into a pipe may end on this same terminal, so standard error shows the live line
        # only if standard output is a file.
        self._host: Any = self._out or (self._err if _isfile(sys.stdout) else None)  # the console for a live line
        self._live: Any = None  # that console, while the line stands on it

    @property
    def has_live_line(self) -> bool:
        """True if `waiting` shows its text."""
        return self._host is not None

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines to standard output, at once. Raises OSError, `BrokenPipeError` among them."""
        _put(self._out, sys.stdout, lines)

    def note(self, lines: Sequence[Line]) -> None:
        """Write notes to standard error, above the live line if there is one."""
        _put(self._live or self._err, sys.stderr, lines)

    @contextlib.contextmanager
    def waiting(self, text: Callable[[], str]) -> Iterator[None]:
        """Show `text()`, kept current, while the block runs; nothing without a terminal.

        A thread of rich's calls `text`.
        """
        console = self._host
        if console is None:
            yield
            return
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("line", style="cyan")

        def draw() -> Spinner:
            spinner.update(text=Text(text(), style="dim", no_wrap=True, overflow="ellipsis"))
            return spinner

        live = Live(
            get_renderable=draw,
            console=console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            self._live = console
            try:
                yield
            finally:
                self._live = None


def _isatty(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _isfile(stream: Any) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)  # /dev/null is a character device


def _console(stream: Any) -> Any:
    """Return a rich console on `stream`; None if the output must be plain."""
    if not _isatty(stream) or os.environ.get("NO_COLOR"):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else console


def _put(console: Any, stream: Any, lines: Sequence[Line]) -> None:
    if console is not None:
        from rich.segment import Segment, Segments

        styles = {name: console.get_style(style) for name, style in STYLES.items()}
        parts = [Segment(part, styles.get(style)) for line in lines for part, style in (*line, ("\n", ""))]
        console.print(Segments(parts), end="", soft_wrap=True)
    elif stream is not None:
        stream.write("".join("".join(part for part, _ in line) + "\n" for line in lines))
        stream.flush()
