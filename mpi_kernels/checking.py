"""Whether a kernel takes parameters, asked before anything is made of them: ``python -m mpi_kernels.checking KERNEL``.

Standard input is a JSON list of objects of parameters. Exit code 0 when the kernel takes each of them; 2 when not, and
each that is wrong stands on standard output, a line for each object. MPI isn't begun: this runs on login nodes as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import mpi4py
from pydantic import BaseModel, ValidationError

mpi4py.rc.initialize = False  # the kernels import MPI

from mpi_kernels.errors import ExitCode  # noqa: E402
from mpi_kernels.kernels import KERNELS  # noqa: E402
from mpi_kernels.parameters import AverageParameters, problems  # noqa: E402

PARAMETERS: Mapping[str, type[BaseModel]] = {
    **{name: kernel.parameters for name, kernel in KERNELS.items()},
    "average": AverageParameters,
}
"""What each kernel takes, by its name."""


def main(arguments: Sequence[str]) -> ExitCode:
    """Run the command; where it isn't one, nothing is said of parameters."""
    if len(arguments) != 1 or arguments[0] not in PARAMETERS:
        sys.stderr.write(f"error: give one of {', '.join(PARAMETERS)}\n")
        return ExitCode.WRONG_USE
    wrong = []
    for values in json.load(sys.stdin):
        try:
            PARAMETERS[arguments[0]].model_validate(values)
        except ValidationError as error:
            wrong.append(problems(error, PARAMETERS[arguments[0]]))
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    return ExitCode.WRONG_USE if wrong else ExitCode.COMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
