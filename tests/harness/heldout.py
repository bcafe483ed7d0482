"""Held-out numbers as tests make them up."""

from cluster.run.heldout_statistics import Cell


def a_cell(accuracy: float, *, low: float, high: float, num_questions: int = 4) -> Cell:
    """The numbers of some questions, all of whose right answers the rule found."""
    return Cell(
        num_questions=num_questions, accuracy=accuracy, low=low, high=high, pass_at={}, rule=accuracy,
        judge_saved=0.0, unknown=0.0,
    )  # fmt: skip
