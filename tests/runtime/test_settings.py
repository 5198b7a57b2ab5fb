"""Settings: where each value comes from, and what people are told when one is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

import fabric_client.config
import fabric_server.config
from runtime.settings import (
    Conflict,
    Secret,
    SettingsError,
    about,
    describe,
    load,
    locate,
)


@dataclass(frozen=True)
class Garden:
    port: int = field(default=17000, metadata=about("Where.", least=0, most=65535))
    first: int = 1
    second: int = 2
    pause: float = field(default=10.0, metadata=about("How long.", unit="seconds", least=0.001))
    limit: int = field(default=2**20, metadata=about("How much.", unit="bytes", least=1))
    gates: tuple[str, ...] = ("east", "west")
    fence: bool = False
    lamp: bool | None = None
    owner: str | None = None
    shed: Path = Path("shed")
    key: Secret = field(default=Secret("default key"), metadata=about("Which."))
    store: str = "sqlite:///garden"
    mood: Literal["wild", "tidy"] = "wild"

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise Conflict("first and second are the same: change one.", "first", "second")


def made(
    toml: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    **flags: object,
) -> Garden:
    file = None
    if toml is not None:
        assert folder is not None
        file = folder / "garden.toml"
        file.write_text(toml, encoding="utf-8")
    return load(Garden, file=file, environ=environ or {}, flags=flags, prefix="GARDEN_")


def refused(
    toml: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    **flags: object,
) -> str:
    with pytest.raises(SettingsError) as caught:
        made(toml, environ, folder=folder, **flags)
    return str(caught.value)


def test_nothing_given_is_the_defaults() -> None:
    assert made() == Garden()


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    toml = 'port = 1\npause = 1\nowner = "file"'
    garden = made(toml, {"GARDEN_PORT": "2", "GARDEN_PAUSE": "2"}, folder=tmp_path, port=3)
    assert (garden.port, garden.pause, garden.owner) == (3, 2.0, "file")
    sources = {name: source for name, _, source in describe(garden)}
    assert sources["port"] == "--port"
    assert sources["pause"] == "GARDEN_PAUSE"
    assert sources["owner"] == str(tmp_path / "garden.toml")
    assert sources["fence"] == "default"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("GARDEN_PORT", "8080", 8080),
        ("GARDEN_PAUSE", "0.5", 0.5),
        ("GARDEN_LIMIT", "32MiB", 32 * 2**20),
        ("GARDEN_LIMIT", "1.5 kB", 1500),
        ("GARDEN_LIMIT", "4096", 4096),
        ("GARDEN_GATES", "north, south,", ("north", "south")),
        ("GARDEN_FENCE", "yes", True),
        ("GARDEN_FENCE", "Off", False),
        ("GARDEN_LAMP", "true", True),
        ("GARDEN_OWNER", "12", "12"),
        ("GARDEN_SHED", "/srv/shed", Path("/srv/shed")),
        ("GARDEN_MOOD", "tidy", "tidy"),
    ],
)
def test_the_environment_holds_every_type_as_text(variable: str, text: str, value: object) -> None:
    name = variable.removeprefix("GARDEN_").lower()
    assert getattr(made(environ={variable: text}), name) == value


def test_an_empty_variable_counts_as_not_set() -> None:
    assert made(environ={"GARDEN_PORT": "", "GARDEN_NONSENSE": ""}) == Garden()


def test_a_flag_not_given_changes_nothing() -> None:
    assert made(port=None, gates=[]) == Garden()


def test_lists_in_toml_and_on_the_command_line(tmp_path: Path) -> None:
    assert made('gates = ["a", "b"]', folder=tmp_path).gates == ("a", "b")
    assert made('gates = "a"', folder=tmp_path).gates == ("a",)
    assert made(gates=["c", "d"]).gates == ("c", "d")


def test_paths_in_the_file_are_beside_it_and_a_tilde_is_home(tmp_path: Path) -> None:
    assert made('shed = "tools"', folder=tmp_path).shed == tmp_path / "tools"
    assert made('shed = "~/tools"', folder=tmp_path).shed == Path.home() / "tools"
    assert made(environ={"GARDEN_SHED": "tools"}).shed == Path("tools")


def test_a_misspelt_name_in_the_file_says_which_was_meant(tmp_path: Path) -> None:
    told = refused("prot = 1", folder=tmp_path)
    assert told == f"prot in {tmp_path / 'garden.toml'} is not a setting: did you mean port?"


def test_a_misspelt_variable_says_which_was_meant() -> None:
    told = refused(environ={"GARDEN_GATE": "x"})
    assert told == "GARDEN_GATE in the environment is not a setting: did you mean GARDEN_GATES?"


def test_a_name_like_no_other_gets_no_guess() -> None:
    told = refused(environ={"GARDEN_XYZZY": "x"})
    assert told.endswith("is not a setting: remove it, or see --help for all.")


def test_an_unknown_flag_is_an_error_too() -> None:
    assert refused(moood="wild").endswith("did you mean --mood?")


def test_what_kubernetes_puts_into_the_environment_is_no_misspelt_setting() -> None:
    of_kubernetes = {
        "GARDEN_SERVICE_HOST": "10.0.0.1",
        "GARDEN_SERVICE_PORT": "17000",
        "GARDEN_SERVICE_PORT_CONTROL": "17000",
        "GARDEN_PORT_17000_TCP": "tcp://10.0.0.1:17000",
        "GARDEN_PORT_17000_TCP_ADDR": "10.0.0.1",
    }
    assert made(environ=of_kubernetes) == Garden()


def test_other_programs_variables_are_theirs() -> None:
    assert made(environ={"GARDENER": "x", "PATH": "/bin"}) == Garden()


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("GARDEN_PORT", "abc", "a whole number from 0 to 65535, such as 17000"),
        ("GARDEN_PORT", "70000", "a whole number from 0 to 65535, such as 17000"),
        ("GARDEN_PORT", "-1", "a whole number from 0 to 65535, such as 17000"),
        ("GARDEN_PAUSE", "0", "a number of seconds, at least 0.001, such as 10 s"),
        ("GARDEN_PAUSE", "nan", "a number of seconds, at least 0.001, such as 10 s"),
        ("GARDEN_PAUSE", "inf", "a number of seconds, at least 0.001, such as 10 s"),
        ("GARDEN_LIMIT", "32 bananas", "a number of bytes, at least 1, such as 1 MiB"),
        ("GARDEN_FENCE", "perhaps", "true or false"),
        ("GARDEN_MOOD", "sad", "one of wild, tidy"),
    ],
)
def test_a_value_that_does_not_fit_says_where_it_is_and_what_would(
    variable: str, text: str, wanted: str
) -> None:
    name = variable.removeprefix("GARDEN_").lower()
    told = refused(environ={variable: text})
    assert told == f"{name} is {text!r} in {variable}, but it must be {wanted}."


def test_types_are_checked_in_the_file_as_well(tmp_path: Path) -> None:
    assert "port is True in" in refused("port = true", folder=tmp_path)
    assert "must be a list of texts" in refused("gates = [1]", folder=tmp_path)
    assert "must be a path" in refused("shed = 1", folder=tmp_path)


def test_a_conflict_says_where_each_side_came_from() -> None:
    told = refused(environ={"GARDEN_FIRST": "2"})
    assert told == (
        "first and second are the same: change one. (first: GARDEN_FIRST, second: default)"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="There is no settings file"):
        load(Garden, file=tmp_path / "no.toml", environ={}, flags={}, prefix="GARDEN_")


def test_a_file_that_is_no_toml_says_the_line(tmp_path: Path) -> None:
    assert "line 2" in refused("port = 1\nport 2", folder=tmp_path)


def test_a_folder_and_bytes_that_are_no_text_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        load(Garden, file=tmp_path, environ={}, flags={}, prefix="GARDEN_")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load(Garden, file=tmp_path / "bytes.toml", environ={}, flags={}, prefix="GARDEN_")


def test_secrets_show_as_stars_everywhere_but_in_reveal() -> None:
    garden = made(environ={"GARDEN_KEY": "hunter2"})
    assert garden.key.reveal() == "hunter2"
    for text in (repr(garden), str(garden.key), f"{garden.key:>3}", "%s" % garden.key):  # noqa: UP031
        assert "***" in text
        assert "hunter2" not in text
    assert "hunter2" not in str(describe(garden))


def test_passwords_in_urls_are_masked_when_shown() -> None:
    shown = {
        name: value for name, value, _ in describe(made(store="postgresql://joe:hunter2@db/fabric"))
    }
    assert shown["store"] == "postgresql://joe:***@db/fabric"


def test_values_are_shown_as_people_write_them() -> None:
    shown = {name: value for name, value, _ in describe(Garden())}
    assert shown["pause"] == "10 s"
    assert shown["limit"] == "1 MiB"
    assert shown["gates"] == "east, west"
    assert shown["fence"] == "false"
    assert shown["owner"] == "none"


def test_the_file_is_named_by_flag_or_variable() -> None:
    environ = {"GARDEN_CONFIG": "/etc/garden.toml"}
    assert locate(None, environ={}, prefix="GARDEN_") is None
    assert locate(None, environ=environ, prefix="GARDEN_") == Path("/etc/garden.toml")
    assert locate(Path("g.toml"), environ=environ, prefix="GARDEN_") == Path("g.toml")
    assert made(environ=environ) == Garden()


# ── the two programs' own settings ────────────────────────────────────────────────────────────


def server(**flags: object) -> fabric_server.config.Config:
    return load(
        fabric_server.config.Config,
        file=None,
        environ={},
        flags=flags,
        prefix=fabric_server.config.PREFIX,
    )


def node(**flags: object) -> fabric_client.config.Config:
    return load(
        fabric_client.config.Config,
        file=None,
        environ={},
        flags=flags,
        prefix=fabric_client.config.PREFIX,
    )


@pytest.mark.parametrize("config", [fabric_server.config.Config, fabric_client.config.Config])
def test_every_setting_says_what_it_is_for(config: type) -> None:
    for one in dataclasses.fields(config):
        assert one.metadata["help"], one.name


def test_the_servers_defaults_are_those_of_the_architecture() -> None:
    config = server()
    ports = (config.control_port, config.proxy_port, config.public_port, config.api_port)
    assert ports == (17000, 17001, 18080, 18081)
    assert config.body_limit == 32 * 2**20
    assert config.store_url == f"sqlite:///{(config.data / 'fabric.sqlite').as_posix()}"
    assert config.names()[0]
    assert config.keepalive_timeout > 60, "proxies close idle connections themselves, after 60 s"


def test_two_ports_that_are_the_same_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="control_port and api_port are both 18081") as caught:
        server(control_port=18081)
    assert "(control_port: --control-port, api_port: default)" in str(caught.value)


def test_any_number_of_ports_may_be_any_free_one() -> None:
    assert server(control_port=0, proxy_port=0).proxy_port == 0


def test_a_store_of_no_known_kind_is_refused_without_showing_its_password() -> None:
    with pytest.raises(SettingsError, match="sqlite://… or postgresql://…") as caught:
        server(store="mysql://joe:hunter2@db/fabric")
    assert "hunter2" not in str(caught.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="belong together"):
        server(public_certificate="cert.pem")


def test_fewer_tunnels_under_load_than_without_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"tunnels_most is 4, less than tunnels \(5\)"):
        server(tunnels=5)


def test_a_node_looks_for_engines_unless_it_is_given_one() -> None:
    assert node().discovers
    assert not node(engine=["http://localhost:9000"]).discovers
    assert node(engine=["http://localhost:9000"], discover=True).discovers
    assert not node(discover=False).discovers


def test_an_engine_that_is_no_address_is_refused_with_an_example() -> None:
    with pytest.raises(SettingsError, match="write it like http://localhost:11434") as caught:
        node(engine=["ftp://localhost"])
    assert "--engine" in str(caught.value)


def test_a_node_must_have_a_name_and_at_least_one_slot() -> None:
    with pytest.raises(SettingsError, match="name must be"):
        node(name="a\nb")
    with pytest.raises(SettingsError, match="slots is 0"):
        node(slots=0)


@pytest.mark.parametrize("value", ["", " ", ","])
def test_an_empty_variable_is_an_empty_list_where_it_says_so(value: str) -> None:
    config = load(
        fabric_client.config.Config,
        file=None,
        environ={"FABRIC_NODE_MODELS": value},
        flags={},
        prefix="FABRIC_NODE_",
    )
    assert config.models == ()
    assert config.offers(["llama3*"]).reason_against("llama3")


def test_a_wrong_pattern_is_named_with_its_source() -> None:
    with pytest.raises(SettingsError, match=r"'\[ab' has a '\[' that is not closed.*--models"):
        load(
            fabric_client.config.Config,
            file=None,
            environ={},
            flags={"models": "llama3*,[ab"},
            prefix="FABRIC_NODE_",
        )
