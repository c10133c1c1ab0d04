"""What azimuthal integration did, in sentences (``docs/reference/azimuthal.md`` has the formulas)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.exporting.account import Account, readable
from orchestrator.exporting.references import Citations
from orchestrator.exporting.result_file import ResultFacts
from orchestrator.records import Json

_AXES = {
    "q_nm^-1": "q in nm⁻¹",
    "q_A^-1": "q in Å⁻¹",
    "2th_deg": "the scattering angle 2θ in degrees",
    "2th_rad": "the scattering angle 2θ in radians",
    "r_mm": "the distance from the beam in mm",
}
_SPLITTING = {
    "no": "each pixel counted in the bin of its centre",
    "bbox": "pixels were split over bins by their bounding box",
    "full": "pixels were split over bins by the area of their outline",
}
_ERRORS = {
    "poisson": "Standard deviations assume Poisson statistics of the counts.",
    "pyfai": "Standard deviations assume a variance of max(counts, 1) for each pixel.",
    "azimuthal": "Standard deviations are from the scatter of the pixels in each bin.",
    "none": "No errors were propagated.",
}


def azimuthal_sentences(account: Account, facts: ResultFacts, cite: Citations) -> Iterator[str]:
    """Yield the sentences about one run."""
    yield from _integration(account, cite)
    yield from _geometry(account, facts)
    yield from _left_out(account, facts)
    done = list(_corrections(account, cite))
    if done:
        yield f"Intensities were corrected for {', '.join(done)}."
    if (model := account.value("error_model")) is not None:
        yield _told(_ERRORS, model)


def _integration(account: Account, cite: Citations) -> Iterator[str]:
    if "unit" not in account.parameters:
        yield "With which parameters in force is not recorded."
        return
    limits, sector = _pair(account.value("radial_range")), _pair(account.value("azimuthal_range_deg"))
    span = "" if limits is None else f" from {limits[0]} to {limits[1]}"
    yield (
        f"They were integrated azimuthally as a quotient of sums {cite('pyfai')} into {account.value('bins')} bins of "
        f"{_told(_AXES, account.value('unit'))}{span}; "
        f"{_told(_SPLITTING, account.value('splitting'))}."
    )
    if sector is not None:
        yield f"Only pixels at azimuthal angles from {sector[0]}° to {sector[1]}° were used."
    if isinstance(further := account.value("further"), dict) and further:
        yield f"Further integrations of the same frames: {', '.join(further)}."


def _told(words: Mapping[str, str], value: Json) -> str:
    """Word a choice; of a job array all that were made."""
    return " or ".join(words.get(str(one), str(one)) for one in (value if isinstance(value, list) else [value]))


def _pair(value: Json) -> tuple[float, float] | None:
    """Return two numbers, if it is two."""
    numbers = [one for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _geometry(account: Account, facts: ResultFacts) -> Iterator[str]:
    if isinstance(poni := account.value("poni"), str):
        yield f"The geometry was taken from the PONI file `{readable(poni)}`."
    elif "poni" in account.parameters:
        yield "The geometry was taken from the input file."
    if facts.wavelength_angstrom is not None:
        yield f"The wavelength was {facts.wavelength_angstrom:.6g} Å."


def _left_out(account: Account, facts: ResultFacts) -> Iterator[str]:
    kinds = []
    if isinstance(mask := account.value("mask"), str):
        kinds.append(f"those of the mask `{readable(mask)}`")
    if account.value("use_pixel_mask") is True:
        kinds.append("those that the detector's own mask marks, where it has one")
    if (saturation := account.value("saturation_value")) is not None:
        kinds.append(f"those above {saturation} counts")
    if kinds:
        number = "" if facts.masked_pixels is None else f" ({facts.masked_pixels} in all)"
        yield f"Pixels left out{number}: {', '.join(kinds)}."


def _corrections(account: Account, cite: Citations) -> Iterator[str]:
    value = account.value
    if (dead_time := value("dead_time_s")) is not None:
        yield f"dead time ({dead_time} s, {value('dead_time_model')}, {value('count_time_s')} s per frame)"
    yield from _images(account)
    if value("solid_angle") is True:
        yield f"solid angle {cite('solid angle')}"
    if (factor := value("polarization_factor")) is not None:
        yield f"polarisation (factor {factor}) {cite('polarisation')}"
    if (thickness := value("sensor_thickness_m")) is not None:
        attenuation = value("sensor_attenuation_per_m")
        yield f"absorption in the sensor ({thickness} m, attenuation {attenuation} m⁻¹) {cite('sensor')}"
    if scales := list(_scales(account)):
        yield f"{', '.join(scales)} {cite('corrections')}"


def _images(account: Account) -> Iterator[str]:
    for name, title in (("dark", "dark image"), ("flat", "flat field")):
        if isinstance(image := account.value(name), str):
            yield f"{title} (`{readable(image)}`)"
    if isinstance(image := account.value("background"), str):
        yield f"background (`{readable(image)}`, scaled by {account.value('background_scale')})"


def _scales(account: Account) -> Iterator[str]:
    for name, title in (("transmission", "transmission"), ("monitor", "incident flux")):
        if (number := account.value(name)) is not None:
            yield f"{title} ({number})"
        elif isinstance(dataset := account.value(f"{name}_dataset"), str):
            yield f"{title} of each frame (`{readable(dataset)}`)"
    if (thickness := account.value("thickness_m")) is not None:
        yield f"sample thickness ({thickness} m)"
    if _differs(scale := account.value("absolute_scale"), 1):
        yield f"absolute scale (factor {scale})"


def _differs(value: Json, neutral: float) -> bool:
    return value is not None and value != neutral
