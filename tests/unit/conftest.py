"""Property tests run without a deadline: the machine may be busy, and time is the subject of test_linear_time.py.

A fuzz run is the same tests with many more examples: HYPOTHESIS_PROFILE=fuzz.
"""

import os

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "no deadline"))
