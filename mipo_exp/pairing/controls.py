"""Controls: pairs from which what MIPO teaches is taken out, and everything else is left as it is.

A model that is trained on them is under the same pressure of DPO, with responses of the same style, length and
temperature. What it gains nevertheless is not MIPO's.
"""

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import CONTROLS, Config, ControlConfig
from mipo_exp.errors import ConfigError


@schema
class PairControl(ControlConfig):
    """A control that changes something."""

    def check(self, config: Config) -> None:
        """See `ControlConfig.check`."""
        if config.method.trains_on != "pairs":
            raise ConfigError(
                f"control={self.name} changes the pairs, and method={config.method.name} makes none; use control=none, "
                "or a method that learns from pairs (docs/methods.md)"
            )
        if config.pairs.min_pmi_margin is not None:
            raise ConfigError(
                f"pairs.min_pmi_margin keeps the pairs whose chosen response fits its condition better, and "
                f"control={self.name} is without such pairs; set it to null"
            )


@CONTROLS.register("random_labels")
@schema
class RandomLabels(PairControl):
    """Which of a pair's two responses counts as chosen is drawn."""

    swaps = 0.5

    def check(self, config: Config) -> None:
        """See `ControlConfig.check`."""
        super().check(config)
        if config.method.shape(config)[1] > 2:
            raise ConfigError(
                f"control=random_labels draws the labels of each pair, and method={config.method.name} with "
                f"negatives.k={config.negatives.k} learns from all pairs of an example at once; set negatives.k=1"
            )


@CONTROLS.register("other_user")
@schema
class OtherUser(PairControl):
    """The chosen response answers the same request in another user's context: one that talks about somebody's
    preferences, but says nothing about those of this user."""

    chosen_from = "random_context"

    def check(self, config: Config) -> None:
        """See `ControlConfig.check`."""
        super().check(config)
        if config.task.family != "personalization":
            raise ConfigError(
                f"control=other_user takes the chosen response from another user, and task={config.task.name} has no "
                "user contexts; use control=random_labels, or a task with contexts"
            )
