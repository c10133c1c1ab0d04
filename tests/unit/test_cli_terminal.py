"""What people see on a real terminal of a given width; elsewhere (pipes, files) see the other tests of commands."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from orchestrator.records import RawMessage, RunState
from tests.unit.site_with_runs import SiteWithRuns


def on_terminal(site: SiteWithRuns, *words: str, columns: int = 80) -> list[str]:
    """Run a command on a pseudo-terminal; return the lines it wrote there, without colours and cursor movements."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        env=environment | {"ORCHESTRATOR_SITE": str(site.file), "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    ):
        os.close(its)
        text = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux says that the other side has closed the terminal
        return b""


def test_a_listing_of_runs_fits_with_ids_that_can_be_copied(site: SiteWithRuns) -> None:
    tag = site.complete("a-collection-with-a-long-name-" + 60 * "x")
    heading, line = on_terminal(site, "runs")
    assert heading.startswith("run       recorded     state     frames")
    assert line.startswith(tag.run_id[:8] + " ")
    assert line.endswith("…")
    assert len(line) == 80
    assert on_terminal(site, "runs", columns=200)[1].endswith("x.h5")


def test_why_a_run_failed_stands_below_it(site: SiteWithRuns) -> None:
    site.complete("c-1")
    site.ended(site.submitted("c-2", job_id=43), RunState.FAILED, "the input can't be used: " + "no such dataset " * 8)
    _heading, failed, *why, complete = on_terminal(site, "runs")
    assert ("failed" in failed, "complete" in complete) == (True, True)
    assert " ".join(" ".join(why).split()).startswith("the input can't be used: no such dataset")
    assert all(line.startswith("    ") and len(line) <= 80 for line in why)


@pytest.mark.parametrize("columns", [80, 120])
def test_show_wraps_sentences_and_breaks_no_path_or_digest(site: SiteWithRuns, columns: int) -> None:
    tag = site.complete()
    lines = on_terminal(site, "show", tag.run_id, columns=columns)
    longest_word = max((word for line in lines for word in line.split()), key=len)
    assert all(len(line) <= columns for line in lines if longest_word not in line and str(site.folder) not in line)
    text = "\n".join(lines)
    (output,) = site.store.run(tag.run_id).outputs
    assert output.sha256 in text
    assert str(output.path) in text
    (program,) = (number for number, line in enumerate(lines) if line.startswith("  program "))
    assert (lines[program + 1].startswith(14 * " ")) == (columns == 80)


def test_a_long_reason_stands_beside_its_message_or_below_it(site: SiteWithRuns) -> None:
    reason = "not JSON: " + "a sentence that goes on and on " * 4
    site.store.record_message(RawMessage(body=b"{", source="spool:/x"), understood=None, rejection=reason.strip())
    for columns, indent in ((80, 4), (120, 60)):
        _heading, *lines = on_terminal(site, "messages", columns=columns)
        assert all(len(line) <= columns for line in lines)
        assert " ".join(" ".join(lines).split()).endswith(reason.strip())
        assert len(lines[-1]) - len(lines[-1].lstrip()) in range(indent, indent + 12)


def test_a_run_that_has_ended_stays_on_the_screen_with_its_bars(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.counts(tag, processed=100)
    site.ended(tag, RunState.PARTIAL, "100 of 200 written frames processed")
    heading, reason, written, processed = on_terminal(site, "watch", "latest")[:4]
    assert heading.startswith(f"{tag.run_id[:8]}  partial  azimuthal of c-1.h5")
    assert reason.strip() == "100 of 200 written frames processed"
    assert written.count("━") > 20
    assert processed.index("╺") - processed.index("━") == written.count("━") // 2
    assert "100/200  lag 4 ms, 100 behind" in processed
