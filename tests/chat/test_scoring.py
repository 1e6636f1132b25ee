"""The token lens against a whole forward pass of each model, written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.chat.decoding import encode
from core.chat.models import Held
from core.chat.protocol import Message, ModelInfo
from core.chat.scoring import ROWS, Scoring
from core.errors import InputError, NumericalError

ASK = (Message(role="user", content="what grows on a wall?"),)


def held(folder: str) -> Held:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    info = ModelInfo(
        key=folder, title=Path(folder).name, params=1, memory_bytes=1, dtype="float32", device="cpu",
        context=model.config.max_position_embeddings, chat_template=True, load_seconds=0,
    )  # fmt: skip
    return Held(model, AutoTokenizer.from_pretrained(folder), info)


def scores(scoring: Scoring) -> list[Any]:
    with torch.inference_mode():
        for _ in scoring.steps():
            pass
    return scoring.tokens


def test_scores_are_those_of_one_whole_pass_of_both_models(folders: dict[str, str]) -> None:
    one, two = held(folders["one"]), held(folders["two"])
    answer = torch.randint(1, 60, (2 * ROWS + 9,), generator=torch.Generator().manual_seed(0)).tolist()
    found = scores(Scoring(one, two, ASK, answer))
    prompt = encode(one.tokenizer, ASK)
    text = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logs = [torch.log_softmax(m.model(text).logits[0].double(), -1)[len(prompt) - 1 : -1] for m in (one, two)]
    assert len(found) == len(answer)
    for place, (score, token) in enumerate(zip(found, answer, strict=True)):
        said, expected = logs[0][place], logs[1][place]
        assert score.log_probability == pytest.approx(float(said[token]), abs=1e-4)
        assert score.dense_log_probability == pytest.approx(float(expected[token]), abs=1e-4)
        kl = torch.nn.functional.kl_div(expected, said, log_target=True, reduction="sum")
        assert score.divergence == pytest.approx(float(kl), abs=1e-4)
        best = expected.argmax()
        assert score.guesses[0].text == two.tokenizer.decode([int(best)])
        assert score.guesses[0].probability == pytest.approx(float(expected[best].exp()), abs=1e-5)
        assert [g.probability for g in score.guesses] == sorted((g.probability for g in score.guesses), reverse=True)
    assert "".join(score.text for score in found) == one.tokenizer.decode(answer)


def test_a_model_beside_itself_is_never_surprised(folders: dict[str, str]) -> None:
    one = held(folders["one"])
    for score in scores(Scoring(one, one, ASK, [3, 4, 5])):
        assert score.divergence == 0
        assert score.log_probability == score.dense_log_probability


def test_models_of_different_vocabularies_and_texts_that_do_not_fit_are_refused(folders: dict[str, str]) -> None:
    one, short = held(folders["one"]), held(folders["short"])
    with pytest.raises(InputError, match="these models hold 40"):
        Scoring(one, short, ASK, [3] * 10)
    other = held(folders["two"])
    other.tokenizer.add_tokens(["espalier"])
    with pytest.raises(InputError, match="do not share a vocabulary"):
        Scoring(one, other, ASK, [3])


def test_output_that_is_not_finite_is_an_error_not_a_number(folders: dict[str, str]) -> None:
    with pytest.raises(NumericalError, match="nan is not finite"):
        scores(Scoring(held(folders["nan"]), held(folders["one"]), ASK, [3, 4]))
