"""Whether a model may be released under its licence, given those of its data and of its base model.

The reading is the careful one: a model is treated as if it were made from its data in the sense of each licence, terms on
outputs are taken at their word, and what is not in the table needs a person's review. It is a check, not legal advice.
Sources: the licences' own texts, by their SPDX ids (spdx.org/licenses) or the Hugging Face Hub's names for them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PERMITTED, REVIEW, INCOMPATIBLE = "permitted", "needs review", "incompatible"
STRICTNESS = (PERMITTED, REVIEW, INCOMPATIBLE)


@dataclass(frozen=True)
class Licence:
    name: str
    commercial: bool = True
    attribution: bool = True
    passes_on: tuple[str, ...] = ()
    """A release must be under one of these (share-alike, or terms that pass on to derivatives); empty: under any."""
    outcome: str = PERMITTED
    """Whatever the release's licence."""
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """What one licence means for the release."""

    licence: str
    name: str
    outcome: str
    reason: str
    commercial: bool | None
    """None where the licence is not known."""
    attribution: bool
    share_alike: bool
    used_by: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    release: str
    outcome: str
    reason: str
    """The strictest finding's."""
    commercial: bool | None
    share_alike: tuple[str, ...]
    """Ids of licences that bind the release to their own terms."""
    attribution: tuple[str, ...]
    """Who must be named."""
    findings: tuple[Finding, ...] = field(default=())


_NC = "Non-commercial use only"
_LLAMA = "Name the model Llama…, say Built with Llama, and pass the licence on"
_OUTPUTS = "its terms bar training other models on its outputs"
_BY_SA = ("cc-by-sa-4.0", "gpl-3.0")
LICENCES: Mapping[str, Licence] = {
    "apache-2.0": Licence("Apache License 2.0"),
    "mit": Licence("MIT License"),
    "bsd-2-clause": Licence("BSD 2-Clause"),
    "bsd-3-clause": Licence("BSD 3-Clause"),
    "isc": Licence("ISC License"),
    "cc0-1.0": Licence("Creative Commons Zero", attribution=False),
    "pddl": Licence("Open Data Commons Public Domain Dedication", attribution=False),
    "unlicense": Licence("The Unlicense", attribution=False),
    "public-domain": Licence("Public domain", attribution=False),
    "cc-by-3.0": Licence("Creative Commons Attribution 3.0"),
    "cc-by-4.0": Licence("Creative Commons Attribution 4.0"),
    "odc-by": Licence("Open Data Commons Attribution"),
    "cdla-permissive-1.0": Licence("Community Data License Agreement, Permissive 1.0"),
    "cdla-permissive-2.0": Licence("Community Data License Agreement, Permissive 2.0"),
    "cc-by-sa-3.0": Licence("Creative Commons Attribution-ShareAlike 3.0", passes_on=("cc-by-sa-3.0", *_BY_SA)),
    "cc-by-sa-4.0": Licence("Creative Commons Attribution-ShareAlike 4.0", passes_on=_BY_SA),
    "odbl": Licence("Open Database License", passes_on=("odbl",)),
    "cdla-sharing-1.0": Licence("Community Data License Agreement, Sharing", passes_on=("cdla-sharing-1.0",)),
    "mpl-2.0": Licence("Mozilla Public License 2.0", passes_on=("mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0")),
    "lgpl-3.0": Licence("GNU Lesser General Public License 3.0", passes_on=("lgpl-3.0", "gpl-3.0", "agpl-3.0")),
    "gpl-2.0": Licence("GNU General Public License 2.0", passes_on=("gpl-2.0",)),
    "gpl-3.0": Licence("GNU General Public License 3.0", passes_on=("gpl-3.0", "agpl-3.0")),
    "agpl-3.0": Licence("GNU Affero General Public License 3.0", passes_on=("agpl-3.0",)),
    "cc-by-nc-3.0": Licence(
        "Creative Commons Attribution-NonCommercial 3.0",
        commercial=False,
        passes_on=("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        note=_NC,
    ),
    "cc-by-nc-4.0": Licence(
        "Creative Commons Attribution-NonCommercial 4.0",
        commercial=False,
        passes_on=("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        note=_NC,
    ),
    "cc-by-nc-sa-4.0": Licence(
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
        commercial=False,
        passes_on=("cc-by-nc-sa-4.0",),
        note=_NC,
    ),
    "cc-by-nd-4.0": Licence(
        "Creative Commons Attribution-NoDerivatives 4.0", outcome=INCOMPATIBLE, note="it permits no adaptations"
    ),
    "cc-by-nc-nd-4.0": Licence(
        "Creative Commons Attribution-NonCommercial-NoDerivatives 4.0",
        commercial=False,
        outcome=INCOMPATIBLE,
        note="it permits no adaptations",
    ),
    "llama2": Licence("Llama 2 Community License", passes_on=("llama2",), note=_OUTPUTS),
    "llama3": Licence("Llama 3 Community License", passes_on=("llama3",), note=_OUTPUTS),
    "llama3.1": Licence("Llama 3.1 Community License", passes_on=("llama3.1", "llama3.2", "llama3.3"), note=_LLAMA),
    "llama3.2": Licence("Llama 3.2 Community License", passes_on=("llama3.2", "llama3.3"), note=_LLAMA),
    "llama3.3": Licence("Llama 3.3 Community License", passes_on=("llama3.3",), note=_LLAMA),
    "gemma": Licence(
        "Gemma Terms of Use",
        passes_on=("gemma",),
        note="Models trained on Gemma's outputs are its derivatives: pass its terms and use restrictions on",
    ),
    "openai-terms": Licence("OpenAI Terms of Use", outcome=INCOMPATIBLE, note=_OUTPUTS),
    "anthropic-terms": Licence("Anthropic Commercial Terms", outcome=INCOMPATIBLE, note=_OUTPUTS),
}
ALIASES = {
    "apache": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "mit-license": "mit",
    "bsd": "bsd-3-clause",
    "cc0": "cc0-1.0",
    "cc-zero": "cc0-1.0",
    "odc-by-1.0": "odc-by",
    "odbl-1.0": "odbl",
    "pddl-1.0": "pddl",
    "gpl": "gpl-3.0",
    "openai": "openai-terms",
    "openai-tos": "openai-terms",
    "anthropic": "anthropic-terms",
    "llama-3.1": "llama3.1",
    "llama3.1-community": "llama3.1",
}


def identified(text: str) -> str:
    """The id under which the table has a licence, or the text in lower case with hyphens."""
    plain = re.sub(r"[\s_]+", "-", text.strip().lower()).removeprefix("license:").removesuffix("-only")
    plain = plain.removesuffix("-or-later")
    short = re.sub(r"^(cc-by(?:-nc)?(?:-sa|-nd)?)$", r"\1-4.0", plain)
    return ALIASES.get(plain, short)


def together(licences: Iterable[str | None]) -> str:
    """The SPDX expression under which rows of several licences may be used; "" for none."""
    stated = (part for licence in licences if licence for part in licence.split(" AND "))
    parts = sorted({re.sub(r"^\((.*)\)$", r"\1", part) for part in stated})
    return " AND ".join(f"({part})" if " OR " in part and len(parts) > 1 else part for part in parts)


def verdict(used: Mapping[str, Iterable[str]], release: str) -> Verdict:
    """What the licences in `used` (by whom: sources, the base model) mean for a release under `release`; strictest wins."""
    findings = tuple(finding(licence, tuple(sorted(set(users))), release) for licence, users in sorted(used.items()))
    strictest = max(findings, key=lambda one: STRICTNESS.index(one.outcome), default=None)
    known = [one.commercial for one in findings]
    return Verdict(
        release=identified(release),
        outcome=strictest.outcome if strictest else REVIEW,
        reason=strictest.reason if strictest else "no source states a licence",
        # One "no" settles it, whatever is unknown.
        commercial=False if False in known else None if None in known or not known else True,
        share_alike=tuple(one.licence for one in findings if one.share_alike),
        attribution=tuple(sorted({user for one in findings if one.attribution for user in one.used_by})),
        findings=findings,
    )


def finding(expression: str, users: tuple[str, ...], release: str) -> Finding:
    """What a licence means, or an SPDX expression: of `A AND B` the strictest part, of `A OR B` the mildest."""
    parts = [_choice(part, users, release) for part in re.split(r"\s+AND\s+", expression)]
    strictest = max(parts, key=lambda one: STRICTNESS.index(one.outcome))
    if len(parts) == 1:
        return strictest
    commercial = [one.commercial for one in parts]
    return Finding(
        licence=" AND ".join(one.licence for one in parts),
        name=" and ".join(one.name for one in parts),
        outcome=strictest.outcome,
        reason=strictest.reason,
        commercial=False if False in commercial else None if None in commercial else True,
        attribution=any(one.attribution for one in parts),
        share_alike=any(one.share_alike for one in parts),
        used_by=users,
    )


def _choice(expression: str, users: tuple[str, ...], release: str) -> Finding:
    parts = [_single(part, users, identified(release)) for part in re.split(r"\s+OR\s+", expression.strip(" ()"))]
    return min(parts, key=lambda one: STRICTNESS.index(one.outcome))


def _single(text: str, users: tuple[str, ...], release: str) -> Finding:
    known = LICENCES.get(identified(text))
    if known is None:
        stated = f"'{text.strip()}' is not in the table of licences" if text.strip() else "no licence is stated"
        reason = f"{stated}: read its terms, and state an SPDX id in conf/data"
        return Finding(identified(text) or "none", "unknown", REVIEW, reason, None, True, False, users)
    outcome, reason = known.outcome, f"{known.name}: {known.note}" if known.note else known.name
    if known.outcome == PERMITTED and known.passes_on:
        same = release in known.passes_on
        outcome = PERMITTED if same else INCOMPATIBLE
        reason = (
            reason if same else f"{reason}; it asks for a release under {' or '.join(known.passes_on)}, not {release}"
        )
    elif known.outcome == PERMITTED:
        reason = f"{known.name}: any release" + (" that names the source" if known.attribution else "")
    return Finding(
        licence=identified(text),
        name=known.name,
        outcome=outcome,
        reason=reason,
        commercial=known.commercial,
        attribution=known.attribution,
        share_alike=bool(known.passes_on) and known.outcome == PERMITTED,
        used_by=users,
    )
