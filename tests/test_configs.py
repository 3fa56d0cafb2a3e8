"""The reader of configuration files: keys given once, texts that unfold refused at once."""

from __future__ import annotations

import time

import pytest

from common.configs import MAX_BYTES, parse_json, parse_yaml, read_config
from common.errors import InputError
from common.limited_yaml import MAX_NODES


def laughs(template: str) -> str:
    """Nine lines, each of nine aliases of the line before."""
    lines = ["a: &a {k: 1}"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} " + template.format(",".join([f"*{before}"] * 9)))
    return "\n".join(lines)


TOO_MUCH = {
    "aliases": (laughs("[{}]"), f"more than {MAX_NODES} values, aliases counted"),
    "merged aliases": (laughs("{{<<: [{}]}}"), f"more than {MAX_NODES} values, aliases counted"),
    "values": ("- 1\n" * 200_000, f"more than {MAX_NODES} values"),
    "flow levels": ("[" * 900_000, "more than 32 levels, line 1"),
    "mapping levels": ("{a: " * 200_000, "more than 32 levels, line 1"),
    "sequence levels": ("- " * 300_000, "more than 32 levels, line 1"),
    "block levels": (
        "".join("  " * n + "a:\n" for n in range(900)),
        "more than 32 levels, line 32",
    ),
    "bytes": ("a: " + "x" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
    "itself": ("a: &a [*a]", "alias *a stands for itself"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_texts_that_unfold_are_refused_in_seconds(what, tmp_path):
    text, reason = TOO_MUCH[what]
    (tmp_path / "c.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_config(tmp_path / "c.yaml", "config")
    assert time.perf_counter() - start < 10
    path = tmp_path / "c.yaml"
    assert str(caught.value).startswith(
        f"config must be a readable YAML file, got {path}: {reason}"
    )
    assert "\n" not in str(caught.value)


def test_deep_and_large_json_is_refused(tmp_path):
    path = tmp_path / "c.json"
    for text in ("[" * 500_000, '{"a": "' + "x" * MAX_BYTES + '"}', '{"a": ' * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="config must be a readable JSON file, got"):
            read_config(path, "config")


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    (tmp_path / "c.yaml").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"more than {MAX_BYTES} bytes"):
        read_config(tmp_path / "c.yaml", "config")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' must be given once, got it in line 3"),
        ("o: {x: {k: 1, k: 1}}", "key 'k' must be given once, got it in line 1"),
        ("- {on: 1,\n  yes: 2}", "key True must be given once, got it in line 2"),
        ("1: a\n0x1: b", "key 1 must be given once, got it in line 2"),
        ("a: *b", "found undefined alias 'b', line 1"),
        ("? [a]\n: 1", "found unhashable key, line 1"),
        ("a: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("a: !!bool foo", "a value that its tag does not fit (KeyError('foo'))"),
        ("!!bool foo: 1", "a value that its tag does not fit (KeyError('foo'))"),
        ('a: !!int ""', "a value that its tag does not fit (IndexError("),
        ("a: !!timestamp foo", "a value that its tag does not fit (AttributeError("),
    ],
)
def test_keys_once_and_one_line(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(reason)


def test_honest_anchors_and_merges_are_read():
    text = (
        "base: &b {x: 1, y: [1, 2]}\nmine: &m {<<: *b, x: 2}\nlast:\n  <<: *m\n  <<: *b\n  z: *b\n"
    )
    base = {"x": 1, "y": [1, 2]}
    assert parse_yaml(text) == {
        "base": base,
        "mine": {**base, "x": 2},
        "last": {**base, "z": base},
    }
    assert parse_yaml("") is None


def test_json_keys_once():
    assert parse_json('{"a": {"b": 1}, "b": 2}') == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match="key 'b' must be given once, got it again"):
        parse_json('{"a": {"b": 1, "b": 1}}')


def test_an_empty_file_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert read_config(path, "config") == {}
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert read_config(path, "config") == {"seed": 3}
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="config must be a readable YAML file"):
        read_config(path, "config")
