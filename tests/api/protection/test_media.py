"""Sixty URLs of addresses that are not public, which are never reached; and media that is too large or broken."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
import time
from dataclasses import replace
from urllib.parse import quote, unquote, urlsplit

import pytest
from vllm.connections import global_http_connection
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from duet_server.api.errors import RequestRefusedError
from duet_server.api.option_types import parse_networks
from duet_server.api.protection.media import CONNECTOR, DuetMediaConnector, MediaFetchError
from tests.api.stand_in import user
from tests.api.web import PUBLIC, LocalServer, Web, picture_bytes, serving

NAMES = {
    "public.test": [[PUBLIC]],
    "localhost": [["127.0.0.1"]],
    "internal.test": [["10.0.0.5"]],
    "127.0.0.1.nip.test": [["127.0.0.1"]],
    "metadata.internal": [["169.254.169.254"]],
    "six.test": [["::1"]],
    "mapped.test": [["::ffff:10.0.0.5"]],
    "unique-local.test": [["fd00::5"]],
    "closed-first.test": [["192.168.1.1", PUBLIC]],
    "rebinding.test": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-to-metadata.test": [[PUBLIC], ["169.254.169.254"]],
}
# fmt: off
LITERALS = [
    "127.0.0.1", "127.0.0.1:8000", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1",
    "017700000001", "0", "0.0.0.0", "127.255.255.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254",
    "2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.254.170.2", "100.64.0.1", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "[::1]",
    "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[fe80::1]", "[fd00:ec2::254]", "[ff02::1]",
]
# fmt: on
SPELLINGS = [
    "http://LocalHost/",
    "HTTP://LOCALHOST./",
    "http://user:password@127.0.0.1/",
    f"http://{PUBLIC}@127.0.0.1/",
    "http://127.0.0.1?@public.test/",
    "http://127.0.0.1#@public.test/",
    "http://0x7f.1/",
]
RESOLVED = [f"http://{name}/" for name in list(NAMES)[2:9]]
REDIRECTS = [
    f"http://public.test/{status}?to={to}"
    for status, to in (
        (301, "http://127.0.0.1/"),
        (302, "http://[::1]/"),
        (307, "http://metadata.internal/"),
        (308, "http://2852039166/"),
        (302, "http://public.test/302?to=http://10.0.0.1/"),
    )
]
REBINDING = [f"http://{name}/302?to=http://{name}:81/" for name in list(NAMES)[9:]]
SSRF = [f"http://{literal}/" for literal in LITERALS] + SPELLINGS + RESOLVED + REDIRECTS + REBINDING


def redirect(path):
    """``/302?to=URL`` redirects; every other path is a picture."""
    status, query = urlsplit(path).path.strip("/"), urlsplit(path).query
    if status.isdigit():
        return int(status), {"Location": unquote(query.removeprefix("to="))}, b""
    return 200, {}, picture_bytes()


@pytest.fixture(scope="module")
def servers():
    with serving(LocalServer(answer=redirect)) as public, serving(LocalServer()) as canary:
        yield public, canary


@pytest.fixture
def web(monkeypatch, servers):
    web = Web(*servers, {name: list(answers) for name, answers in NAMES.items()})
    web.public.seen.clear()
    web.canary.seen.clear()
    web.install(monkeypatch)
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    # aiohttp itself refuses IPv4 addresses in other notations; this removes that check, so that ours is tested.
    monkeypatch.setattr("aiohttp.connector.is_ip_address", lambda host: ":" in host)
    return web


@pytest.fixture
def options(server):
    return lambda **changes: replace(server.app.state.duet.options, **changes)


def fetch(options, url, **kwargs):
    async def fetch_and_close():
        connector = DuetMediaConnector(options, **kwargs)
        try:
            return await connector.fetch_image_async(url)
        finally:
            await (await connector.connection.get_async_client()).close()

    return asyncio.run(fetch_and_close())


def data_url(data, media_type="image/png"):
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def test_there_are_sixty_addresses():
    assert len(SSRF) == len(set(SSRF)) == 60


@pytest.mark.parametrize("url", SSRF)
def test_no_address_that_is_not_public_is_reached(url, web, options):
    with pytest.raises(RequestRefusedError, match="a URL of a public host") as refused:
        fetch(options(), url)
    assert refused.value.parameter == "image_url"
    assert not web.canary.seen


@pytest.mark.parametrize("url", SSRF)
def test_each_address_is_reached_if_all_networks_are_allowed(url, web, options):
    """Shows that the test above would fail without the check."""
    fetch(options(media_allow_networks=parse_networks("0.0.0.0/0,::/0")), url)
    assert len(web.canary.seen) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/compression/plan", "/v1/responses", "/v1/messages"])
def test_every_route_refuses_urls_that_are_not_public(path, web, client):
    url = "http://127.0.0.1/"
    parts = {
        "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        "/v1/messages": {
            "max_tokens": 5,
            "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}],
        },
    }
    body = parts.get(path, {"messages": [user({"type": "image_url", "image_url": {"url": url}}, "What is it?")]})
    answer = client.post(path, json={"model": "demo", **body})
    assert answer.status_code == 400
    assert "expected a URL of a public host" in answer.json()["error"]["message"]
    assert not web.canary.seen


@pytest.fixture(scope="module")
def store():
    """An internal store, reached over the real loopback network."""
    with serving(LocalServer("127.0.0.2", answer=redirect)) as store:
        yield store


@pytest.fixture
def opened(options, store, monkeypatch):
    """Options that allow only the store's network."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    store.seen.clear()
    store.answer = redirect
    return lambda **changes: options(media_allow_networks=parse_networks("127.0.0.2/32"), **changes)


def store_url(store, path="/"):
    return f"http://127.0.0.2:{store.port}{path}"


def test_an_allowed_network_is_reached_but_not_what_it_redirects_to(opened, store):
    assert fetch(opened(), store_url(store)).media.size == (64, 48)
    with serving(LocalServer()) as canary:
        with pytest.raises(RequestRefusedError, match="public host"):
            fetch(opened(), store_url(store, f"/302?to=http://127.0.0.1:{canary.port}/"))
        assert not canary.seen
    assert len(store.seen) == 2


def test_networks_are_checked_without_an_event_loop_too(opened, store):
    connector = DuetMediaConnector(opened())
    assert connector.fetch_image(store_url(store)).media.size == (64, 48)
    with pytest.raises(RequestRefusedError, match="public host"):
        connector.fetch_image("http://127.0.0.1:9/")
    with pytest.raises(NotImplementedError):
        connector.connection.get_text(store_url(store))  # requests that bypass the checks are disabled


def test_proxies_and_cookies_are_not_used(opened, store, monkeypatch):
    with serving(LocalServer()) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        store.answer = lambda path: (200, {"Set-Cookie": "who=1"}, picture_bytes())
        fetch(opened(), store_url(store))
        fetch(opened(), store_url(store))
        assert not proxy.seen
    assert all("Cookie" not in headers for _, headers in store.seen)


def test_allowed_domains_hold_for_redirects_too(opened, store):
    here, there = store_url(store), store_url(store).replace("127.0.0.2", "localhost")
    domains = {"allowed_media_domains": ["127.0.0.2"]}
    fetch(opened(), here, **domains)
    with pytest.raises(RequestRefusedError, match="allowed host"):
        fetch(opened(), there, **domains)
    with pytest.raises(RequestRefusedError, match="public host"):
        fetch(opened(), f"{here}302?to={there}", **domains)


def test_endless_redirects_are_refused(opened, store):
    store.answer = lambda path: (302, {"Location": "/again"}, b"")
    with pytest.raises(MediaFetchError):
        fetch(opened(), store_url(store))
    assert len(store.seen) == 10


@pytest.mark.parametrize("announced", [True, False])
def test_downloads_are_capped_with_or_without_content_length(announced, opened, store):
    picture = picture_bytes()
    store.answer = lambda path: (200, {"Content-Length": str(len(picture))} if announced else {}, picture)
    fetch(opened(media_max_download=len(picture)), store_url(store))
    with pytest.raises(RequestRefusedError, match=f"a download of at most {len(picture) - 1} bytes"):
        fetch(opened(media_max_download=len(picture) - 1), store_url(store))


def test_a_compressed_download_is_not_unpacked(opened, store):
    bomb = gzip.compress(b"\0" * (64 << 20))
    store.answer = lambda path: (200, {"Content-Encoding": "gzip"}, bomb)
    with pytest.raises(RequestRefusedError, match=f"is {len(bomb)} bytes, expected a picture in one of"):
        fetch(opened(), store_url(store))
    assert store.seen[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
def test_a_url_without_a_picture_is_a_client_error(status, opened, store):
    store.answer = lambda path: (status, {}, b"secret")
    with pytest.raises(MediaFetchError) as failed:
        fetch(opened(), store_url(store))
    assert str(failed.value) == f"image_url is {store_url(store)!r}, expected a URL that can be fetched."


def test_closed_ports_unknown_hosts_and_timeouts_are_fetch_errors(opened, store, web, monkeypatch):
    with pytest.raises(MediaFetchError):
        fetch(opened(), "http://unknown.test/")
    monkeypatch.undo()
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "1")
    with pytest.raises(MediaFetchError):
        fetch(opened(), "http://127.0.0.2:9/")
    store.answer = lambda path: time.sleep(2) or (200, {}, picture_bytes())
    with pytest.raises(MediaFetchError):
        fetch(opened(), store_url(store))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("data:image/png;base64", "data:image/png;base64, followed by base64"),
        ("data:image/png,abc", "data:image/png;base64, followed by base64"),
        ("data:image/png;base64,@@@@", "only A-Z, a-z, 0-9, + and /"),
        ("data:image/png;base64,", "base64 after the comma"),
        ("data:image/png;base64,YWJj", "a picture in one of PNG"),
        ("hello", "an http or https URL"),
        ("ftp://127.0.0.1/", "an http or https URL"),
        ("file:///etc/passwd", "an http or https URL"),
        ("http://[::1", "an http or https URL"),
    ],
)
def test_invalid_urls_are_refused(url, expected, chat):
    answer = chat(user({"type": "image_url", "image_url": {"url": url}}, "What is it?"))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert f"expected {expected}" in error["message"]
    assert len(error["message"]) < 400


def test_data_urls_are_capped(options):
    url = data_url(picture_bytes())
    assert fetch(options(media_max_data_url=len(url)), url).media.size == (64, 48)
    message = f"is a data URL of {len(url)} characters, expected at most {len(url) - 1} characters"
    with pytest.raises(RequestRefusedError, match=message):
        fetch(options(media_max_data_url=len(url) - 1), url)
    assert fetch(options(media_max_data_url=None), url).media.size == (64, 48)


def test_a_broken_picture_is_a_client_error(options):
    data = picture_bytes()[:-30]
    with pytest.raises(RequestRefusedError, match=f"PNG of {len(data)} bytes, expected a PNG file that is") as refused:
        fetch(options(), data_url(data))
    assert "0x" not in str(refused.value)


@pytest.mark.parametrize("kind", ["data:;base64", "DATA:image/png;charset=x;BASE64", "data:image/jpeg;base64"])
def test_data_urls_are_read_as_browsers_read_them(kind, options):
    text = base64.b64encode(picture_bytes()).decode()
    assert text.endswith("==")
    for spelled in (
        text,
        text.rstrip("="),
        quote(text, safe=""),
        "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
    ):
        picture = fetch(options(), f"{kind},{spelled}")
        assert picture.original_bytes == picture_bytes()


def test_the_event_loop_goes_on_while_a_picture_is_decoded(options, monkeypatch):
    threads = []
    monkeypatch.setattr(
        "duet_server.api.protection.media.read_picture", lambda *args: threads.append(threading.current_thread())
    )
    fetch(options(), data_url(picture_bytes()))
    assert threads != [threading.main_thread()]
    assert len(threads) == 1


def test_local_files_need_vllms_flag(options, tmp_path):
    (tmp_path / "picture.png").write_bytes(picture_bytes())
    url = f"file://{tmp_path}/picture.png"
    assert fetch(options(), url, allowed_local_media_path=str(tmp_path)).media.size == (64, 48)
    with pytest.raises(RequestRefusedError):
        fetch(options(media_max_pixels=100), url, allowed_local_media_path=str(tmp_path))
    with pytest.raises(RequestRefusedError):
        fetch(options(), url)


def test_if_switched_off_vllms_own_client_fetches(options):
    connector = DuetMediaConnector(options(media_public_only=False))
    assert connector.connection is global_http_connection


def test_vllms_registry_has_the_connector(options):
    connector = MEDIA_CONNECTOR_REGISTRY.load(CONNECTOR, media_io_kwargs=None, allowed_media_domains=["a.test"])
    assert isinstance(connector, DuetMediaConnector)
    assert connector.allowed_media_domains == ["a.test"]


def test_refused_media_are_counted(client, chat):
    def counted():
        return client.get("/metrics").text.split('duet_rejected_requests_total{model_name="demo",reason="media"} ')[1][
            :9
        ]

    before = float(counted().split()[0])
    chat(user({"type": "image_url", "image_url": {"url": "hello"}}, "What is it?"))
    assert float(counted().split()[0]) == before + 1
