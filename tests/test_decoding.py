import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomForCausalLM

from chains import decoding
from chains.decoding import Decoder
from chains.grounding import Markup, Node, reply_graph
from chains.prompts import load_task

TASK = load_task("entities")
TEXTS = ["Nadia Okafor left Siemens.", "El Banco de España", "Zürich 😀", "a", "À Genève, Élise Vautrin dirige. " * 3]
ids = st.integers(0, 399)  # the tiny model has a few more
prefixes = st.lists(ids, max_size=12)
texts_of_ids = st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=4)


@st.composite
def label_sets(draw):
    """1 to 6 labels over few tokens, so that many share their first ones; none is the beginning of another."""
    drawn = draw(st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=4), min_size=1, max_size=6))
    labels = []
    for label in drawn:
        size = min(len(label), *(len(other) for other in labels)) if labels else len(label)
        if all(label[:size] != other[:size] for other in labels):
            labels.append(label)
    return labels


@pytest.fixture(scope="module")
def exact(exact_model):
    return exact_model.llm.pipeline.model


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return tiny_model.llm.pipeline.tokenizer


@pytest.fixture(scope="module")
def markup(tokenizer):
    words = list(TASK.labels.values())
    return Markup(tokenizer, separator=TASK.reply_separator, empty=TASK.empty, words=words, end=TASK.reply_end)


def items_graph(text, markup):
    """The graph of all replies but the empty word, which a random model writes too often."""
    start = reply_graph(text, markup)
    del start.next[markup.empty[0]]
    assert start.next
    return start


@torch.inference_mode()
def reference_scores(model, prefix, text, labels):
    """One full pass per label; at each fork of the label trie a softmax over the tokens that may follow."""
    scores = []
    for label in labels:
        logits = model(torch.tensor([[*prefix, *text, *label]])).logits[0].float()
        score = 0.0
        for depth, token in enumerate(label):
            following = sorted({other[depth] for other in labels if other[:depth] == label[:depth]})
            place = len(prefix) + len(text) + depth - 1
            score += float(F.log_softmax(logits[place, following], -1)[following.index(token)])
        scores.append(score)
    return scores


@torch.inference_mode()
def reference_reply(model, prefix, text, node, room):
    """Greedy decoding under the graph, one token and one full pass at a time."""
    reply = []
    while len(reply) < room and not node.is_end:
        allowed = list(node.next)
        if len(allowed) > 1:
            logits = model(torch.tensor([[*prefix, *text, *reply]])).logits[0, -1].float()
            allowed = [max(allowed, key=lambda token: float(logits[token]))]
        reply.append(allowed[0])
        node = node.next[allowed[0]]
    return reply


@given(prefix=prefixes, texts=texts_of_ids, labels=label_sets())
def test_label_scores_equal_full_passes(exact, prefix, texts, labels):
    scores = Decoder(exact).score_labels(prefix, texts, labels)
    for row, text in zip(scores.tolist(), texts, strict=True):
        assert row == pytest.approx(reference_scores(exact, prefix, text, labels), abs=1e-4)


@given(prefix=prefixes, texts=texts_of_ids, labels=label_sets())
def test_label_probabilities_sum_to_one(exact, prefix, texts, labels):
    total = Decoder(exact).score_labels(prefix, texts, labels).exp().sum(1)
    assert total.tolist() == pytest.approx([1.0] * len(texts), abs=1e-4)


@given(prefix=prefixes, texts=texts_of_ids, labels=label_sets())
def test_label_scores_in_bf16_stay_near_those_in_fp32(exact, tiny_model, prefix, texts, labels):
    scores = Decoder(tiny_model.llm.pipeline.model).score_labels(prefix, texts, labels)
    for row, text in zip(scores.tolist(), texts, strict=True):
        assert row == pytest.approx(reference_scores(exact, prefix, text, labels), abs=0.35)


@given(prefix=prefixes, texts=texts_of_ids, labels=label_sets(), data=st.data())
def test_a_text_scores_alike_alone_and_in_any_batch(exact, prefix, texts, labels, data):
    order = data.draw(st.permutations(range(len(texts))))
    decoder = Decoder(exact)
    together = decoder.score_labels(prefix, [texts[place] for place in order], labels)
    for row, place in zip(together, order, strict=True):
        alone = decoder.score_labels(prefix, [texts[place]], labels)[0]
        assert row.tolist() == pytest.approx(alone.tolist(), abs=1e-4)
        top = alone.topk(min(2, len(labels))).values
        if len(top) < 2 or top[0] - top[1] > 1e-3:
            assert row.argmax() == alone.argmax()


def test_a_longer_prefix_moves_tokens_from_the_text_and_changes_no_score(exact):
    whole, labels = list(range(10, 40)), [[5, 6], [5, 7], [8]]
    scores = [Decoder(exact).score_labels(whole[:cut], [whole[cut:]], labels)[0].tolist() for cut in (0, 1, 15, 29)]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-4)


def test_scores_of_a_single_label_are_zero(exact):
    assert Decoder(exact).score_labels([1, 2], [[3], [4, 5]], [[6, 7]]).tolist() == [[0.0], [0.0]]


def test_the_order_of_the_labels_changes_no_score(exact):
    labels = [[5, 6, 7], [5, 6, 8], [5, 9], [10]]
    forth = Decoder(exact).score_labels([1], [[2, 3]], labels)[0].tolist()
    back = Decoder(exact).score_labels([1], [[2, 3]], labels[::-1])[0].tolist()
    assert back[::-1] == pytest.approx(forth, abs=1e-5)


@st.composite
def graphs(draw):
    """A random graph with forks, guesses, forced stretches and cycles; every node leads on."""
    count = draw(st.integers(1, 6))
    nodes = [Node() for _ in range(count)]
    done = Node(is_end=True)
    for node in nodes:
        for token in draw(st.lists(ids, min_size=1, max_size=3, unique=True)):
            node.next[token] = draw(st.sampled_from([*nodes, done]))
        node.likely = draw(st.sampled_from([None, *node.next]))
    return nodes[0]


@given(
    prefix=prefixes,
    rows=st.lists(
        st.tuples(st.lists(ids, min_size=1, max_size=9), graphs(), st.integers(1, 14)), min_size=1, max_size=5
    ),
    together=st.integers(1, 5),
    free=st.sampled_from([0, 3, 24, 60]),
)
def test_replies_equal_greedy_decoding_with_full_passes(exact, prefix, rows, together, free):
    texts, starts, rooms = map(list, zip(*rows, strict=True))
    expected = [reference_reply(exact, prefix, *row) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decoding.FREE_TOKENS, "cpu", free)
        assert Decoder(exact).write_replies(prefix, texts, starts, rooms, together=together) == expected


def forced(length, tail):
    """A stretch of ``length`` tokens without a choice, and then what may follow ``tail``."""
    first = node = Node()
    for token in range(10, 10 + length):
        node.next = {token: Node()}
        node = node.next[token]
    node.next = tail.next
    return first


def test_a_row_near_its_end_may_stand_beside_a_long_forced_stretch(exact):
    loop = Node()
    loop.next = {5: loop, 6: loop}
    late = Node({7: forced(12, loop), 8: forced(12, loop)})
    late = Node({7: late, 8: late})
    rows = [([1, 2], forced(10, loop), 16), ([3, 4], late, 16), ([1], loop, 4)]
    texts, starts, rooms = map(list, zip(*rows, strict=True))
    expected = [reference_reply(exact, [9], *row) for row in rows]
    assert Decoder(exact).write_replies([9], texts, starts, rooms) == expected


def test_only_forks_take_a_pass_of_their_own(exact, monkeypatch):
    passes = []
    extend = Decoder.extend
    monkeypatch.setattr(
        Decoder, "extend", lambda self, rows, tokens, **k: passes.append(tokens) or extend(self, rows, tokens, **k)
    )
    decoder = Decoder(exact)
    decoder.score_labels([], [[1, 2]], [[5, 6, 7], [8, 9], [10]])
    assert passes == [[[1, 2]]]
    decoder.score_labels([], [[1, 2]], [[5, 6, 7, 8], [5, 6, 7, 9, 9], [10]])
    assert passes[1:] == [[[1, 2]], [[5, 6, 7]]]


def test_right_guesses_save_passes_and_wrong_ones_cost_none(exact, monkeypatch):
    passes = []
    extend = Decoder.extend
    monkeypatch.setattr(
        Decoder, "extend", lambda self, rows, tokens, **k: passes.append(tokens) or extend(self, rows, tokens, **k)
    )
    nodes = [Node() for _ in range(8)]
    for node, following in zip(nodes, [*nodes[1:], Node(is_end=True)], strict=True):
        node.next = {token: following for token in (5, 6, 7)}

    def run():
        passes.clear()
        reply = Decoder(exact).write_replies([1], [[2, 3]], [nodes[0]], [20])[0]
        return reply, len(passes)

    reply, plain = run()
    assert plain == 1 + 8  # the prefix, the text, and each token but the last
    for node, token in zip(nodes, reply, strict=True):
        node.likely = token
    assert run() == (reply, 2)
    for node, token in zip(nodes, reply, strict=True):
        node.likely = 5 + (token - 4) % 3
    assert run() == (reply, plain)
    assert len(passes[-1][0]) == 1, "the last token decides alone"


def test_rows_enter_where_others_leave(exact, monkeypatch):
    alive = []
    write = Decoder._write
    monkeypatch.setattr(
        Decoder,
        "_write",
        lambda self, rows, writings, first: (
            alive.append((first, [w.number for w in writings])) or write(self, rows, writings, first)
        ),
    )
    loop = Node()
    loop.next = {5: loop, 6: loop}
    Decoder(exact).write_replies([], [[1]] * 5, [loop] * 5, [9, 1, 2, 2, 2], together=2)
    assert alive[:3] == [(0, [0, 1]), (1, [2]), (0, [0, 2])]
    assert sorted({number for _, numbers in alive for number in numbers}) == list(range(5))
    assert max(len(numbers) + first for first, numbers in alive) == 2


@pytest.mark.parametrize("prefix", [[], list(range(20, 50))])
def test_grounded_replies_are_the_same_alone_in_a_batch_and_by_full_passes(exact, tokenizer, markup, prefix):
    rows = [markup.cut(text) for text in TEXTS]
    rooms = [24 + len(row) for row in rows]
    decoder = Decoder(exact)
    together = decoder.write_replies(prefix, rows, [items_graph(text, markup) for text in TEXTS], rooms)
    for text, row, room, reply in zip(TEXTS, rows, rooms, together, strict=True):
        assert decoder.write_replies(prefix, [row], [items_graph(text, markup)], [room]) == [reply]
        assert reference_reply(exact, prefix, row, items_graph(text, markup), room) == reply
    assert len({tuple(reply) for reply in together}) > 1


def test_grounded_replies_equal_generate_with_allowed_tokens(exact, tokenizer, markup):
    text, prefix, room = TEXTS[0], list(range(20, 50)), 30
    row = markup.cut(text)
    given_tokens = len(prefix) + len(row)

    def allowed(_, so_far):
        node = items_graph(text, markup)
        for token in so_far[given_tokens:].tolist():
            node = node.next[token] if not node.is_end else node
        return list(node.next) or [tokenizer.eos_token_id]

    inputs = torch.tensor([[*prefix, *row]])
    made = exact.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        max_new_tokens=room,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )[0, given_tokens:].tolist()
    reply = Decoder(exact).write_replies(prefix, [row], [items_graph(text, markup)], [room])[0]
    assert reply == made[: len(reply)] and len(reply) > 3
    assert len(reply) == room or set(made[len(reply) :]) <= {tokenizer.eos_token_id}


def test_a_reply_stops_at_its_room(exact):
    loop = Node()
    loop.next = {5: loop, 6: loop}
    forced = Node()
    forced.next = {5: forced}
    assert [len(reply) for reply in Decoder(exact).write_replies([], [[1], [2]], [loop, forced], [7, 3])] == [7, 3]


def test_prefixes_are_computed_once_and_the_last_used_are_kept(exact, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PREFIX_TOKENS", 9)
    decoder = Decoder(exact)
    first = decoder.prefix([1, 2, 3])
    for number in range(4):
        decoder.prefix([number, 9, 9])
        assert decoder.prefix([1, 2, 3]) is first
        assert sum(map(len, decoder._prefixes)) <= 9
    second = decoder.prefix([3, 9, 9])
    decoder.prefix([4, 4, 4, 4])
    assert decoder.prefix([3, 9, 9]) is second
    assert decoder.prefix([1, 2, 3]) is not first
    long = decoder.prefix(list(range(20)))
    assert decoder.prefix(list(range(20))) is long, "one is kept whatever its length"
    assert len(decoder._prefixes) == 1


def test_a_prefix_holds_its_own_tokens_and_one_of_zeros(exact):
    prefix = Decoder(exact).prefix([1, 2, 3])
    assert prefix.length == 3
    assert {tuple(part.shape) for part in prefix.keys + prefix.values} == {(4, 4, 16)}
    assert all(part[:, 3].abs().max() == 0 and part[:, 2].abs().max() > 0 for part in prefix.keys + prefix.values)


def test_scoring_leaves_the_prefix_as_it_was(exact):
    decoder = Decoder(exact)
    before = [keys.clone() for keys in decoder.prefix([1, 2, 3]).keys]
    decoder.score_labels([1, 2, 3], [[4, 5], [6]], [[5, 6], [5, 7]])
    for old, new in zip(before, decoder.prefix([1, 2, 3]).keys, strict=True):
        assert torch.equal(old, new)


def test_the_decoder_reads_weights_of_any_shape(tmp_path):
    from transformers import BloomConfig

    torch.manual_seed(1)
    # 3 and 6 heads: ALiBi's slopes differ from those of a power of two.
    for heads in (3, 6):
        config = BloomConfig(vocab_size=50, hidden_size=12 * heads, n_layer=3, n_head=heads, initializer_range=0.2)
        model = BloomForCausalLM(config).eval()
        labels = [[5, 6], [5, 7], [8]]
        scores = Decoder(model).score_labels([1, 2, 3], [[9, 10], [11]], labels).tolist()
        for row, text in zip(scores, [[9, 10], [11]], strict=True):
            assert row == pytest.approx(reference_scores(model, [1, 2, 3], text, labels), abs=1e-4)
