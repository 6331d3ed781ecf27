"""The text of a web page without its menus, headers and adverts, by Trafilatura."""

import logging

from temper.record import BadRow

# Trafilatura's time grows with the square of it: 20,000 paragraphs took 2.4 s on one core, 100,000 took 63 s.
MAX_TAGS = 50_000


def extract(page: str | bytes) -> str:
    """The main text, paragraphs apart by a line end; bytes state their own encoding. BadRow when none is to be found."""
    import trafilatura

    # It says on stderr what it could not parse; the caller has that as a reason.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    tags = page.count("<") if isinstance(page, str) else page.count(b"<")
    if tags > MAX_TAGS:
        raise BadRow("too_big", f"a page of {tags} tags, where {MAX_TAGS} can be read in some seconds")
    text = trafilatura.extract(page, include_comments=False)
    if not text:
        raise BadRow("no_text", "a page in which no main text was found")
    return str(text)
