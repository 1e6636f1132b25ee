"""What is said of engines."""

from core.models.engines import Engine, as_mistral, loads_in, stock, zeros_in_words
from core.models.sizes import Architecture, LayerSizes


def model(*layers: tuple[int, int, int], family: str = "llama", hidden: int = 576) -> Architecture:
    return Architecture(family, hidden, 64, 49152, True, tuple(LayerSizes(*sizes) for sizes in layers))


def by_name(found: list[Engine]) -> dict[str, Engine]:
    return {each.name: each for each in found}


def test_equal_layers_load_everywhere_without_code() -> None:
    found = by_name(loads_in(model((9, 3, 1536), (9, 3, 1536))))
    assert all(each.loads for each in found.values())
    assert found["transformers"].how == "stock class, no remote code"
    assert found["llama.cpp"].how == "as GGUF, architecture llama"


def test_layers_that_differ_need_code_in_transformers_and_deci_in_llama_cpp() -> None:
    found = by_name(loads_in(model((9, 3, 1536), (9, 3, 1088))))
    assert found["transformers"].how == "with trust_remote_code=True"
    assert not found["vLLM"].loads
    assert found["llama.cpp"].how == "as GGUF, architecture deci"


def test_a_family_without_gguf_says_so() -> None:
    assert "no GGUF" in by_name(loads_in(model((9, 3, 64), family="gemma2")))["llama.cpp"].how
    uneven = by_name(loads_in(model((9, 3, 64), (9, 3, 32), family="qwen2")))["llama.cpp"]
    assert (uneven.loads, "whose layers differ" in uneven.how) == (False, True)


def test_vllm_takes_two_of_four_as_a_dense_model() -> None:
    dense = model((9, 3, 1536))
    assert "no 2:4 kernels any more" in by_name(loads_in(dense, "2:4"))["vLLM"].how
    assert by_name(loads_in(dense, "unstructured"))["vLLM"].how == "stock class, as a dense model"
    assert "removed its 2:4 kernels" in zeros_in_words("2:4")
    assert "4:8" in zeros_in_words("4:8")


def test_odd_head_counts_are_a_mistral_unless_there_are_biases() -> None:
    odd = model((7, 7, 64), (7, 7, 64))
    assert as_mistral(odd)
    assert stock(odd)
    assert not as_mistral(model((9, 3, 64)))
    assert not as_mistral(model((7, 7, 64), (7, 7, 32)))
    from dataclasses import replace

    assert not as_mistral(replace(odd, attention_bias=True))
    assert not stock(replace(odd, attention_bias=True))
