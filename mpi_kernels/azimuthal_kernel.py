"""The kernel `azimuthal`: what `azimuthal_setup` sets up, and the parts of NXazint1d that don't grow."""

from __future__ import annotations

import json
from dataclasses import dataclass

import h5py
import numpy as np

from mpi_kernels.azimuthal import Integrator, Several
from mpi_kernels.azimuthal_setup import Setup, set_up
from mpi_kernels.geometry import HC_KEV_ANGSTROM
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Frames, Kernel, Prepared, Reduction
from mpi_kernels.named_files import named_files
from mpi_kernels.nexus import group, readable
from mpi_kernels.parameters import AzimuthalParameters

_LABELS = {
    "q_nm^-1": ("q", "1/nm"),
    "q_A^-1": ("q", "1/angstrom"),
    "2th_deg": ("2theta", "degree"),
    "2th_rad": ("2theta", "rad"),
    "r_mm": ("r", "mm"),
}


def _prepare(library: Library, frames: Frames, parameters: AzimuthalParameters) -> Prepared:
    setup = set_up(library, frames, parameters)
    return Prepared(
        reduction=_reduction(setup),
        definition="NXazint1d",
        title="azimuthal integration",
        reference="docs/reference/azimuthal.md; Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519",
        note=f"pixel splitting: {parameters.splitting}; I is the sum of corrected counts over the sum of "
        "normalisations per bin, times the frame's scale; "
        "azimuth and geometry in the laboratory frame x horizontal, z along the beam, origin at the sample",
        describe=_Description(setup),
        notes={
            "masked_pixels": setup.masked_pixels,
            "geometry_json": _geometry_json(setup),
            "made_geometry_source": setup.geometry.source,
        },
        files=named_files(parameters, ("mask", "poni", "dark", "flat", "background"), frames.base),
    )


def _reduction(setup: Setup) -> Reduction:
    integrators = [integrator for _, integrator in setup.integrations.values()]
    return integrators[0] if len(integrators) == 1 else Several(integrators)


KERNEL = Kernel(
    summary="azimuthal integration to one dimension: I(q) or I(2θ) of every frame, with errors",
    parameters=AzimuthalParameters,
    prepare=_prepare,
)


@dataclass(frozen=True)
class _Description:
    """Writes what is known before the first frame."""

    setup: Setup

    def __call__(self, entry: h5py.Group) -> None:
        parameters = self.setup.parameters
        entry["solid_angle_applied"] = np.bool_(parameters.solid_angle)
        entry["polarization_applied"] = np.bool_(parameters.polarization_factor is not None)
        entry["normalization_applied"] = np.bool_(True)
        given = {parameters.monitor, parameters.monitor_dataset}
        entry["monitor_applied"] = np.bool_(given != {None})
        _instrument(entry, self.setup)
        for name, (each, integrator) in self.setup.integrations.items():
            _data(entry, name, each, integrator)


def _instrument(entry: h5py.Group, setup: Setup) -> None:
    names, wavelength_m = setup.names, setup.geometry.wavelength_m
    instrument = group(entry, "instrument", "NXinstrument")
    instrument["name"] = readable(names.instrument) or "not stated"
    source = group(instrument, "source", "NXsource")
    source["name"] = readable(names.source) or "not stated"
    source["type"] = readable(names.source_type) or "not stated"
    source["probe"] = readable(names.probe) or "not stated"
    if wavelength_m is not None:
        monochromator = group(instrument, "monochromator", "NXmonochromator")
        angstrom = wavelength_m * 1e10
        for name, value, units in (("wavelength", angstrom, "angstrom"), ("energy", HC_KEV_ANGSTROM / angstrom, "keV")):
            monochromator[name] = value
            monochromator[name].attrs["units"] = units


def _geometry_json(setup: Setup) -> str:
    geometry = setup.geometry
    return json.dumps(
        {
            "origin_m": geometry.origin_m.tolist(),
            "fast_m": geometry.fast_m.tolist(),
            "slow_m": geometry.slow_m.tolist(),
            "wavelength_m": geometry.wavelength_m,
        }
    )


def _data(entry: h5py.Group, name: str, parameters: AzimuthalParameters, integrator: Integrator) -> None:
    data = group(entry, name, "NXdata")
    data.attrs["signal"] = "I"
    data.attrs["axes"] = [".", "radial_axis"]
    data.attrs["interpretation"] = "spectrum"
    data.attrs["radial_axis_indices"] = 1
    label, units = _LABELS[parameters.unit]
    norm_label = "effective number of pixels contributing to the corresponding bin"
    for dataset, values, long_name, unit in (
        ("radial_axis", integrator.centres, label, units),
        ("radial_axis_edges", integrator.edges, f"{label} bin edges", units),
        ("norm", integrator.norm, norm_label, "arbitrary units"),
    ):
        data[dataset] = values
        data[dataset].attrs["long_name"] = long_name
        data[dataset].attrs["units"] = unit
