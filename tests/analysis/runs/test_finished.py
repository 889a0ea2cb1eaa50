"""Messages of a finished run when it is opened."""

from analysis.runs.finished import can_be_kept


def test_a_run_that_cannot_be_written_to_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    said: list[str] = []
    assert not any([can_be_kept(tmp_path, said.append) for _ in range(3)])
    assert said == [f"{tmp_path} cannot be written to: the results are not saved"]
