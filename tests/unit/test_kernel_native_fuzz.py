"""No chunk, however hostile, makes the native core touch memory that isn't its own, nor the paths disagree."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import mpi_kernels.native
from tests.unit.native_chunks import KINDS, some_frames, stored

SOURCES = Path(mpi_kernels.native.__file__).parent
DRIVER = Path(__file__).with_name("native_fuzz.c")
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ROUNDS = 12_000

compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(compiler is None, reason="NOT TESTED: no C compiler here")


def compiled(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sources = [str(path) for path in (*sorted(SOURCES.glob("*.c")), DRIVER)]
    command = [str(compiler), *STRICT, *options, "-o", str(target), *sources]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def write_seeds(path: Path) -> None:
    with path.open("wb") as file:
        for number, (kind, dtype) in enumerate((kind, dtype) for kind in KINDS for dtype in ("u1", "i2", "u4", "u8")):
            for shape, block_elements in (((1, 3), 0), ((9, 13), 8), ((40, 37), 0), ((33, 64), 512)):
                frame = some_frames(dtype, (1, *shape), kind, number)
                chunk = stored(frame, block_elements)[0]
                file.write(struct.pack("=QQQ", frame.itemsize, frame.nbytes, len(chunk)) + chunk)


@needs_compiler
def test_hostile_chunks_stay_within_memory_and_all_paths_agree(tmp_path: Path) -> None:
    driver, seeds = tmp_path / "native_fuzz", tmp_path / "seeds"
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    probe = subprocess.run([str(compiler), *SANITIZE, "-o", str(driver), str(empty)], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"NOT TESTED: {compiler} has no sanitizers here")
    result = compiled(driver, *SANITIZE)
    assert result.returncode == 0, result.stderr
    write_seeds(seeds)
    seed = int(np.random.default_rng().integers(2**31))
    command = [str(driver), str(seeds), str(ROUNDS), str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    found = re.fullmatch(r"(\d+) refused, (\d+) accepted\n", run.stdout)
    assert found
    assert min(int(found[1]), int(found[2])) > ROUNDS / 20  # mutations that all end at the first check prove nothing


@needs_compiler
@pytest.mark.parametrize(
    "options", [("-O3",), ("-O3", "-DNATIVE_ONLY_PORTABLE")], ids=["this processor", "without x86"]
)
def test_sources_compile_without_a_warning(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = compiled(tmp_path / "driver", *options)
    assert (result.returncode, result.stderr) == (0, "")
