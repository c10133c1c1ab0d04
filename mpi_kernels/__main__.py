"""The kernels' command line: ``python -m mpi_kernels KERNEL …`` (``docs/reference/kernel-command-line.md``)."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mpi4py import MPI
from pydantic import BaseModel

from mpi_kernels.averaging import AverageRequest, run_average
from mpi_kernels.doctor import examine, worded
from mpi_kernels.errors import ExitCode, InvalidParameters, OutputUnwritable
from mpi_kernels.hdf5_files import allow_many_files, parallel_wanted
from mpi_kernels.identity import software
from mpi_kernels.kernels import KERNELS
from mpi_kernels.native.library import check_wish
from mpi_kernels.parameters import AverageParameters, read_parameters
from mpi_kernels.progress import ProgressFile, Tally
from mpi_kernels.request import Request
from mpi_kernels.run import run
from mpi_kernels.sealing import SealRequest, run_seal

_IMAGES = (
    "an image is FILE.npy, FILE.edf, FILE.h5::/path, or of a stack FILE.h5::/path[INDEX] or [mean];\n"
    "relative paths count from the parameter file"
)
_KERNELS: dict[str, tuple[type[BaseModel], str]] = {
    **{name: (kernel.parameters, kernel.summary) for name, kernel in KERNELS.items()},
    "average": (AverageParameters, "the mean of the frames of a finished result, with errors and scatter"),
}


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameters(message, remedy=f"{self.prog} --help explains")


def _refuse(error: InvalidParameters, arguments: Sequence[str]) -> None:
    """Say in one line, on rank 0 only, what is wrong; in the progress file as well, if one was asked for."""
    if MPI.COMM_WORLD.rank != 0:
        return
    sys.stderr.write(f"error: {error.one_line}\n")
    sys.stderr.flush()
    kernel = next((item for item in arguments if item in _KERNELS), "")
    progress = ProgressFile(
        _progress_path(arguments), kernel=kernel, ranks=MPI.COMM_WORLD.size, settled={"software": software()}
    )
    progress.write_last_word(Tally(None), error)


def _progress_path(arguments: Sequence[str]) -> Path | None:
    """Return what ``--progress`` says on a command line that may be wrong elsewhere."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--progress", type=Path)
    try:
        path: Path | None = parser.parse_known_args(arguments)[0].progress
    except argparse.ArgumentError:  # --progress itself is what is wrong
        return None
    return path


class _PrintSchema(argparse.Action):
    """``--schema``: print the JSON Schema of the parameter file and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        if MPI.COMM_WORLD.rank == 0:
            kind = _KERNELS[parser.prog.split()[-1]][0]
            print(json.dumps(kind.model_json_schema(), indent=2, ensure_ascii=False))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m mpi_kernels",
        description="Process detector frames while they are written.",
        epilog="python -m mpi_kernels doctor [--json] says what this interpreter has for the kernels; "
        "python -m mpi_kernels seal … whether an input is still what was read of it.",
    )
    kernels = parser.add_subparsers(dest="kernel", metavar="KERNEL", required=True, parser_class=_Parser)
    for name, (kind, summary) in _KERNELS.items():
        kernel = kernels.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_parameters_help(kind),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_common_options(kernel)
        (_add_average_options if name == "average" else _add_options)(kernel)
    return parser


def _parameters_help(kind: type[BaseModel]) -> str:
    lines = ["parameters (JSON file; unknown names are refused):"]
    for name, field in kind.model_fields.items():
        lines.append(
            f"  {name} (default {json.dumps(field.get_default(call_default_factory=True))}): {field.description}"
        )
    return "\n".join([*lines, _IMAGES] if kind is not AverageParameters else lines)


def _add_common_options(kernel: argparse.ArgumentParser) -> None:
    kernel.add_argument("--schema", nargs=0, action=_PrintSchema, help="print the parameters' JSON Schema and leave")
    kernel.add_argument("--output", type=Path, required=True, metavar="FILE", help="the result; replaced if it exists")
    kernel.add_argument("--parameters", type=Path, required=True, metavar="FILE", help="JSON object of parameters")
    kernel.add_argument("--progress", type=Path, metavar="FILE", help="progress file, replaced atomically")
    kernel.add_argument("--run-id", default="", metavar="ID", help="stands in the result")


def _add_average_options(kernel: argparse.ArgumentParser) -> None:
    kernel.add_argument("--input", type=Path, required=True, metavar="FILE", help="a finished result")
    kernel.add_argument("--dataset", default="/entry/data", metavar="PATH", help="its NXdata; default /entry/data")


def _add_options(kernel: argparse.ArgumentParser) -> None:
    kernel.add_argument("--input", type=Path, required=True, metavar="FILE", help="the detector's HDF5 file or master")
    kernel.add_argument("--dataset", required=True, metavar="PATH", help="the frames in it, (…, y, x)")
    kernel.add_argument("--mode", choices=["auto", "live", "finished"], default="auto", help="default: auto")
    kernel.add_argument("--expected", type=_count, metavar="N", help="number of frames announced")
    kernel.add_argument("--end-file", type=Path, metavar="FILE", help="the run's collection-end.json")
    kernel.add_argument("--appear-timeout", type=_seconds, default=120.0, metavar="S", help="default: 120")
    kernel.add_argument("--stall-timeout", type=_seconds, default=300.0, metavar="S", help="default: 300")
    kernel.add_argument(
        "--resume", action="store_true", help="keep what an interrupted run of the same left at --output"
    )
    kernel.add_argument("--keys-dataset", metavar="PATH", help="one whole number per frame, non-zero once written")
    kernel.add_argument("--finished-dataset", metavar="PATH", help="one whole number, non-zero once all is written")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _request(given: argparse.Namespace, arguments: Sequence[str], *, parallel: bool) -> Request:
    kernel = KERNELS[given.kernel]
    parameters, parameters_sha256 = read_parameters(given.parameters, kernel.parameters)
    return Request(
        name=given.kernel,
        kernel=kernel,
        input=given.input,
        dataset=given.dataset,
        output=given.output,
        parameters=parameters,
        parameters_path=given.parameters,
        parameters_sha256=parameters_sha256,
        mode=given.mode,
        parallel=parallel,
        expected=given.expected,
        end_file=given.end_file,
        progress=given.progress,
        appear_timeout_s=given.appear_timeout,
        stall_timeout_s=given.stall_timeout,
        run_id=given.run_id,
        resume=given.resume,
        keys_dataset=given.keys_dataset,
        finished_dataset=given.finished_dataset,
        command_line=_command_line(arguments),
    )


def _average_request(given: argparse.Namespace, arguments: Sequence[str]) -> AverageRequest:
    parameters, parameters_sha256 = read_parameters(given.parameters, AverageParameters)
    return AverageRequest(
        input=given.input,
        dataset=given.dataset,
        output=given.output,
        parameters=parameters,
        parameters_sha256=parameters_sha256,
        progress=given.progress,
        run_id=given.run_id,
        command_line=_command_line(arguments),
    )


def _command_line(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "mpi_kernels", *arguments])


def _doctor(arguments: Sequence[str]) -> ExitCode:
    """``doctor``: no kernel, so it has none of their options."""
    parser = _Parser(prog="python -m mpi_kernels doctor", description="What this interpreter has for the kernels.")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    given = parser.parse_args(arguments)
    if MPI.COMM_WORLD.rank != 0:
        return ExitCode.COMPLETE
    report = examine()
    print(json.dumps(report.as_json(), indent=2, ensure_ascii=False) if given.json else worded(report))
    return report.exit_code


def _seal(arguments: Sequence[str]) -> ExitCode:
    """``seal``: what would be read of an input now."""
    parser = _Parser(
        prog="python -m mpi_kernels seal",
        description="Print the seal over an input's frames, and which of them a result was made of otherwise.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the detector's HDF5 file or master")
    parser.add_argument("--dataset", required=True, metavar="PATH", help="the frames in it, (…, y, x)")
    parser.add_argument("--against", type=Path, metavar="RESULT", help="a kernel's result of these frames")
    parser.add_argument("--keys-dataset", metavar="PATH", help="as the kernel had it")
    given = parser.parse_args(arguments)
    allow_many_files()
    return run_seal(
        MPI.COMM_WORLD,
        SealRequest(
            input=given.input,
            dataset=given.dataset,
            against=given.against,
            keys_dataset=given.keys_dataset,
            parallel=parallel_wanted(),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Run the command line on this rank; rank 0 returns the run's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["doctor"]:
            return _doctor(arguments[1:])
        if arguments[:1] == ["seal"]:
            return _seal(arguments[1:])
        check_wish()
        parallel = parallel_wanted()
        given = _parser().parse_args(arguments or ["--help"])
        if given.kernel == "average":
            averaging = _average_request(given, arguments)
            # There is nothing to share out; other ranks have nothing to do.
            return run_average(averaging) if MPI.COMM_WORLD.rank == 0 else ExitCode.COMPLETE
        request = _request(given, arguments, parallel=parallel)
    except InvalidParameters as error:
        _refuse(error, arguments)
        return error.exit_code
    return run(MPI.COMM_WORLD, request)


def _leave(code: ExitCode) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if code is OutputUnwritable.exit_code:
        # HDF5 would try again to write what the disk doesn't take, and crash on its way out
        MPI.Finalize()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        try:
            _leave(main())
        finally:
            sys.stdout.flush()  # --help and --schema leave from within the parser
    except BrokenPipeError:  # whoever reads has seen enough (… | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains on its way out
