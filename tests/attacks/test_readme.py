from tests.attacks.readme import README, describe, render, scripts


def test_readme_has_all_scripts() -> None:
    assert README.read_text(encoding="utf-8") == render()
    assert len(scripts()) >= 25


def test_every_script_says_what_came_of_it() -> None:
    for script in scripts():
        assert all(describe(script))
