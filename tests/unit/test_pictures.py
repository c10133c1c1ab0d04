"""Pictures of results, and lags, from the NeXus files alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator.errors import InvalidInput
from orchestrator.pictures import PROCESSED_TIME, WRITTEN_TIME, draw_result, frame_lags_s, read_patterns


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.nxs"
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs["default"] = "data"
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "I", "axes": [".", "radial_axis"]})
        data["radial_axis"] = np.linspace(0.1, 2, 20)
        data["radial_axis"].attrs.update({"units": "1/nm", "long_name": "q"})
        data["I"] = np.vstack([np.arange(20.0), np.full(20, np.nan), 2 * np.arange(20.0)])
        data["I_errors"] = np.sqrt(data["I"])
        file[PROCESSED_TIME] = [11.0, np.nan, 12.5]
    return path


def test_the_default_plot_is_found_with_its_axis_and_errors(result: Path) -> None:
    patterns = read_patterns(result)
    assert patterns.label == "q (1/nm)"
    assert patterns.intensity.shape == (3, 20)
    assert patterns.errors is not None
    assert patterns.there.tolist() == [0, 2]


def test_a_result_with_missing_frames_is_drawn(result: Path, tmp_path: Path) -> None:
    draw_result(result, tmp_path / "result.png", title="two of three")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_without_a_processed_frame_is_named(result: Path, tmp_path: Path) -> None:
    with h5py.File(result, "a") as file:
        file["entry/data/I"][...] = np.nan
    with pytest.raises(InvalidInput, match=r"result\.nxs: no frame has been processed yet"):
        draw_result(result, tmp_path / "result.png", title="")


def test_a_file_without_a_default_plot_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_group("entry")
    with pytest.raises(InvalidInput, match=r"other\.h5: / names no default plot"):
        read_patterns(tmp_path / "other.h5")


def test_lags_are_of_frames_in_both_files(result: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file[WRITTEN_TIME] = [10.0, 10.5, 12.0, 13.0]
    assert frame_lags_s(tmp_path / "scan.h5", result) == (1.0, 0.5)
    with pytest.raises(InvalidInput, match=r"result\.nxs: no dataset"):
        frame_lags_s(result, result)
