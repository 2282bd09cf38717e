"""What the tests of figures read off a drawing."""


def words(texts):
    """The text of every label that has one."""
    return [text.get_text() for text in texts if text.get_text()]


def titles(axes):
    """The titles of the axes that have one."""
    return [ax.get_title() for ax in axes if ax.get_title()]
