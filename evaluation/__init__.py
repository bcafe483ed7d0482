"""Quality of a model: benchmarks, reports, reasoning behaviours, and the distillation of demonstrations.

Owns: benchmark items, answers and their store, statistics, reports, grounding.  Hands on: reports and SFT data.
May import: `reward`, `actors`, `curriculum`; ray only in `ray_replicas.py`.  Start reading at: `evaluate.py`.
"""
