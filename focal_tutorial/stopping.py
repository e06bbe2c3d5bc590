"""Ctrl-C and SIGTERM: a training finishes its step and is saved, any other command ends at once and says so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within it, Ctrl-C or SIGTERM sets `asked` and lets the step finish; a second one stops at once.

    One around another is asked too: a training that is asked in its last step finishes, but what comes next must not.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers nowhere else
            self._before = {number: signal.signal(number, self._ask) for number in NUMBERS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        _set_back({n: handler for n, handler in self._before.items() if n in NUMBERS})
        outer = getattr(self._before.get(number), "__self__", None)
        if isinstance(outer, StopRequest):
            outer._ask(number, frame)

    def meet_deaths_between_steps(self) -> None:
        """From now on, a loader's process that dies is found when the next batch is asked for, between two steps.

        torch raises from its handler of SIGCHLD, wherever the program is. To be called once the first batch has come:
        then torch has set that handler. It gives way to one that does nothing. (None would not do: where both signals
        have come when Python looks, it calls the handler of SIGTERM and complains that the other has none.)
        """
        number = getattr(signal, "SIGCHLD", None)  # not on Windows
        if self._before and number is not None and number not in self._before:
            self._before[number] = signal.signal(number, _nothing)

    def __exit__(self, *error: object) -> None:
        _set_back(self._before)


class Interruptible:
    """Within it, SIGTERM does what Ctrl-C does; `asked` says afterwards that one of them has come.

    That is for the exception which they raise: compiled code on its way may turn it into another. A signal that
    somebody else handles, or that the process was started to ignore, is left alone; and SIGTERM under torchrun, which
    ends the other processes by it when one has failed, whatever they wait for.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
            for number in NUMBERS if alone else NUMBERS[:1]:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._raise)
        return self

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def __exit__(self, *error: object) -> None:
        _set_back(self._before)


def leave_stopping_to_parent(worker: int) -> None:
    """What a loader's process does first: Ctrl-C, which goes to a whole process group, then reaches the parent alone.

    The parent ends its loaders itself. Without this, they die at the signal, and the batch that the parent waits for,
    in a training or in an evaluation, never comes.

    Args:
        worker: its number, which torch hands over; not used.
    """
    if hasattr(os, "setsid"):
        with contextlib.suppress(OSError):
            os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def _set_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # of C code, which Python cannot set
            signal.signal(number, handler)
