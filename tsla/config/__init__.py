"""What can be configured, and how it is read and checked. Imports no torch: a typing error costs no start-up time."""

from tsla.config.compose import compose, group_choices, parse, read, to_yaml
from tsla.config.options import ConfigError
from tsla.config.schema import GROUPS, Config, members

__all__ = ["GROUPS", "Config", "ConfigError", "compose", "group_choices", "members", "parse", "read", "to_yaml"]
