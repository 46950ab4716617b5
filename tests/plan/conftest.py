"""Property tests check values. They have no deadline, so that they do not fail on a busy machine."""

from hypothesis import settings

settings.register_profile("plan", deadline=None)
settings.load_profile("plan")
