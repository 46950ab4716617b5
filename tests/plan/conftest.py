"""Property tests are about values: a busy machine must not fail them by their deadline."""

from hypothesis import settings

settings.register_profile("plan", deadline=None)
settings.load_profile("plan")
