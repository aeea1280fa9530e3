"""What README, the front page, the method card and the page of the evidence say first, computed from its parts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from string import Template
from typing import NamedTuple

Parts = Mapping[str, str]
_HEADLINE = (
    "**Not where it was studied: over $claims_cells combinations of network and optimizer, no metric is shown to lower the\n"
    "error on average or at equal learning rates.**"
)
_VERDICT = (
    "**Does it help? Not on average, where it was studied:** small networks on small data. Over $claims_cells combinations\n"
    "of network and optimizer on handwritten digits, each tuned with the same budget, the error changes by\n"
    "$average_reweighted percentage points with the re-weighted metric and by $average_sobolev with the Sobolev metric\n"
    "(95 % intervals over the seeds, positive is worse; over the combinations, with the noise of tuning,\n"
    "±\u00a0$cells_reweighted and ±\u00a0$cells_sobolev). A lower error than the tuned baseline's is shown in $tuned_better of\n"
    "$tuned_count comparisons, and in $rates_better of $rates_count at equal learning rates.\n\n$elsewhere [The evidence]($link).\n"
)
_CLAIM = (
    "- That it improves anything in general. [The evidence](docs/evidence.md) shows no reduction of the error on average "
    "or at equal learning rates over $claims_cells combinations of network and optimizer, and states which differences "
    "it could have detected. $gain"
)
_CARD = (
    "no reduction of the error on average or at equal learning rates over $claims_cells combinations of network "
    "and optimizer. $gain"
)


class Sentences(NamedTuple):
    """Each with the numbers of the records: for the page, README, the front page, README's claims, the card.

    The page says `headline` above its figure, and `beside` below the list of what it shows.
    """

    headline: str
    beside: str
    readme: str
    front: str
    claim: str
    card: str


def sentences(parts: Parts) -> Sentences:
    """The sentences, from the parts of the page."""
    words = {"gain": gain(parts), "elsewhere": elsewhere(parts)}

    def fill(template: str, link: str = "") -> str:
        text = Template(template).substitute(parts, **words, link=link)
        return "\n\n".join(map(_filled, text.split("\n\n"))) + "\n"

    return Sentences(
        fill(_HEADLINE).rstrip(),
        fill("$elsewhere").rstrip(),
        fill(_VERDICT, "docs/evidence.md"),
        fill(_VERDICT, "evidence.md"),
        fill(_CLAIM),
        Template(_CARD).substitute(parts, **words),
    )


def _filled(paragraph: str) -> str:
    """A paragraph, or each item of a list, in lines of at most 110 characters."""
    return "\n".join(
        textwrap.fill(
            item, 110, subsequent_indent="  " if item.startswith("- ") else "", break_on_hyphens=False
        )
        for item in re.split(r"\n(?=- )", paragraph)
    )


def gain(parts: Parts) -> str:
    """Whether a gain is shown beside the combinations, in a sentence."""
    shown = _shown(parts, "")
    return f"{shown}." if _none(parts) else f"{shown}; the page names them and their controls."


def elsewhere(parts: Parts) -> str:
    """What is gained, and what is left of the gain with wrong labels when it is repeated."""
    shown = _shown(parts, f", along other axes and with {parts['elsewhere_regimes']}")
    if _none(parts):
        return f"{shown}."
    return f"{shown}:\n\n{parts['elsewhere_gains']}\n\n{parts['labels_verdict']}"


def _none(parts: Parts) -> bool:
    return parts["elsewhere_better_count"] == "0"


def _shown(parts: Parts, where: str) -> str:
    """How many comparisons show a gain; `where` says of which."""
    of = f"Of {parts['elsewhere_count']} comparisons elsewhere{where},"
    if _none(parts):
        return f"{of} none shows a lower error"
    count = parts["elsewhere_better_count"]
    return f"{of} {count} {'shows' if count == '1' else 'show'} a lower error than the tuned baseline"
