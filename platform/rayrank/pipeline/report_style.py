"""The style sheet of reports; a module, so that an installed wheel carries it."""

from __future__ import annotations

CSS = """
:root {
  --ink: #1c1f24; --muted: #6b7280; --grid: #e4e6ea; --surface: #ffffff; --page: #f7f8fa; --tint: #eef0fb;
  --series-0: #4650c8; --series-1: #0f8f7c; --series-2: #c2701c; --series-3: #a33e74; --series-4: #6b7280;
  --ok: #0f7a52; --no: #b3261e;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaee; --muted: #9aa2b1; --grid: #2c313b; --surface: #191c22; --page: #111318; --tint: #22263a;
    --series-0: #8c96ff; --series-1: #3fc7b0; --series-2: #f0a35a; --series-3: #e084b4; --series-4: #9aa2b1;
    --ok: #4fd39a; --no: #ff8a80;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--font); }
main { max-width: 1140px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; letter-spacing: -0.01em; margin: 0; font-weight: 650; }
h2 { font-size: 14px; margin: 0 0 12px; font-weight: 600; }
.sub { color: var(--muted); margin: 6px 0 0; }
.verdict {
  font-size: 17px; line-height: 1.5; margin: 24px 0;
  padding: 16px 20px; background: var(--tint); border-radius: 10px;
}
section {
  background: var(--surface); border: 1px solid var(--grid); border-radius: 10px;
  padding: 18px 20px; margin: 0 0 16px; min-width: 0;
}
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 16px; margin-bottom: 16px; }
.grid section { margin: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 16px; margin: 0 0 24px; }
.facts div { display: flex; flex-direction: column; }
.facts b { font-size: 24px; font-weight: 600; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.facts span { color: var(--muted); font-size: 13px; }
.grid .chart { max-width: 460px; margin: 0 auto; }
.chart { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th {
  text-align: right; font-weight: 500; color: var(--muted);
  padding: 0 8px 8px; vertical-align: bottom; border-bottom: 1px solid var(--grid);
}
td { padding: 7px 8px; border-bottom: 1px solid var(--grid); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
th.t { text-align: left; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
.n { text-align: right; }
.t { text-align: left; }
.best { font-weight: 650; color: var(--series-0); }
.why { white-space: normal; color: var(--muted); min-width: 260px; }
.ok { color: var(--ok); font-weight: 600; }
.no { color: var(--no); font-weight: 600; }
.note, footer { color: var(--muted); font-size: 13px; }
.note { margin: 12px 0 0; }
footer { margin-top: 28px; }
footer p { margin: 4px 0; }
"""
