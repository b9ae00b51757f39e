"""The stylesheet of every page: dark if the reader's screen is dark, always light on paper.

Words alone carry all information; colour adds none.
"""

CSS = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --head: #4b5563; --line: #9ca3af; --thin: #eef0f3;
  --page: #fff; --box: #f3f6fa; --edge: #1f5a99; --better: #276738; --worse: #a32a2a; --warn: #b04d14; --warnbox: #fdf4ee;
  --quote: #f7f8fa; --rim: #e5e7eb; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --head: #cbd5e1;
  --line: #6b7280; --thin: #2b323d; --page: #14181f; --box: #1d2530; --edge: #6ea8e0; --better: #7fca92; --worse: #f19999;
  --warn: #f0a878; --warnbox: #2b211b; --quote: #1a1f28; --rim: #2b323d; } }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--text);
  background: var(--page); max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .8rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { max-width: 56rem; }
p.findings { font-size: 1.05rem; border-left: 4px solid var(--edge); background: var(--box); padding: .7rem 1rem;
  margin: 0; max-width: none; }
p.note { color: var(--soft); font-size: .84rem; margin: .5rem 0 0; }
p.warning { color: var(--warn); border-left: 4px solid var(--warn); background: var(--warnbox); padding: .5rem 1rem; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--head); border-bottom: 1.5px solid var(--line); vertical-align: bottom;
  white-space: normal; }
td { border-bottom: 1px solid var(--thin); }
.l { text-align: left; } td.note { white-space: normal; text-align: left; min-width: 11rem; color: var(--head); }
td.note:not(:last-child) { min-width: 15rem; } td small { display: block; font-size: .9em;
  color: var(--soft); white-space: normal; }
tr.part td { font-weight: 600; padding-top: .8rem; text-align: left; }
.better, .better small { color: var(--better); } .worse, .worse small { color: var(--worse); }
.same, .same small { color: var(--soft); } .warn, .warn small { color: var(--warn); }
figure { margin: 1rem 0 1.8rem; } figure svg { width: 100%; max-width: 62rem; height: auto; display: block;
  background: #fff; border-radius: 6px; } figure g[id^="tip"]:hover { opacity: .55; }
figcaption { color: var(--soft); font-size: .84rem; margin-top: .4rem; max-width: 56rem; }
.quote { margin: .5rem 0 .8rem; max-width: 62rem; }
.quote p { color: var(--head); font-size: .82rem; margin: 0 0 .15rem; max-width: none; overflow-wrap: anywhere; }
pre { font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 0; background: var(--quote); border: 1px solid var(--rim); border-radius: 4px; padding: .45rem .7rem; }
@page { size: A4 landscape; margin: 14mm; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 10pt; } .wide { overflow: visible; }
  figure, tr, p, .quote { break-inside: avoid; } h1, h2, h3 { break-after: avoid; } thead { display: table-header-group; }
  table { font-size: 8pt; } th, td { padding-right: .7rem; } figure svg { max-width: 24cm; }
  p.findings, p.warning, pre { background: none; } }
"""
