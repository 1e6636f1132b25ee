"""From a saved pruned model to a saved recovered one: the data, the training, the merge.

The pruned model is read from its folder and never changed. What is trained is an adapter (LoRA), or, in distillation
with `full_weights`, the weights of the cut layers themselves. The result is merged in float32 and is a plain model.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from core.device import resolve_dtype
from core.errors import InputError
from core.models.loading import load_directory
from core.models.saving import save, verify
from core.progress import Progress, while_it_lasts
from core.recovery.distillation import Objective
from core.recovery.generated import DOCUMENTS, generated
from core.recovery.lora import PARTS, attach, linear_names, merge
from core.recovery.samples import Material, material
from core.recovery.training import Trained, train

if TYPE_CHECKING:
    from core.experiment import Recovery

Dense = Callable[[str], tuple[Any, Any]]
"""Loads the dense model and its tokenizer in a dtype."""
WEIGHTS = "weights.safetensors"
README = """# A LoRA adapter of Espalier

It belongs to the pruned model in the folder `model` of the same run, and peft loads it onto that:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/model", trust_remote_code=True)  # its layers may differ in size
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```

The folder `recovered` of the run holds both in one, and needs no adapter. Where the pruned model is masked, an adapter
fills its zeros: take `recovered`, whose zeros are kept.
"""


@dataclass(frozen=True)
class Pruned:
    """A saved pruned model: its folder, whether it is masked (zeros must stay), and its layers that lost something."""

    folder: Path
    masked: bool
    cut_layers: tuple[int, ...]


@dataclass(frozen=True)
class Recovered:
    """What recovery made: how the training went, what it learned from, and the saved model."""

    training: Trained
    data: dict[str, Any]
    bytes: int
    layout: str
    loads_in: tuple[str, ...]
    verify: dict[str, Any]


def recover(
    pruned: Pruned,
    choice: "Recovery",
    *,
    dense: Dense,
    fingerprint: str,
    device: str,
    dtype: str,
    saved_dtype: str,
    seed: int,
    folder: Path,
    model_dir: Path,
    cache: Path,
    progress: Callable[[str], Progress],
) -> Recovered:
    """Train, merge, save into `model_dir` and verify; goes on from what an earlier attempt left in `folder`.

    dtype: of the run's passes; saved_dtype: of the weights on disk. The adapter, or the trained weights, stay in
    `folder`. progress(task) gives the Progress of a part.
    """
    file = folder / "adapter" if not _full(choice) else folder / WEIGHTS
    work = _training_dtype(choice, dtype, device)
    teacher: Any = None
    if choice.kind == "distillation" or choice.prompt is not None:
        teacher = dense(work)[0]
    model, tokenizer = load_directory(pruned.folder, device=device, dtype=work, progress=progress("load"))
    data = _material(choice, teacher, tokenizer, fingerprint, seed, cache, progress)
    if choice.kind != "distillation":
        teacher = None
        _free()
    torch.manual_seed(seed)  # LoRA matrices begin at random
    objective = _objective(choice, model, teacher)
    trained_model = _trainable(model, choice, pruned)
    training = train(
        trained_model, objective, data, choice, device=device, seed=seed, folder=folder, progress=progress("train")
    )
    _keep(trained_model, choice, file)
    del model, trained_model, objective, teacher
    _free()
    plain = _merged(pruned, choice, file, progress("merge"))
    saved = save(plain, tokenizer, model_dir, progress("save"), dtype=saved_dtype)
    _as_stored(plain, saved_dtype)
    report = verify(model_dir, plain, tokenizer, progress("verify"))
    return Recovered(training, data.info, saved.bytes, saved.layout, tuple(saved.loads_in), asdict(report))


def _full(choice: "Recovery") -> bool:
    return choice.kind == "distillation" and choice.full_weights


def _training_dtype(choice: "Recovery", dtype: str, device: str) -> str:
    """Of the weights that are held while training; the passes themselves run in half precision where a GPU has it.

    Weights that are trained themselves are float32: small steps would be lost in float16 and bfloat16.
    """
    if device == "cpu" or dtype == "float32" or _full(choice):
        return "float32"
    return resolve_dtype("auto", device)


def _material(
    choice: "Recovery",
    teacher: Any,
    tokenizer: Any,
    fingerprint: str,
    seed: int,
    cache: Path,
    progress: Callable[[str], Progress],
) -> Material:
    written: Sequence[Sequence[int]] | None = None
    if choice.prompt is not None:
        written = generated(
            teacher,
            tokenizer,
            fingerprint=fingerprint,
            documents=choice.data.max_samples or DOCUMENTS,
            length=choice.cutoff,
            prompt=choice.prompt,
            seed=seed,
            folder=cache / "generated",
            progress=progress("write text"),
        )
    tell = progress("read text")
    found = while_it_lasts(
        lambda: material(
            choice.data, tokenizer, length=choice.cutoff, validation=choice.validation, seed=seed, generated=written
        ),
        lambda: tell(0, 1, "texts"),
    )
    return found if choice.prompt is None else replace(found, info={**found.info, "prompt_tokens": choice.prompt})


def _objective(choice: "Recovery", model: Any, teacher: Any) -> Objective:
    if teacher is None:
        return Objective(model)
    if choice.hidden_mix > 0 and teacher.config.hidden_size != model.config.hidden_size:
        raise InputError(
            f"The pruned model's stream has {model.config.hidden_size} channels and the dense one's "
            f"{teacher.config.hidden_size}: their hidden states cannot be compared.",
            "Set recovery.hidden_mix: 0.",
        )
    teacher.requires_grad_(False).eval()
    return Objective(model, teacher, choice.loss_mix, choice.temperature, choice.hidden_mix)


def _trainable(model: Any, choice: "Recovery", pruned: Pruned) -> Any:
    """The module that is trained, everything else of it frozen."""
    if not _full(choice):
        return attach(model, choice, masked=pruned.masked)
    model.requires_grad_(False)
    layers = [i for i in pruned.cut_layers if i < model.config.num_hidden_layers] or range(
        model.config.num_hidden_layers
    )
    for name in linear_names(model, PARTS[choice.target_modules], layers):
        weight = model.get_submodule(name).weight
        weight.requires_grad_(True)
        if pruned.masked:
            kept = weight.detach() != 0
            weight.register_hook(lambda gradient, kept=kept: gradient * kept)
    return model


def _keep(model: Any, choice: "Recovery", file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if _full(choice):
        trained = ((name, each) for name, each in model.named_parameters() if each.requires_grad)
        weights = {name: each.detach().cpu().contiguous() for name, each in trained}
        save_file(weights, str(file))
    else:
        model.save_pretrained(str(file))
        (file / "README.md").write_text(README, encoding="utf-8")


def _merged(pruned: Pruned, choice: "Recovery", file: Path, progress: Progress) -> Any:
    """The recovered model as a plain one, float32 on the CPU."""
    model, _ = load_directory(pruned.folder, device="cpu", dtype="float32", progress=progress)
    if not _full(choice):
        return merge(model, file, choice, masked=pruned.masked)
    with torch.no_grad():
        for name, weight in load_file(str(file)).items():
            model.get_parameter(name).copy_(weight)
    return model


def _as_stored(model: Any, dtype: str) -> None:
    """Weights in the format they were saved in, which is what verification compares: a fresh process needs the room."""
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
