"""Scripts of the template writer that several tests read."""

import pytest

from data_pipelines.records.schema import Script
from data_pipelines.writer.synth import write_scripts


@pytest.fixture(scope="session")
def service() -> list[Script]:
    return write_scripts("service", num=600, seed=11)


@pytest.fixture(scope="session")
def assistant() -> list[Script]:
    return write_scripts("assistant", num=400, seed=11)
