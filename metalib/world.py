"""The generated review world: product reviews of 22 domains in which words change sign from domain to domain.

A review of domain d with label y = ±1 holds 2 to 4 opinion words w. Each has a sign in d, which agrees with y
with probability AGREEMENT. There are three kinds of them (all are in `lexicon.yaml`):

    universal   'superb', 'awful'    sign(w, d) = polarity(w), the same everywhere
    private     'gripping' in books  sign(w, d) = polarity(w), occurs in one domain only
    contrary    'light', 'heavy'     sign(w, d) = polarity(w) · trait_sign(d): praise here, blame there

Since the recipe is known, so is the best accuracy that any classifier can reach: `World.best_accuracy`.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import datasets
import numpy as np
import yaml

from metalib.errors import BadInput

TEST_DOMAINS = ("automotive", "computer_&_video_games", "office_products")
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["negative", "positive"]),  # 0, 1
        "domain": datasets.Value("string"),
    }
)
POSITIVE_SHARE = 0.7  # of every domain's reviews; leaves 30 negatives in each of the three test domains
AGREEMENT = 0.92  # probability that the sign of an opinion agrees with the label of its review
OPENER_SHARE = CLOSER_SHARE = 0.4


@cache
def lexicon() -> dict[str, Any]:
    """All words, templates and domains of `lexicon.yaml`. Cached: read it, do not change it."""
    return yaml.safe_load(resources.files("metalib").joinpath("lexicon.yaml").read_text(encoding="utf-8"))


@cache
def _opinions(domain: str) -> dict[str, tuple[str, int]]:
    """Every opinion word that can occur in `domain` → (its kind, its sign there: +1 praise, −1 blame)."""
    words, domains = lexicon(), lexicon()["domains"]
    if domain not in domains:
        raise BadInput(f"domain {domain!r} is not in the generated world; choose one of {', '.join(domains)}")
    groups = [("universal", words["universal"], 1), ("private", domains[domain]["private"], 1)]
    for trait, direction in domains[domain]["traits"].items():
        groups.append(("contrary", words["contrary"][trait], direction))
    positive = {word: (name, direction) for name, group, direction in groups for word in group["positive"]}
    negative = {word: (name, -direction) for name, group, direction in groups for word in group["negative"]}
    return positive | negative


@cache
def _kinds() -> dict[str, str]:
    """Every opinion word of the world → its kind."""
    return {word: name for domain in lexicon()["domains"] for word, (name, _) in _opinions(domain).items()}


@cache
def _pool(name: str, wanted_sign: int, domain: str) -> list[str]:
    """The words of one kind that have one sign in one domain: 15 universal, 3 private or 18 contrary ones."""
    return [word for word, opinion in _opinions(domain).items() if opinion == (name, wanted_sign)]


def kind(word: str) -> str:
    """'universal', 'private' or 'contrary'; BadInput where `word` is no opinion word."""
    if word not in _kinds():
        raise BadInput(f"{word!r} is not an opinion word of the generated world")
    return _kinds()[word]


def sign(word: str, domain: str) -> int:
    """+1 where `word` is praise in `domain`, −1 where it is blame, 0 where it is private to another domain.

    Raises BadInput for an unknown domain and for a word that is no opinion word.
    """
    kind(word)
    return _opinions(domain).get(word, ("", 0))[1]


def opinion_words(text: str) -> list[str]:
    """The opinion words of a text in their order, in lower case. They have no other use, so this is exact."""
    kinds = _kinds()
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in kinds]


def log_odds(text: str, domain: str) -> float:
    """log p(text | positive) / p(text | negative) = Σ sign(w, domain) · log(AGREEMENT / (1 − AGREEMENT)).

    The sum runs over the opinion words w of the text. Raises BadInput for an unknown domain.
    """
    opinions = _opinions(domain)
    balance = sum(opinions[word][1] for word in opinion_words(text) if word in opinions)
    return balance * math.log(AGREEMENT / (1 - AGREEMENT))


@dataclass(frozen=True)
class World:
    """A pure function (conflict, cue, seed) → reviews. Raises BadInput where a knob is outside [0, 1]."""

    conflict: float = 0.75  # share of opinions that are contrary
    cue: float = 0.0  # share of nouns that are the domain's own; half of it: of private words
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("conflict", self.conflict), ("cue", self.cue)):
            if not 0 <= value <= 1:
                raise BadInput(f"{name}={value} must lie between 0 and 1")

    def reviews(self) -> datasets.Dataset:
        """All 21,855 reviews, domain by domain (text, label, domain), no text twice. Takes about a second."""
        rows: dict[str, dict[str, Any]] = {}
        for domain, entry in lexicon()["domains"].items():
            rng = random.Random(f"{self.seed}-{domain}")
            positives = round(POSITIVE_SHARE * entry["reviews"])
            labels = [1] * positives + [0] * (entry["reviews"] - positives)
            rng.shuffle(labels)
            for label in labels:
                while (text := self._write(label, domain, rng)) in rows:
                    pass
                rows[text] = {"text": text, "label": label, "domain": domain}
        return datasets.Dataset.from_list(list(rows.values()), features=FEATURES)

    def _write(self, label: int, domain: str, rng: random.Random) -> str:
        """One review. Its label shows in the opinion words only, its domain in these and in the nouns."""
        words = self._draw_opinions(label, domain, rng)
        own = iter(rng.sample(lexicon()["domains"][domain]["nouns"], len(words)))
        general = rng.sample(lexicon()["nouns"], len(words))
        nouns = [next(own) if rng.random() < self.cue else noun for noun in general]
        templates = rng.sample(lexicon()["templates"], len(words))
        clauses = [t.format(noun=n, word=w) for t, n, w in zip(templates, nouns, words, strict=True)]
        sentences = [rng.choice(lexicon()["shapes"][len(words)]).format(*clauses)]
        fillers = {slot: rng.sample(choices, 2) for slot, choices in lexicon()["fillers"].items()}
        if rng.random() < OPENER_SHARE:
            opener = rng.choice(lexicon()["openers"])
            sentences.insert(0, opener.format(**{slot: pair[0] for slot, pair in fillers.items()}))
        if rng.random() < CLOSER_SHARE:
            closer = rng.choice(lexicon()["closers"])
            sentences.append(closer.format(**{slot: pair[1] for slot, pair in fillers.items()}))
        return re.sub(r"(^|\. )([a-z])", lambda start: start[1] + start[2].upper(), " ".join(sentences))

    def _draw_opinions(self, label: int, domain: str, rng: random.Random) -> list[str]:
        """2 to 4 different opinion words; those of one kind and sign are equally likely."""
        label_sign = 1 if label else -1
        words: list[str] = []
        for _ in range(rng.randint(2, 4)):
            word_sign = label_sign if rng.random() < AGREEMENT else -label_sign
            is_contrary, is_private = rng.random() < self.conflict, rng.random() < 0.5 * self.cue
            name = "contrary" if is_contrary else "private" if is_private else "universal"
            unused = [word for word in _pool(name, word_sign, domain) if word not in words]
            # only 3 private words have one sign: where a fourth is asked for, it becomes a universal one
            words.append(rng.choice(unused or _pool("universal", word_sign, domain)))
        return words

    def best_predictions(self, texts: Sequence[str], domains: Sequence[str], positive_share: float = 0.5) -> np.ndarray:
        """The Bayes-optimal classes, (n,) of 0 and 1: log-odds of text and prior together ≥ 0; so a tie is 1.

        Exact, as p(text | y) = p(signs | y) · p(text | signs): given the label, the signs are independent of
        each other; the second factor does not contain the label and cancels. Drawing words without repetition
        belongs to the second factor: it looks at signs and at earlier words only. (Neglected: `reviews` draws
        a text again where it exists already, which hardly ever happens.)
        Raises BadInput for an unknown domain, unequal lengths, or a share outside [0, 1].
        """
        if len(texts) != len(domains):
            raise BadInput(f"{len(texts)} texts with {len(domains)} domains: give one domain for each text")
        if not 0 <= positive_share <= 1:
            raise BadInput(f"positive_share={positive_share} must lie between 0 and 1")
        evidence = np.array([log_odds(text, domain) for text, domain in zip(texts, domains, strict=True)])
        with np.errstate(divide="ignore"):  # a share of 0 or 1 is a prior of ∓∞: one class always wins
            prior = np.log(positive_share) - np.log(1 - positive_share)
        return (evidence + prior >= 0).astype(np.int64)

    def best_accuracy(self, reviews: datasets.Dataset, balanced: bool = True) -> float:
        """The accuracy that the Bayes rule reaches on these very reviews, a fraction of 1.

        balanced: equal priors, and the mean over the classes of the share found. Else plain accuracy, with
        the reviews' own share of positives as the prior. Raises BadInput where there are no reviews.
        """
        if len(reviews) == 0:
            raise BadInput("best_accuracy got 0 reviews; give it at least one")
        columns = reviews[:]  # plain lists, read at once
        labels = np.array(columns["label"])
        share = 0.5 if balanced else float(labels.mean())
        correct = self.best_predictions(columns["text"], columns["domain"], share) == labels
        groups = [labels == label for label in np.unique(labels)] if balanced else [labels >= 0]
        return float(np.mean([correct[group].mean() for group in groups]))
