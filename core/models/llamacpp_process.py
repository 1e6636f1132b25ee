"""llama.cpp at work on a GGUF file: a script in isolated mode, with the standard library and xllamacpp only.

Argument: a JSON file with `path`, `threads`, `context`, `texts` to cut into tokens, `prompts` (lists of token ids)
whose every position is answered with the next token, and `continue` ({ids, tokens} to write on greedily, or null). The
last line of output is JSON: `token_ids`, `picks` (the likeliest id after each position), `written`.

With `speed` ({paths, ids, tokens, rounds}) in place of all that but `threads` and `context`: the files are timed in
turn, after one round that does not count, on the prompt `ids` and `tokens` written after it; each round leaves a line
`round N`, and the answer's `rounds` holds for each of them one {prefill, decode} a file, in tokens a second.

The servers that it starts listen on 127.0.0.1 alone, with a key that nobody else knows, and end with the process.
"""

import http.client
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Engine:
    """One loaded model."""

    def __init__(self, path: str, threads: int, context: int, exact: bool = True) -> None:
        import xllamacpp  # type: ignore[import-untyped,import-not-found,unused-ignore]

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if exact:  # its own defaults are faster, and round keys and values to float16
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.ui = False
        params.verbosity = 1  # errors
        params.fit_params = False
        self._key = secrets.token_urlsafe(24)
        params.api_keys = [self._key]
        self._server = xllamacpp.Server(params)
        self._address = urlsplit(self._server.listening_address)

    def ask(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST, and the JSON that comes back. RuntimeError with llama.cpp's own words."""
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        connection.request("POST", route, json.dumps(body), headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"llama.cpp answered {route} with {response.status}: {answer}")
        return answer

    def write(self, ids: list[int], tokens: int) -> list[int]:
        """At most `tokens` ids, each the likeliest after what stands before it."""
        body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "return_tokens": True, "cache_prompt": True}
        found: list[int] = self.ask("/completion", body)["tokens"]
        return found

    def time(self, ids: list[int], tokens: int) -> dict[str, float]:
        """Tokens a second of reading the prompt, and of writing after the first token."""
        body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        took = self.ask("/completion", body)["timings"]
        steps = took["predicted_n"] - 1  # the first token comes of the prompt's pass
        return {
            "prefill": 1000 * took["prompt_n"] / took["prompt_ms"],
            "decode": 1000 * steps / took["predicted_ms"],
        }


def timed(asked: dict[str, Any]) -> list[list[dict[str, float]]]:
    """Rounds of timings, one a file in each."""
    speed = asked["speed"]
    engines = [Engine(path, asked["threads"], asked["context"], exact=False) for path in speed["paths"]]
    rounds = []
    for number in range(speed["rounds"] + 1):
        found = [engine.time(speed["ids"], speed["tokens"]) for engine in engines]
        sys.stdout.write(f"\nround {number}\n")
        sys.stdout.flush()
        if number:
            rounds.append(found)
    return rounds


def main(request: str) -> None:
    """Load, answer, write."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    if "speed" in asked:
        _end({"rounds": timed(asked)})
    engine = Engine(asked["path"], asked["threads"], asked["context"])
    cut = [
        engine.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        for text in asked["texts"]
    ]
    picks = [[engine.write(ids[: end + 1], 1)[0] for end in range(len(ids))] for ids in asked["prompts"]]
    more = asked.get("continue")
    written = engine.write(more["ids"], more["tokens"]) if more else []
    _end({"token_ids": cut, "picks": picks, "written": written})


def _end(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)  # the server's threads have nothing left to say


if __name__ == "__main__":
    main(sys.argv[1])
