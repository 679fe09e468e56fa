"""Shared fixtures: a tiny random BLOOM where the model's answers do not matter, a scripted one where they do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from hypothesis import settings
from langchain_core.language_models.llms import LLM
from transformers import BloomConfig, BloomForCausalLM

from chains.pipeline import make_llm
from chains.prompts import load_task
from chains.registry import Model, ModelInfo, load
from tests.postgres import Postgres
from training.tokenizer import train_tokenizer

# The machine may be busy: an example that takes long is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
# More threads only wait for each other over matrices as small as these.
torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def exact_model(tiny_folder: Path, tiny_model: Model) -> Model:
    """The tiny random BLOOM in fp32, where two ways to the same number agree to about 1e-5."""
    weights = BloomForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    return Model(tiny_model.info, make_llm(weights, tiny_model.llm.pipeline.tokenizer, "exact", "exact-weights"))


class ScriptedLLM(LLM):
    """Answers each prompt by ``answer(prompt)`` and remembers the prompts in ``history``."""

    answer: Callable[[str], str]
    history: list[str] = []
    revision: str = "scripted"
    # What the plain way asks of a pipeline.
    pipeline: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1))

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _call(self, prompt, stop=None, run_manager=None, **options):
        self.history.append(prompt)
        return self.answer(prompt)


class ScriptedModel(Model):
    """A model of no weights that counts words, at most ``window_tokens`` of them at once."""

    def __init__(self, answer: Callable[[str], str], window_tokens: int) -> None:
        info = ModelInfo("scripted", "nowhere", None, 0, "none", shots=3, window_tokens=window_tokens)
        super().__init__(info, ScriptedLLM(answer=answer, history=[]))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@pytest.fixture
def scripted() -> Callable[..., ScriptedModel]:
    """``scripted(answer)``: a model that answers a prompt as the function ``answer`` says."""

    def make(answer: Callable[[str], str], window_tokens: int = 100) -> ScriptedModel:
        return ScriptedModel(answer, window_tokens)

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, for the whole run."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty PostgreSQL database."""
    engine = sa.create_engine(postgres.url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'jobs.db'}"
    return str(request.getfixturevalue("postgres_url"))
