"""
GPT-2 in Hugging Face's formats, in and out. transformers reads and writes the files; here is what
it is asked for, and which models our GPT can express. Come here when a directory is refused, or
when another program cannot read ours.
"""
import contextlib
import json
import os
import tempfile

import torch

from support.console import UserError, one_line, print0
from support.files import asset
from support.hub import download, failures_explained, prepare
from support.tokenizer import GPT2Tokenizer, identify

# our GPT is a GPT-2 with exactly these values in its config
SAME = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False, "tie_word_embeddings": True}
# OpenAI's Conv1D layers store (in, out), nn.Linear stores (out, in)
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def read_gpt2(name):
    """
    name: a directory, or gpt2 ... gpt2-xl on the hub -> transformers' GPT2LMHeadModel in float32.
    UserError if the directory is damaged or contains a model that our GPT cannot express.
    """
    folder = find_folder(name)
    from transformers import AutoConfig, GPT2LMHeadModel
    try:
        with quiet_transformers():
            # trust_remote_code=False: Python files in a directory are never run
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            check_config(config, name)
            model, report = GPT2LMHeadModel.from_pretrained(
                folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    except UserError:
        raise
    except Exception as e:  # transformers', torch's and safetensors', of many kinds
        raise UserError(f"cannot load {name}: {one_line(e)}: give a directory with a GPT-2, as "
                        "transformers saves it")
    check_weights(model, report, name)
    return model


def find_folder(name):
    """A directory, or gpt2 ... gpt2-xl, downloaded from the hub -> the path of a directory"""
    prepare()
    if os.path.isdir(name):
        return name
    model, files = f"openai-community/{name}", ["config.json", "model.safetensors"]
    by_hand = (f"copy {' and '.join(files)} of {model} into a directory DIR, and type DIR instead "
               f"of {name} (--init_from=DIR)")
    with failures_explained(name, by_hand):
        return download(model, files)


@contextlib.contextmanager
def quiet_transformers():
    """Silences transformers' warnings and its progress bar. read_gpt2 has checks of its own."""
    from transformers.utils import logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_config(config, name):
    """UserError for a transformers config that describes another model than our GPT."""
    for key, ours in SAME.items():
        theirs = getattr(config, key, None)
        if theirs == "gelu_pytorch_tanh":  # another name for the same function
            theirs = "gelu_new"
        if theirs != ours:
            raise UserError(f"cannot load {name}: {key} is {theirs!r} there and {ours!r} here")
    if config.n_inner not in (None, 4 * config.n_embd):
        raise UserError(f"cannot load {name}: n_inner is {config.n_inner} there and 4 * n_embd "
                        "here")


def check_weights(model, report, name):
    """UserError unless every weight was in the file and is finite, and no others were there."""
    # older versions of transformers saved the causal masks, too
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(".masked_bias")]
    if "score.weight" in unexpected:
        raise UserError(f"{name} is a classifier: load it with transformers. Here, name the run or "
                        "the checkpoint that it was exported from")
    problems = {"has no": report["missing_keys"], "has unknown weights": unexpected,
                # each entry: the name and the two shapes
                "has other shapes of": [key for key, *_ in report["mismatched_keys"]],
                "has nan or infinity in": [key for key, w in model.state_dict().items()
                                           if not torch.isfinite(w).all()]}
    for problem, keys in problems.items():
        if keys:
            raise UserError(f"cannot load {name}: it {problem} {', '.join(sorted(keys)[:3])}")


def tokenizer_spec(name):
    """
    The tokenizer of a Hugging Face model, gpt2 ... gpt2-xl or a directory -> its spec, as in
    support/tokenizer.py. A directory without one is assumed to have GPT-2's.
    """
    if not os.path.isdir(name):
        return {"name": "gpt2"}
    path = os.path.join(name, "tokenizer.json")
    try:
        if os.path.isfile(path):
            # read as it is: AutoTokenizer would split words as GPT-2 does, whatever the file says,
            # because the model beside it is a GPT-2
            with open(path, encoding="utf-8") as f:
                return identify(f.read())
        if os.path.isfile(os.path.join(name, "vocab.json")):
            from transformers import AutoTokenizer
            with quiet_transformers():
                fast = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            return identify(fast.backend_tokenizer.to_str())
    except Exception as e:  # transformers' and tokenizers', of many kinds
        raise UserError(f"cannot load the tokenizer of {name}: {one_line(e)}")
    print0(f"{name} has no tokenizer: GPT-2's is assumed")
    return {"name": "gpt2"}


# --- writing --------------------------------------------------------------------------------------

def save_pretrained(model, folder, tokenizer):
    """
    Write a GPT and its tokenizer into a folder that transformers' AutoModelForCausalLM loads. The
    rows that pad the vocabulary are left out. UserError if it cannot be written.
    """
    from transformers import GPT2LMHeadModel
    n_vocab = tokenizer.n_vocab
    weights = transposed(model.state_dict())
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = weights[name][:n_vocab]
    theirs = GPT2LMHeadModel(their_config(model.config, tokenizer, vocab_size=n_vocab))
    theirs.load_state_dict(weights)
    write(folder, theirs, fast_tokenizer(tokenizer, model.config.block_size))


def save_tuned(model, folder, tokenizer, task, special_tokens):
    """
    Write a model that was tuned for a task: classify and entail for transformers, embed for
    sentence-transformers. special_tokens: start, delimiter, extract and padding, whose ids follow
    the tokenizer's. UserError for other tasks, and if it cannot be written.
    """
    import transformers
    if task.name not in ("classify", "entail", "embed"):
        raise UserError(f"the model is tuned for {task.name}, which reads several rows for an "
                        "answer: transformers has no model for that. Use python finetune.py "
                        "predict")
    weights = transposed(model.state_dict())
    del weights["lm_head.weight"]  # the models there have no such head
    config = their_config(model.config, tokenizer, pad_token_id=model.config.vocab_size - 1,
                          id2label=dict(enumerate(map(str, task.labels))) or None)
    if task.name == "embed":
        theirs = transformers.GPT2Model(config)
        weights = {name.removeprefix("transformer."): w for name, w in weights.items()}
    else:
        theirs = transformers.GPT2ForSequenceClassification(config)
    theirs.load_state_dict(weights)
    # the tokenizer writes the special tokens around a text, as finetune.py does, but not for embed
    fast = fast_tokenizer(tokenizer, model.config.block_size, special_tokens, task.name != "embed")
    write(folder, theirs, fast)
    if task.name == "embed":
        write_pooling(folder, model.config)


def transposed(weights):
    """The state dict of a GPT -> the same with the matrices as Conv1D layers store them"""
    return {key: w.t() if key.endswith(CONV1D) else w for key, w in weights.items()}


def their_config(config, tokenizer, **more):
    """A GPTConfig -> transformers' GPT2Config"""
    from transformers import GPT2Config
    # llama.cpp's converter needs n_ctx, the older name of n_positions
    shape = dict(n_positions=config.block_size, n_ctx=config.block_size,
                 vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head,
                 n_embd=config.n_embd)
    return GPT2Config(**{**shape, "bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot,
                         **more})


def write(folder, *parts):
    """
    Let transformers write a model and a tokenizer, and move their files into a folder: config.json
    last, because without it the folder is not yet a model.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary, quiet_transformers():
            for part in parts:
                part.save_pretrained(temporary)
            for name in sorted(os.listdir(temporary), key="config.json".__eq__):
                os.replace(os.path.join(temporary, name), os.path.join(folder, name))
    except Exception as e:  # of the disk, of transformers, safetensors or tokenizers
        raise UserError(f"cannot write {folder} ({one_line(e)}): name another directory")


def write_pooling(folder, config):
    """
    Write what else sentence-transformers needs to compute the vectors of finetune.py's embed: the
    list of its three modules, and the settings of the first two.
    """
    kinds = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"),
             ("2", "2_Normalize", "Normalize"))
    modules = [{"idx": int(number), "name": number, "path": path,
                "type": f"sentence_transformers.models.{kind}"} for number, path, kind in kinds]
    # a weighted mean: token t has weight t, padding has weight 0
    pooling = {"word_embedding_dimension": config.n_embd, "pooling_mode_mean_tokens": False,
               "pooling_mode_weightedmean_tokens": True}
    transformer = {"max_seq_length": config.block_size, "do_lower_case": False}
    for path in ("1_Pooling", "2_Normalize"):
        os.makedirs(os.path.join(folder, path), exist_ok=True)
    for file, content in {"modules.json": modules, "sentence_bert_config.json": transformer,
                          "1_Pooling/config.json": pooling}.items():
        with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
            json.dump(content, f)


def fast_tokenizer(tokenizer, block_size, special_tokens=(), written=False):
    """
    One of our tokenizers -> transformers' PreTrainedTokenizerFast. special_tokens, written: of a
    tuned model, see add_special_tokens
    """
    from transformers import PreTrainedTokenizerFast
    hf = hugging_face_tokenizer(tokenizer)
    names = {}
    if special_tokens:
        add_special_tokens(hf, special_tokens, tokenizer.n_vocab, written)
        names["pad_token"] = special_tokens[-1]
    if tokenizer.eot is not None:
        names["bos_token"] = names["eos_token"] = hf.id_to_token(tokenizer.eot)
    return PreTrainedTokenizerFast(tokenizer_object=hf, model_max_length=block_size,
                                   clean_up_tokenization_spaces=False, **names)


def hugging_face_tokenizer(tokenizer):
    """One of our tokenizers -> the same as a tokenizers.Tokenizer"""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter
    spec = tokenizer.spec
    if spec["name"] == "bpe":
        return Tokenizer.from_str(spec["json"])
    if spec["name"] == "gpt2":
        # tokenizer.json lists merges, assets/gpt2.tiktoken only ranks: the converter finds the
        # two tokens that each one was merged from
        converter = TikTokenConverter(asset("gpt2.tiktoken"), pattern=GPT2Tokenizer.PATTERN,
                                      extra_special_tokens=["<|endoftext|>"])
        return converter.converted()
    # each character is a word, and decoding puts nothing between words
    ids = {c: i for i, c in enumerate(tokenizer.chars)}
    hf = Tokenizer(models.WordLevel(ids, unk_token="no such character"))
    hf.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return hf


def add_special_tokens(hf, special_tokens, n_vocab, written):
    """
    Add the special tokens of a tuned model to a tokenizers.Tokenizer, with the ids from n_vocab on.
    written: does the tokenizer itself put start, delimiter and extract around each text?
    """
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    hf.add_special_tokens([AddedToken(token, normalized=False, special=True)
                           for token in special_tokens])
    ids = {token: hf.token_to_id(token) for token in special_tokens}
    if list(ids.values()) != list(range(n_vocab, n_vocab + len(ids))):
        raise UserError("this model's tokenizer has gaps between its ids, or these special tokens "
                        "already: it cannot be exported")
    # this replaces what the tokenizer may put around a text, which we never use
    single, pair = "$A", "$A $B"
    start, delimiter, extract, _ = special_tokens
    if written:
        single, pair = f"{start} $A {extract}", f"{start} $A {delimiter} $B {extract}"
    hf.post_processor = TemplateProcessing(single=single, pair=pair,
                                           special_tokens=list(ids.items())[:3])
