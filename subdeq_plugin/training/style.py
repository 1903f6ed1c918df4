"""How a report looks: on a phone, on a desk, in the dark and on paper."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --quiet: #5a6472; --paper: #ffffff; --panel: #f4f6f8; --line: #d9dee4;
  --good: #17663a; --good-back: #e3f4e9; --open: #8a4b08; --open-back: #fdf0dd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --quiet: #a3adba; --paper: #14181e; --panel: #1d232b;
  --line: #343c47; --good: #86d9a8; --good-back: #16352a; --open: #f3bd76; --open-back: #3a2a14; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; }
.kind { color: var(--quiet); margin: 0 0 .25rem; font-size: .9rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
.verdict { font-size: 1.15rem; padding: .9rem 1.1rem; border-radius: .5rem; border-left: .35rem solid; margin: 0; }
.note { padding: .5rem .9rem; border-left: .25rem solid var(--line); background: var(--panel); font-size: .92rem; }
.good { color: var(--good); background: var(--good-back); border-color: var(--good); }
.open { color: var(--open); background: var(--open-back); border-color: var(--open); }
.tag { display: inline-block; font-size: .75rem; font-weight: 600; padding: .05rem .5rem; border-radius: 1rem;
  white-space: nowrap; vertical-align: .1em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0 0; }
.cards div { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem; }
.cards dt { color: var(--quiet); font-size: .82rem; line-height: 1.3; }
.cards dd { margin: .2rem 0 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; color: var(--quiet); font-size: .85rem; padding-bottom: .3rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--quiet); }
th + td { overflow-wrap: anywhere; }
th[scope="row"] { width: 45%; }
td + td, td:first-child { white-space: nowrap; }
ul { padding-left: 1.2rem; }
li { margin: .4rem 0; }
ul.checks { list-style: none; padding: 0; margin: .5rem 0; }
ul.checks li { display: grid; grid-template-columns: 3.6rem 1fr; gap: .75rem; align-items: start; margin: 0;
  padding: .55rem 0; border-bottom: 1px solid var(--line); }
ul.checks p { margin: 0; }
ul.checks .tag { text-align: center; margin-top: .15rem; }
.numbers { color: var(--quiet); font-size: .88rem; font-variant-numeric: tabular-nums; }
.numbers b { font-weight: 600; color: var(--ink); }
.reason { color: var(--open); font-size: .9rem; }
@media print { :root { --paper: #fff; --ink: #000; --quiet: #444; --panel: #fff; --line: #bbb; --good: #17663a;
  --good-back: #fff; --open: #8a4b08; --open-back: #fff; } main { max-width: none; padding: 0; }
  .verdict, .tag, .cards div { border: 1px solid; } section li, figure, tr, .cards div { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
"""
