"""Shared fixtures: a tiny random BLOOM that stands in where the model's answers do not matter."""

from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from chains.prompts import load_task
from chains.registry import Model, load
from training.tokenizer import train_tokenizer

SENTENCES = [
    "Nadia Okafor left Siemens for Porto in 1998.",
    "El Banco de España envió a Julián Ferrer a Bogotá.",
    "À Genève, Élise Vautrin dirige la recherche chez Nestlé.",
    "naïve café in Zürich 😀 costs (about) 3 €; l’Iran aussi.",
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLOOM checkpoint with random weights: 2 layers, hidden 64, 600 tokens."""
    folder = tmp_path_factory.mktemp("tiny-bloom")
    tasks = [load_task("language"), load_task("entities")]
    texts = SENTENCES * 5 + [task.shot.replace("{reply}", shot.reply) for task in tasks for shot in task.shots]
    tokenizer = train_tokenizer(texts, vocab_size=600)
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Random weights large enough that logits differ clearly.
        initializer_range=0.2,
    )
    BloomForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    """The tiny random BLOOM, loaded as the product loads a model."""
    return load(str(tiny_folder))
