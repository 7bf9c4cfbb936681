"""Keys: their form, and that a typo is told from a key that nobody made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.key_text import KEY_KINDS, KeyKind, hash_key, is_well_formed, make_key

KINDS = st.sampled_from(KEY_KINDS)
SECRETS = st.binary(min_size=32, max_size=32)


@given(KINDS, SECRETS)
def test_a_made_key_is_well_formed(kind: KeyKind, secret: bytes) -> None:
    key = make_key(kind, random_bytes=lambda size: secret[:size])
    assert key.startswith(f"aa_{kind}_")
    assert len(key) == len(f"aa_{kind}_") + 43 + 6
    assert is_well_formed(key)


@given(KINDS, SECRETS, st.data())
def test_one_wrong_character_is_noticed(kind: KeyKind, secret: bytes, data: st.DataObject) -> None:
    key = make_key(kind, random_bytes=lambda size: secret[:size])
    at = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.characters().filter(lambda character: character != key[at]))
    assert not is_well_formed(key[:at] + other + key[at + 1 :])


@given(KINDS, st.integers(1, 20))
def test_a_key_that_was_cut_off_or_grew_is_noticed(kind: KeyKind, cut: int) -> None:
    key = make_key(kind)
    assert not is_well_formed(key[:-cut])
    assert not is_well_formed(key + "0" * cut)
    assert not is_well_formed(key + "\n")


@pytest.mark.parametrize("text", ["", "aa_", "aa_other_" + "A" * 43 + "000000", "Bearer aa_write_"])
def test_other_text_is_no_key(text: str) -> None:
    assert not is_well_formed(text)


def test_every_key_is_another_and_has_its_own_hash() -> None:
    keys = {make_key("write") for _ in range(100)}
    assert len(keys) == 100
    assert len({hash_key(key) for key in keys}) == 100
    assert all(len(hash_key(key)) == 32 for key in keys)


def test_any_text_has_a_hash() -> None:
    assert hash_key("\ud800") != hash_key("?")
