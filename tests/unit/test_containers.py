"""Which container image a job runs in, and what of its file is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.containers import container, image_file, sif_uuid
from tests.unit.images import IDENTIFIER, sif


def test_the_uuid_of_a_sif_file_is_read_from_its_header(tmp_path: Path) -> None:
    assert sif_uuid(sif(tmp_path / "image.sif")) == str(IDENTIFIER)


@pytest.mark.parametrize("content", [b"", b"#!/usr/bin/env run-singularity\n", b"hsqs" + bytes(200)])
def test_other_files_have_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    assert sif_uuid(tmp_path / "image") is None


def test_a_sif_file_that_was_built_without_one_has_none(tmp_path: Path) -> None:
    assert sif_uuid(sif(tmp_path / "image.sif", identifier=bytes(16))) is None


def test_a_job_outside_of_containers_tells_of_none() -> None:
    assert container({"PATH": "/bin", "APPTAINER_CONTAINER": ""}) == {}


@pytest.mark.parametrize("engine", ["APPTAINER", "SINGULARITY"])
def test_the_image_is_told_with_what_its_file_is_behind_links(tmp_path: Path, engine: str) -> None:
    image = sif(tmp_path / "v3.sif")
    (tmp_path / "latest.sif").symlink_to(image)
    there = image.stat()
    assert container({f"{engine}_CONTAINER": str(tmp_path / "latest.sif")}) == {
        "container": {
            "path": str(tmp_path / "latest.sif"),
            "real_path": str(image),
            "size": there.st_size,
            "mtime_ns": there.st_mtime_ns,
            "inode": there.st_ino,
            "sif_uuid": str(IDENTIFIER),
        }
    }


def test_an_image_that_is_out_of_sight_from_inside_is_told_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "image.sif")
    assert container({"APPTAINER_CONTAINER": path}) == {"container": {"path": path}}


def test_of_a_directory_is_told_that_it_has_no_digest(tmp_path: Path) -> None:
    assert image_file(tmp_path) == {
        "real_path": str(tmp_path), "sha256_unknown_because": "it is a directory, not a file",
    }  # fmt: skip


def test_what_the_site_says_of_the_image_is_kept_as_its_word() -> None:
    stated = f"registry.example/reduction@sha256:{'a' * 64}"
    assert container({"ORCHESTRATOR_CONTAINER_IMAGE": stated}) == {"container": {"stated": stated}}
