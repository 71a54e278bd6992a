"""Kinds of input that people bring, and what has to come of each: those handed in, and others of the kind."""

from __future__ import annotations

import base64
import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

TEXTS = (
    "Claim your prize now", "The choir meets on Monday", "Cheap pills, click", "Grey cat seen", "Win a phone",
    "Bakery opens in May", "Who can help?", "Free money",
)  # fmt: skip
LABELS = ("spam", "fine", "spam", "fine", "spam", "fine", None, None)
IDS = tuple(f"{n:03d}" for n in range(1, 9))
Z = [*zip(IDS, TEXTS, LABELS, strict=True)]
ROWS = [dict(zip(("id", "text", "label"), row, strict=True)) for row in Z]

READ, SET_ASIDE, REFUSED = "read", "set aside", "refused"


class Kind(NamedTuple):
    """A kind of input."""

    name: str  # what is unusual about it
    file: str  # in the folder of cases, or the name of one that is written here
    outcome: str  # READ: the eight posts, as they are meant. SET_ASIDE: rows, one by one. REFUSED: the file
    told: tuple[str, ...] = ()  # what the output has to name
    content: bytes | Callable[[], bytes] | None = None  # or what makes it; None for one of the folder
    posts: int | None = None  # how many are left where rows are set aside; None: any number


def more(fields):
    """The rows with further fields, or others in their place."""
    return [row | fields for row in ROWS]


def sheet(rows=ROWS, *, columns=None, encoding="utf-8", **dialect):
    """CSV; its header has the keys of the first row where nothing else is said."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, **{"lineterminator": "\n", **dialect})
    writer.writerow(columns or rows[0])
    writer.writerows([["" if cell is None else cell for cell in row.values()] for row in rows])
    return written.getvalue().encode(encoding)


def lines(rows=None, **changes):
    return "".join(json.dumps({**row, **changes}) + "\n" for row in rows or ROWS).encode()


def with_labels(name):
    """The rows with each label written in another way."""
    return [row | {"label": row["label"] and name(row["label"])} for row in ROWS]


def parquet(**columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = io.BytesIO()
    base = {"id": list(IDS), "text": list(TEXTS), "label": list(LABELS)} | columns
    pq.write_table(pa.table({name: values for name, values in base.items() if values is not None}), written)
    return written.getvalue()


def arrow(values, kind):
    import pyarrow as pa

    return pa.array(values, type=kind)


def times(unit, value, zone=None):
    import pyarrow as pa

    return pa.array([value] * 8, type=pa.timestamp(unit, tz=zone))


class Kinds(list):
    """A list of kinds, written a line each."""

    def read(self, name, file, content, *told):
        self._add(name, file, READ, told, content)

    def aside(self, name, file, posts, content, *told):
        self._add(name, file, SET_ASIDE, told, content, posts=posts)

    def refused(self, name, file, content, *told):
        self._add(name, file, REFUSED, told, content)

    def _add(self, name, file, outcome, told, content, *, posts=None):
        content = content.encode() if isinstance(content, str) else content
        if file.startswith("."):
            file = f"{len(self)}{file}"
        self.append(Kind(name, file, outcome, told, content, posts))


COLUMN = "--column "
# kinds of many examples
MARKS, OBJECTS = "classes as columns", "column of objects"
TOOL = "export of another tool"
FORM = "JSON of another form"
ELSEWHERE = "picture elsewhere"
SPELLING = "label in another spelling"
WORD_OFF = "column one word off"
QUOTE = "quote that is not closed"
OTHER_ID = "id of another type"
INSIDE = "pictures inside the table"
TYPE = "Parquet type"
HEADER = "lines before the header"
NOTHING = "word for nothing"
FORMAT = "name of another format"
LOOKS = "id that looks like another"
BOM = "quoted header after a byte order mark"
LISTED = "JSON that is one list"
NUMBER = "number for a label"


def handed():
    """Those of the folder of cases."""
    kinds = Kinds()
    read, aside = kinds.read, kinds.aside
    read(BOM, "csv/bom_quoted_header.csv", None)
    read(BOM, "csv/bom_quoted_label_first.csv", None)
    aside(BOM, "csv/bom_quoted_text_first.csv", 0, None, "img.png")
    read("column one letter off", "csv/upper_label.csv", None, "'Label' is read as label")
    read(WORD_OFF, "csv/class_col.csv", None, COLUMN + "label=class")
    aside(WORD_OFF, "csv/tweet_col.csv", 0, None, COLUMN + "text=tweet")
    aside("column one letter off", "json/hateful.jsonl", 0, None, "'img' is read as images")
    aside("column one letter off", "json/image_key.jsonl", 0, None, "'image' is read as images")
    aside(INSIDE, "parquet/hf_image.parquet", 0, None, "image in the table: not")
    read("separator", "csv/semicolon.csv", None, "';'")
    read("separator", "csv/tab.csv", None)
    read("separator", "csv/sep_line.csv", None)
    read("encoding", "csv/utf16.csv", None, "UTF-16")
    read("line ends", "csv/cr_only.csv", None, "carriage return")
    read(LISTED, "json/array_pretty.json", None)
    read("compressed", "json/gz.jsonl.gz", None, "gzip")
    read("compressed", "json/gz_named.jsonl", None, "gzip")
    read(TOOL, "json/doccano.jsonl", None)
    aside(TOOL, "json/prodigy.jsonl", 0, None, "no id among", COLUMN + "id=")
    read("id that a spreadsheet changed", "csv/excel_float.csv", None, "'1.0'", "spreadsheet")
    aside("id that a spreadsheet changed", "csv/sci.csv", 1, None, "cut the digits off")
    read(SPELLING, "csv/label_space.csv", None, "' spam ' is read as 'spam'")
    aside(NOTHING, "csv/na_labels.csv", 2, None, "leave the label empty")
    aside(NUMBER, "json/int_label.jsonl", 2, None, "label 1 is none of")
    aside(NUMBER, "parquet/int_label.parquet", 2, None, "label 1 is none of")
    aside("key twice", "json/dup_key.jsonl", 8, None, "['text'] stand twice")
    read("NaN", "json/nan.jsonl", None, "NaN in column 'score'")
    read(TYPE, "parquet/ns_time.parquet", None)
    read(TYPE, "parquet/far_date.parquet", None)
    read(TYPE, "parquet/weird_tz.parquet", None)
    read(TYPE, "parquet/bad_utf8_extra.parquet", None, "'author'", "not UTF-8")
    return kinds


def ours():  # noqa: PLR0915 -- a list
    """Others of the same kinds."""
    import pyarrow as pa

    kinds = Kinds()
    read, aside, refused = kinds.read, kinds.aside, kinds.refused
    unclosed = [f"{n},{'x' * 20},fine\n" for n in range(6000)]
    unclosed[2999] = '2999,"never closed,fine\n'
    stray = [f"{n},words,fine\n" for n in range(40)]
    stray[10], stray[30] = '10,"open,fine\n', '30,"quoted, words",fine\n'
    big = "word " * 40_000
    read(BOM, ".csv", sheet(encoding="utf-8-sig", quoting=csv.QUOTE_ALL))
    read(BOM, ".csv", sheet(encoding="utf-8-sig", quoting=csv.QUOTE_ALL, delimiter=";"))
    read("byte order mark before JSON", ".jsonl", b"\xef\xbb\xbf" + lines())
    read("column one letter off", ".csv", sheet(columns=("ID", "Text", " LABEL ")), "is read as label")
    read("column one letter off", ".csv", sheet(columns=("\u200bid", "text\u00a0", "la\u00adbel")))
    read(WORD_OFF, ".csv", sheet(columns=("id", "text", "category")), COLUMN + "label=category")
    read(WORD_OFF, ".csv", sheet(columns=("id", "text", "lable")), COLUMN + "label=lable")
    refused(WORD_OFF, ".csv", sheet(columns=("post_id", "text", "label")), COLUMN + "id=post_id")
    aside(
        "two columns for one", ".csv", 0, sheet(more({"img": "a", "image": "b"})), "could both be images",
        COLUMN,
    )  # fmt: skip
    refused("column twice", ".csv", sheet(columns=("id", "text", "text")), "more than once")
    read(
        "blank column", ".csv",
        sheet([{"": n, **row} for n, row in enumerate(ROWS)], columns=("", "id", "text", "label")),
    )  # fmt: skip
    read("blank column", ".csv", sheet().replace(b"\n", b",,\n"))
    read("separator", ".csv", sheet(delimiter="|"), "'|'")
    read("separator", ".csv", b"sep=;\r\n" + sheet(delimiter=";", lineterminator="\r\n"))
    read("separator", ".csv", sheet(quoting=csv.QUOTE_ALL).replace(b'","', b'", "'))
    read("encoding", ".csv", sheet(encoding="utf-16-be", delimiter="\t"), "UTF-16")
    read("encoding", ".csv", sheet(encoding="utf-32"), "UTF-32")
    read("encoding", ".jsonl", lines().decode().encode("utf-16"), "UTF-16")
    aside(
        "encoding", ".csv", 8,
        sheet([*ROWS, {"id": "9", "text": "café", "label": "fine"}], encoding="cp1252"), "not UTF-8",
    )  # fmt: skip
    read("line ends", ".csv", sheet(lineterminator="\r\n"))
    read("line ends", ".csv", sheet(lineterminator="\r", quoting=csv.QUOTE_ALL))
    read(LISTED, ".jsonl", json.dumps(ROWS).encode())
    read("JSON over several lines", ".json", b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS))
    refused(LISTED, ".json", json.dumps(ROWS, indent=1).encode()[:-1], "breaks off")
    refused(LISTED, ".json", json.dumps(ROWS, indent=1).encode()[:-20], "no JSON from line")
    aside(FORM, ".json", 0, json.dumps({"data": ROWS}).encode(), "no id among ['data']")
    read(FORMAT, ".csv", lines())
    read(FORMAT, ".jsonl", sheet())
    read(FORMAT, ".csv", parquet())
    refused(FORMAT, ".parquet", sheet(), "not a Parquet file")
    refused("foreign file", ".csv", b"PK\x03\x04" + b"\0" * 40, "Excel")
    refused("foreign file", ".jsonl", b"<!DOCTYPE html><html>sign in</html>", "web page")
    refused("foreign file", ".csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    read("compressed", ".csv.gz", gzip.compress(sheet()))
    refused("compressed", ".csv.gz", gzip.compress(sheet() + b"x" * 99)[:-9], "damaged")
    refused(QUOTE, ".csv", ("id,text,label\n" + "".join(unclosed)).encode(), "line 3001 opens is not")
    refused(QUOTE, ".csv", ("id,text,label\n" + "".join(stray)).encode(), "line 12 opens is not closed")
    read("long text", ".csv", sheet().replace(b"Free money", big.encode()))
    aside("cells too many or too few", ".csv", 8, sheet() + b"009,x\n010,a,b,fine\n", "the header has 3")
    aside("NUL", ".csv", 8, sheet() + b"009,a\0b,fine\n", "NUL")
    read(SPELLING, ".csv", sheet(with_labels(str.upper)), "is read as")
    read(SPELLING, ".jsonl", lines(with_labels(lambda name: [name])))
    read(SPELLING, ".csv", sheet(with_labels(lambda name: f"['{name}']")))
    read(SPELLING, ".csv", sheet(with_labels(lambda name: f"{name}\u200b")))
    aside("several labels", ".jsonl", 2, lines(with_labels(lambda name: [name, "fine"])), "2 labels")
    aside(NOTHING, ".jsonl", 2, lines(with_labels(lambda name: "N/A")), "leave the label empty")
    aside(
        "id twice", ".jsonl", 8, lines() + lines([ROWS[0] | {"label": "fine"}]),
        "already in line 1, there with the label 'spam'",
    )  # fmt: skip
    aside("number for an id", ".jsonl", 8, lines() + lines([ROWS[0] | {"id": 1.5}]), "id 1.5")
    read("NaN", ".jsonl", lines(score=float("inf")))
    aside(ELSEWHERE, ".jsonl", 0, lines(images=["https://x.org/a.png"]), "is a URL")
    aside(ELSEWHERE, ".jsonl", 0, lines(images=["C:\\a.png"]), "absolute path")
    read("picture paths", ".csv", sheet(more({"images": "['pictures/a.png']"})))
    read("picture paths", ".jsonl", lines(img="pictures\\a.png"), "'img'")
    read(
        TYPE, ".parquet",
        parquet(
            x=times("ns", 1704067200000000001), y=times("s", 99_999_999_999_999),
            z=times("us", 1, "Mars/Base"),
        ),
    )  # fmt: skip
    read(
        TYPE, ".parquet",
        parquet(x=[decimal.Decimal("1.5")] * 8, y=[datetime.timedelta(1)] * 8, z=[{"a": [1, None]}] * 8),
    )  # fmt: skip
    read(
        TYPE, ".parquet",
        parquet(
            id=arrow(IDS, pa.large_string()), text=pa.array(TEXTS).dictionary_encode(),
            label=arrow(LABELS, pa.binary()),
        ),
    )  # fmt: skip
    aside(TYPE, ".parquet", 0, parquet(text=arrow([b"\xff"] * 8, pa.binary())), "text cannot be read")
    read(TYPE, ".parquet", parquet(photo=[b"\xff\xd8"] * 8), "left out where it cannot be read")
    refused("damaged", ".parquet", parquet()[:-30], "Parquet")
    refused("empty", ".csv", b"", "is empty; expected a line of column names")
    aside("empty", ".jsonl", 0, b"", "no rows")
    return kinds


def picture():
    written = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(written, "PNG")
    return written.getvalue()


def packed(name, content, kind):
    """The content as the only file of an archive."""
    written = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(written, "w") as archive:
            archive.writestr(name, content)
    else:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        with tarfile.open(fileobj=written, mode=f"w:{kind}") as archive:
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def renamed(**columns):
    """The rows with other names: ``label="class"``."""
    return [{columns.get(name, name): value for name, value in row.items()} for row in ROWS]


def chosen(label):
    """A result of Label Studio."""
    return [{"value": {"choices": [label]}}]


def outsiders():  # noqa: PLR0915 -- a list
    """What an outsider would try next: exports, encodings, odd separators, types, paths, pictures, bombs."""
    import pyarrow as pa

    kinds = Kinds()
    read, aside, refused = kinds.read, kinds.aside, kinds.refused
    png, uri = picture(), "data:image/png;base64," + base64.b64encode(picture()).decode()
    with_list = [row | {"images": '["pictures/a.png"]'} for row in ROWS]
    read("encoding", ".csv", sheet(encoding="utf-16-le"), "UTF-16-LE")
    read("encoding", ".jsonl", lines().decode().encode("utf-16-le"), "UTF-16-LE")
    read("encoding", ".json", json.dumps(ROWS).encode("utf-8-sig"))
    read("encoding", ".csv", b"\xef\xbb\xbf\xef\xbb\xbf" + sheet())
    refused("encoding", ".csv", sheet(encoding="utf-32-le"), "UTF-32")
    aside(
        "encoding", ".json", 8,
        json.dumps([*ROWS, {"id": "9", "text": "caf\u00e9"}], ensure_ascii=False).encode("latin-1"),
        "not UTF-8: byte 0xe9",
    )  # fmt: skip
    aside("encoding", ".csv", 8, sheet() + "009,\u65e5\u672c,fine\n".encode("shift_jis"), "not UTF-8")
    read(
        "line ends", ".jsonl",
        "".join(json.dumps(row | {"x": "\u2028\x85"}, ensure_ascii=False) + "\n" for row in ROWS),
    )  # fmt: skip
    read(
        "line ends", ".csv",
        sheet(lineterminator="\r\n", quoting=csv.QUOTE_ALL).replace(b"prize", b"pri\rze"),
    )  # fmt: skip
    read("separator", ".csv", sheet(delimiter=":"), "':'")
    read("separator", ".csv", sheet(delimiter="^"), "'^'")
    read("separator", ".csv", sheet(delimiter="\x1f"))
    read("separator", ".csv", sheet(more({"text": "a, b, c, d, e"}), delimiter=";"), "';'")
    split_header = sheet(columns=("id", "text", "label")).replace(b"id,text", b'id,"text"', 1)
    read(HEADER, ".csv", split_header.replace(b'"text"', b'"text\n"', 1))
    aside("header again", ".csv", 8, sheet(ROWS[:4]) + b"\xef\xbb\xbf" + sheet(ROWS[4:]), "here again")
    aside("header again", ".csv", 8, sheet(ROWS[:4], delimiter=";") + sheet(ROWS[4:], delimiter=";"), "again")
    aside("line ends", ".csv", 8, sheet() + b"009,a\rb,fine\n010,c,fine\r011,d,spam\n", "or 2", "4 set aside")
    refused("line ends", ".csv", sheet().replace(b"label\n", b"label\r", 1), "no readable header")
    refused("separator", ".csv", "id  text  label\n1  a  spam\n", "separate cells by")
    refused("separator", ".csv", '"id,text,label"\n"1,a,spam"\n', "whole lines stand in quotes")
    read(HEADER, ".csv", b"\n\r\n" + sheet())
    refused(HEADER, ".csv", b"My export 2024,,\n" + sheet(), "line 2 looks like the header")
    refused(HEADER, ".csv", b"# exported by us\n\n" + sheet(), "line 3 looks like the header")
    refused("no header", ".csv", "1,a,spam\n2,b,fine\n", "expected a header with 'id'")
    read("blank column", ".csv", sheet(more({"Unnamed: 0": 7})), "'Unnamed: 0'")
    read("column twice", ".csv", sheet(more({"label.1": "x"})), "'label.1'")
    read("column twice", ".csv", sheet(more({"Label": "x"})), "not read: 'Label'")
    refused(WORD_OFF, ".csv", sheet(columns=("post id", "text", "label")), "--column 'id=post id'")
    aside(WORD_OFF, ".csv", 0, sheet(columns=("id", "post text", "label")), "--column 'text=post text'")
    aside(WORD_OFF, ".csv", 0, sheet(columns=("id", "Texte", "label")), COLUMN + "text=Texte")
    read(WORD_OFF, ".jsonl", lines(renamed(label="gold_label")), COLUMN + "label=gold_label")
    read("blank lines", ".csv", sheet().replace(b"\n", b"\n\n"))
    aside("blank lines", ".csv", 8, sheet() + b",,\n", "no id among")
    aside(
        "quotes", ".csv", 0, "id,text,label\n" + "".join(f'{n},"a \\"b\\" c",fine\n' for n in range(8)),
        "not written with a backslash",
    )  # fmt: skip
    read(
        "quotes", ".csv",
        sheet(
            [row | {"text": f'{row["text"]} 5" tv'} for row in ROWS], delimiter="\t", quoting=csv.QUOTE_NONE,
            quotechar=None,
        ),
    )  # fmt: skip
    aside(
        "quotes", ".csv", 0, "id,text,label\n" + "".join(f"{n},'a, b',fine\n" for n in range(8)),
        "4 cells, the header has 3",
    )  # fmt: skip
    read(
        "long text", ".csv",
        sheet([row | {"text": f"{row['text']}\nWell, now,\n3, 4, 5\nbye, all"} for row in ROWS]),
    )  # fmt: skip
    swallowed = [f"{n},words,fine\n" for n in range(40)]
    swallowed[10], swallowed[30] = '10,"open,fine\n', '30,closed",fine\n'
    refused(QUOTE, ".csv", "id,text,label\n" + "".join(swallowed), "line 12 opens", "look like rows")
    refused(QUOTE, ".csv", 'id,text,label\n1,"He said "hi"\nand, so, on",fine\n2,x,fine\n', "line 2 opens")
    refused(QUOTE, ".csv", sheet() + b'009,"cut off', "is not closed")
    read(OTHER_ID, ".jsonl", lines([row | {"id": n} for n, row in enumerate(ROWS, 1)]))
    read(OTHER_ID, ".jsonl", lines([row | {"id": float(n)} for n, row in enumerate(ROWS, 1)]), "'1.0'")
    read(OTHER_ID, ".parquet", parquet(id=[float(n) for n in range(1, 9)]), "'1.0'")
    read(OTHER_ID, ".parquet", parquet(id=[decimal.Decimal(n) for n in range(1, 9)]))
    read(OTHER_ID, ".parquet", parquet(id=pa.array(range(1, 9), pa.uint64())))
    strange = lines([{"id": one, "text": "x"} for one in (True, ["9"], {"$oid": "5f"}, None)])
    strange += b'{"id": NaN, "text": "x"}\n{"id": Infinity, "text": "x"}\n'
    aside(OTHER_ID, ".jsonl", 8, lines() + strange, "id True", "id ['9']", "id inf", "no id among")
    aside(
        OTHER_ID, ".jsonl", 8,
        lines([row | {"id": str(n)} for n, row in enumerate(ROWS, 1)]) + b'{"id": 1, "text": "x"}\n',
        "already in line 1",
    )  # fmt: skip
    aside(
        OTHER_ID, ".parquet", 0,
        parquet(id=pa.array([uuid.UUID(int=n).bytes[::-1] + b"\xff" for n in range(8)])), "id cannot be read",
    )  # fmt: skip
    for odd in (" %s", "%s\u00a0", "\u200b%s", "\ufeff%s"):
        told = "blanks at an end, invisible signs"
        rows = [row | {"id": odd % row["id"]} for row in ROWS[:1]]
        aside(LOOKS, ".jsonl", 9, lines(rows) + lines() + b"x", told)
    aside(
        LOOKS, ".csv", 10, sheet() + "e\u0301,x,fine\n\u00e9,y,fine\n,z,fine\n".encode(), "letters in pieces",
    )  # fmt: skip
    aside(
        "invisible text", ".jsonl", 8,
        lines() + lines([{"id": str(n), "text": "\u200b\u2060\ufeff\xad"[n:]} for n in range(4)]),
        "neither text nor image",
    )  # fmt: skip
    for place, label in enumerate(("f\u0456ne", "fine\u2024", "f\u0131ne")):
        told = ("CYRILLIC SMALL LETTER", "ONE DOT LEADER", "DOTLESS I")[place]
        aside("label of other signs", ".csv", 8, sheet() + f"009,x,{label}\n".encode(), told)
    aside(
        "number for a text", ".jsonl", 9,
        lines() + b'{"id": "9", "text": 2024}\n{"id": "10", "text": 1.50}\n{"id": "11", "text": true}\n',
        "text 1.5 is a float",
    )  # fmt: skip
    read("number for a text", ".parquet", parquet(text=list(range(8))))
    aside("columns in objects", ".jsonl", 0, lines([{"data": row} for row in ROWS]), COLUMN + "id=data.id")
    read(NOTHING, ".csv", sheet(more({"text": "NaN"})), "a word for nothing")
    aside(NOTHING, ".csv", 9, sheet() + b"nan,x,fine\nNULL,x,na\n", "ids such as 'nan'", "leave the label")
    for label in (True, 1, 1.0):
        aside(
            NUMBER, ".jsonl", 2, lines(with_labels(lambda _, one=label: one)), f"label {label} is none of",
            "call the task's classes so",
        )  # fmt: skip
    aside("several labels", ".csv", 2, sheet(with_labels(lambda name: f"{name}|fine")), "2 labels")
    aside("several labels", ".csv", 2, sheet(with_labels(lambda name: f"{name}, spam")), "2 labels")
    aside("several labels", ".csv", 2, sheet(with_labels(lambda name: f"['{name}', 'x']")), "2 labels")
    aside(
        "label in an object", ".jsonl", 2, lines(with_labels(lambda name: {"name": name})),
        COLUMN + "label=label.name",
    )  # fmt: skip
    aside(SPELLING, ".csv", 2, sheet(with_labels(lambda name: f"__label__{name}")), "'__label__spam' is none")
    read(SPELLING, ".jsonl", lines(with_labels(lambda name: name.title())), "is read as")
    read(SPELLING, ".csv", sheet(with_labels(lambda name: f"\u00a0{name}\u200b ")))
    aside(
        TOOL, ".json", 0,
        json.dumps([{"id": i, "data": {"text": t}, "annotations": [{"result": chosen(k)}]} for i, t, k in Z]),
        COLUMN + "text=data.text",
    )  # fmt: skip
    aside(
        TOOL, ".jsonl", 0,
        lines([{"id": i, "fields": {"text": t}, "responses": {"label": k}} for i, t, k in Z]),
        COLUMN + "text=fields.text",
    )  # fmt: skip
    aside(FORM, ".json", 0, json.dumps({"version": "1", "rows": ROWS}, indent=1), "'rows' holds 8 objects")
    aside(FORM, ".json", 0, json.dumps({row["id"]: row for row in ROWS}), "a table on its side")
    aside(
        FORM, ".json", 0,
        json.dumps({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}),
        "a table on its side",
    )  # fmt: skip
    read(FORM, ".jsonl", ",\n".join(json.dumps(row) for row in ROWS))
    read(FORM, ".jsonl", " ".join(json.dumps(row) for row in ROWS))
    read(FORM, ".jsonl", "[" + ",\n".join(json.dumps(row) for row in ROWS) + "]")
    read(FORM, ".jsonl", "\x1e" + "\x1e".join(json.dumps(row) + "\n" for row in ROWS))
    aside(FORM, ".jsonl", 0, "".join(f"{row}\n" for row in ROWS), "json.dumps")
    aside(FORM, ".jsonl", 8, b"// ours\n" + lines() + b"null\n[1]\n7\n", "JSON null", "JSON list")
    aside("damaged", ".jsonl", 7, lines()[:-10], "not JSON")
    aside("damaged", ".jsonl", 8, lines() + b"\0\0\0\0", "not JSON")
    read(FORMAT, ".txt", sheet())
    read(FORMAT, "o70", lines())
    read("compressed", ".csv.bz2", bz2.compress(sheet()), "bz2")
    read("compressed", ".jsonl.xz", lzma.compress(lines()), "lzma")
    read("compressed", ".csv.gz", sheet())
    read("compressed", ".parquet.gz", gzip.compress(parquet()), "gzip")
    refused("compressed", ".csv.gz", gzip.compress(gzip.compress(sheet())), "compressed twice")
    refused("compressed", ".csv.gz", packed(".csv", sheet(), "gz"), "tar archive")
    refused("foreign file", ".csv.zip", packed(".csv", sheet(), "zip"), "unpack it")
    refused("foreign file", ".csv", png, "is a picture")
    refused("foreign file", ".csv", b"\0" * 1000, "NUL bytes")
    refused("foreign file", ".jsonl", b"\x80\x04\x95" + b"x" * 40, "pickle")
    refused("empty", ".csv", b"\n\n\n", "is empty; expected a line of column names")
    aside("empty", ".csv", 0, "id,text,label\n", "no rows")
    aside("empty", ".json", 0, "[]", "no rows")
    aside("empty", ".json", 0, "{}", "no id among []")
    aside("empty", ".jsonl", 0, b"\xef\xbb\xbf", "no rows")
    refused("empty", ".parquet", b"", "not a Parquet file")
    read(INSIDE, ".parquet", parquet(image=[{"bytes": png, "path": "a.png"}] * 8), "kept in")
    read(INSIDE, ".parquet", parquet(images=[[{"bytes": png, "path": None}] * 2] * 8))
    read(INSIDE, ".parquet", parquet(image=[png] * 8), "kept in")
    read(INSIDE, ".jsonl", lines(image=uri), "kept in")
    read(INSIDE, ".csv", sheet(more({"img": uri.partition(",")[2]})), "kept in")
    read(INSIDE, ".parquet", parquet(picture=[{"bytes": png, "path": "a.png"}] * 8), "'picture' is left out")
    read("picture paths", ".parquet", parquet(image=[{"bytes": None, "path": "pictures/a.png"}] * 8))
    read(INSIDE, ".parquet", parquet(image=[{"bytes": None, "path": ""}] * 7 + [None]))
    aside(ELSEWHERE, ".jsonl", 0, lines(img="Pictures/A.PNG"), "no such file")
    aside(ELSEWHERE, ".jsonl", 0, lines(img="pictures/A.PNG"), "'a.png' is there")
    aside(NOTHING, ".csv", 2, sheet(with_labels(lambda name: "#N/A")), "leave the label empty")
    aside(NOTHING, ".jsonl", 0, lines(images="None"), "leave it empty")
    read("picture paths", ".jsonl", lines(img="pictures%2Fa.png"))
    read("picture paths", ".jsonl", lines(img="pictures/o\u0308.png"))
    read("picture paths", ".csv", sheet(with_list, columns=("id", "text", "label", "images")))
    for path, told in (
        ("file:///tmp/a.png", "is a URL"), ("s3://bucket/a.png", "is a URL"), ("//host/a.png", "is a URL"),
        ("\\\\host\\a.png", "absolute path"), ("/etc/hostname", "absolute path"), ("~/a.png", "no such file"),
        ("..\\..\\a.png", "leads out"), ("%2e%2e/a.png", "leads out"),
        ("pictures/a.png, pictures/b.png", "';'"),
        ("{pictures/a.png,b.png}", "';'"), ("[" * 5000, "too long"), ("pictures", "not a regular file"),
    ):  # fmt: skip
        aside(ELSEWHERE, ".jsonl", 0, lines(images=path), told)
    read(
        TYPE, ".parquet",
        parquet(
            a=pa.array([1] * 8, pa.time32("s")), b=pa.array([1] * 8, pa.duration("ns")),
            c=pa.array([1.5] * 8, pa.float16()),
            d=pa.array([[("a", 1)]] * 8, pa.map_(pa.string(), pa.int64())),
            e=pa.array([[1, 2]] * 8, pa.list_(pa.int64(), 2)),
            f=pa.array([decimal.Decimal("1.23")] * 8, pa.decimal256(50, 2)), g=pa.nulls(8),
        ),
    )  # fmt: skip
    aside(TYPE, ".parquet", 0, parquet(text=[datetime.datetime(2020, 1, 1)] * 8), "is a datetime, expected")
    aside(TYPE, ".parquet", 0, parquet(text=[{"value": "a"}] * 8), COLUMN + "text=text.value")
    aside(
        TYPE, ".parquet", 2, parquet(label=pa.array([1, 0, 1, 0, 1, 0, None, None]).dictionary_encode()),
        "label 1 is none of",
    )  # fmt: skip
    begun = b'{"id": "9", "text": "x", "a": '
    aside("deep", ".jsonl", 8, lines() + begun + b"[" * 900 + b"]" * 900 + b"}\n", "100 deep")
    aside("deep", ".jsonl", 8, lines() + begun + b"[" * 99_999 + b"\n", "100 deep")
    aside("deep", ".jsonl", 8, lines() + begun + b"9" * 5000 + b"}\n", "not JSON")
    long = b'{"id": "9", "text": "' + b"x" * (17 << 20)
    refused("too much", ".jsonl", lambda: lines() + long + b'"}\n', "line 9 has more than 16,777,216")
    refused("too much", ".csv", lambda: sheet() + b"009," + long, "line 10 has more than")
    refused("too much", ".json", lambda: b"[" + long + long, "16,777,216 characters")
    refused("too much", ".jsonl.gz", lambda: gzip.compress(lines() + b"{}\n" * (25 << 20)), "times its size")
    refused("too much", ".parquet", lambda: parquet(label=None, y=["z" * (10 << 20)] * 8), "times its size")

    def repeated():
        return pa.DictionaryArray.from_arrays(pa.array([0] * 8, pa.int32()), ["z" * (10 << 20)])

    refused("too much", ".parquet", lambda: parquet(text=repeated()), "times its size")
    refused(
        "too much", ".csv", lambda: b"id,text," + b",".join(b"c%d" % n for n in range(50_000)) + b",c0\n",
        "more than once",
    )  # fmt: skip
    refused(
        "too much", ".parquet", lambda: parquet(id=["1"] * 400_000, text=None, label=None), "times its size",
    )  # fmt: skip
    read("many notes", ".csv", sheet(more({"split": "Test", "when": "01/02/2024"})), "'when'")
    return kinds


def strangers():  # noqa: PLR0915 -- a list
    """What came to light later: columns off by one, foreign quotes, garbled words, other tools' own forms."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = Kinds()
    read, aside, refused = kinds.read, kinds.aside, kinds.refused
    accented = [row | {"text": row["text"] + " caf\u00e9"} for row in ROWS]
    bare = [(i, t, label or "") for i, t, label in Z]
    cells = [(i, f'"{t}"', label) for i, t, label in bare]

    def parted(header, rows, by, end="\n"):
        return end.join([header, *(by.join(row) for row in rows), ""])

    told = "byte 0xe9 after 'm your prize now caf'; save the file as UTF-8 (iconv -f WINDOWS-1252"
    aside("encoding", ".csv", 0, sheet(accented, encoding="cp1252"), told)
    aside("encoding", ".csv", 0, sheet(accented, encoding="mac-roman"), "not UTF-8: byte 0x8e")
    aside("encoding", ".jsonl", 0, lines().replace(b"text", b"te\xcft"), "not UTF-8: byte 0xcf")
    refused("encoding", ".csv", sheet(encoding="cp037"), "expected readable names in UTF-8")
    read("encoding", ".json", json.dumps(ROWS, indent=2).encode("utf-16"), "UTF-16")
    read("encoding", ".jsonl", lines().replace(b"\n", b"\xef\xbb\xbf\n\xef\xbb\xbf"))
    read("garbled text", ".csv", sheet(more({"text": "Caf\u00c3\u00a9"})), "are garbled")
    read("garbled text", ".jsonl", lines(text="lost \ufffd letter"), "are garbled")

    padded = "cells are padded with blanks"
    read("separator", ".csv", parted("id ; text ; label", bare, " ; "), padded)
    read("separator", ".csv", parted("id||text||label", cells, "||"), "'|'")
    markdown = parted("| id | text | label |", [("", *row, "") for row in bare], " | ")
    markdown = markdown.replace("label |\n", "label |\n|---|:--|--:|\n")
    aside("separator", ".csv", 8, markdown, "line of dashes", padded)
    aside(
        "separator", ".txt", 8, parted(" id | text | label \n----+------+----", bare, " | ") + "(8 rows)\n",
        "1 cells",
    )  # fmt: skip
    for mark in ("\uff0c", "#", " "):
        refused("separator", ".csv", parted(f"id{mark}text{mark}label", cells, mark), "separate cells by")
    for header, by in (("id,text,label", ";"), ("id\ttext\tlabel", ",")):
        aside("separator", ".csv", 0, parted(header, [(i, "x", k) for i, _, k in cells], by), "as the header")
    one_off = [(str(n), *row) for n, row in enumerate(cells)]
    aside("header one short", ".csv", 0, parted("id,text,label", one_off, ","), "name every column")
    aside("header one short", ".tsv", 0, parted("id\ttext\tlabel", one_off, "\t"), "name every column")
    read("blank column", ".csv", parted("id,text,label", [(*row, "") for row in cells], ","))
    read("blank column", ".csv", parted("id,text,label,", [(*row, "x") for row in cells], ","), "'column 4'")
    for left, right in ("''", "\u201c\u201d", "\u00ab\u00bb", ('\\"', '\\"')):
        header = ",".join(f"{left}{name}{right}" for name in ROWS[0])
        refused("quotes", ".csv", parted(header, cells, ","), "quoted by signs that are none of CSV's")

    refused(WORD_OFF, ".csv", sheet(columns=("#id", "text", "label")), "--column 'id=#id'")
    refused(WORD_OFF, ".csv", sheet(columns=("index", "text", "label")), COLUMN + "id=index")
    refused(WORD_OFF, ".csv", sheet(columns=("post.id", "text", "label")), COLUMN + "id=post.id")
    refused(WORD_OFF, ".csv", sheet(columns=("\u7f16\u53f7", "\u6587\u672c", "x")), "with 'id'")
    read(WORD_OFF, ".jsonl", lines(renamed(label="labels")), COLUMN + "label=labels")
    read(WORD_OFF, ".jsonl", lines(renamed(label="label_text")), COLUMN + "label=label_text")
    aside(WORD_OFF, ".csv", 0, sheet(columns=("id", "comment_text", "label")), COLUMN + "text=comment_text")
    read("column twice", ".csv", sheet(more({"TEXT": "x"})), "not read: 'TEXT'")
    read("column twice", ".jsonl", lines(ID="x"), "not read: 'ID'")
    read("split column", ".jsonl", lines(split="test"), "data.split")
    read(MARKS, ".csv", sheet([{"id": i, "text": t, "spam": 1, "fine": 0} for i, t, _ in Z]), "name classes")
    read(
        MARKS, ".jsonl", lines([{"id": i, "text": t, "cats": {"spam": 1.0}} for i, t, _ in Z]),
        "name classes",
    )  # fmt: skip
    aside(OBJECTS, ".jsonl", 0, lines([{"_id": {"$oid": i}, "text": t} for i, t, _ in Z]), "id=_id.$oid")
    aside(
        OBJECTS, ".jsonl", 0, lines([{"id": i, "Text": {"en": t}} for i, t, _ in Z]), COLUMN + "text=Text.en",
    )  # fmt: skip
    found = lines([{"id": i, "text": t, "Label": {"label": k, "score": 0.9}} for i, t, k in Z[:6]])
    aside(OBJECTS, ".jsonl", 0, found, COLUMN + "label=Label.label")

    sideways = {"columns": [*ROWS[0]], "index": [*range(8)], "data": [[*row] for row in Z]}
    for form in (
        sideways,
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        {"posts": {"items": ROWS}},
    ):
        aside(FORM, ".json", 0, json.dumps(form), "a table on its side")
    told = "'train' holds 4 objects, 'test' holds 4 objects"
    aside(FORM, ".json", 0, json.dumps({"train": ROWS[:4], "test": ROWS[4:]}), told)
    aside(FORM, ".json", 0, json.dumps([*map(list, Z)]), "a JSON list, ['001', ")
    aside(FORM, ".jsonl", 0, "".join(json.dumps([one]) + "\n" for one in ROWS), "a JSON list, [{")
    aside(FORM, ".jsonl", 0, "".join(json.dumps(json.dumps(one)) + "\n" for one in ROWS), "encode it once")
    aside(FORM, ".json", 0, json.dumps(json.dumps(ROWS)), "encode it once")
    refused(FORM, ".json", json.dumps(ROWS, indent=1) + "\n[]", "goes on after its list ends")
    read(FORM, ".json", "".join(map(json.dumps, ROWS)))
    read(FORM, ".json", json.dumps(ROWS)[:-1] + ",]")
    read(FORM, ".json", b"[\n" + lines() + b"]")
    read(FORM, ".jsonl", lines().replace(b"\n", b",\n\n"))
    for before in ("var data = ", ")]}'\n", "data: ", "/* x */"):
        told = f"not JSON: Expecting value at character 1, {before.strip()[:4]!r}"[:-1]
        aside(FORM, ".jsonl", None, before + lines().decode(), told)
    aside("damaged", ".jsonl", 6, lines().replace(b"null", b"None"), "at character 49, 'None}'")
    aside("damaged", ".jsonl", 0, lines(text="a b").replace(b"a b", b"a\tb"), "control character at")
    aside("damaged", ".jsonl", 8, lines() + b"\x1a", "not JSON")
    aside("damaged", ".csv", 8, sheet() + b"\x1a", "1 cells")
    refused("damaged", ".yaml", "".join(f"- id: '{i}'\n  text: {t}\n" for i, t, _ in Z), "expected a header")

    for form in ({"spam": 1.0}, [["spam"]], "label: spam", '"spam"', "b'spam'", "spams", -1, "unlabeled"):
        aside(SPELLING, ".jsonl", 0, lines(label=form), "is none of ['fine', 'spam']")
    read(SPELLING, ".jsonl", lines(with_labels(lambda name: name + "\n")), "is read as 'spam'")
    aside("several labels", ".csv", 2, sheet(with_labels(lambda name: f"{name};{name}")), "2 labels")
    aside(NUMBER, ".csv", 0, sheet(more({"label": "TRUE"})), "call the task's classes so")
    aside(NUMBER, ".parquet", 0, parquet(label=[decimal.Decimal("1.0")] * 8), "call the task's")
    read(NOTHING, ".csv", sheet(more({"text": "#NAME?"})), "a word for nothing")
    read(
        "id that a spreadsheet changed", ".csv", sheet([row | {"id": f'="{row["id"]}"'} for row in ROWS]),
        "as that text",
    )  # fmt: skip
    for odd, told in (("'001", "the apostrophe"), ("1,234,001", "spreadsheet"), ("1,2E+18", "spreadsheet")):
        aside(LOOKS, ".jsonl", 9, lines([ROWS[0] | {"id": odd}]) + lines() + b"x", told)

    prodigy = [{"id": i, "text": t, "_task_hash": 7, "accept": [k], "answer": "accept"} for i, t, k in Z]
    read(TOOL, ".jsonl", lines(prodigy), COLUMN + "label=accept")
    read(TOOL, ".json", json.dumps(renamed(label="sentiment")), COLUMN + "label=sentiment")
    read(TOOL, ".jsonl", lines(renamed(label="label.responses")), COLUMN + "label=label.responses")
    aside(TOOL, ".jsonl", 0, lines(label=[[0, 3, "spam"]]), "label [0, 3, 'spam'] is")
    aside(TOOL, ".jsonl", 0, lines(renamed(text="data")), "among ['data']")
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1}]}
    aside(TOOL, ".json", 0, json.dumps(coco), "'annotations' holds 1 objects")
    aside(
        TOOL, ".jsonl", 0, lines([{"id": i, "messages": [{"content": t}]} for i, t, _ in Z]), "['messages']",
    )  # fmt: skip
    refused(TOOL, ".txt", "".join(f"__label__{k} {t}\n" for _, t, k in Z), "expected a header")
    refused(TOOL, ".xml", "<annotations><image/></annotations>", "XML or HTML")
    for begins, told in (
        (b"\xff\xff\xff\xff\x10", "an Arrow stream"), (b"\x93NUMPY\1\0", "NumPy"), (b"\x89HDF\r\n", "HDF5"),
        (b"Obj\1", "Avro"), (b"Rar!\x1a", "RAR"), (b"7z\xbc\xaf'", "7-Zip"), (b"\x80\x02}q", "pickle"),
    ):  # fmt: skip
        refused("foreign file", ".csv", begins + b"\0" * 40, told)
    refused("compressed", ".csv.gz", gzip.compress(sheet()) + b"junk", "is damaged: Not a gzipped file")
    read(
        "compressed", ".csv.gz",
        gzip.compress(sheet(ROWS[:4])) + gzip.compress(sheet(ROWS[4:]).split(b"\n", 1)[1]),
    )  # fmt: skip
    aside("line ends", ".csv", None, sheet().replace(b"\n", b"\n\r"), "a carriage return stands in it")
    for end in ("\x0b", "\u2028"):
        refused("line ends", ".csv", parted("id,text,label", cells, ",", end), "expected readable names")

    for images in (
        "./pictures/a.png", "pictures//a.png", " pictures/a.png ", "pictures/a.png;", "('pictures/a.png',)",
        {"path": "pictures/a.png"}, ["pictures/a.png", "pictures\\a.png"], [], "[]",
    ):  # fmt: skip
        read("picture paths", ".jsonl", lines(images=images))
    for images, told in (
        ("data:image/png;base64,####", "is not base64"), ("data:text/html,x", "holds no picture"),
        (False, "no list"), ({"url": "http://x"}, "no list"), ([["pictures/a.png"]], "no list"),
        ("pictures/*.png", "no such file"), ("pictures/a.png?x=1", "no such file"),
        (["pictures/a.png"] * 17, "at most 16"), ("C:pictures/a.png", "absolute path"),
    ):  # fmt: skip
        aside(ELSEWHERE, ".jsonl", 0, lines(images=images), told)
    aside(WORD_OFF, ".csv", 0, sheet(renamed(text="file_name")), COLUMN + "images=file_name")

    large, view = pa.large_list(pa.large_string()), pa.string_view()
    read(TYPE, ".parquet", parquet(images=pa.array([["pictures/a.png"]] * 8, large), x=pa.nulls(8)))
    read(TYPE, ".parquet", parquet(text=arrow(TEXTS, view), label=arrow(LABELS, view)))
    read(
        TYPE, ".parquet",
        parquet(id=arrow([i.encode() for i in IDS], pa.binary(3)), y=[datetime.date.min] * 8),
    )  # fmt: skip
    read(
        TYPE, ".parquet",
        parquet(label=pa.array([[k] if k else [] for k in LABELS]), x=pa.array(["{}"] * 8, pa.json_())),
    )  # fmt: skip
    read(
        TYPE, ".parquet",
        parquet(x=pa.array([2**62] * 8, pa.duration("us")), y=pa.array([1] * 8, pa.bool8())),
    )  # fmt: skip
    aside(TYPE, ".parquet", 0, parquet(id=[datetime.date(2024, 1, 1)] * 8), "id datetime.date(2024, 1")
    aside(TYPE, ".parquet", 0, parquet(text=[[t] for t in TEXTS]), "is a list, expected a text")
    aside(TYPE, ".parquet", 0, parquet(label=[{"name": "spam"}] * 8), COLUMN + "label=label.name")
    aside(
        TYPE, ".parquet", 0,
        parquet(process=pa.array([[("q", "yes")]] * 8, pa.map_(pa.string(), pa.string()))), "'q' is",
    )  # fmt: skip
    refused(TYPE, ".parquet", parquet(id=None, text=None, label=None, x=[1]), "expected a header with 'id'")
    for codec in ("zstd", "brotli", "lz4", "gzip"):
        written = io.BytesIO()
        pq.write_table(pa.table({"id": IDS, "text": TEXTS, "label": LABELS}), written, compression=codec)
        read(TYPE, ".parquet", written.getvalue())
    return kinds
