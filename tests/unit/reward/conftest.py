"""Property tests run without a deadline: the machine may be busy, and time is the subject of test_linear_time.py."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
