"""The stranger who loads a saved model: a script in isolated mode, with torch, transformers and safetensors only.

Arguments: model folder, token ids (safetensors, `ids`), file for the logits, 1 if the folder's code may run,
1 if layers stay on disk until they run, a text.
The last line of output is JSON: the model's class, the version of transformers, the text's token ids, chat template.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: str, request: str, answer: str, trusted: str, offload: str, text: str) -> None:
    """Load, compute, write."""
    on_disk = {"device_map": "auto", "max_memory": {"cpu": 2**20}, "offload_folder": f"{answer}.layers"}
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        trust_remote_code=trusted == "1",
        use_safetensors=True,
        **(on_disk if offload == "1" else {}),
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        logits = model(input_ids=load_file(request)["ids"], use_cache=False).logits
    save_file({"logits": logits.contiguous()}, answer)
    found = {
        "class": type(model).__name__,
        "transformers": transformers.__version__,
        "text_ids": list(tokenizer(text)["input_ids"]),
        "chat_template": tokenizer.chat_template,
    }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
