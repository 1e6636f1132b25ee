"""The words of this program, each once: help texts of pages and docs/glossary.md are made from here.

Meanings are one or two sentences of plain text: pages show them as they are, docs/glossary.md as a table.
"""

from collections.abc import Mapping

from core.errors import UnknownNameError

TERMS: Mapping[str, str] = {
    "achieved ratio": "Share of parameters really removed (or set to zero) of what the method cuts in the selected layers. Differs from the ratio because heads come whole.",
    "achieved share of the whole model": "The same, of all parameters, embeddings included. What size comparisons use.",
    "adapter": "The small matrices that LoRA trained, in files of their own.",
    "allocation": "How a ratio is shared over the layers: the same in each, by one ranking over all, by measured costs, or less where outliers are.",
    "baseline": "What differences are taken against: the dense run of the same model, format and protocol, or any run that is pinned.",
    "calibration": "Text the method looks at before it decides: inputs of layers (Wanda), gradients (Taylor). Never the text a result is judged on.",
    "came back": "Share of what the cut cost that recovery brought back: gain over the pruned model’s distance to dense.",
    "cost of a layer": "Nats a token that the model loses when only that layer is pruned. What a sensitivity scan measures.",
    "cut line": "The importance below which everything went. Where each row or group is ranked by itself, each has its own.",
    "decoder layer": "One block of attention and MLP, counted from 0. Ranges include both ends.",
    "dense": "The model before pruning.",
    "density": "Share of a matrix that is not zero.",
    "depth method": "Removes whole decoder layers. The model is smaller and faster.",
    "distillation": "Recovery in which the dense model teaches: the pruned one learns its next-token distributions.",
    "diverged": "A training whose loss became nan, or rose above three times its start: called off, and its last good checkpoint is judged.",
    "dominated": "Beaten by another run in one respect and not better in the other.",
    "drift by layer": "Relative distance of the pruned model's hidden states to the dense model's after each layer: ‖dense − pruned‖ / ‖dense‖, mean over positions.",
    "espalier": "The figure of a model: a trunk (the stream) with a branch a layer, heads to the left, MLP channels to the right. Filled stays, hollow went, pale was not chosen from.",
    "Experiment": "The whole configuration of a run: the form, the YAML file and the command line are views of it.",
    "fidelity": "How close the pruned model's next-token distribution is to the dense one: mean KL divergence (nats per token) and the share of positions with the same first choice.",
    "flipped document": "One that one model answers right and the other wrong.",
    "gain": "Value after recovery less value before, with its error on the same documents and windows.",
    "guessing": "Accuracy of drawing a choice at random, on the documents that were scored.",
    "importance": "The score that a method gives a head, channel, layer or weight. The lowest go.",
    "interval": "The 95 % interval: 1.96 standard errors to both sides, or from a bootstrap where the page says so.",
    "KL by layer": "KL divergence of the output, in nats a token, if all layers up to this one are the pruned model’s and all above the dense one’s. Where it rises, output is lost.",
    "KV group": "One key/value head together with the query heads that share it.",
    "leakage": "Judging on text that calibration read, or on text of the same origin: allowed, flagged with †.",
    "LoRA": "Recovery that trains small matrices beside frozen weights and merges them: W + (alpha / rank)·B·A.",
    "majority": "Accuracy of always giving the answer that is right most often, on the documents that were scored.",
    "mask method": "Sets single weights to zero. Shapes stay, so the file is no smaller and, on most hardware, no faster.",
    "method": "The criterion that says what is least important.",
    "MLP channel": "One row of the gate and up projections with its column of the down projection.",
    "nat": "Unit of log-likelihood with the natural logarithm: 1 nat more a token multiplies perplexity by 2.72.",
    "Pareto front": "The runs that no other run beats in both respects at once.",
    "pattern": "Where a mask method may put zeros: anywhere (unstructured), or exactly n − m of each m consecutive inputs (2:4 keeps two of four).",
    "perplexity": "exp of the mean negative log-likelihood per token over windows that do not overlap. Comparable only with the same corpus, split, window and BOS handling.",
    "protocol": "Everything a number depends on besides the model: corpus, split, window, shots, limit, harness version, dtype, device, seed. Stored with each value.",
    "quantised": "Weights rounded to few bits, in blocks with a common scale (Q8_0, Q4_0). Beside pruning, not a part of it.",
    "ratio": "Fraction removed. 0.3 removes 30 %.",
    "recovered": "The model after recovery. Pruned, beside it, is the one before.",
    "recovery": "Training after the cut.",
    "run": "One Experiment, carried out once, in a folder of its own.",
    "sensitivity scan": "One job that prunes each layer by itself and measures what it costs, to choose which layers to prune.",
    "standard error": "How far a measured value would typically be off if other documents of the same kind were drawn.",
    "stream": "The residual stream: the vector that every layer reads and adds to.",
    "study": "Many runs as one: a base experiment, grids and single runs, previewed, queued and compared together.",
    "validation": "−log q, in nats a token, on documents kept out of the training of recovery.",
    "width method": "Removes whole units (KV groups, query heads, MLP channels). The model is smaller and faster.",
    "window": "A fixed number of consecutive tokens that the model sees at once.",
}


def meaning(term: str) -> str:
    """What a word means; UnknownNameError for one that is not in the glossary."""
    if term not in TERMS:
        raise UnknownNameError("term", term, TERMS)
    return TERMS[term]


def search(text: str) -> dict[str, str]:
    """Words whose name or meaning holds all of what was typed, names first; all of them for nothing."""
    words = text.casefold().split()

    def held(where: str) -> bool:
        return all(word in where.casefold() for word in words)

    named = {term: said for term, said in TERMS.items() if held(term)}
    return named | {term: said for term, said in TERMS.items() if held(f"{term} {said}")}
