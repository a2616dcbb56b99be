import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError
from alp_megatron.tasks.arithmetic import VOCABULARY, build_tokenizer, write_model_files
from alp_megatron.tasks.dataset import PromptItem, read_items
from alp_megatron.tasks.task import ShuffledItems, build_task

GOOD = {
    "prompt": [{"role": "user", "content": "1+2+3+4"}],
    "data_source": "handmade",
    "reward_model": {"style": "rule", "ground_truth": "10"},
    "extra_info": {"index": 7},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_model_files(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_tokenizer_survives_autotokenizer(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "<|im_start|>user\n7+8-3+6<|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "user", "content": "7+8-3+6"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(text) == build_tokenizer().encode(text)
    assert len(ids) == 15 and tokenizer.decode(ids) == text
    assert len(VOCABULARY) <= 64 and len(tokenizer) == len(VOCABULARY)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    answer = tokenizer.encode("7+8=15;15-3=12;2*6 <|im_end|>")
    assert tokenizer.decode(answer, skip_special_tokens=True) == "7+8=15;15-3=12;2*6 "


def test_jsonl_and_parquet_give_the_same_items(tmp_path, tokenizer):
    rows = [GOOD, GOOD | {"data_source": "other"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    items = read_items(write_jsonl(tmp_path / "data.jsonl", rows), tokenizer, 100)
    assert items == read_items(tmp_path / "data.parquet", tokenizer, 100)
    text = "<|im_start|>user\n1+2+3+4<|im_end|>\n<|im_start|>assistant\n"
    assert items[0] == PromptItem(tokenizer.encode(text), "10", "handmade", {"index": 7})


def test_a_numeric_ground_truth_and_no_extra_info(tmp_path, tokenizer):
    row = {key: value for key, value in GOOD.items() if key != "extra_info"}
    row["reward_model"] = {"ground_truth": 10}
    [item] = read_items(write_jsonl(tmp_path / "data.jsonl", [row]), tokenizer, 100)
    assert (item.ground_truth, item.extra_info) == ("10", {})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "1+2"}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "content"),
        ({"prompt": [{"role": "user", "content": 5}]}, "content"),
        ({"prompt": [{"role": "user", "content": "1" * 100}]}, "rollout.max_model_len"),
        ({"data_source": None}, "data_source"),
        ({"reward_model": None}, "reward_model.ground_truth"),
        ({"reward_model": {"ground_truth": None}}, "reward_model.ground_truth"),
        ({"reward_model": {"ground_truth": True}}, "reward_model.ground_truth"),
        ({"extra_info": "x"}, "extra_info"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, tokenizer, change, expected):
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD, GOOD | change])
    with pytest.raises(UserError) as caught:
        read_items(path, tokenizer, 100)
    assert str(caught.value).startswith(f"{path}:2: ") and expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", "holds no prompts"),
        ("a.jsonl", b"\n\n", "holds no prompts"),
        ("a.jsonl", b"{", "a.jsonl:1: not a line of JSON"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl:1: not a line of JSON"),
        ("a.jsonl", b"[1]", "a.jsonl:1: is not an object"),
        ("a.parquet", b"PAR1 nonsense", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("absent.jsonl", None, "cannot be read"),
        ("absent.parquet", None, "cannot be read"),
    ],
)
def test_unreadable_files_are_named(tmp_path, tokenizer, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_items(path, tokenizer, 100)
    assert str(path) in str(caught.value) and expected in str(caught.value)


def test_every_epoch_is_another_order_of_all_items():
    items = [PromptItem([i], str(i), "x") for i in range(10)]
    source = ShuffledItems(items, seed=1, batch_size=4)
    drawn = [item.ground_truth for step in range(5) for item in source.batch(step)]
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == Counter(i.ground_truth for i in items)
    assert drawn[:10] != drawn[10:]
    assert ShuffledItems(items, 1, 4).batch(3) == source.batch(3)  # any step, without the others
    assert ShuffledItems(items, 2, 4).batch(3) != source.batch(3)


@pytest.fixture
def configure(model, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{path: '{model}'}}\nevaluation: {{prompts: 5}}")
    return lambda *overrides: load_config(path, list(overrides))


def test_the_arithmetic_task(configure):
    task, again = build_task(configure()), build_task(configure())
    assert task.train_batch(7) == again.train_batch(7) != task.train_batch(8)
    assert len(task.train_batch(0)) == 32 and len(task.eval_items()) == 5
    other = build_task(configure("seed=5"))
    assert other.train_batch(7) != task.train_batch(7)
    assert other.eval_items() == task.eval_items()
    item = task.train_batch(0)[0]
    right = task.tokenizer.encode(f"1+1={item.ground_truth}<|im_end|>")
    assert task.reward(item, right) == 1.0
    assert task.rewards([item, item], [right, right[:2]]) == [1.0, 0.0]


def test_the_file_task(configure, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [GOOD] * 3)
    task = build_task(configure("task.name=file", f"task.train={path}", f"task.eval={path}"))
    assert len(task.train_batch(0)) == 32 and len(task.eval_items()) == 3
    assert task.reward(task.eval_items()[0], task.tokenizer.encode("it is 10<|im_end|>")) == 1.0


def test_no_room_for_prompts_and_a_broken_tokenizer(configure, model):
    tight = configure("rollout.max_model_len=20", "rollout.max_new_tokens=10")
    with pytest.raises(UserError, match="rollout.max_model_len"):
        build_task(tight)
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        build_task(configure("model.path=/nonexistent"))
    (model / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="chat_template"):
        build_task(configure())
