"""Who runs where, in what order.

Owns: the recipe, placement, the training loop, resume, supervision, metrics, the command line.  Hands on: a run folder.
May import: every other package; nobody imports it.  Start reading at: `loop.py`, then `config.py`.
"""
