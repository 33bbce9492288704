"""Long work: it runs in a thread, its panel shows how far it is, and the Stop button or the kernel's ■ ends it.

A panel's steps are a generator. It yields each function that takes long: that runs in a thread and touches no widget.
What comes of it, a result or an exception, is given back to the generator, which may touch all widgets. To stop is to
raise in the thread what Ctrl-C raises in a command, a KeyboardInterrupt.

Since ipykernel 7 one thread of the kernel handles the messages of all widgets, so the callback returns at once and
another thread follows the work. Before that, as in Colab, which shows no change that a thread makes, the callback stays
until the work is done, draws, and meanwhile hears what the page has to say.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from threading import Thread
from typing import Any

import ipywidgets as w
from IPython import get_ipython

from lazymoe.notebook import ui
from lazymoe.progress import Progress, silent

Steps = Generator[Callable[[], Any], Any, None]

TICK = 0.1  # seconds between two looks at the work
PATIENCE = 0.7  # seconds that a stop waits for a single long operation; the next start waits for the rest of it
WORKING = "Working … To stop it, press Stop or the kernel's ■."


class Work(w.HBox):
    """The long work of a panel, shown as what starts it with a Stop button beside it.

    Attributes:
        goes_on: whether it has begun and isn't over.
        pressed: whether its own button asked it to stop; else the kernel did, which is about to end perhaps.
    """

    def __init__(
        self,
        start: w.Widget,
        name: str,
        told: ui.Messages,
        again: str,
        draw: Progress = silent,
        hear: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Show it, at rest.

        Args:
            start: what a person starts it with; it is off meanwhile.
            name: of the Stop button's class, by which tests find it.
            told: where its messages go.
            again: what to do after a stop.
            draw: shows the progress.
            hear: shows a line that is said.
        """
        self._start, self._told, self._again, self._show, self._hear = start, told, again, draw, hear
        self._lines: deque[str] = deque()  # that were said since they were shown
        self._ready = True
        self.pressed = False
        self._stop = ui.button("Stop", f"{name}-stop", self._press, style="danger", width="90px", display="none")
        self._moved: dict[str, tuple[int, int]] = {}  # stages since they were drawn: done, total
        self._steps: Steps | None = None
        self._aside: _Aside | None = None  # the step that was taken
        self._left: _Aside | None = None  # an operation that the last stop didn't wait for
        self._stopped = False  # whether it was asked to
        super().__init__([start, self._stop])

    @property
    def goes_on(self) -> bool:
        return self._steps is not None

    def allow(self, ready: bool) -> None:
        """Let it be started, or not yet.

        Args:
            ready: whether what it needs is there.
        """
        self._ready = ready
        self._start.disabled = self.goes_on or not ready

    def begin(self, steps: Steps) -> None:
        """Begin, unless it goes on: a second click may have been on its way.

        Args:
            steps: what to do.
        """
        if self in AT_WORK:
            return
        AT_WORK.append(self)
        self._steps, self._stopped, self.pressed = self._guarded(steps), False, False
        self._told.show("note", WORKING)
        self._start.disabled = True
        self._take(None, None)
        if self.goes_on:
            _follow(self, self._stop)

    def _guarded(self, steps: Steps) -> Steps:
        with self._told.guard(self._again):
            if self._left:
                yield self._left.join
            yield from steps

    def progress(self, stage: str, done: int, total: int) -> None:
        """Keep how far the work is, to be drawn from outside its thread.

        Raises:
            KeyboardInterrupt: if it shall stop: threads of its own, such as a download's, hear of it only so.
        """
        if self._stopped:
            raise KeyboardInterrupt
        self._moved[stage] = done, total

    def say(self, line: str) -> None:
        """Keep a line, to be shown from outside the work's thread."""
        self._lines.append(line)

    def _press(self) -> None:
        self.pressed = True
        self.stop()

    def stop(self) -> None:
        """Ask the work to stop."""
        self._stopped = True

    def advance(self) -> None:
        """Wait a moment, draw, and if the step is done take the next one."""
        assert self._aside
        self._aside.join(TICK)
        done = not self._aside.is_alive()  # before the drawing, so that its last progress is drawn
        for stage in list(self._moved):
            self._show(stage, *self._moved.pop(stage))
        while self._lines:
            self._hear(self._lines.popleft())
        if self._stopped:
            self._stop.disabled = True
            self._aside.interrupt()
            if done or self._aside.lingers:
                self._take(None, KeyboardInterrupt())
        elif done:
            self._take(self._aside.result, self._aside.failed)

    def _take(self, result: Any, failed: BaseException | None) -> None:
        """Give the steps what came of the last one, and take the next."""
        assert self._steps
        self._stopped = self._stopped and not failed  # steps may go on after a stop, to tidy up
        try:
            function = self._steps.throw(failed) if failed else self._steps.send(result)
        except StopIteration:
            self.end()
            return
        self._aside = _Aside(function)
        self._aside.start()

    def end(self) -> None:
        """Let it rest again."""
        if not self.goes_on:
            return
        if self._aside:
            self._aside.interrupt()
            self._left = self._aside if self._aside.is_alive() else None  # else it would keep what it computed with
        self._steps = self._aside = None
        self._start.disabled, self._stop.disabled = not self._ready, False
        self._stop.layout.display = "none"
        AT_WORK.remove(self)


class _Aside(Thread):
    """A function that runs in a thread, and what came of it.

    Attributes:
        result: what it gave.
        failed: what it raised instead.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function, self.result = function, None
        self.failed: BaseException | None = KeyboardInterrupt()  # if it gets no further
        self._interrupted: float | None = None  # when

    def run(self) -> None:
        try:
            self.result = self._function()
            self.failed = None
        except BaseException as e:
            self.failed = e.with_traceback(None)  # whose frames hold what it computed with

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the thread, once, as soon as it runs Python code and can bear it."""
        if self.is_alive() and not self._interrupted and not _is_delicate(self.ident or 0):
            thread, raised = ctypes.c_ulong(self.ident or 0), ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, raised)
            self._interrupted = time.monotonic()

    @property
    def lingers(self) -> bool:
        """Whether a single operation, such as a large matrix product, has kept the interrupt waiting for long."""
        return self._interrupted is not None and time.monotonic() > self._interrupted + PATIENCE


def _is_delicate(thread: int) -> bool:
    """Tell whether a thread is importing, or starting another one.

    An import of torch's that is cut short can't be done again; and for a moment it is the other that would be hit.
    """
    frame = sys._current_frames().get(thread)
    while frame:
        if frame.f_code is Thread.start.__code__ or frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


AT_WORK: list[Work] = []  # in this notebook


def _interrupted(*_: Any) -> None:
    """Stop all work, on the kernel's ■."""
    for work in list(AT_WORK):
        work.stop()


def _follow(work: Work, stop: w.Button) -> None:
    """Advance the work until it is over, and let it be stopped meanwhile: from a thread, or in place of it."""
    kernel = getattr(get_ipython(), "kernel", None)
    queued = hasattr(kernel, "schedule_dispatch")  # before ipykernel 7
    if kernel:
        stop.layout.display = None
    if not kernel or queued:
        _stay(work, kernel)
    else:
        kernel.io_loop.add_callback(signal.signal, signal.SIGINT, _interrupted)  # which the main thread alone may do
        Thread(target=_beside, args=(work,), daemon=True).start()


def _beside(work: Work) -> None:
    """Advance the work until it is over."""
    try:
        while work.goes_on:
            work.advance()
    finally:
        work.end()


def _stay(work: Work, kernel: Any) -> None:
    """Advance all work until this one is over; other work may begin while the page is heard."""
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        while work.goes_on:
            for each in list(AT_WORK):
                each.advance()
            if kernel:
                _hear(kernel)
    finally:
        work.end()
        signal.signal(signal.SIGINT, before)


def _hear(kernel: Any) -> None:
    """Handle the messages of widgets that have come; others, such as cells to run, wait for their turn."""
    socket, session = kernel.shell_stream.socket, kernel.session
    while socket.poll(0):
        frames = socket.recv_multipart(copy=False)
        ident, parts = session.feed_identities(frames, copy=False)
        kind = session.unpack(parts[1].bytes)["msg_type"]
        if not kind.startswith("comm_"):
            kernel.schedule_dispatch(kernel.dispatch_shell, frames)
            continue
        message = session.deserialize(parts, copy=False)
        kernel.shell_handlers[kind](kernel.shell_stream, ident, message)
        kernel._publish_status("idle", "shell", parent=message)  # the widget waits for it before its next message
        kernel._publish_status("busy", "shell")
