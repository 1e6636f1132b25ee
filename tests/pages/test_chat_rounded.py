"""A run that rounded the dense model to a GGUF format, in Chat: the weights that were judged, under their name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.chat.sources import choice, params
from core.errors import ModelError
from core.experiment import Experiment
from core.jobs import worker
from core.jobs.rundir import RunDirectory, new_run_id
from core.models.gguf_rounded import load_rounded, the_file
from core.service import Service
from tests.chat.test_smollm2 import PROMPT, expected
from tests.pages.test_chat import answers, chat, html

DENSE = "dense:builtin:smollm2-135m-instruct"


@pytest.fixture
def rounded(home: Path, service: Service) -> RunDirectory:
    """SmolLM2 in Q4_0, really written, judged and kept."""
    text = {"corpus": "passages", "window": 64, "max_tokens": 64}
    judged = {"perplexity": [text], "tasks": [], "fidelity": False, "speed": False}
    experiment = Experiment.parse({"name": "four bits", "model": {"quantised": "q4_0"}, "evaluation": judged})
    run = RunDirectory(home / "runs" / new_run_id("0123456789abcdef"))
    run.write_experiment(experiment)
    with run.lock():
        assert worker.work(run) == worker.COMPLETE
    service._store.sync(home, thorough=True)
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_judged_answers_and_says_what_it_is(rounded: RunDirectory, service: Service, smollm2: Any) -> None:
    file = the_file(rounded.model_dir)
    (model,) = [model for model in service.chat_models() if model.run_id is not None]
    assert (model.key, model.title) == (rounded.id, "four bits, Q4_0")
    assert (model.bytes, model.params) == (file.stat().st_size, 134_515_008)
    assert service.talker(rounded.id) == rounded.id  # Runs offers Chat

    source = service.chat_client().source(rounded.id, model.title)
    assert params(source) == model.params
    wanted, tokenizer = load_rounded(choice(source), rounded.model_dir, device="cpu", dtype="float32")
    dense = smollm2.model.model.layers[3].mlp.up_proj.weight
    assert not wanted.model.layers[3].mlp.up_proj.weight.equal(dense)

    app = chat(DENSE, rounded.id)
    assert f"<b>134.5 M</b> parameters, rounded to Q4_0 · {file.stat().st_size / 1e6:.0f} MB on disk" in html(app)
    app.number_input(key="chat_max_tokens").set_value(24).run()
    app.chat_input(key="chat_prompt").set_value(PROMPT).run()
    assert not app.exception
    said = answers(app)[1].split('dir="auto">')[1].split("</div>")[0]
    assert said == expected(wanted, tokenizer, 24)
    assert "four bits, Q4_0" in answers(app)[1]
    app.segmented_control(key="chat_read").set_value("Token lens").run()
    assert not app.exception
    assert "esp-tok" in answers(app)[1]  # the dense model that it was rounded from reads it
    assert "Token lens:" not in html(app)


def test_it_is_offered_as_what_it_is_while_its_file_is_there(
    run_folder: Callable[..., str], service: Service, home: Path
) -> None:
    run = RunDirectory(home / "runs" / run_folder("four bits"))
    run.write_experiment(Experiment.parse({"name": "four bits", "model": {"quantised": "q4_0"}}))
    content = run.results() or {}
    content["pruning"] |= {"bytes": 92_000_000, "layout": "gguf", "layers": []}
    run.write_results(content)
    run.model_dir.mkdir()
    (run.model_dir / "four.gguf").write_bytes(b"GGUF")
    service._store.sync(home, thorough=True)
    assert service.talker(run.id) == run.id  # Runs offers Chat
    app = chat(DENSE, run.id)
    assert "<b>134.5 M</b> parameters, rounded to Q4_0 · 92 MB on disk" in html(app)
    assert "four bits, Q4_0" in app.selectbox(key="chat_right").options
    source = service.chat_client().source(run.id)
    assert (source.name, source.quantised) == ("builtin:smollm2-135m-instruct", "q4_0")
    assert params(source) == 134_515_008

    shutil.rmtree(run.model_dir)
    assert run.id not in [model.key for model in service.chat_models()]
    with pytest.raises(ModelError, match=f"Run {run.id} has no saved model"):
        service.chat_client().source(run.id)
