"""The files that parameters name are told with digests, and the kernels' own code has one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import h5py
import numpy as np

from mpi_kernels import identity
from mpi_kernels.named_files import named_files
from mpi_kernels.parameters import AzimuthalParameters

NAMES = ("mask", "poni", "dark", "background")


def test_files_are_told_with_the_digest_of_their_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.zeros((2, 3)))
    (tmp_path / "link.npy").symlink_to("mask.npy")
    with h5py.File(tmp_path / "dark.h5", "w") as file:
        file["dark"] = np.zeros((2, 3))
    parameters = AzimuthalParameters(mask="link.npy", dark="dark.h5::/dark[mean]")
    mask, dark = named_files(parameters, NAMES, tmp_path)
    assert (mask.parameter, mask.path, mask.real_path) == (
        "mask",
        str(tmp_path / "link.npy"),
        str(tmp_path / "mask.npy"),
    )
    content = (tmp_path / "mask.npy").read_bytes()
    assert (mask.size, mask.sha256, mask.dataset) == (len(content), hashlib.sha256(content).hexdigest(), None)
    assert (dark.path, dark.dataset) == (str(tmp_path / "dark.h5"), "/dark[mean]")


def test_a_file_that_is_being_written_has_no_digest_yet(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w", libver="latest") as file:
        file["frames"] = np.zeros((2, 3))
        file.swmr_mode = True
        (background,) = named_files(AzimuthalParameters(background="scan.h5::/frames"), NAMES, tmp_path)
    assert background.sha256 is None


def test_the_digest_of_the_code_is_of_names_and_bytes(tmp_path: Path) -> None:
    package = Path(identity.__file__).parent
    copy = tmp_path / "mpi_kernels"
    shutil.copytree(package, copy)
    before = identity.digest_of_code(copy)
    assert before == identity.source_sha256()
    (copy / "notes.txt").write_text("no code")
    assert identity.digest_of_code(copy) == before
    (copy / "kernel.py").write_text((copy / "kernel.py").read_text() + "\n")
    changed = identity.digest_of_code(copy)
    shutil.copy(package / "kernel.py", copy / "kernel.py")
    (copy / "native" / "dispatch.c").rename(copy / "native" / "dispatcher.c")
    assert len({before, changed, identity.digest_of_code(copy)}) == 3
