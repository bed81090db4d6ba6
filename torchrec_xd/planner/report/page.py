"""A plan as one HTML file that needs no network: load per rank, the biggest tables, what-if sliders."""

from __future__ import annotations

import html
import json
from pathlib import Path

from torchrec_xd.planner.plan import Plan
from torchrec_xd.planner.report.console import ranks_text

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sharding plan</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2733; }
 h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
 table { border-collapse: collapse; width: 100%; font-size: 13px; }
 th, td { padding: .25rem .5rem; border-bottom: 1px solid #e3e8ee; text-align: left; }
 td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
 th { cursor: pointer; background: #f5f7fa; position: sticky; top: 0; }
 .scroll { max-height: 28rem; overflow: auto; border: 1px solid #e3e8ee; }
 svg { width: 100%; height: 15rem; background: #fbfcfd; border: 1px solid #e3e8ee; }
 .compute { fill: #2f6fb0; } .comms { fill: #e0a33a; } .memory { fill: #5b9a68; } .over { fill: #c0392b; }
 .key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; }
 label { display: inline-block; margin: .3rem 1.5rem .3rem 0; } output { font-weight: 600; }
 .fact { display: inline-block; margin-right: 2rem; } .fact b { display: block; font-size: 1.3rem; }
</style></head><body>
<h1>Sharding plan: __TITLE__</h1>
<p id="facts"></p>
<h2>Load of the ranks</h2>
<p class="key"><span style="background:#2f6fb0"></span>lookups and updates
 <span style="background:#e0a33a"></span>exchange of embeddings and gradients; the line is the lower bound</p>
<svg id="load" preserveAspectRatio="none" viewBox="0 0 1000 200"></svg>
<h2>Memory of the ranks</h2>
<p class="key"><span style="background:#5b9a68"></span><b id="kind"></b>; the line is what tables may fill</p>
<svg id="memory" preserveAspectRatio="none" viewBox="0 0 1000 200"></svg>
<h2>What if</h2>
<p>The plan stays as it is; only the machine changes. To get the best plan for another machine, plan again.</p>
<label>lookup speed × <output id="o1"></output><br><input id="s1" type="range" min="-2" max="2" step="0.1"></label>
<label>network speed × <output id="o2"></output><br><input id="s2" type="range" min="-2" max="2" step="0.1"></label>
<label>memory × <output id="o3"></output><br><input id="s3" type="range" min="-2" max="2" step="0.1"></label>
<p id="whatif"></p>
<h2>Tables</h2>
<input id="find" placeholder="find a table"> <small>click a heading to sort</small>
<div class="scroll"><table id="tables"><thead></thead><tbody></tbody></table></div>
<script type="application/json" id="data">__DATA__</script>
<script>
const P = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id), fixed = (x, n) => x.toFixed(n), G = 2 ** 30;
const used = P.device === "cuda" ? P.hbm : P.ddr, limit = P.device === "cuda" ? P.hbm_limit : P.ddr_limit;
$("kind").textContent = P.device === "cuda" ? "HBM" : "host memory";
const order = P.compute.map((_, r) => r).sort((a, b) => P.compute[b] + P.comms[b] - P.compute[a] - P.comms[a]);
function bars(svg, parts, line, unit) {
  const n = order.length, top = Math.max(line, ...order.map(r => parts.reduce((s, p) => s + p.v[r], 0))) * 1.05 || 1;
  let out = "";
  order.forEach((r, i) => {
    let y = 200;
    const whole = parts.reduce((s, p) => s + p.v[r], 0), w = 1000 / n;
    out += `<g><title>rank ${r}: ${fixed(whole / unit.by, 3)} ${unit.name}</title>`;
    parts.forEach(p => {
      const h = 200 * p.v[r] / top; y -= h;
      const kind = p.over && whole > line ? "over" : p.k;
      out += `<rect class="${kind}" x="${i * w}" y="${y}" width="${Math.max(w * .9, .5)}" height="${h}"/>`;
    });
    out += "</g>";
  });
  const y = 200 - 200 * line / top;
  svg.innerHTML = out + `<line x1="0" x2="1000" y1="${y}" y2="${y}" stroke="#333" stroke-dasharray="6 4"/>`;
}
function draw() {
  const factor = i => 2 ** +$("s" + i).value, [a, b, c] = [1, 2, 3].map(factor);
  [1, 2, 3].forEach(i => $("o" + i).textContent = fixed(factor(i), 2));
  const compute = P.compute.map(x => x / a), comms = P.comms.map(x => x / b);
  const slowest = Math.max(...compute.map((x, r) => x + comms[r]));
  const parts = [{ v: compute, k: "compute" }, { v: comms, k: "comms" }];
  bars($("load"), parts, a === 1 && b === 1 ? P.lower : 0, { by: 1, name: "ms" });
  bars($("memory"), [{ v: used, k: "memory", over: true }], limit * c, { by: G, name: "GiB" });
  const full = used.filter(x => x > limit * c).length;
  $("whatif").textContent = `slowest rank ${fixed(slowest, 3)} ms (${fixed(100 * (slowest / P.slowest - 1), 1)} %); ` +
    (full ? `${full} ranks over their memory: plan again` : "every rank within its memory");
}
["s1", "s2", "s3"].forEach(id => $(id).addEventListener("input", draw));
const facts = [["slowest rank", fixed(P.slowest, 3) + " ms"], ["no plan can beat", fixed(P.lower, 3) + " ms"],
  ["gap at most", fixed(100 * P.gap, 1) + " %"], ["tables", P.tables.length], ["ranks", P.compute.length],
  ["batch per rank", P.batch_size]];
$("facts").innerHTML = facts.map(([k, v]) => `<span class="fact">${k}<b>${v}</b></span>`).join("");
const columns = [["table", 0], ["rows", 1], ["dim", 1], ["type", 0], ["kernel", 0], ["ranks", 0],
  ["HBM GiB", 1], ["DDR GiB", 1], ["ms", 1]];
let by = 8, down = true;
const escaped = x => String(x).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
function list() {
  const want = $("find").value.toLowerCase();
  const rows = P.tables.filter(t => t[0].toLowerCase().includes(want));
  rows.sort((x, y) => (x[by] > y[by] ? 1 : x[by] < y[by] ? -1 : 0) * (down ? -1 : 1));
  const kind = i => columns[i][1] ? "n" : "";
  const text = (v, i) => i >= 6 ? fixed(v, 4) : columns[i][1] ? v.toLocaleString("en") : escaped(v);
  const row = cells => `<tr>${cells.join("")}</tr>`;
  $("tables").tHead.innerHTML = row(columns.map(([k], i) => `<th class="${kind(i)}" data-i="${i}">${k}</th>`));
  $("tables").tBodies[0].innerHTML =
    rows.map(t => row(t.map((v, i) => `<td class="${kind(i)}">${text(v, i)}</td>`))).join("");
}
$("tables").tHead.addEventListener("click", e => {
  const i = +e.target.dataset.i;
  down = i === by ? !down : true;
  by = i;
  list();
});
$("find").addEventListener("input", list);
draw(); list();
</script></body></html>
"""


def save_plan_page(plan: Plan, path: Path) -> None:
    """Write the report."""
    cluster = plan.cluster
    gib = 1024**3
    data = {
        "device": cluster.device,
        "batch_size": plan.batch_size,
        "slowest": plan.slowest_rank_ms,
        "lower": plan.lower_bound_ms,
        "gap": plan.gap,
        "compute": plan.rank_compute_ms,
        "comms": plan.rank_comms_ms,
        "hbm": plan.rank_hbm,
        "ddr": plan.rank_ddr,
        "hbm_limit": cluster.hbm_bytes,
        "ddr_limit": cluster.ddr_bytes,
        "tables": [
            [t.fqn, t.rows, t.dim, t.sharding_type, t.kernel, ranks_text(t), t.hbm / gib, t.ddr / gib, t.ms]
            for t in plan.tables
        ],
    }
    title = html.escape(f"{len(plan.tables)} tables on {cluster.world_size} {cluster.device} ranks")
    # "</" would end the script element that carries the data.
    encoded = json.dumps(data).replace("</", "<\\/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.replace("__TITLE__", title).replace("__DATA__", encoded), encoding="utf-8")
