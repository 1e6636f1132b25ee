"""Chat, by its keys: choosing, asking, both sides answering, failing, and text that stays text. With a real worker."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.conversation import Answer
from core.chat.protocol import Finished, Piece, Source, Stats
from core.service import close_service, get_service
from pages._parts.chat_view import answer_html, footer

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = str(ROOT / "pages" / "_main.py")


@pytest.fixture(autouse=True)
def service() -> Iterator[Any]:
    """The process's service on this test's own home, its queue at rest."""
    made = get_service()
    made.pause()
    yield made
    close_service()


@pytest.fixture
def folder(tiny_folder: Any, tiny_tokenizer: Any, tmp_path: Path) -> str:
    """A model that answers in characters, under a name that would be HTML."""
    made = tiny_folder("model", max_position_embeddings=512)
    shutil.move(made, tmp_path / "<i>tiny")
    return str(tmp_path / "<i>tiny")


def chat(left: str | None = None, right: str | None = None) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=120).run()
    for place, key in (("chat_left", left), ("chat_right", right)):
        if key is not None:
            app.session_state[place] = key
    app.switch_page("chat.py").run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    bodies = [str(element.proto.body) for element in app.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style"))


def answers(app: AppTest) -> list[str]:
    return [str(e.proto.body) for e in app.get("html") if str(e.proto.body).startswith("<article")]


def test_with_no_saved_run_the_dense_model_is_ready_and_the_other_side_offers_the_next_step() -> None:
    app = chat()
    assert app.selectbox(key="chat_left").value == "dense:builtin:smollm2-135m-instruct"
    assert app.selectbox(key="chat_right").value is None
    shown = html(app)
    assert "<b>134.5 M</b> parameters" in shown
    assert "No pruned model is saved yet." in shown
    assert [link.proto.label for link in app.get("page_link")] == ["Prune a model"]
    assert not app.chat_input(key="chat_prompt").disabled


def test_one_prompt_is_answered_on_both_sides_and_kept(folder: str, service: Any, home: Path) -> None:
    app = chat(folder, folder)
    app.number_input(key="chat_max_tokens").set_value(6).run()
    app.chat_input(key="chat_prompt").set_value("<b>hello</b> *you*").run()
    assert not app.exception
    said = answers(app)
    assert len(said) == 2
    for body in said:
        assert "esp-answer-done" in body
        assert "tokens/s" in body
        assert "&lt;i&gt;tiny" in body
        assert "<i>tiny" not in body
    assert "&lt;b&gt;hello&lt;/b&gt; *you*" in html(app)
    (transcript,) = (home / "chat").glob("*.jsonl")
    assert transcript.read_text(encoding="utf-8").count('"kind": "answer"') == 2

    app.chat_input(key="chat_prompt").set_value("again").run()
    assert len(answers(app)) == 4
    app.button(key="chat_new").click().run()
    assert answers(app) == []
    assert "Both models get the same prompt" in html(app)
    assert service.chat_client().status().running
    app.button(key="chat_free").click().run()
    assert not service.chat_client().status().running


def test_a_recovered_model_answers_beside_what_it_was_before(
    tiny_folder: Any, tiny_tokenizer: Any, recovered: Any, home: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    run_id = recovered("tuned", (33.0, 0.61))
    run = home / "runs" / run_id
    shutil.copytree(tiny_folder("one", max_position_embeddings=512), run / "model")
    shutil.copytree(run / "model", run / "recovered")
    weights = load_file(str(run / "recovered" / "model.safetensors"))
    changed = {name: -value if "embed" in name else value for name, value in weights.items()}
    save_file(changed, str(run / "recovered" / "model.safetensors"), metadata={"format": "pt"})
    app = chat(f"{run_id}:pruned")
    assert app.selectbox(key="chat_right").value == run_id  # the newest saved model, after its recovery
    assert {"tuned, recovered", "tuned, before recovery"} <= set(app.selectbox(key="chat_right").options)
    app.number_input(key="chat_max_tokens").set_value(6).run()
    app.chat_input(key="chat_prompt").set_value("hello").run()
    assert not app.exception
    before, after = answers(app)
    assert "tuned, before recovery" in before
    assert "tuned, recovered" in after
    assert all("esp-answer-done" in body for body in (before, after))
    said = [body.split('dir="auto">')[1].split("</div>")[0] for body in (before, after)]
    assert said[0] != said[1]


def test_a_side_that_cannot_load_says_why_and_the_other_answers(folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    app = chat(folder, str(broken))
    app.number_input(key="chat_max_tokens").set_value(4).run()
    app.chat_input(key="chat_prompt").set_value("hello").run()
    assert not app.exception
    good, bad = answers(app)
    assert "esp-answer-done" in good
    assert "esp-answer-failed" in bad
    assert 'role="alert"' in bad


def test_a_folder_without_a_model_is_said_beside_its_field(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    app = chat(folder, str(tmp_path / "empty"))
    assert "esp-error" in html(app)
    assert "config.json" in html(app)


def test_a_link_from_a_run_chooses_the_right_side(folder: str) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    app.query_params["model"] = folder
    app.switch_page("chat.py").run()
    assert not app.exception
    assert app.selectbox(key="chat_right").value == folder
    assert "model" not in app.query_params


def test_a_link_from_a_dense_run_chooses_the_left_side(service: Any) -> None:
    (key,) = [model.key for model in service.chat_models() if model.run_id is None]
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    app.query_params["model"] = key
    app.switch_page("chat.py").run()
    assert not app.exception
    assert app.selectbox(key="chat_left").value == key


def made(text: str, state: Any = "done", **fields: Any) -> Answer:
    return Answer(Source(key="k", title="<u>T</u>", name="n"), text=text, state=state, **fields)


HOSTILE = '<img src=x onerror=alert(1)> ![i](http://x/y.png) [l](javascript:a()) <script>x</script> & "q" :red[r] $x$'


def test_nothing_a_model_says_becomes_markup() -> None:
    body = answer_html(made(HOSTILE))
    inside = body.split('<div class="esp-said" dir="auto">')[1].split("</div>")[0]
    assert "<" not in inside
    assert ">" not in inside
    assert "&lt;img src=x onerror=alert(1)&gt; ![i](http://x/y.png) [l](javascript:a())" in inside
    assert "<u>" not in body
    failed = answer_html(made("", "failed", notice=HOSTILE))
    assert "<img" not in failed
    assert "<script" not in failed


def test_the_line_beneath_says_speed_first_and_how_the_answer_ended() -> None:
    answer = made("", "waiting", first_token_seconds=0.5)
    for n in (1, 2, 3):
        answer.hear(Piece(id="1", text="a", tokens=n, seconds=(n - 1) * 0.1))
    assert footer(answer) == "10.0 tokens/s · 3 tokens · first after 0.50 s"
    stats = Stats(
        prompt_tokens=1, reused_tokens=0, tokens=11, load_seconds=2, first_token_seconds=0.5, seconds=2, own_seconds=1
    )
    answer.hear(Finished(id="1", reason="length", stats=stats))
    assert footer(answer) == (
        "5.0 tokens/s · 11 tokens · first after 0.50 s, loading included · 10.0 tokens/s of its own time · "
        "cut at the longest answer"
    )


def test_an_answer_without_a_word_says_so() -> None:
    assert "The model ended at once, without a word." in answer_html(made("", "done", tokens=1))
    assert "Stopped before the first word." in answer_html(made("", "stopped"))


class Ending(Answer):
    """The worker's last two events arrive between the page's first look at an answer and its second."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("text", "state") and not vars(self).get("over"):
            vars(self)["over"] = True
            self.hear(Piece(id="1", text=" whole", tokens=2, seconds=0.1))
            self.hear(Finished(id="1", reason="cancelled", stats=None))
        return found


def test_an_answer_that_ends_while_it_is_drawn_is_drawn_as_ended_with_its_whole_text_only() -> None:
    answer = Ending(Source(key="k", title="T", name="n"))
    vars(answer).update(text="not", state="streaming")
    first, then = answer_html(answer), answer_html(answer)
    assert "esp-answer-stopped" not in first or "not whole" in first
    assert "esp-answer-stopped" in then
    assert ">not whole<" in then
