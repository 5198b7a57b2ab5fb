"""``fabric-server check-config``: the settings, and where each comes from."""

from __future__ import annotations

from fabric_server.cli import Json
from fabric_server.config import PREFIX, Config
from fabric_server.net.descriptor_plan import make_plan
from runtime.descriptors import allow_many_files, open_files_limit
from runtime.flags import about_settings, takes_settings
from runtime.output import one_command, say_json, say_table
from runtime.settings import describe

app = one_command()


@app.command(epilog=about_settings(PREFIX, Config))
@takes_settings(Config, PREFIX)
def check_config(settings: Config, json: Json = False) -> None:
    """Show all settings, with their values and sources.

    Numbers of connections that are not set are what this machine's limit of open files allows.
    """
    allow_many_files()
    limit = open_files_limit()
    planned = make_plan(limit, settings).settings
    described = [
        (name, str(planned[name]), f"ulimit -n {limit}")
        if name in planned and getattr(settings, name) != planned[name]
        else (name, value, source)
        for name, value, source in describe(settings)
    ]
    if json:
        say_json([{"name": n, "value": value, "source": source} for n, value, source in described])
    else:
        say_table(("setting", "value", "from"), described)
