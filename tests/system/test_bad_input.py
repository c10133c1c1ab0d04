"""Everything that can be wrong with what people and detectors hand in: named, recorded, and the service goes on."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from orchestrator.messages import start_document
from orchestrator.provenance import MessageRecord, MessageState
from orchestrator.records import CollectionStart, RunState
from orchestrator.stack import Stack
from tests.system.beamline import Beamline

pytestmark = pytest.mark.mpi

QUICK = {"defaults.appear_timeout_s": 3.0, "defaults.stall_timeout_s": 5.0, "gateway.poll_interval_s": 0.2}


@pytest.fixture
def beamline(tmp_path: Path) -> Iterator[Beamline]:
    beamline = Beamline(tmp_path, None, QUICK)
    beamline.start_service()
    yield beamline
    assert_goes_on(beamline)
    beamline.close()


def assert_goes_on(beamline: Beamline) -> None:
    """A good collection after the bad one is processed."""
    with beamline.detector("good", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    beamline.announce("good", 3)
    assert beamline.wait_for_end("good").summary.state is RunState.COMPLETE, beamline.log()


def message_in(beamline: Beamline, state: MessageState, *, within_s: float = 20) -> MessageRecord:
    deadline = time.monotonic() + within_s
    while not (records := beamline.store.messages(state=state)):
        assert time.monotonic() < deadline, beamline.log()
        time.sleep(0.1)
    return records[0]


def wait_until_gone(path: Path, *, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"schema": "orchestrator/collection-start/1",', "line 1"),
        (b'{"schema": "orchestrator/collection-start/1", "uid": "u"}', "beamline"),
        (b'{"schema": "orchestrator/collection-start/9"}', "orchestrator/collection-start/1"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_message_that_cannot_be_understood_is_put_aside_with_the_reason(
    beamline: Beamline, body: bytes, words: str
) -> None:
    beamline.send(body, "bad")
    record = message_in(beamline, MessageState.REJECTED)
    assert record.rejection is not None
    assert words in record.rejection
    assert beamline.settings.spool is not None
    folder = beamline.settings.spool.folder
    wait_until_gone(folder / "bad.json")  # it is put aside after its verdict is recorded
    rejected = folder / "rejected"
    assert (rejected / "bad.json").read_bytes() == body
    assert words in (rejected / "bad.json.reason.txt").read_text()
    listed = beamline.command("messages", "--state", "rejected")
    assert words in listed.stdout


def test_a_file_outside_the_allowed_roots_makes_no_run(beamline: Beamline, tmp_path: Path) -> None:
    (tmp_path / "secret.h5").write_bytes(b"")
    (beamline.directory / "data" / "link").symlink_to(tmp_path)
    for number, file in enumerate(("../secret.h5", "link/secret.h5")):
        beamline.announce(f"outside-{number}", 1, file=beamline.directory / "data" / file)
    message_in(beamline, MessageState.HANDLED)
    time.sleep(1)
    notes = [record.note for record in beamline.store.messages(state=MessageState.HANDLED)]
    assert len(notes) == 2
    assert all("outside the allowed roots" in note for note in notes)
    assert not beamline.store.runs()


def test_a_collection_that_no_recipe_wants_is_recorded_with_the_reasons(tmp_path: Path) -> None:
    beamline = Beamline(tmp_path, None, QUICK | {"recipes.azimuthal.match.beamline": "i22"})
    beamline.start_service()
    beamline.announce("unwanted", 1)
    assert "azimuthal: beamline is 'demo', not 'i22'" in message_in(beamline, MessageState.HANDLED).note
    beamline.close()


# ------------------------------------------------------------------------------------------------------- files


def a_file(path: Path, **dataset: object) -> None:
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset("entry/data/data", **dataset)


def no_such_dataset(path: Path) -> None:
    a_file(path, data=np.zeros((1, 4, 4), "u4"))
    with h5py.File(path, "a") as file:
        del file["entry/data/data"]


def wrong_rank(path: Path) -> None:
    a_file(path, data=np.zeros(4, "u4"))


def no_geometry(path: Path) -> None:
    a_file(path, data=np.ones((1, 4, 4), "u4"))


def not_hdf5(path: Path) -> None:
    path.write_bytes(b"a detector's header, but of another format")


def never_there(path: Path) -> None:
    assert not path.exists()


def truncated(path: Path) -> None:
    a_file(path, data=np.random.default_rng(0).integers(0, 9, (50, 64, 64), "u4"), chunks=(1, 64, 64))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_such_dataset, "/entry/data/data"),
        (wrong_rank, "/entry/data/data"),
        (no_geometry, "geometry"),
        (not_hdf5, "HDF5"),
        (never_there, "appear"),
        (truncated, "truncated"),
    ],
)
def test_a_file_that_cannot_be_used_fails_its_run_and_says_why(
    beamline: Beamline, make: Callable[[Path], None], words: str
) -> None:
    make(beamline.file("bad"))
    beamline.announce("bad", 1)
    summary = beamline.wait_for_end("bad").summary
    assert summary.state is RunState.FAILED, summary.reason
    assert words in summary.reason
    assert "the input can't be used" in summary.reason
    assert str(beamline.file("bad")) in summary.reason


def test_an_unknown_compression_filter_is_named(beamline: Beamline) -> None:
    with beamline.detector("filter", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    replace_filter(beamline.file("filter"), hdf5plugin.Bitshuffle.filter_id, 31999)
    beamline.announce("filter", 3)
    summary = beamline.wait_for_end("filter").summary
    assert summary.state is RunState.FAILED, summary.reason
    assert "31999" in summary.reason


def replace_filter(path: Path, known: int, unknown: int) -> None:
    """Give a dataset a filter that nobody has, by changing its number in the file's bytes; checksums are made anew."""
    with h5py.File(path, "a") as file:
        data = file["entry/data/data"]
        frames, chunks = data.shape, data.chunks
        raw = [data.id.read_direct_chunk((frame, 0, 0)) for frame in range(frames[0])]
        del file["entry/data/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(chunks)
        # Optional, so that HDF5 lets us make it; the chunks say by their filter mask that it was applied.
        properties.set_filter(unknown, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(frames)
        made = h5py.h5d.create(file["entry/data"].id, b"data", h5py.h5t.NATIVE_UINT32, space, properties)
        for frame, (mask, chunk) in enumerate(raw):
            made.write_direct_chunk((frame, 0, 0), chunk, mask)
    assert known != unknown


# -------------------------------------------------------------------------------------------- site and templates


def own_templates(beamline: Beamline, change: Callable[[str], str]) -> Path:
    templates = beamline.directory / "templates"
    subprocess.run(["cp", "-r", str(beamline.settings.templates), str(templates)], check=True)
    template = templates / "azimuthal.sbatch.j2"
    template.write_text(change(template.read_text()))
    return templates


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("\necho {{ no_such_thing }}\n", "no_such_thing"),
        ("\n{% if %}\n", "azimuthal.sbatch.j2"),
        ('\necho "{{ collection.uid }}"\n', "quotes"),
        ("\n#SBATCH --mem=1\n", "#SBATCH"),
    ],
)
def test_a_template_that_cannot_be_rendered_refuses_its_runs_and_names_the_place(
    tmp_path: Path, addition: str, words: str
) -> None:
    plain = Beamline(tmp_path / "plain", None)
    templates = own_templates(plain, lambda text: text + addition)
    plain.close()
    beamline = Beamline(tmp_path / "changed", None, QUICK | {"templates": str(templates)})
    beamline.start_service()
    beamline.announce("refused", 1)
    summary = beamline.wait_for_end("refused").summary
    assert summary.state is RunState.REFUSED
    assert words in summary.reason
    check = beamline.command("site", "check", str(beamline.site))
    assert check.returncode == 3
    assert words in check.stdout + check.stderr
    beamline.close()


def test_a_broken_site_file_is_refused_at_the_start_with_the_place(beamline: Beamline) -> None:
    text = beamline.site.read_text()
    changes = {
        "twice": text + '\n[recipes.azimuthal]\nkernel = "azimuthal"\n',
        "newline": text + '\n[recipes.other]\nkernel = "azimuthal"\ntemplate = "azimuthal.sbatch.j2"\n'
        'match = { beamline = "*" }\nresources = { partition = "a\\nb" }\n',
        "typo": text.replace("runs_root", "runs_rot"),
    }
    expected = {
        "twice": "two recipes have the name 'azimuthal'",
        "newline": "recipes.other.resources.partition",
        "typo": "runs_rot",
    }
    for name, changed in changes.items():
        site = beamline.directory / f"{name}.toml"
        site.write_text(changed)
        outcome = beamline.command("serve", "--site", str(site))
        assert outcome.returncode == 3, outcome
        assert expected[name] in outcome.stderr
        assert f"{name}.toml" in outcome.stderr


@pytest.mark.stack
def test_a_partition_that_does_not_exist_refuses_the_run(tmp_path: Path, stack: Stack) -> None:
    beamline = Beamline(tmp_path, stack, {"defaults.resources.partition": "nowhere"})
    beamline.start_service()
    beamline.announce("partition", 1)
    summary = beamline.wait_for_end("partition").summary
    assert summary.state is RunState.REFUSED
    assert "partition" in summary.reason
    beamline.close()


# ----------------------------------------------------------------------------------------------------- surroundings


def test_a_locked_database_holds_messages_back_and_loses_none(beamline: Beamline) -> None:
    with beamline.detector("locked", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    database = sqlite3.connect(beamline.directory / "provenance.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    beamline.announce("locked", 3)
    time.sleep(13)
    database.execute("ROLLBACK")
    database.close()
    assert "locked" in beamline.log()
    assert beamline.wait_for_end("locked").summary.state is RunState.COMPLETE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: a small file system can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write a file until nothing more goes onto its disk."""
    try:
        with file.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - the end of the loop, not what is tested


def test_a_full_disk_makes_a_run_wait_and_say_so(tmp_path: Path, small_disk: Path) -> None:
    beamline = Beamline(tmp_path / "beamline", None, QUICK | {"runs_root": str(small_disk)})
    filler = small_disk / "filler"
    fill(filler)
    beamline.start_service()
    with beamline.detector("full", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    beamline.announce("full", 3)
    waiting = beamline.wait_for("full", lambda detail: detail.summary.reason != "").summary
    assert waiting.state is RunState.PLANNED
    assert "No space left" in waiting.reason
    filler.unlink()
    assert beamline.wait_for_end("full").summary.state is RunState.COMPLETE, beamline.log()
    beamline.close()


def test_the_message_of_a_start_is_kept_byte_for_byte(beamline: Beamline) -> None:
    start = CollectionStart(
        uid="bytes", beamline="demo", detector="d", file=beamline.file("bytes"), dataset="/entry/data/data"
    )
    body = start_document(start).replace(b'"d"', b'"d", "facility_field": [1,   2]')
    with beamline.detector("bytes", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    beamline.send(body, "bytes")
    detail = beamline.wait_for_end("bytes")
    assert detail.message is not None
    assert detail.message.raw.body == body
    assert (detail.summary.run_directory / "message.json").read_bytes() == body
    assert detail.plan.collection.ignored == ("facility_field",)
