"""How the errors of other packages become part of one sentence."""

__all__ = ["first_lines"]


def first_lines(err: BaseException, limit: int = 200) -> str:
    """Return the message of an error on one line, or its kind where it has none."""
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= limit else text[:limit] + "…"
