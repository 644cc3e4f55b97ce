"""Numbers as a person reads them: rounded, with their unit, a true minus sign."""

__all__ = [
    "bytes_text",
    "change_text",
    "count_text",
    "ms_text",
    "number_text",
    "percent_text",
    "points_text",
]

SPACE = "\u00a0"  # keeps a number and its unit on one line
MINUS = "\u2212"
STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count_text(value: float) -> str:
    r"""Return a large count with a decimal prefix.

    >>> count_text(8369408), count_text(284106), count_text(432)
    ('8.37\xa0M', '284\xa0k', '432')
    """
    for size, prefix in STEPS:
        if abs(value) >= size * 0.9995:
            return f"{_three(value / size)}{SPACE}{prefix}"
    return f"{value:.0f}" if float(value).is_integer() else _three(value)


def bytes_text(value: float) -> str:
    """Return a size in decimal units of bytes."""
    text = count_text(value)
    return f"{text}B" if SPACE in text else f"{text}{SPACE}B"


def ms_text(value: float) -> str:
    """Return milliseconds to three significant figures."""
    return f"{_three(value)}{SPACE}ms"


def percent_text(value: float, digits: int = 2) -> str:
    """Return what is already in per cent."""
    return f"{_signless(value, digits)}%"


def points_text(value: float) -> str:
    """Return a difference of two percentages, with its sign."""
    return f"{_signed(value, 2)}{SPACE}pt"


def change_text(value: float, base: float) -> str:
    """Return by how many per cent a value is above or below another; "" where that is 0."""
    return f"{_signed(100 * (value / base - 1), 1)}%" if base else ""


def number_text(value: float) -> str:
    """Return any number to three significant figures, small ones with a power of ten.

    >>> number_text(2.984e-7), number_text(0.25)
    ('2.98·10⁻⁷', '0.25')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", MINUS)
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits}·10{str(int(power)).translate(SUPERSCRIPT)}".replace("-", MINUS)


def _three(value: float) -> str:
    """Three significant figures without a power of ten."""
    if value == 0:
        return "0"
    power = int(f"{value:.2e}".partition("e")[2])  # after rounding: 9.999 is 10.0
    return _signless(value, min(max(2 - power, 0), 9))


def _signed(value: float, digits: int) -> str:
    text = _signless(value, digits)
    if float(f"{value:.{digits}f}") == 0:
        return f"±{text.lstrip(MINUS)}"
    return text if text.startswith(MINUS) else f"+{text}"


def _signless(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)
