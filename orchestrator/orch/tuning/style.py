"""How the report looks: light and dark, wide and narrow, and on paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  --ground: #f6f7f9; --sheet: #ffffff; --ink: #16191d; --soft: #565f6b; --rule: #dfe3e8; --edge: #8a939f;
  --on: #1a5fb4; --off: #a8480a; --front: #16191d; --tint: #e8f0fa; --bar: #cfdff3; --code: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #111417; --sheet: #191d22; --ink: #e9ecef; --soft: #a2abb5; --rule: #2c3239; --edge: #77818c;
    --on: #7fb4ff; --off: #ffa45c; --front: #e9ecef; --tint: #1c2a3c; --bar: #24405f; --code: #101316;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 2.5rem 1rem 4rem }
header { margin: 0 .25rem 1.5rem }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere }
h2 { margin: 0 0 .9rem; font-size: 1.05rem; font-weight: 650 }
section { background: var(--sheet); border: 1px solid var(--rule); border-radius: 12px; padding: 1.4rem 1.5rem;
  margin: 0 0 1.1rem }
.kicker { margin: 0 0 .3rem; color: var(--soft); font-size: .85rem }
.choice { margin: 0; font-size: 1.35rem; line-height: 1.3; font-weight: 650 }
.hero { border-left: 5px solid var(--on) }
section > p:last-child, section > pre:last-child { margin-bottom: 0 }
.note { color: var(--soft) }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem 2.4rem; margin: 1rem 0 1.2rem }
.tiles dd { margin: 0; font-size: 1.7rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums }
.tiles dt { color: var(--soft); font-size: .85rem }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .9rem }
pre { margin: .4rem 0 1rem; padding: .8rem 1rem; background: var(--code); border-radius: 8px; overflow-x: auto }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--ink) }
svg .tick { fill: var(--soft); font-variant-numeric: tabular-nums }
svg .name { fill: var(--soft) }
svg .label { paint-order: stroke; stroke: var(--sheet); stroke-width: 3px; stroke-linejoin: round;
  font-variant-numeric: tabular-nums }
svg .minor { fill: var(--soft) }
svg .best { font-weight: 700 }
.rule { stroke: var(--rule); stroke-width: 1; fill: none }
.axis { stroke: var(--edge); stroke-width: 1; fill: none }
.series { stroke: var(--edge); stroke-width: 1; stroke-dasharray: 1 4; stroke-linecap: round; fill: none }
.front { stroke: var(--front); stroke-width: 1.75; fill: none; stroke-linejoin: round }
.limit { stroke: var(--edge); stroke-width: 1.5; stroke-dasharray: 6 4; fill: none }
.point { stroke-width: 2 }
.point.on { fill: var(--on); stroke: var(--sheet); stroke-width: 1.5 }
.point.off { fill: var(--sheet); stroke: var(--off) }
.ring { fill: none; stroke: var(--front); stroke-width: 1.75 }
.plot { display: block; width: 100%; height: auto }
.plot.narrow { display: none }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.3rem; margin: .8rem 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .88rem }
.legend li { display: flex; align-items: center; gap: .45rem }
.key { width: 16px; height: 16px }
.scroll { overflow-x: auto; margin: 0 -.4rem; padding: 0 .4rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem }
th { color: var(--soft); font-weight: 500; font-size: .82rem }
th, td { padding: .42rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
tbody tr:last-child td { border-bottom: 0 }
tr.other td { color: var(--soft) }
.reasons { margin-top: 1rem }
tr.best td { background: var(--tint); font-weight: 650 }
.rate { position: relative; min-width: 6.5rem }
.bar { position: absolute; inset: .3rem auto .3rem 0; background: var(--bar); border-radius: 3px; z-index: 0 }
.rate { isolation: isolate }
.rate .bar { z-index: -1 }
.marks { text-align: left; min-width: 2.6rem; padding-right: 0 }
abbr { text-decoration: none }
.why { text-align: left; white-space: normal; color: var(--soft); min-width: 16rem }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 0; font-size: .92rem }
.facts dt { color: var(--soft) }
.facts dd { margin: 0; overflow-wrap: anywhere }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
:focus-visible { outline: 2px solid var(--on); outline-offset: 2px }
@media (max-width: 600px) {
  main { padding: 1.4rem .7rem 3rem }
  section { padding: 1.1rem 1rem }
  h1 { font-size: 1.3rem }
  .choice { font-size: 1.2rem }
  .tiles { gap: .7rem 1.7rem }
  .tiles dd { font-size: 1.4rem }
  .plot.wide { display: none }
  .plot.narrow { display: block }
  .plot { margin: 0 -.4rem; width: calc(100% + .8rem) }
  table { font-size: .86rem }
  th, td { padding: .42rem .35rem }
  .rate { min-width: 4.4rem }
  .marks { min-width: 2rem }
  .facts { grid-template-columns: 1fr; gap: 0 }
  .facts dd { margin-bottom: .5rem }
}
@media print { body { background: none } section { break-inside: avoid } .scroll { overflow: visible } }
"""
