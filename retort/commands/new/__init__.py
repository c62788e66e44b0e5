"""`retort new`: from data files to a commented YAML file that passes `retort doctor`."""

from retort.commands.new.write import Request, create, teacher_section

__all__ = ["Request", "create", "teacher_section"]
