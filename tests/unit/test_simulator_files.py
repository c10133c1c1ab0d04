"""What stands in the files once a scan has ended."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli.simulate import simulate as command
from orchestrator.errors import InvalidInput
from orchestrator.simulator import (
    FINISHED,
    FRAMES,
    KEYS,
    WRITTEN_TIME,
    Compression,
    Layout,
    Misbehaviour,
    PixelType,
    SimulationSettings,
    SyntheticFramesSettings,
    open_frames,
    simulate,
)

SMALL = SyntheticFramesSettings(shape=(70, 80), pool=5)


def settings_for(tmp_path: Path, **changes: Any) -> SimulationSettings:
    plain = SimulationSettings(output=tmp_path / "scan_master.h5", frames=SMALL, number=12, rate_hz=math.inf)
    return replace(plain, **{"frames_per_file": 5, **changes})


def frames_of(settings: SimulationSettings, indices: list[int]) -> Any:
    with open_frames(settings) as source:
        return np.array([source.frame(index % source.distinct) for index in indices])


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("pixel_type", list(PixelType))
def test_file_holds_exactly_the_frames(
    tmp_path: Path, layout: Layout, compression: Compression, pixel_type: PixelType
) -> None:
    settings = settings_for(
        tmp_path, layout=layout, compression=compression, frames=replace(SMALL, pixel_type=pixel_type)
    )
    simulate(settings)
    with h5py.File(settings.output) as file:
        assert file[FRAMES].dtype == pixel_type.value
        np.testing.assert_array_equal(file[FRAMES][...], frames_of(settings, list(range(12))))
        assert file[KEYS][...].tolist() == list(range(1, 13))
        assert file[FINISHED][...].tolist() == [1]
        assert (np.diff(file[WRITTEN_TIME][...]) > 0).all()


@pytest.mark.parametrize(
    ("compression", "filters"),
    [
        (Compression.BITSHUFFLE_LZ4, [hdf5plugin.Bitshuffle.filter_id]),
        (Compression.GZIP, [h5py.h5z.FILTER_DEFLATE]),
        (Compression.NONE, []),
    ],
)
def test_each_frame_is_one_chunk_through_the_filter(
    tmp_path: Path, compression: Compression, filters: list[int]
) -> None:
    settings = settings_for(tmp_path, compression=compression)
    simulate(settings)
    with h5py.File(settings.output) as file:
        frames = file[FRAMES]
        properties = frames.id.get_create_plist()
        assert frames.chunks == (1, 70, 80)
        assert [properties.get_filter(i)[0] for i in range(properties.get_nfilters())] == filters
        assert frames.id.get_num_chunks() == 12


def test_master_links_data_files_of_the_chosen_size(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, layout=Layout.MASTER)
    report = simulate(settings)
    names = ["scan_master.h5", *(f"scan_data_00000{n}.h5" for n in (1, 2, 3))]
    assert [path.name for path in report.files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with h5py.File(settings.output) as file:
        data = file["entry/data"]
        assert data["data"].is_virtual
        assert [data[f"data_00000{n}"].shape[0] for n in (1, 2, 3)] == [5, 5, 2]
        assert [data[f"data_00000{n}"].attrs["image_nr_low"] for n in (1, 2, 3)] == [1, 6, 11]


@pytest.mark.parametrize("layout", list(Layout))
def test_scan_can_be_moved_to_another_folder(tmp_path: Path, layout: Layout) -> None:
    settings = settings_for(tmp_path, layout=layout)
    there = tmp_path / "moved"
    there.mkdir()
    for path in simulate(settings).files:
        path.rename(there / path.name)
    with h5py.File(there / settings.output.name) as file:
        np.testing.assert_array_equal(file[FRAMES][11], frames_of(settings, [11])[0])


@pytest.mark.parametrize("layout", list(Layout))
def test_gaps_have_no_chunk_and_no_key(tmp_path: Path, layout: Layout) -> None:
    wrong = Misbehaviour(gaps=frozenset({0, 5, 6, 7, 8, 9}), shuffle_within=4)
    settings = settings_for(tmp_path, layout=layout, misbehaviour=wrong)
    report = simulate(settings)
    written = [1, 2, 3, 4, 10, 11]
    assert (report.frames_expected, report.frames_written) == (12, 6)
    with h5py.File(settings.output) as file:
        assert np.flatnonzero(file[KEYS][...]).tolist() == written
        assert np.flatnonzero(~np.isnan(file[WRITTEN_TIME][...])).tolist() == written
        assert file[FINISHED][0] == 1
        np.testing.assert_array_equal(file[FRAMES][...][written], frames_of(settings, written))
    with h5py.File(report.files[-1] if layout is Layout.MASTER else settings.output) as file:
        assert file[FRAMES].id.get_num_chunks() == (2 if layout is Layout.MASTER else 6)
    assert not (tmp_path / "scan_data_000002.h5").exists()


def test_short_scan_ends_in_order(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, misbehaviour=Misbehaviour(write_only=4))
    assert simulate(settings).frames_written == 4
    with h5py.File(settings.output) as file:
        assert file[FRAMES].shape == (4, 70, 80)
        assert file["entry/diamond_scan/scan_shape"][...].tolist() == [12]
        assert file[FINISHED][0] == 1


@pytest.mark.parametrize(("preallocate", "length"), [(True, 12), (False, 4)])
def test_frame_dataset_has_its_size_at_once_or_grows(tmp_path: Path, preallocate: bool, length: int) -> None:
    settings = settings_for(tmp_path, preallocate=preallocate, misbehaviour=Misbehaviour(write_only=4))
    simulate(settings)
    with h5py.File(settings.output) as file:
        assert file[FRAMES].shape == (length, 70, 80)
        assert file[FRAMES].id.get_num_chunks() == 4


@pytest.mark.parametrize("layout", list(Layout))
def test_older_file_is_only_replaced_when_told(tmp_path: Path, layout: Layout) -> None:
    settings = settings_for(tmp_path, layout=layout)
    simulate(settings)
    with pytest.raises(InvalidInput, match="exists already"):
        simulate(settings)
    simulate(replace(settings, number=3, overwrite=True))
    assert not (tmp_path / "scan_data_000002.h5").exists()


def test_output_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="OUTPUT"):
        simulate(settings_for(tmp_path, output=tmp_path / "nowhere" / "scan.h5"))


@pytest.mark.parametrize("layout", list(Layout))
def test_nexus_checker_has_nothing_to_complain_about(tmp_path: Path, layout: Layout) -> None:
    settings = settings_for(tmp_path, layout=layout)
    simulate(settings)
    checker = Path(sys.executable).with_name("nxcheck")
    said = subprocess.run([checker, "-w", settings.output], capture_output=True, text=True, check=True).stdout
    assert "Total number of warnings: 0" in said, said
    assert "Total number of errors: 0" in said, said


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_command_writes_the_scan_and_says_so(tmp_path: Path) -> None:
    output, progress = tmp_path / "scan.h5", tmp_path / "progress.json"
    result = run_command(
        str(output), "--shape", "70x80", "--number", "7", "--rate", "inf", "--progress-file", str(progress), "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames_written"] == 7
    assert json.loads(progress.read_text()) == {"written": 7, "expected": 7, "finished": True}
    with h5py.File(output) as file:
        assert file[FRAMES].shape == (7, 70, 80)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--shape", "515"], "--shape"),
        (["--beam-center", "1,2,3"], "--beam-center"),
        (["--gaps", "1,x"], "--gaps"),
        (["--gaps", "1,2000"], "--gaps"),
        (["--rate", "0"], "--rate"),
        (["--input", "scan.h5"], "--input"),
        (["--dataset", "/entry/data/data"], "--dataset"),
        (["--input", "scan.h5", "--dataset", "/x", "--seed", "3"], "--seed"),
        (["--progress-file", "nowhere/progress.json"], "--progress-file"),
    ],
)
def test_command_names_the_option_that_is_wrong(tmp_path: Path, arguments: list[str], named: str) -> None:
    result = run_command(str(tmp_path / "scan.h5"), *arguments)
    assert result.exit_code == 3
    assert f"error: {named}" in result.stderr
    assert not (tmp_path / "scan.h5").exists()
