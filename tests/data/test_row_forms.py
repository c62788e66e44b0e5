"""What people have: tags of every form, CoNLL files, lists of words, treebanks, CSV dialects, compressed files."""

import bz2
import contextlib
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import ColumnsConfig, ConstituencyConfig, HubConfig, SlotsConfig, Source
from retort.data import read_examples, read_rows_of
from retort.data.bad_rows import BadRow
from retort.data.class_names import with_tag_names
from retort.data.reading import read_pool
from retort.data.tagging import TagForm
from retort.errors import DataError, RowFault
from retort.problems import infer_schema, problem_for
from retort.problems.slots import Slots, decode
from retort.records.base import Example

SLOTS = Slots({"X": ["CITY", "ARTIST"]})
WORDS = ColumnsConfig(text="tokens", tags="ner_tags")
NAMES = ["O", "B-CITY", "I-CITY", "B-ARTIST", "I-ARTIST"]


def tags_of(source: Source, columns: ColumnsConfig | None = None) -> list[tuple[str, list[str]]]:
    """(Text, tags) of each row, read as slots with the intent X."""
    found = read_examples(source, columns or ColumnsConfig(), SLOTS, gold="required")
    return [(one.text, decode(str(one.label))[1]) for one in found]


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tagged(path: Path, *tags: str) -> str:
    """A row for each sequence of tags."""
    rows = [{"text": " ".join(f"w{n}" for n in range(len(one.split()))), "intent": "x", "bio": one} for one in tags]
    return jsonl(path, *({"id": n, **row} for n, row in enumerate(rows)))


def fault(read: Callable[[], object], folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read()
    return str(caught.value).replace(f"{folder}/", "")


# --- forms of tags


@pytest.mark.parametrize(
    ("form", "tags"),
    [
        ("IOB2", "O B-CITY I-CITY B-CITY B-ARTIST O"),
        ("IOB1", "O I-CITY I-CITY B-CITY I-ARTIST O"),
        ("IOBES", "O B-CITY E-CITY S-CITY S-ARTIST O"),
        ("BILOU", "O B-CITY L-CITY U-CITY U-ARTIST O"),
        ("BMES", "O B-CITY E-CITY S-CITY S-ARTIST O"),
        ("BMEWO", "O B-CITY E-CITY W-CITY W-ARTIST O"),
    ],
)
def test_every_form_of_tags_says_the_same_spans(tmp_path: Path, form: str, tags: str) -> None:
    path = tagged(tmp_path / "a.jsonl", "O O", tags)
    assert [found for _, found in tags_of(path)] == [["O", "O"], ["O", "B-CITY", "I-CITY", "B-CITY", "B-ARTIST", "O"]]


def test_long_spans_of_iobes() -> None:
    for inside in "IM":
        tags = ["B-X", f"{inside}-X", f"{inside}-X", "E-X", "B-Y", "L-Y"]
        assert TagForm().bio("p", tags) == ["B-X", "I-X", "I-X", "I-X", "B-Y", "I-Y"]


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        (["O S-CITY", "B-CITY O"], "line 2: as a.jsonl, line 1 is IOBES, tag 2, 'O', stands where the span 'CITY'"),
        (["S-CITY", "O B-CITY"], "line 2: as a.jsonl, line 1 is IOBES, tag 2, 'B-CITY', is the last and does not"),
        (["B-CITY O", "O", "O S-CITY"], "line 3: tag 2, 'S-CITY', is of the IOBES form, and the tags of a.jsonl, line"),
        (["B-CITY S-CITY"], "line 1: tag 2, 'S-CITY', stands where the span 'CITY' is not closed"),
        (["B-CITY E-ARTIST"], "line 1: tag 2, 'E-ARTIST', stands where the span 'CITY' is not closed"),
        (["O E-CITY"], "line 1: tag 2, 'E-CITY', continues no span"),
        (["S-CITY I-CITY"], "line 1: tag 2, 'I-CITY', continues no span"),
        (["B-CITY I-CITY", "B-CITY city"], "line 2: tag 'city' is not O, B-slot or I-slot"),
        (["B-CITY X-CITY"], "line 1: tag 'X-CITY' is not O, B-slot or I-slot"),
    ],
)  # fmt: skip
def test_a_file_is_of_one_form_and_its_spans_are_closed(tmp_path: Path, tags: list[str], sentence: str) -> None:
    path = tagged(tmp_path / "a.jsonl", *tags)
    assert fault(lambda: tags_of(path), tmp_path).startswith(f"a.jsonl, {sentence}")


def test_files_of_a_folder_may_be_of_different_forms(tmp_path: Path) -> None:
    tagged(tmp_path / "a.jsonl", "B-CITY I-CITY")
    (tmp_path / "b.conll").write_text("# id: b\n# intent: x\nv\tB-CITY\nw\tE-CITY\n")
    assert [tags for _, tags in tags_of(str(tmp_path))] == [["B-CITY", "I-CITY"]] * 2


def test_a_pool_sets_a_bad_sequence_aside_as_it_was(tmp_path: Path) -> None:
    path = tagged(tmp_path / "a.jsonl", "S-CITY", "O E-CITY", "O")
    good, bad, plain = read_pool(path, ColumnsConfig(), SLOTS)
    assert isinstance(good, Example)
    assert isinstance(plain, Example)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.example_id) == ("bad-tags", "1")
    assert json.loads(bad.raw)["bio"] == "O E-CITY"
    sentence = tmp_path / "b.conll"
    sentence.write_text("# intent: x\na\tO\nb\tE-CITY\n")
    (bad,) = read_pool(str(sentence), ColumnsConfig(), SLOTS)
    assert isinstance(bad, BadRow)
    assert bad.raw == "# intent: x\na\tO\nb\tE-CITY"


@given(
    st.lists(
        st.sampled_from(["O", "B-A", "I-A", "E-A", "S-A", "L-A", "U-A", "M-A", "B-B", "E-B", "O-", "x"]), max_size=8
    )
)
def test_any_tags_are_read_or_refused(tags: list[str]) -> None:
    try:
        found = TagForm().bio("p", tags)
    except RowFault:
        return
    assert len(found) == len(tags)
    assert [tag == "O" for tag in found] == [tag == "O" for tag in tags]


# --- CoNLL files


CONLL = """-DOCSTART- -X- -X- O

# id: one
# intent = x
I PRP B-NP O
fly VBP B-VP O
to TO B-PP O
New NNP B-NP {b}-CITY
York NNP I-NP I-CITY

# a remark
# id: two
# intent: x
# NN B-NP O
5 CD I-NP O
-DOCSTART- -X- O O
"""


@pytest.mark.parametrize("name", ["a.conll", "a.iob", "a.bio", "a.iob2", "a.conll.gz", "A.CONLL"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("sign", [" ", "\t", "   "])
def test_conll_files(tmp_path: Path, name: str, newline: str, sign: str) -> None:
    path, bom = tmp_path / name, "\ufeff"
    body = re.sub(r"^(?!#).*\S+ \S+ \S+$|^# NN.*", lambda line: line[0].replace(" ", sign), CONLL, flags=re.MULTILINE)
    data = (bom + body.format(b="B").replace("\n", newline)).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert tags_of(str(path)) == [
        ("I fly to New York", ["O", "O", "O", "B-CITY", "I-CITY"]),
        ("# 5", ["O", "O"]),
    ]
    assert [one.example_id for one in read_pool(str(path), ColumnsConfig(), SLOTS) if isinstance(one, Example)] == [
        "one",
        "two",
    ]
    chosen = list(read_rows_of(str(path), None, ColumnsConfig(text="2", tags="3")))
    assert chosen[0][0] == f"{path}, line 3"
    assert chosen[0][1]["2"] == "PRP VBP TO NNP NNP"
    assert chosen[0][1]["3"] == ["B-NP", "B-VP", "B-PP", "B-NP", "I-NP"]


def test_conll_files_of_iob1_and_of_words_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(CONLL.format(b="I"))
    assert tags_of(str(path))[0][1] == ["O", "O", "O", "B-CITY", "I-CITY"]
    path.write_text("# a remark\n#tag\nplay\n#\n\n\n-DOCSTART-\nstop")
    pool = list(read_pool(str(path), ColumnsConfig(), SLOTS))
    assert [(one.text, one.label) for one in pool if isinstance(one, Example)] == [
        ("#tag play #", None),
        ("stop", None),
    ]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("a O\nb x O\n", "line 2: 3 columns where the first word of the file has 2"),
        ("# intent: x\na O\n\nb O\nc\n", "line 5: 1 columns where the first word of the file has 2"),
        ("1 a O\n2 b O\n3 c O\n", "line 1: the first column counts the words; name the one that holds them, as data."),
        ("a b O\nc NN\n", "line 2: 2 columns where"),
    ],
)
def test_conll_files_that_are_wrong(tmp_path: Path, body: str, sentence: str) -> None:
    path = tmp_path / "a.conll"
    path.write_text(body)
    assert fault(lambda: tags_of(str(path)), tmp_path).startswith(f"a.conll, {sentence}")


def test_a_word_with_a_space_in_a_conll_file_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("# intent: x\nNew York\tB-CITY\nnow\tO\n")
    assert tags_of(str(path)) == [("New\u00a0York now", ["B-CITY", "O"])]


# --- lists of words, numbers of a ClassLabel


ROWS = [
    {"id": "1", "intent": "x", "tokens": ["weather", "in", "10 000"], "ner_tags": [0, 0, 1]},
    {"id": "2", "intent": "x", "tokens": ["play", "abba"], "ner_tags": [0, 3]},
]
READ = [("weather in 10\u00a0000", ["O", "O", "B-CITY"]), ("play abba", ["O", "B-ARTIST"])]
LABEL = {"names": NAMES, "_type": "ClassLabel"}
CARD = f"""---
license: mit
dataset_info:
  features:
  - name: tokens
    sequence: string
  - name: ner_tags
    sequence:
      class_label:
        names:
{"".join(f"          '{number}': {name}" + chr(10) for number, name in enumerate(NAMES))}  splits: []
---
# A data set
"""


def test_names_of_tags_from_the_config(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    assert tags_of(path, WORDS.model_copy(update={"tag_names": NAMES})) == READ
    said = fault(lambda: tags_of(path, WORDS), tmp_path)
    assert said.startswith("a.jsonl, line 1: the tags ('ner_tags') are numbers, and neither the file nor a card")
    assert "data.columns.tag_names" in said
    few = WORDS.model_copy(update={"tag_names": NAMES[:3]})
    assert fault(lambda: tags_of(path, few), tmp_path) == "a.jsonl, line 2: tag 3 has no name; there are 3, from 0 on"
    assert "tag_names" not in ColumnsConfig().model_dump(), "keys of runs stay"
    rows = [{**row, "ner_tags": " ".join(map(str, row["ner_tags"]))} for row in ROWS]  # type: ignore[arg-type]
    assert tags_of(jsonl(tmp_path / "b.jsonl", *rows), WORDS.model_copy(update={"tag_names": NAMES})) == READ


@pytest.mark.parametrize(
    ("card", "content"),
    [
        ("README.md", CARD),
        ("dataset_infos.json", json.dumps({"default": {"features": {"ner_tags": {"feature": LABEL, "length": -1}}}})),
        ("dataset_info.json", json.dumps({"features": {"ner_tags": [LABEL]}})),
    ],
)
def test_names_of_tags_from_the_card(tmp_path: Path, card: str, content: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "train.jsonl", *ROWS)
    (tmp_path / card).write_text(content)
    for source in (str(folder), f"{folder}/train.jsonl", f"{folder}/*", str(tmp_path)):
        columns = with_tag_names(WORDS, source, None)
        assert columns.tag_names == NAMES
        assert tags_of(source, columns) == READ
    given_names = WORDS.model_copy(update={"tag_names": ["O"]})
    assert with_tag_names(given_names, str(folder), None) is given_names


@pytest.mark.parametrize("content", ["", "---\n: [\n---", "no card", "---\n- a\n---\n", "\udcff"])
def test_a_card_that_says_nothing(tmp_path: Path, content: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    (tmp_path / "README.md").write_text(content, errors="surrogateescape")
    assert with_tag_names(WORDS, path, None) is WORDS


def test_subsets_whose_names_differ_say_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    infos = {name: {"features": {"ner_tags": {"feature": {"names": names}}}} for name, names in
             {"a": NAMES, "b": NAMES[::-1]}.items()}  # fmt: skip
    (tmp_path / "dataset_infos.json").write_text(json.dumps(infos))
    assert with_tag_names(WORDS, path, None) is WORDS


def test_names_of_tags_from_a_file_that_datasets_wrote(tmp_path: Path) -> None:
    import datasets

    label = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    strings = datasets.Value("string")
    features = datasets.Features(
        {"id": strings, "intent": strings, "tokens": datasets.Sequence(strings), "ner_tags": label}
    )
    written = datasets.Dataset.from_list(ROWS, features=features)
    written.to_parquet(str(tmp_path / "a.parquet"))
    assert tags_of(str(tmp_path / "a.parquet"), WORDS) == READ
    assert tags_of(HubConfig(hub=str(tmp_path)), WORDS) == READ


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["a", " ", "b"], "word 2 of 'tokens' is empty"),
        (["", "a", "b"], "word 1 of 'tokens' is empty"),
        ([], "the text ('tokens') is empty"),
        ([1, 2, 3], "'tokens' is [1, 2, 3], where a text is needed"),
        ([{"role": "user"}], "'tokens' is [{'role': 'user'}], where a text is needed"),
        (["a", "b"], "3 tags for 2 words"),
    ],
)
def test_lists_of_words_that_are_wrong(tmp_path: Path, tokens: list[Any], sentence: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"intent": "x", "tokens": tokens, "ner_tags": ["O", "O", "O"]})
    assert sentence in fault(lambda: tags_of(path, WORDS), tmp_path)


def test_the_schema_s_error_names_the_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[0], {"tokens": ["a"], "ner_tags": ["O"]})
    columns = WORDS.model_copy(update={"tag_names": NAMES})
    rows = (row for _, row in read_rows_of(path, None, columns))
    said = fault(lambda: infer_schema(SlotsConfig(kind="slots"), rows, columns), tmp_path)
    assert said == "a.jsonl, line 2: it has tags ('ner_tags') but no intent ('intent')"


# --- treebanks


MRG = """*x*x*x*x*
( (S
    (NP-SBJ-1 (NNS cats) )
    (VP (VBP like)
      (S
        (NP-SBJ (-NONE- *-1) )
        (VP (TO to) (VP (VB sleep) (-LRB- -LRB-))))) ))

(TOP (S (NP (DT a) (NN cat)) (VP (VBD sat)))) (TOP (S (NP (DT a)
 (NN dog)) (VP (VBD ran))))
"""


@pytest.mark.parametrize("name", ["a.mrg", "a.ptb", "a.mrg.gz"])
def test_treebank_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(MRG.encode()) if name.endswith(".gz") else MRG.encode())
    columns = ColumnsConfig()
    rows = list(read_rows_of(str(path), None, columns))
    assert [place.rpartition(" ")[2] for place, _ in rows] == ["2", "9", "9"]
    problem = problem_for(infer_schema(ConstituencyConfig(kind="constituency"), (row for _, row in rows), columns))
    found = list(read_examples(str(path), columns, problem, gold="required"))
    assert [(one.text, str(one.label).partition("\t")[0]) for one in found] == [
        ("cats like to sleep (", "(S (NP cats) (VP like (S (VP to (VP sleep -LRB-)))))"),
        ("a cat sat", "(S (NP a cat) (VP sat))"),
        ("a dog ran", "(S (NP a dog) (VP ran))"),
    ]


def test_a_treebank_file_with_a_bad_tree(tmp_path: Path) -> None:
    path = tmp_path / "a.mrg"
    path.write_bytes(b"(S (NP ) (V b))\n(S (N a) (V b))\n) (S (N \xff) (V b))\n(S (N a)\n")
    problem = problem_for(ConstituencyConfig(kind="constituency", labels=["S"]))
    found = list(read_pool(str(path), ColumnsConfig(), problem))
    assert [one.reason if isinstance(one, BadRow) else one.text for one in found] == [
        "not-a-tree", "a b", "not-a-tree", "\\xff b", "not-a-tree",
    ]  # fmt: skip
    assert isinstance(found[-1], BadRow)
    assert found[-1].detail == f"{path}, line 4: no tree: 1 bracket(s) are not closed"


# --- CSV


TEXTS = [{"id": "1", "text": "a, b; c"}, {"id": "2", "text": "d\ne"}]


@pytest.mark.parametrize("sign", [",", "\t", ";", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_dialects(tmp_path: Path, sign: str, start: str, newline: str) -> None:
    path = tmp_path / "a.csv"
    body = f'id{sign}"text"{newline}1{sign}"a, b; c"{newline}2{sign}"d\ne"{newline}'
    path.write_bytes((start + body).encode())
    assert [row for _, row in read_rows_of(str(path))] == TEXTS


def test_csv_delimiters_that_are_told_or_could_be_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\ttext, raw\n1\ta,b\n")
    assert [row for _, row in read_rows_of(str(path))] == [{"id": "1", "text, raw": "a,b"}]
    path = tmp_path / "a.csv"
    path.write_text("sep=;\nid;text\n1;a\n")
    assert list(read_rows_of(str(path))) == [(f"{path}, line 3", {"id": "1", "text": "a"})]
    path.write_text("text\na\n")
    assert [row for _, row in read_rows_of(str(path))] == [{"text": "a"}]
    path.write_text('"a;b;c",text\n1,2\n')
    assert [row for _, row in read_rows_of(str(path))] == [{"a;b;c": "1", "text": "2"}]
    path.write_bytes(b"id,text\r1,a\r")
    assert "its lines end in CR alone" in fault(lambda: list(read_rows_of(str(path))), tmp_path)


def test_long_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id,text\n1,{'a ' * 300_000}\n")
    ((_, row),) = read_rows_of(str(path))
    assert len(row["text"]) == 600_000


# --- bytes


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


@pytest.mark.parametrize("end", list(COMPRESSED))
def test_compressed_files_of_several_members(tmp_path: Path, end: str) -> None:
    pack = COMPRESSED[end]
    rows = [{"id": str(n), "text": f"text {n}"} for n in range(2000)]
    one, two = (b"".join(json.dumps(row).encode() + b"\n" for row in part) for part in (rows[:1000], rows[1000:]))
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(pack(one) + pack(two))
    assert [row for _, row in read_rows_of(str(path))] == rows
    (tmp_path / f"b.csv{end}").write_bytes(pack(b"id;text\n1;a\n"))
    assert [row for _, row in read_rows_of(f"{tmp_path}/b.csv{end}")] == [{"id": "1", "text": "a"}]


@pytest.mark.parametrize("end", list(COMPRESSED))
def test_compressed_files_that_are_cut_or_none(tmp_path: Path, end: str) -> None:
    path, pack = tmp_path / f"a.jsonl{end}", COMPRESSED[end]
    data = b"".join(json.dumps({"text": f"text {n * 7919 % 10007}"}).encode() + b"\n" for n in range(50_000))
    for kept in (pack(data)[: len(pack(data)) // 2], pack(data)[:-2]):
        path.write_bytes(kept)
        said = fault(lambda: list(read_rows_of(str(path))), tmp_path)
        assert re.match(r"a.jsonl\.\w+: the file is cut in the middle; (line \d+ is the last good one|not one)", said)
    path.write_bytes(b'{"text": "plain"}\n')
    kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[end]
    said = fault(lambda: list(read_rows_of(str(path))), tmp_path)
    assert said == f"a.jsonl{end}: its name ends in {end}, but it is not {kind} data"
    plain = tmp_path / "b.jsonl"
    plain.write_bytes(pack(data))
    assert f"b.jsonl: this is {kind} data; its name must end in {end}" == fault(
        lambda: list(read_rows_of(str(plain))), tmp_path
    )


def test_compressed_files_in_a_bucket(s3_moto: tuple[str, str]) -> None:
    endpoint_url, bucket = s3_moto
    client, prefix = boto3.client("s3", endpoint_url=endpoint_url), uuid4().hex
    for end, pack in COMPRESSED.items():
        client.put_object(
            Bucket=bucket, Key=f"{prefix}/a{end[1:]}.jsonl{end}", Body=pack(b'{"ner_tags": [0]}\n' * 5000)
        )
    client.put_object(Bucket=bucket, Key=f"{prefix}/README.md", Body=CARD.encode())
    address = f"s3://{bucket}/{prefix}"
    assert len(list(read_rows_of(address, endpoint_url))) == 20_000
    assert with_tag_names(WORDS, address, endpoint_url).tag_names == NAMES


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), "this is UTF-16; save it as UTF-8"),
        ("id,text\n1,a\n".encode("utf-16-le"), "this is UTF-16 without a byte order mark; save it as UTF-8"),
        ("id,text\n1,a\n".encode("utf-16-be"), "this is UTF-16 without a byte order mark; save it as UTF-8"),
        (
            b"PK\x03\x04rest\n",
            "this is a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8",
        ),
        (b"PAR1rest\n", "this is a Parquet file; its name must end in .parquet"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.conll"])
def test_files_that_are_something_else(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert fault(lambda: list(read_rows_of(str(tmp_path / name))), tmp_path) == f"{name}: {told}"


def test_latin_1_is_named_with_byte_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("id,text\n1,ok\n2,naïve\n".encode("latin-1"))
    assert fault(lambda: list(read_rows_of(str(path))), tmp_path) == (
        "a.csv, line 3: not UTF-8 (byte 0xef at position 5); save the file as UTF-8; it may be Latin-1 (Windows-1252), "
        "where this byte is 'ï'"
    )


# --- Parquet and folders


def test_parquet_columns_of_every_kind(tmp_path: Path) -> None:
    text = pa.array(["a", "b", "a"]).dictionary_encode()
    table = pa.table(
        {
            "question": pa.StructArray.from_arrays([text.cast(pa.string()), pa.array([1, 2, 3])], ["text", "id"]),
            "label": text,
            "large": pa.array(["x", "y", "z"], pa.large_string()),
            "words": pa.array([["a", "b"], ["c"], ["d"]], pa.large_list(pa.large_string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    columns = ColumnsConfig(id="question.id", text="question.text", label="label")
    problem: Any = problem_for(infer_schema(*classes_of(tmp_path / "a.parquet", columns)))
    found = list(read_examples(str(tmp_path / "a.parquet"), columns, problem, gold="required"))
    assert found == [Example("1", "a", "a"), Example("2", "b", "b"), Example("3", "a", "a")]
    for text_column, texts in (("large", ["x", "y", "z"]), ("words", ["a b", "c", "d"])):
        columns = ColumnsConfig(text=text_column)
        read = read_examples(str(tmp_path / "a.parquet"), columns, problem, gold="required")
        assert [one.text for one in read] == texts


def classes_of(path: Path, columns: ColumnsConfig) -> Any:
    from retort.config import ClassificationConfig

    return (
        ClassificationConfig(kind="classification"),
        [row for _, row in read_rows_of(str(path), None, columns)],
        columns,
    )


def test_a_path_within_json(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"q": {"text": "a"}}, {"q.text": "b"}, {"q": None}, {"q": "x"})
    good, other, null, none = read_pool(path, ColumnsConfig(text="q.text"), SLOTS)
    assert isinstance(good, Example)
    assert isinstance(other, Example)
    assert (good.text, other.text) == ("a", "b")
    assert isinstance(null, BadRow)
    assert isinstance(none, BadRow)
    assert (null.reason, none.reason) == ("null-text", "no-text")


def test_documents_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {"id": "1", "text": "a"})
    for name in ("README.md", "readme", "LICENSE", "LICENSE.txt", "license.md", "CITATION.cff", "NOTICE", "_SUCCESS",
                 ".gitattributes", "dataset_infos.json", "dataset_dict.json", "state.json", "load.py", "croissant.json",
                 "data.sha256", "sub/README.rst"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no data")
    for source in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/**"):
        assert [row for _, row in read_rows_of(source)] == [{"id": "1", "text": "a"}]
    (tmp_path / "more.npz").touch()
    said = fault(lambda: list(read_rows_of(str(tmp_path))), tmp_path)
    assert said.startswith("more.npz: the extension says no format that can be read; allowed: .jsonl, ")


PIECES = st.sampled_from(
    (
        b'a@O@B-CITY@E-CITY@ @\t@\n@\r\n@\r@#@# id: 1@# intent: x@(@)@(S @-NONE- @-DOCSTART-@"@,@;@id;text\n@sep=;\n@'
        b'sep="\n@\xff@\xe9@\x00@\xef\xbb\xbf@\xc2\xa0\xe2\x80\xa8@'
        b'{"text": ["a", "b"], "bio": [0, 1]}\n@{"text": "a", "bio": {"a": 1}, "intent": 0}\n'
    ).split(b"@")
)


@given(st.lists(PIECES, max_size=30).map(b"".join), st.sampled_from(["conll", "mrg", "csv", "tsv", "jsonl"]))
def test_any_bytes_give_rows_bad_rows_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, end: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a.{end}"
    path.write_bytes(data)
    for columns in (ColumnsConfig(), ColumnsConfig(text="2", tags="1")):
        with contextlib.suppress(DataError):
            for one in read_pool(str(path), columns, SLOTS):
                assert one.place.startswith(str(path)) if isinstance(one, BadRow) else one.text.strip()
