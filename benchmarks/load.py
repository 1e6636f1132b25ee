"""Visitors on Runs while runs go through: `python -m benchmarks.load [--runs 100] [--sessions 20] [--chromium 3]`.

Starts the real app on a home of its own, queues tiny runs (a random model of two layers, made from a config; each run a
real worker process that loads, prunes, saves, verifies in a fresh process and judges), and opens Runs: in Chromium, and
as sessions of Streamlit's own protocol, which ask again as a browser does, the feed too, press what it says, and read
what comes. Printed at the end:

| figure | what it is |
|---|---|
| update | seconds from a page's request to its answer: looks at the feed, and scripts to their end |
| look, script, whole | of them: of the feed (pages/_parts/feed.py); of scripts, fragments or pages; of whole pages |
| age | seconds from an event's time in events.jsonl to its arrival on a page |
| kept | age of what a page showed when something newer took its place |
| errors | exceptions on pages, sockets that closed, messages on Chromium's console |

`open` is the same from the moment on at which every visitor had the page: twenty browsers that are opened at once, on
the machine that runs the app, are nobody's day. Chromium runs at niceness 10, since visitors' browsers have computers
of their own. The five worst of each come with their moment: what ran then, and whether the visitor's whole page was
being drawn.
"""

import argparse
import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.load_figures import ages, said, worst
from benchmarks.load_visitors import Visitor, chromium_pages, session

ROOT = Path(__file__).resolve().parent.parent


# --- runs


def queue(home: Path, runs: int, tokens: int = 16_000) -> None:
    """A tiny model, a text, and that many runs that wait, each to judge by so many tokens (60,000 at most).

    No two measure the same, so that none is spared its work."""
    from core.experiment import Experiment
    from core.jobs.rundir import RunDirectory, new_run_id
    from core.jobs.states import State

    model = _tiny(home / "tiny")
    letters = random.Random(0)
    text = home / "text.txt"
    text.write_text("".join(letters.choices("abcdefghij", k=60_000)))
    for number in range(runs):
        data = {
            "name": f"tiny {number + 1}", "device": "cpu", "seed": number, "model": {"name": str(model)},
            "pruning": {"method": "random", "ratio": 0.25, "round_to": 1},
            "evaluation": {"tasks": [], "fidelity": False, "speed": False, "batch_size": 1, "perplexity": [
                {"path": str(text), "window": 16, "max_tokens": tokens + 16 * number}]},
        }  # fmt: skip
        directory = RunDirectory.of(home / "runs", new_run_id(f"{number:08x}"))
        directory.write_experiment(Experiment.parse(data))
        directory.write_state(State.WAITING)


def _tiny(folder: Path) -> Path:
    """Two layers of random weights with a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(chr(code) for code in range(33, 125))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


# --- the app


def start_app(home: Path, port: int) -> "subprocess.Popen[bytes]":
    """The app, until it answers."""
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    command += ["--server.headless", "true"]
    environment = {**os.environ, "ESPALIER_HOME": str(home), "ESPALIER_CACHE": str(home / "cache"),
                   "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ESPALIER_REFERENCE": "0"}  # fmt: skip
    with (home / "app.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
            return server
        time.sleep(0.3)
    raise SystemExit(f"the app did not start: see {home / 'app.log'}")


def ended(home: Path) -> Counter[str]:
    """Runs by state."""
    from core.jobs.rundir import list_runs

    return Counter(str(run.recorded().state) for run in list_runs(home / "runs"))


async def drive(address: str, home: Path, options: argparse.Namespace, visitors: list[Visitor]) -> float:
    """All visitors until every run is over, or the time is; returns the seconds it took."""
    over, begun = asyncio.Event(), time.monotonic()
    real, plain = visitors[: options.chromium], visitors[options.chromium :]
    tasks = [asyncio.create_task(session(address, over, visitor)) for visitor in plain]
    tasks.append(asyncio.create_task(chromium_pages(address, over, real, options.shot)))
    told = 0
    while time.monotonic() - begun < options.minutes * 60:
        states = await asyncio.to_thread(ended, home)
        if not states["WAITING"] + states["RUNNING"] + states["INTERRUPTED"]:
            break
        if states["COMPLETE"] // 10 > told:
            told = states["COMPLETE"] // 10
            print(f"{time.monotonic() - begun:5.0f} s  {dict(states)}", flush=True)
        await asyncio.sleep(2)
    took = time.monotonic() - begun
    await asyncio.sleep(3)
    over.set()
    await asyncio.gather(*tasks)
    return took


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=20, help="visitors in all")
    parser.add_argument("--chromium", type=int, default=3, help="how many of them are real pages")
    parser.add_argument("--port", type=int, default=8622)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long, whatever is left")
    parser.add_argument("--shot", type=Path, help="a PNG of the first Chromium page at the end")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="espalier-load-"))
    queue(home, options.runs)
    before = os.getloadavg()[0]
    server = start_app(home, options.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the app is ended, too
    app, visitors = psutil.Process(server.pid), [Visitor() for _ in range(options.sessions)]
    loads, begun = [], time.time()
    try:
        took = asyncio.run(drive(f"http://127.0.0.1:{options.port}", home, options, visitors))
        cpu, memory = sum(app.cpu_times()[:2]), app.memory_info().rss
        loads = list(os.getloadavg())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    states = ended(home)
    print(f"\n{options.sessions} visitors on Runs, {options.chromium} of them in Chromium; runs: {dict(states)}")
    print(f"{took:.0f} s, {took / max(states['COMPLETE'], 1):.1f} s a run, on {os.cpu_count()} cores")
    print(f"load average {before:.1f} before, {loads[0]:.1f} at the end; the app took {cpu / took:.2f} cores")
    print(f"memory of the app {memory / 1e6:.0f} MB")
    updates = [update for visitor in visitors for update in visitor.updates]
    looks = [look for visitor in visitors for look in visitor.looks]
    print(said("update", [seconds for seconds, *_ in [*updates, *looks]]))
    print(said(" look", [seconds for seconds, _ in looks]))
    print(said(" script", [seconds for seconds, _, _ in updates]))
    print("  " + ", ".join(f"{seconds:.1f} s at {there - begun:.0f} s" for seconds, _, there in sorted(updates)[-5:]))
    print(said(" whole", [seconds for seconds, whole, _ in updates if whole]))
    opened = max(min((there for *_, there in visitor.updates), default=math.inf) for visitor in visitors)
    moments = [(seconds, there) for seconds, _, there in updates] + looks
    print(said(" open", [seconds for seconds, there in moments if there - seconds > opened]))
    for name, seen in zip(("age", "kept"), ages(home, visitors), strict=True):
        later = [each for each in seen if each.arrived - each.seconds > opened]
        print(said(name, [each.seconds for each in seen]))
        print(said(" open", [each.seconds for each in later]))
        worst(home, visitors, later, begun)
    print(f"all visitors had the page after {opened - begun:.0f} s")
    errors = sum((visitor.errors for visitor in visitors), Counter())
    print(f"errors   {sum(errors.values())}")
    for text, count in errors.most_common(10):
        print(f"  {count} × {text}")
    print(f"home: {home}")


if __name__ == "__main__":
    main()
