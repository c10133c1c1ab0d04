"""The helper process behind the pyslurm route: started when it is needed, killed when it hangs, started anew after.

In: a call's name and arguments. Out: its answer, or one of three errors that say how far the call came. Nothing here
knows what the calls mean.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

HELPER = Path(__file__).with_name("pyslurm_helper.py")


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
    """

    def __init__(self, said: str, *, remarks: str, number: int | None, built: bool) -> None:
        super().__init__(said)
        self.remarks = remarks
        self.number = number
        self.built = built


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
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise NotStarted(f"calls before this one took {timeout_s:g} s")
        try:
            process = self._running(deadline)
            request = json.dumps([name, arguments]).encode() + b"\n"
            said = self._ask(process, request, deadline, timeout_s)
        finally:
            self._lock.release()
        if "error" in said:
            error = said["error"]
            raise CallFailed(error["text"], remarks=said["remarks"], number=error["number"], built=error["built"])
        return said["answer"]

    def close(self) -> None:
        """End the helper; a call under way in another thread fails."""
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    # ------------------------------------------------------------------------------------------------ the process

    def _running(self, deadline: float) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._remarks = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the helper
        self._process = self._started()
        try:
            said = json.loads(self._line(self._process, deadline))
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            text = self._take_remarks() or f"pyslurm can't be loaded: {error}"
            self._end()
            raise NotStarted(text) from error
        if "error" in said:
            self._end()
            raise NotStarted(said["error"]["text"], missing=said["error"]["missing"])
        self.facts = said["answer"]
        return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        theirs, self._lifeline = os.pipe()
        try:
            return subprocess.Popen(
                [str(self._python), "-X", "utf8", str(HELPER), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._remarks,
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

    def _ask(
        self, process: subprocess.Popen[bytes], request: bytes, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        assert process.stdin is not None  # noqa: S101 - for mypy
        self._take_remarks()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            said: dict[str, Any] = json.loads(self._line(process, deadline))
        except TimeoutError as error:
            self._end()
            raise NoAnswer(f"SLURM gave no answer within {timeout_s:g} s") from error
        except (EOFError, BrokenPipeError) as error:
            remarks = self._take_remarks() or "without a word"
            self._end()
            said_so = f"the helper process ended in the middle of a call (status {process.returncode}): {remarks}"
            raise NoAnswer(said_so) from error
        except BaseException:  # an answer that nobody has taken would be taken for the next call's
            self._end()
            raise
        return said | {"remarks": self._take_remarks()}

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Return the helper's next line; it never says more than it was asked for."""
        assert process.stdout is not None  # noqa: S101 - for mypy
        channel, parts = process.stdout.fileno(), list[bytes]()
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while not parts or not parts[-1].endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
            part = os.read(channel, 1 << 20)
            if not part:
                raise EOFError("the helper ended")
            parts.append(part)
        return b"".join(parts)

    def _take_remarks(self) -> str:
        """Return what libslurm printed since the last time."""
        assert self._remarks is not None  # noqa: S101 - for mypy
        if os.fstat(self._remarks.fileno()).st_size == 0:
            return ""
        self._remarks.seek(0)
        text = self._remarks.read().decode(errors="replace")
        # The helper writes through the same open file: its place is put back too.
        self._remarks.seek(0)
        self._remarks.truncate()
        return text

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # of a request that wasn't read
                        pipe.close()
            self._process = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._remarks is not None:
            self._remarks.close()
            self._remarks = None
