"""Attribution methods: where a network's decision comes from. `attribute` is the one call; see `engine`."""

from xai_lib.attribution.core import Attribution, Refused
from xai_lib.attribution.engine import METHODS, attribute, attribute_all, options

__all__ = ["METHODS", "Attribution", "Refused", "attribute", "attribute_all", "options"]
