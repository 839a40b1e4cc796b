from tests.training.conftest import clouds_folder  # noqa: F401  the fixture is shared
