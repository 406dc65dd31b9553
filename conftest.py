"""What every test of the project shares."""

from hypothesis import settings

# A loaded machine must not fail an example for being slow; `pytest-timeout` catches what hangs.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
