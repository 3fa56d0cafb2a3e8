"""Logits of other programs: every usual form is read, and what could be wrong is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from logits_io import LogitsAnalyzer
from logits_io.comparison import compare_logits
from logits_io.schema import read_schema

N, C = 12, 4
RANDOM = np.random.RandomState(0)
Q = RANDOM.normal(0, 3, (N, C)).astype(np.float32)
F = (Q + RANDOM.normal(0, 1, (N, C))).astype(np.float32)
Y = np.arange(N) % C
IDS = [f"img{i}.png" for i in range(N)]


def save(path: Path, logits: np.ndarray = Q, **columns: object) -> Path:
    """Write a table as pandas does, with further columns behind the logits."""
    frame = pd.DataFrame(logits, columns=[f"c{i}" for i in range(logits.shape[1])])
    for name, values in columns.items():
        frame[name] = values
    frame.to_csv(path, index=False)
    return path


def read(folder: Path, schema=None, q="q.csv", f="f.csv", labels=None):
    files = {"quantized": q, "fullprecision": f}
    return LogitsAnalyzer(folder).load_given(files, schema, labels)


@pytest.fixture
def pair(tmp_path) -> Path:
    """A folder with two plain files, which tests replace."""
    np.savetxt(tmp_path / "q.csv", Q, delimiter=",")
    np.savetxt(tmp_path / "f.csv", F, delimiter=",")
    return tmp_path


def is_pair(saved, labels=None, ids=None) -> bool:
    return (
        saved.logits["quantized"].tobytes() == Q.tobytes()
        and saved.logits["fullprecision"].tobytes() == F.tobytes()
        and (None if saved.targets is None else saved.targets.tolist()) == labels
        and (None if saved.ids is None else list(saved.ids)) == ids
    )


def spaces(folder):
    np.savetxt(folder / "q.csv", Q)
    np.savetxt(folder / "f.csv", F, header="a b c d")


def numbered(folder):
    for name, values in (("q.csv", Q), ("f.csv", F)):
        pd.DataFrame(values).to_csv(folder / name, index=False)


def indexed(folder):
    for name, values in (("q.csv", Q), ("f.csv", F)):
        pd.DataFrame(values).to_csv(folder / name)


def labelled(folder):
    save(folder / "q.csv", Q, label=Y, image=IDS)
    save(folder / "f.csv", F, image=IDS)


def shuffled(folder):
    save(folder / "q.csv", Q, image=IDS)
    save(folder / "f.csv", F[::-1], image=IDS[::-1], target=Y[::-1])


def semicolons(folder):
    np.savetxt(folder / "q.csv", Q, delimiter=";")
    (folder / "f.csv").write_text(
        "\ufeff" + "\r\n".join(";".join(map(repr, row)) for row in F.tolist()) + "\r\n",
        encoding="utf-8",
    )


FORMS: dict[str, tuple[Callable[[Path], object], dict]] = {
    "plain": (lambda folder: None, {}),
    "spaces and a comment": (spaces, {}),
    "semicolons, a byte order mark and CR LF": (semicolons, {}),
    "numbers as names": (numbered, {}),
    "an index of pandas": (indexed, {"ids": [str(i) for i in range(N)]}),
    "labels and ids": (labelled, {"labels": Y.tolist(), "ids": IDS}),
    "ids in another order": (shuffled, {"labels": Y.tolist(), "ids": IDS}),
}


@pytest.mark.parametrize("form", FORMS)
def test_usual_forms_of_csv_are_read_by_default(form, pair):
    make, expected = FORMS[form]
    make(pair)
    assert is_pair(read(pair), **expected)


def test_a_schema_says_which_columns_are_which(pair):
    for name, values in (("q.csv", Q), ("f.csv", F)):
        frame = pd.DataFrame({"who": IDS, "y": Y, "t": np.arange(N) * 1.5})
        frame[[f"logit_{i}" for i in range(C)]] = values
        frame.to_csv(pair / name, index=False)
    expected = {"labels": Y.tolist(), "ids": IDS}
    for logits in (["logit_*"], ["3:"], ["3:7"], ["logit_0", "4", "5:7"], "3:7"):
        schema = {"logits": logits, "labels": "y", "ids": "who"}
        assert is_pair(read(pair, schema), **expected)
    (pair / "s.yaml").write_text("logits: ['logit_*']\nlabels: y\nids: 0\n")
    assert is_pair(read(pair, read_schema([str(pair / "s.yaml")])), **expected)
    words = ["logits=logit_0,4,5:7", "labels=y", "ids=who"]
    assert is_pair(read(pair, read_schema(words)), **expected)


def test_one_file_may_hold_both(pair):
    frame = pd.DataFrame(np.hstack([Q, F]))
    frame.to_csv(pair / "both.csv", index=False, header=False)
    schema = {"quantized": "0:4", "fullprecision": "4:8"}
    assert is_pair(read(pair, schema, "both.csv", "both.csv"))
    np.savez(pair / "both.npz", quantized=Q, fullprecision=F, labels=Y, image_ids=IDS)
    assert is_pair(read(pair, None, "both.npz", "both.npz"), Y.tolist(), IDS)


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
def test_arrays_of_numpy_are_read(pair, dtype):
    np.save(pair / "q.npy", np.asfortranarray(Q.astype(dtype)))
    np.savez(pair / "f.npz", F.astype(dtype))
    np.savez(pair / "g.npz", logits=F.astype(dtype), other=Q, labels=Y)
    np.save(pair / "y.npy", Y.astype(np.uint8))
    assert is_pair(read(pair, None, "q.npy", "f.npz"))
    assert is_pair(read(pair, None, "q.npy", "g.npz", "y.npy"), Y.tolist())


@pytest.mark.parametrize("name", ["y.txt", "y.csv", "y.npz", "z.npz", "l.csv"])
def test_labels_may_be_in_a_file_of_their_own(pair, name):
    np.savetxt(pair / "y.txt", Y)
    pd.DataFrame({"y": Y}).to_csv(pair / "y.csv", index=False)
    np.savez(pair / "y.npz", Y)
    np.savez(pair / "z.npz", targets=Y, more=Q)
    pd.DataFrame({"image": IDS, "label": Y}).to_csv(pair / "l.csv", index=False)
    assert is_pair(read(pair, labels=name), Y.tolist())


def test_labels_with_ids_are_put_in_order(pair, caplog):
    save(pair / "q.csv", Q, image=IDS)
    save(pair / "f.csv", F)
    pd.DataFrame({"image": IDS[::-1], "label": Y[::-1]}).to_csv(pair / "l.csv", index=False)
    np.savez(pair / "l.npz", ids=IDS[::-1], labels=Y[::-1])
    for name in ("l.csv", "l.npz"):
        assert is_pair(read(pair, labels=name), Y.tolist(), IDS)
    assert "q.csv has ids and" in caplog.text and "f.csv has none: rows are taken" in caplog.text
    pd.DataFrame({"image": ["x", *IDS[1:]], "label": Y}).to_csv(pair / "l.csv", index=False)
    with pytest.raises(InputError, match=r"l.csv: ids must be those of .*q.csv, got 'x' in row 1"):
        read(pair, labels="l.csv")


def test_a_folder_holds_parts_in_natural_order(pair):
    for kind, values in (("q", Q), ("f", F)):
        (pair / kind).mkdir()
        for part in range(N):  # part2 before part10
            np.savetxt(pair / kind / f"part{part}.csv", values[part : part + 1], delimiter=",")
    (pair / "q" / "notes.md").write_text("mine")
    assert is_pair(read(pair, None, "q", "f"))
    np.savetxt(pair / "f" / "part3.csv", F[:1, :3], delimiter=",")
    with pytest.raises(InputError, match=r"part3.csv: must have the columns of part0.csv, \(4,\)"):
        read(pair, None, "q", "f")


def test_the_logits_of_this_suite_are_read_with_a_pattern(pair):
    analyzer = LogitsAnalyzer(pair, 5)
    analyzer.save_logits_to_csv("own", "logits_x", {"quantized": Q, "fullprecision": F}, Y, {})
    with pytest.raises(InputError, match=r"--schema files='\*_quantized\*' chooses one"):
        read(pair, None, "own", "own")
    assert is_pair(read(pair, {"files": "*_quantized_chunk*"}, "own", "f.csv"))


def test_probabilities_are_refused_or_their_logarithms_taken(pair):
    p = np.exp(Q) / np.exp(Q).sum(axis=1, keepdims=True)
    p[0] = [1, 0, 0, 0]
    np.savetxt(pair / "q.csv", p, delimiter=",")
    with pytest.raises(InputError, match=r"q.csv: must hold logits, got probabilities .* sum to 1"):
        read(pair)
    np.savetxt(pair / "f.csv", p[::-1], delimiter=",")
    logits = read(pair, {"values": "probabilities"}).logits["quantized"]
    np.testing.assert_allclose(np.exp(logits), p, rtol=1e-6, atol=1e-30)
    np.savetxt(pair / "f.csv", 2 * p[::-1], delimiter=",")
    with pytest.raises(InputError, match=r"f.csv: probabilities must lie in \[0, 1\]"):
        read(pair, {"values": "probabilities"})


def text(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "q.csv").write_text(content)


def table(**columns: object) -> Callable[[Path], object]:
    return lambda folder: save(folder / "q.csv", Q, **columns)


def with_ids(f_ids: list[str]) -> Callable[[Path], object]:
    def make(folder):
        save(folder / "q.csv", Q, id=IDS)
        save(folder / "f.csv", F[: len(f_ids)], id=f_ids)

    return make


def replaced(row: int, column: int, value: object) -> Callable[[Path], object]:
    lines = [[f"{x:.9g}" for x in values] for values in Q.tolist()]
    lines[row][column] = str(value)
    return text("\n".join(map(",".join, lines)))


def headerless(extra: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: np.savetxt(
        folder / "q.csv", np.column_stack([extra, Q]), delimiter=",", fmt="%.9g"
    )


BAD: dict[str, tuple[Callable[[Path], object], dict | None, str]] = {
    "rows": (
        lambda folder: np.savetxt(folder / "f.csv", F[1:], delimiter=","),
        None,
        "f.csv: must hold 12 rows of 4 classes as .*q.csv, got 11 rows of 4 classes",
    ),
    "classes": (
        lambda folder: np.savetxt(folder / "f.csv", F[:, 1:], delimiter=","),
        None,
        "f.csv: must hold 12 rows of 4 classes as .*q.csv, got 12 rows of 3 classes",
    ),
    "nan": (replaced(2, 1, "nan"), None, "column 1 must hold finite numbers, got 'nan' in row 3"),
    "inf": (replaced(2, 1, "inf"), None, "column 1 must hold finite numbers, got inf in row 3"),
    "too large": (replaced(2, 1, "1e39"), None, "logits must be finite in float32, .* in row 3"),
    "text": (replaced(4, 0, "?"), None, "column 0 must hold finite numbers, got '\\?' in row 5"),
    "text first": (replaced(0, 0, "?"), None, "first line must be names or numbers, got '\\?'"),
    "names or numbers": (text("3,7\n1.5,2\n"), None, "first line may be numbers or names, got 3,7"),
    "empty cell": (replaced(3, 3, ""), None, "column 3 must hold .* got an empty cell in row 4"),
    "short row": (text("1.5,2\n1.5\n3.5,4\n"), None, "column 1 must hold .* empty cell in row 2"),
    "long row": (text("1.5,2\n1.5,2,3\n"), None, "q.csv: must be a CSV file of logits, got: "),
    "decimal commas": (text("1,5;2,5\n3,5;4,5\n"), None, "column '1,5' must hold finite numbers"),
    "empty": (text(""), None, "q.csv: must be a CSV file of logits, got an empty first line"),
    "header alone": (text("a,b\n"), None, "q.csv: must be a CSV file of logits, got: "),
    "bytes": (
        lambda folder: (folder / "q.csv").write_bytes(b"\xff\xfe\x00,\x01"),
        None,
        "q.csv: must be a CSV file of logits, got: ",
    ),
    "one column": (text("1.5\n2.5\n"), None, r"logits must be of shape \(samples, 2 or more\)"),
    "truth values": (table(flag=[True] * N), None, "column 'flag' must hold finite numbers"),
    "a name": (table(cat=IDS), None, "column 'cat' must hold finite numbers, got 'img0.png' in ro"),
    "two labels": (table(label=Y, target=Y), None, "schema must say which column is which, got 'l"),
    "row numbers": (headerless(np.arange(N)), None, "column 0 of the logits looks like row numb"),
    "labels": (headerless(Y), None, "column 0 of the logits looks like labels; --schema labels=0"),
    "labels from 1": (table(label=Y + 1), None, "labels must be whole numbers from 0 to 3, got 4"),
    "other ids": (with_ids([*IDS[:-1], "x"]), None, "f.csv: ids must be those of .*, got 'x' in r"),
    "an id twice": (with_ids([*IDS[:-1], IDS[0]]), None, "f.csv: ids must be those of "),
    "unknown key": (table(), {"logit": "c0"}, "key of schema must be a known name, got 'logit'"),
    "unknown column": (table(), {"logits": "d0"}, "column in schema of .*got 'd0'; closest: c0"),
    "unknown labels": (table(), {"labels": "y"}, "labels in schema must be in a file, got 'y'"),
    "too far": (table(), {"logits": "2:9"}, "2:9 in schema must be of 4 columns"),
    "twice": (table(), {"logits": ["c0", "0"]}, "schema must name each column of the logits once"),
    "no list": (table(), {"logits": {"a": 1}}, "logits in schema must be a name or number, got"),
    "no truth": (table(), {"header": "maybe"}, "header in schema must be a known name, got 'maybe"),
    "no letter": (table(), {"delimiter": ",,"}, "delimiter in schema must be one letter, got ',,'"),
    "no names": (
        table(),
        {"files": "../*"},
        "files in schema must be a pattern of names, got '../",
    ),
    "no values": (table(), {"values": "odds"}, "values in schema must be a known name, got 'odds'"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_could_be_wrong_is_refused(what, pair):
    make, schema, text = BAD[what]
    make(pair)
    with pytest.raises(InputError, match=text) as caught:
        read(pair, schema)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_logits_are_refused(pair):
    np.savez(pair / "two.npz", a=Q, b=F)
    np.savez(pair / "flat.npz", logits=Q.ravel())
    np.savez(pair / "text.npz", logits=Q.astype(str))
    np.savez(pair / "object.npz", logits=np.array([{}, {}], dtype=object))
    np.savez(pair / "short.npz", logits=Q, labels=Y[1:])
    (pair / "cut.npy").write_bytes((pair / "q.csv").read_bytes())
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)}
    with (pair / "claims.npy").open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
    for name, wanted in (
        ("two.npz", r"must hold an array 'logits', got a, b \(--schema quantized=NAME\)"),
        ("flat.npz", r"logits must be of shape \(samples, 2 or more\), got \(48,\)"),
        ("text.npz", "logits must be numbers, got <U"),
        ("object.npz", "must be a whole npz file of arrays, got: arrays of type object"),
        ("short.npz", r"labels must be of shape \(12,\), got \(11,\)"),
        ("cut.npy", "must be a whole npy file, got: another kind of file"),
        ("claims.npy", "must be a whole npy file, got: "),
        ("nothing.csv", "must be an existing file or folder, got nothing"),
        ("two.pt", "must be an existing file or folder, got nothing"),
    ):
        with pytest.raises(InputError, match=f"{name}: {wanted}"):
            read(pair, None, name)
    (pair / "two.pt").write_text("")
    with pytest.raises(InputError, match=r"two.pt: must end in \.csv, .*, got '\.pt'"):
        read(pair, None, "two.pt")
    with pytest.raises(InputError, match="fullprecision logits must differ from quantized ones"):
        read(pair, None, "q.csv", "q.csv")
    with pytest.raises(InputError, match=r"labels in schema must be left out for .*q.npy"):
        np.save(pair / "q.npy", Q)
        read(pair, {"labels": "y"}, "q.npy")
    with pytest.raises(InputError, match=r"f.csv: labels must be those of .*, got 1 instead of 0"):
        save(pair / "q.csv", Q, label=Y)
        save(pair / "f.csv", F, label=(Y + 1) % C)
        read(pair)


def test_schema_words_that_are_none_are_refused(tmp_path):
    for words, wanted in (
        (["a=1", "b"], "schema must be one file, or words KEY=VALUE, got 'b'"),
        (["ids=a", "ids=b"], "schema must give each key once, got ids again"),
        ([str(tmp_path / "no.yaml")], "schema must be a readable YAML file, got .*no.yaml"),
        (["labels="], "labels in schema must be a name or number, got ''"),
    ):
        with pytest.raises(InputError, match=wanted):
            read_schema(words)


def test_without_labels_the_comparison_has_what_needs_none(pair):
    saved = read(pair)
    without = compare_logits(saved.logits, None)
    overall = compare_logits(saved.logits, Y).overall
    names = [name for name in without.overall if name not in ("logits", "samples")]
    assert {name.removesuffix("_low").removesuffix("_high") for name in names} == {
        "agreement_pct",
        "kl_to_fp",
        "mse_to_fp",
        "cosine_to_fp",
    }
    pd.testing.assert_frame_equal(without.overall, overall[list(without.overall)])
    assert without.per_class.empty
