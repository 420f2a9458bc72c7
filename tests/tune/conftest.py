import pytest

from groundup.data import town
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.train import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TokenizerSection(vocab_size=512), (text for _, _, text in town.documents(0, 300)))


@pytest.fixture
def model(tokenizer):
    config = ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 16, 64, 128)
    return init_weights(Transformer(config), 3)
