"""The page's style sheet. System fonts only; figures keep a light card in dark mode."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #23272b; --muted: #5d646c; --line: #dfdfd8;
  --accent: #00639c; --tint: #eef4f8; --bar: #9cc3da;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191c; --ink: #e4e6e8; --muted: #a2a9b0; --line: #33393f;
    --accent: #7cc0ea; --tint: #1d262d; --bar: #2f617f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 54rem; padding: 4rem 1.5rem 6rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 "Helvetica Neue", Helvetica, Arial, sans-serif;
  overflow-wrap: break-word;
}
h1, h2, .lead { font-family: "Iowan Old Style", Palatino, "Palatino Linotype", Georgia, serif; }
h1 { font-size: 1.1rem; font-weight: 400; color: var(--muted); margin: 0 0 1.5rem; }
h2 { font-size: 1.6rem; font-weight: 600; line-height: 1.25; margin: 4.5rem 0 1rem; }
h3 { font-size: 1.0625rem; font-weight: 600; margin: 2.5rem 0 .5rem; }
p { margin: 0 0 1rem; max-width: 42rem; }
.lead { font-size: 1.5rem; line-height: 1.42; margin: 0 0 2rem; max-width: none; }
.notes { margin: 0 0 2rem; padding: 1rem 1.25rem; background: var(--tint);
  border-left: 3px solid var(--accent); }
.notes p, .notes ul { margin: 0; max-width: none; }
.notes ul { padding-left: 1.1rem; }
.notes li + li { margin-top: .4rem; }
.small, figcaption { color: var(--muted); font-size: .9rem; line-height: 1.5; }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
figure { margin: 1.5rem 0 2rem; }
figcaption { margin-top: .6rem; max-width: 42rem; }
.one, .many { display: grid; gap: 1rem; }
.many { grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .75rem; }
.narrow { display: none; }
.narrow svg { max-width: 26rem; margin: 0 auto; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; margin: 1.5rem 0 .75rem; }
h3 + .scroll { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 0 .5rem 1rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
th:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 400; color: var(--muted); font-size: .85rem; white-space: normal;
  line-height: 1.3; vertical-align: bottom; }
tbody th { font-weight: 400; }
.set-off > * { font-weight: 600; background: var(--tint); }
.set-off th:first-child { box-shadow: -.6rem 0 0 var(--tint); }
.set-off td:last-child { box-shadow: .6rem 0 0 var(--tint); }
.plain td, .plain th { text-align: left; white-space: normal; }
.compact { font-size: .8rem; }
.compact th, .compact td { padding: .3rem 0 .3rem .7rem; }
.compact code { font-size: .72rem; }
.compact thead th { font-size: .75rem; }
.compact th:first-child { position: sticky; left: 0; padding-left: 0;
  background: var(--paper); }
.bars td:last-child { width: 55%; }
.bar { display: block; height: .7rem; min-width: 2px; background: var(--bar); border-radius: 2px; }
dl { margin: 0; }
.columns { columns: 2; column-gap: 3rem; font-size: .95rem; }
.columns div { break-inside: avoid; padding-bottom: 1rem; }
.columns dt { margin: 0; }
dt { font-weight: 600; margin-top: 1rem; }
dd { margin: .15rem 0 0; max-width: 42rem; }
details { border-top: 1px solid var(--line); }
details .scroll { margin-top: 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .7rem 0; color: var(--accent); }
details[open] { padding-bottom: 1rem; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
sub { font-size: .75em; line-height: 0; vertical-align: -.25em; }
footer { margin-top: 4rem; }
@media (max-width: 40rem) {
  body { padding: 2rem 1.1rem 4rem; font-size: 1rem; }
  .lead { font-size: 1.25rem; }
  h2 { margin-top: 3rem; }
  .card { padding: .4rem; }
  .many .card { max-width: 24rem; }
  .wide { display: none; }
  .narrow { display: block; }
  .columns { columns: 1; }
  .stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; text-align: left; }
  .stack thead { display: none; }
  .stack tr { padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .stack tbody th { font-weight: 600; padding: 0 0 .2rem; border: 0; }
  .stack td { display: flex; justify-content: space-between; padding: .1rem 0; border: 0; }
  .stack td.none { display: none; }
  .stack td::before { content: attr(data-label); color: var(--muted); font-weight: 400; }
  .set-off td:last-child, .set-off th:first-child { box-shadow: none; }
  .stack .set-off { box-shadow: -.6rem 0 0 var(--tint), .6rem 0 0 var(--tint);
    background: var(--tint); }
}
@page { margin: 18mm 16mm; }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #23272b; --muted: #5d646c; --line: #dfdfd8;
    --accent: #00639c; --tint: #eef4f8; --bar: #9cc3da; }
  nav { display: none; }
  body { max-width: none; padding: 0; font-size: 10.5pt; line-height: 1.45; }
  p, .small, figcaption, dd { max-width: none; }
  .lead { font-size: 14pt; margin-bottom: 1rem; }
  h2 { font-size: 15pt; margin: 2rem 0 .6rem; }
  h3 { margin-top: 1.2rem; }
  h1, h2, h3, dt, summary { break-after: avoid; }
  p, dd, li { orphans: 3; widows: 3; }
  tr, figure, .notes { break-inside: avoid; }
  thead { display: table-header-group; }
  .many { grid-template-columns: repeat(3, 1fr); }
  .scroll { overflow: visible; }
  th, td { padding-block: .3rem; }
  .bar, .set-off > *, .notes { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  /* Paper cannot be clicked: what is folded away is printed. */
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { color: var(--ink); font-weight: 600; list-style: none; }
  summary::-webkit-details-marker { display: none; }
  footer { margin-top: 2rem; }
}
"""
