"""
Facts about look.py: its numbers are the model's, and the page, in a real browser, shows them, whatever the text holds.
"""
import base64
import io
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
from small_runs import ROOT, a_process, hugging_face_model, items_of, random_model, refusal

import hellaswag
import look
import play
from support.run import Run
from support.tokenizer import BPETokenizer, gpt2_tokenizer, make_tokenizer, token_bytes, train_bpe
from train_gpt2 import GPT, DataLoaderLite, GPTConfig, TrainConfig, evaluate_val_loss

WORDS = "To be, or not to be, that is the question: to be, or not"
HOSTILE = ("</script><script>window.stolen = 1</script><img src=x onerror='stolen=1'> <!-- \"'`${1} &lt; "
           "\u202eright to left\u200f שלום 😀 中文 é \0 \u2028\u2029 \r\n\t end")
TINY = GPTConfig(block_size=64, vocab_size=128, n_layer=2, n_head=2, n_embd=32)


def random_ids(n, vocab=128, seed=0):
    return torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def small_gpt2(seed=0, block_size=64, n_layer=2, n_head=2):
    """A random model with GPT-2's tokenizer."""
    return random_model(GPTConfig(block_size, 50304, n_layer, n_head, 2 * n_head), seed)


def save(path, model, tokenizer):
    torch.save({"model": model.state_dict(), "config": vars(model.config), "tokenizer": tokenizer.spec}, path)
    return str(path)


def data_of(page):
    """The JSON in a page -> dict"""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


# --- the numbers ----------------------------------------------------------------------------------

def test_the_mean_surprise_is_the_validation_loss():
    """Over all rows of the vocabulary, as in training: a row of block_size + 1 tokens, and a split of several."""
    model, tokens = random_model(TINY), random_ids(5 * 64 + 1)
    x, y = torch.tensor([tokens[:64]]), torch.tensor([tokens[1:65]])
    assert look.surprise(model, tokens[:65]).mean().item() == pytest.approx(model(x, y)[1].item(), abs=1e-6)
    loader = DataLoaderLite([np.array(tokens, dtype=np.uint16)], 1, 64)
    config = TrainConfig(T=64, B=1, val_tokens=5 * 64)
    loss = evaluate_val_loss(model, loader, config, a_process(), Run(config, None))
    costs = [look.surprise(model, tokens[i : i + 65]) for i in range(0, 5 * 64, 64)]
    assert torch.cat(costs).mean().item() == pytest.approx(loss, abs=1e-4)


def test_transformers_sees_the_same(tmp_path):
    """Its attentions, hidden states and logits, to 1e-5. The last of its hidden states has been through ln_f."""
    theirs = hugging_face_model(tmp_path, vocab_size=128, n_positions=64, n_layer=3, n_head=4, n_embd=32)
    theirs.set_attn_implementation("eager")  # flash attention has no weights to show
    ours, ids = GPT.from_pretrained(str(tmp_path)).eval(), random_ids(50)
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    stream, weights = list(look.residual_stream(ours, ids)), list(look.attention(ours, ids))
    close = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(weights), torch.cat(out.attentions), **close)
    torch.testing.assert_close(torch.stack(stream[:-1]), torch.cat(out.hidden_states[:-1]), **close)
    torch.testing.assert_close(ours.transformer.ln_f(stream[-1]), out.hidden_states[-1][0], **close)
    torch.testing.assert_close(list(look.logit_lens(ours, ids))[-1], out.logits[0], **close)


def test_the_last_row_of_the_lens_is_what_the_model_says():
    """And the first is the embeddings alone: a row for each block, and one before them."""
    model, ids = random_model(TINY), random_ids(40)
    lens = list(look.logit_lens(model, ids))
    assert len(lens) == 3 and lens[0].shape == (40, 128)
    torch.testing.assert_close(lens[-1], model(torch.tensor([ids]))[0][0])


def test_attention_is_what_the_model_used():
    """Rows sum to 1, the future gets nothing, and these weights times v are what goes into c_proj."""
    model, ids, used = random_model(TINY), random_ids(40), []
    for block in model.transformer.h:
        block.attn.c_proj.register_forward_hook(lambda module, inputs, output: used.append(inputs[0][0]))
    model(torch.tensor([ids]))
    with_blocks = zip(look.attention(model, ids), look.residual_stream(model, ids), model.transformer.h, list(used),
                      strict=False)
    for weights, x, block, y in with_blocks:
        assert weights.shape == (2, 40, 40) and weights.triu(1).abs().max() == 0
        torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 40))
        v = block.attn.c_attn(block.ln_1(x)).split(32, dim=1)[2].view(40, 2, 16).transpose(0, 1)
        torch.testing.assert_close((weights @ v).transpose(0, 1).reshape(40, 32), y)


def test_the_facts_about_a_head():
    """
    A head that looks at the token before, one that looks at the first, and an induction head, which looks at what came
    after the same token earlier. Nothing can be said of copies in a text without any.
    """
    ids = [7, 8, 9, 7, 8, 9]
    weights = torch.zeros(3, 6, 6)
    for t in range(6):
        weights[0, t, max(0, t - 1)] = 1
        weights[1, t, 0] = 1
        weights[2, t, t - 2 if t >= 3 else t] = 1  # 7 looks at the 8 after the first 7
    previous, first, induction = look.head_facts(weights, ids).tolist()
    assert previous == pytest.approx([1, 1 / 5, 0, 0])  # only the second token finds the first one there
    assert first == pytest.approx([3, 1, 1 / 3, 0])  # the second 7 finds its copy at the beginning
    assert induction == pytest.approx([(0 + 0 + 2 + 2 + 2) / 5, 0, 0, 1])
    nothing = look.head_facts(weights[:, :3, :3], ids[:3])
    assert nothing[:, 2:].isnan().all() and not nothing[:, :2].isnan().any()


def test_padding_is_paid_for_and_never_shown():
    """Rows without a token take their part of the probability, and none of the places."""
    logits = torch.zeros(1, 6)
    logits[0, 4:] = 3.0  # padding: four tokens are real
    expected = look.likeliest(logits, 4, 10)
    p = 1 / (4 + 2 * math.exp(3))
    assert sorted(expected["ids"][0]) == [0, 1, 2, 3] and expected["probabilities"][0] == [round(p, 4)] * 4
    assert look.ranks(logits, [2], 4) == [1]


def test_where_the_final_answer_first_leads():
    """The first layer whose choice is that of the last one, also if another one leads in between."""
    tokenizer = make_tokenizer("char", ["".join(map(chr, range(33, 160)))])
    seen = look.look_at("m", random_model(GPTConfig(64, 128, 6, 2, 32)), tokenizer, random_ids(60))
    choices = [[row[0] for row in layer["ids"]] for layer in seen["lens"]]
    for t, first in enumerate(seen["leads"]):
        assert choices[first][t] == choices[-1][t] and all(layer[t] != choices[-1][t] for layer in choices[:first])
    assert len(set(seen["leads"])) > 1


def test_the_loss_in_four_units():
    """Two tokens of 1 and 3 nats that are four characters in eight bytes; one token has no loss."""
    units = look.totals(torch.tensor([1.0, 3.0]), 4, 8)
    assert units == {"nats_a_token": 2, "nats_a_character": 1, "bits_a_byte": round(0.5 / math.log(2), 4),
                     "perplexity": round(math.exp(2), 2)}
    assert set(look.totals(torch.zeros(0), 0, 0).values()) == {None}


# --- tokens as text -------------------------------------------------------------------------------

@pytest.mark.parametrize("data, parts", [
    (b" be\n", ["", "·", "be", "↵"]),
    (b"be", ["be"]),
    (b"\xe4\xb8", ["", r"\xe4\xb8"]),
    ("é中😀".encode(), ["é中😀"]),
    ("a\u202e\0\u2028b".encode(), ["a", "U+202EU+0000U+2028", "b"]),
    ("\xa0\t".encode(), ["", "U+00A0→"]),
    (b"", [""]),
], ids=repr)
def test_what_a_token_looks_like(data, parts):
    """Text and signs in turn: what shows nothing, or would move what stands beside it, has a sign."""
    assert look.spell(data) == parts


@pytest.mark.parametrize("kind", ["gpt2", "char", "bpe"])
def test_characters_and_bytes_are_those_of_the_text(kind):
    """Also where a token is a part of a character, and whatever the tokenizer; <|endoftext|> is no text."""
    tokenizer = BPETokenizer(train_bpe([WORDS], 300)) if kind == "bpe" else make_tokenizer(kind, [HOSTILE])
    ids = tokenizer.encode(HOSTILE)
    assert b"".join(token_bytes(tokenizer, i) for i in ids) == HOSTILE.encode()
    assert look.count_text(tokenizer, [*ids, tokenizer.eot]) == (len(HOSTILE), len(HOSTILE.encode()))
    # after the first token
    first = token_bytes(tokenizer, ids[0])
    assert look.count_text(tokenizer, ids[1:])[1] == len(HOSTILE.encode()) - len(first)


# --- what is in the page --------------------------------------------------------------------------

def unpack(text, kind=np.uint8):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_weights_survive_being_packed():
    """To half a percent in the worst case; in long texts the 16 largest of a row, and the sum of the others."""
    weights = torch.rand(2, 300, 300).tril().softmax(dim=2).tril() + torch.eye(300)
    weights /= weights.sum(dim=2, keepdim=True)
    part = weights[:, :20, :20] / weights[:, :20, :20].sum(dim=2, keepdim=True)
    rows, columns = np.tril_indices(20)
    packed = unpack(look.pack_attention(part)["weights"]).reshape(2, -1)
    assert np.abs((packed / 255) ** 2 - part.numpy()[:, rows, columns]).max() < 0.005
    block = look.pack_attention(weights)
    values = (unpack(block["weights"]).reshape(2, 300, 16) / 255) ** 2
    at, rest = unpack(block["at"], np.uint16).reshape(2, 300, 16), (unpack(block["rest"]).reshape(2, 300) / 255) ** 2
    assert np.abs(values - np.take_along_axis(weights.numpy(), at.astype(int), 2)).max() < 0.005
    assert np.abs(values.sum(axis=2) + rest - 1).max() < 0.05 and rest[:, 200:].min() > 0.2


@pytest.mark.parametrize("tokens, most", [(128, 3.0), pytest.param(1024, 25.0, marks=pytest.mark.slow)])
def test_the_size_of_a_page(tokens, most):
    """12 layers of 12 heads and GPT-2's vocabulary, as 124M has them: what is written does not depend on the width."""
    model = small_gpt2(block_size=1024, n_layer=12, n_head=12)
    page = look.make_page([("m", model)], gpt2_tokenizer(), random_ids(tokens, 50257))
    assert len(page.encode()) < most * 1e6


def test_a_page_needs_nothing_from_elsewhere():
    """No address but the name of SVG, no library; the policy in its head allows no request."""
    with open(os.path.join(ROOT, "assets", "look.html"), encoding="utf-8") as f:
        page = f.read()
    assert re.findall(r"\w+://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]
    assert "default-src 'none'" in page and not re.search(r"innerHTML|insertAdjacent|document\.write|\beval\(", page)


def test_text_cannot_leave_its_script_element():
    """What stands in the JSON is ASCII without <, and it is the text all the same."""
    page = look.make_page([(HOSTILE, small_gpt2())], gpt2_tokenizer(), gpt2_tokenizer().encode(HOSTILE)[:60])
    raw = re.search(r'id="data">(.*)</script>\n<script>', page)[1]
    assert raw.isascii() and "<" not in raw and data_of(page)["models"][0]["name"] == HOSTILE


def test_a_long_text_loses_its_beginning():
    """The last block_size tokens are shown, and it is said how many there were; of two models, the shorter context."""
    models = [("a", small_gpt2()), ("b", small_gpt2(block_size=32))]
    page = data_of(look.make_page(models, gpt2_tokenizer(), list(range(100))))
    assert page["ids"] == list(range(68, 100)) and page["left_out"] == 68


def test_a_broken_model_has_a_page():
    """Weights that are nan: numbers that are none become null, and the page is still JSON."""
    model = small_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    seen = data_of(look.make_page([("m", model)], gpt2_tokenizer(), [1, 2, 3]))["models"][0]
    assert seen["totals"]["nats_a_token"] is None and seen["costs"] == [None, None]


def test_endings_cost_what_hellaswag_says():
    """Sum by sum, also where the context is cut."""
    model, examples = small_gpt2(block_size=40), items_of(12)
    items = [hellaswag.tokenize_example(example) for example in examples]
    sums, _, _ = hellaswag.score(model, items, a_process(), 512)
    for example, expected in zip(examples, sums.tolist(), strict=True):
        page = data_of(look.make_item_page([("m", model)], gpt2_tokenizer(), example))
        ours = [sum(ending["costs"]) for ending in page["models"][0]["endings"]]
        assert ours == pytest.approx(expected, abs=5e-3) and page["label"] == example["label"]


# --- the command ----------------------------------------------------------------------------------

@pytest.fixture
def models(tmp_path):
    """Paths of two models with GPT-2's tokenizer and one with characters."""
    char = make_tokenizer("char", [WORDS])
    return {"MODEL": save(tmp_path / "a.pt", small_gpt2(), gpt2_tokenizer()),
            "MODEL2": save(tmp_path / "b.pt", small_gpt2(1), gpt2_tokenizer()),
            "CHAR": save(tmp_path / "c.pt", random_model(TINY), char),
            "ITEMS": str(write_items(tmp_path / "items.jsonl"))}


def write_items(path):
    path.write_text("".join(json.dumps(item) + "\n" for item in items_of(3)))
    return path


@pytest.fixture
def run(tmp_path, models, monkeypatch):
    """run("MODEL", "text", ...) -> what is in the page that look.py writes"""
    monkeypatch.chdir(tmp_path)

    def look_at(*words):
        look.main([*[models.get(word, word) for word in words], "--device=cpu", "--out=p.html"])
        return data_of((tmp_path / "p.html").read_text(encoding="utf-8"))
    return look_at


def test_the_text_comes_from_where_it_is_said(run, tmp_path, monkeypatch):
    """The command line, a file, stdin: the same tokens; an empty text is the beginning of a document."""
    (tmp_path / "text.txt").write_text(WORDS + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(WORDS))
    ids = gpt2_tokenizer().encode(WORDS)
    assert run("MODEL", WORDS)["ids"] == run("MODEL", "@text.txt")["ids"] == run("MODEL", "-")["ids"] == ids
    assert run("MODEL", "")["ids"] == [50256]


def test_what_it_would_write(run, capsys, models):
    """--generate writes what sample writes, the page says where it begins, and looks at it as at any text."""
    capsys.readouterr()
    play.main(["sample", models["MODEL"], WORDS, "--max_new_tokens=9", "--device=cpu", "--dtype=float32"])
    written = capsys.readouterr().out.rstrip("\n")
    page = run("MODEL", WORDS, "--generate=9")
    assert page["written"] == 9 and gpt2_tokenizer().decode(page["ids"]) == written
    assert len(page["models"][0]["costs"]) == len(page["ids"]) - 1


def test_only_a_page_of_ours_is_replaced(run, tmp_path):
    assert run("MODEL", WORDS) and run("MODEL", "To be")["ids"]
    (tmp_path / "p.html").write_text("<p>mine")
    assert "not written by this program" in refusal(run, "MODEL", WORDS)
    assert (tmp_path / "p.html").read_text() == "<p>mine"


def test_two_models_read_one_text(run):
    page = run("MODEL", "MODEL2", WORDS)
    a, b = page["models"]
    assert [os.path.basename(m["name"]) for m in (a, b)] == ["a.pt", "b.pt"] and a["costs"] != b["costs"]
    assert run("MODEL", "--hellaswag", "ITEMS", "--item=2")["label"] == items_of(3)[1]["label"]


@pytest.mark.parametrize("words, said", [
    (["MODEL"], "and then a text"),
    (["MODEL", "MODEL2", "MODEL", "text"], "and then a text"),
    (["MODEL", "CHAR", "text"], "have different tokenizers"),
    (["gone.pt", "text"], "there is no model gone.pt"),
    (["CHAR", "µ"], "has no 'µ'"),
    (["MODEL", "@gone.txt"], "cannot read the prompt"),
    (["MODEL", "text", "--out=page.txt"], "must end in .html"),
    (["MODEL", "text", "--out=gone/page.html"], "cannot write gone/page.html"),
    (["MODEL", "text", "--generate=-1"], "--generate=-1"),
    (["MODEL", "text", "--temperature=-1"], "--temperature=-1.0: must be"),
    (["MODEL", "text", "--genrate=1"], "did you mean --generate?"),
    (["MODEL", "text", "--item=2"], "--item has no effect without --hellaswag"),
    (["MODEL", "text", "--seed=2"], "--seed has no effect without --generate"),
    (["MODEL", "text", "--temperature=0", "--generate=0"], "--temperature has no effect without --generate"),
    (["MODEL", "--hellaswag", "ITEMS", "--generate=2"], "--generate has no effect with --hellaswag: leave it out"),
    (["MODEL", "To be", "--hellaswag", "ITEMS"], "there is no model To be"),
    (["MODEL", "--hellaswag=gone.jsonl"], "there is no such file"),
    (["MODEL", "--hellaswag", "ITEMS", "--item=4"], "has items 1 to 3"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_input(words, said, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(look.main, ["--device=cpu", *[models.get(word, word) for word in words]])


def test_an_ending_longer_than_the_context(tmp_path):
    refusal(look.read_item, {"ctx": "a", "endings": ["b " * 50] * 4}, gpt2_tokenizer(), 16)


# --- in a browser ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def chromium():
    """A browser without a window, which notes what its pages ask for and complain of."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested by selenium: pip install selenium")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("the page is tested in a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, tmp_path):
    """browser(page, width=1200, scheme="light") opens it; afterwards: nothing was complained of, nothing asked for."""
    def show(page, width=1200, scheme="light"):
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]})
        chromium.get((tmp_path / "page.html").as_uri())
        return chromium
    chromium.get_log("performance")
    yield show
    assert chromium.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} <= {(tmp_path / "page.html").as_uri()}
    assert len(asked) > 0


def a_page(text=WORDS, number=1):
    models = [(f"model {i}", small_gpt2(i)) for i in range(number)]
    return look.make_page(models, gpt2_tokenizer(), gpt2_tokenizer().encode(text)[:64])


def text_of(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def press(driver, *keys):
    from selenium.webdriver import ActionChains
    for key in keys:
        ActionChains(driver).send_keys(getattr(driver_keys(), key)).perform()


def driver_keys():
    from selenium.webdriver.common.keys import Keys
    return Keys


def point_at(driver, selector, click=False):
    from selenium.webdriver import ActionChains
    chain = ActionChains(driver).move_to_element(driver.find_element("css selector", selector))
    (chain.click() if click else chain).perform()


def open_tab(driver, name):
    point_at(driver, f"#tab-{name}", click=True)


def test_the_page_shows_the_numbers(browser):
    """The loss in its units, a token's cost, and what was expected there: those of the JSON."""
    page = a_page()
    driver, data = browser(page), data_of(page)
    model = data["models"][0]
    units = model["totals"]
    for value in (f"{units['nats_a_token']:.3f}", f"{units['bits_a_byte']:.3f}", str(int(units["perplexity"]))):
        assert value in text_of(driver, "#scores")
    point_at(driver, "#surprise .token[data-place='5']")
    said = text_of(driver, "#surprise .details")
    assert f"{model['costs'][4]:.2f} nats" in said and f"{model['ranks'][4]:,}" in said
    assert len(driver.find_elements("css selector", "#surprise .list li")) == 10


def test_pointing_shows_and_a_click_keeps(browser):
    """What one points at is shown; once clicked it stays until Escape."""
    driver = browser(a_page())

    def point(place, click=False):
        point_at(driver, f"#surprise .token[data-place='{place}']", click)
        return text_of(driver, "#surprise .details")
    third, fourth = point(3), point(4)
    assert third != fourth
    kept = point(3, click=True)
    assert kept == third == point(6)
    press(driver, "ESCAPE")
    assert point(4) == fourth


def test_keys_move_what_is_chosen(browser):
    """Arrows: the token everywhere, the layer in the stream, the head in attention; on the tabs, the view."""
    driver = browser(a_page())
    before = text_of(driver, "#surprise .details")
    press(driver, "ARROW_RIGHT")
    assert text_of(driver, "#surprise .details") != before
    press(driver, "ARROW_LEFT")
    assert text_of(driver, "#surprise .details") == before
    press(driver, "TAB")
    press(driver, "ARROW_RIGHT")
    assert [driver.find_element("id", view).is_displayed() for view in ("surprise", "stream")] == [False, True]
    focus = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert focus == "solid" and driver.switch_to.active_element.get_attribute("id") == "tab-stream"
    press(driver, "TAB")  # into the table
    press(driver, "ARROW_DOWN")
    assert "After layer 2" in text_of(driver, "#stream .details")
    press(driver, "ARROW_UP", "ARROW_UP")
    assert "From the embeddings" in text_of(driver, "#stream .details")
    open_tab(driver, "attention")
    driver.execute_script("document.activeElement.blur()")
    press(driver, "ARROW_DOWN", "ARROW_DOWN")
    chosen = [driver.execute_script(f"return document.getElementById('{name}').value") for name in ("layer", "head")]
    assert chosen == ["2", "1"]


def test_the_stream_marks_where_the_answer_first_leads(browser):
    """One outlined cell in each column; pointing at a cell shows five."""
    page = a_page()
    driver, leads = browser(page), data_of(page)["models"][0]["leads"]
    open_tab(driver, "stream")
    marked = driver.execute_script("return [...document.querySelectorAll('td.leads')].map("
                                   "cell => [Number(cell.dataset.place), Number(cell.dataset.layer)])")
    assert sorted(marked) == [[t, layer] for t, layer in enumerate(leads)]
    point_at(driver, "#stream td[data-place='2'][data-layer='1']")
    assert "After layer 1" in text_of(driver, "#stream .details")
    assert len(driver.find_elements("css selector", "#stream .list li")) == 5


@pytest.mark.parametrize("tokens", [60, 300], ids=["every weight", "the largest of each row"])
def test_attention_is_unpacked_as_it_was_packed(browser, tokens):
    """To half a percent; all heads can be seen as pictures, and choosing one shows its facts."""
    model, ids = small_gpt2(block_size=300), random_ids(tokens, 50257)
    page = look.make_page([("m", model)], gpt2_tokenizer(), ids)
    driver, weights = browser(page), list(look.attention(model, ids))
    for layer, head, t in ((0, 0, 0), (0, 1, 30), (1, 1, tokens - 1)):
        seen = torch.tensor(driver.execute_script(
            "return Array.from(attentionRow(models[0], arguments[0], arguments[1], arguments[2]).row, share)",
            layer, head, t), dtype=torch.float32)
        assert len(seen) == t + 1 and (tokens <= 256 or (seen > 0).sum() == min(t + 1, 16))
        assert (seen - weights[layer][head, t, : t + 1])[seen > 0].abs().max() < 0.005
    open_tab(driver, "attention")
    point_at(driver, "#all", click=True)
    assert len(driver.find_elements("css selector", ".small canvas")) == 4
    point_at(driver, ".small button[data-head='1 1']", click=True)
    chosen = [driver.execute_script(f"return document.getElementById('{name}').value") for name in ("layer", "head")]
    distance = data_of(page)["models"][0]["facts"][1][1][0]
    assert chosen == ["2", "2"] and f"{distance:.1f} tokens" in text_of(driver, ".facts dd")


def test_two_models_side_by_side(browser):
    """Two panels in each view, and a fourth view: what a token costs more in the second one."""
    page = a_page(number=2)
    driver, (a, b) = browser(page), data_of(page)["models"]
    left, right = (panel.rect["x"] for panel in driver.find_elements("css selector", "#surprise .panel"))
    assert right > left + 300
    open_tab(driver, "difference")
    point_at(driver, "#difference .token[data-place='7']")
    assert f"{abs(b['costs'][6] - a['costs'][6]):.2f}" in text_of(driver, "#difference .details")
    difference = abs(b["totals"]["nats_a_token"] - a["totals"]["nats_a_token"])
    assert f"{difference:.2f} nats per token" in text_of(driver, "#difference figcaption")


def test_the_four_endings(browser):
    """They stand below each other, the right one is named, and pointing at a token shows what was expected."""
    page = look.make_item_page([("m", small_gpt2())], gpt2_tokenizer(), items_of(3)[2])
    driver = browser(page)
    open_tab(driver, "endings")
    rows = [row.text for row in driver.find_elements("css selector", ".ending")]
    assert [row.startswith("correct") for row in rows] == [False, False, True, False]
    before = text_of(driver, "#endings .details")
    point_at(driver, ".ending:last-child .token[data-place='0']")
    assert "of ending 4" in text_of(driver, "#endings .details") != before


def test_hostile_text_is_text(browser, tmp_path, run):
    """Tags, quotes, marks that turn the writing, 0x00, half an emoji, a lone surrogate: shown, and nothing runs."""
    driver = browser(a_page(HOSTILE))
    for tab in ("surprise", "stream", "attention"):
        open_tab(driver, tab)
    assert driver.execute_script("return typeof window.stolen") == "undefined"
    assert driver.find_elements("css selector", "img") == []
    open_tab(driver, "surprise")
    shown = text_of(driver, "#surprise .tokens")
    for part in ("script", "stolen", "onerror", r"\xe2\x80\xae", "U+0000", "לו", "中", r"\x"):
        assert part in shown, part
    (tmp_path / "bad.txt").write_text("a\0b </script>")
    assert run("MODEL", "@bad.txt")["ids"] and run("MODEL", "lone \udc80 and \ud800")["ids"]
    driver = browser((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "lone" in text_of(driver, "#surprise .tokens") and "\ufffd" in text_of(driver, "#surprise .tokens")


def test_a_single_token_has_a_page(browser):
    """It has no loss, and every view opens."""
    page = look.make_page([("m", small_gpt2()), ("n", small_gpt2(1))], gpt2_tokenizer(), [50256])
    driver = browser(page)
    assert "has no loss" in text_of(driver, "#surprise .details")
    for tab in ("stream", "attention", "difference"):
        open_tab(driver, tab)


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_follows_the_scheme(browser, width, scheme):
    """Nothing is wider than the window, and the paper is bright or dark."""
    driver = browser(a_page(number=2), width, scheme)
    for tab in ("surprise", "stream", "attention", "difference"):
        open_tab(driver, tab)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", paper)[0]) > 128) == (scheme == "light")


def test_it_prints_all_views(browser):
    """One after another, whatever was open, without tabs; the page on the screen stays as it was."""
    driver = browser(a_page(number=2))
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    views = ["surprise", "stream", "attention", "difference"]
    assert all(driver.find_element("id", view).is_displayed() for view in views)
    assert all(driver.find_elements("css selector", f"#{view} .panel") for view in views)
    assert not driver.find_element("id", "tabs").is_displayed()
    pdf = driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert [driver.find_element("id", view).is_displayed() for view in views] == [True, False, False, False]
