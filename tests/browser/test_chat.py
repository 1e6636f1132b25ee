"""Chat in a real browser: a blind vote from start to Compare, text that stays text, and the stage for a projector."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
READY = '[data-test-script-state="notRunning"]'
RUN = "20261123-200000-0a1b2c3d-chat"
EXPERIMENT = """
name: L2 40 %
pruning: {method: l2, ratio: 0.4, layers: [4, 25], parts: [mlp]}
evaluation: {perplexity: [{corpus: passages, window: 256, max_tokens: 1024}], tasks: [], fidelity: false, speed: false}
device: cpu
"""
HOSTILE = [
    "<img src=http://evil.invalid/a.png onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "![i](http://evil.invalid/b.png)",
    "[l](javascript:window.hacked=1)",
    "<a href=http://evil.invalid>x</a>",
    "<style>body{display:none}</style>",
    "</div></article><h1>x</h1>",
    ":red[r] $x^2$ **b** `c` &lt;",
    '" onmouseover="window.hacked=1',
]


def ready(page: Any) -> None:
    """Until the page has heard of the last click, and done what it asked for."""
    page.wait_for_timeout(600)
    page.wait_for_selector(READY, timeout=300_000)


def open_chat(page: Any, address: str, query: str = "") -> None:
    page.set_default_timeout(120_000)
    page.goto(f"{address}/chat{query}")
    page.wait_for_selector('[data-testid="stChatInput"] textarea')
    ready(page)


def ask(page: Any, text: str) -> None:
    page.locator('[data-testid="stChatInput"] textarea').fill(text)
    page.keyboard.press("Enter")


def wait(page: Any, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    for _ in range(int(seconds * 5)):
        if condition():
            return
        page.wait_for_timeout(200)
    raise AssertionError(what)


def prune(home: Path) -> None:
    """A real run of SmolLM2, pruned, saved, judged."""
    file = home / "experiment.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    command = [sys.executable, "-m", "core", "run", str(file), "--run-dir", str(home / "runs" / RUN)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ESPALIER_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def write_hostile(folder: Path) -> str:
    """A model that can say nothing but markup, under a name that is markup too."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{text: place for place, text in enumerate(HOSTILE, 1)}}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5)
        model.lm_head.weight[0] = 0.0
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


def test_two_models_answer_one_is_stopped_and_the_vote_is_on_compare(app: tuple[str, Path], browser: Any) -> None:
    address, home = app
    prune(home)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_chat(page, address)
    page.locator(".st-key-chat_blind label").first.click()
    ready(page)
    ask(page, "Write a very long story about a gardener who prunes an old apple tree.")
    articles = page.locator("article.esp-answer")
    said = page.locator("article.esp-answer .esp-said")

    def words(place: int) -> str:
        return str(said.nth(place).inner_text()) if said.count() > place else ""

    wait(page, lambda: len(words(0)) > 20 and len(words(1)) > 20, "both models answer")
    names = [str(name) for name in page.locator(".esp-chat-who").all_inner_texts()]
    assert names == ["A", "B"]
    assert "tokens/s" not in "".join(articles.all_inner_texts())

    page.locator('[class*="st-key-chat_stop_1_1_0"] button:visible').first.click()
    page.wait_for_selector("article.esp-answer-stopped")
    shown, before = words(0), len(words(1))  # while nobody may know who is faster, no side shows more than the other
    assert shown
    wait(page, lambda: len(words(1)) > before + 20, "the other side goes on")
    page.locator('[class*="st-key-chat_vote_1_1_B"] button:visible').first.click()
    page.wait_for_selector(".esp-voted")
    assert "You chose B." in page.locator(".esp-voted").inner_text()
    page.wait_for_selector(".esp-chosen")
    kept = words(0)  # now all of it
    assert kept.startswith(shown)
    revealed = page.locator(".esp-chat-who").all_inner_texts()
    assert "chosen" in revealed[1]
    assert any("SmolLM2 135M Instruct, dense" in name for name in revealed)
    assert any("L2 40 %" in name for name in revealed)
    page.locator(".st-key-chat_stop_all button:visible").first.click()
    page.wait_for_selector(".st-key-chat_again")
    ready(page)
    assert words(0) == kept
    assert "stopped" in articles.nth(0).inner_text()

    (file,) = (home / "chat").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    (vote,) = [line for line in lines if line["kind"] == "vote"]
    assert vote["blind"]
    assert vote["streaming"]
    assert vote["winner"] == vote["order"][1]

    page.goto(f"{address}/compare")
    page.locator(".st-key-compare_chart").get_by_text("Votes", exact=True).click()
    page.wait_for_selector(".st-key-compare_votes .js-plotly-plot")
    ready(page)
    drawn = page.evaluate(
        "() => { const p = document.querySelector('.st-key-compare_votes .js-plotly-plot');"
        " return [Array.from(p.data[0].x), p.layout.yaxis.ticktext]; }"
    )
    assert drawn[0] == [1, 0]
    assert ("dense" in drawn[1][0]) == vote["winner"].startswith("dense:")
    assert problems == []
    page.close()


def test_what_a_model_says_does_nothing_in_the_browser(app: tuple[str, Path], browser: Any, tmp_path: Path) -> None:
    address, _ = app
    folder = write_hostile(tmp_path / "<img src=x onerror=window.hacked=1>")
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    from urllib.parse import quote

    open_chat(page, address, f"?model={quote(folder)}")
    page.locator(".st-key-chat_answers button:visible").first.click()
    page.locator(".st-key-chat_max_tokens input").fill("24")
    page.keyboard.press("Enter")
    ready(page)
    page.keyboard.press("Escape")
    ask(page, HOSTILE[0] + HOSTILE[1])
    page.wait_for_selector(".st-key-chat_again", timeout=240_000)
    ready(page)

    def inert(reading: str) -> None:
        found = page.locator("article.esp-answer .esp-said").nth(1)
        assert any(text in found.inner_text() for text in HOSTILE[:4]), reading
        assert found.locator("img, script, a, style, h1, iframe").count() == 0, reading
        assert page.locator(".esp-prompt img, .esp-chat-who img").count() == 0
        assert page.evaluate("() => window.hacked === undefined"), reading
        assert page.evaluate("() => getComputedStyle(document.body).display !== 'none'"), reading
        assert [url for url in asked if "evil" in url] == []

    inert("Text")
    page.locator(".st-key-chat_read").get_by_text("Word diff").click()
    ready(page)
    inert("Word diff")
    page.locator("article.esp-answer .esp-said").nth(1).hover()
    assert page.evaluate("() => window.hacked === undefined")
    page.close()


SMALL = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element || ['SCRIPT', 'STYLE'].includes(element.tagName) || !element.checkVisibility()) continue;
    const box = element.getBoundingClientRect(), size = parseFloat(getComputedStyle(element).fontSize);
    if (box.width > 1 && box.height > 1 && size < 24) found.push([size, text.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.slow
def test_the_stage_is_large_and_bare_and_a_replay_is_labelled(
    app: tuple[str, Path], browser: Any, tmp_path: Path
) -> None:
    address, _ = app
    folder = write_hostile(tmp_path / "model")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    from urllib.parse import quote

    open_chat(page, address, f"?chat_stage=true&model={quote(folder)}")
    page.locator(".st-key-chat_prepare button:visible").first.click()
    page.wait_for_selector(".esp-ready", timeout=240_000)
    wait(page, lambda: "Ready: 2 models" in page.locator(".esp-ready").inner_text(), "both models are ready")
    assert page.evaluate(SMALL) == []
    assert page.locator('[data-testid="stSidebar"]').count() == 0
    assert not page.locator("header").first.is_visible()
    page.locator(".st-key-chat_start_0 button:visible").first.click()
    page.wait_for_selector(".st-key-chat_again", timeout=300_000)
    ready(page)
    assert page.evaluate(SMALL) == []
    told = page.locator("article.esp-answer .esp-said").nth(1).inner_text()
    width = page.evaluate("() => document.querySelector('.stMainBlockContainer').getBoundingClientRect().width")
    assert width >= 1250

    page.locator(".st-key-chat_kept button:visible").first.click()
    page.locator(".st-key-chat_saved input").first.click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".st-key-chat_replay_start button")
    ready(page)
    page.locator(".st-key-chat_replay_start button:visible").first.click()
    page.wait_for_selector(".esp-replay")
    ready(page)
    page.keyboard.press("Escape")
    page.locator(".st-key-chat_replay_next button:visible").first.click()
    page.wait_for_selector("article.esp-answer")
    label = page.locator(".esp-replay").inner_text()
    assert label.startswith("Replay of ")
    assert "no model is answering now" in label
    assert page.locator('[data-testid="stChatInput"]').count() == 0
    wait(page, lambda: page.locator("article.esp-answer .esp-said").nth(1).inner_text() == told, "all is told again")
    page.close()
