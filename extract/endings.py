"""How both programs end: exit codes, signals, closed pipes, unexpected errors."""

import errno
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, cast

import typer

from extract.errors import AuFusionError, MachineError, WeightsError

OURS = 70
"""Exit code for our own bugs (EX_SOFTWARE of sysexits.h): never 1, which means that clips failed."""

STOPS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name))
"""A closing terminal, Ctrl-C, a scheduler's SIGTERM: each stops the program cleanly with exit code 128 + its number."""

INTERRUPTED = "interrupted; run the same command to continue"

SAME_STOP_S = 1.0
"""A closing terminal and a scheduler may signal twice within moments; only a later signal shows impatience."""


STRIKES_AGAIN_S = 0.02
"""After this a signal that came at a bad moment is sent again."""


class Interrupted(KeyboardInterrupt):
    """A signal asked for a clean stop. It is a KeyboardInterrupt, so that whatever handles Ctrl-C handles it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class OutputError(OSError):
    """Standard output or error cannot be written, as on a full disk."""


_first: tuple[int, float] | None = None
"""The signal that ends the program, and when it arrived."""
_due = False
"""Whether the next signal is the first one, sent again."""
_told = False
"""Whether a command has reported that it was stopped."""
_over = False
"""Whether the command has ended: its exit code is final, and signals no longer matter."""
_at_once = False
"""Whether threads were left behind: an orderly end would pull the interpreter away under them, and abort."""
_deferring = 0
_deferred: int | None = None


def heed_signals() -> None:
    """Turn the stop signals into ``Interrupted`` in the main thread; a second one, a second later, ends at once.

    A signal that is ignored stays so: ``nohup`` ignores SIGHUP, a shell SIGINT for what it starts in the background.
    """
    sys.unraisablehook = _strike_again
    for signum in STOPS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def _stop(signum: int, frame: FrameType | None) -> None:
    global _first, _deferred, _due
    if _over:
        return
    again, _due = _due, False
    if _first is not None and not again:
        if time.monotonic() - _first[1] > SAME_STOP_S:
            os._exit(128 + signum)
        return
    if _first is None:
        _first = (signum, time.monotonic())
    if _deferring:
        _deferred = signum
    elif _is_importing(frame):
        _strike_later(signum)
    else:
        raise Interrupted(signum)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: torch's C++ aborts the process if anything is raised meanwhile."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _strike_again(lost: "sys.UnraisableHookArgs") -> None:
    """A signal inside a destructor, where nothing can be raised, is sent again a moment later."""
    if isinstance(lost.exc_value, Interrupted):
        _strike_later(lost.exc_value.exit_code - 128)
    else:
        sys.__unraisablehook__(lost)


def _strike_later(signum: int) -> None:
    def strike() -> None:
        global _due
        _due = True
        signal.pthread_kill(cast(int, threading.main_thread().ident), signum)

    again = threading.Timer(STRIKES_AGAIN_S, strike)
    again.daemon = True
    again.start()


def leave_at_once() -> None:
    """Threads that compute, or hang, are left behind: the program must end without regard to them."""
    global _at_once
    _at_once = True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of a short block that must not be interrupted. Only the main thread ever is."""
    global _deferring, _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
        if not _deferring and _deferred is not None:
            signum, _deferred = _deferred, None
            raise Interrupted(signum)


@contextmanager
def deferrable() -> Iterator[None]:
    """Have ``uninterrupted`` delay Ctrl-C also where ``heed_signals`` was not called: in a notebook, for instance."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    defer(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def defer(signum: int) -> None:
    """Turn a signal into ``Interrupted`` in the main thread, but never inside ``uninterrupted``."""
    signal.signal(signum, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _deferred
    del frame
    if _deferring:
        _deferred = signum
    else:
        raise Interrupted(signum)


@contextmanager
def interruptible() -> Iterator[None]:
    """Heed signals inside a block that ``uninterrupted`` surrounds: long work which may be given up."""
    global _deferring, _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held, _deferring = _deferring, 0
    try:
        if _deferred is not None:
            signum, _deferred = _deferred, None
            raise Interrupted(signum)
        yield
    finally:
        _deferring = held


@contextmanager
def reported(prefix: str, after_interrupt: str) -> Iterator[None]:
    """Wraps a command: its errors become lines on standard error and the exit codes of ``errors.py``."""
    global _told
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except AuFusionError as error:
        _say(f"{prefix}: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        _told = True
        _say(after_interrupt)
        raise typer.Exit(getattr(stop, "exit_code", 128 + signal.SIGINT)) from None
    except OutputError as error:
        _say(f"{prefix}: {error}")
        raise typer.Exit(MachineError.exit_code) from None
    except MemoryError:
        _say(f"{prefix}: the memory is full; nothing finished is lost: run the same command again with less at a time")
        raise typer.Exit(MachineError.exit_code) from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] in {"extract", "fusion"}:
            raise typer.Exit(_ours(prefix)) from None
        _say(f"{prefix}: {error}; install what requirements.lock names")
        raise typer.Exit(WeightsError.exit_code) from None
    except Exception:  # noqa: BLE001 - the last one to see it; its traceback is shown
        raise typer.Exit(_ours(prefix)) from None


def run_program(name: str, app: Callable[[], object]) -> NoReturn:
    """Run a program from its entry point to its exit code."""
    global _over
    heed_signals()
    sys.stdout, sys.stderr = _Unread.of(sys.stdout), _Unread.of(sys.stderr)
    try:
        code = _ended(name, app)
    except KeyboardInterrupt:  # while the message was being printed
        code = 128 + signal.SIGINT
    _over = True
    for signum in STOPS:  # while the interpreter ends it would set them back to what kills
        signal.signal(signum, signal.SIG_IGN)
    if _first is not None and code in {1, 128 + signal.SIGINT}:  # stopped outside a command, where only click saw it
        code = 128 + _first[0]
        if not _told:
            _say(f"{name}: {INTERRUPTED}")
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OutputError as error:
            _say(f"{name}: {error}")
            code = code or MachineError.exit_code
    if _at_once:
        os._exit(code if isinstance(code, int) else int(bool(code)))
    sys.exit(code)


def _ended(name: str, app: Callable[[], object]) -> int | str | None:
    """Run ``app`` and return its exit code."""
    try:
        app()
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - what was raised outside any command: while one was looked up or imported
        return _ours(name)
    return 0


def _ours(prefix: str) -> int:
    _say(traceback.format_exc().rstrip())
    _say(f"{prefix}: a bug in au-fusion; please report it, with the lines above")
    return OURS


def _say(text: str) -> None:
    with suppress(OutputError):  # nothing is left to say it with
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - what every command says when it ends


class _Unread(io.TextIOWrapper):
    """A standard stream whose reader may have gone (``| head``, a closed terminal): then output is dropped."""

    @classmethod
    def of(cls, stream: "io.TextIOBase | object") -> "_Unread":
        """A stream that replaces ``stream``, which stays open for others."""
        if not isinstance(stream, io.TextIOWrapper):  # none at all, or one that a test or notebook put there
            return stream  # type: ignore[return-value]
        stream.flush()
        copy = os.fdopen(os.dup(stream.fileno()), "wb")
        return cls(
            copy,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str, /) -> int:
        """``TextIOWrapper.write``; the text is dropped if nobody reads it."""
        try:
            return super().write(text)
        except OSError as error:
            self._divert(error)
            return len(text)

    def flush(self) -> None:
        """``TextIOWrapper.flush``."""
        try:
            super().flush()
        except OSError as error:
            self._divert(error)

    def _divert(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # what is still in the buffers goes there as well
        os.close(nowhere)
        if error.errno not in {errno.EPIPE, errno.EIO}:
            raise OutputError(f"cannot write the output: {error.strerror}; what was computed is kept") from error
