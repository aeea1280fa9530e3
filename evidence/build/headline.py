"""What README, the front page, the method card and the page of the evidence say first, computed from its parts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from string import Template
from typing import NamedTuple

Parts = Mapping[str, str]
_HEADLINE = (
    "**No: over $claims_cells combinations of network and optimizer, no metric reduces the error on average or at\n"
    "equal learning rates.**"
)
_VERDICT = (
    "**Does it help? Not on average.** Over $claims_cells combinations of network and optimizer on handwritten\n"
    "digits, tuned with equal budgets, the average change of the error is $average_reweighted points with the\n"
    "re-weighted metric and $average_sobolev with the Sobolev metric (95 % intervals; positive is worse).\n"
    "At equal learning rates a lower error is shown in $rates_better of $rates_count comparisons.\n"
    "$elsewhere [The evidence]($link).\n"
)
_CLAIM = (
    "- That it improves anything in general. [The evidence](docs/evidence.md), from small networks and small data, "
    "shows no reduction of the error on average or at equal learning rates over $claims_cells combinations of "
    "network and optimizer, and states which differences it could have detected. $elsewhere"
)
_CARD = (
    "no reduction of the error on average or at equal learning rates over $claims_cells combinations of network "
    "and optimizer. $elsewhere"
)


class Sentences(NamedTuple):
    """Each with the numbers of the records: for the page, README, the front page, README's claims, the card.

    The page says `headline` above its figure, and `beside` below it.
    """

    headline: str
    beside: str
    readme: str
    front: str
    claim: str
    card: str


def sentences(parts: Parts) -> Sentences:
    """The sentences, from the parts of the page."""

    def fill(template: str, link: str = "") -> str:
        text = Template(template).substitute(parts, elsewhere=elsewhere(parts), link=link)
        indent = "  " if text.startswith("- ") else ""
        return textwrap.fill(text, 110, subsequent_indent=indent, break_on_hyphens=False) + "\n"

    return Sentences(
        fill(_HEADLINE).rstrip(),
        fill("$elsewhere").rstrip(),
        fill(_VERDICT, "docs/evidence.md"),
        fill(_VERDICT, "evidence.md"),
        fill(_CLAIM),
        Template(_CARD).substitute(parts, elsewhere=elsewhere(parts)),
    )


def elsewhere(parts: Parts) -> str:
    """Whether a gain is shown beside the combinations, and what is left of it when repeated."""
    where = f"Of {parts['elsewhere_count']} comparisons elsewhere, along other axes and with {parts['elsewhere_regimes']},"
    shown = parts["elsewhere_better_count"]
    if shown == "0":
        return f"{where} none shows a lower error."
    return (
        f"{where} {shown} shows a lower error than the tuned baseline: {parts['elsewhere_gains']}. "
        f"{parts['labels_verdict']}"
    )
