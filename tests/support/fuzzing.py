"""Fuzzing: how many examples a test tries, in the short mode of every run and in the long mode (`FUZZ_LONG=1`)."""

import os

from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("FUZZ_LONG"))
"""Whether to run the long mode: many more examples, other ones each time."""

DETERMINISTIC = os.environ.get("CI") == "true" and not LONG
"""Whether every run tries the same examples, so that CI fails only because of a change."""


def examples(short: int, long: int, *, steps: int = 50) -> settings:
    """Return the settings of a test that tries `short` examples, or `long` ones in the long mode.

    Args:
        short: Number of examples of the short mode.
        long: Number of examples of the long mode.
        steps: Maximum number of steps of an example of a state machine.
    """
    return settings(
        max_examples=long if LONG else short,
        stateful_step_count=steps,
        # Examples share the fixtures of their test, and a busy machine is slow.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
