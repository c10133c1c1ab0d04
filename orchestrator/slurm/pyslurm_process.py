"""The helper process behind the pyslurm route: started when it is needed, killed when it hangs, started anew after.

In: a call's name and arguments. Out: its answer, or one of three errors that say how far the call came. Nothing here
knows what the calls mean. In a conversation a request may be sent before the last one is answered: the helper makes its
calls one after another, without waiting for anybody in between, and none after one that failed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from orchestrator.slurm.gateway import LOOK_AHEAD_S

HELPER = Path(__file__).with_name("pyslurm_helper.py")

AHEAD_BYTES_MAX = 32 * 1024
"""A larger request isn't sent ahead: it might not fit into the pipe while the helper has its hands full."""


class NotStarted(Exception):
    """The helper can't do anything here; the call was never made.

    Parameters
    ----------
    missing
        The Python package that isn't installed, where that is the reason.
    """

    def __init__(self, said: str, *, missing: str | None = None) -> None:
        super().__init__(said)
        self.missing = missing


class NoAnswer(Exception):
    """The call was made, then the helper died or was killed at the time-out: nobody knows what became of it."""


class CallFailed(Exception):
    """The call was answered with an error.

    Parameters
    ----------
    said
        The error's text.
    remarks
        What libslurm printed before that.
    number
        SLURM's error number; None for pyslurm's own errors.
    built
        False where it is sure that nothing was sent: the job couldn't even be put together.
    accepted
        Id of the job that SLURM made all the same.
    """

    def __init__(self, said: str, *, remarks: str, number: int | None, built: bool, accepted: int | None) -> None:
        super().__init__(said)
        self.remarks = remarks
        self.number = number
        self.built = built
        self.accepted = accepted


class HelperProcess:
    """One helper; calls from several threads are made one after the other.

    Parameters
    ----------
    python
        The interpreter that has pyslurm.
    environment
        The helper's environment.
    """

    def __init__(self, python: Path, environment: Mapping[str, str]) -> None:
        self._python = python
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self._remarks: IO[bytes] | None = None
        self._lifeline: int | None = None
        """Our end of a pipe that is never written to; the helper ends when it is closed, by us or by our death."""
        self.facts: Mapping[str, str] = {}
        """What the helper said at its start: the releases of pyslurm and of SLURM's interface."""

    def call(self, name: str, /, *, timeout_s: float, **arguments: object) -> Any:
        """Make one call; starting the helper and waiting for other threads' calls count into the time-out.

        Raises
        ------
        NotStarted, NoAnswer, CallFailed
            As their docstrings say.
        """
        with self.conversation(timeout_s=timeout_s) as conversation:
            conversation.send(name, **arguments)
            return conversation.receive()

    @contextmanager
    def conversation(self, *, timeout_s: float) -> Iterator[Conversation]:
        """Have the helper for several calls, each of which may take that long.

        Raises
        ------
        NotStarted
            When there is none, or others had it all that time.
        """
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise NotStarted(f"calls before this one took {timeout_s:g} s")
        try:
            process, remarks = self._running(deadline)
            conversation = Conversation(process, remarks, next(self._numbers), deadline, timeout_s)
            try:
                yield conversation
            finally:
                # An answer that nobody has taken would be taken for the next call's.
                if conversation.broken or conversation.outstanding:
                    self._end()
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the helper; a call under way in another thread fails."""
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    # ------------------------------------------------------------------------------------------------ the process

    def _running(self, deadline: float) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._process is not None and self._remarks is not None and self._process.poll() is None:
            return self._process, self._remarks
        self._end()
        self._remarks = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the helper
        self._process = self._started()
        try:
            said = json.loads(_line(self._process, b"", deadline)[0])
        except (TimeoutError, EOFError) as error:
            text = _text(self._remarks) or f"pyslurm can't be loaded: {error}"
            self._end()
            raise NotStarted(text) from error
        if "error" in said:
            self._end()
            raise NotStarted(said["error"]["text"], missing=said["error"]["missing"])
        self.facts = said["answer"]
        return self._process, self._remarks

    def _started(self) -> subprocess.Popen[bytes]:
        theirs, self._lifeline = os.pipe()
        try:
            return subprocess.Popen(
                [str(self._python), "-X", "utf8", str(HELPER), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._remarks,
                bufsize=0,
                pass_fds=(theirs,),
                env=self._environment,
                # A Ctrl-C in the service's terminal must not reach a submission that is under way.
                start_new_session=True,
            )
        except OSError as error:
            self._end()
            raise NotStarted(f"{self._python}: {error.strerror}") from error
        finally:
            os.close(theirs)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._remarks is not None:
            self._remarks.close()
            self._remarks = None


class Conversation:
    """Requests to a helper that runs, and their answers in the same order.

    Parameters
    ----------
    remarks
        The helper's standard error; it empties it with each answer.
    number
        Tells its requests from those of other conversations.
    deadline
        Of the first answer, on the monotonic clock.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], remarks: IO[bytes], number: int, deadline: float, timeout_s: float
    ) -> None:
        self._process, self._remarks, self._number = process, remarks, number
        self._deadline, self._timeout_s = deadline, timeout_s
        self._heard: deque[dict[str, Any] | NoAnswer] = deque()
        self._unread = b""
        self._lost: NoAnswer | None = None
        """What is to be said of the call that the helper died in; None once it was."""
        self.outstanding = 0
        """Requests that no answer was heard to."""
        self.broken = False
        """Whether the helper is gone."""

    def send(self, name: str, /, **arguments: object) -> None:
        """Send a request. What fails, this too, is told by `receive`."""
        body = json.dumps([name, arguments])
        while self.outstanding and len(body) > AHEAD_BYTES_MAX:
            self._hear()
        begin_by = "null"
        if self.outstanding:
            begin_by = repr(time.monotonic() + LOOK_AHEAD_S)
        elif self._deadline < time.monotonic():
            self._deadline = time.monotonic() + self._timeout_s
        self.outstanding += 1
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        data = f"[{self._number}, {begin_by}, {body}]\n".encode()
        with suppress(BrokenPipeError):  # the answers to those before it may be there
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]

    def receive(self) -> Any:
        """Return the answer to the oldest request without one; None where it was sent ahead and wasn't made.

        Raises
        ------
        NoAnswer, CallFailed
            As their docstrings say.
        """
        if not self._heard:
            self._hear()
        said = self._heard.popleft()
        if isinstance(said, NoAnswer):
            raise said
        if "error" in said:
            raise CallFailed(remarks=said["remarks"], **said["error"])
        return said["answer"]

    def _hear(self) -> None:
        """Wait for one answer more."""
        self._heard.append(self._next())
        self.outstanding -= 1
        self._deadline = time.monotonic() + self._timeout_s  # of the next one, whose call begins now

    def _next(self) -> dict[str, Any] | NoAnswer:
        try:
            line, self._unread = _line(self._process, self._unread, self._deadline)
        except TimeoutError:
            return self._break_off(f"SLURM gave no answer within {self._timeout_s:g} s")
        except EOFError:
            return self._break_off("")
        said: dict[str, Any] = json.loads(line)
        return said

    def _break_off(self, why: str) -> dict[str, Any] | NoAnswer:
        """End the helper, or see that it has ended; say what became of the request whose answer was waited for."""
        if self.broken:
            lost, self._lost = self._lost, None
            return lost or {"answer": None}  # the one before had no answer, so the helper never came to this one
        self.broken = True
        self._process.kill()
        self._process.wait()
        remarks = _text(self._remarks) or "without a word"
        ended = f"the helper process ended in the middle of a call (status {self._process.returncode}): {remarks}"
        self._lost = NoAnswer(why or ended)
        return self._next()  # what it had said up to then is in the pipe


def _line(process: subprocess.Popen[bytes], begun: bytes, deadline: float) -> tuple[bytes, bytes]:
    """Return the helper's next line, and what it has said of the one after that.

    Raises
    ------
    TimeoutError, EOFError
        When there is none in time, or none any more.
    """
    assert process.stdout is not None  # noqa: S101 - for mypy
    channel = process.stdout.fileno()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    parts = [begun]
    while b"\n" not in parts[-1]:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("no answer in time")
        part = os.read(channel, 1 << 20)
        if not part:
            raise EOFError("the helper ended")
        parts.append(part)
    line, _, rest = b"".join(parts).partition(b"\n")
    return line, rest


def _text(remarks: IO[bytes]) -> str:
    remarks.seek(0)
    return remarks.read().decode(errors="replace")
