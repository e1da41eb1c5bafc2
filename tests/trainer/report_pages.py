"""What tests read off a run and off its page."""

from __future__ import annotations

import re
from html import unescape

from recloom.trainer.report.read import RunRecord


def value_of(record: RunRecord, method: str, metric: str, scenario: str = "overall") -> float:
    (found,) = [
        row["value"]
        for row in record.rows
        if (row["scenario"], row["method"], row["metric"]) == (scenario, method, metric)
    ]
    return found


def table_rows(page: str, pattern: str) -> list[list[str]]:
    """Cells of the first table behind a match, without their marks."""
    table = re.split(pattern, page, maxsplit=1)[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.split(r"<tr[^>]*>", table)[1:]]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in line] for line in cells]


def assert_whole(page: str) -> None:
    """Every field of the templates is filled in, and the page loads nothing but the empty icon."""
    shown = page.replace("default-src 'none'", "")
    assert "{{" not in shown and "{%" not in shown and "Undefined" not in shown
    loaded = re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"'#]+)""", page)
    assert set(loaded) <= {"data:,"}
    assert not re.search(r"@import|<script|<link rel=.stylesheet|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert not [name for name in re.findall(r"url\(#([^)]+)\)", page) if name not in ids]
