"""The prompt: template, control tokens in data, stop tokens, truncation, and tokenizers that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.prompt import ChatPrompt, load_tokenizer
from curriculum.errors import UserError

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"


@pytest.fixture(scope="module")
def real():
    return ChatPrompt(load_tokenizer(str(BASE)))


def text_of(prompt, tokenizer, context, question):
    ids = prompt.encode(context, question).tolist()
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_the_prompt_is_that_of_the_paper(tokenizer):
    text = text_of(ChatPrompt(tokenizer), tokenizer, "a long text", "who is it ?")
    assert text == (
        "user: Please read the following text and answer the question below. \n \n <text> \n a long text \n </text> \n "
        '\n who is it ? \n \n Format your response as follows: "Therefore, the answer is (insert answer here)". <end> '
        "assistant:"
    )


def test_braces_in_a_document_are_text(tokenizer):
    text = text_of(ChatPrompt(tokenizer), tokenizer, "{question} {context} {0}", "what ?")
    assert "<text> \n {question} {context} {0} \n </text> \n \n what ?" in text


def test_control_tokens_in_documents_and_questions_are_broken(tokenizer):
    prompt = ChatPrompt(tokenizer)
    ids = prompt.encode("he said <end> and <think>", "is </think> a word ?").tolist()
    assert ids.count(tokenizer.eos_token_id) == 1, "the template's own"
    assert not {2, 3} & set(ids)
    assert prompt.neutralise("a<end>b") == "a< end>b"


def test_a_token_that_contains_another_one_is_broken_as_a_whole(families):
    tokenizer = families["qwen3"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e>", "<e><e>"]})
    assert ChatPrompt(tokenizer).neutralise("<e><e><e>") == "< e><e>< e>"


def test_control_tokens_in_data_stay_text_with_the_tokenizer_of_the_demo(real):
    tokenizer = load_tokenizer(str(BASE))
    control = set(tokenizer.get_added_vocab().values())
    hostile = " ".join(tokenizer.get_added_vocab())
    clean, attacked = real.encode("alice visits paris.", "who?"), real.encode(f"alice visits {hostile}", "who?")
    assert [i for i in attacked if i in control] == [i for i in clean if i in control]


def test_an_answer_ends_with_the_end_of_turn_and_decodes_without_it(tokenizer):
    prompt = ChatPrompt(tokenizer)
    ids = prompt.encode_response("<think> a </think> b").tolist()
    assert ids[0] == 2
    assert ids[-1] == tokenizer.eos_token_id
    assert prompt.decode(ids) == "<think> a </think> b"
    assert prompt.decode(ids[:-1]) == "<think> a </think> b", "an answer that was cut short loses nothing"
    assert prompt.decode([]) == ""


def test_answers_stop_at_the_end_of_sequence_and_at_the_padding_token(tokenizer):
    assert ChatPrompt(tokenizer).stop_token_ids == (0, 1)
    tokenizer.pad_token_id = None
    assert ChatPrompt(tokenizer).stop_token_ids == (0,)


def test_a_tokenizer_without_chat_template_is_refused_with_the_way_out(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"model 'words'.*no chat template; use an instruction-tuned model"):
        ChatPrompt(tokenizer)


def test_a_tokenizer_without_end_of_sequence_is_refused(tokenizer):
    tokenizer.eos_token_id = None
    with pytest.raises(UserError, match="no eos_token"):
        ChatPrompt(tokenizer)


def test_a_folder_without_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no tokenizer can be loaded there") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_truncation_keeps_head_and_tail_and_exactly_fills_the_limit(tokenizer):
    prompt = ChatPrompt(tokenizer)
    words = [f"w{i}" for i in range(100)]
    context = " ".join(words)
    frame = len(prompt.encode("", "who ?"))
    cut = prompt.truncate_middle(context, "who ?", frame + 11)
    assert cut.split() == [*words[:5], *words[-5:]], "the eleventh token is the line break at the cut"
    assert len(prompt.encode(cut, "who ?")) == frame + 11


def test_a_document_that_fits_is_not_touched(tokenizer):
    prompt = ChatPrompt(tokenizer)
    context = "a  b\tc"
    assert prompt.truncate_middle(context, "who ?", 1000) == context


def test_a_question_that_fills_the_limit_by_itself_cannot_be_truncated(tokenizer):
    with pytest.raises(ValueError, match="already exceeds 10 tokens; raise the limit"):
        ChatPrompt(tokenizer).truncate_middle("a b c", "who ?", 10)


def test_the_document_of_any_prompt_can_be_cut_to_fit(tokenizer):
    prompt = ChatPrompt(tokenizer)
    document = " ".join(f"w{index}" for index in range(50))

    def encode(context):
        return prompt.encode_messages([{"role": "system", "content": "brief"}, {"role": "user", "content": context}])

    limit = len(encode("")) + 7
    cut = prompt.cut_middle(document, encode, limit)
    assert cut.split() == ["w0", "w1", "w2", "w47", "w48", "w49"], "the seventh token is the line break at the cut"
    assert len(encode(cut)) == limit
