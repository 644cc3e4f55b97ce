"""A page as a program reads it: tables, drawings, attributes. One that does not nest fails."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What stands on a page.

    Attributes:
        tags: every tag with its attributes, in order.
        tables: by caption, rows of cells; a cell is its words, a note behind them.
        values: by caption, rows of the numbers behind the cells, None where there is none.
        figures: by title, the tags inside with their attributes.
        text: all words.
    """

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.tables, self.values, self.figures = {}, {}, {}
        self._open, self._caption, self._figure = [], "", None
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("caption", "figcaption"):
            self._caption = ""
        if tag == "tr":
            self.tables[self._caption].append([])
            self.values[self._caption].append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
            number = attributes.get("data-value")
            self.values[self._caption][-1].append(None if number is None else float(number))
        if self._figure is not None:
            self._figure.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "caption":
            self.tables[self._caption], self.values[self._caption] = [], []
        if tag == "figcaption":
            self._figure = self.figures[self._caption] = []
        if tag == "figure":
            self._figure = None

    def handle_data(self, data):
        words = data.replace("\u00a0", " ")
        self.text += words
        if self._open and self._open[-1] in ("caption", "figcaption"):
            self._caption += words
        if "tr" in self._open and self._open[-1] in ("td", "th", "small"):
            self.tables[self._caption][-1][-1] += words

    def marks(self, title):
        """Return the data of the marks of a figure."""
        found = []
        for _, attributes in self.figures[title]:
            data = {k[5:]: v for k, v in attributes.items() if k.startswith("data-")}
            if data:
                found.append(data)
        return found

    def series(self, title):
        """Return the points of a figure, by the name of their series."""
        return {
            mark["name"]: list(
                zip(map(float, mark["x"].split(",")), map(float, mark["y"].split(",")), strict=True)
            )
            for mark in self.marks(title)
        }
