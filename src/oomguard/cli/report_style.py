"""The style sheet and the script of a fit-report's page: light, dark, narrow and on paper."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --ink: #1c2024; --soft: #5a646e; --line: #d5dade; --block: #f4f6f8;
  --good: #14692f; --bad: #b3261e; --warn: #8a5300; --link: #0b57d0;
  --added: #e2f4e6; --removed: #fbe5e3;
  --c0: #0b57d0; --c1: #b3261e; --c2: #14692f; --c3: #8a5300; --c4: #7627bb; --c5: #00697a;
  --cap: #b3261e; --p0: #9aa5b1; --p1: #c58af9; --p2: #7bc58f; --p3: #f2c14e; --p4: #6fb1fc; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181b; --ink: #e4e7ea; --soft: #a3adb7; --line: #3a4148; --block: #1e2327;
  --good: #6dd58c; --bad: #f2958d; --warn: #f0b95b; --link: #8ab4f8;
  --added: #16351f; --removed: #461f1c;
  --c0: #8ab4f8; --c1: #f2958d; --c2: #6dd58c; --c3: #f0b95b; --c4: #d0a4f7; --c5: #5ccfe0;
  --cap: #f2958d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.steps { list-style: none; margin: 0; padding: 0; border-left: 2px solid var(--line); }
.steps > li { position: relative; padding: 0 0 1.25rem 1.25rem; }
.steps > li::before { content: ""; position: absolute; left: -.46rem; top: .35rem; width: .8rem;
  height: .8rem; border-radius: 50%; background: var(--mark, var(--soft)); }
.steps .good { --mark: var(--good); } .steps .bad { --mark: var(--bad); }
.steps h3 { color: var(--mark, var(--ink)); } .steps li { color: var(--ink); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .35rem 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; }
pre { margin: 0; padding: .75rem; overflow-x: auto; background: var(--block); border-radius: 6px;
  white-space: pre; overflow-wrap: normal; }
pre.command, pre.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.diff span { display: block; min-width: max-content; padding: 0 .25rem; }
.diff ins { text-decoration: none; background: var(--added); }
.diff del { text-decoration: none; background: var(--removed); }
.copied { position: relative; margin: .5rem 0; }
button { display: none; position: absolute; top: .35rem; right: .35rem; padding: .15rem .6rem;
  font: inherit; font-size: .8rem; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: 4px; cursor: pointer; }
.script button { display: block; } .script .copied pre { padding-top: 2.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
details { margin: .5rem 0; } summary { cursor: pointer; }
figure { margin: .75rem 0 1.5rem; }
.plot { overflow-x: auto; } .plot svg { display: block; width: 100%; min-width: 30rem;
  max-width: 52rem; height: auto; } .plot text { font-family: system-ui, sans-serif !important; }
.key { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; list-style: none; margin: .25rem 0;
  padding: 0; font-size: .9rem; }
.key i { display: inline-block; width: 1.1rem; height: 0; margin-right: .4rem;
  vertical-align: middle; border-top: 3px solid; }
.key .shade { height: .8rem; border: 0; opacity: .35; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .35rem; }
  body { padding: 1rem .85rem 3rem; } h1 { font-size: 1.25rem; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444;
  --line: #bbb; --block: #f6f6f6; --good: #14692f; --bad: #b3261e; --warn: #8a5300;
  --added: #e2f4e6; --removed: #fbe5e3; --cap: #b3261e; --c0: #0b57d0; --c1: #b3261e;
  --c2: #14692f; --c3: #8a5300; --c4: #7627bb; --c5: #00697a; }
  body { max-width: none; font-size: 10pt; } .script button { display: none; }
  .script .copied pre { padding-top: .75rem; } pre { white-space: pre-wrap; }
  .diff span { min-width: 0; } .steps > li, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .plot svg { min-width: 0; } }
""".strip()

#: All that it does is to copy; without scripts the page lacks the buttons, and nothing else.
SCRIPT = """
document.documentElement.classList.add("script");
document.addEventListener("click", async event => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const block = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(block);
    button.textContent = "Selected";
  }
});
""".strip()


def policy() -> str:
    """Return a content security policy under which the page runs its own script and loads nothing.

    Colours of a plot are in `style` attributes, so inline styles are allowed.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
