"""The status page: one self-contained HTML document, made anew for each request.

No script, no asset, no template engine: it has to be readable when nothing else works, over a tunnel and in a text
browser. What is not well comes first, with its cure. Everything from outside is escaped.
"""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ingestd.model import Check, Json, Totals

_REFRESH_SECONDS = 5
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS = ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"))

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #c8c8c8; --soft: #595959;
  --bad: #a30000; --bad-paper: #fff0ee; --good: #1b5e20; --good-paper: #eef7ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --line: #484848; --soft: #b0b0b0;
  --bad: #ffb4a9; --bad-paper: #3a1512; --good: #a5d6a7; --good-paper: #14301a; } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 52rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2, caption { font-size: 1.15rem; font-weight: 600; text-align: left; margin: 1.5rem 0 .5rem; }
.bad, .good { border-left: .35rem solid; padding: .5rem 1rem; margin: .5rem 0; }
.bad { color: var(--bad); background: var(--bad-paper); } .good { color: var(--good); background: var(--good-paper); }
.bad p, .good p { margin: 0; } .cure { color: var(--ink); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; }
table.pairs { width: auto; min-width: 20rem; } table.pairs th { font-weight: normal; }
table.pairs td { text-align: right; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
footer { color: var(--soft); margin-top: 2rem; }
"""


def render(checks: Sequence[Check], totals: Totals, overview: Mapping[str, Json]) -> str:
    """Return the page.

    Args:
        checks: All that can be well or not, each once.
        totals: What became of the events of this run.
        overview: As ``Health.overview`` says.
    """
    bad = [check for check in checks if not check.ok]
    title = f"ingestd: {len(bad)} not well" if bad else "ingestd: all is well"
    tables = {key: rows for key, value in overview.items() if (rows := _rows(value)) is not None}
    lines = {key: value for key, value in overview.items() if key not in tables}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        "<h1>ingestd</h1>",
        *(_bad(check) for check in bad),
        *([] if bad else [f'<div class="good"><p>All is well{_letters(overview)}.</p></div>']),
        _pairs("This run", asdict(totals)),
        *(_table(key, rows) for key, rows in tables.items()),
        *([_pairs("The daemon", lines)] if lines else []),
        _checks(checks),
        f"</main><footer>This page renews itself every {_REFRESH_SECONDS} s. For machines: ",
        '<a href="/livez">/livez</a> <a href="/readyz">/readyz</a> <a href="/startupz">/startupz</a> ',
        '<a href="/metrics">/metrics</a></footer></body></html>',
    ]
    return "\n".join(parts) + "\n"


def _letters(overview: Mapping[str, Json]) -> str:
    """Return a reminder of dead letters, where there are any: they are nobody's fault but somebody's work."""
    rows = _rows(overview.get("sources")) or []
    counts = [row.get("dead_letters") for row in rows]
    waiting = sum(count for count in counts if isinstance(count, int))
    return f"; {waiting} dead letters wait: <code>ingestd dead-letters list</code>" if waiting else ""


def _bad(check: Check) -> str:
    cure = f'<p class="cure">What to do: {escape(check.cure)}</p>' if check.cure else ""
    detail = f": {escape(check.detail)}" if check.detail else ""
    return f'<div class="bad"><p><strong>{escape(check.name)}</strong>{detail}</p>{cure}</div>'


def _checks(checks: Iterable[Check]) -> str:
    rows: list[Mapping[str, Json]] = [
        {"check": check.name, "state": "ok" if check.ok else "not well", "detail": check.detail} for check in checks
    ]
    return _table("checks", rows)


def _rows(value: Json) -> list[Mapping[str, Json]] | None:
    if not isinstance(value, list):
        return None
    rows: list[Mapping[str, Json]] = [row for row in value if isinstance(row, dict)]
    return rows if len(rows) == len(value) else None


def _pairs(caption: str, pairs: Mapping[str, Json]) -> str:
    rows = (f'<tr><th scope="row">{_label(key)}</th>{_cell(key, value)}</tr>' for key, value in pairs.items())
    return f'<div class="scroll"><table class="pairs"><caption>{escape(caption)}</caption>{"".join(rows)}</table></div>'


def _table(caption: str, rows: Sequence[Mapping[str, Json]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return f"<h2>{_label(caption)}</h2><p>none</p>"
    numeric = {key for key in columns if all(_is_number(row.get(key)) for row in rows)}
    head = "".join(
        f'<th scope="col"{" class=number" if key in numeric else ""}>{_label(key, capital=False)}</th>'
        for key in columns
    )
    body = "".join("<tr>" + "".join(_cell(key, row.get(key)) for key in columns) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{_label(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(key: str, value: Json) -> str:
    return f"<td{' class=number' if _is_number(value) else ''}>{escape(_shown(key, value))}</td>"


def _label(key: str, *, capital: bool = True) -> str:
    words = key.removesuffix("_seconds").replace("_", " ")
    return escape(words[:1].upper() + words[1:] if capital else words)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(key: str, value: Json) -> str:
    match value:
        case None:
            shown = "none"
        case bool():
            shown = "yes" if value else "no"
        case int() | float() if key.endswith("_seconds"):
            shown = duration(value)
        case int():
            shown = f"{value:,}"
        case float():
            shown = f"{value:,.2f}"
        case dict():
            shown = ", ".join(f"{name}: {_shown(name, inner)}" for name, inner in value.items()) or "none"
        case list():
            shown = ", ".join(_shown(key, inner) for inner in value) or "none"
        case _:
            shown = value
    return shown


def duration(seconds: float) -> str:
    """Return a time in the two largest units that say something: ``3 d 4 h``, ``5 min 2 s``, ``0.8 s``."""
    whole = int(seconds)
    for size, unit, smaller, small in _UNITS:
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{seconds:.1f} s"
