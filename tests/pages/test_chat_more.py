"""Chat beyond one prompt: settings, asking again, blind votes, reading closer, what is kept, the stage."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.protocol import Guess, TokenScore
from core.service import close_service, get_service
from pages._parts import chat_choose, chat_lens, chat_view
from pages._parts.chat_view import answer_html
from tests.pages.test_chat import HOSTILE, answers, chat, html, made

DENSE = "dense:builtin:smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def service(home: Any) -> Iterator[Any]:
    """The process's service on this test's own home, its queue at rest."""
    made_now = get_service()
    made_now.pause()
    yield made_now
    close_service()


@pytest.fixture
def pair(tiny_folder: Any, tmp_path: Path) -> tuple[str, str]:
    """Two models that answer in characters."""
    folders = [tiny_folder(name, max_position_embeddings=512, seed=seed) for seed, name in enumerate(("one", "two"))]
    for folder in folders:
        shutil.move(folder, tmp_path / f"{folder.name}-model")
    return str(tmp_path / "one-model"), str(tmp_path / "two-model")


def ask(app: AppTest, prompt: str, tokens: int = 6) -> AppTest:
    if app.number_input(key="chat_max_tokens").value != tokens:
        app.number_input(key="chat_max_tokens").set_value(tokens).run()
    app.chat_input(key="chat_prompt").set_value(prompt).run()
    assert not app.exception
    return app


def lines(home: Path, kind: str) -> list[dict[str, Any]]:
    (file,) = (home / "chat").glob("*.jsonl")
    found = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_all_settings_reach_every_side_and_the_file(pair: tuple[str, str], home: Path) -> None:
    app = chat(*pair)
    app.text_area(key="chat_system").set_value("Be brief.").run()
    app.slider(key="chat_temperature").set_value(0.7).run()
    app.slider(key="chat_top_p").set_value(0.9).run()
    app.number_input(key="chat_seed").set_value(7).run()
    app.text_area(key="chat_stop").set_value("END\n\n\\n\\n").run()
    ask(app, "hello")
    (prompt,) = lines(home, "prompt")
    assert prompt["system"] == "Be brief."
    assert prompt["sampling"] == {
        "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["END", "\n\n"],
    }  # fmt: skip


def test_up_to_four_sides_answer_and_a_side_can_go(pair: tuple[str, str], home: Path) -> None:
    app = chat(*pair)
    for place, key in zip(("chat_third", "chat_fourth"), pair, strict=True):
        app.session_state[place] = key
        app.button(key="chat_add").click().run()
        assert app.selectbox(key=place).value == key
    assert app.button(key="chat_add").disabled
    ask(app, "hello")
    assert len(answers(app)) == 4
    assert app.chat_input(key="chat_prompt").placeholder == "Ask all models"
    app.button(key="chat_remove").click().run()
    assert not app.exception
    assert answers(app) == []  # other sides are another conversation


def test_a_prompt_is_asked_again_edited_and_saved(pair: tuple[str, str], home: Path, service: Any) -> None:
    app = ask(chat(*pair), "hello")
    app.button(key="chat_again").click().run()
    assert not app.exception
    assert len(answers(app)) == 2
    app.text_area(key="chat_edited_1_2").set_value("good <i>day</i>").run()
    app.button(key="chat_ask_edited").click().run()
    assert not app.exception
    assert len(answers(app)) == 2
    assert "good &lt;i&gt;day&lt;/i&gt;" in html(app)
    assert [line["attempt"] for line in lines(home, "prompt")] == [1, 2, 3]
    app.button(key="chat_save_prompt").click().run()
    assert service.talks.prompts.read() == ["good <i>day</i>"]
    assert app.button(key="chat_save_prompt").disabled
    app.button(key="chat_new").click().run()
    assert app.button(key="chat_start_0").label == "good \\<i\\>day\\</i\\>"
    app.button(key="chat_start_0").click().run()
    assert not app.exception
    assert len(answers(app)) == 2
    app.button(key="chat_new").click().run()
    app.button(key="chat_own_remove").click().run()
    assert service.talks.prompts.read() == []


def test_blind_sides_have_no_names_and_no_speed_until_the_vote(pair: tuple[str, str], service: Any) -> None:
    app = chat(*pair)
    app.toggle(key="chat_blind").set_value(True).run()
    ask(app, "hello")
    first, second = answers(app)
    assert "<b>A</b>" in first
    assert "<b>B</b>" in second
    for body in (first, second):
        assert "model" not in body.split('class="esp-said"')[0]
        assert "tokens" not in body
    app.button(key="chat_vote_1_1_A").click().run()
    assert not app.exception
    first, second = answers(app)
    assert '<span class="esp-chosen">chosen</span>' in first
    assert "chosen" not in second
    assert "tokens/s" in first
    assert "You chose A." in html(app)
    best, worst = service.talks.standings()
    assert (best.won, best.votes, worst.won) == (1, 1, 0)
    assert f"A was {best.title}" in html(app)
    assert not [button.key for button in app.button if str(button.key).startswith("chat_vote_")]


def test_a_failure_in_blind_mode_names_nobody() -> None:
    body = answer_html(made("", "failed", notice="secret-model ran out of memory"), name="A")
    assert "secret" not in body
    assert "the reason is shown after the vote" in body
    assert "T&lt;" not in body


def test_words_that_differ_are_marked_and_the_parting_is_said(pair: tuple[str, str]) -> None:
    app = ask(chat(*pair), "hello", 12)
    app.segmented_control(key="chat_read").set_value(chat_lens.DIFF).run()
    assert not app.exception
    assert all("<mark>" in body or "esp-part" in body for body in answers(app))
    assert "one-model" in html(app)
    assert "alike for" in html(app) or "word for word" in html(app)


def test_a_lens_that_cannot_be_had_says_why_and_the_answers_stay(pair: tuple[str, str]) -> None:
    app = ask(chat(*pair), "hello", 4)
    app.segmented_control(key="chat_read").set_value(chat_lens.LENS).run()
    assert not app.exception
    assert "Token lens: " in html(app)
    assert "do not share a vocabulary" in html(app)
    assert len(answers(app)) == 2


def test_the_lens_of_the_dense_model_itself_is_pale_and_offers_what_it_would_have_said(service: Any) -> None:
    app = ask(chat(), "What is the capital of France?", 4)
    app.segmented_control(key="chat_read").set_value(chat_lens.LENS).run()
    assert not app.exception
    (body,) = answers(app)
    assert body.count('class="esp-tok"') == 4
    assert body.count("--s:0.00") == 4
    assert "here 100 %, dense 100 %" in body or "dense would say" in body
    app.segmented_control(key="chat_lens_by").set_value(chat_lens.DIVERGENCE).run()
    assert "0.00 nats" in answers(app)[0]


def test_nothing_in_the_lens_or_the_diff_is_markup(service: Any) -> None:
    answer = made(HOSTILE)
    answer.scores = (
        TokenScore(
            text=HOSTILE, log_probability=-0.1, dense_log_probability=-6.0, divergence=3.0,
            guesses=(Guess(text=HOSTILE, probability=0.0004),),
        ),
    )  # fmt: skip
    for shown in (chat_lens._tokens(service, answer, "surprise"), chat_lens._words(service, HOSTILE, "other words")):
        inside = shown
        for own in ("span", "b", "i", "em", "mark"):
            inside = inside.replace(f"</{own}>", "")
        assert "<img" not in inside
        assert "<script" not in inside
        assert "&lt;img src=x onerror=alert(1)&gt;" in "".join(inside.split("<mark>")).replace("·", " ")
    assert "--s:1.00" in chat_lens._tokens(service, answer, "surprise")


def test_kept_conversations_are_exported_and_replayed_under_a_label(pair: tuple[str, str], service: Any) -> None:
    app = ask(chat(*pair), "hello")
    said = [body.split('dir="auto">')[1].split("</div>")[0] for body in answers(app)]
    saved = service.talks.saved()
    identity = str(saved["conversation"].iloc[0])
    assert json.loads(service.talks.as_json(identity))["turns"][0]["prompt"] == "hello"
    assert "```text\nhello\n```" in service.talks.as_markdown(identity)
    app.button(key="chat_new").click().run()
    app.selectbox(key="chat_saved").set_value(identity).run()
    app.button(key="chat_replay_start").click().run()
    assert "no model is answering now" in html(app)
    assert not app.chat_input
    app.button(key="chat_replay_next").click().run()
    assert not app.exception
    told = [body.split('dir="auto">')[1].split("</div>")[0] for body in answers(app)]
    assert told == said
    assert app.button(key="chat_replay_next").disabled
    app.button(key="chat_replay_leave").click().run()
    assert app.chat_input(key="chat_prompt")
    assert len(service.talks.saved()) == 1


def test_names_of_conversations_lead_nowhere_else(service: Any, home: Path) -> None:
    from core.errors import InputError

    (home / "chat").mkdir(exist_ok=True)
    (home / "secret.jsonl").write_text("{}\n")
    for wrong in ("../secret", "missing", "", ".", "/etc/passwd"):
        with pytest.raises(InputError, match="There is no conversation"):
            service.talks.transcript(wrong)


def test_the_stage_prepares_models_and_says_which_of_the_preset_are_missing(
    pair: tuple[str, str], service: Any
) -> None:
    app = chat(*pair)
    app.toggle(key="chat_stage").set_value(True).run()
    assert not app.exception
    app.button(key="chat_prepare").click().run()
    assert not app.exception
    assert "Ready: 2 models" in html(app)
    app.run()
    assert "Ready: 2 models" in html(app)
    service.chat_client().unload(pair[0])
    app.run()
    assert "Ready:" not in html(app)
    assert "No longer ready: not all of these models are in memory." in html(app)
    app.button(key="chat_prepare").click().run()
    assert "Ready: 2 models" in html(app)
    app.button(key="chat_free").click().run()
    assert not app.exception
    assert "Ready:" not in html(app)
    app.button(key="chat_ladder").click().run()
    assert not app.exception
    assert "No saved run at 10 %, 30 %, 50 %" in html(app)
    assert app.selectbox(key="chat_left").value == DENSE


def test_the_preset_takes_the_newest_runs_of_one_method(run_folder: Any, tiny_folder: Any, home: Path) -> None:
    service = get_service()
    made_runs = {}
    for name, method, ratio in [
        ("old", "taylor", 0.3), ("ten", "taylor", 0.1), ("new", "taylor", 0.3), ("other", "l2", 0.5),
        ("between", "taylor", 0.2),
    ]:  # fmt: skip
        made_runs[name] = run_folder(name, {"method": method, "ratio": ratio, "layers": [4, 25]})
        shutil.copytree(tiny_folder(f"model-{name}"), home / "runs" / made_runs[name] / "model")
    service._store.sync(home, thorough=True)
    rungs = service.talks.ladder(service.chat_models(), service.runs())
    assert [rung.ratio for rung in rungs] == [0.0, 0.1, 0.3, 0.5]
    keys = [rung.model.key if rung.model else None for rung in rungs]
    assert keys == [DENSE, made_runs["ten"], made_runs["new"], None]


def test_where_a_run_works_on_the_gpu_prompts_wait_or_go_to_the_cpu(
    pair: tuple[str, str], service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = ["Taylor <b>30 %</b>"]

    def at_work(talks: Any) -> str | None:
        return working[0] if working and talks._client().device != "cpu" else None

    monkeypatch.setattr("core.talks.Talks.at_work", at_work)
    app = chat(*pair)
    assert "Taylor &lt;b&gt;30 %&lt;/b&gt; works on this GPU: prompts wait" in html(app)
    waits = service.chat_client().conversation([(pair[0], "one")])
    waits.hold = lambda: f"waiting until {working[0]} has ended" if working else ""
    turn = waits.ask("hello")
    waits.start(turn)
    assert not turn.answers[0].ended.wait(0.5)
    assert turn.answers[0].notice == "waiting until Taylor <b>30 %</b> has ended"
    app.button(key="chat_to_cpu").click().run()
    assert service.chat_client().device == "cpu"
    assert "Answers are computed on the CPU." in html(app)
    ask(app, "hello", 3)
    assert all("esp-answer-done" in body for body in answers(app))
    working.clear()
    assert turn.answers[0].ended.wait(60)
    app.button(key="chat_to_gpu").click().run()
    assert service.chat_client().device == "auto"


def test_what_is_asked_again_waits_for_a_run_that_began_after_the_page_was_drawn(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working: list[str] = []
    monkeypatch.setattr("core.talks.Talks.at_work", lambda self: working[0] if working else None)
    app = ask(chat(*pair), "hello", 3)
    working.append("a run")
    conversation = app.session_state[chat_choose.KEPT]
    chat_view._again(conversation)  # as Regenerate does, before the page is drawn anew
    (turn,) = conversation.turns
    assert not turn.answers[0].ended.wait(0.5)
    assert [answer.notice for answer in turn.answers] == ["waiting until a run has ended"] * 2
    working.clear()
    assert all(answer.ended.wait(60) for answer in turn.answers)
    assert [answer.state for answer in turn.answers] == ["done", "done"]


def test_neither_the_stage_nor_the_token_lens_works_beside_a_run_on_the_same_gpu(
    pair: tuple[str, str], service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    working: list[str] = []
    monkeypatch.setattr("core.talks.Talks.at_work", lambda self: working[0] if working else None)
    app = ask(chat(*pair), "hello", 3)
    working.append("<b>a run</b>")
    app.segmented_control(key="chat_read").set_value(chat_lens.LENS).run()
    assert not app.exception
    assert "Token lens: &lt;b&gt;a run&lt;/b&gt; works on this GPU." in html(app)
    assert "vocabulary" not in html(app)  # the worker was not asked
    service.chat_client().close()
    app.toggle(key="chat_stage").set_value(True).run()
    app.button(key="chat_prepare").click().run()
    assert not app.exception
    assert "Not prepared: &lt;b&gt;a run&lt;/b&gt; works on this GPU." in html(app)
    assert not service.chat_client().status().running
    working.clear()
    app.run()
    assert "do not share a vocabulary" in html(app)
    app.button(key="chat_prepare").click().run()
    assert "Ready: 2 models" in html(app)


def test_a_run_counts_as_at_work_only_on_the_chat_s_own_gpu(
    run_folder: Any, service: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.device import DeviceInfo
    from core.jobs.states import State
    from core.jobs.status import RunStatus

    gpus = [DeviceInfo("cuda", i, "GPU", 80 << 30, 70 << 30, (9, 0)) for i in range(2)]
    run_id = run_folder("busy", {"method": "l2", "ratio": 0.3})
    service._store.sync(home, thorough=True)
    live = [RunStatus(run_id, State.WAITING)]
    monkeypatch.setattr("core.board.live", lambda store, home: live)
    experiment = home / "runs" / run_id / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("device: cpu", "device: cuda:0"))
    assert service.talks.at_work() is None  # there is no GPU here
    monkeypatch.setattr("core.device.gpus", lambda: gpus)
    assert service.talks.at_work() is None  # it only waits
    live[:] = [RunStatus(run_id, State.RUNNING)]
    assert service.talks.at_work() == "busy"
    live[:] = [RunStatus(run_id, State.RUNNING, place="cuda:1")]
    assert service.talks.at_work() is None  # it was given the other one
    live[:] = [RunStatus(run_id, State.RUNNING)]
    experiment.write_text("model: [")
    assert service.talks.at_work() is None
    experiment.unlink()
    assert service.talks.at_work() is None
    live[:] = [RunStatus(run_id, State.RUNNING, place="cuda:0")]
    service.talks.move("cpu")
    assert service.talks.at_work() is None
