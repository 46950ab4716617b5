from __future__ import annotations

import pytest

from benchmarks import environment


@pytest.fixture
def git(monkeypatch):
    """Git's answers by its subcommand; other subcommands fail."""
    answers: dict[str, str] = {}
    monkeypatch.setattr(environment, "_answer", lambda program, word, *_: answers.get(word))
    return answers


@pytest.mark.parametrize(("status", "uncommitted"), [("", False), (" M README.md", True)])
def test_the_commit_from_git_takes_precedence(git, monkeypatch, status, uncommitted):
    git.update({"rev-parse": "4eb4535", "status": status})
    monkeypatch.setenv("DUET_COMMIT", "another one")
    found = environment.environment()
    assert (found["commit"], found["uncommitted_changes"]) == ("4eb4535", uncommitted)


@pytest.mark.parametrize("named", ["4eb4535", None])
def test_a_copy_without_git_reports_the_commit_variable(git, monkeypatch, named):
    monkeypatch.delenv("DUET_COMMIT", raising=False)
    if named:
        monkeypatch.setenv("DUET_COMMIT", named)
    found = environment.environment()
    assert (found["commit"], found["uncommitted_changes"]) == (named, None)
