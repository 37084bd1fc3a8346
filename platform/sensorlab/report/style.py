"""The look of the page: light and dark as the reader's system says, and print.

Colours of configurations are those of Okabe and Ito, chosen to be told apart with any kind of colour vision; shades of
the parallel coordinates are cut from cividis (Nunez et al., 2018), whose order survives in grey.
"""

CSS = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d7dce2; --faint: #eef0f3;
  --accent: #0b5cad; --warn-bg: #fff4d6; --warn-ink: #5c4200; --warn-line: #d9a400; --shade: #1b1f2438;
  --s0: #0072b2; --s1: #b84f00; --s2: #007a5c; --s3: #a64d86; --s4: #946200; --rest: #9aa4b0;
  --q0: #d9d6c4; --q1: #c4bfa0; --q2: #a8a383; --q3: #8c897a; --q4: #707173; --q5: #565c6c; --q6: #33466b;
  --q7: #00224e;
  --step: #0072b2; --data_wait: #e69f00; --evaluation: #56b4e9; --checkpoint: #cc79a7; --callback: #f0e442;
  --restart: #d55e00; --lost: #8b1a1a; --other: #b4bcc6; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1d2127; --ink: #e6e9ed; --soft: #a3adb8; --line: #363d47; --faint: #262b32;
  --accent: #79b8ff; --warn-bg: #3a2f10; --warn-ink: #ffe3a0; --warn-line: #b58900; --shade: #000000b0;
  --s0: #56b4e9; --s1: #ff8c42; --s2: #2fc79a; --s3: #e39bc6; --s4: #f0c04a; --rest: #6b7683;
  --q0: #3d4149; --q1: #4d525d; --q2: #606571; --q3: #787877; --q4: #97906f; --q5: #b9aa62; --q6: #dcc64d;
  --q7: #fee838;
  --step: #3f9bd8; --checkpoint: #cc79a7; --lost: #e05a5a; --other: #5b6570; } }
@page { size: A4 landscape; margin: 12mm; }
@media print { :root { color-scheme: light;
  --page: #fff; --card: #fff; --ink: #000; --soft: #333; --line: #aaa; --faint: #eee; --warn-bg: #fff;
  --warn-ink: #000;
  --s0: #0072b2; --s1: #b84f00; --s2: #007a5c; --s3: #a64d86; --s4: #946200; --rest: #888;
  --q0: #d9d6c4; --q1: #c4bfa0; --q2: #a8a383; --q3: #8c897a; --q4: #707173; --q5: #565c6c; --q6: #33466b;
  --q7: #00224e; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
header.top, main, footer { max-width: 1840px; margin: 0 auto; padding: 0 28px; }
header.top { padding-top: 22px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 10px; } h3 { font-size: .95rem; margin: 14px 0 6px; overflow-wrap: anywhere; }
.under { color: var(--soft); margin: 0 0 14px; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul { max-width: 1840px; margin: 0 auto; padding: 8px 28px; display: flex; flex-wrap: wrap; gap: 4px 18px;
  list-style: none; } nav a { color: var(--accent); text-decoration: none; }
  nav a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.banner { background: var(--warn-bg); color: var(--warn-ink); border: 1px solid var(--warn-line);
  border-left-width: 6px; border-radius: 6px; padding: 10px 14px; margin: 12px 0; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 14px 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; overflow-wrap: anywhere; }
.facts dd { font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts small { font-size: .82rem; font-weight: 400; color: var(--soft); white-space: nowrap; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; min-width: 0; }
@media (min-width: 1700px) { main { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 16px; }
  section { grid-column: 1 / -1; margin: 8px 0; } #curves, #cost { grid-column: auto; } }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(840px, 100%), 1fr)); gap: 0 16px; }
p { margin: 0 0 10px; max-width: 110ch; } .verdict { border-left: 4px solid var(--accent); padding-left: 12px; }
.note, .muted, figcaption, caption { color: var(--soft); font-size: .88rem; } .note { max-width: 120ch; }
td.muted { font-size: inherit; }
code, pre { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--faint); padding: 10px; border-radius: 6px; margin: 6px 0; }
summary { cursor: pointer; color: var(--accent); padding: 4px 0; }
.scroll { overflow: auto; max-height: 720px; border: 1px solid var(--line); border-radius: 6px; margin: 6px 0 10px;
  background: linear-gradient(to left, var(--card) 40px, transparent) right / 60px 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / 16px 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem; }
th, td { padding: 5px 8px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--faint); z-index: 1; font-weight: 600; }
thead th button { all: unset; cursor: pointer; } thead th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
  th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:last-child > * { border-bottom: 0; } .num { text-align: right; font-variant-numeric: tabular-nums; }
tbody th { position: sticky; left: 0; background: var(--card); }
tbody tr:hover, tr.on, tbody tr:hover th, tr.on th { background: var(--faint); }
[data-same] { color: var(--soft); }
.differences tr:not(.first) td:not([data-same]) { font-weight: 600; }
table.result { width: auto; } .scroll:has(> .result) { width: fit-content; max-width: 100%; }
.result td, .result th { padding: 4px 12px; }
.failures td { white-space: normal; max-width: 60ch; }
.pick { all: unset; cursor: pointer; } .pick:hover, .pick[aria-pressed=true] { text-decoration: underline; }
.pick:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.chip { border: 1px solid var(--warn-line); background: var(--warn-bg); color: var(--warn-ink); border-radius: 10px;
  padding: 1px 8px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px;
  background: var(--c); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
  .s4 { --c: var(--s4); }
.rest { --c: var(--rest); }
.chart { display: block; width: 100%; max-width: 1060px; height: auto; margin: 4px auto; overflow: visible;
  font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.chart text { fill: var(--ink); } .chart .tick { fill: var(--soft); font-size: 12px; }
  .chart .name { font-weight: 600; }
.chart .halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1.2; }
.rung { stroke: var(--soft); stroke-dasharray: 2 4; } .chart .rung-label { fill: var(--soft); font-size: 12px; }
.curve .line { fill: none; stroke: var(--c); stroke-width: 2.4; stroke-linejoin: round; }
.curve.rest .line { stroke-width: 1.1; opacity: .7; } .curve.s1 .line { stroke-dasharray: 9 3; }
.curve.s2 .line { stroke-dasharray: 3 3; } .curve.s3 .line { stroke-dasharray: 10 3 2 3; }
.curve.s4 .line { stroke-dasharray: 1 4; stroke-linecap: round; }
.curve .dot { fill: var(--c); } .curve .passed { fill: var(--card); stroke: var(--c); stroke-width: 1.8; }
.curve .stop { stroke: var(--c); stroke-width: 2.4; fill: none; }
.curve .open { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.leader { stroke: var(--c); stroke-width: 1; opacity: .6; } .chart .label { font-weight: 600;
  fill: var(--c, var(--ink)); }
.point .mark { fill: var(--c); fill-opacity: .8; stroke: var(--card); stroke-width: 1; }
.front { fill: none; stroke: var(--soft); stroke-dasharray: 6 4; }
.fork path { fill: none; stroke: var(--line); stroke-width: 2; } .fork.exploit path { stroke: var(--s1); }
.fork .head { fill: var(--s1); stroke: none; } .fork.exploit.won .head { fill: var(--s0); stroke: none; }
.fork.won path { stroke: var(--s0); stroke-width: 4; } .tree .stop { stroke: var(--rest); stroke-width: 2.4; }
.tree .mark { fill-opacity: 1; stroke: var(--soft); } .ring { fill: none; stroke: var(--s0); stroke-width: 3; }
.spot { fill: var(--rest); fill-opacity: .7; } .way.won { fill: none; stroke: var(--s0); stroke-width: 3; }
.bar { fill: var(--s0); } .bar.control { fill: var(--faint); stroke: var(--soft); stroke-dasharray: 3 2; }
.range { stroke: var(--ink); stroke-width: 1.6; fill: none; } .spark .mark { fill: var(--s0); fill-opacity: .75; }
.spark { display: block; }
.pc { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-opacity: .85; }
.q0 { --c: var(--q0); } .q1 { --c: var(--q1); } .q2 { --c: var(--q2); } .q3 { --c: var(--q3); }
  .q4 { --c: var(--q4); }
.q5 { --c: var(--q5); } .q6 { --c: var(--q6); } .q7 { --c: var(--q7); } .pc.q7 { stroke-width: 3; }
.phase { fill: var(--c); } .phase.step { --c: var(--step); } .phase.data_wait { --c: var(--data_wait); }
.phase.evaluation { --c: var(--evaluation); } .phase.checkpoint { --c: var(--checkpoint); }
.phase.callback { --c: var(--callback); } .phase.restart { --c: var(--restart); } .phase.lost { --c: var(--lost); }
.phase.other { --c: var(--other); } .legend { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0;
  margin: 4px 0;
  list-style: none; font-size: .86rem; color: var(--soft); } .legend .phase { background: var(--c); }
.dim [data-config]:not(.on) { opacity: .13; } .dim .on { opacity: 1; stroke-opacity: 1; }
  .dim .pc.on { stroke-width: 3.5; }
.dim .curve.on .line { stroke-width: 3.2; opacity: 1; }
.exhibits { display: grid; gap: 6px 14px; } .columns3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.columns2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.exhibits.large { grid-template-columns: minmax(0, 1fr); }
.exhibits.large h3 { display: none; } figure { margin: 0 0 6px; } .exhibits .missing { margin: 0 0 6px; }
.larger { font: inherit; font-size: .88rem; color: var(--accent); background: none; border: 1px solid var(--line);
  border-radius: 6px; padding: 3px 12px; margin: 0 0 8px; cursor: pointer; }
figure img { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px; }
.missing { border: 1px dashed var(--line); border-radius: 6px; padding: 24px 12px; text-align: center;
  color: var(--soft); }
.protocols { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr)); gap: 0 24px; }
.terms { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 4px 14px; margin: 0 0 10px;
  font-size: .88rem; }
#tip { position: fixed; z-index: 9; max-width: 420px; pointer-events: none; background: var(--ink);
  color: var(--card);
  padding: 5px 9px; border-radius: 5px; font-size: .84rem; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 28px; }
@media print { nav, #tip { display: none; } section { break-inside: avoid; border: 0; padding: 6px 0; }
  .scroll { overflow: visible; max-height: none; border: 0; } table { font-size: 7.5pt; }
  th, td { white-space: normal; padding: 2px 4px; }
  tbody th { white-space: nowrap; } thead th, tbody th { position: static; } body { font-size: 10pt; }
  .larger { display: none; }
  section.long { break-inside: auto; } }
"""
