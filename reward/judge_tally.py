"""How often a judge was asked, and why it gave no verdict: what a command says at its end."""

from __future__ import annotations

from collections import Counter

from curriculum.errors import RunFailed

NO_VERDICT = "no verdict in its output"
TOO_LONG = "the question is longer than the judge takes"


class JudgeTally:
    """Questions to one judge, each counted once, with the reason where it has no verdict."""

    def __init__(self) -> None:
        self.num_questions = 0
        self.failures: Counter[str] = Counter()
        """Questions without a verdict by reason."""

    def add(self, failure: str | None) -> None:
        """Count a question; `failure` says why it has no verdict, None where it has one."""
        self.num_questions += 1
        if failure is not None:
            self.failures[failure] += 1

    def note(self) -> str | None:
        """Return one line about the questions without a verdict, with the commonest reason; None without any."""
        if not self.failures:
            return None
        reason, count = self.failures.most_common(1)[0]
        return (
            f"{self.failures.total()} of {self.num_questions} questions to the judge have no verdict; most often, "
            f"{count} times: {reason}"
        )

    def check(self) -> None:
        """Check that the judge has decided something, if it was asked.

        Raises:
            RunFailed: it has not.
        """
        if self.num_questions and self.failures.total() == self.num_questions:
            raise RunFailed(f"{self.note()}; correct what it says about --judge, or leave the judge out")
