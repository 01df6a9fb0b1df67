"""Numbers as text: short, aligned, and safe for NaN and infinity."""

from __future__ import annotations

import math


def scientific(value: float | None) -> str:
    """Format with two digits and an exponent: `3.1e-09`."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return f"{value:.1e}"


def short(value: float | None, *, digits: int = 4) -> str:
    """Some significant digits, fewer for very small and large numbers: `2.319`, `0.0412`, `1.2e-07`."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return scientific(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e5:
        return f"{value:.1e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{min(decimals, 5)}f}"


def axis_number(value: float, *, digits: int = 1) -> str:
    """A number for a vertical axis: `2.00`, `0.05`, `0.015`, `1e-6`, `40`; with larger `digits` `1.2e5`, `1.002`."""
    size = abs(value)
    if value == 0:
        return "0"
    if digits > 1:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        if size < 0.0099 or size >= 9999.5:
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:.{digits}g}"
    if size < 0.0099 or size >= 9999.5:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if size < 9.995:
        text = f"{value:.2f}"
        return text if abs(float(text) - value) < 1e-9 or size >= 0.995 else f"{value:.3f}"
    return f"{value:.1f}" if size < 99.95 and value != round(value) else f"{value:.0f}"


def power_of_ten(exponent: int) -> str:
    """A power of ten, for the ends of a logarithmic scale: `1e-10`, `0.1`, `1`, `10`."""
    return {-1: "0.1", 0: "1", 1: "10"}.get(exponent, f"1e{exponent}")


def with_commas(value: int) -> str:
    """A step number: `420`, `12,400`."""
    return f"{value:,}"


def plural(value: int, noun: str) -> str:
    """A count with its noun: `1 layer`, `1,200 layers`."""
    return f"{value:,} {noun}{'s' * (value != 1)}"


def axis_step(step: int) -> str:
    """A step number for a time axis: `400`, `20k`, `1.5M`."""
    if step >= 1_000_000:
        return f"{step / 1e6:g}M"
    return f"{step / 1000:g}k" if step >= 10_000 else str(step)


def byte_size(count: int) -> str:
    """Bytes, in decimal units: `940 MB`, `1.2 GB`."""
    for unit, ends in (("kB", 1e6), ("MB", 1e9)):
        if count < ends * 0.9995:
            return f"{count / ends * 1000:.0f} {unit}"
    return f"{count / 1e9:.1f} GB"


def per_second(steps_per_s: float) -> str:
    """Format steps per second: `1,200`, `30`, `2.5`."""
    if steps_per_s >= 99.5 or steps_per_s == 0:
        return f"{steps_per_s:,.0f}"
    return f"{steps_per_s:.0f}" if steps_per_s >= 10 else f"{steps_per_s:.1f}"
