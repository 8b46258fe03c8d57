"""The page experts read the review pictures on: one file, no network, saves the sheet."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from hipscore.domain import RESEARCH_USE
from hiptrain.review_tally import NAMES, OUTLINES, PRESENCE, STRUCTURES, columns

_STYLE = """\
body { margin: 0; background: #0c0c0e; color: #ebebeb; font: 16px/1.4 system-ui, sans-serif; }
header { position: sticky; top: 0; background: #1b1b1f; padding: .6rem 1rem; display: flex;
  gap: 1.2rem; align-items: center; flex-wrap: wrap; z-index: 1; }
header p { margin: 0; } strong { color: #ffc440; }
main { padding: 1rem; display: grid; gap: 1.4rem; }
figure { margin: 0; max-width: 1290px; border-left: 4px solid #55555c; padding-left: .8rem; }
figure.judged { border-color: #3fae6a; }
img { width: 100%; height: auto; display: block; }
fieldset { border: 0; padding: .2rem 0; margin: 0; display: inline-block; }
legend { float: left; min-width: 15.5rem; color: #a5a5aa; }
fieldset.outline legend { min-width: 6rem; }
a { color: #8ab8ff; }
label { margin-right: .9rem; } input, button { font: inherit; }
input[type=text] { background: #26262b; color: inherit; border: 1px solid #55555c;
  padding: .2rem .4rem; }
"""

# What is entered is kept in the browser under the address of the page until it is saved.
_SCRIPT = """\
const store = 'review ' + location.pathname;
let held = {};
try { held = JSON.parse(localStorage.getItem(store)) || {}; } catch { /* private window */ }
const fields = document.querySelectorAll('[data-column]');
const expert = document.getElementById('expert');
const pictureOf = field => field.closest('figure').id;
function show() {
  let count = 0;
  for (const figure of document.querySelectorAll('figure')) {
    const own = held[figure.id] || {};
    const judged = PRESENT.every(column => own[column]);
    figure.classList.toggle('judged', judged);
    count += judged;
  }
  document.getElementById('count').textContent = count;
}
function keep() {
  try { localStorage.setItem(store, JSON.stringify(held)); } catch { /* still in memory */ }
  show();
}
for (const field of fields) {
  const column = field.dataset.column;
  const value = (held[pictureOf(field)] || {})[column];
  if (field.type === 'radio') field.checked = field.value === value;
  else field.value = value || '';
  field.addEventListener('change', () => {
    (held[pictureOf(field)] ||= {})[column] = field.value;
    keep();
  });
}
expert.value = held.expert || '';
expert.addEventListener('change', () => { held.expert = expert.value; keep(); });
const cell = text => /[",\\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
function sheet() {
  const rows = [COLUMNS.join(',')];
  for (const figure of document.querySelectorAll('figure')) {
    const own = { ...held[figure.id], picture: figure.id, expert: expert.value };
    rows.push(COLUMNS.map(column => cell(own[column] || '')).join(','));
  }
  return rows.join('\\r\\n') + '\\r\\n';
}
document.getElementById('save').addEventListener('click', () => {
  if (!expert.value.trim()) { expert.focus(); return; }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([sheet()], { type: 'text/csv' }));
  link.download = 'review_' + expert.value.trim().replace(/\\W+/g, '_') + '.csv';
  link.click();
});
show();
"""


def index_page(pictures: Sequence[str], *, blind: bool) -> str:
    """HTML with every picture, the questions below it, and a button that saves the sheet.

    ``pictures`` are names of ``pictures/NAME.jpg`` beside the page.
    """
    names = columns(outlines=not blind)
    present = [f"{lesion}_present" for lesion in STRUCTURES]
    script = f"const COLUMNS = {json.dumps(names)}, PRESENT = {json.dumps(present)};\n{_SCRIPT}"
    guide = (
        "For each lesion: is it present in this image?"
        if blind
        else "For each lesion: is it present in this image, and if it is present and marked, is "
        "the outline good, partly right, or wrong (it marks something else)?"
    )
    figures = "\n".join(_figure(name, blind=blind) for name in pictures)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Review of hip MRI</title>
<style>
{_STYLE}</style>
</head>
<body>
<header>
<p><label for="expert">Expert</label> <input type="text" id="expert" autocomplete="off"></p>
<p><span id="count">0</span> of {len(pictures)} judged</p>
<button type="button" id="save">Save review_….csv</button>
<p>{guide}</p>
<p><strong>{html.escape(RESEARCH_USE)}.</strong></p>
</header>
<main>
{figures}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _figure(name: str, *, blind: bool) -> str:
    own = html.escape(name, quote=True)
    questions = []
    for lesion in STRUCTURES:
        questions.append(_choices(own, f"{lesion}_present", f"{NAMES[lesion]} present?", PRESENCE))
        if not blind:
            questions.append(_choices(own, f"{lesion}_outline", "its outline", OUTLINES))
        questions.append("<br>")
    return "\n".join(
        [
            f'<figure id="{own}">',
            f'<figcaption><a href="pictures/{own}.jpg">{own}</a></figcaption>',
            f'<img src="pictures/{own}.jpg" loading="lazy" alt="hip, {own}">',
            *questions,
            '<label>comment <input type="text" size="60" data-column="comment"></label>',
            "</figure>",
        ]
    )


def _choices(name: str, column: str, question: str, words: Sequence[str]) -> str:
    boxes = " ".join(
        f'<label><input type="radio" name="{name} {column}" data-column="{column}" '
        f'value="{word}"> {word}</label>'
        for word in words
    )
    kind = column.rpartition("_")[2]
    return f'<fieldset class="{kind}"><legend>{html.escape(question)}</legend>{boxes}</fieldset>'
