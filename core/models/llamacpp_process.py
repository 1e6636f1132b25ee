"""llama.cpp at work on a GGUF file: a script in isolated mode, with the standard library and xllamacpp only.

Argument: a JSON file with `path`, `threads`, `context`, `texts` to cut into tokens, `prompts` (lists of token ids)
whose every position is answered with the next token, and `continue` ({ids, tokens} to write on greedily, or null). The
last line of output is JSON: `token_ids`, `picks` (the likeliest id after each position), `written`. The server that it
starts listens on 127.0.0.1 alone, with a key that nobody else knows, and ends with the process.
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

    def __init__(self, path: str, threads: int, context: int) -> None:
        import xllamacpp  # type: ignore[import-untyped,import-not-found,unused-ignore]

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # its default rounds to float16
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


def main(request: str) -> None:
    """Load, answer, write."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    engine = Engine(asked["path"], asked["threads"], asked["context"])
    cut = [
        engine.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        for text in asked["texts"]
    ]
    picks = [[engine.write(ids[: end + 1], 1)[0] for end in range(len(ids))] for ids in asked["prompts"]]
    more = asked.get("continue")
    written = engine.write(more["ids"], more["tokens"]) if more else []
    answer = {"token_ids": cut, "picks": picks, "written": written}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)  # the server's threads have nothing left to say


if __name__ == "__main__":
    main(sys.argv[1])
