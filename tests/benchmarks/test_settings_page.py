"""docs/configuration.md is made from the declarations of the settings."""


def test_the_page_is_up_to_date(load):
    script = load("settings_page")
    text = script.PAGE.read_text("utf-8")
    assert script.write(text) == text, "run make docs"
    assert text.count("<!-- settings: ") == len(script.tables())
    assert script.write(text.replace("| Optimiser steps. |", "| Something else. |")) == text
