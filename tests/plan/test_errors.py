from __future__ import annotations

import pickle

from duet_server.plan import SettingsError


def test_is_one_sentence_with_field_value_and_expectation():
    error = SettingsError("compression.reduction", 1.5, "a number from 0 to 0.97")
    assert str(error) == "compression.reduction is 1.5, expected a number from 0 to 0.97."
    assert (error.field, error.value, error.expected) == ("compression.reduction", 1.5, "a number from 0 to 0.97")


def test_is_a_value_error_that_survives_pickling():
    error = pickle.loads(pickle.dumps(SettingsError("boundaries", [3, 2], "ascending ones")))
    assert isinstance(error, ValueError)
    assert (str(error), error.value) == ("boundaries is [3, 2], expected ascending ones.", [3, 2])


def test_stays_short_whatever_the_value():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert len(str(SettingsError("compression.preset", "x" * 10**6, "a preset"))) < 150
    assert str(SettingsError("compression", nested, "an object")) == "compression is [[[[...]]]], expected an object."
