"""Benchmarks and studies run by the command that their heads name."""

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
    f"experiments.{path.parent.name}.{path.stem}"
    for folder in ("benchmarks", "miniature", "studies")
    for path in (ROOT / "experiments" / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()  # what is not run serves those that are
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_in_a_scripts_head_runs_it(name, monkeypatch, capsys):
    script = importlib.import_module(name)
    assert f"    python -m {name}" in script.__doc__ or f" python -m {name} " in script.__doc__.split("\n\n")[1]
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out
    # A wrong request is one line, as of the command line.
    assert "sys.exit(in_one_line(main))" in pathlib.Path(script.__file__).read_text()


def test_no_document_runs_a_script_by_its_path():
    for path in [*ROOT.glob("*.md"), *(ROOT / "experiments").rglob("*.py"), *(ROOT / "launch").glob("*")]:
        if path.is_file():
            assert "python experiments/" not in path.read_text(), path
