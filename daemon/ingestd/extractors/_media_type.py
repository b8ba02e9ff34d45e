"""Media types as sources write them: ``Text/HTML; charset="UTF-8"``.

``email.message`` reads them too, but brings 40 modules into every extraction worker; three fields need no parser.
"""

from __future__ import annotations


def media_type(content_type: str | None) -> str | None:
    """Return the media type alone, in lower case; None where nothing usable is said."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind if "/" in kind else None


def parameter(content_type: str | None, name: str) -> str | None:
    """Return a parameter of a content type, such as its ``charset``, without its quotes; None where it has none."""
    for part in (content_type or "").split(";")[1:]:
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip("\"'") or None
    return None


def with_media_type(content_type: str | None, kind: str) -> str:
    """Return the content type with another media type and the parameters that it had."""
    _, semicolon, parameters = (content_type or "").partition(";")
    return kind + semicolon + parameters
