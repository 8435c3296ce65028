"""Facts about the figures of a card: they are made from the log, and the pages quote them as they are."""
import re

import pytest
from pages import CHINESE, ENGLISH

import train_gpt2
from support.arithmetic import PEAKS, count_parameters, peak
from support.files import asset, read_json
from tools import card_log

LOG = """One NVIDIA H900, PyTorch 2.99.0+cu150, cuDNN 9.19, 16 cores, 2027-01-02. `ours` is a commit, in proj/.

##### nvidia-smi
[  0.0] NVIDIA H900

##### python -m pytest -q -m cuda
[190.2] ..F.

##### python proj/train_gpt2.py --max_steps=4
[  4.5] cuda, bfloat16; 4096 tokens a step = B 2 * T 1024 * 1 process(es) * 2 micro step(s)
[ 40.0] step     0 | loss: 11.000000 | lr 6.0000e-05 | norm: 16.0 | dt: 9000.00ms | tok/sec: 455.1 | mfu 1.0%
[ 41.0] step     1 | loss: 10.000000 | lr 6.0000e-05 | norm: 16.0 | dt: 100.00ms | tok/sec: 40960.0 | mfu 50.0%
[ 42.0] step     2 | loss: 9.000000 | lr 6.0000e-05 | norm: 16.0 | dt: 110.00ms | tok/sec: 37236.4 | mfu 45.0%
[ 43.0] step     3 | loss: 8.000000 | lr 6.0000e-05 | norm: 16.0 | dt: 900.00ms | tok/sec: 4551.1 | mfu 5.0%
[ 44.5] step     4 | validation loss: 7.5000 | 0.0 min left
[ 47.0] saved ours/model_00004.pt in 2.4s (a stop on SIGTERM takes a step and a save: 3.4s)

##### python train_gpt2.py
[ 25.1] validation loss: 10.9464
[ 27.8] step     0 | loss: 11.000100 | lr 6.0000e-05 | norm: 16.0 | dt: 4499.80ms | tok/sec: 116513.69
[ 29.1] step     1 | loss: 10.000200 | lr 6.0000e-05 | norm: 16.0 | dt: 126.00ms | tok/sec: 409413.78
[ 29.1] step     2 | loss: 9.000000 | lr 6.0000e-05 | norm: 16.0 | dt: 126.00ms | tok/sec: 409413.78

##### python variants.py 190
[  5.9] V default kernel order: [1, 2, 0, 3, 4] cudnn True
[ 27.0] V ours: micro 50.00 ms (min 49.82), update 5.7 ms, step 106 ms = 526,504 tok/s, peak 31.1 GB, ready after 19 s
[ 27.6] P total 48.0 ms
[ 27.6] P  25.0%   12.00 ms x 12 cudnn_generated_fort_native_sdpa_sm90_flash_bprop
[ 27.6] P  41.7%   20.00 ms x 36 nvjet_sm90_tst_192x192_64x3_1x2_h_bz_coopB_splitK_NTN
[ 27.6] P   2.1%    1.00 ms x 12 void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(void const*, void const*)
[ 27.6] P  10.0%    4.80 ms x 12 triton_poi_fused_gelu_view_10
[ 40.1] V ours, CUDNN: micro 51.98 ms (min 51.51), update 5.8 ms, step 109 ms = 1 tok/s, peak 31.1 GB, ready after 4 s
[ 71.4] V CUDNN, head whole: micro 50.1 ms (min 50), update 6 ms, step 107 ms = 1 tok/s, peak 31.2 GB, ready after 29 s
[ 72.4] P total 127.4 ms
[ 72.4] P  14.6%   18.61 ms x 37 nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT

##### python proj/hellaswag.py --model=ours/model_00004.pt
[ 19.1] ours/model_00019.pt: acc 0.2617, acc_norm 0.2458 +- 0.0043 (standard error), n 10042
[ 19.1] 7.9s on 1 x cuda, bfloat16 (native at compute capability 9.0)
"""


def test_figures_come_from_the_log():
    """First and last step are left out of a step's time; of two profiles the first is ours."""
    assert card_log.figures(LOG) == {
        "card": "NVIDIA H900", "torch": "2.99.0+cu150", "date": "2027-01-02", "tests": {"passed": 3, "failed": 1},
        "ours": {"losses": [11.0, 10.0, 9.0, 8.0], "step_ms": 105.0, "tokens_a_step": 4096, "B": 2, "T": 1024,
                 "mfu": 47.5, "tokens_per_second": 39010, "seconds_to_step_0": 35.5, "validation_s": 1.5,
                 "save_s": 2.4},
        "original": {"losses": [11.0001, 10.0002, 9.0], "step_ms": 126.0},
        "micro_step": {"micro_ms": 50.0, "peak_GB": 31.1, "cached_ready_s": 19.0, "pieces_step_ms": 109.0,
                       "one_product_step_ms": 107.0, "one_product_peak_GB": 31.2, "kernels_ms": 48.0,
                       "products_ms": 20.0, "attention_ms": 13.0, "other_ms": 15.0},
        "hellaswag": {"items": 10042, "seconds": 7.9}}


def test_the_command_writes_a_file_named_after_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(card_log, "ASSETS", str(tmp_path))
    (tmp_path / "log").write_text(LOG)
    card_log.main([str(tmp_path / "log")])
    assert read_json(str(tmp_path / "h900.json")) == card_log.figures(LOG)


# --- the pages ------------------------------------------------------------------------------------

H200 = read_json(asset("h200.json"))
OURS, THEIRS, MICRO = H200["ours"], H200["original"], H200["micro_step"]


def largest_difference(steps):
    """Of the losses of both programs"""
    return max(abs(a - b) for a, b in list(zip(OURS["losses"], THEIRS["losses"], strict=True))[:steps])


def quoted():
    """Every figure of the card as the pages write it -> {what: text}"""
    full_run_s = train_gpt2.TrainConfig().max_steps * OURS["step_ms"] / 1000
    gpt_config = train_gpt2.GPTConfig()
    weights = count_parameters(gpt_config) - gpt_config.block_size * gpt_config.n_embd
    tflop = 6 * weights * OURS["B"] * OURS["T"] / 1e12
    estimate = peak(gpt_config, train_gpt2.TrainConfig(B=OURS["B"]), 1, compiled=True)[1]
    return {
        "date": H200["date"], "torch": H200["torch"].split("+")[0].removesuffix(".0"),
        "ms a step": f"{OURS['step_ms']:,.0f}", "tokens/s": f"{OURS['tokens_per_second']:,}",
        "MFU": f"{OURS['mfu']}", "the original's ms": f"{THEIRS['step_ms']:,.0f}",
        "ratio": f"{THEIRS['step_ms'] / OURS['step_ms']:.2f}",
        "losses, twelve steps": f"{largest_difference(12):.4f}", "all losses": f"{largest_difference(None):.4f}",
        "10B tokens, hours": f"{full_run_s / 3600:.1f}",
        "HellaSwag's items": f"{H200['hellaswag']['items']:,}", "HellaSwag": f"{H200['hellaswag']['seconds']}",
        "validation": f"{OURS['validation_s']}", "checkpoint": f"{OURS['save_s']}",
        "peak": f"{MICRO['peak_GB']}", "estimate": f"{estimate / 1e9:.1f}",
        "to step 0": f"{OURS['seconds_to_step_0']:.0f}", "with a cache": f"{MICRO['cached_ready_s']:.0f}",
        "in pieces": f"{MICRO['pieces_step_ms']:.0f}", "one product": f"{MICRO['one_product_step_ms']:.0f}",
        "micro-step": f"{MICRO['micro_ms']:.1f}", "kernels": f"{MICRO['kernels_ms']:.1f}",
        "products": f"{MICRO['products_ms']:.1f}", "attention": f"{MICRO['attention_ms']:.1f}",
        "other": f"{MICRO['other_ms']:.1f}", "TFLOP/s": f"{tflop / MICRO['products_ms'] * 1000:.0f}",
        "weights in products": f"{weights / 1e6:.1f}", "TFLOP": f"{tflop:.1f}",
        "tests that passed": f"{H200['tests']['passed']}",
        "tests": f"{sum(H200['tests'].values())}"}


# which of them stand on which page, in both languages
ON_PAGES = {
    "README.md": ["date", "torch", "ms a step", "10B tokens, hours"],
    "docs/speed.md": [what for what in quoted() if what not in ("tests", "tests that passed")],
    "docs/machines.md": ["date", "torch", "ms a step", "MFU", "10B tokens, hours", "peak", "estimate", "tests",
                         "tests that passed"],
    "docs/faq.md": ["ms a step", "10B tokens, hours", "to step 0", "with a cache"],
    "docs/differences.md": ["date", "torch", "ms a step", "the original's ms", "ratio", "losses, twelve steps",
                            "all losses", "HellaSwag's items", "HellaSwag"],
    "docs/curves.md": ["ms a step", "10B tokens, hours"],
}
# what a sentence about the card may say besides: settings, the peak of the card, shares, how many steps
FURTHER = {"0", "64", "1,024", "65,536", "524,288", "19,073", "10", "8", "16", "40", "1", "989", "6", "12", "19",
           "1.05", "1.09", "15", "1,310,720"}


def chinese_of(page):
    return CHINESE["README.zh.md" if page == "README.md" else page.replace("docs/", "docs/zh/")]


@pytest.mark.parametrize("page", ON_PAGES)
def test_the_pages_quote_the_cards_figures(page):
    """Each figure as the log has it; a sentence about the card has no other. Nothing is typed twice unwatched."""
    figures = quoted()
    for text in (ENGLISH[page], chinese_of(page)):
        about = [paragraph for paragraph in re.split(r"\n\s*\n", text) if "H200" in paragraph]
        numbers = set(re.findall(r"(?<![\w.,-])\d[\d.,]*\d(?:-\d\d)*|(?<![\w.,-])\d\b", " ".join(about)))
        missing = {what: figures[what] for what in ON_PAGES[page] if figures[what] not in numbers}
        assert missing == {}, page
        assert numbers - set(figures.values()) - FURTHER == set(), page


def test_every_figure_stands_somewhere():
    """What no page quotes need not be computed here."""
    assert {what for names in ON_PAGES.values() for what in names} == quoted().keys()


@pytest.mark.parametrize("page", [*ENGLISH, *CHINESE])
def test_no_page_says_that_no_gpu_was_measured(page):
    text = " ".join({**ENGLISH, **CHINESE}[page].split())
    for claim in ("had no GPU", "measured on a GPU yet", "had the GPUs yet", "没有 GPU 可用", "是在 GPU 上测的"):
        assert claim not in text


def test_a_card_named_h200_has_an_h100s_peak():
    """So the pages may compare its MFU with the H100's of others."""
    assert PEAKS["H200"] == PEAKS["H100"] == 989
