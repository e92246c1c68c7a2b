"""Texts that a machine has anyway: dictionaries, manual pages, packages, docstrings, READMEs."""

import gzip

import pytest

from stillroom.data.readers import dictionaries, machine_texts
from stillroom.data.readers.dictionaries import DIGITS, plain_definition, read_dictionary
from stillroom.data.readers.machine_texts import documents, machine_fingerprint
from stillroom.data.readers.man_pages import read_man_page

MAN = r""".\" a comment
.TH LS "1" "September 2022"
.SH NAME
ls \- list directory contents
.SH SYNOPSIS
.B ls
[\fI\,OPTION\/\fR]...
.SH DESCRIPTION
List information about the \fBFILEs\fR (the current
directory by default).
.nf
a   table of    columns
.fi
.TP
\fB\-\-author\fR
with \fB\-l\fR, print the author; see
.BR stat (2).
.SH AUTHOR
Written by somebody.
"""
MDOC = """.Dd May 1, 2020
.Dt CAT 1
.Sh NAME
.Nm cat
.Nd concatenate and print files
.Sh DESCRIPTION
The
.Nm
utility reads files, with the option
.Fl u
unbuffered.
"""


def base_64(number):
    letters = {value: letter for letter, value in DIGITS.items()}
    digits = letters[number % 64]
    while number := number // 64:
        digits = letters[number % 64] + digits
    return digits


def write_dictd(folder, name, entries):
    """A dictionary as dictfmt writes it, zipped."""
    body, index = b"", []
    for headword, definition in entries.items():
        text = f"{headword}\n   {definition}\n".encode()
        index.append(f"{headword}\t{base_64(len(body))}\t{base_64(len(text))}")
        body += text
    (folder / f"{name}.index").write_text("\n".join(index) + "\n", encoding="utf-8")
    (folder / f"{name}.dict.dz").write_bytes(gzip.compress(body))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that has two manual pages, a dictionary, two packages and a README."""
    man, dictd, doc = tmp_path / "man", tmp_path / "dictd", tmp_path / "doc" / "tool"
    for folder in (man / "man1", man / "de" / "man1", dictd, doc):
        folder.mkdir(parents=True)
    (man / "man1" / "ls.1.gz").write_bytes(gzip.compress(MAN.encode()))
    (man / "man1" / "cat.1").write_text(MDOC)
    (man / "man1" / "dir.1").write_text(".so man1/ls.1\n")
    (man / "man1" / "vdir.1").symlink_to(man / "man1" / "cat.1")
    (man / "de" / "man1" / "ls.1").write_text(MAN)
    write_dictd(dictd, "small", {"café": "a place to drink {coffee}", "tea": "a drink of leaves"})
    (tmp_path / "status").write_text(
        "Package: tool\nStatus: installed\nDescription: does one thing well\n"
        " It reads what it is given.\n .\n And writes it again.\nHomepage: x\n\n"
        "Package: library\nDescription: shared parts\n Of tools.\n"
    )
    (doc / "README.gz").write_bytes(gzip.compress(b"Read me first.\n\nThen the manual."))
    (doc / "copyright").write_text("all rights reserved")
    monkeypatch.setattr(machine_texts, "MAN_FOLDER", man)
    monkeypatch.setattr(machine_texts, "DEBIAN_STATUS", tmp_path / "status")
    monkeypatch.setattr(machine_texts, "DOC_FOLDER", tmp_path / "doc")
    monkeypatch.setattr(dictionaries, "DICTD_FOLDERS", (dictd,))
    monkeypatch.setattr(dictionaries, "WORDNET_FOLDERS", (tmp_path / "wordnet",))
    return tmp_path


def test_a_manual_page_gives_its_summary_and_its_prose(machine):
    summary, paragraphs = read_man_page(machine / "man" / "man1" / "ls.1.gz")
    assert summary == "list directory contents"
    assert paragraphs == [
        "List information about the FILEs (the current directory by default).",
        "--author with -l, print the author; see stat(2).",
    ]
    summary, paragraphs = read_man_page(machine / "man" / "man1" / "cat.1")
    assert summary == "concatenate and print files"
    assert paragraphs == ["The cat utility reads files, with the option u unbuffered."]


def test_other_names_and_translations_of_a_page_are_not_read(machine):
    assert len(list(documents("manuals"))) == 2


def test_a_dictionary_of_dictd_gives_definitions_without_their_headwords(machine):
    entries = dict(read_dictionary(machine / "dictd" / "small.index"))
    assert entries == {"café": "a place to drink coffee", "tea": "a drink of leaves"}


@pytest.mark.parametrize(
    ("entry", "prose"),
    [
        (
            '\\Mould"warp`\\, n. [OE. moldwerp; [AS. molde] + warp.] (Zool.)\n'
            "   See {Mole} the animal. [1913 Webster]",
            "(Zool.)\n See Mole the animal.",
        ),
        (
            "n 1: a large body of water [syn: {ocean}]\n   2: anything apparently limitless",
            "a large body of water\n anything apparently limitless",
        ),
        ("v. t. To lift, n. b. not a class", "To lift, n. b. not a class"),
        ("a place where a. is a letter", "a place where a. is a letter"),
        ("1. A unit of data. 2. A memory.", "A unit of data. A memory."),
    ],
)
def test_a_definition_is_prose_without_its_dictionary_s_notation(entry, prose):
    assert plain_definition(entry) == prose


def test_terms_are_the_headwords_of_all_dictionaries_each_in_one_group(machine):
    words = {f"word{number}": "a definition of it" for number in range(60)}
    write_dictd(machine / "dictd", "large", words)
    groups = [document.title.split() for document in documents("terms")]
    assert sorted(word for group in groups for word in group) == sorted([*words, "café", "tea"])
    assert {len(group) for group in groups} <= set(range(1, 7)) and len(groups) > 10
    assert all(document.paragraphs == () for document in documents("terms"))
    assert groups == [document.title.split() for document in documents("terms")]


def test_a_dictionary_in_the_environment_and_in_the_system_counts_once(machine, monkeypatch):
    own = machine / "own"
    own.mkdir()
    write_dictd(own, "small", {"tea": "leaves in water"})
    monkeypatch.setattr(dictionaries, "DICTD_FOLDERS", (own, machine / "dictd"))
    assert [document.paragraphs for document in documents("dictionaries")] == [("leaves in water",)]


def test_wordnet_gives_a_meaning_a_line(machine):
    folder = machine / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(
        "  1 This software is licensed\n"
        "00001740 03 n 01 physical_entity 0 001 ~ 00001930 n 0000 | that which has existence  \n"
    )
    assert list(read_dictionary(folder / "data.noun")) == [
        ("physical entity", "that which has existence")
    ]
    assert {document.title for document in documents("dictionaries")} == {
        "café", "tea", "physical entity",
    }  # fmt: skip


def test_debian_s_and_python_s_packages_are_described(machine):
    by_unit = {document.unit: document for document in documents("packages")}
    assert by_unit["deb:tool"].title == "does one thing well"
    assert by_unit["deb:tool"].paragraphs == ("It reads what it is given.", "And writes it again.")
    assert by_unit["python:numpy"].title == "Fundamental package for array computing in Python"
    assert "python:stillroom" not in by_unit


def test_readmes_are_read_and_licences_are_not(machine):
    [readme] = documents("readmes")
    assert readme.paragraphs == ("Read me first.", "Then the manual.")


def test_docstrings_leave_out_the_packages_that_a_corpus_uses():
    first = next(iter(documents("docstrings")))
    package = first.unit.partition(":")[0]
    others = documents("docstrings", without_packages=[package])
    assert next(iter(others)).unit.partition(":")[0] != package


def test_the_fingerprint_changes_with_what_would_be_read(machine):
    before = machine_fingerprint(["manuals", "dictionaries"])
    assert before == machine_fingerprint(["manuals", "dictionaries"])
    (machine / "man" / "man1" / "new.1").write_text(MDOC)
    assert before != machine_fingerprint(["manuals", "dictionaries"])


def test_the_first_units_are_spread_over_families(machine):
    man = machine / "man" / "man1"
    for number in range(30):
        (man / f"git-{number}.1").write_text(MDOC.replace("cat", f"git{number}"))
    first = [document.unit.rpartition("/")[2] for document in documents("manuals")][:3]
    assert sum(unit.startswith("git-") for unit in first) == 1
