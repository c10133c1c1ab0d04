"""The kernels that reduce frames, by name."""

from __future__ import annotations

from mpi_kernels import azimuthal_kernel, projection_kernel
from mpi_kernels.kernel import Kernel

KERNELS: dict[str, Kernel] = {"azimuthal": azimuthal_kernel.KERNEL, "projection": projection_kernel.KERNEL}
