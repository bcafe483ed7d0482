"""The driver of a run: which process runs where, and in what order things happen.

Owns: the recipe, placement, the training loop, resume, supervision, metrics, the command line.  Produces: a run folder.
May import: every other package; no other package imports it.  Start reading at: `loop.py`, then `recipe/config.py`.
"""
