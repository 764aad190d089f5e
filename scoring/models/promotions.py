"""Sets an alias on another version, and records which versions it named, because MLflow does not."""

from scoring.errors import NoEarlierVersion
from scoring.models.registry import MlflowRegistry

# Tag of a registered model, followed by an alias: the versions that the alias named, the newest last.
PROMOTIONS_TAG = "serving.promotions"
MOST_PROMOTIONS = 50


class Promotions:
    """The versions that an alias of a registered model named."""

    def __init__(self, registry: MlflowRegistry, name: str, alias: str) -> None:
        """Store the arguments; `name` is the registered model's."""
        self._registry = registry
        self._name = name
        self._alias = alias
        self._tag = f"{PROMOTIONS_TAG}.{alias}"

    def promote(self, version: int) -> int | None:
        """Set the alias on a version. Return the version that it named before, if any.

        Raises:
            RegistryError: the registry can't be reached, or has no such model or version.
        """
        before, recorded = self._registry.aliases(self._name).get(self._alias), self.recorded()
        if before is not None and before not in recorded[-1:]:  # it was moved by other means
            recorded.append(before)
        if version != before:
            self._move([*recorded, version])
        return before

    def rollback(self) -> tuple[int, int]:
        """Set the alias on the version that it named before. Return the version it named until now, and the new one.

        Raises:
            RegistryError: see `promote`; or no earlier version is recorded, or the alias was moved by other means.
        """
        current, recorded = self._registry.resolve(self._name, self._alias).version, self.recorded()
        if recorded[-1:] != [current] or len(recorded) < 2:
            raise NoEarlierVersion(self._name, self._alias, current, recorded)
        self._move(recorded[:-1])
        return current, recorded[-2]

    def recorded(self) -> list[int]:
        """Return the versions that `promote` recorded, the newest last.

        Raises:
            RegistryError: the registry can't be reached, or has no such model.
        """
        recorded = self._registry.tags(self._name).get(self._tag, "")
        return [int(each) for each in recorded.split(",") if each.isdecimal()]

    def _move(self, recorded: list[int]) -> None:
        version = recorded[-1]
        self._registry.version(self._name, version)  # raises if there is no such version
        # The alias first: if only it is moved, the record is another version's, and a rollback is refused.
        self._registry.set_alias(self._name, self._alias, version)
        self._registry.set_tag(self._name, self._tag, ",".join(map(str, recorded[-MOST_PROMOTIONS:])))
