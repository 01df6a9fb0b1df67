"""The fixtures of tests that train."""

from training_fixtures import *  # noqa: F403
