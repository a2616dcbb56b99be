"""A line on stdout that says how far something is."""

import shutil
import sys
import time


class ProgressLine:
    """Rewrites a line on a terminal, and writes it anew every so often elsewhere.

    Args:
        on_terminal, in_file: seconds from one look to the next.
    """

    def __init__(self, on_terminal: float, in_file: float):
        self._terminal = sys.stdout.isatty()
        self._pause = on_terminal if self._terminal else in_file
        self._shown = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether it is time for another `show`, and counts from now on if it is."""
        now = time.monotonic()
        if now - self._shown < self._pause:
            return False
        self._shown = now
        return True

    def show(self, text: str) -> None:
        """Writes the line in place of the one before."""
        if self._terminal:
            width = self._width()
            print(f"\r{text[:width]:<{width}}", end="", flush=True)
        else:
            print(text, flush=True)

    def say(self, text: str, end: str = "\n") -> None:
        """Writes what stays, where the line was; with two empty strings it takes the line away."""
        blank = "\r" + " " * self._width() + "\r" if self._terminal else ""
        print(blank + text, end=end, flush=True)

    @staticmethod
    def _width() -> int:
        return shutil.get_terminal_size().columns - 1
