"""``fabric-consumer``: moves records from Kafka into PostgreSQL until it is stopped.

Exit codes: 0 stopped by a signal; 1 a defect; 2 an error that the operator can correct, in one
sentence on standard error; 130 ended by a second Ctrl-C.
"""

from __future__ import annotations

from typing import NoReturn

from consumer.config import PREFIX, Config
from runtime import logs, output
from runtime.extras import needed_by
from runtime.flags import about_settings, takes_settings
from runtime.run import run

app = output.one_command()


@app.command(epilog=about_settings(PREFIX, Config))
@takes_settings(Config, PREFIX)
def consume(settings: Config) -> int:
    """Move heartbeats and ledger entries from the bus into the store, in batches.

    Each batch is one transaction, and its offsets are committed only then: nothing is lost when
    the consumer, the store or the bus is killed. Several consumers share the work. The first Ctrl-C
    or SIGTERM finishes the batch in hand, the second ends at once.
    """
    with needed_by("fabric-consumer"):
        from consumer.service import serve

    logs.configure(settings.log_level, json=settings.log_json)
    return run(lambda signals: serve(settings, signals))


def main() -> NoReturn:
    output.main(app, "fabric-consumer")


if __name__ == "__main__":
    main()
