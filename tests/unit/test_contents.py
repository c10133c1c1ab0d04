"""The content of HDF5 files: what makes it another, what doesn't, and where two files differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator.contents import Verdict, What, compare, content_digest
from orchestrator.contents import objects as contents
from orchestrator.contents.objects import blocks
from orchestrator.errors import InvalidInput

VALUES = np.linspace(0, 1, 600).reshape(30, 20)
RECORD = np.dtype([("number", "i4"), ("weight", "f8"), ("name", "S4")])


def write(path: Path, **options: object) -> Path:
    """Write a file with something of everything."""
    with h5py.File(path, "w", libver=str(options.pop("libver", "earliest"))) as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry.create_dataset("I", data=VALUES, **options)
        entry["I"].attrs["units"] = "counts"
        entry["status"] = np.arange(30, dtype="u1")
        entry["names"] = np.array(["a", "bcd", "é"], h5py.string_dtype())
        entry["record"] = np.array([(1, 2.5, b"one"), (2, np.nan, b"two")], RECORD)
        entry["lists"] = np.array([np.array([1, 2], "i4"), np.array([3], "i4")], dtype=h5py.vlen_dtype("i4"))
        entry["flag"], entry["nothing"], entry["none"] = np.bool_(True), h5py.Empty("f8"), np.zeros((0, 4))
        entry["wave"] = np.array([1 + 2j])
        entry["again"], entry["up"] = entry["status"], file["/"]
        entry["soft"], entry["other"] = h5py.SoftLink("/entry/I"), h5py.ExternalLink("gone.h5", "/data")
        entry["reference"] = entry["I"].ref
        entry["date"] = str(path)
        entry["date"].attrs["circumstance"] = 1
        made = entry.create_group("made")
        made.attrs["circumstance"] = 1
        made["by"] = str(path)
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write(tmp_path / "first.h5")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write(tmp_path / "second.h5")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (7, 20)},
        {"chunks": (7, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"libver": "latest"},
        {"track_times": True},
        {"maxshape": (None, 20)},
        {"dtype": ">f8"},
    ],
    ids=str,
)
def test_content_is_the_same_however_it_is_stored(first: Path, tmp_path: Path, options: dict[str, object]) -> None:
    other = write(tmp_path / "other.h5", **options)
    assert content_digest(first) == content_digest(other)
    assert compare(first, other).verdict is Verdict.IDENTICAL


def test_content_is_the_same_in_whatever_order_it_was_written(first: Path, tmp_path: Path) -> None:
    for name, order in (("a", ["I", "status"]), ("b", ["status", "I"])):
        with h5py.File(tmp_path / name, "w", track_order=True) as file, h5py.File(first) as source:
            for dataset in order:
                source.copy(f"entry/{dataset}", file)
                file.flush()
            for attribute in order:
                file.attrs[attribute] = 1
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")


def test_numbers_count_by_their_values_and_texts_by_their_characters(tmp_path: Path) -> None:
    other_nan = np.array([0x7FF8000000000001], "u8").view("f8")[0]
    for name, values, text in (
        ("a", [0.0, np.nan], np.bytes_(b"text")),
        ("b", [-0.0, -np.nan], "text"),
        ("c", [0.0, other_nan], np.array(b"text\0\0\0", "S7")),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file["numbers"], file["text"] = values, text
    assert len({content_digest(tmp_path / name).sha256 for name in "abc"}) == 1
    assert compare(tmp_path / "a", tmp_path / "c").verdict is Verdict.IDENTICAL


def test_digests_and_comparison_do_not_depend_on_the_size_of_blocks(
    first: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_digest(first)
    monkeypatch.setattr(contents, "BLOCK_BYTES", 50)
    assert content_digest(first) == before
    with h5py.File(second, "r+") as file:
        file["entry/I"][17, 11] += 0.5
    [difference] = compare(first, second).differences
    assert difference.values is not None
    assert difference.values.index == (17, 11)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (1, 100), (0, 3), (4, 0)])
@pytest.mark.parametrize("most", [1, 8, 24, 64, 10_000])
def test_blocks_are_everything_once_in_order(
    shape: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "BLOCK_BYTES", most)
    values = np.arange(int(np.prod(shape))).reshape(shape)
    found = [np.asarray(values[selection]).ravel() for selection in blocks(shape, 8)]
    assert np.concatenate([*found, []]).tolist() == values.ravel().tolist()
    assert all(block.nbytes <= max(8, most) for block in found)


def change_a_value(file: h5py.File) -> None:
    file["entry/I"][3, 4] += 1e-9


CHANGES: dict[str, tuple[Callable[[h5py.File], None], str, What]] = {
    "value": (change_a_value, "/entry/I", What.VALUES),
    "whole number": (lambda file: file["entry/status"].write_direct(np.zeros(30, "u1")), "/entry/again", What.VALUES),
    "text": (lambda file: file["entry/names"].__setitem__(1, "bce"), "/entry/names", What.VALUES),
    "field of a record": (
        lambda file: file["entry/record"].__setitem__(1, (2, 1.0, b"two")), "/entry/record", What.VALUES,
    ),
    "sequence": (lambda file: file["entry/lists"].__setitem__(1, [4]), "/entry/lists", What.VALUES),
    "flag": (lambda file: file["entry/flag"].__setitem__((), False), "/entry/flag", What.VALUES),
    "attribute": (lambda file: file["entry/I"].attrs.modify("units", "1/s"), "/entry/I@units", What.ATTRIBUTE),
    "more attributes": (lambda file: file.attrs.create("x", 1), "/@x", What.MISSING),
    "gone": (lambda file: file["entry"].__delitem__("wave"), "/entry/wave", What.MISSING),
    "new group": (lambda file: file.create_group("entry/empty"), "/entry/empty", What.MISSING),
    "link": (lambda file: replace(file, "soft", h5py.SoftLink("/entry/wave")), "/entry/soft", What.LINK),
    "kind": (lambda file: replace(file, "soft", 1.0), "/entry/soft", What.KIND),
    "type": (lambda file: replace(file, "wave", np.array([1 + 2j], "c8")), "/entry/wave", What.TYPE),
    "shape": (lambda file: replace(file, "flag", np.array([True])), "/entry/flag", What.SHAPE),
}  # fmt: skip


def replace(file: h5py.File, name: str, value: object) -> None:
    del file["entry"][name]
    file["entry"][name] = value


@pytest.mark.parametrize("kind", CHANGES)
def test_whatever_is_changed_changes_the_digest_and_is_named(first: Path, second: Path, kind: str) -> None:
    change, path, what = CHANGES[kind]
    with h5py.File(second, "r+") as file:
        change(file)
    before, after = content_digest(first), content_digest(second)
    assert before.sha256 != after.sha256
    changed = {name for name, digest in (before.objects.items() ^ after.objects.items())}
    assert path.partition("@")[0] in changed
    found = compare(first, second)
    assert found.verdict is Verdict.DIFFERENT
    assert (found.differences[0].path, found.differences[0].what) == (path, what)


def test_the_largest_deviations_are_found_and_judged(first: Path, second: Path) -> None:
    with h5py.File(second, "r+") as file:
        values = file["entry/I"]
        values[29, 19] += 1e-6  # of 1
        values[0, 1] *= 1.001  # of 0.0017
    [difference] = compare(first, second, rtol=1e-4).differences
    assert difference.values is not None
    found = difference.values
    assert (found.elements, found.differing, found.beyond) == (600, 2, 1)
    assert (found.index, found.relative_index) == ((0, 1), (0, 1))
    assert found.largest_relative == pytest.approx(0.001 / 1.001)
    assert compare(first, second, rtol=0.01).verdict is Verdict.WITHIN_TOLERANCE
    assert compare(first, second, atol=1e-5).verdict is Verdict.WITHIN_TOLERANCE
    assert compare(first, second, atol=1e-7).verdict is Verdict.DIFFERENT


def test_what_is_no_number_has_no_distance_and_is_beyond_any_tolerance(first: Path, second: Path) -> None:
    with h5py.File(second, "r+") as file:
        file["entry/I"][5, 5:7] = [np.nan, np.inf]
    [difference] = compare(first, second, rtol=1e9, atol=1e9).differences
    assert difference.values is not None
    assert (difference.values.beyond, difference.values.largest_absolute, difference.values.index) == (2, None, (5, 5))
    assert difference.second == "nan"


def test_whole_numbers_are_compared_exactly_and_have_their_distance(tmp_path: Path) -> None:
    for name, last in (("a", 2**62), ("b", 2**62 + 1)):
        with h5py.File(tmp_path / name, "w") as file:
            file["low"], file["high"] = np.array([-(2**63)] if name == "a" else [2**63 - 1]), np.array([0, last])
    high, low = compare(tmp_path / "a", tmp_path / "b", rtol=1.0, atol=1e30).differences
    assert high.values is not None
    assert low.values is not None
    assert (high.values.largest_absolute, high.values.index, high.values.beyond) == (1.0, (1,), 1)
    assert low.values.largest_absolute == 2.0**64


def test_values_of_other_files_are_not_read_but_where_they_lie_counts(tmp_path: Path) -> None:
    for name, source in (("a", "gone.h5"), ("b", "gone.h5"), ("c", "other.h5")):
        layout = h5py.VirtualLayout((4, 3), "f8")
        layout[:] = h5py.VirtualSource(source, "/data", (4, 3))
        with h5py.File(tmp_path / name, "w", libver="latest") as file:
            file.create_virtual_dataset("joined", layout)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")
    assert [item.what for item in compare(tmp_path / "a", tmp_path / "c").differences] == [What.LINK]


def test_a_file_whose_writer_was_killed_can_be_digested(first: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "killed.h5", libver="latest", chunks=(7, 20))
    with h5py.File(path, "r+", libver="latest") as file:
        file.swmr_mode = True
        (tmp_path / "copy.h5").write_bytes(path.read_bytes())
    assert content_digest(tmp_path / "copy.h5") == content_digest(first)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(InvalidInput, match=r"text\.h5"):
        content_digest(tmp_path / "text.h5")
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file["x"] = np.zeros(3, np.longdouble)
    with pytest.raises(InvalidInput, match=r"long\.h5: /x: values of type float128 can't be compared"):
        content_digest(tmp_path / "long.h5")


def test_a_damaged_chunk_is_named(first: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "damaged.h5", chunks=(30, 20), fletcher32=True)
    with h5py.File(path) as file:
        place = file["entry/I"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as stream:
        stream.seek(place + 8)
        stream.write(b"\xff")
    with pytest.raises(InvalidInput, match=r"damaged\.h5"):
        compare(first, path)
