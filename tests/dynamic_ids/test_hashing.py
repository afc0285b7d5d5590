"""Ids of strings in plain Python."""

from string_id_checks import check_strings


def test_strings_have_known_ids():
    check_strings()
