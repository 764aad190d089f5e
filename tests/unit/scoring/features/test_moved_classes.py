"""A feature_store.yaml that names a class by its path of version 0.1 fails with the line that says what to write."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from scoring.errors import FeatureStoreError
from scoring.features.feature_store import open_feature_store
from scoring.features.materialize import materialize_online_store
from scoring.settings import Settings


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        (
            "offline_store",
            "scoring.offline_store.AsofOfflineStore",
            "scoring.feast_plugins.offline_store.AsofOfflineStore",
        ),
        ("online_store", "scoring.redis_store.BulkRedisOnlineStore", "type: redis"),
        (
            "batch_engine",
            "scoring.materialization.StreamingComputeEngine",
            "scoring.feast_plugins.materialization.StreamingComputeEngine",
        ),
    ],
)
def test_the_old_path_of_a_class_names_what_to_write_instead(tmp_path: Path, section: str, old: str, new: str) -> None:
    (tmp_path / "feature_store.yaml").write_text(
        f"project: p\nprovider: local\nregistry: registry.db\n{section}: {{type: {old}}}\n"
        "entity_key_serialization_version: 3\n"
    )

    with pytest.raises(FeatureStoreError) as refused:
        materialize_online_store(open_feature_store(Settings(model_name="m", feature_repo=tmp_path)), datetime.now(UTC))

    assert new in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
