"""What groups, sizes, qualities and protocols are called, in the report's language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.charts_frames import QUANTISED, Quality
from core.charts_runs import recovery_settings
from core.charts_words import canonical, mapping
from core.experiment import Calibration
from core.report.material import UNPRUNED, Group, Material
from core.report.numbers import Numbers as Figures
from core.report.numbers import unit
from core.report.words import Words

TASKS = {
    "boolq": "BoolQ", "piqa": "PIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande", "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c", "openbookqa": "OBQA",
}  # fmt: skip
_PLAIN = ("pruning.ratio", "pruning.method", "model.trust_remote_code", "model.quantised")
_OF_BLOCK = ("model.name", "model.dtype")
_SIZES = ("pruning.target", "pruning.layers")
_SHORT = ("corpus", "path", "split", "window", "max_tokens", "bos", "shots", "limit", "chat_template", "batch")
_COUNTS = ("tokens", "windows", "tokens_sha256", "file_sha256")


class Names:
    """Names that tell the groups of one report apart."""

    def __init__(self, material: Material, groups: Sequence[Group], words: Words) -> None:
        self.words, self.figures = words, Figures(words.language)
        self._material = material
        self._models = {str(group.settings.get("model.name")) for group in groups}
        self._varying = _varying(groups)
        self._dtypes = {str(group.settings.get("model.dtype")) for group in groups}
        self._devices: dict[tuple[Any, ...], set[str]] = {}
        self._alike: Counter[str] = Counter()
        for group in groups:
            self._devices.setdefault(group.size, set()).add(str(group.settings.get("device")))
            self._alike[_elsewhere(group)] += 1
        protocols: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for row in material.points.drop_duplicates("quality").itertuples():
            known = protocols.setdefault((str(row.task), str(row.metric)), {})
            known[str(row.quality)] = mapping(row.protocol)
        self._protocols = protocols
        trained = (experiment.to_dict()["recovery"] for experiment in material.experiments.values())
        self._recoveries: list[Mapping[str, Any]] = [each for each in trained if each]

    # --- groups

    def method(self, group: Group) -> str:
        """The method's title; `dense`, or the format of rounded weights."""
        if group.family == "dense":
            return self.words.say("dense")
        if group.method in QUANTISED:
            return group.method.upper()
        known = self._material.methods.get(group.method)
        return known.title if known is not None else group.method

    def short(self, group: Group) -> str:
        """Method and what else sets it apart, without the size."""
        return ", ".join([self.method(group), *self._details(group)])

    def in_block(self, group: Group) -> str:
        """The same without what all rows of a block share: its title, or its sentence, says that."""
        return ", ".join([self.method(group), *self._details(group, _OF_BLOCK)])

    def series(self, group: Group, *, dtype: bool = True) -> str:
        """The same, with layers and target where they vary: what a line of a figure has in common.

        dtype: whether the figure's lines were measured in several.
        """
        more = []
        if "pruning.target" in self._varying.get(group.method, ()) and group.settings.get("pruning.target") == "model":
            more.append(self.words.say("whole_model"))
        elif "pruning.layers" in self._varying.get(group.method, ()):
            more.append(self._layers(group))
        return ", ".join([self.method(group), *self._details(group, () if dtype else ("model.dtype",)), *more])

    def series_key(self, group: Group) -> str:
        """Equal for groups that differ in nothing but ratio and seeds."""
        rest = {name: value for name, value in group.settings.items() if name != "pruning.ratio"}
        return canonical([group.family, rest])

    def label(self, group: Group) -> str:
        """The whole name of a row: method, ratio, settings."""
        if group.family in UNPRUNED:
            return self.short(group)
        shares = f"{self.method(group)} {self.figures.plain_percent(group.ratio)}"
        whole = group.settings.get("pruning.target") == "model"
        if whole:
            shares = f"{shares} {self.words.say('whole_model')}"
        more: list[str] = []
        if not whole and "pruning.layers" in self._varying.get(group.method, ()):
            more = [self._layers(group)]
        return ", ".join([shares, *more, *self._details(group)])

    def size(self, group: Group) -> str:
        """`30 % of layers 4–25`: what the rows of a block have in common."""
        say, layers = self.words.say, group.settings.get("pruning.layers")
        if group.settings.get("pruning.target") == "model":
            where = say("of_whole_model")
        elif group.kind == "hidden":
            where = say("of_stream")
        elif layers:
            where = say("of_layers_some", first=layers[0], last=layers[1])
        else:
            where = say("of_layers_all")
        model, dtype = self.model(group)
        size = say("size", ratio=self.figures.plain_percent(group.ratio), where=where)
        return ", ".join(word for word in (model, size, dtype) if word)

    def model(self, group: Group) -> tuple[str, str]:
        """A group's model and number format, each '' where the report has one only."""
        return (
            short_model(str(group.settings.get("model.name"))) if len(self._models) > 1 else "",
            str(group.settings.get("model.dtype")) if len(self._dtypes) > 1 else "",
        )

    def where(self, group: Group) -> str:
        """Which layers a group was cut in."""
        return self.words.say("stream") if group.kind == "hidden" else self._layers(group)

    def _layers(self, group: Group) -> str:
        layers = group.settings.get("pruning.layers")
        if not layers:
            return self.words.say("layers_all")
        return self.words.say("layers_some", first=layers[0], last=layers[1])

    def _details(self, group: Group, left_out: Sequence[str] = ()) -> list[str]:
        unsaid = [*_PLAIN, *_SIZES, *left_out]
        if len(self._devices[group.size]) < 2:  # speeds of each device stand in tables of their own
            unsaid.append("device")
        if self._alike[_elsewhere(group)] < 2:
            unsaid.append("model.dtype")
        varying = [name for name in self._varying.get(group.method, ()) if name not in unsaid]
        said = [self._setting(name, group.settings.get(name)) for name in varying if name != "recovery"]
        recovery = group.settings.get("recovery")
        pattern = str(group.settings.get("pruning.pattern") or "")
        if pattern not in ("", "unstructured") and "pruning.pattern" not in varying:
            said.insert(0, pattern)
        if recovery is not None:
            said.append(self._recovery(recovery))
        return [word for word in said if word]

    def _setting(self, name: str, value: Any) -> str:
        """How a setting that varies is said; '' where it is the usual."""
        say = self.words.say
        match name, value:
            case "model.name", _:
                return short_model(str(value)) if len(self._models) > 1 else ""
            case "model.revision", str():
                return say("revision", value=value[:12])
            case (("model.dtype" | "device"), _):
                return str(value)
            case "pruning.parts", [part]:
                return say(f"only_{part}")
            case "pruning.pattern", str() if value != "unstructured":
                return value
            case "pruning.heads", "query_heads":
                return say("query_heads")
            case "pruning.round_to", int():
                return "" if value == 32 else say("no_rounding") if value == 1 else say("round_to", value=value)
            case "pruning.allocation", str() if value != "uniform":
                return say("allocation", value=value)
            case (("pruning.same_sizes" | "pruning.reconstruct"), True):
                return say(name.rpartition(".")[2])
            case "pruning.options", dict():
                return ", ".join(f"{key} {each}" for key, each in value.items())
            case "pruning.calibration", dict():
                return self._calibration(value)
        return ""

    def _calibration(self, value: Mapping[str, Any]) -> str:
        usual = Calibration().model_dump(mode="json")
        text = value.get("path") or value.get("corpus")
        said = []
        if text != usual["corpus"] or value.get("split") != usual["split"]:
            said.append(self.words.say("calibrated_on", value=file_of(str(text))))
        if (value.get("samples"), value.get("length")) != (usual["samples"], usual["length"]):
            said.append(self.words.say("calibrated_with", samples=value.get("samples"), length=value.get("length")))
        return ", ".join(said)

    def _recovery(self, value: Mapping[str, Any]) -> str:
        """`LoRA`, and those of its settings that are not the same in all recoveries of its kind in the report."""
        told = (
            file_of(str(each)) if name in ("path", "corpus") else setting_words(name, each, self.figures)
            for name, each in recovery_settings(value, self._recoveries)
        )
        return ", ".join([self.words.say(str(value["kind"])), *told])

    # --- qualities

    def quality(self, quality: Quality, *, short: bool = False) -> str:
        """What a column, an axis or a sentence calls a quality: with its protocol where there are several."""
        name = self.plain_quality(quality, short=short)
        corpus = quality.task.partition("/")[2]
        texts = {task for task, metric in self._protocols if metric == quality.metric}
        first = corpus if quality.metric == "perplexity" or not short or len(texts) > 1 else ""
        told = [word for word in (first, self.ways(quality)) if word]
        return f"{name} ({', '.join(told)})" if told else name

    def in_sentence(self, quality: Quality, *, article: bool = False) -> str:
        """The same within a sentence, with its article where the language has one."""
        name = self.quality(quality)
        if article and (quality.is_mean or quality.metric == "perplexity"):
            known = "mean" if quality.is_mean else "perplexity"
            return self.words.say(f"{known}_with_article") + name.removeprefix(self.words.say(known))
        common = quality.metric == "perplexity" or quality.is_mean
        return name[0].lower() + name[1:] if common and self.words.language == "en" else name

    def ways(self, quality: Quality) -> str:
        """What sets the protocol of a quality apart from others that it was measured by; '' for the only one."""
        known = self._protocols.get((quality.task, quality.metric), {})
        own = known.get(quality.key, {})
        words = [self.protocol_word(key, own.get(key)) for key in differing(list(known.values()), own)]
        return ", ".join(word for word in words if word)

    def plain_quality(self, quality: Quality, *, short: bool) -> str:
        """A quality without its protocol and corpus."""
        say, about = self.words.say, quality.task.partition("/")[0]
        if quality.is_mean:
            return say("mean_short" if short else "mean")
        if self.words.has(quality.metric):
            return say(quality.metric)
        name = TASKS.get(quality.task, quality.task)
        if quality.primary and quality.is_task:
            return name
        return f"{name} {quality.metric}" if about not in ("fidelity", "speed") else quality.metric.replace("_", " ")

    def axis(self, quality: Quality) -> str:
        """A quality with its unit: what stands on an axis."""
        shown = self.unit(quality)
        return f"{self.quality(quality)} [{shown}]" if shown else self.quality(quality)

    def unit(self, quality: Quality) -> str:
        """The unit of a quality's values in this language."""
        found = unit(quality)
        return self.words.say("tokens_per_second") if found == "tokens/s" else found

    def protocol_word(self, key: str, value: Any) -> str:
        """One setting of a protocol, in words."""
        words = self.words
        if isinstance(value, bool) and words.has(f"p_{key}"):
            return words.say(f"p_{key}" if value else f"p_{key}_not")
        if value is None:
            return words.say(f"p_{key}_none") if words.has(f"p_{key}_none") else ""
        if words.has(f"p_{key}"):
            return words.say(f"p_{key}", value=self.figures.integer(value) if isinstance(value, int) else value)
        if key in ("corpus", "path", "data"):
            return file_of(str(value))
        return setting_words(key, str(value)[:12] if key.endswith("sha256") else str(value), self.figures)


def differing(protocols: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> list[str]:
    """Keys that set a protocol apart from others of the same task and metric; counts only where nothing else does."""
    if len(protocols) < 2:
        return []
    names = sorted({name for protocol in protocols for name in protocol})
    found = [name for name in names if len({canonical(protocol.get(name)) for protocol in protocols}) > 1]
    found.sort(key=lambda name: (_SHORT.index(name) if name in _SHORT else 99, name))
    told = [name for name in found if name not in _COUNTS] or found
    alike = [each for each in protocols if all(each.get(name) == own.get(name) for name in told)]
    if len({canonical(each) for each in alike}) > 1:
        told += [name for name in _COUNTS if name in found and name not in told]
    return told


def _elsewhere(group: Group) -> str:
    """Equal for groups that differ in nothing but number format and device."""
    rest = {name: value for name, value in group.settings.items() if name not in ("model.dtype", "device")}
    return canonical([group.family, rest])


def short_model(name: str) -> str:
    """A model's name without where it comes from."""
    return name.removeprefix("builtin:").rstrip("/").rpartition("/")[2] or name


def file_of(text: str) -> str:
    """The last part of a path."""
    return text.rstrip("/").rpartition("/")[2] or text


def setting_words(name: str, value: Any, figures: Figures) -> str:
    """`epochs 4`, `full weights`."""
    return name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {figures.general(value)}"


def _varying(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Method → settings that differ between its groups."""
    by_method: dict[str, list[Group]] = {}
    for group in groups:
        by_method.setdefault(group.method, []).append(group)
    found = {}
    for method, members in by_method.items():
        names = list(dict.fromkeys(name for group in members for name in group.settings))
        found[method] = [name for name in names if len({canonical(group.settings.get(name)) for group in members}) > 1]
    return found
