"""Corrections of single counts and of whole frames that need nothing but numbers. Pure."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
DeadTimeModel: TypeAlias = Literal["nonparalyzable", "paralyzable"]

_NEWTON_STEPS = 64
"""Next to the largest rate Newton's method halves the distance per step: enough for all bits of float64."""


class Corrected(NamedTuple):
    """Counts as they would be without dead time, with their variance; NaN where no rate gives the counts."""

    counts: Values
    variance: Values


def dead_time(
    counts: NDArray[Any],
    variance: NDArray[Any],
    *,
    model: DeadTimeModel,
    dead_time_s: float,
    time_s: float,
) -> Corrected:
    """Return counts and variance corrected for pulses that a counter missed while it was busy with others.

    With counts c, dead time τ and counting time t: c / (1 - cτ/t) for a counter that a pulse blocks for τ
    (nonparalyzable), and the smaller solution c' of c = c' exp(-c'τ/t) for one that every pulse blocks anew
    (paralyzable); Knoll, Radiation Detection and Measurement, 4th ed., section 4.VII. The variance is multiplied by
    (dc'/dc)². Only counts below t/τ, or at most t/(eτ), can be (`largest_counts`).

    Parameters
    ----------
    counts, variance
        Of any shape.
    dead_time_s, time_s
        Dead time of a pixel and counting time of the frame.
    """
    _must_be_positive("dead_time_s", dead_time_s, zero=True)
    _must_be_positive("time_s", time_s)
    busy = np.asarray(counts, np.float64) * (dead_time_s / time_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        if model == "nonparalyzable":
            factor = 1 / np.where(busy < 1, 1 - busy, np.nan)
            slope = factor**2
        else:
            rate = _paralyzed_rate(busy)
            factor = np.exp(rate)
            slope = factor / (1 - rate)
        return Corrected(np.asarray(counts * factor), np.asarray(variance * slope**2))


def largest_counts(model: DeadTimeModel, *, dead_time_s: float, time_s: float) -> float:
    """Return the counts that a pixel comes near (nonparalyzable) or reaches (paralyzable) at the most."""
    _must_be_positive("dead_time_s", dead_time_s, zero=True)
    _must_be_positive("time_s", time_s)
    if dead_time_s == 0:
        return math.inf
    return time_s / dead_time_s * (1.0 if model == "nonparalyzable" else math.exp(-1))


def _paralyzed_rate(busy: Values) -> Values:
    """Return the x ≤ 1 with x exp(-x) = busy; NaN above exp(-1).

    The curve bends downward, so Newton's method comes from below and never passes the solution.
    """
    rate = np.where(busy <= math.exp(-1), busy, np.nan)
    for _ in range(_NEWTON_STEPS):
        step = (busy * np.exp(rate) - rate) / (1 - rate)
        step = np.where(step > 0, step, 0)  # 0 / 0 at the largest rate, rounding at the others
        if not (step > 1e-16 * rate).any():
            break
        rate = np.minimum(rate + step, 1)
    return rate


def scale(
    *,
    transmission: float = 1.0,
    monitor: float = 1.0,
    thickness_m: float = 1.0,
    absolute_scale: float = 1.0,
) -> float:
    """Return what a frame's intensity and standard deviation are multiplied by: K / (T M d).

    Pauw et al., J. Appl. Cryst. 50 (2017) 1800-1811: transmission T of the sample, monitor M of the incident flux (or
    of flux and time), sample thickness d in metres, and the factor K to absolute units from a calibrated sample.

    Raises
    ------
    ValueError
        Naming the number that is zero, negative, infinite or NaN.
    """
    numbers = {
        "transmission": transmission,
        "monitor": monitor,
        "thickness_m": thickness_m,
        "absolute_scale": absolute_scale,
    }
    for name, number in numbers.items():
        _must_be_positive(name, number)
    return absolute_scale / (transmission * monitor * thickness_m)


def _must_be_positive(name: str, number: float, *, zero: bool = False) -> None:
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name}: {number} is not a {'number from 0 on' if zero else 'number above 0'}")
