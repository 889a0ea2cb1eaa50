"""Chats: which tokens of a small conversation become rows, written down by hand."""

import numpy as np
import pytest
from data_sets import lines, table
from transformers import PreTrainedTokenizerFast

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_MODEL
from harvest.text.concepts import texts_of
from harvest.text.windows import token_windows

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}:{{ m.content }}\n{% endfor %}"
ASKED, ANSWERED = " The ships lay", " in the bay"
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
SHARE_GPT = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]


@pytest.fixture
def tokenizer():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rows_of(location: str, tokenizer, **settings) -> str:
    """The text of the tokens of the first window that become rows. The window is the whole conversation."""
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    request = HarvestRequest(seq_len=len(whole), held_out=1.0, **settings)
    windows = token_windows(location, tokenizer, request)["held_out"]
    assert windows.tokens_WxT[0].tolist() == whole
    return tokenizer.decode(windows.tokens_WxT[0][windows.others["kept"][0]])


@pytest.mark.parametrize("write", [lines, table])
@pytest.mark.parametrize("messages, column", [(MESSAGES, "messages"), (SHARE_GPT, "conversations")])
def test_the_contents_of_messages_become_rows_and_the_template_does_not(messages, column, write, tokenizer, tmp_path):
    location = write(tmp_path / "a.jsonl", {"source": "web", column: messages})
    assert rows_of(location, tokenizer) == ASKED + ANSWERED
    assert rows_of(location, tokenizer, chat_roles="assistant") == ANSWERED
    assert rows_of(location, tokenizer, chat_roles=("user",)) == ASKED
    assert list(texts_of(location, None, tokenizer)) == [f"{ASKED}\n{ANSWERED}"]


def test_a_role_that_nobody_has_is_answered_with_the_roles(tokenizer, tmp_path):
    location = lines(tmp_path / "a.jsonl", {"messages": MESSAGES})
    with pytest.raises(InputError, match="no token of its held_out windows becomes a row: .* may be user, assistant"):
        rows_of(location, tokenizer, chat_roles="asistant")


def test_what_begins_every_window_is_taken_from_the_start_of_a_chat(tokenizer, tmp_path):
    location, request = lines(tmp_path / "a.jsonl", {"messages": MESSAGES}), HarvestRequest(seq_len=10, held_out=1.0)
    whole = token_windows(location, tokenizer, request)["held_out"].tokens_WxT[0].tolist()
    behind = token_windows(location, tokenizer, request, bos=(whole[0],))["held_out"].tokens_WxT[0].tolist()
    assert behind[:9] == whole[1:]


def test_special_tokens_within_a_message_are_no_rows(tokenizer, tmp_path):
    cut = [MESSAGES[0] | {"content": ASKED + "<|endoftext|>" + ANSWERED}]
    request = HarvestRequest(seq_len=12, held_out=1.0)
    windows = token_windows(lines(tmp_path / "a.jsonl", {"messages": cut}), tokenizer, request)["held_out"]
    assert not windows.others["kept"][windows.tokens_WxT == tokenizer.eos_token_id].any()
    assert np.count_nonzero(windows.tokens_WxT[0] == tokenizer.eos_token_id) == 2


def test_a_tokenizer_without_a_template_or_with_one_that_changes_messages_is_refused(tokenizer, tmp_path):
    location = lines(tmp_path / "a.jsonl", {"messages": MESSAGES})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InputError, match="changes the messages .'The ships lay' is not in the text that it makes"):
        token_windows(location, tokenizer, HarvestRequest())
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="the tokenizer of the model has no chat template, so it cannot read a chat"):
        token_windows(location, tokenizer, HarvestRequest())


@pytest.mark.parametrize("message", [{"role": "user", "content": 3}, {"role": None, "content": "x"}, {"text": "x"}, 4])
def test_what_is_no_message_is_named_with_its_line(message, tokenizer, tmp_path):
    location = lines(tmp_path / "a.jsonl", {"messages": [MESSAGES[0], message]})
    with pytest.raises(
        InputError, match="line 1: 'messages' (has a message whose role|must hold token ids.* messages)"
    ):
        token_windows(location, tokenizer, HarvestRequest(text_column="messages"))
