"""The random resumes: a few of them end alike, and one that cannot is told; thousands are for the command to run."""

from __future__ import annotations

import pytest
import resume


def test_killed_fits_end_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main(["--cases", "10"]) == 0
    assert "10 fits killed" in capsys.readouterr().out
    assert resume.main(["--case", "3"]) == 0
    assert capsys.readouterr().out.startswith("Case(optimizer=")


def test_a_plugin_that_forgets_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume.Schedule, "load_state_dict", lambda self, state: None)
    with pytest.warns(UserWarning, match="the state of plugin 'schedule' was not put back as it was"):
        assert resume.main(["--cases", "10"]) == 1
    assert "differences, the first: " in capsys.readouterr().out


def test_the_draws_reach_every_setting() -> None:
    cases = [resume.drawn(number) for number in range(1000)]
    assert {case.optimizer for case in cases} == set(resume.OPTIMIZERS)
    assert {case.scheduler for case in cases} == set(resume.SCHEDULERS)
    assert {len(case.kills) for case in cases} == {1, 2, 3, 4}
    assert {case.accumulate for case in cases} == {1, 2, 3}
    assert {case.batch_size for case in cases} >= {None, 1, 9}
    for flag in ("shuffle", "drop_last", "norm", "val", "noisy"):
        assert {getattr(case, flag) for case in cases} == {False, True}
