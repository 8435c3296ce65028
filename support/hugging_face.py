"""
GPT-2 in Hugging Face's formats, in and out. Come here when a directory is refused, or when another
program cannot read ours. (tokenizer.py writes the tokenizer's files.)
"""
import contextlib
import json
import os

import torch

from support.arithmetic import SHAPE
from support.console import UserError, one_line
from support.files import atomic_write

# our GPT is a GPT-2 with exactly these values in its config
SAME = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False, "tie_word_embeddings": True}
THEIR_NAMES = {"block_size": "n_positions"}  # the other names are the same
# the weights of OpenAI's Conv1D layers have the shape (in, out), those of nn.Linear (out, in)
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def read_gpt2(name):
    """
    name: a directory, or gpt2 ... gpt2-xl on the hub -> transformers' GPT2LMHeadModel in float32.
    UserError if the directory is damaged or contains a model that our GPT cannot express.
    """
    from transformers import AutoConfig, GPT2LMHeadModel
    folder = find_folder(name)
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
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download
    try:
        return snapshot_download(f"openai-community/{name}",
                                 allow_patterns=["config.json", "model.safetensors"])
    except Exception as e:  # huggingface_hub's, of many kinds: no network, no space, ...
        raise UserError(f"cannot download {name}: {one_line(e)}: set HF_ENDPOINT to a mirror, or "
                        "give a directory")


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
        if theirs != ours:
            raise UserError(f"cannot load {name}: {key} is {theirs!r} there and {ours!r} here")
    if config.n_inner not in (None, 4 * config.n_embd):
        raise UserError(f"cannot load {name}: n_inner is {config.n_inner} there and 4 * n_embd "
                        "here")


def check_weights(model, report, name):
    """UserError unless every weight was in the file and is finite, and no others were there."""
    # older versions of transformers saved the causal masks, too
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(".masked_bias")]
    problems = {"has no": report["missing_keys"], "has unknown weights": unexpected,
                # each entry: the name and the two shapes
                "has other shapes of": [key for key, *_ in report["mismatched_keys"]],
                "has nan or infinity in": [key for key, w in model.state_dict().items()
                                           if not torch.isfinite(w).all()]}
    for problem, keys in problems.items():
        if keys:
            raise UserError(f"cannot load {name}: it {problem} {', '.join(sorted(keys)[:3])}")


def save_pretrained(model, folder, n_vocab=None, eot=50256):
    """
    Write a GPT to a folder that transformers' AutoModelForCausalLM loads. n_vocab: size of the
    vocabulary; the padding rows after it are left out. Raises OSError.
    """
    weights = transposed(model.state_dict())
    head = weights.pop("lm_head.weight")[:n_vocab]
    weights["transformer.wte.weight"] = head  # tied, stored once
    shape = {name: getattr(model.config, name) for name in SHAPE}
    write(folder, {**shape, "vocab_size": len(head)}, eot, weights)


def transposed(weights):
    """The state dict of a GPT -> the same with the matrices as Conv1D layers store them"""
    return {key: w.t() if key.endswith(CONV1D) else w for key, w in weights.items()}


def write(folder, shape, eot, weights, more=None):
    """
    Write the files that transformers loads: the weights (dict, with its names and layouts),
    config.json and generation_config.json. more: further entries of config.json (dict), for models
    with another head. Raises OSError.
    """
    from safetensors.torch import save
    tokens = {"bos_token_id": eot, "eos_token_id": eot}
    theirs = {THEIR_NAMES.get(ours, ours): n for ours, n in shape.items()}
    config = {"architectures": ["GPT2LMHeadModel"], **theirs, **SAME, "n_inner": None, **tokens,
              **(more or {})}
    weights = {name: w.detach().contiguous() for name, w in weights.items()}
    generation = {**tokens, "transformers_version": "4.50.0"}
    files = {"model.safetensors": save(weights, {"format": "pt"}),
             "config.json": json.dumps(config).encode(),
             "generation_config.json": json.dumps(generation).encode()}
    os.makedirs(folder, exist_ok=True)
    for file, data in files.items():
        with atomic_write(os.path.join(folder, file)) as f:
            f.write(data)


def write_tuned(folder, config, weights, tokenizer, task, pad):
    """
    Write a model that was tuned for a task: classify and entail for transformers, embed for
    sentence-transformers. pad: the id of padding. Raises OSError, and UserError for other tasks.
    """
    if task.name not in ("classify", "entail", "embed"):
        raise UserError(f"the model is tuned for {task.name}, which reads several rows for an "
                        "answer: transformers has no model for that. Use python finetune.py "
                        "predict")
    shape = {name: getattr(config, name) for name in SHAPE}
    more = {"pad_token_id": pad, "architectures": ["GPT2Model"]}
    if task.name != "embed":
        names = [str(label) for label in task.labels]
        more.update(architectures=["GPT2ForSequenceClassification"],
                    id2label=dict(enumerate(names)),
                    label2id={name: i for i, name in enumerate(names)})
    write(folder, shape, tokenizer.eot, weights, more)
    if task.name == "embed":
        write_pooling(folder, config.n_embd, config.block_size)


def write_pooling(folder, n_embd, block_size):
    """
    Write what else sentence-transformers needs to compute the vectors of finetune.py's embed: the
    list of its three modules, and the settings of the first two. Raises OSError.
    """
    kinds = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"),
             ("2", "2_Normalize", "Normalize"))
    modules = [{"idx": int(number), "name": number, "path": path,
                "type": f"sentence_transformers.models.{kind}"} for number, path, kind in kinds]
    # a weighted mean: token t has weight t, padding has weight 0
    pooling = {"word_embedding_dimension": n_embd, "pooling_mode_mean_tokens": False,
               "pooling_mode_weightedmean_tokens": True}
    files = {"modules.json": modules,
             "sentence_bert_config.json": {"max_seq_length": block_size, "do_lower_case": False},
             "1_Pooling/config.json": pooling}
    for path in ("1_Pooling", "2_Normalize"):
        os.makedirs(os.path.join(folder, path), exist_ok=True)
    for file, content in files.items():
        with atomic_write(os.path.join(folder, file)) as f:
            f.write(json.dumps(content).encode())
