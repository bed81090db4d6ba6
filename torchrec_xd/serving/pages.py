"""Pages of the server, in one file each: one to try the model, one that lists the routes. Neither needs a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from torchrec_xd.reports.style import STYLE

if TYPE_CHECKING:
    from torchrec_xd.serving.versions import ServedVersion

SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Headers: nothing from elsewhere is loaded, and nothing is sent elsewhere."""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>$title</title><style>$style
 input { font: inherit; width: 100%; min-width: 4rem; box-sizing: border-box; } td.what { text-align: left; }
 button { font: inherit; padding: .3rem 1rem; } pre { overflow-x: auto; background: #f5f7fa; padding: .6rem; }
 .error { color: #a4001d; white-space: pre-wrap; }
</style></head><body>
<h1>$title</h1>
$body
</body></html>
""")

_TRY = Template("""<p>$about</p>
<h2>The request, once</h2><div class="wide" tabindex="0"><table id="request"></table></div>
<h2>The candidates</h2><div class="wide" tabindex="0"><table id="candidates"></table></div>
<p><button id="add">Add a candidate</button> <button id="score">Score</button></p>
<p class="error" id="error" role="alert"></p>
<h2>The answer</h2><p id="said"></p><div class="wide" tabindex="0"><table id="answer"></table></div>
<details><summary>As a command</summary><pre id="command"></pre></details>
<p><a href="docs">All routes</a> · <a href="metrics">metrics</a></p>
<script type="application/json" id="model">$model</script>
<script>$script</script>""")

_SCRIPT = """
const model = JSON.parse(document.getElementById('model').textContent), at = name => document.getElementById(name);
const columns = side => model.columns.filter(each => each.side === side);
const shown = (column, value) => value === null ? '' : column.text ? value : JSON.stringify(value);
function field(column, value, label) {
  const input = document.createElement('input');
  input.value = shown(column, value); input.dataset.name = column.name; input.setAttribute('aria-label', label);
  return input;
}
function row(cells, tag) {
  const line = document.createElement('tr');
  for (const each of cells) {
    const cell = document.createElement(tag || 'td');
    cell.append(each); line.append(cell);
  }
  return line;
}
function read(column, input) {
  if (input.value === '') return null;
  if (column.text) return input.value;
  try { return JSON.parse(input.value); }
  catch { throw new Error(`${column.name}: ${input.value} is not ${column.rule}`); }
}
function candidate(values) {
  const number = at('candidates').rows.length;
  at('candidates').append(row([String(number), ...columns('candidate').map((each, i) =>
    field(each, values[i], `${each.name} of candidate ${number}`))]));
}
function body() {
  const request = {}, candidates = {}, lines = [...at('candidates').rows].slice(1);
  for (const column of columns('request'))
    request[column.name] = read(column, at('request').querySelector(`[data-name="${CSS.escape(column.name)}"]`));
  columns('candidate').forEach((column, i) => {
    candidates[column.name] = lines.map(line => read(column, line.cells[i + 1].firstChild));
  });
  return { request, candidates };
}
async function score() {
  at('error').textContent = ''; at('answer').replaceChildren(); at('said').textContent = '';
  try {
    const text = JSON.stringify(body());
    const quoted = text.replaceAll("'", "'\\\\''");
    at('command').textContent = `curl -s ${location.origin}/score -d '${quoted}'`;
    const begun = performance.now(), response = await fetch('score', { method: 'POST', body: text });
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    const names = Object.keys(found.scores), unseen = Object.entries(found.unseen || {});
    const number = one => one === null ? '–' : one.toFixed(6);
    at('answer').append(row(['candidate', ...names], 'th'));
    (found.scores[names[0]] || []).forEach((_, i) => at('answer').append(
      row([String(i + 1), ...names.map(name => number(found.scores[name][i]))])));
    at('said').textContent = `Version ${found.version}, ${(performance.now() - begun).toFixed(1)} ms.` +
      (unseen.length ? ` Without a row of their own: ${unseen.map(([name, n]) => `${n} of ${name}`).join(', ')}.` : '');
  } catch (error) { at('error').textContent = error.message; }
}
at('request').append(row(['column', 'holds', 'value'], 'th'));
for (const column of columns('request')) {
  const line = row([column.name, column.rule, field(column, model.example.request[column.name] ?? null, column.name)]);
  line.cells[1].className = 'what'; at('request').append(line);
}
at('candidates').append(row(['', ...columns('candidate').map(each => `${each.name} (${each.rule})`)], 'th'));
const own = columns('candidate').map(each => model.example.candidates[each.name]);
(own[0] || []).forEach((_, i) => candidate(own.map(values => values[i])));
at('add').addEventListener('click', () => candidate(own.map(values => values[0])));
at('score').addEventListener('click', score);
score();
"""


def try_page(version: ServedVersion, example: Mapping[str, Any], numbers: Sequence[int]) -> str:
    """A form with the columns of the model, filled with an example, and the answer with each part of it.

    Args:
        version: whose columns are shown.
        example: a body of `/score`.
        numbers: of all versions that are served.
    """
    reader = version.reader
    columns = [
        {"name": each.name, "side": each.side, "rule": each.rule, "text": bool(pa.types.is_string(each.type))}
        for each in reader.columns
    ]
    if all(each.name != reader.user for each in reader.columns):
        text = isinstance(example["request"].get(reader.user), str)
        user = {"name": reader.user, "side": "request", "rule": "the user: an integer or a text", "text": text}
        columns.insert(0, user)
    if reader.timed:
        when = {"name": "time", "side": "request", "rule": "ISO 8601 with a zone; now by default", "text": True}
        columns.append(when)
    about = f"Model {version.model}, version {version.number} of the run {version.artifact.manifest.run}"
    if len(numbers) > 1:
        about += f"; served are the versions {' and '.join(map(str, numbers))}, by user"
    model = json.dumps({"columns": columns, "example": example}).replace("<", "\\u003c")
    body = _TRY.substitute(about=html.escape(f"{about}."), model=model, script=_SCRIPT)
    return _PAGE.substitute(title=html.escape(f"Try {version.model}"), style=STYLE, body=body)


def documentation_page(openapi: Mapping[str, Any]) -> str:
    """The routes of an OpenAPI document."""
    rows = "".join(
        f"<tr><td>{method.upper()} {html.escape(path)}</td>"
        f"<td class='what'>{html.escape(entry.get('summary', ''))}</td>"
        f"<td class='what' style='white-space: normal'>{html.escape(entry.get('description', ''))}</td></tr>"
        for path, methods in openapi["paths"].items()
        for method, entry in methods.items()
    )
    body = (
        f"<p>As <a href='openapi.json'>OpenAPI</a>; <a href='.'>a page to try the model</a>.</p><div class='wide' "
        f"tabindex='0'><table><tr><th>Route</th><th>What</th><th>How</th></tr>{rows}</table></div>"
    )
    return _PAGE.substitute(title="Routes of torchrec-xd serve", style=STYLE, body=body)
