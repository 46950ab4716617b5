from __future__ import annotations

import pytest

from benchmarks import environment


@pytest.fixture
def git(monkeypatch):
    """What git answers, by its first word; a word that is not there gets no answer."""
    answers: dict[str, str] = {}
    monkeypatch.setattr(environment, "_answer", lambda program, word, *_: answers.get(word))
    return answers


@pytest.mark.parametrize(("status", "uncommitted"), [("", False), (" M README.md", True)])
def test_git_knows_the_commit_best(git, monkeypatch, status, uncommitted):
    git.update({"rev-parse": "4eb4535", "status": status})
    monkeypatch.setenv("DUET_COMMIT", "another one")
    found = environment.environment()
    assert (found["commit"], found["uncommitted_changes"]) == ("4eb4535", uncommitted)


@pytest.mark.parametrize("named", ["4eb4535", None])
def test_a_copy_without_git_says_what_it_was_told(git, monkeypatch, named):
    monkeypatch.delenv("DUET_COMMIT", raising=False)
    if named:
        monkeypatch.setenv("DUET_COMMIT", named)
    found = environment.environment()
    assert (found["commit"], found["uncommitted_changes"]) == (named, None)
