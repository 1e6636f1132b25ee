"""Chat where something is short, or shared: a full disk, memory for typed models, others who are being answered."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import device as hardware
from core.chat.prepare import RESERVE
from core.chat.protocol import Failed, Piece, Sampling
from core.device_use import Use
from core.models.builtin import builtin_directory
from tests.pages.test_chat import answers, chat, html
from tests.pages.test_chat_more import ask, pair, service  # noqa: F401 - fixtures

SMOLLM2 = 134_515_008


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_nothing_is_asked_voted_or_saved_and_that_is_said(
    pair: tuple[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = chat(*pair)
    app.toggle(key="chat_blind").set_value(True).run()
    app.number_input(key="chat_max_tokens").set_value(4).run()
    with monkeypatch.context() as patch:
        patch.setattr("core.chat.transcripts.Transcript.append", full)
        app.chat_input(key="chat_prompt").set_value("hello").run()
        assert not app.exception
        assert "Not asked: The disk is full." in html(app)
        assert answers(app) == []
    app.button(key="chat_retry").click().run()
    assert not app.exception
    assert len(answers(app)) == 2
    assert "Not asked" not in html(app)

    with monkeypatch.context() as patch:
        patch.setattr("core.chat.transcripts.Transcript.append", full)
        app.button(key="chat_vote_1_1_A").click().run()
        assert not app.exception
        assert "Not counted: The disk is full." in html(app)
        assert "You chose" not in html(app)
        app.button(key="chat_again").click().run()
        assert not app.exception
        assert "Not asked: The disk is full." in html(app)
        assert len(answers(app)) == 2  # what was said stays
        assert "Not counted: The disk is full." in html(app)  # until it is
        patch.setattr("core.chat.prompts.write_atomic", full)
        app.button(key="chat_save_prompt").click().run()
        assert not app.exception
        assert "disk is full" in app.toast[0].value
    app.button(key="chat_vote_1_1_A").click().run()
    assert "You chose A." in html(app)
    assert "Not counted" not in html(app)


def test_a_worker_that_cannot_be_started_for_want_of_room_fails_each_side_in_words(
    pair: tuple[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.chat.client._log", full)
    app = ask(chat(*pair), "hello")
    assert all("esp-answer-failed" in body and "The disk is full." in body for body in answers(app))


def test_prepare_counts_what_typed_models_weigh_and_says_what_it_cannot_count(
    service: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, nowhere = str(builtin_directory()), "/nowhere/model"
    found = service.talks.room([(folder, "typed"), (nowhere, "Lost <i>one")])
    assert (found.need, found.unknown) == (4 * SMOLLM2, ("Lost <i>one",))

    real = hardware.info
    free = RESERVE["cpu"] + 4 * SMOLLM2 - 1
    monkeypatch.setattr("core.device.info", lambda device: replace(real(device), free_bytes=free))
    app = chat("dense:builtin:smollm2-135m-instruct", folder)
    app.toggle(key="chat_stage").set_value(True).run()
    app.button(key="chat_prepare").click().run()
    assert not app.exception
    assert "Not prepared: these models need 1.1 GB more, but 538 MB are free." in html(app)
    assert not service.chat_client().status().running

    monkeypatch.setattr("core.talks.sources.params", lambda source: 1 if source.key == folder else None)
    monkeypatch.setattr("core.talks.Talks.prepare", lambda *_: iter(()))
    app.button(key="chat_prepare").click().run()
    assert "The size of SmolLM2 135M Instruct, dense is not known: memory was checked without it." in html(app)


def test_the_size_of_what_is_typed_is_that_of_its_files_or_its_config_and_else_not_known(
    pair: tuple[str, str],  # noqa: F811
    service: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from core.models.sizes import Architecture

    files = (Path(pair[0]) / "model.safetensors").stat().st_size
    assert service.talks.file_bytes(pair[0]) == files
    assert service.talks.file_bytes("somebody/unheard-of") is None  # offline, and not in the hub's cache
    config = tmp_path / "snapshots" / "0a1b2c" / "config.json"
    config.parent.mkdir(parents=True)
    shutil.copy(Path(pair[0]) / "config.json", config)
    monkeypatch.setattr("core.models.catalogue._cached_config", lambda *_: config)
    params = Architecture.from_config(json.loads(config.read_text())).params
    assert service.talks.file_bytes("somebody/known") == 4 * params
    assert f"{4 * params / 1e6:.0f} MB" in html(chat("somebody/known"))
    monkeypatch.setattr("core.talks.Talks.file_bytes", lambda *_: None)
    assert "parameters · size of its files not known" in html(chat("somebody/known"))


def test_freeing_memory_and_moving_ask_first_where_others_are_being_answered(
    pair: tuple[str, str],  # noqa: F811
    service: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = service.chat_client()
    monkeypatch.setattr("core.talks.Talks.at_work", lambda self: "a run" if client.device != "cpu" else None)
    app = chat(*pair)
    theirs = client.generate(pair[0], [("user", "hello")], Sampling(max_tokens=400), owner="another tab")
    while not isinstance(event := next(theirs), Piece):
        assert not isinstance(event, Failed)
    use = Use("cpu")
    with use.alone() as alone:  # their answer is under way, and stays so
        assert alone
        pid = client.status().pid
        for key in ("chat_free", "chat_to_cpu"):
            app.button(key=key).click().run()
            assert not app.exception
            assert "Somebody else is being answered: 1 answer would end." in html(app)
            assert (client.status().pid, client.device) == (pid, "auto")
        app.button(key="chat_to_cpu_all").click().run()
        assert not app.exception
        assert "Somebody else" not in html(app)
        assert "Answers are computed on the CPU." in html(app)
        assert not client.status().running
        end = list(theirs)[-1]
        assert isinstance(end, Failed)
        assert "Somebody else ended all answers" in end.message
        app.button(key="chat_to_gpu").click().run()  # nobody is there any more: no question
        assert client.device == "auto"
    use.close()
