"""Processes that end when they should: with their parent, and after a signal only where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.5
"""How often a child looks whether its parent is still there."""


def end_with_parent() -> None:
    """End this process soon after its parent has ended, however that ended; called once, early, in a child.

    A parent killed by SIGKILL cannot end its children, and Linux's PR_SET_PDEATHSIG fires as soon as the *thread* that
    started the child is over. So a thread of the child watches who its parent is.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that the block can stop where nothing is half done.

    Yields a function that says whether one has come; the block should then save and leave. At the end the signal takes
    effect. A second one takes effect at once. Outside the main thread nothing is held back: signals do not come there.
    """
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        pending = bool(before) and bool(came)
        restore()
        if pending:
            signal.raise_signal(came[0])
