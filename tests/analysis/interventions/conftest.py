"""The language model of all tests of interventions."""

import pytest

from harvest.model.language_model import LanguageModel
from harvest.sources import BUNDLED_MODEL


@pytest.fixture(scope="package")
def model():
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu")
