"""A page for people: the newest studies, their scores, and links to what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hipscore import __version__
from hipscore.api import models, views
from hipscore.domain import RESEARCH_USE
from hipscore.store import queries

LENGTH = 100

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hipscore</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; color: #1b1f23; background: #fff; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #d0d7de; }}
th.number, td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.uid {{ overflow-wrap: anywhere; }}
.note {{ background: #fff8c5; padding: .5rem .8rem; }}
</style>
</head>
<body>
<h1>hipscore</h1>
<p class="note"><strong>{research}.</strong> Version {version}.</p>
<table>
<caption>The newest {length} studies, received in UTC</caption>
<thead><tr><th scope="col">Received</th><th scope="col">Study</th><th scope="col">Status</th>
<th scope="col" class="number">UNet-score</th>
<th scope="col" class="number">Right</th><th scope="col" class="number">Left</th>
<th scope="col">Results</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p><a href="{root}/jobs">Jobs</a> · <a href="{root}/worklist">Worklist</a> ·
<a href="{root}/metrics">Metrics</a> · <a href="{root}/openapi.json">OpenAPI</a></p>
</body>
</html>
"""


def render(studies: Sequence[queries.StudySummary], *, root: str) -> str:
    """Build the page."""
    rows = "\n".join(_row(each, escape(root)) for each in studies)
    return _PAGE.format(
        research=escape(RESEARCH_USE),
        version=escape(__version__),
        length=LENGTH,
        root=escape(root),
        rows=rows or '<tr><td colspan="7">Nothing received yet.</td></tr>',
    )


def _row(study: queries.StudySummary, root: str) -> str:
    line = views.worklist_line(study)
    uid = escape(line.study_instance_uid)
    base = f"{root}/studies/{uid}"
    links = [f'<a href="{base}/ledger">ledger</a>']
    if study.job is not None:
        links += [
            f'<a href="{base}/artifacts/{artifact.kind.value}">{artifact.kind.value}</a>'
            for artifact in study.job.artifacts
            if artifact.kind in views.OFFERED
        ]
    cells = [
        f"<td>{line.last_received_at:%Y-%m-%d %H:%M}</td>",
        f'<td class="uid"><a href="{base}/score">{uid}</a></td>',
        f"<td>{escape(_status(line))}</td>",
        *(
            f'<td class="number">{"" if value is None else f"{value:.2f}"}</td>'
            for value in (line.unet_score, line.right, line.left)
        ),
        f"<td>{' · '.join(links)}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _status(line: models.WorklistLine) -> str:
    if line.status is None:
        return "ignored"
    return line.status.value + (f": {line.reason.text}" if line.reason is not None else "")
