"""What the shipped plugins do, on held-out pictures: full difficulty, one question each, greedy, compared exactly.

    python -m examples.plugins.evaluate --json examples/plugins/results.json      # prints the README's tables

Questions are drawn from [seed, 7, task]; training draws from [seed, 6, step]. Per plugin: the share of answers in its
form, the share that is right when read back from the form, and what the base without it gets right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import fluvial
from examples.pebble.batches import collate, row
from examples.pebble.evaluate import answers, wrapped
from examples.pebble.world import Sample
from examples.plugins.data import facts_held_out, held_out, talks
from examples.plugins.forms import FORMS
from examples.plugins.train import NAMES, place
from fluvial.engine.plugins import Choice

STORED = (None, "int8", "int4")
SHIPPED = (*FORMS, "site")
BLENDS = ({"json": 0.5, "record": 0.5}, {"json": 0.7, "record": 0.3})
TURNS = ("json", None, "record", "json")  # plugins of the questions of one session
Answered = list[tuple[str, str, str]]  # task, right answer, what was said


class Bench:
    """One variant in one storage format with its shipped plugins, and the held-out questions."""

    def __init__(self, variant: str, quant: str | None, samples: list[Sample]) -> None:
        self.engine, self.samples, self.refused = fluvial.load(NAMES[variant], quant=quant), samples, dict[str, str]()
        self.model = wrapped(self.engine.model)
        self.tokenizer = Tokenizer.from_file(str(self.engine.model.folder / "tokenizer.json"))
        self.before = self._logits(), self._weights()
        for name in SHIPPED:
            try:  # one that is shipped for another variant shows why it is not for this one
                self.engine.plugins.load(next(p for v in (variant, "delta") if (p := place(name, v)).exists()), name)
            except fluvial.UnsupportedError as error:
                self.refused[name] = f"{type(error).__name__}: {error.what}"

    def answered(self, plugin: Choice = None, samples: list[Sample] | None = None) -> Answered:
        """All questions, or those given, under a plugin or a blend."""
        route, found, samples = self.engine.plugins.route(plugin), Answered(), samples or self.samples
        for at in range(0, len(samples), 20):
            part = samples[at : at + 20]
            said = answers(self.model, self.tokenizer, part, route)
            found += [(s.qa[0].task, s.qa[0].answer, text) for s, text in zip(part, said, strict=True)]
        return found

    def untouched(self) -> bool:
        """Whether the base without a plugin still gives the logits, and has the weights, of before any was loaded."""
        logits, weights = self._logits(), self._weights()
        return torch.equal(logits, self.before[0]) and weights == self.before[1]

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        batch = collate([row(self.tokenizer, sample) for sample in self.samples[:: len(self.samples) // 16]])
        return self.model.decoder.logits(self.model.decoder(self.model.embed(batch))[0])

    def _weights(self) -> list[bytes]:
        tensors = {**self.model.decoder.state_dict(), **self.model.vision.state_dict()}
        return [t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors.values()]


def share(answered: Answered, holds: Callable[[str, str, str], bool]) -> float:
    return round(sum(holds(*one) for one in answered) / len(answered), 3)


def scores(answered: Answered, base: Answered, name: str) -> dict[str, float]:
    """Of the questions that a form has answers for: how many are in the form, how many are right in it, and how many
    the base gets right in its own words."""
    form = FORMS[name]
    covered = [form.say(task, right) is not None for task, right, _ in answered]
    mine, plain = ([one for one, c in zip(all_of, covered, strict=True) if c] for all_of in (answered, base))
    return {
        "form": share(mine, lambda task, right, said: form.read(task, said) is not None),
        "right": share(mine, lambda task, right, said: form.read(task, said) == right),
        "base": share(plain, lambda task, right, said: said == right),
    }


def forms_of(answered: Answered) -> dict[str, float]:
    """The share of answers in each form."""

    def said_in(name: str) -> float:
        return share(answered, lambda task, right, said: FORMS[name].read(task, said) is not None)

    return {name: said_in(name) for name in FORMS}


def switching(bench: Bench, samples: list[Sample]) -> list[dict[str, Any]]:
    """Sessions that change plugin at every question about one picture: by turn, the share in the form that was asked
    for and the share that is right in it."""
    turns: list[Answered] = [[] for _ in TURNS]
    for sample in samples:
        with bench.engine.session() as session:
            session.push(fluvial.Image(sample.image))
            for qa, plugin, answered in zip(sample.qa, TURNS, turns, strict=True):
                *_, done = session.ask(qa.question, max_tokens=96, plugin=plugin or {})
                assert isinstance(done, fluvial.Done)
                answered.append((qa.task, qa.answer, done.text))
    found: list[dict[str, Any]] = []
    for plugin, answered in zip(TURNS, turns, strict=True):
        if plugin is None:
            found.append({"plugin": "base", "right": right(answered)})
        else:
            found.append({"plugin": plugin, **scores(answered, answered, plugin)})
            del found[-1]["base"]
    return found


def right(answered: Answered) -> float:
    """The share that is right in the base's own words."""
    return share(answered, lambda task, right, said: said == right)


def knowing(bench: Bench, base: Answered, facts: list[Sample]) -> dict[str, float]:
    """The state plugin: facts it knows, with LoRA on top of it too, and what it costs elsewhere."""
    plain = bench.answered(None, facts)
    in_json = scores(bench.answered({"site": 1, "json": 1}, facts), plain, "json")
    return {
        "facts": right(bench.answered("site", facts)),
        "facts, base": right(plain),
        "facts in json": in_json["right"],
        "other questions": right(bench.answered("site")),
        "other questions, base": right(base),
    }


def measured(
    variant: str, quant: str | None, samples: list[Sample], facts: list[Sample], several: list[Sample]
) -> dict[str, Any]:
    """Everything about one variant in one storage format."""
    bench = Bench(variant, quant, samples)
    base = bench.answered()
    found: dict[str, Any] = {"variant": variant, "stored": quant or "bf16"}
    found["plugins"] = {info.name: info.digest for info in bench.engine.plugins.list()}
    found |= {name: scores(bench.answered(name), base, name) for name in FORMS}
    found["site"] = bench.refused.get("site") or knowing(bench, base, facts)
    if quant is None:
        found["blends"] = [{"of": blend, **forms_of(bench.answered(blend))} for blend in BLENDS]
        found["switching"] = switching(bench, several)
    return found | {"untouched": bench.untouched()}


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """The README's first table, in Markdown."""
    yield "| variant | weights | json | record | site: facts | site: other questions | base untouched |"
    yield "|---" * 7 + "|"
    for found in results:
        cells = [found["variant"], found["stored"]]
        cells += ["{form:.2f} / {right:.2f} ({base:.2f})".format(**found[name]) for name in FORMS]
        site = found["site"]
        for group in ("facts", "other questions"):
            cells.append(site if isinstance(site, str) else f"{site[group]:.2f} ({site[group + ', base']:.2f})")
        yield "| " + " | ".join([*cells, "yes" if found["untouched"] else "NO"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=4001)
    parser.add_argument("--pictures", type=int, default=12, help="samples of each task")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples = held_out(args.seed, args.pictures)
    facts = facts_held_out(args.seed, 2 * args.pictures)
    several = talks(args.seed, args.pictures, len(TURNS))
    results = []
    for variant in NAMES:
        for quant in STORED:
            results.append(measured(variant, quant, samples, facts, several))
            print(json.dumps(results[-1]), flush=True)
    print("\n".join(table(results)))
    if args.json:
        counts = {"questions": len(samples), "facts": len(facts), "sessions": len(several)}
        about = {"seed": args.seed, **counts, "results": results}
        args.json.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
