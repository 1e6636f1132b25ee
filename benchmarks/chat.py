"""Chat's speed: the wait for the first token, and answers side by side, in turn against together, beside one alone.

    python -m benchmarks.chat [--device cuda:0] [--model NAME_OR_FOLDER | --random tinyllama] [--sides 2] [--rounds 3]

Everything goes through the inference worker, as in the app. The second side is the same model with 30 % of its MLP
channels cut away; a third and a fourth are both again, loaded once more. Tokens are counted while all sides stream.

- `alone`: the mean of the sides' own rates, each asked by itself.
- `share`: a side's rate beside the others over its rate alone. Where time is divided fairly all are alike.
- `first token`: from the second prompt of a warm conversation to its first text, everything included.

`--scaling` measures instead what one side, two, … make in sum, in the way that the engine chooses, round by round:

- `one alone`: the mean of these sides' own rates, which is what equal shares of the time would make in sum.

Works without streamlit, duckdb and plotly.
"""

import argparse
import copy
import gc
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import cut, row, tinyllama
from core.chat.client import ChatClient
from core.chat.protocol import Failed, Finished, Piece, Sampling, Source
from core.experiment import BUILTIN_MODEL, ModelChoice, Pruning
from core.models.loading import load
from core.models.saving import save

PROMPTS = (
    "Write a very long story about a gardener who prunes an old apple tree, chapter by chapter, with many details.",
    "Now tell the whole story again, at the same length, from the point of view of the tree.",
)
REMOVED = 0.3


@dataclass
class Heard:
    """One answer: seconds (time.perf_counter) and tokens so far of each piece."""

    asked: float
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""

    def rate(self, begin: float, end: float) -> float:
        """Tokens per second between two moments at which it streamed."""
        inside = [n for t, n in zip(self.times, self.tokens, strict=True) if begin <= t <= end]
        return (inside[-1] - inside[0]) / (end - begin) if len(inside) > 1 else 0.0


def ask(client: ChatClient, source: Source, history: list[tuple[str, str]], tokens: int) -> Heard:
    """Listen to one answer to its end. SystemExit with the reason where it fails."""
    heard = Heard(time.perf_counter())
    for event in client.generate(source, history, Sampling(max_tokens=tokens)):
        if isinstance(event, Piece):
            heard.times.append(time.perf_counter())
            heard.tokens.append(event.tokens)
            heard.text += event.text
        if isinstance(event, Failed):
            raise SystemExit(f"{event.message} {event.advice}")
        if isinstance(event, Finished) and len(heard.tokens) < min(tokens, 2):
            raise SystemExit(f"{source.title} said too little to be measured")
    return heard


def side_by_side(client: ChatClient, sources: list[Source], tokens: int) -> list[float]:
    """Tokens per second of each, while all of them stream."""
    found: dict[int, Heard] = {}

    def listen(place: int, source: Source) -> None:
        found[place] = ask(client, source, [("user", PROMPTS[0])], tokens)

    threads = [threading.Thread(target=listen, args=pair) for pair in enumerate(sources)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = [found[place] for place in range(len(sources))]
    begin, end = max(one.times[0] for one in heard), min(one.times[-1] for one in heard)
    return [one.rate(begin, end) for one in heard]


def second_prompt(client: ChatClient, source: Source, tokens: int) -> float:
    """Seconds from the second prompt to its first text; the model is warm and has answered the first."""
    first = ask(client, source, [("user", PROMPTS[0])], tokens)
    history = [("user", PROMPTS[0]), ("assistant", first.text), ("user", PROMPTS[1])]
    second = ask(client, source, history, 2)
    return second.times[0] - second.asked


def models(folder: Path, options: argparse.Namespace) -> list[Source]:
    """Dense and cut, written where the worker finds them; then both again, as far as `sides` asks."""
    loaded = load(ModelChoice(name=options.model), device="cpu", dtype="float32")
    dense, tokenizer = loaded.model, loaded.tokenizer
    if options.random:
        dense = tinyllama(torch.bfloat16, device=options.device)
        dense.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pruned = copy.deepcopy(dense)
    layers = pruned.config.num_hidden_layers
    pruning = Pruning(method="l2", ratio=REMOVED, layers=(1, layers - 2), parts=("mlp",))
    cut(pruned, pruning, None, str(next(pruned.parameters()).device))
    names = {"dense": dense, f"MLP −{REMOVED:.0%}": pruned}
    for place, model in enumerate(names.values()):
        save(model.to("cpu"), tokenizer, folder / str(place))
    sides = [(name, str(folder / str(place))) for place, name in enumerate(names)]
    found = [Source(key=f"{n}", title=name, directory=path) for n, (name, path) in enumerate([*sides, *sides])]
    del loaded, dense, pruned, names
    gc.collect()
    return found[: options.sides]


def measure(clients: dict[str, ChatClient], sources: list[Source], options: argparse.Namespace) -> None:
    """All ways once a round, one after the other, so that load from elsewhere meets them alike; prints medians."""
    alone: dict[str, list[float]] = {source.key: [] for source in sources}
    waits: list[float] = []
    together: dict[str, list[list[float]]] = {way: [] for way in clients}
    for client in clients.values():
        side_by_side(client, sources, 8)  # loads and warms
    for _ in range(options.rounds):
        for source in sources:
            heard = ask(clients["turns"], source, [("user", PROMPTS[0])], options.tokens)
            alone[source.key].append(heard.rate(heard.times[0], heard.times[-1]))
        waits.append(second_prompt(clients["turns"], sources[0], min(options.tokens, 64)))
        for way, client in clients.items():
            together[way].append(side_by_side(client, sources, options.tokens))
    own = [statistics.median(alone[source.key]) for source in sources]
    row("", *(source.title for source in sources), "sum", "sum / alone", "shares")
    row("---", *["---:"] * (len(sources) + 3))
    row("alone, tokens/s", *(f"{rate:.1f}" for rate in own), f"mean {statistics.mean(own):.1f}", "", "")
    sums = {}
    for way, rounds in together.items():
        rates = [statistics.median(side) for side in zip(*rounds, strict=True)]
        sums[way] = statistics.median(sum(each) for each in rounds)
        shares = " : ".join(f"{rate / one:.2f}" for rate, one in zip(rates, own, strict=True))
        row(way, *(f"{r:.1f}" for r in rates), f"{sums[way]:.1f}", f"{sums[way] / statistics.mean(own):.2f}", shares)
    print(f"\ntogether / turns: {sums['together'] / sums['turns']:.2f}")
    report = clients["auto"].status().report
    print(f"the engine chose: {'together' if report is not None and report.together else 'turns'}")
    print(f"first token of the second prompt: {statistics.median(waits):.2f} s (longest {max(waits):.2f} s)")


def scaling(client: ChatClient, sources: list[Source], options: argparse.Namespace) -> None:
    """What one side, two, … make in sum, all once a round, beside their own rates; prints medians."""
    own: dict[str, list[float]] = {source.title: [] for source in sources}
    sums: list[list[float]] = [[] for _ in sources]
    side_by_side(client, sources, 8)  # loads and warms
    for _ in range(options.rounds):
        for source in sources[: len(own)]:  # a third and a fourth are the first two again
            heard = ask(client, source, [("user", PROMPTS[0])], options.tokens)
            own[source.title].append(heard.rate(heard.times[0], heard.times[-1]))
        for count, found in enumerate(sums, 1):
            found.append(sum(side_by_side(client, sources[:count], options.tokens)))
    alone = {title: statistics.median(rates) for title, rates in own.items()}
    print(", ".join(f"{title} alone {rate:.1f} tokens/s" for title, rate in alone.items()), end="\n\n")
    row("sides", "tokens/s in sum", "one alone", "sum / alone", "least of the rounds")
    row(*["---:"] * 5)
    for count, found in enumerate(sums, 1):
        mean = statistics.mean(alone[source.title] for source in sources[:count])
        total = statistics.median(found)
        row(f"{count}", f"{total:.1f}", f"{mean:.1f}", f"{total / mean:.2f}", f"{min(found):.1f}")


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=BUILTIN_MODEL, help="also gives its tokenizer to --random")
    parser.add_argument("--random", choices=["tinyllama"], help="1.1 B parameters with random weights, in bfloat16")
    parser.add_argument("--sides", type=int, default=2, choices=[2, 3, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--scaling", action="store_true", help="one side, two, … up to SIDES")
    options = parser.parse_args(arguments)
    name = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.random or options.model}, {options.sides} sides\n")
    clients: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = models(Path(folder), options)
        try:
            for way in ("auto",) if options.scaling else ("turns", "together", "auto"):
                clients[way] = ChatClient(Path(folder) / way, device=options.device, decoding=way)
            if options.scaling:
                scaling(clients["auto"], sources, options)
            else:
                measure(clients, sources, options)
        finally:
            for client in clients.values():
                client.close()


if __name__ == "__main__":
    main(sys.argv[1:])
