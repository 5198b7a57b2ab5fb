"""The rest of the journeys, run by ``make journeys``: the days after the first token."""

from __future__ import annotations

from pathlib import Path

from tests.journeys.table import LATER
from tests.journeys.walk import CHAT, to_the_first_token, town_in, walk


def test_from_the_first_token_on(tmp_path: Path) -> None:
    with town_in(tmp_path) as (town, _):
        to_the_first_token(town)
        said = town.user.run(
            'curl -sS "$FABRIC_URL/v1/models" -H "Authorization: Bearer $FABRIC_KEY"'
        )
        assert '"id":"echo"' in said.replace(" ", "")
        assert "200 OK" in town.user.run(CHAT)
        assert "alice" in town.operator.run("fabric-server keys list")
        assert "attic" in town.operator.run("fabric-server nodes list")
        assert "findings are good" in town.owner.run("fabric-client doctor")
        (town.operator.home / "var/backups").mkdir(parents=True)
        for step in LATER:
            if step.block[1:] == ("One port", "curl --cacert"):
                town.second_operator.environ["KEY"] = town.second_operator.run(
                    "fabric-server keys create ops --management 2> /dev/null"
                ).strip()
            if step.who == "second_owner":
                town.second_operator.run("fabric-server nodes invite --name bob")
            walk(town, step)
