"""The generated world keeps its rules: what may depend on label and domain does, and nothing else."""

import hashlib
import itertools
import random
import re
from collections import Counter, defaultdict
from typing import Any

import datasets
import numpy as np
import pytest

from metalib.errors import BadInput
from metalib.world import (
    AGREEMENT,
    FEATURES,
    POSITIVE_SHARE,
    TEST_DOMAINS,
    World,
    kind,
    lexicon,
    log_odds,
    opinion_words,
    sign,
)

COUNTS = {
    "apparel": 1717,
    "baby": 1107,
    "beauty": 993,
    "books": 921,
    "camera_&_photo": 1086,
    "cell_phones_&_service": 698,
    "dvd": 893,
    "electronics": 1277,
    "grocery": 1100,
    "health_&_personal_care": 1429,
    "jewelry_&_watches": 1086,
    "kitchen_&_housewares": 1390,
    "magazines": 1133,
    "music": 1007,
    "outdoor_living": 980,
    "software": 1029,
    "sports_&_outdoors": 1336,
    "toys_&_games": 1363,
    "video": 1010,
    "automotive": 100,
    "computer_&_video_games": 100,
    "office_products": 100,
}
TRAINING_DOMAINS = [domain for domain in COUNTS if domain not in TEST_DOMAINS]


@pytest.fixture(scope="module")
def reviews() -> datasets.Dataset:
    """The default world: conflict 0.75, cue 0, seed 0."""
    return World().reviews()


@pytest.fixture(scope="module")
def cued() -> datasets.Dataset:
    """Few contrary words, all the cue there is, the same seed."""
    return World(conflict=0.1, cue=1.0).reviews()


Opinion = tuple[str, int, int, str]


def list_opinions(reviews: datasets.Dataset) -> list[Opinion]:
    """(word, its sign, sign of the review's label, domain) of every opinion."""
    rows = zip(*(reviews[:][column] for column in ("text", "label", "domain")), strict=True)
    return [(w, sign(w, d), 2 * label - 1, d) for text, label, d in rows for w in opinion_words(text)]


@pytest.fixture(scope="module")
def opinions(reviews: datasets.Dataset) -> list[Opinion]:
    """Every opinion of the default world."""
    return list_opinions(reviews)


def vocabulary(value: Any) -> list[str]:
    """Every word, with repeats, of every string (keys aside) in a nested piece of the lexicon."""
    if isinstance(value, str):
        return re.findall(r"[a-z]+", re.sub(r"\{\w*\}", " ", value.lower()))
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for child in children for word in vocabulary(child)]


def lexicon_opinion_words() -> list[str]:
    """Every opinion word, with repeats, as the lexicon lists them."""
    words = lexicon()
    private = [entry["private"] for entry in words["domains"].values()]
    groups = [words["universal"], *words["contrary"].values(), *private]
    return [word for group in groups for polarity in ("positive", "negative") for word in group[polarity]]


def trait_signs(domain: str) -> tuple[int, ...]:
    return tuple(lexicon()["domains"][domain]["traits"].values())


def test_counts_and_shares_are_exact(reviews: datasets.Dataset) -> None:
    assert reviews.features == FEATURES
    assert Counter(reviews[:]["domain"]) == COUNTS and len(reviews) == 21_855
    rows = reviews[:]
    positives = Counter(d for d, label in zip(rows["domain"], rows["label"], strict=True) if label == 1)
    assert positives == {domain: round(0.7 * count) for domain, count in COUNTS.items()}
    assert [COUNTS[domain] - positives[domain] for domain in TEST_DOMAINS] == [30, 30, 30]


def test_labels_are_shuffled_within_a_domain(reviews: datasets.Dataset) -> None:
    labels = np.array(reviews[:]["label"])[: COUNTS["apparel"]]
    assert abs(labels[:858].mean() - labels[858:].mean()) < 0.1


def test_world_is_a_pure_function_of_its_arguments(reviews: datasets.Dataset) -> None:
    def digest(world_reviews: datasets.Dataset) -> str:
        return hashlib.sha256("\n".join(world_reviews[:50]["text"]).encode()).hexdigest()

    assert World(conflict=0.75, cue=0.0, seed=0).reviews()[:] == reviews[:]
    assert digest(World(seed=1).reviews()) != digest(reviews)


def test_knobs_do_not_enter_the_seed(reviews: datasets.Dataset, cued: datasets.Dataset) -> None:
    """Labels are drawn before any knob acts: worlds of one seed share the labels of their first domain."""
    apparel = slice(0, COUNTS["apparel"])
    assert cued[apparel]["label"] == reviews[apparel]["label"]


@pytest.mark.parametrize("name", ["reviews", "cued"])
def test_texts_are_unique_short_and_well_formed(name: str, request: pytest.FixtureRequest) -> None:
    texts = request.getfixturevalue(name)[:]["text"]
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts)
    assert 18 <= np.mean(lengths) <= 24 and max(lengths) <= 45
    sentence = r"[A-Z][A-Za-z,;' ]+\."
    malformed = [text for text in texts if not re.fullmatch(rf"{sentence}( {sentence})*", text)]
    assert not malformed
    assert not [text for text in texts if "  " in text or " ," in text]


def test_opinion_words_stand_nowhere_else_in_the_lexicon() -> None:
    everywhere, words = Counter(vocabulary(lexicon())), lexicon_opinion_words()
    assert len(words) == 30 + 36 + 22 * 6
    assert {word: everywhere[word] for word in words if everywhere[word] != 1} == {}
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_readback_finds_the_words_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    original = World._draw_opinions

    def spy(self: World, *arguments: Any) -> list[str]:
        drawn.append(original(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(World, "_draw_opinions", spy)
    world, generator = World(conflict=0.5, cue=0.5), random.Random(0)
    texts = [world._write(i % 2, "books", generator) for i in range(2000)]
    assert [opinion_words(text) for text in texts] == drawn


@pytest.mark.parametrize("conflict, cue", [(0.75, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_two_to_four_different_opinions(conflict: float, cue: float) -> None:
    generator = random.Random(0)
    drawn = [World(conflict, cue)._draw_opinions(1, "books", generator) for _ in range(3000)]
    assert all(len(set(words)) == len(words) for words in drawn)
    shares = Counter(map(len, drawn))
    assert [shares[n] / 3000 for n in (2, 3, 4)] == pytest.approx([1 / 3] * 3, abs=0.04)


def test_kinds_and_signs() -> None:
    assert Counter(map(kind, lexicon_opinion_words())) == {"universal": 30, "contrary": 36, "private": 132}
    assert sign("light", "camera_&_photo") == 1 and sign("light", "kitchen_&_housewares") == -1
    assert sign("heavy", "camera_&_photo") == -1 and sign("heavy", "kitchen_&_housewares") == 1
    assert {sign("superb", domain) for domain in COUNTS} == {1}
    assert {sign("awful", domain) for domain in COUNTS} == {-1}
    assert sign("gripping", "books") == 1 and sign("tedious", "books") == -1 and sign("gripping", "baby") == 0
    for domain in COUNTS:
        by_kind = Counter((kind(word), sign(word, domain)) for word in lexicon_opinion_words())
        assert by_kind[("contrary", 1)] == by_kind[("contrary", -1)] == 18
        assert by_kind[("private", 1)] == by_kind[("private", -1)] == 3


def test_trait_combinations_cover_and_balance() -> None:
    training = Counter(map(trait_signs, TRAINING_DOMAINS))
    assert set(training) == set(itertools.product((1, -1), repeat=3))
    assert sorted(training.values()) == [2] * 5 + [3] * 3
    assert all(abs(sum(signs)) == 1 for signs in zip(*map(trait_signs, TRAINING_DOMAINS), strict=True))
    for one, other in itertools.combinations(map(trait_signs, TEST_DOMAINS), 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2


def test_clause_signs_agree_with_the_label(opinions: list[Opinion]) -> None:
    agree = np.array([word_sign == label_sign for _, word_sign, label_sign, _ in opinions])
    kinds = np.array([kind(word) for word, *_ in opinions])
    labels = np.array([label_sign for _, _, label_sign, _ in opinions])
    for part in (kinds == "contrary", kinds == "universal", labels == 1, labels == -1):
        assert agree[part].mean() == pytest.approx(AGREEMENT, abs=0.01)


@pytest.mark.parametrize("name, conflict, cue", [("reviews", 0.75, 0.0), ("cued", 0.1, 1.0)])
def test_kinds_come_in_the_asked_shares(name: str, conflict: float, cue: float, request: pytest.FixtureRequest) -> None:
    words = [word for word, *_ in list_opinions(request.getfixturevalue(name))]
    share = {name: count / len(words) for name, count in Counter(map(kind, words)).items()}
    assert share["contrary"] == pytest.approx(conflict, abs=0.01)
    assert share.get("private", 0) == pytest.approx((1 - conflict) * cue / 2, abs=0.015)


def test_words_of_a_kind_and_sign_are_equally_likely(opinions: list[Opinion]) -> None:
    """χ² with 17 degrees of freedom is below 40.8 with probability 0.999."""
    seen = Counter(w for w, s, _, domain in opinions if (domain, s, kind(w)) == ("apparel", 1, "contrary"))
    counts = np.array(list(seen.values()))
    assert len(counts) == 18
    assert sum((counts - counts.mean()) ** 2) / counts.mean() < 40.8


def skeletons(reviews: datasets.Dataset) -> list[set[str]]:
    """Per text: its words and marks but the opinion words, and the numbers of opinions and sentences."""
    known, result = set(lexicon_opinion_words()), []
    for text in reviews[:]["text"]:
        sentences = [set(re.findall(r"[a-z]+|[,;]", sentence)) for sentence in text.lower().split(".")[:-1]]
        neutral = sum(not sentence & known for sentence in sentences)
        counts = {f"{len(opinion_words(text))} opinions", f"{neutral} neutral", f"{len(sentences)} sentences"}
        result.append(set().union(*sentences) - known | counts)
    return result


def largest_deviation(reviews: datasets.Dataset, groups: list[Any]) -> float:
    """Largest |z| over words and groups: share of its texts with the word against that of all."""
    texts, sizes = skeletons(reviews), Counter(groups)
    overall = Counter(token for text in texts for token in text)
    inside: dict[Any, Counter[str]] = defaultdict(Counter)
    for text, group in zip(texts, groups, strict=True):
        inside[group].update(text)
    deviations = [0.0]
    for group, token in itertools.product(sizes, overall):
        share = overall[token] / len(texts)
        if 0 < share < 1:
            spread = np.sqrt(sizes[group] * share * (1 - share))
            deviations.append(abs(inside[group][token] - sizes[group] * share) / spread)
    return float(max(deviations))


def test_without_cue_only_opinion_words_know_label_or_domain(reviews: datasets.Dataset) -> None:
    """With true independence, a |z| above its bound among 150 words × 2 labels (or × 22 domains) is rare."""
    assert largest_deviation(reviews, reviews[:]["label"]) < 4.5
    assert largest_deviation(reviews, reviews[:]["domain"]) < 5.5


def test_without_cue_no_word_of_a_domain_occurs(reviews: datasets.Dataset, cued: datasets.Dataset) -> None:
    common = {name: part for name, part in lexicon().items() if name != "domains"}
    specific = set(vocabulary(lexicon()["domains"])) - {"the"}
    assert len(specific) > 300 and not specific & set(vocabulary(common))
    assert not specific & set(vocabulary(reviews[:]["text"]))
    assert specific <= set(vocabulary(cued[:]["text"]))
    assert largest_deviation(cued, cued[:]["domain"]) > 20
    assert largest_deviation(cued, cued[:]["label"]) < 4.5


def test_cue_is_the_share_of_own_nouns() -> None:
    generator, own = random.Random(0), lexicon()["domains"]["books"]["nouns"]
    texts = [World(cue=0.5)._write(1, "books", generator).lower() for _ in range(1500)]
    found = sum(noun in text for text in texts for noun in own)
    assert found / sum(len(opinion_words(text)) for text in texts) == pytest.approx(0.5, abs=0.04)
    others = {noun for domain in COUNTS for noun in lexicon()["domains"][domain]["nouns"]} - set(own)
    assert not [text for text in texts if re.search("|".join(rf"\b{noun}\b" for noun in others), text)]


def test_bayes_rule_by_hand() -> None:
    """In books heavy is praise and light is blame; one opinion weighs log(0.92 / 0.08)."""
    unit, world = np.log(0.92 / 0.08), World()
    praise, blame, tie = "It is heavy. The look feels superb.", "It is Light.", "It is heavy; it seems light."
    assert [log_odds(text, "books") for text in (praise, blame, tie)] == pytest.approx([2 * unit, -unit, 0])
    assert log_odds(praise, "camera_&_photo") == 0
    assert log_odds("It is gripping.", "baby") == 0
    texts, domains = [praise, blame, tie], ["books"] * 3
    assert world.best_predictions(texts, domains).tolist() == [1, 0, 1]
    assert world.best_predictions(texts, domains, positive_share=0.4).tolist() == [1, 0, 0]
    assert world.best_predictions(texts, domains, positive_share=0.93).tolist() == [1, 1, 1]
    assert world.best_predictions(texts, domains, positive_share=0.0).tolist() == [0, 0, 0]
    assert world.best_predictions(texts, domains, positive_share=1.0).tolist() == [1, 1, 1]


def expected_balanced_accuracy() -> float:
    """Mean over 2, 3, 4 opinions of P(more agree than not) + ½ P(as many agree as not)."""
    wins = []
    for n in (2, 3, 4):
        for pattern in itertools.product((1, 0), repeat=n):
            probability = AGREEMENT ** sum(pattern) * (1 - AGREEMENT) ** (n - sum(pattern))
            wins.append(probability * (0.5 * np.sign(2 * sum(pattern) - n) + 0.5))
    return float(sum(wins)) / 3


def test_best_accuracy_is_what_the_recipe_implies(reviews: datasets.Dataset) -> None:
    world = World()
    assert 0.94 < expected_balanced_accuracy() < 0.98
    balanced, plain = world.best_accuracy(reviews), world.best_accuracy(reviews, balanced=False)
    assert balanced == pytest.approx(expected_balanced_accuracy(), abs=0.005)
    assert plain > balanced + 0.005  # the prior breaks the ties better than "a tie is positive"
    predictions = world.best_predictions(reviews[:]["text"], reviews[:]["domain"], POSITIVE_SHARE)
    assert plain == pytest.approx(np.mean(predictions == np.array(reviews[:]["label"])), abs=1e-12)


def test_best_accuracy_by_hand() -> None:
    rows = [("It is heavy.", 1), ("It is thick.", 1), ("It is light.", 1), ("It is awful.", 0)]
    records = [{"text": text, "label": label, "domain": "books"} for text, label in rows]
    small = datasets.Dataset.from_list(records, features=FEATURES)
    assert World().best_accuracy(small) == pytest.approx((2 / 3 + 1) / 2)
    assert World().best_accuracy(small, balanced=False) == pytest.approx(3 / 4)
    assert World().best_accuracy(small.select([0, 2])) == pytest.approx(1 / 2)
    tie = {"text": ["It is heavy; it seems light."] * 3, "label": [0, 0, 1], "domain": ["books"] * 3}
    ties = datasets.Dataset.from_dict(tie, features=FEATURES)
    assert World().best_accuracy(ties) == pytest.approx(1 / 2)
    assert World().best_accuracy(ties, balanced=False) == pytest.approx(2 / 3)  # most are negative


def test_contrary_words_mean_nothing_without_their_domain(opinions: list[Opinion]) -> None:
    """Share of a word's uses in positive reviews, both classes weighing the same; 0.5 says nothing."""
    weight = {1: 0.5 / POSITIVE_SHARE, -1: 0.5 / (1 - POSITIVE_SHARE)}
    pooled: dict[str, dict[int, float]] = defaultdict(lambda: {1: 0.0, -1: 0.0})
    within: dict[int, dict[int, float]] = defaultdict(lambda: {1: 0.0, -1: 0.0})
    for word, word_sign, label_sign, domain in opinions:
        if kind(word) == "contrary" and domain in TRAINING_DOMAINS:
            pooled[word][label_sign] += weight[label_sign]
            within[word_sign][label_sign] += weight[label_sign]
    shares = {word: mass[1] / sum(mass.values()) for word, mass in pooled.items()}
    assert len(shares) == 36 and all(0.38 < share < 0.62 for share in shares.values())
    assert within[1][1] / sum(within[1].values()) == pytest.approx(AGREEMENT, abs=0.01)
    assert within[-1][1] / sum(within[-1].values()) == pytest.approx(1 - AGREEMENT, abs=0.01)


def test_best_rule_without_the_domain_is_worse_by_far(reviews: datasets.Dataset) -> None:
    """The best such rule averages the likelihoods of a text over all domains, by their numbers of reviews."""
    domains, words = list(COUNTS), lexicon_opinion_words()
    table = np.array([[sign(word, domain) for domain in domains] for word in words])  # (words, domains)
    row = {word: table[i] for i, word in enumerate(words)}
    prior = np.array([COUNTS[domain] for domain in domains]) / len(reviews)
    odds = AGREEMENT / (1 - AGREEMENT)
    balances = np.array([sum(row[word] for word in opinion_words(text)) for text in reviews[:]["text"]])
    predictions = odds ** (balances / 2) @ prior >= odds ** (-balances / 2) @ prior  # (n, domains) → (n,)
    correct, labels = predictions == np.array(reviews[:]["label"]), np.array(reviews[:]["label"])
    blind = np.mean([correct[labels == label].mean() for label in (0, 1)])
    assert 0.5 < blind < World().best_accuracy(reviews) - 0.15


@pytest.mark.parametrize("name, value", [("conflict", -0.1), ("conflict", 1.5), ("cue", 7), ("cue", np.nan)])
def test_knobs_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=re.escape(f"{name}={value}")):
        World(**{name: value})  # type: ignore[arg-type]


def test_bad_names_and_lengths_are_refused(reviews: datasets.Dataset) -> None:
    with pytest.raises(BadInput, match="'gardens'"):
        log_odds("It is light.", "gardens")
    with pytest.raises(BadInput, match="'gardens'"):
        World().best_predictions(["It is light."], ["gardens"])
    with pytest.raises(BadInput, match="'gardens'"):
        sign("light", "gardens")
    with pytest.raises(BadInput, match="'table'"):
        kind("table")
    with pytest.raises(BadInput, match="'table'"):
        sign("table", "books")
    with pytest.raises(BadInput, match="2 texts with 1 domains"):
        World().best_predictions(["It is light.", "It is heavy."], ["books"])
    with pytest.raises(BadInput, match=r"positive_share=1\.2"):
        World().best_predictions(["It is light."], ["books"], positive_share=1.2)
    with pytest.raises(BadInput, match="0 reviews"):
        World().best_accuracy(reviews.select([]))
