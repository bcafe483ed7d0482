"""Stored scores are kept by the version of the rules, so the version must change whenever a rule decides otherwise."""

import hashlib
import json
from pathlib import Path

from reward.config import RuleSet
from reward.kind import kind_of
from reward.rules import RULES_VERSION, apply_rules

DATA = Path(__file__).parents[2] / "data"
OUTCOMES = {1: "e59245c7e6586f49"}
"""Digest of the outcomes of all oracle rows, by version."""


def digest_of_outcomes():
    digest = hashlib.sha256()
    for name in ("answers_dev.jsonl", "strict_dev.jsonl", "released_dev.jsonl"):
        for line in (DATA / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kind = kind_of(row.get("data_source") or row["kind"])
            for rules in RuleSet:
                found = apply_rules(rules, kind, row["response"], [str(row["ground_truth"])])
                digest.update(f"{found.answer} {found.accepted} {found.truths}\n".encode())
    return digest.hexdigest()[:16]


def test_the_version_of_the_rules_is_that_of_their_outcomes():
    assert OUTCOMES[RULES_VERSION] == digest_of_outcomes(), (
        "the rules decide a row otherwise: raise RULES_VERSION in reward/rules.py and add the digest here"
    )
