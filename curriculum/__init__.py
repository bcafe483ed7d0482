"""Which question next.

Owns: tasks, data files, phases, difficulty, the retrospective pool, leases.  Hands on: `TaskLease` to `actors`.
May import: nothing of this project.  Start reading at: `task.py`, then `coordinator.py`.
"""
