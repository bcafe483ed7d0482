"""Hostile input for every command: recipes, data, answers to score, judge reports, endpoints that lie, run folders.

`make fuzz [SEED=n]` runs it; `python -m tests.fuzz --help` says more. Every input is a function of
(seed, target, index).
"""
