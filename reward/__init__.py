"""How good an answer is.

Owns: extraction, rules, judge prompt and verdict, hybrid reward, overlong shaping.  Hands on: `Score` records, one per
response.  May import: `actors`, `curriculum`; ray and vllm only in `judge_actor.py` and `judge_engine.py`.
Start reading at: `hybrid.py`.
"""
