"""Simple rules for TREC-6, SST-2 and Subj, written after a look at training rows only.

Each is a voter: a regular expression and the label that a text has where it is found.
"""

from __future__ import annotations

import re

TREC6 = {
    "how many": (r"^how (many|much|long|far|old|tall|fast|big|large|often|deep|high|hot|cold|late)\b", "number"),
    "quantity": (r"\b(how many|how much|population|percentage|average|temperature|salary|cost|number of)\b", "number"),
    "when": (
        r"^(when|what (year|date|day|time|month)|in what year|what century)\b|\b(year|date) (did|was|is)\b",
        "number",
    ),
    "who": (r"^(who|whose|whom)\b", "human"),
    "person": (
        r"\b(actor|actress|author|president|inventor|singer|wrote|invented|played|painter|star(red|s)?|leader"
        r"|coach|king|queen|person|man|woman)\b",
        "human",
    ),
    "company": (r"\b(company|team|band|organization|university)\b", "human"),
    "where": (r"^where\b", "location"),
    "place": (
        r"\b(city|country|state|continent|river|island|mountain|capital|located|ocean|lake|street|planet|countries|states"
        r"|cities|peak)\b",
        "location",
    ),
    "stands for": (r"\b(stand(s)? for|abbreviat\w+|acronym|short for|full form)\b", "abbreviation"),
    "capitals": (r"\b[A-Z]{2,}\b.*\b(mean|stand)", "abbreviation"),
    "what is": (r"^what (is|are) (a|an|the)? ?\w+( \w+)? \?", "description"),
    "why": (r"^why\b", "description"),
    "how": (r"^how (do|does|did|can|is|are|to|was|were|would|could)\b", "description"),
    "meaning": (r"\b(mean|meaning|definition|define|origin|difference|cause[sd]?|purpose|describe)\b", "description"),
    "thing": (
        r"\b(what|which|name)\b.*\b(animal|color|colour|sport|food|drink|film|movie|book|novel|song|game|language|disease"
        r"|instrument|plant|bird|dog|breed|fruit|product|car|currency|religion|word|term|brand|kind|type)s?\b",
        "entity",
    ),
    "name": (r"^(name|what kind|what type|which)\b", "entity"),
}

SST2 = {
    "praise": (r"\b(good|great|best|excellent|wonderful|brilliant|superb|masterpiece|perfect\w*)\b", "positive"),
    "delight": (r"\b(fun|funny|enjoyable|entertaining|delight\w*|charm\w*|hilarious|engaging|pleas\w+)\b", "positive"),
    "heart": (r"\b(moving|touching|heart\w*|poignant|warm|tender|love\w*|sweet|beautiful\w*|powerful)\b", "positive"),
    "mind": (r"\b(smart|clever|intelligent|fascinating|compelling|fresh|original|rich|deep|thoughtful)\b", "positive"),
    "well": (r"\b(well|worth|worthy|solid|strong|impressive|refreshing|remarkabl\w+|terrific|rare)\b", "positive"),
    "bad": (r"\b(bad|worst|awful|terrible|horrible|poor\w*|lousy|mess|stupid|dumb|ridiculous|lame)\b", "negative"),
    "dull": (r"\b(dull|boring|bore|tedious|slow|flat|lifeless|bland|tired|stale|predictable|uninspired)\b", "negative"),
    "lack": (r"\b(lack\w*|fail\w*|without|hardly|barely|never|too|nothing|neither|unfortunately|only)\b", "negative"),
    "not": (r"\b(not|n't|no|isn't|doesn't|can't|won't)\b", "negative"),
    "waste": (
        r"\b(waste\w*|wrong|problem|disappoint\w*|silly|pretentious|contrived|clich\w+|shallow|empty)\b",
        "negative",
    ),
    "instead": (r"\b(instead|supposed|should have|could have|would have|wish|least|less|if only)\b", "negative"),
    "exclaims": (r"!", "positive"),
}

# Written once, after the label models were done and before any of them had seen a vote on Subj.
SUBJ = {
    "film": (r"\b(film|movie|picture|flick|cinema|screen|documentary|comedy|thriller|drama)s?\b", "subjective"),
    "maker": (r"\b(director|filmmaker|performance|acting|cast|script|screenplay|dialogue|direction)s?\b", "subjective"),
    "you": (r"\b(you|your|i|i'm|me|we|us|our)\b", "subjective"),
    "praise": (r"\b(funny|good|great|best|fun|entertaining|compelling|fascinating|charming|moving)\b", "subjective"),
    "blame": (r"\b(bad|dull|bland|boring|silly|predictable|tedious|flat|fails|mess|worst|lacks)\b", "subjective"),
    "hedge": (r"\b(too|enough|never|quite|rather|almost|ever|just|still|much|really|perhaps)\b", "subjective"),
    "it is": (r"^(it's|it is|there's|this is|that's|an?\b)", "subjective"),
    "dash": (r"--| - |!|\?", "subjective"),
    "kin": (
        r"\b(father|mother|son|daughter|brother|sister|wife|husband|family|girlfriend|boyfriend|parents)s?\b",
        "objective",
    ),
    "happens": (
        r"\b(discovers?|finds?|decides?|meets?|falls|kills?|killed|murder|returns?|learns?|begins?|becomes?|moves?|lives)\b",
        "objective",
    ),
    "he": (r"\b(he|she|his|her|him|they|their)\b", "objective"),
    "where": (r"\b(town|city|new york|los angeles|village|school|house|country|island|london|america)\b", "objective"),
    "when": (r"\b(when|after|before|until|years?|night|day|one|while|during)\b", "objective"),
    "job": (
        r"\b(police|cop|detective|agent|doctor|soldier|war|army|student|teacher|lawyer|gang|drug)s?\b",
        "objective",
    ),
    "name": (r"\(", "objective"),
}


def votes(rules: dict[str, tuple[str, str]], texts: list[str]) -> dict[str, list[str | None]]:
    """Return what each rule says of each text, None where it keeps silent."""
    found: dict[str, list[str | None]] = {}
    for name, (pattern, label) in rules.items():
        # Capitals count only where a pattern asks for them.
        flags = 0 if "[A-Z]" in pattern else re.IGNORECASE
        seen = re.compile(pattern, flags)
        found[name] = [label if seen.search(text) else None for text in texts]
    return found
