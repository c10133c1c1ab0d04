"""Rows of several ranks come together in the order of their frames; a later one replaces an earlier one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpi_kernels.checkpoint import Checkpoint, Gathered
from mpi_kernels.errors import OutputUnwritable
from mpi_kernels.kernel import Column
from mpi_kernels.rows import Rows, Status
from mpi_kernels.sink import neighbours

COLUMNS = [Column(group="data", name="I", shape=(2,)), Column(group="totals", name="n", dtype=np.int64, fill=0)]


def rows(frames: list[int], status: Status = Status.PROCESSED, value: float = 0.0, reason: str = "") -> Rows:
    made = Rows.without_result(frames, COLUMNS, 1.0)
    made.status[:] = status
    made.columns["data/I"][:] = np.array(frames)[:, None] + value
    made.messages.update(dict.fromkeys(frames, reason) if reason else {})
    return made


def test_rows_without_a_result_hold_what_stands_for_none() -> None:
    made = Rows.without_result([3, 4], COLUMNS, 7.0)
    assert made.status.tolist() == [Status.MISSING] * 2
    assert np.isnan(made.columns["data/I"]).all()
    assert (made.columns["totals/n"].dtype, made.columns["totals/n"].tolist()) == (np.int64, [0, 0])


def test_rows_are_joined_in_order_and_the_last_one_of_a_frame_counts() -> None:
    first = rows([8, 2], Status.FAILED, reason="no data")
    joined = Rows.joined([first, rows([5, 3]), rows([2], value=0.5)])
    assert joined.frames.tolist() == [2, 3, 5, 8]
    assert joined.columns["data/I"][:, 0].tolist() == [2.5, 3, 5, 8]
    assert joined.status.tolist() == [Status.PROCESSED, Status.PROCESSED, Status.PROCESSED, Status.FAILED]
    assert joined.messages == {8: "no data"}
    assert len(Rows.joined([rows([])])) == 0


def test_adjacent_rows_are_written_together() -> None:
    joined = rows([2, 3, 4, 7, 9, 10])
    runs = [(place.start, place.stop, own.start, own.stop) for place, own in neighbours(joined)]
    assert runs == [(2, 5, 0, 3), (7, 8, 3, 4), (9, 11, 4, 6)]


def test_checkpoint_is_read_back_by_whoever_has_its_fingerprint(tmp_path: Path) -> None:
    result = tmp_path / "result.nxs"
    parts = {"total": np.arange(6).reshape(2, 3), "frames": np.array([4])}
    Checkpoint(result, "mine").write(Gathered(parts, np.array([True, False, True])))
    held = Checkpoint(result, "mine").read()
    assert held is not None
    assert held.frames.tolist() == [True, False, True]
    assert {name: values.tolist() for name, values in held.parts.items()} == {
        "total": [[0, 1, 2], [3, 4, 5]],
        "frames": [4],
    }
    assert Checkpoint(result, "another's").read() is None
    path = tmp_path / "result.nxs.checkpoint"
    path.write_bytes(path.read_bytes()[:100])
    assert Checkpoint(result, "mine").read() is None
    Checkpoint(result, "mine").remove()
    assert not path.exists()


def test_checkpoint_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "nowhere" / "result.nxs", "mine")
    with pytest.raises(OutputUnwritable, match=r"result\.nxs\.checkpoint") as raised:
        checkpoint.write(Gathered({}, np.zeros(0, bool)))
    assert raised.value.remedy
