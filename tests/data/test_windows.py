import itertools
import json

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import (
    Questions,
    encode_questions,
    eval_batches,
    find_answers,
    load_tokenizer,
    train_batches,
)
from lpaf_jax.data.windows import Found

CONTEXT = (
    "Super Bowl 50 was a game. The Denver Broncos defeated the Carolina Panthers 24–10, in "
    "Café 東京🎬 at Santa Clara; gold was the colour of all."
)
WORDS = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,;–?é", "the", "denver", "game", "super"})


def bert(folder):
    from tokenizers import BertWordPieceTokenizer

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{w}" for w in WORDS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), strip_accents=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"strip_accents": False}))
    return load_tokenizer(folder)


def roberta(folder):
    """Bytes, one or more to a token; tokens carry the space before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the gold was the colour of the game"] * 3, trainer)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    return load_tokenizer(folder)


@pytest.fixture(params=[bert, roberta], ids=["wordpiece", "bytes"])
def tokenizer(request, tmp_path):
    return request.param(tmp_path / "m")


def asked(answers, context=CONTEXT, question="  who won?"):
    spans = [(context.index(a), context.index(a) + len(a)) if a else (-1, -1) for a in answers]
    n = len(answers)
    return Questions(
        texts=[question] * n,
        pairs=[context] * n,
        labels=np.array(spans, np.int32),
        ids=[str(i) for i in range(n)],
        answers=[[a] if a else [] for a in answers],
    )


ANSWERS = ["Super", "Denver Broncos", "24–10", "Café", "🎬", "東京🎬 at", "colour of all.", None]


@pytest.mark.parametrize("length", [300, 45])
def test_labelled_tokens_lead_back_to_the_answer(tokenizer, length):
    questions = asked(ANSWERS)
    windows = encode_questions(tokenizer, questions, length, 20)
    seen = set()
    for i, offsets, (first, last) in zip(
        windows.question, windows.offsets, windows.encoded.labels, strict=True
    ):
        inside = offsets[offsets[:, 0] >= 0]
        begin, over = questions.labels[i]
        whole = ANSWERS[i] and inside[0, 0] <= begin and over <= inside[-1, 1]
        if not whole:
            assert (first, last) == (0, 0)
            continue
        seen.add(ANSWERS[i])
        assert CONTEXT[offsets[first, 0] : offsets[last, 1]].strip() == ANSWERS[i]
        # no token less would do
        assert offsets[first, 1] > begin
        assert offsets[last, 0] < over
        assert first == 0 or offsets[first - 1, 1] <= begin
    assert seen == {answer for answer in ANSWERS if answer}


@pytest.mark.parametrize("stride", [0, 7, 20])
def test_windows_cover_the_context_and_overlap_by_the_stride(tokenizer, stride):
    whole = encode_questions(tokenizer, asked([None]), 400, 0)
    windows = encode_questions(tokenizer, asked([None]), 45, stride)
    [everything] = whole.offsets
    context = everything[everything[:, 0] >= 0]
    pieces = [offsets[offsets[:, 0] >= 0] for offsets in windows.offsets]
    step = len(pieces[0]) - stride
    assert len(pieces) > 2
    for i, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, context[i * step : i * step + len(pieces[0])])
    assert pieces[-1][-1, 1] == len(CONTEXT)
    # the question is in each of them, whole
    head = int(np.argmax(everything[:, 0] >= 0))
    for ids in windows.encoded.ids:
        assert len(ids) <= 45
        np.testing.assert_array_equal(ids[:head], whole.encoded.ids[0][:head])
    assert all(len(ids) == 45 for ids in windows.encoded.ids[:-1])


def test_windows_are_those_of_transformers(tmp_path):
    from transformers import BertTokenizerFast

    ours = bert(tmp_path / "m")
    theirs = BertTokenizerFast(tokenizer_file=str(tmp_path / "m" / "tokenizer.json"))
    questions = asked([None, None])
    expected = theirs(
        [text.lstrip() for text in questions.texts],
        questions.pairs,
        truncation="only_second",
        max_length=45,
        stride=12,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = encode_questions(ours, questions, 45, 12)
    assert [ids.tolist() for ids in windows.encoded.ids] == expected["input_ids"]
    assert [types.tolist() for types in windows.encoded.types] == expected["token_type_ids"]
    assert windows.question.tolist() == expected["overflow_to_sample_mapping"]
    for i, offsets in enumerate(windows.offsets):
        pairs = [
            pair if place == 1 else (-1, -1)
            for pair, place in zip(
                expected["offset_mapping"][i], expected.sequence_ids(i), strict=True
            )
        ]
        assert list(map(tuple, offsets.tolist())) == pairs


def test_many_questions_keep_their_order_and_their_windows(tokenizer):
    """More than are tokenized at a time."""
    n = 600
    contexts = [f"{i} the game " * (1 + i % 3) for i in range(n)]
    questions = Questions(
        ["who?"] * n, contexts, np.full((n, 2), -1, np.int32), ["x"] * n, [[] for _ in range(n)]
    )
    windows = encode_questions(tokenizer, questions, 30, 4)
    assert sorted(set(windows.question.tolist())) == list(range(n))
    assert windows.question.tolist() == sorted(windows.question.tolist())
    for i, offsets in zip(windows.question, windows.offsets, strict=True):
        if offsets[offsets[:, 0] >= 0][0, 0] == 0:
            first = offsets[offsets[:, 0] >= 0]
            assert contexts[i].startswith(str(i))
            assert contexts[i][: first[-1, 1]].startswith(str(i)[: first[-1, 1]])


def test_windows_go_through_the_batches(tokenizer):
    windows = encode_questions(tokenizer, asked(ANSWERS), 45, 20)
    spans = {tuple(label) for label in windows.encoded.labels.tolist()}
    for batches in (
        eval_batches(windows.encoded, 4),
        train_batches(windows.encoded, 4, seed=0, epoch=0),
    ):
        for batch in batches:
            assert batch["input_ids"].shape[1] in (24, 32, 45)
            assert (batch["labels"].shape, batch["labels"].dtype) == ((4, 2), np.int32)
            assert {tuple(label) for label in batch["labels"].tolist()} <= spans


@pytest.mark.parametrize(("length", "stride"), [(45, 44), (10, 0), (45, -1)])
def test_a_length_without_room_for_the_stride_is_refused(tokenizer, length, stride):
    with pytest.raises(LpafError, match="with question 'who won.*smaller stride"):
        encode_questions(tokenizer, asked(["Super"]), length, stride)


def brute_force(questions, windows, logits, longest):
    """All pairs of tokens of all windows, by loops; spaces at the ends of a span left out."""
    best = [{} for _ in range(len(questions))]
    null = [np.inf] * len(questions)
    for i, offsets, scores in zip(windows.question, windows.offsets, logits, strict=True):
        null[i] = min(null[i], scores[0, 0] + scores[0, 1])
        for a, b in itertools.product(range(len(offsets)), repeat=2):
            if offsets[a, 0] < 0 or offsets[b, 0] < 0 or not a <= b < a + longest:
                continue
            context, start, end = questions.pairs[i], offsets[a, 0], offsets[b, 1]
            while start < end and context[start] == " ":
                start += 1
            while start < end and context[end - 1] == " ":
                end -= 1
            score = scores[a, 0] + scores[b, 1]
            if start < end and score > best[i].get((start, end), -np.inf):
                best[i][start, end] = score
    return best, null


@pytest.mark.parametrize("longest", [1, 5, 30])
def test_answers_are_the_best_of_all_pairs(tokenizer, longest):
    questions = asked(["Super", None])
    windows = encode_questions(tokenizer, questions, 45, 10)
    assert len(windows.question) > 3
    rng = np.random.default_rng(0)
    # longer than the windows: what a padded batch gives
    logits = rng.normal(size=(len(windows.question), 50, 2)).astype(np.float64)
    found = find_answers(questions, windows, logits, n_best=8, max_answer_length=longest)
    best, null = brute_force(questions, windows, logits, longest)
    for given, expected, none in zip(found, best, null, strict=True):
        assert given.null_score == pytest.approx(none)
        top = sorted(expected.values(), reverse=True)[:8]
        np.testing.assert_allclose([answer.score for answer in given.answers], top)
        for answer in given.answers:
            assert expected[answer.start, answer.end] == pytest.approx(answer.score)
            assert CONTEXT[answer.start : answer.end] == answer.text
        assert given.no_answer == pytest.approx(none - top[0])
        assert given.text == given.answers[0].text


def test_labels_as_logits_give_the_answers_back(tokenizer):
    questions = asked(ANSWERS)
    windows = encode_questions(tokenizer, questions, 45, 20)
    logits = [np.full((len(ids), 2), -5.0, np.float32) for ids in windows.encoded.ids]
    for scores, (first, last) in zip(logits, windows.encoded.labels, strict=True):
        scores[first, 0] = scores[last, 1] = 5
    found = find_answers(questions, windows, logits)
    assert [f.text if f.no_answer <= 0 else None for f in found] == ANSWERS


def test_nothing_outside_the_context_and_nothing_backwards_is_an_answer(tokenizer):
    questions = asked(["Broncos"], context="Denver Broncos")
    windows = encode_questions(tokenizer, questions, 64, 0)
    [offsets] = windows.offsets
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    logits = np.zeros((1, len(offsets), 2))
    logits[0, : inside[0]] = 100  # first token and question
    logits[0, inside[-1] + 1 :] = 100
    logits[0, inside[-1], 0] = logits[0, inside[0], 1] = 9  # the end before the beginning
    [found] = find_answers(questions, windows, logits, n_best=3)
    assert found.null_score == 200
    assert found.answers[0].score == 9
    assert all(answer.text in "Denver Broncos" for answer in found.answers)


def test_more_answers_than_there_are_gives_all(tokenizer):
    questions = asked(["game"], context="the game")
    windows = encode_questions(tokenizer, questions, 32, 0)
    logits = np.random.default_rng(0).normal(size=(1, 32, 2))
    [found] = find_answers(questions, windows, logits, n_best=1000)
    [best], _ = brute_force(questions, windows, logits, 30)
    assert {(a.start, a.end): a.score for a in found.answers} == pytest.approx(best)


def test_a_context_of_nothing_has_no_answer(tokenizer):
    questions = Questions(["who?"], [""], np.int32([[-1, -1]]), ["0"], [[]])
    windows = encode_questions(tokenizer, questions, 32, 4)
    [found] = find_answers(questions, windows, np.zeros((1, 32, 2)))
    assert found == Found([], 0.0)
    assert (found.text, found.no_answer) == ("", float("inf"))
