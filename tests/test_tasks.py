"""Law 1: a task is a pure function of (seed, index)."""

import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from metalib.errors import BadInput
from metalib.tasks import Task, TaskSampler, hash_reviews, hash_tasks

SIZES = {  # negative and positive reviews
    "books": (9, 14),
    "dvd": (12, 8),
    "grocery": (10, 10),
    "music": (20, 20),
    "software": (8, 20),
    "video": (11, 9),
}


def make_reviews(sizes: dict[str, tuple[int, int]]) -> Dataset:
    """Reviews 'books negative 0', …, whose text tells domain and class."""
    names = ["negative", "positive"]
    rows = [
        {"text": f"{domain} {names[label]} {number}", "label": label, "domain": domain}
        for domain, counts in sizes.items()
        for label in (0, 1)
        for number in range(counts[label])
    ]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names), "domain": Value("string")})
    return Dataset.from_list(rows, features=features)


TOY = make_reviews(SIZES)
TEXTS = TOY["text"][:]


def draw_hash(sampler: TaskSampler, indices: range) -> str:
    return hash_tasks([sampler[index] for index in indices], TEXTS)


def test_a_task_does_not_depend_on_which_tasks_were_drawn_before_it():
    sampler = TaskSampler(TOY, 3, 2, seed=7)
    forward = [sampler[index] for index in range(40)]
    np.random.seed(1)  # a global state that it must not read
    backward = [sampler[index] for index in reversed(range(40))][::-1]
    alone = [TaskSampler(TOY, 3, 2, seed=7)[index] for index in range(40)]
    for others in (backward, alone):
        for one, other in zip(forward, others, strict=True):
            assert (one.domain, one.index) == (other.domain, other.index)
            np.testing.assert_array_equal(one.support, other.support)
            np.testing.assert_array_equal(one.query, other.query)


def test_another_process_draws_the_same_tasks(tmp_path):
    TOY.to_parquet(str(tmp_path / "toy.parquet"))
    code = f"""
from datasets import Dataset
from metalib.tasks import TaskSampler, hash_tasks
toy = Dataset.from_parquet({str(tmp_path / "toy.parquet")!r}, cache_dir={str(tmp_path / "cache")!r})
sampler = TaskSampler(toy, 3, 2, seed=7)
print("hash", hash_tasks([sampler[index] for index in range(20, 60)], toy["text"][:]))
"""
    other_order_of_sets = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other_order_of_sets}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.split()[-2:] == ["hash", draw_hash(TaskSampler(TOY, 3, 2, seed=7), range(20, 60))]


@settings(max_examples=150, deadline=None)
@given(
    shots=st.integers(1, 12),
    queries=st.integers(0, 12),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**40),
    in_turn=st.booleans(),
)
def test_support_and_query_are_balanced_and_apart_or_the_domains_are_too_small(shots, queries, seed, index, in_turn):
    smallest = min(min(counts) for counts in SIZES.values())
    if shots + queries > smallest:
        with pytest.raises(BadInput, match=f"needs {shots + queries} — lower one of them"):
            TaskSampler(TOY, shots, queries, seed, in_turn)
        return
    task = TaskSampler(TOY, shots, queries, seed, in_turn)[index]
    support, query = ([TEXTS[row] for row in rows] for rows in (task.support, task.query))
    for texts, each in ((support, shots), (query, queries)):
        assert [text.split()[1] for text in texts] == ["negative"] * each + ["positive"] * each
        assert {text.split()[0] for text in texts} <= {task.domain}
    assert len(set(support + query)) == 2 * (shots + queries)
    assert task.index == index


def test_in_turn_goes_over_the_domains_and_random_order_reaches_all_of_them():
    in_turn = TaskSampler(TOY, 2, 2, in_turn=True)
    assert [in_turn[index].domain for index in range(13)] == [*SIZES, *SIZES, "books"]
    at_random = TaskSampler(TOY, 2, 2)
    drawn = [at_random[index].domain for index in range(600)]
    for domain in SIZES:  # 100 expected, standard deviation 8
        assert 60 < drawn.count(domain) < 140


def test_two_tasks_of_one_domain_differ_in_turn_too():
    in_turn = TaskSampler(TOY, 4, 4, in_turn=True)
    assert not np.array_equal(in_turn[0].support, in_turn[6].support)


def test_distinct_seeds_give_distinct_lists():
    hashes = {draw_hash(TaskSampler(TOY, 3, 2, seed), range(5)) for seed in range(100)}
    assert len(hashes) == 100


def test_seed_and_index_are_not_interchangeable_nor_added():
    support = [TaskSampler(TOY, 5, 0, seed, in_turn=True)[index].support for seed, index in ((0, 6), (6, 0), (3, 3))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(support[one], support[other])


def test_a_domain_that_is_too_small_is_named_with_its_count_and_the_remedy():
    with pytest.raises(BadInput) as error:
        TaskSampler(make_reviews({"automotive": (15, 35), "music": (30, 30)}), 10, 10)
    assert str(error.value).startswith(
        "domain 'automotive' has 15 negative reviews; shots=10 with queries=10 needs 20 — lower one of them"
    )
    TaskSampler(make_reviews({"automotive": (20, 20)}), 10, 10)  # just enough


def test_all_domains_that_are_too_small_are_named_at_once():
    said = r"'d0' has 3 negative .*'d4' has 3 .*and so on \(7 of 7 domains: d0, d1, .*, d6\); shots=10"
    with pytest.raises(BadInput, match=said):
        TaskSampler(make_reviews({f"d{n}": (3, 35) for n in range(7)}), 10, 10)


def test_the_hash_of_reviews_changes_with_any_of_them():
    sizes = {"automotive": (2, 2), "music": (2, 2)}
    reviews = make_reviews(sizes)
    rows = reviews.to_list()
    hashes = {hash_reviews(reviews), hash_reviews(reviews.select(range(7)))}
    for field, value in (("text", "\ud800"), ("label", 1 - rows[5]["label"]), ("domain", "dvd")):
        rows_of = {name: [row[name] for row in rows] for name in rows[0]}
        rows_of[field][5] = value
        hashes.add(hash_reviews(rows_of))
    assert len(hashes) == 5 and hash_reviews(reviews) == hash_reviews(make_reviews(sizes))


def test_senseless_numbers_are_refused():
    for shots, queries in ((0, 5), (1, -1)):
        with pytest.raises(BadInput, match=f"shots={shots} with queries={queries}"):
            TaskSampler(TOY, shots, queries)
    with pytest.raises(BadInput, match="no reviews"):
        TaskSampler(TOY.select([]), 1, 1)
    with pytest.raises(IndexError):
        TaskSampler(TOY, 1, 1)[-1]


def test_hash_changes_with_any_text_domain_or_order():
    texts = ["a", "b", "c", "d", "ab", "", "e"]

    def task(support: tuple[int, ...] = (0, 1), query: tuple[int, ...] = (2, 3), domain: str = "books") -> Task:
        return Task(np.array(support, dtype=int), np.array(query, dtype=int), domain, 0)

    lists = [
        [task()],
        [task(domain="dvd")],
        [task((1, 0))],
        [task((0, 6))],
        [task(query=(3, 2))],
        [task(query=(2, 6))],
        [task((0,), (1, 2, 3))],  # the same texts, cut elsewhere
        [task((4, 5))],  # the same letters, cut elsewhere
        [task(), task(domain="dvd")],
        [task(domain="dvd"), task()],
        [],
    ]
    assert len({hash_tasks(tasks, texts) for tasks in lists}) == len(lists)


def test_hash_is_equal_for_equal_texts_wherever_the_rows_stand():
    task = TaskSampler(TOY, 3, 2)[0]
    moved = np.random.default_rng(0).permutation(len(TEXTS))
    place = np.argsort(moved)  # row → its new place
    elsewhere = Task(place[task.support], place[task.query], task.domain, task.index)
    assert hash_tasks([elsewhere], [TEXTS[row] for row in moved]) == hash_tasks([task], TEXTS)
