"""`farthing store` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farthing.cli import main
from farthing.testing import fake_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARTHING_STORE", str(tmp_path / "kept"))
    for version in "12":
        fake_model(seed=int(version), name="net", version=version).save(tmp_path / f"net-{version}")
    return tmp_path


def test_the_whole_way(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "add", "net-1", "--activate"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["store", "add", "net-2"]) == 0
    assert "not in use yet: `farthing store activate net 2`" in capsys.readouterr().err
    assert main(["store", "activate", "net", "2"]) == 0
    assert main(["store", "list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(line["version"], line["current"], line["previous"]) for line in lines] == [
        ("1", False, True),
        ("2", True, False),
    ]
    assert main(["store", "rollback", "net"]) == 0
    assert capsys.readouterr().out == "net 1 is current again\n"
    assert main(["store", "gc", "--keep", "0"]) == 0
    assert capsys.readouterr().out == "0.0 kB freed\n"
    assert main(["store", "verify"]) == 0
    assert main(["store", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:5] for row in rows[3:]] == [
        ["net", "1", "current", "8.2", "kB"],
        ["net", "2", "previous", "8.2", "kB"],
    ]
    assert (home / "kept" / "net" / "current" / "manifest.json").is_file()


def test_damage_is_exit_code_1_and_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["store", "add", "net-1", "--activate", "--store", "other"])
    main(["store", "add", "net-2", "--activate", "--store", "other"])
    (home / "other" / "net" / "current" / "model.json").unlink()
    capsys.readouterr()
    assert main(["store", "verify", "net", "--store", "other"]) == 1
    assert "`farthing store rollback net`" in capsys.readouterr().out
    main(["store", "list", "--store", "other"])
    assert "damaged, in quarantine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "is not a store of models: `farthing store add` makes one"),
        (["add", "net-3"], "net-3 does not exist: did you mean 'net-"),
        (["add", "net-1", "--version", "a/b"], "give another version (--version)"),
        (["add", "net-1", "--limit-mb", "0.001"], "may take are in use"),
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(
            (["add", "net-1", "--limit-mb", size], f"a size in megabytes is above 0, not {size}")
            for size in ("0", "-1", "nan", "inf", "much")
        ),
        *((["gc", "--keep", count], f"a number from 0, not {count}") for count in ("-1", "1.5", "all")),
    ],
)
def test_numbers_that_are_none_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["store", *words])
    assert end.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_to_type_next_names_the_store_that_was_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["store", "add", "net-1", "--store", "an other"])
    assert "`farthing store activate net 1 --store 'an other'`" in capsys.readouterr().err
