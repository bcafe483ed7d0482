"""From scored groups to new weights.

Owns: advantages, loss, log-probabilities, shared prefix, packing, the ZeRO-3 engine, checkpoints.
Hands on: weights to `actors`.
May import: `actors`, `curriculum`.
Start reading at: `microbatch.py`, then `engine.py`.
"""
