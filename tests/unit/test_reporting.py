"""The report of an averaged result: what it says, and how it tells what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator import reporting
from orchestrator.evidence import EXIT_INPUT, newest_progress
from orchestrator.pictures import read_patterns
from orchestrator.runs import AttemptDirectory


@pytest.fixture
def average(tmp_path: Path) -> Path:
    path = tmp_path / "average.nxs"
    radial = np.linspace(0.0, 10.0, 101)
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs["default"] = "data"
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "I", "axes": ["radial_axis"]})
        data["radial_axis"] = radial
        data["radial_axis"].attrs.update({"units": "1/nm", "long_name": "q"})
        data["I"] = 100.0 + 500 * (radial == 3.0) + 50 * (radial == 7.0) + 0.5 * (radial == 9.0)
        data["I_errors"] = np.full(101, 2.0)
        data["frames"] = np.full(101, 12)
    return path


def run(folder: Path, source: Path, **parameters: object) -> int:
    (folder / "parameters.json").write_text(json.dumps(parameters))
    names = {"input": source, "output": "report.md", "picture": "report.png", "parameters": "parameters.json",
             "progress": "progress.json"}  # fmt: skip
    return reporting.main([word for name, path in names.items() for word in (f"--{name}", str(folder / path))])


def test_report_has_a_picture_the_frames_and_the_maxima_that_stand_out(average: Path, tmp_path: Path) -> None:
    assert run(tmp_path, average, title="Silver behenate") == 0
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Silver behenate\n")
    assert "| frames averaged | 12 |" in page
    assert "| 3 | 600 | 2 |" in page
    assert page.index("| 3 | 600") < page.index("| 7 | 150")
    assert "| 9 |" not in page, "half a count isn't a maximum with an error of 2"
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_service_reads_from_the_progress_file_that_it_is_complete_and_of_what(average: Path, tmp_path: Path) -> None:
    run(tmp_path, average)
    progress = newest_progress(AttemptDirectory(tmp_path))
    assert progress is not None
    assert progress.counts.complete
    assert progress.inputs["end"]["path"] == str(average)
    assert progress.parameters["peaks"] == 5


def test_as_many_maxima_are_listed_as_asked_for(average: Path) -> None:
    assert [peak.position for peak in reporting.highest_peaks(read_patterns(average), 1)] == [pytest.approx(3.0)]


@pytest.mark.usefixtures("average")
@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("absent.nxs", {}, (EXIT_INPUT, "absent.nxs")),
        ("average.nxs", {"peeks": 1}, (2, "peeks")),
        ("parameters.json", {}, (EXIT_INPUT, "parameters.json")),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_in_the_progress_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    parameters: dict[str, object],
    expected: tuple[int, str],
) -> None:
    code, said = expected
    assert run(tmp_path, tmp_path / name, **parameters) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "failed"
    assert not (tmp_path / "report.md").exists()
