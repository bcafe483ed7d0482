"""From a task to a group of answers.

Owns: the prompt, the vLLM engine, trajectories, the receiving side of weight updates.  Passes on: `Group` to `reward`.
May import: `curriculum`.  Start reading at: `trajectory.py`, then `rollout.py`.
"""
