"""HTML pages of reports: one file, no scripts, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f8fafc; color: #0f172a; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.02em; }
h2 { font-size: 19px; margin: 44px 0 8px; }
p { margin: 0 0 12px; max-width: 74ch; }
.quiet { color: #64748b; }
.cards { display: flex; flex-wrap: wrap; gap: 16px; margin: 24px 0; }
.card { flex: 1 1 200px; background: #fff; border: 1px solid #e2e8f0; border-radius: 12px;
  padding: 16px 20px; border-top: 4px solid var(--color); }
.card b { display: block; font-size: 30px; font-variant-numeric: tabular-nums; }
figure { margin: 12px 0; background: #fff; border: 1px solid #e2e8f0; border-radius: 12px;
  padding: 16px; }
figure svg { display: block; width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 16px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; background: #fff; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid #e2e8f0; }
th { color: #64748b; font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(path: Path, *, title: str, body: Iterable[str]) -> None:
    """Write a page of elements whose text is escaped already."""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def table(heads: Iterable[str], rows: Iterable[Iterable[str | float]]) -> str:
    """Rows under heads; numbers stand to the right."""

    def cell(value: str | float) -> str:
        if isinstance(value, str):
            return f"<td>{escape(value)}</td>"
        figure = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        return f'<td class="number">{figure}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def figure(svg: str, alternative: str) -> str:
    """A drawing and what it shows, for those who do not see it."""
    return f'<figure role="img" aria-label="{escape(alternative)}">{svg}</figure>'
