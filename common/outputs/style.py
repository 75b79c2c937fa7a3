"""The style sheet of the report page: one column of text and figures, light or dark as the reader's system is."""

from common.outputs.figures import PALETTE

RULES = """
*, *::before, *::after { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; scroll-padding-top: 3.4rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, serif; }
a { color: inherit; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
nav, table, .caption, .why, figcaption, details, .bars, .label, .headline, .legend, footer, svg, .notice b, .identity {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
.page { max-width: 73rem; margin: 0 auto; padding: 0 1.1rem 4rem; }
header { padding: 2.6rem 0 .6rem; }
h1 { font-size: clamp(1.65rem, 4.5vw, 2.5rem); line-height: 1.15; font-weight: 600; letter-spacing: -.012em;
  margin: .15rem 0 .5rem; overflow-wrap: anywhere; text-wrap: balance; }
h2 { font-size: 1.45rem; line-height: 1.25; font-weight: 600; margin: 0 0 .7rem; letter-spacing: -.005em; }
h3 { font-size: 1.05rem; font-weight: 600; margin: 2rem 0 .5rem; }
h2 a { text-decoration: none; } h2 a:hover { text-decoration: underline; text-decoration-color: var(--rule); }
p { margin: 0 0 .9rem; max-width: 42rem; overflow-wrap: anywhere; }
.label { font-size: .8rem; letter-spacing: .02em; color: var(--muted); }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--rule);
  margin: 0 -1.1rem; padding: 0 1.1rem; overflow-x: auto; white-space: nowrap; font-size: .85rem;
  scrollbar-width: none; }
nav a { display: inline-block; padding: .8rem 0; margin-right: 1.15rem; color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--ink); }
section { padding: 2.2rem 0 .2rem; }
section + section { border-top: 1px solid var(--rule); margin-top: 1.2rem; }
.headline { display: grid; grid-template-columns: minmax(0, 1fr); gap: .3rem 2.6rem; align-items: end;
  margin: 1.2rem 0 1.6rem; }
.headline .value { font-size: clamp(3.4rem, 13vw, 5.6rem); line-height: .95; font-weight: 300; letter-spacing: -.035em;
  font-variant-numeric: tabular-nums; color: var(--accent); }
.headline .value small { display: block; font-size: .85rem; font-weight: 500; letter-spacing: 0; line-height: 1.5;
  color: var(--ink); margin-bottom: .5rem; }
.headline p { margin: 0; font: 1.06rem/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, serif; }
/* the second ground is a shade at the right edge; the first, which scrolls along, covers it at the table's end */
.scroll { overflow-x: auto; max-width: 100%; margin: .4rem 0 1.3rem;
  background: linear-gradient(to left, var(--paper) 1.2rem, transparent) right -1px top -2px / 2.5rem calc(100% + 4px)
    no-repeat local,
    linear-gradient(to left, color-mix(in srgb, var(--ink) 14%, transparent), transparent) right / .8rem 100%
    no-repeat scroll; }
.scroll:focus-visible { outline-offset: 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums lining-nums; }
p.caption { color: var(--muted); font-size: .875rem; line-height: 1.45; margin: 0 0 .3rem; max-width: 46rem; }
th, td { padding: .36rem .8rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 500; color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--muted); }
tbody th { font-weight: 400; } .scroll :is(thead, tbody) th:first-child { position: sticky; left: 0;
  background: var(--paper); } tbody tr.strong > * { font-weight: 650; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; } td.text { white-space: normal; max-width: 34rem; overflow-wrap: anywhere; }
.none { color: var(--muted); }
.why { font-size: .82rem; line-height: 1.5; color: var(--muted); margin: -.8rem 0 1.3rem; }
.why.alone { margin-top: 0; }
.bar { display: inline-block; position: relative; width: 6.5rem; height: .62rem; background: var(--panel);
  vertical-align: baseline; }
.bar i { position: absolute; top: 0; bottom: 0; background: var(--c0); } .bar i.minus { background: var(--c1); }
.bar u { position: absolute; top: -.12rem; bottom: -.12rem; width: 1px; background: var(--muted); }
.bars { display: grid; grid-template-columns: minmax(0, 1fr) max-content; gap: 0 1rem; align-items: center;
  font-size: .9rem; max-width: 58rem; margin: .6rem 0 1.4rem; font-variant-numeric: tabular-nums; }
.bars .name { grid-column: 1 / -1; overflow-wrap: anywhere; line-height: 1.3; margin-top: .55rem; }
.bars .name small { color: var(--muted); font-size: .8rem; font-weight: 400; margin-left: .4rem; }
.bars .track { position: relative; height: 1.15rem; }
.bars .track::before { content: ""; position: absolute; left: 0; right: 0; top: calc(50% - .5px); height: 1px;
  background: var(--rule); }
.bars .track i { position: absolute; top: calc(50% - 1.5px); height: 3px; background: var(--muted); }
.bars .track b { position: absolute; top: calc(50% - 5px); width: 10px; height: 10px; margin-left: -5px;
  border-radius: 50%; background: var(--muted); }
.bars .track u { position: absolute; top: calc(50% - 8px); height: 16px; border: solid var(--accent);
  border-width: 0 1px; }
.bars .strong { font-weight: 650; } .bars .strong i, .bars .strong b { background: var(--accent); }
.bars.solid .track i { top: calc(50% - .35rem); height: .7rem; background: var(--c0); }
.bars.solid .track b { display: none; }
.bars .count { text-align: right; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .86rem; color: var(--muted); line-height: 1.45; margin: 0 0 .35rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.panels { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.7rem 1.6rem; margin: 1rem 0 1.6rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.2rem; font-size: .85rem; color: var(--muted); margin: .6rem 0; }
.legend span { display: inline-flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; min-width: 0; }
.legend svg { width: 1.7rem; height: .8rem; flex: none; }
.photos { display: grid; grid-template-columns: minmax(0, 1fr); gap: 2rem 1.8rem; margin: 1rem 0 1.8rem; }
.photo { position: relative; line-height: 0; background: var(--panel); margin-bottom: .6rem; }
.photo img { width: 100%; height: auto; display: block; }
.photo svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.photo p { margin: 0; padding: 2.2rem 1rem; line-height: 1.5; color: var(--muted); font-size: .88rem; }
.photos table { width: 100%; font-size: .82rem; } .photos th, .photos td { padding: .24rem .4rem; }
.photos th:first-child { padding-left: 0; } .photos :is(th, td):last-child { padding-right: 0; }
.photos .scroll { margin-bottom: 0; }
.tile { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .8rem .7rem; }
.tile img { width: 100%; height: auto; display: block; background: var(--panel); }
.tile figcaption { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-size: .8rem; }
.tile > :last-child:nth-child(odd) { grid-column: span 2; }
.card { margin: 1rem 0 1.9rem; }
.key { display: inline-flex; align-items: center; gap: .3rem; }
.key svg { width: 1.5rem; height: .8rem; flex: none; }
.confusion td { min-width: 5.6rem; } .confusion tbody tr:nth-last-child(2) > * { border-bottom-color: var(--muted); }
.confusion td b { display: block; font-weight: 600; } .confusion small { font-size: .76rem; }
.identity { display: flex; flex-wrap: wrap; gap: 0 1rem; justify-content: space-between; font-size: .86rem;
  margin-bottom: .45rem; color: var(--muted); overflow-wrap: anywhere; }
.identity b { color: var(--ink); font-weight: 600; }
.notice { border: solid var(--rule); border-width: 1px 0; padding: .6rem 0; margin: -1px 0 0; max-width: 52rem;
  font-size: .95rem; }
.notice b { font-size: .8rem; letter-spacing: .02em; margin-right: .5rem; color: var(--muted); }
.notice.warn b { color: var(--warn); }
.notice p { display: inline; margin: 0; max-width: none; }
ul.findings { max-width: 46rem; padding-left: 1.1rem; margin: 0 0 1.2rem; }
.findings li { margin: .3rem 0; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--rule); font-size: .9rem; }
.scroll + details, .why + details { border-top: 0; margin-top: -1rem; }
h2 + details { border-top: 0; }
summary { cursor: pointer; padding: .7rem 0; overflow-wrap: anywhere; }
summary:hover { color: var(--accent); }
table.settings { font-size: .82rem;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.settings td { min-width: 11rem; }
footer { border-top: 1px solid var(--rule); margin-top: 2.6rem; padding-top: 1rem; font-size: .82rem;
  color: var(--muted);  overflow-wrap: anywhere; }
@media (max-width: 33.99rem) {
  tbody th span { display: inline-block; width: max-content; max-width: 8.6rem; white-space: normal;
    overflow-wrap: anywhere; }
  .panels figure:not(.hero) text { font-size: 8.2px !important; } .panels .hero text { font-size: 12px !important; }
}
@media (min-width: 34rem) {
  .bars { grid-template-columns: fit-content(22rem) minmax(8rem, 1fr) max-content; row-gap: .55rem; }
  .bars .name { grid-column: auto; margin: 0; } .bars .name small { display: block; margin: 0; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); } .panels .hero { grid-column: span 2; max-width: 36rem; }
}
@media (min-width: 46rem) {
  .photos { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .headline { grid-template-columns: max-content minmax(0, 1fr); }
  .panels.pairs .hero { grid-column: auto; }
}
@media (min-width: 60rem) {
  .page { padding: 0 2rem 5rem; } nav { margin: 0 -2rem; padding: 0 2rem; }
  .panels { grid-template-columns: repeat(4, minmax(0, 1fr)); } .panels .hero { grid-column: span 2; grid-row: span 2; }
  .panels.pairs > .hero { grid-column: span 2; grid-row: auto; }
  .tile { grid-template-columns: repeat(5, minmax(0, 1fr)); } .tile > :last-child:nth-child(odd) { grid-column: auto; }
}
@media print { nav { display: none; } section { break-inside: avoid-page; } .scroll { overflow: visible; } }
"""


def style_sheet() -> str:
    """The rules with both themes' colours as variables; no address of anything outside."""
    light = "".join(f"--{name}: {pair[0]}; " for name, pair in PALETTE.items())
    dark = "".join(f"--{name}: {pair[1]}; " for name, pair in PALETTE.items())
    return f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n{RULES.strip()}\n"
