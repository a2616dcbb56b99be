import pytest

from alp_megatron.check.rollout import check_servers
from alp_megatron.config.load import config_from
from alp_megatron.errors import UserError

URLS = "rollout.server_urls"


def configure(*overrides: str):
    return config_from({"model": {"path": "M"}}, list(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rollout.engine=server", "rollout.num_servers=3"],
        ["rollout.engine=server", f"{URLS}=[http://a:1, http://10.0.0.1:80/, 'http://[::1]:9']"],
        ["rollout.engine=server", "rollout.transport=directory", "runtime.device=cpu"],
        ["rollout.engine=server", "rollout.transport=nccl", "rollout.num_servers=2"],
    ],
)
def test_what_can_work_passes(overrides):
    check_servers(configure(*overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.num_servers=2"], ["rollout.num_servers needs rollout.engine=server"]),
        ([f"{URLS}=[http://a:1]"], [f"{URLS} needs rollout.engine=server"]),
        (["rollout.transport=directory"], ["rollout.transport needs rollout.engine=server"]),
        (
            ["rollout.engine=server", "rollout.num_servers=2", f"{URLS}=[http://a:1]"],
            ["rollout.num_servers=2", URLS],
        ),
        (["rollout.engine=server", f"{URLS}=[http://a:1, http://a:1/]"], [URLS, "twice"]),
        (
            ["rollout.engine=server", "rollout.transport=nccl", "runtime.device=cpu"],
            ["rollout.transport=nccl", "runtime.device=cuda"],
        ),
        (
            ["rollout.engine=server", "rollout.transport=cuda_ipc", "rollout.num_servers=2"],
            ["rollout.transport=cuda_ipc", "rollout.num_servers=2"],
        ),
    ],
)
def test_what_cannot_is_refused_by_name(overrides, words):
    with pytest.raises(UserError) as caught:
        check_servers(configure(*overrides))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "url",
    [
        "host-a:8001",
        "http://host-a",
        "http://:8001",
        "https://host-a:8001",
        "http://host-a:port",
        "http://host-a:99999",
        "http://host-a:8001/v1",
        "http://host-a:8001?x=1",
        "",
    ],
)
def test_a_malformed_address_is_shown(url):
    with pytest.raises(UserError, match="rollout.server_urls: '.*' is not an address") as caught:
        check_servers(configure("rollout.engine=server", f"{URLS}=['{url}']"))
    assert f"'{url}'" in str(caught.value)
