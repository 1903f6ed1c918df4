"""The choice of a Julia in the user's configuration file."""

import json
import os
import re
from pathlib import Path

import pytest

from subdeq_plugin.bridge import choice
from subdeq_plugin.bridge.config import Route, config_file, find_route, forget_choice, save_choice, saved_choice
from subdeq_plugin.errors import BridgeError

from .fakes import julia, theirs


def test_where_the_choice_is_saved(monkeypatch, tmp_path):
    assert config_file({"SUBDEQ_CONFIG": "/a/b.json", "XDG_CONFIG_HOME": "/c"}) == Path("/a/b.json")
    assert config_file({"XDG_CONFIG_HOME": "/c"}) == Path("/c/subdeq/config.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_file({}) == tmp_path / ".config" / "subdeq" / "config.json"


def test_a_choice_is_saved_and_forgotten(environ, tmp_path):
    environ["SUBDEQ_CONFIG"] = str(tmp_path / "deep" / "er" / "config.json")
    assert saved_choice(environ) is None and forget_choice(environ) is False
    route = save_choice(*julia(tmp_path, "saved"), environ)
    assert route == saved_choice(environ) == find_route(environ) == Route("saved", *julia(tmp_path, "saved"))
    assert os.listdir(tmp_path / "deep" / "er") == ["config.json"]
    assert forget_choice(environ) is True
    assert saved_choice(environ) is None and os.listdir(tmp_path / "deep" / "er") == []


def test_what_else_is_in_the_file_stays(environ, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"colour": "red", "julia": {"note": "of mine"}}')
    save_choice(*julia(tmp_path, "saved"), environ)
    content = json.loads(path.read_text())
    assert content["colour"] == "red" and content["julia"]["note"] == "of mine"
    assert content["julia"]["executable"] == str(tmp_path / "saved" / "julia")
    assert forget_choice(environ) is True
    assert json.loads(path.read_text()) == {"colour": "red"}


def test_what_cannot_be_used_is_not_saved(environ, tmp_path):
    exe, project = julia(tmp_path, "saved")
    with pytest.raises(BridgeError, match=r"^--use-julia is .*absent', which does not exist"):
        save_choice(tmp_path / "absent", project, environ)
    with pytest.raises(BridgeError, match=r"^--project is .*absent', which is not a folder"):
        save_choice(exe, tmp_path / "absent", environ)
    assert not (tmp_path / "config.json").exists()


def test_a_saved_julia_that_has_gone_is_an_error(environ, tmp_path):
    exe, project = julia(tmp_path, "saved")
    environ |= theirs(tmp_path)
    save_choice(exe, project, environ)
    exe.unlink()
    with pytest.raises(BridgeError, match=r'^"executable" in .*config\.json is .* does not exist'):
        find_route(environ)
    assert forget_choice(environ) is True
    assert find_route(environ).source == "juliacall"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"), "is not JSON"),
        ("[]", "must hold"),
        ('{"julia": "exe"}', "must hold"),
        ('{"julia": null}', "must hold"),
        ('{"julia": {"executable": 3, "project": "p"}}', "must hold"),
    ],
)
def test_a_damaged_file_is_an_error_and_left_alone(environ, tmp_path, text, message):
    path = tmp_path / "config.json"
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(content)
    attempts = [saved_choice, find_route, forget_choice, lambda e: save_choice(*julia(tmp_path, "saved"), e)]
    for attempt in attempts:
        with pytest.raises(BridgeError, match=f"^{re.escape(str(path))} {message}.*Correct or delete it"):
            attempt(environ)
    assert path.read_bytes() == content


def test_a_section_without_a_choice_is_none(environ, tmp_path):
    (tmp_path / "config.json").write_text('{"julia": {"note": "of mine"}}')
    assert saved_choice(environ) is None


def test_a_saved_half_is_an_error(environ, tmp_path):
    (tmp_path / "config.json").write_text('{"julia": {"executable": "julia"}}')
    with pytest.raises(BridgeError, match=r'"project" in .*config\.json is not set'):
        saved_choice(environ)


def test_a_failed_save_leaves_what_was_there(environ, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    environ["SUBDEQ_CONFIG"] = str(folder / "config.json")
    save_choice(*julia(tmp_path, "saved"), environ)
    before = (folder / "config.json").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(choice.os, "replace", full)
    with pytest.raises(BridgeError, match=r"config\.json cannot be written: disk full\. Set SUBDEQ_CONFIG"):
        save_choice(*julia(tmp_path, "other"), environ)
    assert (folder / "config.json").read_bytes() == before
    assert os.listdir(folder) == ["config.json"]


def test_a_folder_in_the_place_of_the_file_is_an_error(environ, tmp_path):
    with pytest.raises(BridgeError, match="cannot be read"):
        saved_choice({**environ, "SUBDEQ_CONFIG": str(tmp_path)})
