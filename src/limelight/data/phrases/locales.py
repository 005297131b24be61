"""Names of locales: what `babel` carries, in one spelling, with a helpful refusal of everything else."""

from difflib import get_close_matches
from functools import lru_cache

from babel import Locale, UnknownLocaleError
from babel.localedata import locale_identifiers

from limelight.errors import ArgumentError


@lru_cache(maxsize=1)
def _identifiers() -> tuple[str, ...]:
    return tuple(sorted(name for name in locale_identifiers() if name != "root"))


def available_locales() -> list[str]:
    """Every locale that can stand on either side, sorted, in the spelling `de`, `pt_BR`, `zh_Hans_CN`.

    Returns:
        About 1,080 identifiers (those of CLDR in the installed `babel`, without the nameless `root`).
    """
    return list(_identifiers())


@lru_cache(maxsize=1)
def _english_names() -> dict[str, str]:
    """Language names in English, lower-cased, to the code: `german` to `de`."""
    known = set(_identifiers())
    return {name.casefold(): code for code, name in Locale("en").languages.items() if code in known}


def _suggestions(name: str) -> list[str]:
    wanted = name.strip().replace("-", "_")
    by_name = _english_names()
    found = [by_name[match] for match in get_close_matches(wanted.casefold(), by_name, n=2, cutoff=0.75)]
    lowered = {code.casefold(): code for code in _identifiers()}
    found += [lowered[match] for match in get_close_matches(wanted.casefold(), lowered, n=4, cutoff=0.5)]
    language = wanted.split("_")[0].casefold()
    if language in lowered:
        found.append(lowered[language])
    return list(dict.fromkeys(found))[:5]


def parse_locale(name: str, argument: str) -> Locale:
    """The locale that `name` means; `de`, `de_AT`, `pt-BR` and `DE` are all understood.

    Args:
        name: a locale identifier, its parts joined by `_` or `-`, in any case.
        argument: how the caller names this argument; the error message uses it.

    Returns:
        The locale; `str()` of it is the normal spelling.

    Raises:
        ArgumentError: `babel` does not carry this locale. The message names the value and some close matches.
    """
    try:
        locale = Locale.parse(name.strip().replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError, AttributeError):
        locale = None
    if locale is not None and str(locale) != "root":
        return locale
    close = _suggestions(name) if isinstance(name, str) else []
    hint = f"close matches: {', '.join(close)}; " if close else ""
    raise ArgumentError(
        f"{argument}: {name!r} is not a locale that the babel package carries; {hint}"
        f"limelight.data.phrases.available_locales() lists all {len(_identifiers()):,}"
    )


def parse_pair(source: str, target: str) -> tuple[Locale, Locale]:
    """Both locales of a pair.

    Raises:
        ArgumentError: one of them is unknown, or both are the same.
    """
    left, right = parse_locale(source, "source"), parse_locale(target, "target")
    if left == right:
        raise ArgumentError(
            f"target: must differ from source, but both are {str(right)!r}; "
            "name another locale, for example 'de' (available_locales() lists all)"
        )
    return left, right
