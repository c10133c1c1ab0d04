"""Reading and decoding alone: what limits every kernel.

Contenders read whole stored frames in turn, one at a time, and decode them into memory of their own. As a program:

    python kernel_decoding.py FILE NAME SECONDS

says ``ready``, waits for a line, and prints the frames per second, so that several can run at once.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - without it h5py knows no bitshuffle
from kernel_files import DATASET

from mpi_kernels.decode import decompress
from mpi_kernels.native import decoding
from mpi_kernels.native.library import PATHS, NativePath
from orchestrator.errors import OrchestratorError

SLICES, RAW, LZ4, DECTRIS = "h5py d[i]", "stored bytes, not decoded", "LZ4 alone", "decode dectris"
NATIVE = {f"decode {path.name.lower()}": path for path in sorted(NativePath, reverse=True)}
WHOLE_FRAMES = (*NATIVE, DECTRIS, SLICES)
"""Contenders that make whole frames; the fastest one is what kernels are measured against."""
CONTENDERS = (SLICES, RAW, *NATIVE, DECTRIS, LZ4)

_SOURCE = Path(__file__).with_name("lz4_floor.c")
_BLOCK_ROOM = 1 << 20
_LEAST_FRAMES = 4

Step = Callable[[bytes], Any]


def frames_per_s(path: Path, name: str, *, seconds: float) -> float:
    """Read a file's frames in turn, again from the first if need be, for so long; return the rate.

    Raises
    ------
    OrchestratorError
        When this machine hasn't what the contender needs; it says what.
    """
    with h5py.File(path) as file:
        dataset = file[DATASET]
        read = partial(_slice, dataset) if name == SLICES else partial(_chunk, dataset, _step(name, dataset))
        read(0)
        frames, began_s = 0, time.perf_counter()
        while (spent_s := time.perf_counter() - began_s) < seconds or frames < _LEAST_FRAMES:
            read(frames % len(dataset))
            frames += 1
    return frames / spent_s


def frames_per_s_of_two(path: Path, name: str, *, seconds: float) -> float:
    """Let two processes do it at once; return the sum of their rates."""
    command = [sys.executable, __file__, str(path), name, str(seconds)]
    pair = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pair:
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
    answers = []
    for process in pair:
        assert process.stdin is not None  # noqa: S101
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in pair:
        answers.append(process.communicate()[0])
        if process.returncode:
            raise OrchestratorError(f"{name} in a process of its own ended with {process.returncode}")
    return sum(map(float, answers))


def _slice(dataset: h5py.Dataset, index: int) -> object:
    return dataset[index]


def _chunk(dataset: h5py.Dataset, step: Step, index: int) -> object:
    return step(dataset.id.read_direct_chunk((index, 0, 0))[1])


def _step(name: str, dataset: h5py.Dataset) -> Step:
    size = dataset.dtype.itemsize
    if name == RAW:
        return len
    if name == LZ4:
        return _lz4_blocks(size)
    if name == DECTRIS:
        if decompress is None:
            raise OrchestratorError("dectris-compression isn't installed")
        return partial(decompress, algorithm="bslz4", elem_size=size)
    path = NATIVE[name]
    if path not in PATHS:
        raise OrchestratorError("not there: this processor hasn't it, or the native core wasn't compiled")
    return partial(decoding.decode, element_size=size, path=path)


def _lz4_blocks(element_size: int) -> Step:
    blocks = _compiled()
    scratch = ctypes.create_string_buffer(_BLOCK_ROOM)

    def step(chunk: bytes) -> None:
        done = blocks(chunk, len(chunk), element_size, scratch, _BLOCK_ROOM)
        if done < 0:
            raise OrchestratorError(f"lz4_floor.c: a chunk can't be read: {done}")

    return step


def _compiled() -> Any:
    """Compile the loop over a chunk's blocks: in Python, calling would take as long as decompressing."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        raise OrchestratorError("no C compiler here")
    target = _SOURCE.with_name(f".lz4_floor.{os.getpid()}.so")
    command = [*compiler.split(), "-O2", "-shared", "-fPIC", "-o", str(target), str(_SOURCE), "-l:liblz4.so.1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OrchestratorError(f"{compiler}: {done.stderr.strip().splitlines()[-1]}")
        blocks = ctypes.CDLL(str(target)).lz4_blocks
    finally:
        target.unlink(missing_ok=True)  # what is loaded stays
    blocks.restype = ctypes.c_int64
    blocks.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    return blocks


def main() -> None:
    """Wait for the word, then measure."""
    path, name, seconds = sys.argv[1:]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(f"{frames_per_s(Path(path), name, seconds=float(seconds))}\n")


if __name__ == "__main__":
    main()
