"""Ids of strings by the native kernel."""

from string_id_checks import check_strings


def test_strings_have_known_ids():
    check_strings()
