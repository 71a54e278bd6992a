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
ROWS = [dict(zip(("id", "text", "label"), row, strict=True)) for row in zip(IDS, TEXTS, LABELS, strict=True)]

READ, SET_ASIDE, REFUSED = "read", "set aside", "refused"


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        name: What is unusual about it.
        file: In the folder of cases, or the name of one that is written here.
        outcome: READ: the eight posts, as they are meant. SET_ASIDE: rows, one by one. REFUSED: the file.
        told: What the output has to name.
        content: Bytes of a file that is written here, or what makes them; None for one of the folder.
        posts: How many posts are left where rows are set aside; None: any number.
    """

    name: str
    file: str
    outcome: str
    told: tuple[str, ...] = ()
    content: bytes | Callable[[], bytes] | None = None
    posts: int | None = None


def sheet(rows=None, *, columns=("id", "text", "label"), encoding="utf-8", **dialect):
    written = io.StringIO(newline="")
    writer = csv.writer(written, **{"lineterminator": "\n", **dialect})
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row.values()] for row in rows or ROWS])
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


COLUMN = "--column "
HANDED = [
    Kind("quoted header after a byte order mark", "csv/bom_quoted_header.csv", READ),
    Kind("quoted header after a byte order mark", "csv/bom_quoted_label_first.csv", READ),
    Kind(
        "quoted header after a byte order mark",
        "csv/bom_quoted_text_first.csv",
        SET_ASIDE,
        ("img.png",),
        posts=0,
    ),
    Kind("column one letter off", "csv/upper_label.csv", READ, ("'Label' is read as label",)),
    Kind("column one word off", "csv/class_col.csv", READ, (COLUMN + "label=class",)),
    Kind("column one word off", "csv/tweet_col.csv", SET_ASIDE, (COLUMN + "text=tweet",), posts=0),
    Kind("column one letter off", "json/hateful.jsonl", SET_ASIDE, ("'img' is read as images",), posts=0),
    Kind("column one letter off", "json/image_key.jsonl", SET_ASIDE, ("'image' is read as images",), posts=0),
    Kind(
        "pictures inside the table",
        "parquet/hf_image.parquet",
        SET_ASIDE,
        ("image in the table: not",),
        posts=0,
    ),
    Kind("separator", "csv/semicolon.csv", READ, ("';'",)),
    Kind("separator", "csv/tab.csv", READ),
    Kind("separator", "csv/sep_line.csv", READ),
    Kind("encoding", "csv/utf16.csv", READ, ("UTF-16",)),
    Kind("line ends", "csv/cr_only.csv", READ, ("carriage return",)),
    Kind("JSON that is one list", "json/array_pretty.json", READ),
    Kind("compressed", "json/gz.jsonl.gz", READ, ("gzip",)),
    Kind("compressed", "json/gz_named.jsonl", READ, ("gzip",)),
    Kind("export of another tool", "json/doccano.jsonl", READ),
    Kind("export of another tool", "json/prodigy.jsonl", SET_ASIDE, ("no id among", COLUMN + "id="), posts=0),
    Kind("id that a spreadsheet changed", "csv/excel_float.csv", READ, ("'1.0'", "spreadsheet")),
    Kind("id that a spreadsheet changed", "csv/sci.csv", SET_ASIDE, ("cut the digits off",), posts=1),
    Kind("label in another spelling", "csv/label_space.csv", READ, ("' spam ' is read as 'spam'",)),
    Kind("word for nothing", "csv/na_labels.csv", SET_ASIDE, ("leave the label empty",), posts=2),
    Kind("number for a label", "json/int_label.jsonl", SET_ASIDE, ("label 1 is none of",), posts=2),
    Kind("number for a label", "parquet/int_label.parquet", SET_ASIDE, ("label 1 is none of",), posts=2),
    Kind("key twice", "json/dup_key.jsonl", SET_ASIDE, ("['text'] stand twice",), posts=8),
    Kind("NaN", "json/nan.jsonl", READ, ("NaN in column 'score'",)),
    Kind("Parquet type", "parquet/ns_time.parquet", READ),
    Kind("Parquet type", "parquet/far_date.parquet", READ),
    Kind("Parquet type", "parquet/weird_tz.parquet", READ),
    Kind("Parquet type", "parquet/bad_utf8_extra.parquet", READ, ("'author'", "not UTF-8")),
]


def ours():
    """Others of the same kinds."""
    import pyarrow as pa

    unclosed = [f"{n},{'x' * 20},fine\n" for n in range(6000)]
    unclosed[2999] = '2999,"never closed,fine\n'
    stray = [f"{n},words,fine\n" for n in range(40)]
    stray[10], stray[30] = '10,"open,fine\n', '30,"quoted, words",fine\n'
    big = "word " * 40_000
    return [
        Kind(
            "quoted header after a byte order mark",
            "a.csv",
            READ,
            (),
            sheet(encoding="utf-8-sig", quoting=csv.QUOTE_ALL),
        ),
        Kind(
            "quoted header after a byte order mark",
            "b.csv",
            READ,
            (),
            sheet(encoding="utf-8-sig", quoting=csv.QUOTE_ALL, delimiter=";"),
        ),
        Kind("byte order mark before JSON", "bom.jsonl", READ, (), b"\xef\xbb\xbf" + lines()),
        Kind(
            "column one letter off",
            "c.csv",
            READ,
            ("is read as label",),
            sheet(columns=("ID", "Text", " LABEL ")),
        ),
        Kind(
            "column one letter off",
            "d.csv",
            READ,
            (),
            sheet(columns=("\u200bid", "text\u00a0", "la\u00adbel")),
        ),
        Kind(
            "column one word off",
            "e.csv",
            READ,
            (COLUMN + "label=category",),
            sheet(columns=("id", "text", "category")),
        ),
        Kind(
            "column one word off",
            "f.csv",
            READ,
            (COLUMN + "label=lable",),
            sheet(columns=("id", "text", "lable")),
        ),
        Kind(
            "column one word off",
            "g.csv",
            REFUSED,
            (COLUMN + "id=post_id",),
            sheet(columns=("post_id", "text", "label")),
        ),
        Kind(
            "two columns for one",
            "h.csv",
            SET_ASIDE,
            ("could both be images", COLUMN),
            sheet(
                [{**row, "img": "a", "image": "b"} for row in ROWS],
                columns=("id", "text", "label", "img", "image"),
            ),
            0,
        ),
        Kind("column twice", "i.csv", REFUSED, ("more than once",), sheet(columns=("id", "text", "text"))),
        Kind(
            "blank column",
            "j.csv",
            READ,
            (),
            sheet([{"": n, **row} for n, row in enumerate(ROWS)], columns=("", "id", "text", "label")),
        ),
        Kind("blank column", "k.csv", READ, (), sheet().replace(b"\n", b",,\n")),
        Kind("separator", "l.csv", READ, ("'|'",), sheet(delimiter="|")),
        Kind("separator", "m.csv", READ, (), b"sep=;\r\n" + sheet(delimiter=";", lineterminator="\r\n")),
        Kind("separator", "n.csv", READ, (), sheet(quoting=csv.QUOTE_ALL).replace(b'","', b'", "')),
        Kind("encoding", "o.csv", READ, ("UTF-16",), sheet(encoding="utf-16-be", delimiter="\t")),
        Kind("encoding", "p.csv", READ, ("UTF-32",), sheet(encoding="utf-32")),
        Kind("encoding", "q.jsonl", READ, ("UTF-16",), lines().decode().encode("utf-16")),
        Kind(
            "encoding",
            "r.csv",
            SET_ASIDE,
            ("not UTF-8",),
            sheet([*ROWS, {"id": "9", "text": "café", "label": "fine"}], encoding="cp1252"),
            8,
        ),
        Kind("line ends", "s.csv", READ, (), sheet(lineterminator="\r\n")),
        Kind("line ends", "t.csv", READ, (), sheet(lineterminator="\r", quoting=csv.QUOTE_ALL)),
        Kind("JSON that is one list", "u.jsonl", READ, (), json.dumps(ROWS).encode()),
        Kind(
            "JSON over several lines",
            "v.json",
            READ,
            (),
            b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
        ),
        Kind(
            "JSON that is one list",
            "w.json",
            REFUSED,
            ("breaks off",),
            json.dumps(ROWS, indent=1).encode()[:-1],
        ),
        Kind(
            "JSON that is one list",
            "x.json",
            REFUSED,
            ("no JSON from line",),
            json.dumps(ROWS, indent=1).encode()[:-20],
        ),
        Kind(
            "JSON of another form",
            "y.json",
            SET_ASIDE,
            ("no id among ['data']",),
            json.dumps({"data": ROWS}).encode(),
            0,
        ),
        Kind("name of another format", "z.csv", READ, (), lines()),
        Kind("name of another format", "aa.jsonl", READ, (), sheet()),
        Kind("name of another format", "ab.csv", READ, (), parquet()),
        Kind("name of another format", "ac.parquet", REFUSED, ("not a Parquet file",), sheet()),
        Kind("foreign file", "ad.csv", REFUSED, ("Excel",), b"PK\x03\x04" + b"\0" * 40),
        Kind("foreign file", "ae.jsonl", REFUSED, ("web page",), b"<!DOCTYPE html><html>sign in</html>"),
        Kind(
            "foreign file",
            "af.csv",
            REFUSED,
            ("git lfs pull",),
            b"version https://git-lfs.github.com/spec/v1\n",
        ),
        Kind("compressed", "ag.csv.gz", READ, (), gzip.compress(sheet())),
        Kind("compressed", "ah.csv.gz", REFUSED, ("damaged",), gzip.compress(sheet() + b"x" * 99)[:-9]),
        Kind(
            "quote that is not closed",
            "ai.csv",
            REFUSED,
            ("line 3001 opens is not closed",),
            ("id,text,label\n" + "".join(unclosed)).encode(),
        ),
        Kind(
            "quote that is not closed",
            "aj.csv",
            REFUSED,
            ("line 12 opens is not closed",),
            ("id,text,label\n" + "".join(stray)).encode(),
        ),
        Kind("long text", "ak.csv", READ, (), sheet().replace(b"Free money", big.encode())),
        Kind(
            "cells too many or too few",
            "al.csv",
            SET_ASIDE,
            ("the header has 3",),
            sheet() + b"009,x\n010,a,b,fine\n",
            8,
        ),
        Kind("NUL", "am.csv", SET_ASIDE, ("NUL",), sheet() + b"009,a\0b,fine\n", 8),
        Kind("label in another spelling", "an.csv", READ, ("is read as",), sheet(with_labels(str.upper))),
        Kind("label in another spelling", "ao.jsonl", READ, (), lines(with_labels(lambda name: [name]))),
        Kind("label in another spelling", "ap.csv", READ, (), sheet(with_labels(lambda name: f"['{name}']"))),
        Kind(
            "label in another spelling", "aq.csv", READ, (), sheet(with_labels(lambda name: f"{name}\u200b"))
        ),
        Kind(
            "several labels",
            "ar.jsonl",
            SET_ASIDE,
            ("2 labels",),
            lines(with_labels(lambda name: [name, "fine"])),
            2,
        ),
        Kind(
            "word for nothing",
            "as.jsonl",
            SET_ASIDE,
            ("leave the label empty",),
            lines(with_labels(lambda name: "N/A")),
            2,
        ),
        Kind(
            "id twice",
            "at.jsonl",
            SET_ASIDE,
            ("already in line 1, there with the label 'spam'",),
            lines() + lines([ROWS[0] | {"label": "fine"}]),
            8,
        ),
        Kind(
            "number for an id",
            "au.jsonl",
            SET_ASIDE,
            ("id 1.5",),
            lines() + lines([ROWS[0] | {"id": 1.5}]),
            8,
        ),
        Kind("NaN", "av.jsonl", READ, (), lines(score=float("inf"))),
        Kind(
            "picture elsewhere",
            "aw.jsonl",
            SET_ASIDE,
            ("is a URL",),
            lines(images=["https://x.org/a.png"]),
            0,
        ),
        Kind("picture elsewhere", "ax.jsonl", SET_ASIDE, ("absolute path",), lines(images=["C:\\a.png"]), 0),
        Kind(
            "picture paths",
            "ay.csv",
            READ,
            (),
            sheet(
                [{**row, "images": "['pictures/a.png']"} for row in ROWS],
                columns=("id", "text", "label", "images"),
            ),
        ),
        Kind("picture paths", "az.jsonl", READ, ("'img'",), lines(img="pictures\\a.png")),
        Kind(
            "Parquet type",
            "bb.parquet",
            READ,
            (),
            parquet(
                x=times("ns", 1704067200000000001),
                y=times("s", 99_999_999_999_999),
                z=times("us", 1, "Mars/Base"),
            ),
        ),
        Kind(
            "Parquet type",
            "bc.parquet",
            READ,
            (),
            parquet(x=[decimal.Decimal("1.5")] * 8, y=[datetime.timedelta(1)] * 8, z=[{"a": [1, None]}] * 8),
        ),
        Kind(
            "Parquet type",
            "bd.parquet",
            READ,
            (),
            parquet(
                id=arrow(IDS, pa.large_string()),
                text=pa.array(TEXTS).dictionary_encode(),
                label=arrow(LABELS, pa.binary()),
            ),
        ),
        Kind(
            "Parquet type",
            "be.parquet",
            SET_ASIDE,
            ("text cannot be read",),
            parquet(text=arrow([b"\xff"] * 8, pa.binary())),
            0,
        ),
        Kind(
            "Parquet type",
            "bf.parquet",
            READ,
            ("left out where it cannot be read",),
            parquet(photo=[b"\xff\xd8"] * 8),
        ),
        Kind("damaged", "bg.parquet", REFUSED, ("Parquet",), parquet()[:-30]),
        Kind("empty", "bh.csv", REFUSED, ("expected a header with 'id'",), b""),
        Kind("empty", "bi.jsonl", SET_ASIDE, ("no rows",), b"", 0),
    ]


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


def outsiders():  # noqa: PLR0915 -- a list
    """What an outsider would try next: exports, encodings, odd separators, types, paths, pictures, bombs."""
    import pyarrow as pa

    def read(name, file, content, *told):
        found.append(
            Kind(name, file, READ, told, content if isinstance(content, bytes) else content.encode())
        )

    def aside(name, file, posts, content, *told):
        content = content if isinstance(content, bytes) else content.encode()
        found.append(Kind(name, file, SET_ASIDE, told, content, posts))

    def refused(name, file, content, *told):
        content = content if isinstance(content, bytes) else content.encode()
        found.append(Kind(name, file, REFUSED, told, content))

    def too_much(file, make, *told):
        found.append(Kind("too much", file, REFUSED, told, make))

    found: list[Kind] = []
    png, uri = picture(), "data:image/png;base64," + base64.b64encode(picture()).decode()
    with_list = [row | {"images": '["pictures/a.png"]'} for row in ROWS]

    read("encoding", "o1.csv", sheet(encoding="utf-16-le"), "UTF-16-LE")
    read("encoding", "o2.jsonl", lines().decode().encode("utf-16-le"), "UTF-16-LE")
    read("encoding", "o3.json", json.dumps(ROWS).encode("utf-8-sig"))
    read("encoding", "o4.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + sheet())
    refused("encoding", "o5.csv", sheet(encoding="utf-32-le"), "UTF-32")
    aside(
        "encoding",
        "o6.json",
        8,
        json.dumps([*ROWS, {"id": "9", "text": "caf\u00e9"}], ensure_ascii=False).encode("latin-1"),
        "not UTF-8: byte 0xe9",
    )
    aside("encoding", "o7.csv", 8, sheet() + "009,\u65e5\u672c,fine\n".encode("shift_jis"), "not UTF-8")
    read(
        "line ends",
        "o8.jsonl",
        "".join(json.dumps(row | {"x": "\u2028\x85"}, ensure_ascii=False) + "\n" for row in ROWS),
    )
    read(
        "line ends",
        "o9.csv",
        sheet(lineterminator="\r\n", quoting=csv.QUOTE_ALL).replace(b"prize", b"pri\rze"),
    )
    read("separator", "o10.csv", sheet(delimiter=":"), "':'")
    read("separator", "o11.csv", sheet(delimiter="^"), "'^'")
    read("separator", "o12.csv", sheet(delimiter="\x1f"))
    read(
        "separator", "o13.csv", sheet([row | {"text": "a, b, c, d, e"} for row in ROWS], delimiter=";"), "';'"
    )
    split_header = sheet(columns=("id", "text", "label")).replace(b"id,text", b'id,"text"', 1)
    read("lines before the header", "p1.csv", split_header.replace(b'"text"', b'"text\n"', 1))
    aside("header again", "p2.csv", 8, sheet(ROWS[:4]) + b"\xef\xbb\xbf" + sheet(ROWS[4:]), "here again")
    aside(
        "header again", "p3.csv", 8, sheet(ROWS[:4], delimiter=";") + sheet(ROWS[4:], delimiter=";"), "again"
    )
    aside(
        "line ends", "p4.csv", 8, sheet() + b"009,a\rb,fine\n010,c,fine\r011,d,spam\n", "or 2", "4 set aside"
    )
    refused("line ends", "p5.csv", sheet().replace(b"label\n", b"label\r", 1), "no readable header")
    refused("separator", "o14.csv", "id  text  label\n1  a  spam\n", "separate cells by a comma")
    refused("separator", "o15.csv", '"id,text,label"\n"1,a,spam"\n', "whole lines stand in quotes")
    read("lines before the header", "o16.csv", b"\n\r\n" + sheet())
    refused(
        "lines before the header", "o17.csv", b"My export 2024,,\n" + sheet(), "line 2 looks like the header"
    )
    refused(
        "lines before the header",
        "o18.csv",
        b"# exported by us\n\n" + sheet(),
        "line 3 looks like the header",
    )
    refused("no header", "o19.csv", "1,a,spam\n2,b,fine\n", "expected a header with 'id'")
    read(
        "blank column",
        "o20.csv",
        sheet(
            [row | {"Unnamed: 0": n} for n, row in enumerate(ROWS)],
            columns=("id", "text", "label", "Unnamed: 0"),
        ),
        "'Unnamed: 0'",
    )
    read(
        "column twice",
        "o21.csv",
        sheet([row | {"label.1": "x"} for row in ROWS], columns=("id", "text", "label", "label.1")),
        "'label.1'",
    )
    read(
        "column twice",
        "o22.csv",
        sheet([row | {"Label": "x"} for row in ROWS], columns=("id", "text", "label", "Label")),
        "not read: 'Label'",
    )
    refused(
        "column one word off", "o23.csv", sheet(columns=("post id", "text", "label")), "--column 'id=post id'"
    )
    aside(
        "column one word off",
        "o24.csv",
        0,
        sheet(columns=("id", "post text", "label")),
        "--column 'text=post text'",
    )
    aside("column one word off", "o25.csv", 0, sheet(columns=("id", "Texte", "label")), COLUMN + "text=Texte")
    read("column one word off", "o26.jsonl", lines(renamed(label="gold_label")), COLUMN + "label=gold_label")
    read("blank lines", "o27.csv", sheet().replace(b"\n", b"\n\n"))
    aside("blank lines", "o28.csv", 8, sheet() + b",,\n", "no id among")
    aside(
        "quotes",
        "o29.csv",
        0,
        "id,text,label\n" + "".join(f'{n},"a \\"b\\" c",fine\n' for n in range(8)),
        "not written with a backslash",
    )
    read(
        "quotes",
        "o30.csv",
        sheet(
            [row | {"text": f'{row["text"]} 5" tv'} for row in ROWS],
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
            quotechar=None,
        ),
    )
    aside(
        "quotes",
        "o31.csv",
        0,
        "id,text,label\n" + "".join(f"{n},'a, b',fine\n" for n in range(8)),
        "4 cells, the header has 3",
    )
    read(
        "long text",
        "o32.csv",
        sheet([row | {"text": f"{row['text']}\nWell, now,\n3, 4, 5\nbye, all"} for row in ROWS]),
    )
    swallowed = [f"{n},words,fine\n" for n in range(40)]
    swallowed[10], swallowed[30] = '10,"open,fine\n', '30,closed",fine\n'
    refused(
        "quote that is not closed",
        "o33.csv",
        "id,text,label\n" + "".join(swallowed),
        "line 12 opens",
        "look like rows",
    )
    refused(
        "quote that is not closed",
        "o34.csv",
        'id,text,label\n1,"He said "hi"\nand, so, on",fine\n2,x,fine\n',
        "line 2 opens",
    )
    refused("quote that is not closed", "o35.csv", sheet() + b'009,"cut off', "is not closed")

    read("id of another type", "o36.jsonl", lines([row | {"id": n} for n, row in enumerate(ROWS, 1)]))
    read(
        "id of another type",
        "o37.jsonl",
        lines([row | {"id": float(n)} for n, row in enumerate(ROWS, 1)]),
        "'1.0'",
    )
    read("id of another type", "o38.parquet", parquet(id=[float(n) for n in range(1, 9)]), "'1.0'")
    read("id of another type", "o39.parquet", parquet(id=[decimal.Decimal(n) for n in range(1, 9)]))
    read("id of another type", "o40.parquet", parquet(id=pa.array(range(1, 9), pa.uint64())))
    aside(
        "id of another type",
        "o41.jsonl",
        8,
        lines() + b'{"id": true, "text": "x"}\n{"id": ["9"], "text": "x"}\n'
        b'{"id": {"$oid": "5f"}, "text": "x"}\n{"id": NaN, "text": "x"}\n{"id": null, "text": "x"}\n'
        b'{"id": Infinity, "text": "x"}\n',
        "id True",
        "id ['9']",
        "id inf",
        "no id among",
    )
    aside(
        "id of another type",
        "o42.jsonl",
        8,
        lines([row | {"id": str(n)} for n, row in enumerate(ROWS, 1)]) + b'{"id": 1, "text": "x"}\n',
        "already in line 1",
    )
    aside(
        "id of another type",
        "o43.parquet",
        0,
        parquet(id=pa.array([uuid.UUID(int=n).bytes[::-1] + b"\xff" for n in range(8)])),
        "id cannot be read",
    )
    for place, odd in enumerate((" %s", "%s\u00a0", "\u200b%s", "\ufeff%s")):
        told = "blanks at an end, invisible signs"
        rows = [row | {"id": odd % row["id"]} for row in ROWS[:1]]
        aside("id that looks like another", f"p{6 + place}.jsonl", 9, lines(rows) + lines() + b"x", told)
    aside(
        "id that looks like another", "p10.csv", 10,
        sheet() + "e\u0301,x,fine\n\u00e9,y,fine\n,z,fine\n".encode(), "letters in pieces",
    )  # fmt: skip
    aside(
        "invisible text", "p11.jsonl", 8,
        lines() + lines([{"id": str(n), "text": "\u200b\u2060\ufeff\xad"[n:]} for n in range(4)]),
        "neither text nor image",
    )  # fmt: skip
    for place, label in enumerate(("f\u0456ne", "fine\u2024", "f\u0131ne")):
        told = ("CYRILLIC SMALL LETTER", "ONE DOT LEADER", "DOTLESS I")[place]
        aside(
            "label that looks like another",
            f"p{12 + place}.csv",
            8,
            sheet() + f"009,x,{label}\n".encode(),
            told,
        )
    aside(
        "number for a text", "p15.jsonl", 9,
        lines() + b'{"id": "9", "text": 2024}\n{"id": "10", "text": 1.50}\n{"id": "11", "text": true}\n',
        "text 1.5 is a float",
    )  # fmt: skip
    read("number for a text", "p16.parquet", parquet(text=list(range(8))))
    aside("columns in objects", "p18.jsonl", 0, lines([{"data": row} for row in ROWS]), COLUMN + "id=data.id")
    read("word for nothing", "o44.csv", sheet([row | {"text": "NaN"} for row in ROWS]), "a word for nothing")
    aside(
        "word for nothing",
        "o45.csv",
        9,
        sheet() + b"nan,x,fine\nNULL,x,na\n",
        "ids such as 'nan'",
        "leave the label",
    )

    for place, label in enumerate((True, 1, 1.0)):
        aside(
            "number for a label",
            f"o{46 + place}.jsonl",
            2,
            lines(with_labels(lambda _, one=label: one)),
            f"label {label} is none of",
            "call the task's classes so",
        )
    aside("several labels", "o49.csv", 2, sheet(with_labels(lambda name: f"{name}|fine")), "2 labels")
    aside("several labels", "o50.csv", 2, sheet(with_labels(lambda name: f"{name}, spam")), "2 labels")
    aside("several labels", "o51.csv", 2, sheet(with_labels(lambda name: f"['{name}', 'x']")), "2 labels")
    aside(
        "label in an object",
        "o52.jsonl",
        2,
        lines(with_labels(lambda name: {"name": name})),
        COLUMN + "label=label.name",
    )
    aside(
        "label in another spelling",
        "o53.csv",
        2,
        sheet(with_labels(lambda name: f"__label__{name}")),
        "'__label__spam' is none of",
    )
    read(
        "label in another spelling", "o54.jsonl", lines(with_labels(lambda name: name.title())), "is read as"
    )
    read("label in another spelling", "o55.csv", sheet(with_labels(lambda name: f"\u00a0{name}\u200b ")))

    aside(
        "export of another tool",
        "o56.json",
        0,
        json.dumps(
            [
                {
                    "id": row["id"],
                    "data": {"text": row["text"]},
                    "annotations": [{"result": [{"value": {"choices": [row["label"]]}}]}],
                }
                for row in ROWS
            ]
        ),
        COLUMN + "text=data.text",
    )
    aside(
        "export of another tool",
        "o57.jsonl",
        0,
        lines(
            [
                {"id": row["id"], "fields": {"text": row["text"]}, "responses": {"label": row["label"]}}
                for row in ROWS
            ]
        ),
        COLUMN + "text=fields.text",
    )
    aside(
        "JSON of another form",
        "o58.json",
        0,
        json.dumps({"version": "1", "rows": ROWS}, indent=1),
        "'rows' holds 8 objects",
    )
    aside(
        "JSON of another form",
        "o59.json",
        0,
        json.dumps({row["id"]: row for row in ROWS}),
        "a table on its side",
    )
    aside(
        "JSON of another form",
        "o60.json",
        0,
        json.dumps({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}),
        "a table on its side",
    )
    read("JSON of another form", "o61.jsonl", ",\n".join(json.dumps(row) for row in ROWS))
    read("JSON of another form", "o62.jsonl", " ".join(json.dumps(row) for row in ROWS))
    read("JSON of another form", "o63.jsonl", "[" + ",\n".join(json.dumps(row) for row in ROWS) + "]")
    read("JSON of another form", "o64.jsonl", "\x1e" + "\x1e".join(json.dumps(row) + "\n" for row in ROWS))
    aside("JSON of another form", "o65.jsonl", 0, "".join(f"{row}\n" for row in ROWS), "json.dumps")
    aside(
        "JSON of another form",
        "o66.jsonl",
        8,
        b"// ours\n" + lines() + b"null\n[1]\n7\n",
        "JSON null",
        "JSON list",
    )
    aside("damaged", "o67.jsonl", 7, lines()[:-10], "not JSON")
    aside("damaged", "o68.jsonl", 8, lines() + b"\0\0\0\0", "not JSON")

    read("name of another format", "o69.txt", sheet())
    read("name of another format", "o70", lines())
    read("compressed", "o71.csv.bz2", bz2.compress(sheet()), "bz2")
    read("compressed", "o72.jsonl.xz", lzma.compress(lines()), "lzma")
    read("compressed", "o73.csv.gz", sheet())
    read("compressed", "o74.parquet.gz", gzip.compress(parquet()), "gzip")
    refused("compressed", "o75.csv.gz", gzip.compress(gzip.compress(sheet())), "compressed twice")
    refused("compressed", "o76.csv.gz", packed("a.csv", sheet(), "gz"), "tar archive")
    refused("foreign file", "o77.csv.zip", packed("a.csv", sheet(), "zip"), "unpack it")
    refused("foreign file", "o78.csv", png, "is a picture")
    refused("foreign file", "o79.csv", b"\0" * 1000, "NUL bytes")
    refused("foreign file", "o80.jsonl", b"\x80\x04\x95" + b"x" * 40, "pickle")
    refused("empty", "o81.csv", b"\n\n\n", "expected a header with 'id'")
    aside("empty", "o82.csv", 0, "id,text,label\n", "no rows")
    aside("empty", "o83.json", 0, "[]", "no rows")
    aside("empty", "o84.json", 0, "{}", "no id among []")
    aside("empty", "o85.jsonl", 0, b"\xef\xbb\xbf", "no rows")
    refused("empty", "o86.parquet", b"", "not a Parquet file")

    read(
        "pictures inside the table",
        "o87.parquet",
        parquet(image=[{"bytes": png, "path": "a.png"}] * 8),
        "kept in",
    )
    read("pictures inside the table", "o88.parquet", parquet(images=[[{"bytes": png, "path": None}] * 2] * 8))
    read("pictures inside the table", "o89.parquet", parquet(image=[png] * 8), "kept in")
    read("pictures inside the table", "o90.jsonl", lines(image=uri), "kept in")
    read(
        "pictures inside the table",
        "o91.csv",
        sheet([row | {"img": uri.partition(",")[2]} for row in ROWS], columns=("id", "text", "label", "img")),
        "kept in",
    )
    read(
        "pictures inside the table",
        "o92.parquet",
        parquet(picture=[{"bytes": png, "path": "a.png"}] * 8),
        "'picture' is left out: it holds bytes",
    )
    read("picture paths", "o93.parquet", parquet(image=[{"bytes": None, "path": "pictures/a.png"}] * 8))
    read(
        "pictures inside the table", "p19.parquet", parquet(image=[{"bytes": None, "path": ""}] * 7 + [None])
    )
    aside("picture elsewhere", "p20.jsonl", 0, lines(img="Pictures/A.PNG"), "no such file")
    aside("picture elsewhere", "p21.jsonl", 0, lines(img="pictures/A.PNG"), "'a.png' is there")
    aside("word for nothing", "p22.csv", 2, sheet(with_labels(lambda name: "#N/A")), "leave the label empty")
    aside("word for nothing", "p23.jsonl", 0, lines(images="None"), "leave it empty")
    read("picture paths", "o94.jsonl", lines(img="pictures%2Fa.png"))
    read("picture paths", "o95.jsonl", lines(img="pictures/o\u0308.png"))
    read("picture paths", "o96.csv", sheet(with_list, columns=("id", "text", "label", "images")))
    for place, (path, told) in enumerate((
        ("file:///tmp/a.png", "is a URL"), ("s3://bucket/a.png", "is a URL"), ("//host/a.png", "is a URL"),
        ("\\\\host\\a.png", "absolute path"), ("/etc/hostname", "absolute path"), ("~/a.png", "no such file"),
        ("..\\..\\a.png", "leads out"), ("%2e%2e/a.png", "leads out"),
        ("pictures/a.png, pictures/b.png", "';'"),
        ("{pictures/a.png,b.png}", "';'"), ("[" * 5000, "too long"), ("pictures", "not a regular file"),
    )):  # fmt: skip
        aside("picture elsewhere", f"o{97 + place}.jsonl", 0, lines(images=path), told)

    read(
        "Parquet type",
        "o109.parquet",
        parquet(
            a=pa.array([1] * 8, pa.time32("s")),
            b=pa.array([1] * 8, pa.duration("ns")),
            c=pa.array([1.5] * 8, pa.float16()),
            d=pa.array([[("a", 1)]] * 8, pa.map_(pa.string(), pa.int64())),
            e=pa.array([[1, 2]] * 8, pa.list_(pa.int64(), 2)),
            f=pa.array([decimal.Decimal("1.23")] * 8, pa.decimal256(50, 2)),
            g=pa.nulls(8),
        ),
    )
    aside(
        "Parquet type",
        "o110.parquet",
        0,
        parquet(text=[datetime.datetime(2020, 1, 1)] * 8),
        "is a datetime, expected a text",
    )
    aside("Parquet type", "o111.parquet", 0, parquet(text=[{"value": "a"}] * 8), COLUMN + "text=text.value")
    aside(
        "Parquet type",
        "o112.parquet",
        2,
        parquet(label=pa.array([1, 0, 1, 0, 1, 0, None, None]).dictionary_encode()),
        "label 1 is none of",
    )
    aside(
        "deep",
        "o113.jsonl",
        8,
        lines() + b'{"id": "9", "text": "x", "a": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "more than 100 deep",
    )
    aside(
        "deep",
        "o114.jsonl",
        8,
        lines() + b'{"id": "9", "text": "x", "a": ' + b"[" * 99_999 + b"\n",
        "more than 100 deep",
    )
    aside(
        "deep",
        "o115.jsonl",
        8,
        lines() + b'{"id": "9", "text": "x", "a": ' + b"9" * 5000 + b"}\n",
        "not JSON",
    )
    long = b'{"id": "9", "text": "' + b"x" * (17 << 20)
    too_much("o116.jsonl", lambda: lines() + long + b'"}\n', "line 9 has more than 16,777,216 characters")
    too_much("o117.csv", lambda: sheet() + b"009," + long, "line 10 has more than")
    too_much("o118.json", lambda: b"[" + long + long, "16,777,216 characters")
    too_much("o119.jsonl.gz", lambda: gzip.compress(lines() + b"{}\n" * (25 << 20)), "100 times its size")
    too_much("o120.parquet", lambda: parquet(label=None, y=["z" * (10 << 20)] * 8), "100 times its size")

    def repeated():
        return pa.DictionaryArray.from_arrays(pa.array([0] * 8, pa.int32()), ["z" * (10 << 20)])

    too_much("o123.parquet", lambda: parquet(text=repeated()), "100 times its size")
    too_much(
        "o124.csv",
        lambda: b"id,text," + b",".join(b"c%d" % n for n in range(50_000)) + b",c0\n",
        "more than once",
    )
    too_much("o122.parquet", lambda: parquet(id=["1"] * 400_000, text=None, label=None), "100 times its size")
    read(
        "many notes",
        "o121.csv",
        sheet(
            [row | {"split": "Test", "when": "01/02/2024"} for row in ROWS],
            columns=("id", "text", "label", "split", "when"),
        ),
        "'when'",
    )
    return found
