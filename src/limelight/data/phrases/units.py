"""The units of measurement of the phrases, by their CLDR identifiers, and what the composed ones are made of."""

# Composed units and their components. A word of "square kilometers" that is a form of "kilometer" in its language
# links to the word that is so in the other language; what remains ("square") links to what remains there.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "area-square-kilometer": ("length-kilometer",),
    "area-square-meter": ("length-meter",),
    "energy-kilowatt-hour": ("power-kilowatt", "duration-hour"),
    "length-light-year": ("duration-year",),
    "length-nautical-mile": ("length-mile",),
    "speed-kilometer-per-hour": ("length-kilometer", "duration-hour"),
    "speed-meter-per-second": ("length-meter", "duration-second"),
    "speed-mile-per-hour": ("length-mile", "duration-hour"),
    "temperature-celsius": ("angle-degree",),
    "temperature-fahrenheit": ("angle-degree",),
    "volume-cubic-meter": ("length-meter",),
}

_SIMPLE = {
    "area": "hectare acre",
    "concentr": "percent",
    "digital": "byte kilobyte megabyte gigabyte",
    "duration": "millisecond second minute hour day week month year decade century",
    "electric": "volt ampere",
    "energy": "joule kilocalorie",
    "frequency": "hertz megahertz",
    "graphics": "pixel",
    "length": "kilometer meter centimeter millimeter mile yard foot inch",
    "mass": "kilogram gram milligram tonne pound ounce",
    "power": "watt kilowatt horsepower",
    "pressure": "bar hectopascal",
    "speed": "knot",
    "volume": "liter milliliter cup tablespoon teaspoon gallon",
}

UNITS: tuple[str, ...] = (
    *(f"{kind}-{name}" for kind, names in _SIMPLE.items() for name in names.split()),
    *COMPONENTS,
)
"""All units, simple ones first. Where two of them look alike in the source language, the first one stays."""

RELATIVE_UNITS = ("second", "minute", "hour", "day", "week", "month", "year")

# Neighbours in a duration of two or three units, with the numbers that each may have.
SERIES: tuple[tuple[str, ...], ...] = (
    ("year", "month"),
    ("month", "day"),
    ("week", "day"),
    ("day", "hour"),
    ("hour", "minute"),
    ("minute", "second"),
    ("year", "month", "day"),
    ("day", "hour", "minute"),
    ("hour", "minute", "second"),
)
LARGEST = {"year": 20, "month": 11, "week": 20, "day": 30, "hour": 23, "minute": 59, "second": 59}
"""The largest number of each unit in a duration; the smallest is 1."""
