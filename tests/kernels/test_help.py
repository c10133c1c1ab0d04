"""The command explains itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mpi_kernels.parameters import AzimuthalParameters

from .harness import ENVIRONMENT


def output_of(*arguments: str) -> str:
    command = [sys.executable, "-m", "mpi_kernels", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("what", ["--schema", "--help"])
def test_reader_that_leaves_early_is_no_error(what: str) -> None:
    command = [sys.executable, "-m", "mpi_kernels", "azimuthal", what]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_without_arguments_the_kernels_are_listed() -> None:
    assert "azimuthal" in output_of()


def test_help_of_a_kernel_explains_every_parameter() -> None:
    text = output_of("azimuthal", "--help")
    for name, field in AzimuthalParameters.model_fields.items():
        assert f"  {name} (default " in text
        assert field.description


def test_schema_describes_every_parameter_and_refuses_others() -> None:
    schema = json.loads(output_of("azimuthal", "--schema"))
    assert set(schema["properties"]) == set(AzimuthalParameters.model_fields)
    assert schema["additionalProperties"] is False
