"""How the page looks: on a phone, on a desk, by day, by night, on paper."""

STYLE = """
:root {
  --ink: #1c2026; --soft: #59616d; --line: #d5d9e0; --paper: #ffffff; --card: #f6f7f9;
  --one: #1f6fc4; --two: #b4530a; --three: #2f7d4f;
}
@media (prefers-color-scheme: dark) { @media screen { :root {
  --ink: #e8eaee; --soft: #a3abb8; --line: #3a414d; --paper: #14171c; --card: #1d2128;
  --one: #6aaaf0; --two: #eb9a56; --three: #6dc792;
} } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.7rem; }
p { margin: 0.4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.note, .soft { color: var(--soft); }
.note { border-left: 3px solid var(--line); padding-left: 0.7rem; }
.tiles, .grid { display: grid; gap: 0.8rem; margin: 1rem 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 0; padding: 0.8rem; break-inside: avoid; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tile span, .keys, .axis { color: var(--soft); font-size: 0.85rem; }
figcaption { font-weight: 600; margin-bottom: 0.4rem; overflow-wrap: anywhere; }
svg, .map { display: block; width: 100%; }
svg { height: auto; }
.map { height: 9rem; border: 1px solid var(--line); background: var(--paper); }
.map, svg image { image-rendering: pixelated; }
.keys { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; margin: 0.3rem 0 0; }
.keys img { width: 7rem; height: 0.8rem; margin: 0 0.4rem; border: 1px solid var(--line); }
.key { display: inline-block; width: 1.3rem; margin-right: 0.4rem; vertical-align: middle;
  border-top: 3px solid; }
.dashed { stroke-dasharray: 5 4; border-top-style: dashed; }
.one { color: var(--one); } .two { color: var(--two); } .three { color: var(--three); }
svg path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .dots { stroke-width: 5; stroke-linecap: round; }
svg .small { stroke-width: 3; stroke-linecap: round; }
svg line { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 12px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 0.8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: normal; }
thead th { font-weight: 600; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td, th[scope="row"] { overflow-wrap: break-word; }
summary { cursor: pointer; padding: 0.4rem 0; }
@media print {
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { font-size: 8.5pt; } th, td { padding: 0.15rem 0.4rem; }
  thead th, .number { white-space: normal; } tr { break-inside: avoid; }
  h2 { break-after: avoid; } .grid { grid-template-columns: repeat(3, 1fr); }
  figure { padding: 0.4rem; } .map { height: 6rem; } summary { display: none; }
  details::details-content { content-visibility: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
