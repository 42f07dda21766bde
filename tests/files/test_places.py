"""Passwords stay with those who gave them: no name, message or record shows them, whatever signs they have."""

from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stcl.cli import main
from stcl.commands.predict.run import check_names
from stcl.data.video import name_of, open_source
from stcl.errors import DataError, SettingError
from stcl.files.places import local_path, shown_place, shown_text, shown_word
from stcl.training.provenance import describe_run

SCHEMES = ("rtsp", "RTSP", "rtmp2", "rtsp+x", "http", "HttpS", "x-y.z")
SIGNS = "/@:#?&=;%+,!$*()[]{}|^~`<>\\-_. '\""

pieces = st.text("abcdefgh", min_size=5, max_size=5).map(lambda text: f"S{text}")
"""What a password is made of between its signs; nothing else in an address looks like it."""

passwords = st.lists(st.one_of(pieces, st.text(SIGNS, min_size=1, max_size=3)), min_size=1, max_size=5)


@st.composite
def addresses(draw: st.DrawFn) -> tuple[str, list[str]]:
    """An address with a password, and the pieces of that."""
    parts = [draw(pieces), *draw(passwords)]
    password = "".join(parts)
    secret = draw(st.sampled_from((password, quote(password), quote(password, safe=""))))
    scheme, host = draw(st.sampled_from(SCHEMES)), draw(st.sampled_from(("10.0.0.7:554", "cam.example", "[::1]:80")))
    form = draw(
        st.sampled_from(
            (
                "{scheme}://admin:{secret}@{host}/live/1",
                "{scheme}://{secret}@{host}",
                "{scheme}://:{secret}@{host}/a@b",
                "{scheme}://{host}/video?user=admin&pwd={secret}",
                "{scheme}://{host}/video?user=a@b&pwd={secret}&x=1",
                "{scheme}://{host}/user=admin&password={secret}&channel=1.sdp",
                "{scheme}://{host}/live#{secret}",
                "{scheme}://admin:{secret}@{host}/live?pwd={secret}",
                "{scheme}:/admin:{secret}@{host}/live",
                "admin:{secret}@{host}/live",
            )
        )
    )
    return form.format(scheme=scheme, secret=secret, host=host), [part for part in parts if part.startswith("S")]


def check(secrets: list[str], *texts: object) -> None:
    for text in texts:
        assert not [secret for secret in secrets if secret in str(text)], text


@settings(max_examples=150, deadline=None)
@given(addresses())
@example(("rtsp://me:Saaaaa@10.0.0.7/Sbbbbb@10.0.0.8/x", ["Saaaaa", "Sbbbbb"]))
@example(("http://h/v?pwd=Saaaaa@Sbbbbb", ["Saaaaa", "Sbbbbb"]))
@example(("rtsp://me:Saaaaa%40h/x", ["Saaaaa"]))
def test_no_name_of_a_place_shows_a_password(address_and_secrets):
    address, secrets = address_and_secrets
    check(secrets, shown_place(address), shown_word(address), shown_word(f"--target.root={address}"))
    check(secrets, shown_text(f"Root /here/{address} of '{address}' is not there.", ["data", f"--root={address}"]))
    if local_path(address) is None:
        check(secrets, name_of(address))
        assert not {*name_of(address)} & {*"/\\:@ "}
    with pytest.raises(SettingError, match="would both go into the folder") as caught:
        check_names([address, address])
    check(secrets, caught.value)


@settings(max_examples=25, deadline=None)
@given(addresses())
def test_no_message_about_a_place_shows_a_password(address_and_secrets):
    """Addresses that nothing answers at: the library quotes them in its errors."""
    address, secrets = address_and_secrets
    for host in ("10.0.0.7:554", "cam.example", "[::1]:80"):
        address = address.replace(host, "127.0.0.1:9")
    with pytest.raises(DataError) as caught:
        open_source(address, timeout_s=0.2)
    check(secrets, caught.value)


def test_records_of_a_run_show_no_password(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/bin/stcl", "train", "a.yaml", "--title", "of http://me:S3CR3T@h/wiki?key=S3CR3T"]
    )
    assert describe_run({})["command"] == ["stcl", "train", "a.yaml", "--title", "of http://h/wiki"]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "twinstreets/stcl", "--out", "{}/run", "--target.root", "rtsp://me:S3C R3T@h/x"),
        ("train", "twinstreets/stcl", "--out", "{}/run", "--target.root=http://h/v?me=S3CR3T"),
        ("train", "http://me:S3CR3T@h/own.yaml", "--out", "{}/run"),
        ("evaluate", "http://me:S3CR3T@h/run"),
        ("pull", "https://me:S3CR3T@h/model", "--out", "{}/model"),
        ("predict", "rtsp://me:S3CR3T@h/x", "--out", "{}/out", "--checkpoint", "https://me:S3CR3T@h/a.pth?t=S3CR3T"),
        ("predict", "a.mp4", "--out", "{}/out", "--checkpoint", "a.pth", "--ids", "rtsp://me:S3CR3T@h/x"),
        ("report", "a", "--out", "{}", "--of", "rtsp://me:S3C R3T@h"),
    ],
)
def test_no_message_of_a_command_shows_a_password(tmp_path, capfd, monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["stcl", *(word.format(tmp_path) for word in words)])
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code
    said = "".join(capfd.readouterr())
    assert status == 2 and "stcl: error: " in said
    check(["S3C", "R3T"], said)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("RTSP://me:word@10.0.0.7:554/live/1", "rtsp://10.0.0.7:554/live/1"),
        ("http://cam.example/video?channel=1", "http://cam.example/video"),
        ("https://cam.example/video.mp4", "https://cam.example/video.mp4"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("data/street 12:30.mp4", "data/street 12:30.mp4"),
        ("/data/12:30/me@home.mp4", "/data/12:30/me@home.mp4"),
        ("C:/Users/me@home.mp4", "C:/Users/me@home.mp4"),
        ("me@home.mp4", "me@home.mp4"),
        ("camera:0", "camera:0"),
    ],
)
def test_what_is_no_secret_is_shown(place, shown):
    assert shown_place(place) == shown
    assert shown_text(f"'{place}' is there.") == f"'{shown}' is there."
