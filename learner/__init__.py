"""From scored groups to new weights.

Owns: advantages, loss, log-probabilities, shared prefix, packing, the ZeRO-3 engine, checkpoints.
Passes on: weights to `actors`.
May import: `actors`, `curriculum`.
Start reading at: `batch/microbatch.py`, then `engine.py`.
"""
